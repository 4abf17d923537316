"""Launches of krunclient: one that has ended, and one that runs."""

from __future__ import annotations

import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.framework.clients import once_more
from tests.framework.processes import children_of

# Seconds for what comes in some, and is only waited for: on a slow host that is much longer.
HANGS_AFTER = 240


@dataclass(frozen=True)
class Ended:
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float

    @property
    def error(self) -> str:
        """The one line that krunclient wrote on stderr."""
        lines = self.stderr.decode().splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("krunclient: error: ")
        return lines[0]

    @property
    def results(self) -> dict[str, str]:
        """What came of each call of tests/guests/probe.c, by its words."""
        lines = self.stdout.decode().splitlines()
        return dict(line.rsplit(": ", 1) for line in lines if ": " in line)


@dataclass(frozen=True)
class Launcher:
    """How to start krunclient: the executable, its environment, and the user that it runs as."""

    command: Sequence[str | Path]
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path = Path("/")
    user: int | None = None

    def run(
        self,
        *arguments: str | bytes | Path,
        env: Mapping[str, str | bytes] | None = None,
        timeout: float = HANGS_AFTER,
        preexec: Callable[[], None] | None = None,
    ) -> Ended:
        """Start it and wait for its end."""
        started = time.monotonic()
        process = self.start(*arguments, env=env, preexec=preexec)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            stdout, stderr = process.communicate()
            raise AssertionError(f"no end after {timeout} s: {stdout!r} {stderr!r}") from None
        return Ended(process.returncode, stdout, stderr, time.monotonic() - started)

    def start(
        self,
        *arguments: str | bytes | Path,
        env: Mapping[str, str | bytes] | None = None,
        preexec: Callable[[], None] | None = None,
        **streams: int | None,
    ) -> subprocess.Popen[bytes]:
        """`streams` are those of subprocess.Popen; it takes no input and its output is piped."""
        piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [*self.command, *arguments],
            env={**self.environment, **(env or {})},
            cwd=self.directory,
            preexec_fn=preexec,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
            **{"stdin": subprocess.DEVNULL, **piped, **streams},  # type: ignore[call-overload]
        )
        return process

    def start_app(
        self, root: str | bytes | Path, port: int, *arguments: str | bytes | Path
    ) -> Server:
        """Start it with a root whose app says "started", and wait until it has."""
        process = self.start(root, str(port), *arguments)
        expect(process, b"started\n")
        return Server(process, port)

    def serve(
        self, root: Path, port: int, *arguments: str, env: Mapping[str, str] | None = None
    ) -> Server:
        """Start it with a root that holds a web server, and wait until that answers."""
        return Server(self.start(*arguments, root, str(port), env=env), port)


def expect(process: subprocess.Popen[bytes], *lines: bytes) -> None:
    """Wait for its next lines of output. Where it says something else, it is ended and all told."""
    assert process.stdout is not None
    for line in lines:
        said = process.stdout.readline()
        if said != line:
            try:
                rest = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                rest = process.communicate()
            status = process.returncode
            raise AssertionError(f"it said {said!r}, not {line!r}, then {rest}, status {status}")


class Server:
    """A microVM with a web server. Leaving the context ends it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def __enter__(self) -> Server:
        self.wait_until_it_answers()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        stdout, stderr = self.process.communicate()
        if error is not None:
            print(f"stdout: {stdout!r}\nstderr: {stderr!r}")

    @property
    def vmm(self) -> Path:
        """The VMM child's directory in /proc."""
        (child,) = children_of(self.process.pid)
        return child

    def get(self, path: str = "/", host: str = "127.0.0.1", timeout: float = 30) -> bytes:
        """The body of an answer."""
        url = f"http://{host}:{self.port}{path}"
        return once_more(lambda: _body(url, timeout))

    def wait_until_it_answers(self, timeout: float = HANGS_AFTER) -> None:
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.get()
                return
            except urllib.error.HTTPError as error:
                error.close()  # an answer as well; Python 3.14 warns of one that is left open
                return
            except OSError as error:
                if self.process.poll() is not None:
                    raise AssertionError(f"it ended: {self.process.communicate()}") from error
                if time.monotonic() > deadline:
                    raise AssertionError(f"no answer after {timeout} s") from error
                time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM, timeout: float = HANGS_AFTER) -> Ended:
        """Send a signal and wait for the end."""
        started = time.monotonic()
        self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=timeout)
        return Ended(self.process.returncode, stdout, stderr, time.monotonic() - started)


def _body(url: str, timeout: float) -> bytes:
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        body: bytes = answer.read()
        return body


STOP_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def ignore_stops() -> None:
    """As nohup does, and a shell for a background job. To be run before exec."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def block_stops() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
