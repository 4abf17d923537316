"""The filter, run by a small interpreter of classic BPF: each refusal beside what is allowed."""

from __future__ import annotations

import errno
import struct
from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krunclient.bindings.arch import ARCHITECTURES
from krunclient.sandbox import seccomp
from krunclient.sandbox.seccomp import RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS, RET_USER_NOTIF

PROCESS = 1234
MACHINES = list(ARCHITECTURES)
PROGRAMS = {
    machine: seccomp.assemble(architecture, PROCESS, set_id_bits=True, sockets=True)
    for machine, architecture in ARCHITECTURES.items()
}


def number(name: str, machine: str) -> int | None:
    return ARCHITECTURES[machine].syscalls[name]


class Instruction(NamedTuple):
    """struct sock_filter."""

    code: int
    if_true: int
    if_false: int
    value: int


@cache
def decoded(instruction: bytes) -> Instruction:
    return Instruction(*struct.unpack("=HBBI", instruction))


def run(
    machine: str,
    call: int,
    arguments: tuple[int, ...] = (),
    architecture: int = 0,
    program: tuple[bytes, ...] = (),
    steps: list[int] | None = None,
) -> int:
    """What the kernel would do: BPF as far as the filter uses it. `steps` gets what it went by."""
    steps = [] if steps is None else steps
    data = {
        seccomp.NUMBER: call,
        seccomp.ARCHITECTURE: architecture or ARCHITECTURES[machine].audit_arch,
    }
    for position in range(6):
        value = arguments[position] if position < len(arguments) else 0
        data[seccomp.FIRST_ARGUMENT + 8 * position] = value & 0xFFFFFFFF
    accumulator, position = 0, 0
    program = program or PROGRAMS[machine]
    while True:
        one = decoded(program[position])
        steps.append(position)
        position += 1
        if one.code == seccomp.RETURN:
            return one.value
        if one.code == seccomp.LOAD:
            accumulator = data[one.value]
        elif one.code == seccomp.AND:
            accumulator &= one.value
        elif one.code == seccomp.JUMP_ALWAYS:
            position += one.value
        else:
            true = {
                seccomp.JUMP_EQUAL: accumulator == one.value,
                seccomp.JUMP_GREATER_OR_EQUAL: accumulator >= one.value,
            }[one.code]
            position += one.if_true if true else one.if_false


def call(name: str, *arguments: int, machine: str = "x86_64") -> int:
    found = number(name, machine)
    assert found is not None
    return run(machine, found, arguments)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", [name for names in seccomp.REFUSED.values() for name in names])
def test_what_a_vmm_never_does_is_refused(name: str, machine: str) -> None:
    found = number(name, machine)
    if found is not None:
        assert run(machine, found) == RET_ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", seccomp.SUPERVISED)
def test_what_the_policy_decides_goes_to_the_supervisor(name: str, machine: str) -> None:
    assert call(name, machine=machine) == RET_USER_NOTIF


