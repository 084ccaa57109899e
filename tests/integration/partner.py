# SPDX-License-Identifier: MIT OR Apache-2.0
"""The other process of a two-process test: ``python partner.py ROLE PATH PORT``; says a line when it is ready."""

from __future__ import annotations

import hashlib
import sys

import trio
from ground import HOST

import exs

MIB = 1 << 20


def say(word: str) -> None:
    print(word, flush=True)


async def echo(stream: exs.SocketStream) -> None:
    """Send back whatever comes."""
    say("ready")
    async for data in stream:
        await stream.send_all(data)


async def mirror(channel: exs.MessageChannel) -> None:
    """Send back whatever message comes."""
    say("ready")
    async for message in channel:
        await channel.send(message)


async def digest(stream: exs.SocketStream) -> None:
    """Receive all into posted memory, answer with its hash."""
    say("ready")
    got = hashlib.blake2b()
    with exs.BufferPool(MIB, 4) as pool:
        async with stream.socket.receive_queue(pool, depth=4) as rx:
            async for chunk in rx:
                got.update(chunk.view)
    await stream.send_all(got.digest())
    await stream.send_eof()


async def flood(stream: exs.SocketStream) -> None:
    """Send for ever."""
    with exs.MemoryRegion(bytearray(b"f" * 4 * MIB)) as region:
        say("ready")
        async with stream.socket.send_queue(depth=4) as tx:
            while True:
                await tx.put(region)


async def once(stream: exs.SocketStream) -> None:
    """Send one large buffer, as slowly as the receiver likes, then another one of other bytes."""
    region = exs.MemoryRegion(bytearray(b"1" * 8 * MIB))
    say("ready")
    await stream.send_all(region)
    await trio.sleep_forever()


async def greedy(stream: exs.SocketStream) -> None:
    """Receive for ever."""
    with exs.MemoryRegion(bytearray(4 * MIB)) as region:
        say("ready")
        while await stream.receive_into(region):
            pass


async def deaf(stream: exs.SocketStream) -> None:
    """Do nothing."""
    say("ready")
    await trio.sleep_forever()


async def posted(stream: exs.SocketStream) -> None:
    """Post receives that nobody will fill."""
    with exs.BufferPool(MIB, 8) as pool:
        async with stream.socket.receive_queue(pool, depth=8) as rx:
            say("ready")
            async for _ in rx:
                pass


async def closing(stream: exs.SocketStream) -> None:
    """Close while much is under way."""
    region = exs.MemoryRegion(bytearray(b"c" * 16 * MIB))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, region)
        await trio.sleep(0.01)
        nursery.start_soon(stream.aclose)
        say("ready")


async def dialling(port: int, options: exs.Options) -> None:
    """Connect again and again."""
    say("ready")
    while True:
        try:
            stream = await exs.open_stream(HOST, port, options=options)
        except OSError:
            continue
        await trio.aclose_forcefully(stream)


async def main(role: str, path: str, port: int) -> None:
    options = exs.Options(path=path)  # type: ignore[arg-type]
    if role == "dialling":
        await dialling(port, options)
    elif role == "mirror":
        async with await exs.open_message_channel(HOST, port, options=options) as channel:
            await mirror(channel)
    else:
        async with await exs.open_stream(HOST, port, options=options) as stream:
            await globals()[role](stream)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
