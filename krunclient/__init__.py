"""Boot one libkrun microVM for one application instance.

A launch goes through these stages, and each hands frozen values to the next:

    cli         argv and environment  -> Options    (options.py has a row for each)
    config      Options               -> Config     (validated values)
    host        Config                -> HostFacts  (read-only probes)
    usernet     Config                -> UserNetwork (with --network passt)
    plan        Config and HostFacts  -> Plan       (pure data; what --plan prints)
    supervisor  Plan                  -> the process that was exec'd: it claims, forks and watches
    vmm         Plan                  -> the child, which confines itself and calls libkrun
    passt       Plan                  -> with a network card, the child that becomes passt
    guest/      UserNetwork           -> what sets the card up in the guest, in C

What they stand on:

    model, record, secret        values, without effects
    errors, log, report          what is told: to people, to machines, by the child
    sandbox                      the walls around the children, and the ties between the processes
    bindings                     C functions and what differs between architectures

Above all of them are `__main__`, which runs the stages and is the only place that maps errors to
exit statuses, `check` for --check, with its `rehearsal` of a launch, and `listing` for --list.
`zipapp` is the executable's first stage.
"""

__version__ = "0.2.0"