@pytest.mark.parametrize(
    ("name", "refused", "allowed"),
    [
        ("socket", (2, 2, 0), (2, 1, 0)),  # UDP
        ("socket", (10, 2, 17), (10, 1, 6)),
        ("socket", (2, 3, 1), (2, 1 | 0o2004000, 6)),  # raw
        ("socket", (1, 1, 0), (10, 1, 0)),  # UNIX
        ("socket", (16, 3, 0), (2, 1, 0)),  # netlink
        ("socket", (17, 3, 0), (2, 1, 0)),  # packet
        ("socket", (40, 1, 0), (2, 1, 0)),  # vsock
        ("socket", (2, 1, 262), (2, 1, 6)),  # MPTCP
        ("socket", (2, 5, 132), (2, 1, 6)),  # SCTP
        ("sendto", (3, 0, 0, 0x20000000), (3, 0, 0, 0x4000)),
        ("sendmsg", (3, 0, 0x20000000), (3, 0, 0x4000)),
        ("sendmmsg", (3, 0, 1, 0x20000000), (3, 0, 1, 0)),
        ("clone", (17,), (0x3D0F00,)),  # a process, a thread of glibc's
        ("kill", (1, 9), (PROCESS, 9)),
        ("tgkill", (1, 1, 9), (PROCESS, PROCESS + 1, 35)),
        ("ioctl", (0, 0x5412), (5, 0xAE80)),  # TIOCSTI, KVM_RUN
        ("ioctl", (0, 0x541C), (0, 0x5401)),  # TIOCLINUX, TCGETS
        ("ioctl", (0, 0x5410), (5, 0x8090AE81)),  # TIOCSPGRP, KVM_GET_REGS
        ("prlimit64", (0, 7, 1), (0, 7, 0)),
        ("prctl", (1, 0), (15, 0)),  # PR_SET_PDEATHSIG, PR_SET_NAME
        ("prctl", (4, 1), (3,)),  # PR_SET_DUMPABLE, PR_GET_DUMPABLE
        ("fcntl", (0, 8, 1), (0, 4, 0)),  # F_SETOWN, F_SETFL
        ("fcntl", (0, 1024, 0), (0, 1030, 0)),  # F_SETLEASE, F_DUPFD_CLOEXEC
        ("ioctl", (5, 0xC040AED4), (5, 0xAE41)),  # KVM_CREATE_GUEST_MEMFD, KVM_CREATE_VCPU
        ("setsockopt", (3, 1, 25), (3, 1, 9)),  # SO_BINDTODEVICE, SO_KEEPALIVE
        ("setsockopt", (3, 41, 57), (3, 6, 1)),  # IPV6_RTHDR, TCP_NODELAY
        ("setsockopt", (3, 6, 19), (3, 6, 1)),  # TCP_REPAIR, TCP_NODELAY
        ("close_range", (3, 9, 2), (3, 9, 4)),
        ("sched_setaffinity", (1, 8), (0, 8)),
    ],
)
@pytest.mark.parametrize("machine", MACHINES)
def test_arguments_decide_where_a_call_is_needed_in_one_form_alone(
    name: str, refused: tuple[int, ...], allowed: tuple[int, ...], machine: str
) -> None:
    assert call(name, *refused, machine=machine) & 0xFFFF0000 == RET_ERRNO
    assert call(name, *allowed, machine=machine) == RET_ALLOW


def test_a_terminals_modes_are_said_to_be_set_and_are_not() -> None:
    assert call("ioctl", 1, 0x5402) == RET_ERRNO | 0


def test_clone3_is_said_to_be_missing_so_that_clone_is_used() -> None:
    assert call("clone3") == RET_ERRNO | errno.ENOSYS


def test_calls_of_another_architecture_kill() -> None:
    assert run("x86_64", 1, architecture=0x40000003) == RET_KILL_PROCESS  # i386
    assert run("x86_64", 1 | 0x40000000) == RET_KILL_PROCESS
    assert run("x86_64", 1) == RET_ALLOW


@given(
    st.sampled_from(MACHINES),
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(0, 2**64 - 1)] * 6),
)
def test_every_call_comes_to_a_decision(machine: str, nr: int, arguments: tuple[int, ...]) -> None:
    assert run(machine, nr, arguments) & 0xFFFF0000 in (
        RET_ALLOW,
        RET_ERRNO,
        RET_KILL_PROCESS,
        RET_USER_NOTIF,
    )


def test_no_program_is_longer_than_bpf_allows_and_none_jumps_past_its_end() -> None:
    for program in PROGRAMS.values():
        assert len(program) <= 4096
        for position, one in enumerate(map(decoded, program), 1):
            if one.code != seccomp.RETURN:
                assert position + max(one.if_true, one.if_false) < len(program)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "position"), seccomp.MODE_ARGUMENTS.items())
