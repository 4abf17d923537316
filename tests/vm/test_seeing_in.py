"""VMs are seen as they start, run, stop and are killed; an app that is not well is told."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.framework.launch import HANGS_AFTER, Launcher
from tests.framework.ports import next_port
from tests.framework.processes import children_of, status_of
from tests.framework.roots import GRACEFUL_HTTPD, HTTPD, open_to
from tests.framework.seen import listed, measured, phases, wait_until
from tests.framework.users import USER

NewRoot = Callable[..., Path]
VMS = 5
HIDE = 'mount -t proc -o hidepid=2 proc /proc; exec setpriv --reuid=4242 --regid=4242 "$@"'
# Each request gets an answer by the mood that an earlier one has set.
MOODY = """
mkdir -p /www/cgi-bin; echo good >/mood
cat >/www/cgi-bin/mood <<'end'
#!/bin/sh
echo "$QUERY_STRING" >/mood; printf '\\n'
end
cat >/www/cgi-bin/up <<'end'
#!/bin/sh
case $(cat /mood) in
good) printf '\\nwell\\n' ;;
500) printf 'Status: 500 Oh\\n\\n' ;;
garbage) printf 'HTTP/1.1 aaaaaaaaaaaaaaaaaaaa\\n' ;;  # busybox 1.38 leaves no other
frozen) sleep 1000 ;;
endless) printf '\\n'; cat /dev/zero ;;
esac
end
chmod +x /www/cgi-bin/*
"""
WHY = {
    "500": "it answers with status 500",
    "garbage": "its answer is no HTTP",
    "frozen": "no answer after",
    "endless": "its answer is longer than 1 MiB",
}


@pytest.fixture
def runs() -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    found: dict[int, subprocess.Popen[bytes]] = {}
    yield found
    for run in found.values():
        run.kill()
        run.communicate()


def agrees_with_proc(vm: dict[str, Any], run: subprocess.Popen[bytes]) -> bool:
    processes = [Path(f"/proc/{run.pid}"), *children_of(run.pid)]
    resident = sum(int(status_of(one)["VmRSS"].split()[0]) for one in processes) / 1024
    return bool(vm["pid"] == run.pid and abs(vm["memory_mib"] - resident) < 0.1 * resident)


def test_five_vms_are_shown_as_they_are_and_nothing_of_them_is_left(
    launcher: Launcher,
    users_launcher: Launcher,
    new_root: NewRoot,
    scratch: Path,
    runs: dict[int, subprocess.Popen[bytes]],
) -> None:
    metrics = scratch / "metrics"
    metrics.mkdir()
    metrics.chmod(0o777)
    ports = [next_port() for _ in range(VMS)]
    assert listed(launcher, ports) == {}
    root = new_root(f"mkdir -p /www; {GRACEFUL_HTTPD}")
    open_to(USER, root)
    for number, port in enumerate(ports):
        who = users_launcher if number % 2 else launcher
        runs[port] = who.start(root, str(port), f"--metrics={metrics}")
    files = {port: metrics / f"krunclient-{port}.prom" for port in ports}
    assert set(phases(launcher, ports).values()) <= {"setup", "booting", "ready"}
    wait_until(lambda: phases(launcher, ports) == dict.fromkeys(ports, "ready"))
    wait_until(lambda: all(measured(file)["ready"] == 1 for file in files.values()))
    vms = listed(launcher, ports)
    assert {port: vm["user"] for port, vm in vms.items()} == {
        port: USER if number % 2 else 0 for number, port in enumerate(ports)
    }
    assert all(vm["root"] == str(root) and vm["processor_seconds"] > 0 for vm in vms.values())
    wait_until(
        lambda: all(agrees_with_proc(listed(launcher, ports)[port], runs[port]) for port in ports)
    )
    for port, file in files.items():
        assert measured(file)["krunclient_resident_memory_bytes"] > 20 * 2**20
        began = measured(file)["krunclient_start_time_seconds"]
        assert abs(time.time() - began - listed(launcher, ports)[port]["uptime_seconds"]) < 5
    # A user sees what is the user's own.
    assert set(listed(users_launcher, ports)) == set(ports[1::2])

    stopped, killed, users_killed, *rest = ports
    runs[stopped].send_signal(signal.SIGTERM)
    runs[killed].kill()
    runs[users_killed].kill()
    for port in (stopped, killed, users_killed):
        runs[port].communicate()
    assert set(listed(launcher, ports)) == set(rest)
    wait_until(lambda: sorted(metrics.iterdir()) == sorted(files[port] for port in rest), 5)
    for port in rest:
        runs[port].kill()
        runs[port].communicate()
    assert listed(launcher, ports) == {}
    wait_until(lambda: not list(metrics.iterdir()), 5)


def test_a_user_to_whom_proc_hides_a_vm_is_told(
    launcher: Launcher,
    users_launcher: Launcher,
    new_root: NewRoot,
    port: int,
    runs: dict[int, subprocess.Popen[bytes]],
) -> None:
    root = new_root(HTTPD)
    open_to(USER, root)
    runs[port] = users_launcher.start(root, str(port))
    wait_until(lambda: phases(users_launcher, [port]) == {port: "ready"})
    script = HIDE.replace("4242", str(USER))
    hidden = ["unshare", "--mount", "--", "sh", "-c", script, "sh", "--clear-groups"]
    environment = users_launcher.environment
    who = replace(launcher, command=[*hidden, *launcher.command], environment=environment)
    ended = who.run("--list")
    assert ended.status == 69
    assert f"it does not show process {runs[port].pid}; mount it without hidepid" in ended.error


def test_an_app_that_is_not_well_is_told_within_two_intervals_and_can_come_back(
    launcher: Launcher, new_root: NewRoot, port: int, slowness: float, scratch: Path
) -> None:
    # A guest beside other work takes its time for a good answer.
    interval = round(slowness, 1)
    root = new_root(MOODY + GRACEFUL_HTTPD)
    with ExitStack() as stack:
        run = stack.enter_context(
            launcher.start(
                *(root, str(port), "--log-level=info", "--log-format=json"),
                *("--health-path=/cgi-bin/up", "--health-retries=1"),
                *(f"--health-interval={interval}", f"--health-timeout={interval}"),
                f"--metrics={scratch}/moods.prom",
            )
        )
        stack.callback(run.kill)
        assert run.stderr is not None

        def wait_for(event: str) -> dict[str, Any]:
            seen = []
            for line in run.stderr or ():
                found: dict[str, Any] = json.loads(line)
                if found["event"] == event:
                    return found
                seen.append(found)
            raise AssertionError(seen)

        def be(mood: str) -> None:
            url = f"http://127.0.0.1:{port}/cgi-bin/mood?{mood}"
            urllib.request.urlopen(url, timeout=HANGS_AFTER).read()

        wait_for("healthy")
        for mood, why in WHY.items():
            be(mood)
            began = time.monotonic()
            assert wait_for("unhealthy")["why"].startswith(why)
            assert time.monotonic() - began < 2 * interval + 1
            assert phases(launcher, [port]) == {port: "unhealthy"}
            assert measured(scratch / "moods.prom")["krunclient_healthy"] == 0
            be("good")
            wait_for("healthy")
            assert phases(launcher, [port]) == {port: "healthy"}
        run.send_signal(signal.SIGTERM)
        run.communicate()
        assert run.returncode == 6


def test_an_app_that_stays_unhealthy_ends_with_70(
    launcher: Launcher, new_root: NewRoot, port: int
) -> None:
    asks = ("--health-path=/missing", "--health-interval=1", "--health-timeout=30")
    ended = launcher.run(
        new_root(HTTPD), str(port), *asks, "--health-retries=2", "--health-action=exit"
    )
    assert ended.status == 70
    assert ended.stdout == b""
    unhealthy, failed = ended.stderr.decode().splitlines()
    assert unhealthy.startswith("krunclient: warning: the app is unhealthy: it answers with status")
    assert failed.startswith("krunclient: error: the app is unhealthy: ")
