# SPDX-License-Identifier: MIT OR Apache-2.0
"""Register memory, create a queue, send, dequeue, look at the result: ES-API in one screen, without trio.

    python examples/02_esapi_receive.py [PORT]          # in one window
    python examples/01_esapi_send.py HOST PORT WORDS    # in another

The same program in C is examples/c/send.c.
"""

import socket
import sys

from exs.esapi import (
    EXS_ACCESS_READ,
    exs_close,
    exs_connect,
    exs_init,
    exs_mderegister,
    exs_mregister,
    exs_qcreate,
    exs_qdelete,
    exs_qdequeue,
    exs_send,
    exs_socket,
)


def main(host: str, port: int, words: str) -> None:
    exs_init()
    fd = exs_socket(socket.AF_INET, socket.SOCK_STREAM)
    exs_connect(fd, (host, port), None, None)  # no queue: wait until it is done

    buffer = bytearray(words.encode())
    mh = exs_mregister(buffer, EXS_ACCESS_READ)
    qh = exs_qcreate(10)

    exs_send(fd, buffer, len(buffer), 0, mh, "my cookie", qh)  # returns at once; the buffer is the library's now
    (event,) = exs_qdequeue(qh, 1)  # and ours again
    print(f"sent: length {event.exs_evt_union.exs_evt_length}, errno {event.exs_evt_errno}")

    exs_close(fd)
    exs_qdelete(qh)
    exs_mderegister(mh)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