def test_without_set_id_bits_no_call_can_give_them(name: str, position: int, machine: str) -> None:
    without = seccomp.assemble(ARCHITECTURES[machine], PROCESS, set_id_bits=False, sockets=True)
    found = number(name, machine)
    if found is None:
        return
    for mode in (0o4755, 0o2755, 0o6755):
        arguments = (*[0] * position, mode)
        assert run(machine, found, arguments, program=without) == RET_ERRNO | errno.EPERM
        assert run(machine, found, arguments) == RET_ALLOW
    assert run(machine, found, (*[0] * position, 0o1755), program=without) == RET_ALLOW


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("option", [2, 15])  # SO_REUSEADDR, SO_REUSEPORT
def test_who_has_the_port_next_is_not_the_vmms_to_say(machine: str, option: int) -> None:
    call = number("setsockopt", machine)
    assert call is not None
    assert run(machine, call, (3, 1, option)) == RET_ERRNO  # it is told that it was done


@pytest.mark.parametrize("machine", MACHINES)
def test_without_sockets_none_is_made_and_nobody_is_asked(machine: str) -> None:
    without = seccomp.assemble(ARCHITECTURES[machine], PROCESS, set_id_bits=True, sockets=False)
    for name in ("socket", "bind", "connect", "listen"):
        call = number(name, machine)
        assert call is not None
        assert run(machine, call, (2, 1, 0), program=without) == RET_ERRNO | errno.EACCES
        assert run(machine, call, (2, 1, 0)) in (RET_ALLOW, RET_USER_NOTIF)


NEW_USER_NAMESPACE, PDEATHSIG, DUMPABLE, NETLINK = 0x10000000, 1, 4, 16


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("socket", (2, 1, 0), RET_USER_NOTIF),
        ("socket", (1, 1, 0), RET_USER_NOTIF),
        ("socket", (2, 2, 0), RET_USER_NOTIF),
        ("socket", (NETLINK, 3, 4), RET_USER_NOTIF),  # NETLINK_SOCK_DIAG
        ("socket", (NETLINK, 3, 0), RET_ALLOW),
        ("bind", (), RET_USER_NOTIF),
        ("connect", (), RET_USER_NOTIF),
        ("listen", (), RET_USER_NOTIF),
        ("accept4", (), RET_USER_NOTIF),
        ("getsockname", (), RET_USER_NOTIF),
        ("accept", (), RET_ERRNO | errno.EPERM),
        ("unshare", (NEW_USER_NAMESPACE,), RET_ERRNO),
        ("unshare", (0x2C020000,), RET_ALLOW),  # the namespaces that passt goes into
        ("setns", (3, NEW_USER_NAMESPACE), RET_ERRNO),
        ("setns", (3, 0), RET_ERRNO | errno.EPERM),
        ("prctl", (PDEATHSIG, 0), RET_ERRNO),  # which is ignored
        ("prctl", (PDEATHSIG, 9), RET_ALLOW),
        ("clone", (17,), RET_ERRNO | errno.EPERM),
        ("clone", (NEW_USER_NAMESPACE | 17,), RET_ALLOW),
        ("fcntl", (3, 8), RET_ERRNO | errno.EPERM),  # F_SETOWN
        ("fcntl", (3, 4), RET_ALLOW),  # F_SETFL
        ("ioctl", (3, 0x8902), RET_ERRNO | errno.EPERM),  # SIOCSPGRP
        ("ioctl", (3, 0x8933), RET_ALLOW),  # SIOCGIFINDEX
        ("prctl", (DUMPABLE, 0), RET_ERRNO),
        ("prctl", (15,), RET_ALLOW),
        ("sendto", (3, 0, 0, seccomp.MSG_FASTOPEN), RET_ERRNO | errno.EACCES),
        ("sendto", (3, 0, 0, 0), RET_ALLOW),
        ("setsockopt", (3, 1, 25), RET_ERRNO | errno.EPERM),  # SO_BINDTODEVICE
        ("setsockopt", (3, 1, 8), RET_ALLOW),  # SO_RCVBUF
        ("setsockopt", (3, 1, 2), RET_ERRNO),  # SO_REUSEADDR, which is ignored
        ("setsockopt", (3, 1, 21), RET_ERRNO | errno.EPERM),  # SO_SNDTIMEO
        ("setsockopt", (3, 6, 18), RET_ERRNO | errno.EPERM),  # TCP_USER_TIMEOUT
        ("setsockopt", (3, 6, 1), RET_ALLOW),  # TCP_NODELAY
        ("setsockopt", (3, 0, 4), RET_ERRNO | errno.EPERM),  # IP_OPTIONS
        ("ptrace", (), RET_ERRNO | errno.EPERM),
        ("pidfd_getfd", (), RET_ERRNO | errno.EPERM),
        ("io_uring_setup", (), RET_ERRNO | errno.EPERM),
        ("tgkill", (PROCESS + 1,), RET_ERRNO | errno.EPERM),
        ("execve", (), RET_ALLOW),
        ("mount", (), RET_ALLOW),
        ("pivot_root", (), RET_ALLOW),
        ("seccomp", (), RET_ALLOW),
    ],
)
def test_passt_confines_itself_and_gets_its_sockets_from_the_supervisor(
    machine: str, name: str, arguments: tuple[int, ...], answer: int
) -> None:
    architecture = ARCHITECTURES[machine]
    program = seccomp.assemble_for_passt(architecture, PROCESS, is_dumpable=True)
    call = number(name, machine)
    assert call is not None
    assert run(machine, call, arguments, program=program) == answer
    by_root = seccomp.assemble_for_passt(architecture, PROCESS, is_dumpable=False)
    is_dumpable = (name, arguments[:1]) == ("prctl", (DUMPABLE,))
    assert run(machine, call, arguments, program=by_root) == (RET_ALLOW if is_dumpable else answer)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_waiting_thread_that_does_anything_else_ends_the_process(machine: str) -> None:
    waiting = seccomp.assemble_waiting(ARCHITECTURES[machine])
    for name in ARCHITECTURES[machine].syscalls:
        found = number(name, machine)
        if found is not None:
            wanted = RET_ALLOW if name in seccomp.WAITING else RET_KILL_PROCESS
            assert run(machine, found, program=waiting) == wanted


