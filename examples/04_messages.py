# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whole messages straight into registered memory: a server that adds up arrays of numbers.

python examples/04_messages.py serve [PORT [HOST]]    the server; says its port
python examples/04_messages.py HOST PORT              the client; sends three arrays, says their sums
"""

from __future__ import annotations

import array
import sys

import trio

import exs

COUNT = 10_000  # numbers in an array; both sides must agree on the largest message


async def add_up(channel: exs.MessageChannel) -> None:
    with exs.MemoryRegion.allocate(COUNT * 8) as room:
        try:
            while True:
                nbytes = await channel.receive_into(room)  # the peer's device puts it there: nothing is copied
                numbers = room.view[:nbytes].cast("q")
                await channel.send(sum(numbers).to_bytes(8, "little"))
        except trio.EndOfChannel:
            pass


async def serve(port: int = 0, host: str = "127.0.0.1") -> None:
    listeners = await exs.open_message_listeners(port, host=host)
    print("listening on port", listeners[0].address[1], flush=True)
    await trio.serve_listeners(add_up, listeners)


async def ask(host: str, port: int) -> None:
    async with await exs.open_message_channel(host, port) as channel:
        for step in (1, 2, 3):
            await channel.send(array.array("q", range(0, COUNT * step, step)))
            print(int.from_bytes(await channel.receive(), "little"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        trio.run(serve, *map(int, sys.argv[2:3]), *sys.argv[3:4])
    elif len(sys.argv) == 3:
        trio.run(ask, sys.argv[1], int(sys.argv[2]))
    else:
        sys.exit(__doc__)
