# SPDX-License-Identifier: MIT OR Apache-2.0
"""Send a file from its mapping, without a copy; 07_serve_files.py is the other side.

    python examples/06_put_file.py FILE [HOST] [PORT]

``exs put`` is the tool for real use: trees, several files in flight, paths checked, changed files noticed.
"""

import hashlib
import mmap
import os
import struct
import sys

import trio

import exs

HEADER = struct.Struct(">HQ64s")  # length of the name, bytes of the file, blake2b of them
PIECE = 1 << 20


async def put(path: str, host: str, port: int) -> None:
    name = os.path.basename(path).encode()
    with open(path, "rb") as file:  # noqa: ASYNC230  one short program, one file
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.file_digest(file, "blake2b").digest()
        async with await exs.open_stream(host, port) as stream:
            await stream.send_all(HEADER.pack(len(name), size, digest) + name)
            if size:
                # Not ACCESS_READ: older kernels pin no shared mapping for a card that may only be read.
                with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
                    # Registered once; the device then takes its bytes straight from the page cache.
                    async with exs.MemoryRegion(mapping, exs.Access.READ) as region:
                        async with stream.socket.send_queue(depth=8) as queue:
                            await queue.put_many(region.split(PIECE))
            answer = await stream.receive_some()
            print(f"{name.decode()}: {answer.decode()}, {size} bytes by {stream.socket.path}")
            print("copied by exs:", stream.socket.statistics().bytes_copied, "bytes")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    path, host, port = sys.argv[1:] + ["127.0.0.1", "7475"][len(sys.argv) - 2 :]
    trio.run(put, path, host, int(port))
