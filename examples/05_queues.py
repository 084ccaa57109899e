# SPDX-License-Identifier: MIT OR Apache-2.0
"""Many transfers in flight from one task: a million small messages, and how many a second.

    python examples/05_queues.py [MESSAGES [HOST]]

A queue takes a batch in one call and one checkpoint; with one `await` a message the event loop would be the limit.
"""

from __future__ import annotations

import sys
import time

import trio

import exs

NBYTES = 64
BATCH = 1024


async def send(sock: exs.Socket, messages: int) -> None:
    with exs.MemoryRegion.allocate(NBYTES * BATCH) as region:
        async with sock.send_queue(depth=256) as tx:
            while tx.accepted < messages:
                batch = region.split(NBYTES)[: messages - tx.accepted]
                await tx.put_many(batch)
        # Here every buffer is ours again, and the region may go.


async def receive(sock: exs.Socket, messages: int) -> None:
    got = 0
    with exs.BufferPool(NBYTES, 512) as pool:
        async with sock.receive_queue(pool, depth=512) as rx:
            while got < messages:
                got += len(await rx.get_many(256))  # views, valid until the next call


async def main(messages: int = 1_000_000, host: str = "127.0.0.1") -> None:
    (listener,) = await exs.open_message_listeners(0, host=host)
    async with listener, trio.open_nursery() as nursery:

        async def serve() -> None:
            async with await listener.accept() as channel:
                await receive(channel.socket, messages)

        nursery.start_soon(serve)
        async with await exs.open_message_channel(host, listener.address[1]) as channel:
            start = time.perf_counter()
            await send(channel.socket, messages)
            seconds = time.perf_counter() - start
    print(f"{messages} messages of {NBYTES} bytes in {seconds:.2f} s: {messages / seconds:,.0f} a second, both ends")


if __name__ == "__main__":
    trio.run(main, *map(int, sys.argv[1:2]), *sys.argv[2:3])
