# SPDX-License-Identifier: MIT OR Apache-2.0
"""Random cancels over every operation at once: no byte lost or out of order, and no buffer written after its return.

A model: each direction of each pair is a byte string (or a list of messages) of which a prefix has been sent.  Every
buffer is filled with poison the moment its call is over, and looked at again before it is used and at the end.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field, replace

import pytest
import trio

import exs
from exs.testing import PoisonedBuffer, message_pair, no_leaks, stream_pair

BUFFER_BYTES = 40_000
SEEDS = [int(os.environ["STORM_SEED"])] if "STORM_SEED" in os.environ else [1, 2, 3]
STEPS = int(os.environ.get("STORM_STEPS", "120"))


def pattern(start: int, size: int) -> bytes:
    """The byte at position p of a stream: known from p alone."""
    first = start // 8
    words = b"".join(n.to_bytes(8, "little") for n in range(first, first + size // 8 + 2))
    return words[start % 8 : start % 8 + size]


@dataclass
class Way:
    """One direction of a stream."""

    sent: int = 0  # bytes whose send returned
    given: int = 0  # bytes that may have gone out
    received: int = 0
    broken: bool = False
    receive: trio.CancelScope | None = None  # the one under way


@dataclass
class Storm:
    """What a seed decides."""

    rng: random.Random
    buffers: list[PoisonedBuffer] = field(default_factory=list)
    cancels: int = 0

    def buffer(self) -> PoisonedBuffer:
        """A free one, found as it was left."""
        if self.buffers and self.rng.random() < 0.8:
            buffer = self.buffers.pop(self.rng.randrange(len(self.buffers)))
            buffer.check()
            return buffer
        return PoisonedBuffer(BUFFER_BYTES, register=self.rng.random() < 0.7)

    def give(self, buffer: PoisonedBuffer) -> None:
        """Its call is over."""
        buffer.poison()
        self.buffers.append(buffer)

    def scope(self) -> trio.CancelScope:
        """A deadline, most of the time a short one."""
        roll = self.rng.random()
        if roll < 0.3:
            return trio.CancelScope()
        if roll < 0.4:
            scope = trio.CancelScope()
            scope.cancel()
            return scope
        return trio.move_on_after(self.rng.random() ** 3 * 0.005)

    def size(self) -> int:
        """Few large ones."""
        return int(self.rng.random() ** 3 * (BUFFER_BYTES - 1)) + 1

    def finish(self) -> None:
        """Nothing came late."""
        for buffer in self.buffers:
            buffer.check()
            buffer.close()


async def send_stream(storm: Storm, stream: exs.SocketStream, way: Way, done: trio.Event) -> None:
    rng = storm.rng
    for _ in range(STEPS):
        if way.broken:
            break
        buffer, size = storm.buffer(), storm.size()
        buffer.memory[:size] = pattern(way.sent, size)
        part = buffer.region[:size] if buffer.region else memoryview(buffer.memory)[:size]
        way.given = max(way.given, way.sent + size)
        before = way.sent
        with storm.scope() as scope:
            how = rng.randrange(3)
            if how == 0:
                await stream.send_all(part)
                way.sent += size
            elif how == 1:
                await stream.socket.sendmsg([part[: size // 2], part[size // 2 :]])
                way.sent += size
            else:
                await stream.wait_send_all_might_not_block()
        storm.cancels += scope.cancelled_caught
        storm.give(buffer)
        del part
        if way.sent == before:
            with trio.CancelScope(shield=True):
                try:  # either it had no effect, or the direction is over
                    await stream.send_all(b"")
                    probe = pattern(way.sent, 1)
                    await stream.send_all(probe)
                    way.sent += 1
                    way.given = max(way.sent, way.given)
                except trio.BrokenResourceError:
                    way.broken = True
        if not rng.randrange(4):
            await trio.sleep(rng.random() * 0.002)
    if not way.broken:
        with trio.move_on_after(0.001):
            await stream.send_eof()
        await stream.send_eof()
    elif way.receive is not None:  # no end of the stream will come
        way.receive.deadline = min(way.receive.deadline, trio.current_time() + 0.05)
    done.set()


async def receive_stream(storm: Storm, stream: exs.SocketStream, way: Way, done: trio.Event) -> None:
    rng = storm.rng
    ended = False
    while not ended:
        buffer, size = storm.buffer(), storm.size()
        target = buffer.region[:size] if buffer.region else memoryview(buffer.memory)[:size]
        got: bytes | None = None
        how = rng.randrange(4)
        with storm.scope() as scope:
            way.receive = scope
            if way.broken and done.is_set():
                scope.deadline = min(scope.deadline, trio.current_time() + 0.05)
            if how == 0:
                got = await stream.receive_some(size)
            elif how == 1:
                count = await stream.socket.recv_into(target, waitall=True)
                got = bytes(buffer.memory[:count])
            else:
                count = await stream.receive_into(target)
                got = bytes(buffer.memory[:count])
        storm.cancels += scope.cancelled_caught
        storm.give(buffer)
        del target
        if got is not None:
            assert got == pattern(way.received, len(got)), f"wrong bytes at {way.received}"
            way.received += len(got)
            assert way.received <= way.given
            ended = not got
        ended = ended or (way.broken and done.is_set() and got is None)
    if not way.broken:
        assert way.received == way.sent


async def stream_storm(storm: Storm, options: exs.Options) -> None:
    """Several pairs one after the other: a send that is cut ends its direction."""
    for ring_bytes in (65536, 1 << 20, 65536, 1 << 20):
        await one_stream_storm(storm, replace(options, ring_bytes=ring_bytes))


async def one_stream_storm(storm: Storm, options: exs.Options) -> None:
    a, b = await stream_pair(options)
    ways = Way(), Way()
    events = trio.Event(), trio.Event()
    async with a, b, trio.open_nursery() as nursery:
        for sender, receiver, way, done in ((a, b, ways[0], events[0]), (b, a, ways[1], events[1])):
            nursery.start_soon(send_stream, storm, sender, way, done)
            nursery.start_soon(receive_stream, storm, receiver, way, done)


async def message_storm(storm: Storm, options: exs.Options) -> None:
    """Several senders and receivers at once on each direction: who gets what is open, but nothing is lost or twice."""
    a, b = await message_pair(options)
    rng = storm.rng
    sent: list[bytes] = []
    received: list[bytes] = []

    async def send(who: int) -> None:
        for number in range(STEPS // 4):
            buffer = storm.buffer()
            message = b"%d/%d/" % (who, number) + bytes(rng.randrange(0, 500))
            buffer.memory[: len(message)] = message
            part = buffer.region[: len(message)] if buffer.region else memoryview(buffer.memory)[: len(message)]
            with storm.scope() as scope:
                await a.socket.send(part)
                sent.append(message)
            storm.cancels += scope.cancelled_caught
            storm.give(buffer)
            del part

    async def receive() -> None:
        while True:
            buffer = storm.buffer()
            try:
                with storm.scope() as scope:
                    count = await b.socket.recv_into(buffer.buffer)
                    if not count:
                        storm.give(buffer)
                        return
                    received.append(bytes(buffer.memory[:count]))
            except trio.ClosedResourceError:
                storm.give(buffer)
                return
            storm.cancels += scope.cancelled_caught
            storm.give(buffer)

    async with a, b, trio.open_nursery() as receivers:
        for _ in range(3):
            receivers.start_soon(receive)
        async with trio.open_nursery() as senders:
            for who in range(3):
                senders.start_soon(send, who)
        await a.aclose()
    assert sorted(received) == sorted(sent)


async def connection_storm(storm: Storm, options: exs.Options) -> None:
    """Connects, accepts and closes that are cancelled."""
    rng = storm.rng
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=options)

    async def accept() -> None:
        while True:
            with storm.scope() as scope:
                stream = await listener.accept()
                scope.shield = True
                scope.deadline = trio.current_time() + 0.05
                with trio.move_on_after(rng.random() * 0.01):
                    await stream.aclose()
                stream.socket.close()
            storm.cancels += scope.cancelled_caught

    async with listener, trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(accept)
        for _ in range(STEPS // 4):
            stream = None
            try:
                with storm.scope() as scope:
                    stream = await exs.open_stream("127.0.0.1", listener.address[1], options=options)
                    await stream.send_all(b"x" * rng.randrange(100))
                storm.cancels += scope.cancelled_caught
            except (trio.BrokenResourceError, OSError):
                pass
            if stream is not None:
                with trio.move_on_after(rng.random() * 0.01):
                    await stream.aclose()
                stream.socket.close()
        nursery.cancel_scope.cancel()


STORMS = {"streams": stream_storm, "messages": message_storm, "connections": connection_storm}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", STORMS)
@pytest.mark.parametrize("mode", ["inline", "thread"])
@pytest.mark.parametrize("path", ["shm-vm", "shm-ring", "tcp"])
def test_storm(path: str, mode: str, name: str, seed: int) -> None:
    options = exs.Options(path=path, progress=mode, ring_bytes=65536, close_timeout=1.0)  # type: ignore[arg-type]
    storm = Storm(random.Random(f"{seed}{name}{path}{mode}"))

    async def warm() -> None:
        for stream in await stream_pair(options):
            await trio.aclose_forcefully(stream)

    async def main() -> None:
        with trio.fail_after(25):
            await STORMS[name](storm, options)

    trio.run(warm)
    with no_leaks():
        trio.run(main)
        storm.finish()
        storm.buffers.clear()
    assert storm.cancels > 5