def test_a_rule_for_a_call_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError, match="ptarce"):
        seccomp._Rules(ARCHITECTURES["x86_64"]).rule("ptarce")


# KVM_RUN, KVM_IRQ_LINE; data to a client, as libkrun sends it.
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ioctl", (9, 0xAE80)),
        ("ioctl", (9, 0x4008AE61)),
        ("sendto", (9, 0, 100, 0x4000)),
        ("sendmsg", (9, 0, 0)),
        ("fcntl", (9, 3, 0)),
    ],
)
@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_busy_vmm_calls_is_decided_in_a_few_steps(
    machine: str, name: str, arguments: tuple[int, ...]
) -> None:
    found = number(name, machine)
    assert found is not None
    steps: list[int] = []
    assert run(machine, found, arguments, steps=steps) == RET_ALLOW
    assert len(steps) < 25


@pytest.mark.parametrize("machine", MACHINES)
def test_no_decision_depends_on_the_order_of_the_rules(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seccomp, "FREQUENT", ())
    architecture = ARCHITECTURES[machine]
    as_written = seccomp.assemble(architecture, PROCESS, set_id_bits=True, sockets=True)
    assert as_written != PROGRAMS[machine]
    program = [decoded(one) for one in as_written]
    values = sorted({one.value for one in program if one.code == seccomp.JUMP_EQUAL} | {0})
    for call_number in range(600):
        steps: list[int] = []
        run(machine, call_number, program=as_written, steps=steps)
        looks = any(program[step].value >= seccomp.FIRST_ARGUMENT for step in steps
                    if program[step].code == seccomp.LOAD)  # fmt: skip
        for value in values if looks else [0]:
            arguments = (value,) * 6
            expected = run(machine, call_number, arguments, program=as_written)
            assert run(machine, call_number, arguments) == expected
