# SPDX-License-Identifier: MIT OR Apache-2.0
"""Receives posted ahead by one task: :class:`ReceiveQueue`.

Owns the slabs that it took from a pool, and where each of them is: posted, handed out, or neither.

Invariant: what arrived is handed out in order, or stays with the socket for the next receive; none of it is lost.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Self

import trio

from exs import _native
from exs._pump import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, protected
from exs.memory import RegionView
from exs.queues.base import Queue

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from exs._handles import Direction
    from exs._native import RawEvent
    from exs._pump import Inbox
    from exs.pools import BufferPool

__all__ = ["ReceiveQueue"]

_ENDS = _native.EV_EOF | _native.EV_TRUNCATED


class _Slab:
    """A slab of the pool, with its line in a vector for the core made once."""

    __slots__ = ("size", "view", "words")

    def __init__(self, view: RegionView) -> None:
        self.view = view
        self.size = view.length
        self.words = _native.Pieces.line(view)


class ReceiveQueue(Queue):
    """Receives into the slabs of a pool, many posted ahead.

    Made by :meth:`exs.Socket.receive_queue`, used by ``async with``.  Iteration gives one :class:`exs.RegionView`
    after the other, in stream or message order, each valid until the next step; :meth:`get_many` gives several.
    Leaving the block revokes what is posted.  What had arrived and was not taken stays with the socket, and the next
    receive gets it first.  A call that another task is still inside of when the block is left ends by
    ``ClosedResourceError``.

    Attributes:
        depth: Receives posted ahead; up to a quarter of them may wait for the next call that posts them again.
        pool: Where the slabs come from.
    """

    def __init__(self, direction: Direction, pool: BufferPool, depth: int) -> None:
        super().__init__(direction, depth)
        self.pool = pool
        self._slabs: list[_Slab] = []
        self._posted: dict[int, _Slab] = {}  # by cookie, oldest first
        self._mine: list[_Slab] = []  # neither posted nor handed out
        self._handed: list[_Slab] = []
        self._few = 1  # slabs that are worth the call that posts them again
        self._over = False
        self._failed: RawEvent | None = None

    @protected
    async def __aenter__(self) -> Self:
        """Take the direction and post ``depth`` slabs, or as many as the pool has, at least one.

        Raises:
            trio.BusyResourceError: Somebody is receiving on the socket.
            exs.Error: The socket is not connected, the pool is closed.

        *Cancellation:* nothing was taken.
        """
        await checkpoint_if_cancelled()
        self._open()
        try:
            views = [await self.pool.acquire()]
        except BaseException:
            self._close()
            raise
        try:
            while len(views) < self.depth and self.pool.available:
                views.append(self.pool.take_nowait())
        except trio.WouldBlock:
            pass  # another thread was quicker
        self._slabs = [_Slab(view) for view in views]
        self._mine = list(self._slabs)
        self._few = max(1, len(views) // 4)
        try:
            self._repost()
        except BaseException:
            self._give_back()
            self._close()
            raise
        return self

    def __aiter__(self) -> Self:
        """The queue itself."""
        return self

    async def __anext__(self) -> RegionView:
        """The next chunk; valid until the next step.

        Raises:
            StopAsyncIteration: The peer has ended.
            exs.Error: The connection failed.

        *Cancellation:* nothing is lost.
        """
        chunks = await self.get_many(1)
        if not chunks:
            raise StopAsyncIteration
        return chunks[0]

    @protected
    async def get_many(self, most: int) -> list[RegionView]:
        """The chunks that are here, at least one; waits for the first.

        Args:
            most: No more than this many.

        Returns:
            The chunks, all valid until the next call; none at the end.

        Raises:
            ValueError: ``most`` is not positive.
            exs.Error: The connection failed; :class:`exs.TruncatedError` for a message longer than a slab.
            trio.BusyResourceError: Another task is inside a call of this queue.
            trio.ClosedResourceError: The socket or the block is closed.

        *Cancellation:* nothing is lost.
        """
        if most < 1:
            raise ValueError("at least one chunk must be asked for")
        await checkpoint_if_cancelled()
        inbox = self._enter()
        try:
            if self._handed:
                self._mine += self._handed
                self._handed = []
            if self._direction.kept:
                chunks = self._from_kept(most)
            else:
                if self._mine and not self._over and (len(self._mine) >= self._few or not self._posted):
                    self._repost()
                if not inbox.events and not self._over:
                    await inbox.wait(1)
                    return self._collect(inbox, most)
                chunks = self._collect(inbox, most)
            await cancel_shielded_checkpoint()
            return chunks
        finally:
            self._busy = False

    @protected
    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Revoke what is posted, keep what has arrived."""
        inbox = await self._leave()
        failed: RawEvent | None = None
        try:
            # The newest first, so that what still arrives goes to the oldest, in order.
            self._cancel(list(reversed(self._posted)))
            while len(inbox.events) < len(self._posted):
                await inbox.wait(len(self._posted), shielded=True)
            failed = self._keep(inbox.events)
            inbox.events.clear()
        finally:
            self._give_back()
            self._close()
        if kind is None:
            await checkpoint()
            if failed is not None:
                raise self._direction.failure(failed)

    # --- inside

    def _repost(self) -> None:
        """Post the slabs that are ours."""
        if self._direction.kept:
            return
        mine = self._mine
        count = len(mine)
        self._pump.make_room(count)
        cookie = self._numbers(count)
        pieces = _native.Pieces.joined([slab.words for slab in mine])
        taken = self._caller.recv_many(self._direction.handle, pieces, 0, cookie, self._pump.eq)
        if taken < 0:
            if taken == -errno.EAGAIN and self._posted:
                return  # the socket's limit is below our depth: again when one came back
            raise self._direction.failure((cookie, 0, 0, -taken, 0, 0))
        self._pump.in_flight += taken
        self._posted.update(zip(range(cookie, cookie + taken), mine, strict=False))
        self._mine = mine[taken:]

    def _collect(self, inbox: Inbox, most: int) -> list[RegionView]:
        """The chunks of the events that came; an error only when it stands in front."""
        events = inbox.events
        chunks: list[RegionView] = []
        posted, handed = self._posted, self._handed
        while events and len(chunks) < most and not self._over:
            cookie, length, _, error, _, flags = events[0]
            if error or flags & _ENDS:
                if chunks and not flags & _native.EV_EOF:
                    break
                event = events.popleft()
                self._mine.append(posted.pop(cookie))
                if error or flags & _native.EV_EOF:
                    self._over = True
                    self._failed = event if error else None
                if not flags & _native.EV_EOF or error:
                    raise self._direction.failure(event)
                break
            events.popleft()
            slab = posted.pop(cookie)
            handed.append(slab)
            view = slab.view
            chunks.append(view if length == slab.size else RegionView(view.region, view.offset, length))
        if not chunks and self._failed is not None:  # again: the end of the stream would be a lie
            raise self._direction.failure(self._failed)
        return chunks

    def _from_kept(self, most: int) -> list[RegionView]:
        """What an earlier queue left over, copied into slabs of ours."""
        kept = self._direction.kept
        chunks: list[RegionView] = []
        while kept and self._mine and len(chunks) < most:
            data = kept.popleft()
            slab = self._mine.pop()
            now = data[: slab.size]
            slab.view[: len(now)].view[:] = now
            self._direction.copied(len(now))
            self._handed.append(slab)
            chunks.append(slab.view[: len(now)])
            if len(now) < len(data) and self._direction.is_stream:
                kept.appendleft(data[len(now) :])
        return chunks

    def _keep(self, events: Iterable[RawEvent]) -> RawEvent | None:
        """At the end: what arrived stays with the socket; returns what failed."""
        failed: RawEvent | None = None
        for event in events:
            cookie, length, _, error, _, flags = event
            slab = self._posted.pop(cookie)
            if error:
                if error != errno.ECANCELED and failed is None and not self._over:
                    failed = event
            elif flags & _native.EV_TRUNCATED:
                failed = failed or event
            elif not flags & _native.EV_EOF:
                self._direction.kept.append(bytes(slab.view[:length].view))
                self._direction.copied(length)
        return failed

    def _give_back(self) -> None:
        for slab in self._slabs:
            self.pool.give(slab.view)
        self._slabs = []
