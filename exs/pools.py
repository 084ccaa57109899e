# SPDX-License-Identifier: MIT OR Apache-2.0
"""Pools of equal slabs of registered memory: :class:`BufferPool`.

Owns which slab is free, which is taken, and who waits for one, in whatever trio run or thread.

Invariant: a slab is free, or taken once; one that comes back goes to whoever has waited longest.
"""

from __future__ import annotations

import collections
import errno
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import enable_ki_protection as protected

from exs.errors import BusyError, Error
from exs.memory import Closing, MemoryRegion, RegionView

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["BufferPool"]

_LINE = 64  # bytes of a cache line: slabs begin on one


class _Waiter:
    """A task that waits for a slab, in its trio run."""

    __slots__ = ("given", "slab", "token")

    def __init__(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        self.given = trio.Event()
        self.slab: int | None = None


class BufferPool(Closing):
    """Slabs of equal size from one registration; belongs to the process, any trio run may take from it.

    Args:
        slab_bytes: Bytes of each slab.
        count: How many.
        huge_pages: Use huge pages where the system has some to give.

    Raises:
        ValueError: A number is not positive.
        exs.Error: ``ENOMEM``: not enough memory, or over the limit of locked memory.
    """

    def __init__(self, slab_bytes: int, count: int, *, huge_pages: bool = False) -> None:
        if slab_bytes <= 0 or count <= 0:
            raise ValueError("a pool has at least one slab of at least one byte")
        self.slab_bytes = slab_bytes
        self.count = count
        self._stride = -(-slab_bytes // _LINE) * _LINE
        self._free = list(range(count - 1, -1, -1))
        self._taken: set[int] = set()
        self._waiters: collections.deque[_Waiter] = collections.deque()
        self._lock = threading.Lock()
        self._over = False  # no slab is handed out any more
        self.region: MemoryRegion = MemoryRegion.allocate(self._stride * count, huge_pages=huge_pages)

    @property
    def available(self) -> int:
        """Slabs that nobody has."""
        return len(self._free)

    @protected
    def take_nowait(self) -> RegionView:
        """A slab, to be given back by :meth:`give`.

        Raises:
            trio.WouldBlock: None is free.
            exs.Error: ``EBADF``: the pool is closed.
        """
        with self._lock:
            self._check()
            if not self._free:
                raise trio.WouldBlock
            slab = self._free.pop()
            self._taken.add(slab)
        return self._slab(slab)

    @protected
    async def acquire(self) -> RegionView:
        """A slab, to be given back by :meth:`give`; waits until one is free.

        Raises:
            exs.Error: ``EBADF``: the pool is closed.

        *Cancellation:* no slab was taken.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            slab = self.take_nowait()
        except trio.WouldBlock:
            return await self._wait()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return slab

    @protected
    async def _wait(self) -> RegionView:
        waiter = _Waiter()
        with self._lock:
            self._check()
            self._waiters.append(waiter)
        self._serve()  # a slab may have come back in between
        try:
            await waiter.given.wait()
        except BaseException:
            with self._lock:
                slab = waiter.slab
                if slab is None and waiter in self._waiters:
                    self._waiters.remove(waiter)
            if slab is not None:
                self._put(slab)
            raise
        if waiter.slab is None:
            raise Error(errno.EBADF, "the pool was closed")
        return self._slab(waiter.slab)

    @protected
    def give(self, slab: RegionView) -> None:
        """Give a slab back; no operation may be using it any more.

        Raises:
            ValueError: It is not a slab of this pool, or nobody had taken it.
        """
        index, rest = divmod(slab.offset, self._stride)
        if slab.region is not self.region or rest or index not in self._taken:
            raise ValueError("this is not a slab that was taken from this pool")
        self._put(index)

    @asynccontextmanager
    @protected
    async def take(self) -> AsyncGenerator[RegionView, None]:
        """A slab for the length of a block; waits until one is free.

        Raises:
            exs.Error: ``EBADF``: the pool is closed.

        *Cancellation:* no slab was taken.
        """
        slab = await self.acquire()
        try:
            yield slab
        finally:
            self.give(slab)

    @protected
    def close(self) -> None:
        """End the registration; nothing if it has ended.

        Raises:
            BusyError: A slab is taken, or an operation in flight uses one.
        """
        with self._lock:
            if self._taken and not self.region.closed:
                raise BusyError(errno.EBUSY, f"{len(self._taken)} slab(s) of the pool are in use")
            self.region.close()
            self._over = True

    @protected
    async def aclose(self) -> None:
        """Hand out no more, wait for operations in flight, end the registration; who waits for a slab gets ``EBADF``.

        *Cancellation:* as for :meth:`MemoryRegion.aclose`.
        """
        with self._lock:
            self._over = True
            waiters = list(self._waiters)
            self._waiters.clear()
        try:
            await self.region.aclose()
        finally:
            for waiter in waiters:
                _wake(waiter)

    def _check(self) -> None:
        if self._over or self.region.closed:
            raise Error(errno.EBADF, "the pool is closed")

    def _slab(self, index: int) -> RegionView:
        return RegionView(self.region, index * self._stride, self.slab_bytes)

    def _put(self, index: int) -> None:
        with self._lock:
            self._taken.discard(index)
            self._free.append(index)
        self._serve()

    def _serve(self) -> None:
        """Give free slabs to those that wait, in order."""
        while True:
            with self._lock:
                if not self._free or not self._waiters:
                    return
                waiter = self._waiters.popleft()
                waiter.slab = self._free.pop()
                self._taken.add(waiter.slab)
            if not _wake(waiter):  # its run has ended, nobody will ever take what it was given
                with self._lock:
                    self._taken.discard(waiter.slab)
                    self._free.append(waiter.slab)


def _wake(waiter: _Waiter) -> bool:
    try:
        waiter.token.run_sync_soon(waiter.given.set)
    except trio.RunFinishedError:
        return False
    return True
