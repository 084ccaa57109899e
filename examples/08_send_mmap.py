# SPDX-License-Identifier: MIT OR Apache-2.0
"""A file goes from one process into the other's memory by one `await sock.send`: mapped, never read, never copied.

python examples/08_send_mmap.py receive FILE [PORT [HOST]]    waits for a file; says its port
python examples/08_send_mmap.py send FILE HOST PORT           sends it
"""

from __future__ import annotations

import mmap
import struct
import sys

import trio

import exs

LENGTH = struct.Struct("<Q")


async def receive(name: str, port: int = 0, host: str = "127.0.0.1") -> None:
    async with exs.socket() as listener:
        listener.bind((host, port))
        listener.listen()
        print("listening on port", listener.getsockname()[1], flush=True)
        sock, _ = await exs.accept(listener)
    async with sock:
        head = bytearray(LENGTH.size)
        await exs.recv_into(sock, head, waitall=True)
        (length,) = LENGTH.unpack(head)
        async with exs.MemoryRegion.allocate(max(length, 1)) as region:
            if length:
                await exs.recv_into(sock, region, waitall=True)
            await exs.send(sock, b"k")  # it is all here
            with open(name, "wb") as file:  # noqa: ASYNC230  one short program, one file
                file.write(region.view[:length])
        print(length, "bytes; copied by exs:", sock.statistics().bytes_copied)


async def send(name: str, host: str, port: int) -> None:
    async with exs.socket() as sock:
        await exs.connect(sock, (host, port))
        with open(name, "rb") as file:  # noqa: ASYNC230
            length = file.seek(0, 2)
            await exs.send(sock, LENGTH.pack(length))
            if length:
                # Not ACCESS_READ: older kernels pin no shared mapping for a card that may only be read.
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
                    with exs.MemoryRegion(mapped, exs.Access.READ) as region:
                        await exs.send(sock, region)
            await exs.recv(sock, 1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receive", name, *rest]:
            trio.run(receive, name, *map(int, rest[:1]), *rest[1:2])
        case ["send", name, host, port]:
            trio.run(send, name, host, int(port))
        case _:
            sys.exit(__doc__)
