"""Three apps under process managers: healthy, one killed and back, all stopped gracefully."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.framework.launch import Launcher
from tests.framework.manager import HEALTH_TIMEOUT, HEALTHY, App, Manager, command
from tests.framework.paths import SCRIPTS, TOP
from tests.framework.ports import next_port
from tests.framework.processes import children_of, runs
from tests.framework.roots import GRACEFUL_HTTPD
from tests.framework.roots import STATUS_WHEN_ASKED as ASKED
from tests.framework.seen import wait_until

NewRoot = Callable[..., Path]

EXAMPLE = SCRIPTS / "managers/supervisord.conf"
BOOT_SECONDS = 90
SCRIPT = f"""
mkdir -p /www/api
echo '{{"eventNumber": 1}}' >/www/api/status
{GRACEFUL_HTTPD}
"""


@pytest.fixture
def apps(new_root: NewRoot) -> list[App]:
    return [App(new_root(SCRIPT), next_port()) for _ in range(3)]


def grace_period(seconds: float, slowness: float) -> dict[str, str]:
    """On a slow host an app takes as much longer to stop as all else does."""
    return {"KRUNCLIENT_GRACE_PERIOD": f"{seconds * slowness:.3f}"}


@pytest.mark.timeout(900)
def test_under_a_manager_like_nexushubs(
    launcher: Launcher, apps: list[App], slowness: float
) -> None:
    environment = {**launcher.environment, **grace_period(8, slowness)}
    with Manager(launcher.command, environment, apps, slowness=slowness) as manager:
        manager.wait_until_healthy(BOOT_SECONDS * slowness)
        assert apps[1].process is not None
        apps[1].process.kill()
        wait_until(lambda: apps[1].starts == 2, 10 * slowness)
        manager.wait_until_healthy(BOOT_SECONDS * slowness)
    assert [app.exits for app in apps] == [[ASKED], [-signal.SIGKILL, ASKED], [ASKED]]
    assert [app.errors for app in apps] == [[], [], []]


# What docs/NEXUSHUB.md recommends.
RECIPE = {"KRUNCLIENT_VOLUME": "db:/db"}
GRACE_SECONDS = 4
TODAYS_STOP_SECONDS = 5
COUNTING = f"""#!/bin/sh
export PATH=/bin
count=$(cat /db/count 2>/dev/null || echo 0)
echo $((count + 1)) >/db/count
{SCRIPT}
"""


@pytest.fixture
def counting_apps(new_root: NewRoot) -> list[App]:
    """As they are under today's NexusHub: the program is /app/bin/app, the data are in /db, and
    the working directory is the root. Each counts its starts.
    """
    apps = []
    for _ in range(3):
        root = new_root()
        (root / "app/bin").mkdir(parents=True)
        (root / "app/bin/app").write_text(COUNTING)
        (root / "app/bin/app").chmod(0o755)
        (root / "db").mkdir()
        apps.append(App(root, next_port()))
    return apps


def counts(apps: Sequence[App]) -> list[int]:
    return [int((app.directory / "db/count").read_text()) for app in apps]


@pytest.mark.timeout(900)
def test_under_todays_nexushub_an_app_keeps_its_data(
    launcher: Launcher, counting_apps: list[App], slowness: float
) -> None:
    apps = counting_apps
    environment = {**launcher.environment, **RECIPE, **grace_period(GRACE_SECONDS, slowness)}
    for run in (1, 2):  # the manager is started again
        with Manager(
            *(launcher.command, environment, apps),
            slowness=slowness,
            stop_seconds=TODAYS_STOP_SECONDS,
        ) as manager:
            manager.wait_until_healthy(BOOT_SECONDS * slowness)
            if run == 1:
                assert counts(apps) == [1, 1, 1]
                assert apps[0].process is not None
                apps[0].process.kill()
                manager.stop_idle(apps[1])
                wait_until(lambda: apps[0].starts == 2, 10 * slowness)
                assert apps[1].starts == 1
                manager.wake(apps[1])
                manager.wait_until_healthy(BOOT_SECONDS * slowness)
    assert counts(apps) == [3, 3, 2]
    assert [app.exits for app in apps] == [
        [-signal.SIGKILL, ASKED, ASKED],
        [ASKED, ASKED, ASKED],
        [ASKED, ASKED],
    ]
    assert [app.errors for app in apps] == [[], [], []]


@pytest.mark.timeout(900)
def test_data_outlive_a_killed_manager_and_ctrl_c_lets_each_app_end_by_itself(
    launcher: Launcher, counting_apps: list[App], slowness: float
) -> None:
    apps = counting_apps

    def start() -> subprocess.Popen[str]:
        """A manager as a terminal starts it: what it starts is in its process group."""
        manager = subprocess.Popen(
            command(launcher.command, apps, slowness, TODAYS_STOP_SECONDS),
            cwd=TOP,
            env={
                **launcher.environment,
                **RECIPE,
                **grace_period(GRACE_SECONDS, slowness),
                "PYTHONPATH": os.environ["PYTHONPATH"],
            },
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert manager.stdout is not None
        assert manager.stdout.readline() == HEALTHY
        return manager

    killed = start()
    left = [int(child.name) for child in children_of(killed.pid)]
    killed.kill()
    killed.communicate()
    assert all(app.is_healthy(HEALTH_TIMEOUT * slowness) for app in apps)
    os.killpg(killed.pid, signal.SIGKILL)  # as systemd does to what a dead main process has left
    wait_until(lambda: not any(runs(pid) for pid in left), 10 * slowness)
    assert counts(apps) == [1, 1, 1]

    manager = start()
    assert counts(apps) == [2, 2, 2]
    os.killpg(manager.pid, signal.SIGINT)
    output, _ = manager.communicate()
    assert json.loads(output) == [[[ASKED], []]] * 3
    assert counts(apps) == [2, 2, 2]


def supervisord_configuration(
    krunclient: Path, apps: Sequence[App], directory: Path, slowness: float
) -> str:
    """The example, with its one program once for each app."""
    head, program = EXAMPLE.read_text().split("[program:hello]")
    programs = [
        f"[program:app{app.port}]{program}".replace("/usr/local/bin/krunclient", str(krunclient))
        .replace("/srv/apps/hello", str(app.directory))
        .replace("30000", str(app.port))
        .replace("stopwaitsecs = 15", f"stopwaitsecs = {round(15 * slowness)}")
        .replace("/hello.", f"/{app.port}.")
        for app in apps
    ]
    return head.replace("logfile = /dev/null", f"logfile = {directory}/log") + "".join(programs)


@pytest.mark.timeout(900)
def test_under_supervisord(
    launcher: Launcher, apps: list[App], tmp_path: Path, slowness: float
) -> None:
    configuration = tmp_path / "supervisord.conf"
    (krunclient,) = launcher.command
    configuration.write_text(supervisord_configuration(Path(krunclient), apps, tmp_path, slowness))
    # Where its package is may be known by PYTHONPATH, which krunclient is not to get.
    main = f"import sys; sys.path[:] = {sys.path}; from supervisor.supervisord import main; main()"
    supervisord = subprocess.Popen(
        [sys.executable, "-c", main, "-c", configuration],
        env={**launcher.environment, **grace_period(8, slowness), "LANG": "C.UTF-8"},
    )
    log = tmp_path / "log"

    def pids(app: App) -> list[int]:
        found = re.findall(rf"spawned: 'app{app.port}' with pid (\d+)", log.read_text())
        return [int(pid) for pid in found]

    try:
        wait_until(lambda: all(app.is_healthy() for app in apps), BOOT_SECONDS * slowness)
        (first,) = pids(apps[1])
        Path(f"/proc/{first}").stat()
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: len(pids(apps[1])) == 2, 10 * slowness)
        wait_until(lambda: all(app.is_healthy() for app in apps), BOOT_SECONDS * slowness)
        supervisord.terminate()
        assert supervisord.wait(60 * slowness) == 0
    finally:
        supervisord.kill()
        supervisord.wait()
    text = log.read_text()
    for app in apps:
        assert f"stopped: app{app.port} (exit status {ASKED})" in text
        assert (tmp_path / f"{app.port}.err").read_text() == ""
        assert not any(runs(pid) for pid in pids(app))
