"""Slurm on one machine: its controller, its node daemon and munge, from Debian, as root.

`prepare` puts them into build/guests/slurm; nothing of the machine changes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import debian
from target import ARCHITECTURE, MACHINE
from tests.framework.paths import GUESTS, SCRIPTS

SLURM = GUESTS / "slurm"
PACKAGES = (
    *("slurmctld", "slurmd", "slurm-client", "slurm-wlm-basic-plugins", "munge", "libmunge2"),
    *("libhwloc15", "libnuma1", "libjson-c5", "libgcrypt20", "libgpg-error0"),
)
LIBRARIES = SLURM / "usr" / ARCHITECTURE.library_directory
PLUGINS = LIBRARIES / "slurm-wlm"
TEMPLATE = SCRIPTS / "managers/krunclient.sbatch"
STARTS_IN = 60  # seconds, at most
CONTROLLER_PORT, NODE_PORT = 16817, 16818
# The node is said to have more than the machine may have: the jobs of a test are a few.
CONFIGURATION = f"""
ClusterName=krunclient
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=DIRECTORY/munge.socket
PluginDir=DIRECTORY/plugins
StateSaveLocation=DIRECTORY/state
SlurmdSpoolDir=DIRECTORY/spool
SlurmctldPort={CONTROLLER_PORT}
SlurmdPort={NODE_PORT}
SlurmctldPidFile=DIRECTORY/slurmctld.pid
SlurmdPidFile=DIRECTORY/slurmd.pid
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
KillWait=120
NodeName=localhost NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000
PartitionName=all Nodes=localhost Default=YES State=UP
"""


def prepare() -> None:
    shutil.rmtree(SLURM, ignore_errors=True)
    for package in PACKAGES:
        shutil.copytree(
            debian.unpack(package, machine=MACHINE), SLURM, symlinks=True, dirs_exist_ok=True
        )
    for program in (SLURM / "usr/sbin").glob("*-wlm"):  # they look at the name that they have
        program.rename(program.with_name(program.name.removesuffix("-wlm")))


class Scheduler:
    """Slurm, which gives its jobs ports of a range. Leaving the context ends it and all jobs."""

    def __init__(self, directory: Path, ports: str) -> None:
        self._directory = directory
        text = CONFIGURATION.replace("DIRECTORY", str(directory))
        for name in ("state", "spool"):
            (directory / name).mkdir(parents=True)
        (directory / "slurm.conf").write_text(f"{text}MpiParams=ports={ports}\n")
        (directory / "plugins").symlink_to(PLUGINS)  # by a path that has no space
        (directory / "munge.key").touch(0o600)
        (directory / "munge.key").write_bytes(os.urandom(1024))
        self._environment = {
            "LD_LIBRARY_PATH": f"{LIBRARIES}:{PLUGINS}",
            "PATH": f"{SLURM}/usr/bin:/usr/bin:/bin",
            "SLURM_CONF": str(directory / "slurm.conf"),
        }
        self._daemons: list[subprocess.Popen[bytes]] = []
        version = re.findall(r"\d+", self._run("sinfo", "--version"))
        # One that does nothing, whatever cgroups the machine has.
        plugin = "disabled" if [int(part) for part in version[:2]] >= [23, 11] else "cgroup/v1"
        (directory / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")

    def __enter__(self) -> Scheduler:
        files = {"--key-file": "munge.key", "--seed-file": "munge.seed", "--pid-file": "munge.pid"}
        munge = [f"{option}={self._directory / name}" for option, name in files.items()]
        munge += [f"--socket={self._directory}/munge.socket", "--log-file=/dev/stderr"]
        self._start("munged", "--foreground", "--force", *munge)
        self._start("slurmctld", "-D", "-c")
        self._start("slurmd", "-D", "-N", "localhost", "-d", f"{SLURM}/usr/sbin/slurmstepd")
        try:
            self._wait(lambda: "idle" in self._run("sinfo", "--noheader", check=False))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._run("scancel", "--user=root", check=False)
            self._wait(lambda: not self._run("squeue", "--noheader", check=False))
        finally:
            self._end()
            if error is not None:
                print(self._logs())

    def _end(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(STARTS_IN)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def submit(self, *words: str | Path, environment: Mapping[str, str]) -> int:
        """The number of a job of the template's, with these arguments."""
        path = f"{environment['PATH']}:{self._environment['PATH']}"
        said = self._run(
            *("sbatch", "--parsable", "--output=%j.out", f"--chdir={self._directory}", TEMPLATE),
            *words,
            environment={**environment, **self._environment, "PATH": path},
        )
        return int(said)

    def cancel(self, job: int) -> None:
        self._run("scancel", str(job))

    def port(self, job: int) -> int:
        """That the job's step was given, once it has been."""
        return int(self._wait_for("step", f"{job}.0", r"ResvPorts=(\d+)")[1])

    def end(self, job: int) -> tuple[str, str]:
        """Its state and its exit code, once it has ended: "FAILED" and "3:0" say."""
        over = "CANCELLED|COMPLETED|FAILED|TIMEOUT|NODE_FAIL|OUT_OF_MEMORY"
        found = self._wait_for("job", str(job), rf"(?s)JobState=({over})\b.*ExitCode=(\S+)")
        return found[1], found[2]

    def output(self, job: int) -> str:
        return (self._directory / f"{job}.out").read_text()

    def _wait_for(self, kind: str, name: str, pattern: str) -> re.Match[str]:
        show = ("scontrol", "show", kind, name)
        self._wait(lambda: bool(re.search(pattern, self._run(*show, check=False))))
        found = re.search(pattern, self._run(*show))
        assert found is not None
        return found

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STARTS_IN
        while not condition():
            assert time.monotonic() < deadline, self._logs()
            time.sleep(0.2)

    def _start(self, name: str, *words: str) -> None:
        log = (self._directory / f"{name}.log").open("wb")
        with log:
            daemon = subprocess.Popen(
                [SLURM / "usr/sbin" / name, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )
        self._daemons.append(daemon)

    def _run(
        self,
        *command: str | Path,
        environment: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> str:
        words: Sequence[str | Path] = (SLURM / "usr/bin" / command[0], *command[1:])
        result = subprocess.run(
            words, capture_output=True, text=True, env=environment or self._environment
        )
        assert not check or result.returncode == 0, (result, self._logs())
        return result.stdout

    def _logs(self) -> str:
        logs = sorted([*self._directory.glob("*.log"), *self._directory.glob("*.out")])
        return "\n".join(f"{path.name}:\n{path.read_text()}" for path in logs)


if __name__ == "__main__":
    prepare()
