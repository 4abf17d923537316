"""A process manager that does what NexusHub's does, for tests that run krunclient under it.

It starts `krunclient APP_DIRECTORY PORT` with pipes, HOST and INTERNAL_SECRET; asks for
`/api/status` every second until that is healthy and every 15 seconds from then on; starts again
after any exit, in 1 second at first and up to 30 later; and stops by SIGINT, 10 seconds (today's
NexusHub: 5), SIGKILL.

As a process of its own, for tests that signal it or kill it: `command` starts it, `main` is it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HEALTH_TIMEOUT = 5
CHECK_UNTIL_HEALTHY, CHECK_WHEN_HEALTHY = 1, 15
FAILURES_IN_A_ROW = 30
FIRST_BACKOFF, LAST_BACKOFF = 1, 30
STOP_SECONDS = 10
HEALTHY = "healthy\n"


@dataclass
class App:
    """One app of the manager's: what it is, and what has come of it."""

    directory: Path
    port: int
    starts: int = 0
    exits: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None
    idle: threading.Event = field(default_factory=threading.Event)  # stopped until it is wanted

    def is_healthy(self, timeout: float = HEALTH_TIMEOUT) -> bool:
        """200 and a JSON object."""
        try:
            url = f"http://localhost:{self.port}/api/status"
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                return answer.status == 200 and isinstance(json.load(answer), dict)
        except (OSError, ValueError):
            return False


class Manager:
    """Keeps its apps running for as long as the context lasts."""

    def __init__(
        self,
        krunclient: Sequence[str | Path],
        environment: Mapping[str, str],
        apps: Sequence[App],
        user: int | None = None,
        slowness: float = 1,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        """On a host that is `slowness` times as slow as real ones, so is the manager's clock."""
        self._krunclient = krunclient
        self._environment = {**environment, "HOST": "example.test", "INTERNAL_SECRET": "s3cret"}
        self._user = user
        self._slowness = slowness
        self._stop_seconds = stop_seconds
        self._stopping = threading.Event()
        self.apps = apps
        self._threads = [threading.Thread(target=self._run, args=(app,)) for app in apps]

    def __enter__(self) -> Manager:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def stop_idle(self, app: App) -> None:
        """Stop an app that nobody asks, and leave it so until `wake`."""
        app.idle.set()
        while len(app.exits) < app.starts:
            time.sleep(0.05)

    def wake(self, app: App) -> None:
        app.idle.clear()

    def wait_until_healthy(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not all(app.is_healthy() for app in self.apps):
            assert time.monotonic() < deadline, self.apps
            time.sleep(CHECK_UNTIL_HEALTHY)

    def _run(self, app: App) -> None:
        backoff = FIRST_BACKOFF
        while not self._stopping.is_set():
            began = time.monotonic()
            app.exits.append(self._run_once(app))
            if time.monotonic() - began > LAST_BACKOFF or app.idle.is_set():
                backoff = FIRST_BACKOFF
            while app.idle.is_set() and not self._stopping.wait(0.05):
                pass
            self._stopping.wait(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)

    def _run_once(self, app: App) -> int:
        app.starts += 1
        app.process = process = subprocess.Popen(
            [*self._krunclient, app.directory, str(app.port)],
            cwd=app.directory,
            env={**self._environment, "LD_LIBRARY_PATH": str(app.directory / "lib")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            user=self._user,
            group=self._user,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [
            threading.Thread(target=list, args=(process.stdout,)),
            threading.Thread(target=app.errors.extend, args=(map(os.fsdecode, process.stderr),)),
        ]
        for reader in readers:
            reader.start()
        self._watch(app, process)
        for reader in readers:
            reader.join()
        process.stdout.close()
        process.stderr.close()
        return process.wait()

    def _watch(self, app: App, process: subprocess.Popen[bytes]) -> None:
        """Until its end, which is brought about by failures in a row, or by a stop."""
        pause, failures = CHECK_UNTIL_HEALTHY, 0
        while process.poll() is None:
            due = time.monotonic() + pause * self._slowness
            while process.poll() is None and time.monotonic() < due:
                if self._stopping.wait(0.05) or app.idle.is_set():
                    self._stop(process)
                    return
            if app.is_healthy(HEALTH_TIMEOUT * self._slowness):
                pause, failures = CHECK_WHEN_HEALTHY, 0
            else:
                failures += 1
                if failures == FAILURES_IN_A_ROW:
                    self._stop(process)

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(self._stop_seconds * self._slowness)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def command(
    krunclient: Sequence[str | Path], apps: Sequence[App], slowness: float, stop_seconds: float
) -> list[str]:
    """The command of a manager that is a process of its own.

    It writes HEALTHY once its apps are, stops them at SIGINT, and then writes the exits and the
    errors of each as JSON.
    """
    settings = {
        "krunclient": [str(word) for word in krunclient],
        "apps": [[str(app.directory), app.port] for app in apps],
        "slowness": slowness,
        "stop_seconds": stop_seconds,
    }
    return [sys.executable, "-m", "tests.framework.manager", json.dumps(settings)]


def main() -> None:
    settings = json.loads(sys.argv[1])
    apps = [App(Path(directory), port) for directory, port in settings["apps"]]
    asked = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: asked.set())
    with Manager(
        *(settings["krunclient"], os.environ, apps),
        slowness=settings["slowness"],
        stop_seconds=settings["stop_seconds"],
    ):
        while not asked.is_set() and not all(app.is_healthy() for app in apps):
            time.sleep(CHECK_UNTIL_HEALTHY)
        sys.stdout.write(HEALTHY)
        sys.stdout.flush()
        while not asked.wait(1):
            pass
    print(json.dumps([[app.exits, app.errors] for app in apps]))


if __name__ == "__main__":
    main()
