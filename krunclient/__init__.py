"""Boot one libkrun microVM for one application instance.

The package is read in the order in which a launch runs it:

    cli         argv and environment   -> Options
    config      Options                -> Config     (validated values)
    host        Config                 -> HostFacts  (read-only probes)
    plan        Config and HostFacts   -> Plan       (pure data; what --plan prints)
    supervisor  Plan                   -> the process that stays: it claims and forks
    watch       the VMM child          -> an exit status, by way of readiness and stops
    vmm         Plan                   -> the child, which confines itself by sandbox/
    vm          Plan                   -> calls of libkrun, in the child

`__main__` runs the stages and is the only place that maps errors to exit statuses.
"""

__version__ = "0.1.0"
