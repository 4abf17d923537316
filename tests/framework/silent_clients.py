"""Clients that connect and say nothing, until their standard input ends.

    python -m tests.framework.silent_clients PORT COUNT

A process of its own: no other has the descriptors to spare.
"""

from __future__ import annotations

import resource
import socket
import sys


def main() -> None:
    port, count = (int(word) for word in sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
    clients = []
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", port))
        clients.append(client)
    print(len(clients), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
