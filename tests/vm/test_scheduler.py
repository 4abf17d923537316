"""A scheduler that people have places VMs: Slurm, by the job template of dist-scripts/managers."""

from __future__ import annotations

import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.framework.launch import HANGS_AFTER, Launcher
from tests.framework.roots import GRACEFUL_HTTPD
from tests.framework.roots import STATUS_WHEN_ASKED as ASKED
from tests.framework.scheduler import Scheduler

PORTS = range(30900, 30910)
ADDRESS = "192.0.2.1/32"  # TEST-NET-1 of RFC 5737


@pytest.fixture
def an_address() -> Iterator[None]:
    """Without one beside 127.0.0.1, as on an emulated host, getaddrinfo(3) resolves nothing to an
    address that Slurm can use: it asks with AI_ADDRCONFIG.
    """
    show = ["ip", "-oneline", "address", "show", "scope", "global"]
    has_one = subprocess.run(show, check=True, capture_output=True).stdout != b""
    if not has_one:
        subprocess.run(["ip", "address", "add", ADDRESS, "dev", "lo"], check=True)
    yield
    if not has_one:
        subprocess.run(["ip", "address", "delete", ADDRESS, "dev", "lo"], check=True)


@pytest.fixture
def scheduler(scratch: Path, an_address: None) -> Iterator[Scheduler]:
    with Scheduler(scratch / "slurm", f"{PORTS[0]}-{PORTS[-1]}") as slurm:
        yield slurm


def answer(port: int) -> str:
    """Once there is one."""
    deadline = time.monotonic() + HANGS_AFTER
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as response:
                return str(response.read().decode())
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


@pytest.mark.timeout(900)
def test_three_vms_are_placed_each_on_its_own_port_and_end_with_true_statuses(
    scheduler: Scheduler, launcher: Launcher, new_root: Callable[..., Path], slowness: float
) -> None:
    script = "mkdir -p /www; echo {} >/www/index.html; " + GRACEFUL_HTTPD
    names = ("one", "two", "three")
    roots = [new_root(script.format(name)) for name in names]
    environment = {
        **launcher.environment,
        "PATH": str(Path(launcher.command[0]).parent),
        "KRUNCLIENT_GRACE_PERIOD": f"{8 * slowness:.0f}",
    }
    jobs = [scheduler.submit(root, environment=environment) for root in roots]
    ports = [scheduler.port(job) for job in jobs]
    assert len(set(ports)) == len(jobs)
    assert set(ports) <= set(PORTS)
    assert [answer(port) for port in ports] == [f"{name}\n" for name in names]
    listed = launcher.run("--list").stdout.decode()
    assert all(str(root) in listed for root in roots)

    scheduler.cancel(jobs[1])
    assert scheduler.end(jobs[1]) == ("CANCELLED", f"{ASKED}:0")
    assert f"the app ended with status {ASKED}" in scheduler.output(jobs[1])
    assert [answer(ports[0]), answer(ports[2])] == ["one\n", "three\n"]

    failing = scheduler.submit(new_root("exit 3"), environment=environment)
    assert scheduler.end(failing) == ("FAILED", "3:0")
    fine = scheduler.submit(new_root("exit 0"), "--network=tsi", environment=environment)
    assert scheduler.end(fine) == ("COMPLETED", "0:0")
    missing = scheduler.submit(Path("/no/such/root"), environment=environment)
    assert scheduler.end(missing) == ("FAILED", "66:0")
    assert "/no/such/root" in scheduler.output(missing)

    for job in (jobs[0], jobs[2]):
        scheduler.cancel(job)
        assert scheduler.end(job) == ("CANCELLED", f"{ASKED}:0")
    listed = launcher.run("--list").stdout.decode()
    assert not any(str(root) in listed for root in roots)
