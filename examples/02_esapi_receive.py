# SPDX-License-Identifier: MIT OR Apache-2.0
"""Accept one connection and print what comes: the other side of 01_esapi_send.py.

    python examples/02_esapi_receive.py [PORT [HOST]]

It waits for its queue's descriptor with ``select``, as a program with an event loop of its own would.
"""

import select
import socket
import sys

from exs.esapi import (
    EXS_ACCESS_WRITE,
    exs_accept,
    exs_bind,
    exs_close,
    exs_getsockname,
    exs_init,
    exs_listen,
    exs_mderegister,
    exs_mregister,
    exs_qcreate,
    exs_qdelete,
    exs_qdequeue,
    exs_recv,
    exs_socket,
)


def main(port: int = 0, host: str = "127.0.0.1") -> None:
    exs_init()
    listener = exs_socket(socket.AF_INET, socket.SOCK_STREAM)
    exs_bind(listener, (host, port))
    exs_listen(listener)
    print(f"listening on port {exs_getsockname(listener)[1]}", flush=True)
    fd = exs_accept(listener, None, None)  # no queue: wait until there is one

    buffer = bytearray(65536)
    mh = exs_mregister(buffer, EXS_ACCESS_WRITE)
    qh = exs_qcreate(10)
    length = -1
    while length:
        exs_recv(fd, buffer, None, 0, mh, None, qh)
        while not (events := exs_qdequeue(qh, 1, timeout=0)):  # nothing: now the descriptor may be slept on
            select.select([qh], [], [])
        events[0].raise_for_errno()
        length = events[0].exs_evt_union.exs_evt_length
        print(f"received: length {length}: {buffer[:length].decode(errors='replace')}" if length else "end of data")

    exs_close(fd)
    exs_close(listener)
    exs_qdelete(qh)
    exs_mderegister(mh)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:3])
