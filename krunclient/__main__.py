"""The stages of a launch in their order, and the only place that maps errors to statuses."""

from __future__ import annotations

import os
import sys

from krunclient import __version__, cli, config, options, plan
from krunclient.bindings import libc as libc_binding
from krunclient.errors import LaunchError, VmError, unexpected
from krunclient.host import facts
from krunclient.log import Log, write_all
from krunclient.supervisor import run as supervisor
from krunclient.vmm import main as vmm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from krunclient.bindings.libc import Libc
    from krunclient.plan import Plan
    from krunclient.supervisor.run import Main

STARTED_AGAIN = "krunclient-started-again"  # an option to Python that it keeps and does not know
LOADER_VARIABLES = (b"LD_LIBRARY_PATH", b"LD_PRELOAD", b"LD_AUDIT")  # ld.so(8)


def log_for(argv: Sequence[bytes], environ: Mapping[bytes, bytes]) -> Log:
    """The log for what fails before the options are read."""
    return Log("warning", "json" if cli.asks_for_json(argv, environ) else "text")


def run(argv: Sequence[bytes], environ: Mapping[bytes, bytes], parent: int | None = None) -> int:
    """Do what the command line asks for and return the exit status."""
    log = log_for(argv, environ)
    try:
        given = cli.parse(argv, environ)
        if given.has(options.HELP):
            return _print(cli.help_text())
        if given.has(options.VERSION):
            return _print(f"krunclient {__version__}")
        log = Log(given.value(options.LOG_LEVEL), given.value(options.LOG_FORMAT))
        if given.has(options.CHECK):
            from krunclient import check

            text, status = check.run(given)
            _print(text)
            return status
        if given.has(options.LIST):
            from krunclient import listing

            return _print(listing.run(given))
        architecture = facts.find_architecture()
        libc = libc_binding.load(architecture)
        settings = config.resolve(libc, given)
        log = log.with_context(root=settings.files.root_path, port=settings.policy.listen.port)
        resolved = plan.make(settings, facts.probe(libc, architecture, settings))
        if given.has(options.PLAN):
            return _print(plan.as_json(resolved, given.origins()))
        return _launch(resolved, libc, log, parent or os.getppid())
    except LaunchError as error:
        log.failure(error)
        return error.status
    except KeyboardInterrupt:
        return 128 + 2
    except Exception as error:
        if isinstance(error, ImportError):
            _forget_this_copy()
        failure = unexpected(error)
        log.failure(failure)
        return failure.status


def _launch(resolved: Plan, libc: Libc, log: Log, parent: int) -> int:
    """All that the children run is imported before they are forked: it costs less memory and time
    than in each.
    """
    passt: Main | None = None
    if resolved.user_network is not None:
        from krunclient.passt.main import main as passt
    return supervisor.run(resolved, libc, log, parent, vmm=vmm.main, passt=passt)


def _forget_this_copy() -> None:
    """Code that is imported late is damaged: without the first, the next start extracts anew."""
    top = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    try:
        os.unlink(os.path.join(top, "code"))
    except OSError:
        pass  # this is no extracted copy


def _print(text: str) -> int:
    if write_all(1, f"{text}\n".encode("utf-8", "backslashreplace")):
        return 0
    raise VmError(
        "the output can't be written", "standard output", "it is full or closed", "give another"
    )


def _start_again_without(variables: tuple[bytes, ...]) -> None:
    """The dynamic loader has read them for good: only a new process is free of them.

    A process manager may set LD_LIBRARY_PATH to a directory of the app's, and what libkrun is
    linked to would be looked for there first. Once is enough: what comes back at each exec, by an
    LD_PRELOAD of a host that is set up so, would come back for ever.
    """
    environment = {n: value for n, value in os.environb.items() if n not in variables}
    if len(environment) < len(os.environb) and STARTED_AGAIN not in sys._xoptions:
        python, *rest = sys.orig_argv
        os.execve(sys.executable, [python, f"-X{STARTED_AGAIN}", *rest], environment)


def main(parent: int | None = None) -> None:
    """`parent` is the process that started this one, if the first stage knows; it may be gone."""
    argv = [os.fsencode(word) for word in sys.argv[1:]]
    try:
        _start_again_without(LOADER_VARIABLES)
    except OSError as error:
        failure = unexpected(error)
        log_for(argv, os.environb).failure(failure)
        os._exit(failure.status)
    status = run(argv, os.environb, parent)
    # Nothing is left to flush or to free, and an interpreter takes its time to end.
    os._exit(status)


if __name__ == "__main__":
    main()
