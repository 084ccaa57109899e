# SPDX-License-Identifier: MIT OR Apache-2.0
"""Many sends in flight from one task: :class:`SendQueue`.

Owns the order of the sends, and what holds their buffers, until their events were read.

Invariant: sends are withdrawn from the newest on, so none leaves behind one that was taken out.
"""

from __future__ import annotations

import errno
import itertools
from collections import deque
from typing import TYPE_CHECKING, Self

import trio

from exs import _native
from exs._pump import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, protected
from exs.memory import Split
from exs.queues.base import Queue

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from typing_extensions import Buffer

    from exs._handles import Direction
    from exs._native import RawEvent, Span
    from exs._pump import Inbox

__all__ = ["SendQueue"]


class SendQueue(Queue):
    """Sends from one task, many in flight; made by :meth:`exs.Socket.send_queue`, used by ``async with``.

    A buffer given to it is the library's until :meth:`flush` or the end of the block returns.  Leaving the block
    flushes; leaving it by an exception withdraws what the device does not have yet and waits for the rest, for no
    longer than ``Options.close_timeout`` (then the connection is ended).  If a send of a stream was withdrawn, that
    direction refuses further sends, since the peer's byte position is unknown.  A call that another task is still
    inside of when the block is left ends by ``ClosedResourceError``.

    Attributes:
        depth: Most sends in flight.
        accepted: Buffers accepted so far.
    """

    def __init__(self, direction: Direction, depth: int) -> None:
        super().__init__(direction, depth)
        self.accepted: int = 0
        self._in_flight = 0
        self._kept: deque[tuple[int, int, object]] = deque()  # cookie of the first, how many, what holds the memory
        self._failed: RawEvent | None = None
        self._broken = False

    @property
    def in_flight(self) -> int:
        """Sends accepted whose buffers are not known to be free."""
        self._settle()
        return self._in_flight

    @protected
    async def __aenter__(self) -> Self:
        """Take the direction.

        Raises:
            trio.BusyResourceError: Somebody is sending on the socket.
        """
        await checkpoint()
        self._open()
        return self

    @protected
    async def put(self, buffer: Buffer | Span) -> None:
        """Send a buffer; returns when it is accepted, and waits while ``depth`` are in flight.

        Args:
            buffer: What to send: a region or a part of one, or any contiguous buffer.

        Raises:
            exs.Error: An earlier send failed, or this one was refused.
            trio.BusyResourceError: Another task is inside a call of this queue.
            trio.ClosedResourceError: The socket or the block is closed.

        *Cancellation:* the buffer was not accepted.
        """
        await checkpoint_if_cancelled()
        span = _native.readable(buffer)
        inbox = self._enter()
        try:
            waited = False
            while self._full() or not self._post(span):
                await inbox.wait(1, patient=True)
                waited = True
            if not waited:
                await cancel_shielded_checkpoint()
        finally:
            self._busy = False

    def put_nowait(self, buffer: Buffer | Span) -> None:
        """Send a buffer if there is room; not a checkpoint.

        Args:
            buffer: As for :meth:`put`.

        Raises:
            trio.WouldBlock: ``depth`` sends are in flight.
            exs.Error: As for :meth:`put`.
        """
        span = _native.readable(buffer)
        self._enter()
        try:
            if self._full():
                self._pump.look()
            if self._full() or not self._post(span):
                raise trio.WouldBlock
        finally:
            self._busy = False

    @protected
    async def put_many(self, buffers: Iterable[Buffer | Span]) -> None:
        """Send many, in order, in as few calls as the room allows; returns when all are accepted.

        Args:
            buffers: What to send.  The result of ``MemoryRegion.split()`` is passed on as one.

        Raises:
            exs.Error: As for :meth:`put`.

        *Cancellation:* some were accepted, as :attr:`accepted` tells; no further one is.
        """
        await checkpoint_if_cancelled()
        inbox = self._enter()
        try:
            if isinstance(buffers, Split):
                waited = await self._put_split(buffers, inbox)
            else:
                waited = await self._put_all(buffers, inbox)
            if not waited:
                await cancel_shielded_checkpoint()
        finally:
            self._busy = False

    async def _put_split(self, split: Split, inbox: Inbox) -> bool:
        done, total, waited = 0, len(split), False
        caller, sock, eq = self._caller, self._direction.handle, self._pump.eq
        while done < total:
            count = min(self._room(), total - done)
            if count:
                span = split.span(done, done + count)
                self._pump.make_room(count)
                cookie = self._numbers(count)
                taken = self._accepted(caller.send_split(sock, span, split.nbytes, 0, cookie, eq), cookie, count, span)
                done += taken
                if taken == count:
                    continue
            await inbox.wait(max(1, self._in_flight // 2), patient=self._in_flight > 1)
            waited = True
        return waited

    async def _put_all(self, buffers: Iterable[Buffer | Span], inbox: Inbox) -> bool:
        waited = False
        caller, sock, eq = self._caller, self._direction.handle, self._pump.eq
        source = map(_native.readable, buffers)
        spans: list[Span] = []
        while True:
            room = self._room()
            spans.extend(itertools.islice(source, max(room - len(spans), 0)))
            count = min(room, len(spans))
            if room and not count:
                return waited
            if count:
                now = spans[:count]
                self._pump.make_room(count)
                cookie = self._numbers(count)
                code = caller.send_many(sock, _native.Pieces.of(now), 0, cookie, eq)
                taken = self._accepted(code, cookie, count, now)
                del spans[:taken]
                if taken == count:
                    continue
            await inbox.wait(max(1, self._in_flight // 2), patient=self._in_flight > 1)
            waited = True

    @protected
    async def flush(self) -> None:
        """Wait until every buffer accepted so far is the caller's again.

        Raises:
            exs.Error: A send failed.

        *Cancellation:* the buffers stay the queue's.
        """
        await checkpoint_if_cancelled()
        inbox = self._enter()
        try:
            if not await self._drain(inbox, shielded=False):
                await cancel_shielded_checkpoint()
            self._raise()
        finally:
            self._busy = False

    @protected
    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush, or withdraw; either way every buffer is free afterwards."""
        inbox = await self._leave()
        try:
            if kind is None:
                await checkpoint_if_cancelled()
                if not await self._drain(inbox, shielded=False):
                    await cancel_shielded_checkpoint()
                self._raise()
        finally:
            await self._withdraw(inbox)
            self._close()

    # --- inside

    def _settle(self) -> None:
        """Read the events that came."""
        if self._inbox is None or not self._inbox.events:
            return
        events = self._inbox.events
        count = len(events)
        self._in_flight -= count
        for event in events:
            if event[3] and not self._broken:
                self._broken = True
                self._failed = event
        events.clear()
        kept = self._kept
        while count:
            cookie, several, memory = kept.popleft()
            if several > count:
                kept.appendleft((cookie + count, several - count, memory))
                return
            count -= several

    def _raise(self) -> None:
        """What failed, once; after that the queue refuses."""
        self._settle()
        if self._failed is not None:
            event, self._failed = self._failed, None
            raise self._direction.failure(event)

    def _room(self) -> int:
        """How many more may be in flight."""
        self._raise()
        if self._broken:
            raise _native.error(errno.EPIPE)
        return self.depth - self._in_flight

    def _full(self) -> bool:
        return self._room() <= 0

    def _post(self, span: Span) -> bool:
        """Send one; false if the socket has no room."""
        self._pump.make_room(1)
        cookie = self._numbers(1)
        sock, eq = self._direction.handle, self._pump.eq
        if span.length:
            code = self._caller.send_split(sock, span, span.length, 0, cookie, eq)
        else:
            code = self._caller.send_many(sock, _native.Pieces.of((span,)), 0, cookie, eq)
        return bool(self._accepted(code, cookie, 1, span))

    def _accepted(self, code: int, cookie: int, count: int, memory: object) -> int:
        """What a batch call returned: how many were taken (none if there is no room)."""
        if code <= 0:
            if code != -errno.EAGAIN or not self._in_flight:
                raise self._direction.failure((cookie, 0, 0, -code, 0, 0))
            return 0
        self._kept.append((cookie, code, memory))
        self._in_flight += code
        self._pump.in_flight += code
        self.accepted += code
        return min(code, count)

    async def _drain(self, inbox: Inbox, *, shielded: bool) -> bool:
        """Wait until nothing is in flight; whether that took a wait."""
        waited = False
        self._settle()
        while self._in_flight:
            await inbox.wait(self._in_flight, shielded=shielded)
            waited = True
            self._settle()
        return waited

    async def _withdraw(self, inbox: Inbox) -> None:
        self._settle()
        if not self._in_flight:
            return
        # The newest first, so that none leaves after one behind it was taken out.
        for first, count, _ in list(reversed(self._kept)):
            self._cancel(range(first + count - 1, first - 1, -1))
        before = self._broken
        self._broken = False
        await self._drain(inbox, shielded=True)
        if self._failed is not None and self._failed[3] == errno.ECANCELED and self._direction.is_stream:
            self._direction.spoil()
        self._broken = self._broken or before
