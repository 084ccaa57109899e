# SPDX-License-Identifier: MIT OR Apache-2.0
"""Contracts that can be called: what a channel of messages promises, and that nothing is left behind.

Owns no resources but those of the pair under test.  A check raises ``AssertionError`` and says what was broken.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio
import trio.testing

from exs.memory import MemoryRegion

if TYPE_CHECKING:
    from exs.messages import MessageChannel

__all__ = ["Leaks", "PoisonedBuffer", "check_message_channel", "no_leaks"]

ChannelMaker = Callable[[], Awaitable[tuple["MessageChannel", "MessageChannel"]]]


@dataclass(frozen=True, slots=True)
class Leaks:
    """What a process holds of the system."""

    descriptors: frozenset[str]
    mappings: int
    threads: frozenset[int]

    @classmethod
    def now(cls) -> Leaks:
        """Look."""
        gc.collect()
        with open("/proc/self/maps") as maps:
            shared = sum("memfd:" in line or "/dev/shm" in line for line in maps)  # noqa: S108  a name to look for
        return cls(_descriptors(), shared, frozenset(int(t) for t in os.listdir("/proc/self/task")))

    @classmethod
    def settled(cls, before: Leaks, *, threads: bool = False, patience: float = 3.0) -> Leaks:
        """Look until there is no more than before, at most ``patience`` seconds.

        With ``progress="thread"`` a connection that was closed in order takes its leave of the peer in the background.
        With ``threads``, wait for those too: a joined thread takes a moment to leave the process.
        """
        deadline = time.monotonic() + patience
        while True:
            after = cls.now()
            more = len(after.descriptors) > len(before.descriptors) or after.mappings > before.mappings
            more = more or (threads and bool(after.threads - before.threads))
            if not more or time.monotonic() > deadline:
                return after
            time.sleep(0.01)


def _descriptors() -> frozenset[str]:
    found: set[str] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:  # the one that listed the folder
            continue
    return frozenset(found)


@contextmanager
def no_leaks(*, descriptors: int = 0, mappings: int = 0, threads: int = 0) -> Generator[None, None, None]:
    """Check that a block leaves no descriptor, shared mapping or thread behind.

    Put it around ``trio.run``: what belongs to the run goes with it.

    Args:
        descriptors: How many more there may be.
        mappings: How many more mappings of memory files there may be.
        threads: How many more threads there may be.

    Raises:
        AssertionError: There are more; says which.
    """
    before = Leaks.now()
    yield
    after = Leaks.settled(before, threads=True)
    fresh = after.descriptors - before.descriptors
    gone = before.descriptors - after.descriptors
    assert len(fresh) - len(gone) <= descriptors, f"descriptors left: {sorted(fresh)}"
    assert after.mappings - before.mappings <= mappings, f"{after.mappings - before.mappings} mappings left"
    left = after.threads - before.threads
    names = [t.name for t in threading.enumerate() if t.native_id in left]
    assert len(left) <= threads, f"threads left: {sorted(left)} {names}"


class PoisonedBuffer:
    """Memory that shows when it is written to after it was given back.

    Args:
        nbytes: Bytes.
        poison: What :meth:`poison` fills it with.
        register: Whether it is a registered region.
    """

    def __init__(self, nbytes: int, poison: int = 0xA5, *, register: bool = True) -> None:
        self.memory: bytearray = bytearray(nbytes)
        self.region: MemoryRegion | None = MemoryRegion(self.memory) if register else None
        self._poison = bytearray([poison]) * nbytes

    @property
    def buffer(self) -> MemoryRegion | bytearray:
        """What to pass to a call."""
        return self.memory if self.region is None else self.region

    def poison(self) -> None:
        """It is ours again: fill it."""
        self.memory[:] = self._poison

    def check(self) -> None:
        """Nobody may have written since.

        Raises:
            AssertionError: Somebody has; says where.
        """
        if self.memory != self._poison:
            first = next(i for i, (a, b) in enumerate(zip(self.memory, self._poison, strict=True)) if a != b)
            raise AssertionError(f"byte {first} was written after the buffer had been given back")

    def close(self) -> None:
        """Give the registration back."""
        if self.region is not None:
            self.region.close()


async def check_message_channel(maker: ChannelMaker) -> None:
    """Check that pairs of channels do what ``trio.abc.Channel`` and :class:`exs.MessageChannel` promise.

    Args:
        maker: Makes a connected pair.

    Raises:
        AssertionError: A promise is broken.
    """
    for check in (_check_whole, _check_end, _check_closed, _check_busy, _check_cancel, _check_broken):
        a, b = await maker()
        try:
            await check(a, b)
            await trio.aclose_forcefully(a)
            await trio.aclose_forcefully(b)
            b, a = await maker()
            await check(a, b)
        finally:
            await trio.aclose_forcefully(a)
            await trio.aclose_forcefully(b)


@contextmanager
def _raises(kind: type[BaseException]) -> Generator[None, None, None]:
    try:
        yield
    except kind:
        return
    raise AssertionError(f"expected {kind.__name__}")


async def _check_whole(a: MessageChannel, b: MessageChannel) -> None:
    """Messages arrive whole, in order, each for itself, the empty ones too; every call is a checkpoint."""
    messages: list[bytes | bytearray | memoryview] = [
        b"one",
        b"",
        b"x" * 5000,
        bytearray(b"two"),
        memoryview(b"three"),
        b"",
    ]

    async def send() -> None:
        for message in messages:
            with trio.testing.assert_checkpoints():
                await a.send(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        for message in messages:
            with trio.testing.assert_checkpoints():
                got = await b.receive()
            assert got == bytes(message), f"{len(got)} bytes came, not {len(message)}"
        room = bytearray(100)
        nursery.start_soon(a.send, b"into")
        assert await b.receive_into(room) == 4
        assert room[:4] == b"into"


async def _check_end(a: MessageChannel, b: MessageChannel) -> None:
    """What was sent before an orderly close arrives, then comes the end."""

    async def send() -> None:
        await a.send(b"last")
        with trio.testing.assert_checkpoints():
            await a.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await b.receive() == b"last"
        for _ in range(2):
            with _raises(trio.EndOfChannel):
                await b.receive()
    assert [m async for m in b] == []


async def _check_closed(a: MessageChannel, b: MessageChannel) -> None:
    """A closed channel refuses, repeatedly; a task that waits in it wakes."""

    async def wait() -> None:
        with _raises(trio.ClosedResourceError):
            await a.receive()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await a.aclose()
    for _ in range(2):
        await a.aclose()
        with _raises(trio.ClosedResourceError):
            await a.send(b"x")
        with _raises(trio.ClosedResourceError):
            await a.receive()
    with trio.CancelScope() as scope:
        scope.cancel()
        await b.aclose()
    assert scope.cancelled_caught, "a cancelled aclose must say so"
    with _raises(trio.ClosedResourceError):
        await b.send(b"x")


async def _check_busy(a: MessageChannel, b: MessageChannel) -> None:
    """Two tasks on one direction are told so."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.receive)
        await trio.testing.wait_all_tasks_blocked()
        with _raises(trio.BusyResourceError):
            await b.receive()
        await a.send(b"x")


async def _check_cancel(a: MessageChannel, b: MessageChannel) -> None:
    """A cancelled call had no effect: the next message comes to the next receive."""
    for _ in range(3):
        with trio.move_on_after(0.01) as scope:
            await b.receive()
        assert scope.cancelled_caught, "a receive without a message must be cancellable"
    with trio.move_on_after(0.01) as scope:
        await a.send(b"never")
    assert scope.cancelled_caught, "a send without a receive must be cancellable"
    with trio.CancelScope() as scope:
        scope.cancel()
        await a.send(b"never")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, b"this")
        assert await b.receive() == b"this"


async def _check_broken(a: MessageChannel, b: MessageChannel) -> None:
    """A peer that went away breaks the channel, and it stays broken."""
    await trio.aclose_forcefully(b)
    with _raises(trio.BrokenResourceError):
        for _ in range(1000):
            await a.send(b"x")
    with _raises(trio.BrokenResourceError):
        await a.send(b"x")
