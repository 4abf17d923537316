"""A claimed port is nobody else's, on no address, whatever options they set."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from krunclient.errors import BusyError
from krunclient.model import Endpoint
from krunclient.supervisor import claims
from tests.framework.stages import LIBC
from tests.framework.users import NOBODY

PORT = 30780
LOOPBACK = Endpoint(packed=bytes((127, 0, 0, 1)), port=PORT)

ATTEMPTS = """
import itertools, socket, sys
addresses = ["127.0.0.1", "0.0.0.0", "127.0.0.2", "::1", "::", "::ffff:127.0.0.1"]
for address, options in itertools.product(addresses, [(), (2,), (15,), (2, 15)]):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as attempt:
        if family == socket.AF_INET6:
            attempt.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        for option in options:
            attempt.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            attempt.bind((address, int(sys.argv[1])))
            attempt.listen()
            print(address, options)
        except OSError:
            pass
"""


def others_can_bind() -> str:
    """What another program gets to listen on: one of this user's, and one of another's where we can
    be that.
    """
    command = ["/usr/bin/python3", "-c", ATTEMPTS, str(PORT)]
    return "".join(
        subprocess.run(command, user=user, check=True, capture_output=True, text=True).stdout
        for user in ([None, NOBODY] if os.geteuid() == 0 else [None])
    )


def test_nobody_else_gets_the_port_before_or_after_the_guest_listens() -> None:
    assert "127.0.0.1" in others_can_bind()
    claim = claims.claim_port(LIBC, LOOPBACK)
    try:
        assert others_can_bind() == ""
        with socket.socket() as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            claim.share_while(lambda: own.bind(("127.0.0.1", PORT)))
            assert others_can_bind() == ""
            claim.share_while(own.listen)
            assert others_can_bind() == ""
            with socket.create_connection(("127.0.0.1", PORT), timeout=5) as client:
                own.accept()[0].close()  # the side that closes first has it in TIME_WAIT
                client.recv(1)
        assert others_can_bind() == ""
        with pytest.raises(BusyError):
            claims.claim_port(LIBC, LOOPBACK)
    finally:
        claim.release()
    claim = claims.claim_port(LIBC, LOOPBACK)
    assert others_can_bind() == ""
    claim.release()
