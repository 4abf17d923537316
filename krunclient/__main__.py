"""The stages of a launch in their order, and the only place that maps errors to statuses."""

from __future__ import annotations

import os
import sys

from krunclient import __version__, cli, config, host, plan, supervisor
from krunclient.bindings import libc as libc_binding
from krunclient.errors import LaunchError, VmError, reason
from krunclient.log import Log, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOADER_VARIABLES = (b"LD_LIBRARY_PATH", b"LD_PRELOAD", b"LD_AUDIT")  # ld.so(8)


def run(argv: Sequence[bytes], environ: Mapping[bytes, bytes]) -> int:
    """Do what the command line asks for and return the exit status."""
    log = Log("warning", "json" if cli.asks_for_json(argv, environ) else "text")
    try:
        options = cli.parse(argv, environ)
        if options.has("--help"):
            return _print(cli.help_text())
        if options.has("--version"):
            return _print(f"krunclient {__version__}")
        log = Log(config.log_level(options), config.log_format(options))
        libc = libc_binding.load()
        if options.has("--check"):
            from krunclient import check

            text, status = check.report(libc, config.for_check(libc, options))
            _print(text)
            return status
        settings = config.resolve(libc, options)
        log = log.about(root=settings.root_path, port=settings.listen.port)
        resolved = plan.make(settings, host.probe(libc, settings))
        if options.has("--plan"):
            from krunclient.bindings import libkrun

            krun = libkrun.load(libc, resolved.libraries.libkrun, resolved.libraries.libkrunfw)
            return _print(plan.as_json(resolved, krun.generation))
        return supervisor.run(resolved, libc, log)
    except LaunchError as error:
        log.failure(error)
        return error.status
    except KeyboardInterrupt:
        return 128 + 2
    except OSError as error:
        # A limit of this process or of the host: no memory, no descriptors, no processes.
        log.failure(
            VmError(
                "the VM could not be created",
                _call(error),
                reason(error),
                "see which limit has been reached, by ulimit -a and the kernel's log",
            )
        )
        return VmError.status
    except Exception as error:
        # The message of an unexpected error could quote a value: its type alone is told.
        log.failure(
            VmError(
                "krunclient failed",
                type(error).__name__,
                f"an unexpected error at {_place(error)}",
                "this is a fault of krunclient: please report it",
            )
        )
        return VmError.status


def _call(error: OSError) -> str:
    """The function that failed, which the bindings put before its errno's text."""
    name, colon, _ = (error.strerror or "").partition(": ")
    return name if colon else _place(error)


def _place(error: BaseException) -> str:
    """Where in krunclient it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace else "an unknown place"


def _print(text: str) -> int:
    if write_all(1, f"{text}\n".encode("utf-8", "backslashreplace")):
        return 0
    raise VmError(
        "the output can't be written", "standard output", "it is full or closed", "give another"
    )


def _open_standard_descriptors() -> None:
    """A descriptor of 0 to 2 that is closed would be taken by the next open."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _start_again_without(variables: tuple[bytes, ...]) -> None:
    """The dynamic loader has read them for good: only a new process is free of them.

    A process manager may set LD_LIBRARY_PATH to a directory of the app's, and what libkrun is
    linked to would be looked for there first.
    """
    environment = {n: value for n, value in os.environb.items() if n not in variables}
    if len(environment) < len(os.environb):
        os.execve(sys.executable, sys.orig_argv, environment)


def main() -> None:
    _open_standard_descriptors()
    _start_again_without(LOADER_VARIABLES)
    status = run([os.fsencode(word) for word in sys.argv[1:]], os.environb)
    # Nothing is left to flush or to free, and an interpreter takes its time to end.
    os._exit(status)


if __name__ == "__main__":
    main()
