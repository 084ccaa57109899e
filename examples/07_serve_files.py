# SPDX-License-Identifier: MIT OR Apache-2.0
"""Receive files into registered memory, many slabs ahead of the sender; 06_put_file.py is the other side.

    python examples/07_serve_files.py DIRECTORY [PORT [HOST]]

``exs serve`` is the tool for real use.
"""

import contextlib
import hashlib
import os
import struct
import sys
from functools import partial
from typing import BinaryIO

import trio

import exs

HEADER = struct.Struct(">HQ64s")  # length of the name, bytes of the file, blake2b of them
SLAB = 1 << 20


async def exactly(stream: exs.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            raise EOFError("the sender went away")
        data += more
    return data


async def receive(directory: str, stream: exs.SocketStream) -> None:
    length, size, digest = HEADER.unpack(await exactly(stream, HEADER.size))
    name = (await exactly(stream, length)).decode()
    if name != os.path.basename(name) or name in ("", ".", ".."):
        raise ValueError(f"not a file name: {name!r}")
    target = os.path.join(directory, name)
    try:
        with open(target + ".part", "wb") as file:  # noqa: ASYNC230  only the contents take long
            found = await contents(stream, file, size)
        if found == digest:
            os.replace(target + ".part", target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target + ".part")
    await stream.send_all(b"received" if found == digest else b"the checksum does not match")


async def contents(stream: exs.SocketStream, file: BinaryIO, size: int) -> bytes:
    hasher = hashlib.blake2b()

    def store(chunks: list[exs.RegionView]) -> None:
        for chunk in chunks:
            file.write(chunk.view)
            hasher.update(chunk.view)

    async with exs.BufferPool(SLAB, 8) as pool, stream.socket.receive_queue(pool, depth=8) as queue:
        while size:
            # While a thread writes these, the device fills the other slabs.
            chunks = await queue.get_many(4)
            if not chunks:
                raise EOFError("the sender went away")
            await trio.to_thread.run_sync(store, chunks)
            size -= sum(len(chunk) for chunk in chunks)
    return hasher.digest()


async def serve(directory: str, port: int, host: str = "127.0.0.1") -> None:
    async def handle(stream: exs.SocketStream) -> None:
        async with stream:
            try:
                await receive(directory, stream)
            except (EOFError, ValueError, OSError, trio.BrokenResourceError) as error:
                print("refused:", error, file=sys.stderr)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(exs.serve, handle, port, host=host))
        print("listening on port", listeners[0].address[1], flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case [directory]:
            trio.run(serve, directory, 7475)
        case [directory, port, *host]:
            trio.run(serve, directory, int(port), *host)
        case _:
            sys.exit(__doc__)
