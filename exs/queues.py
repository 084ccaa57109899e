# SPDX-License-Identifier: MIT OR Apache-2.0
"""Many transfers in flight from one task: :class:`SendQueue` and :class:`ReceiveQueue`.

Owns the order and the buffers of one direction of a socket, while the block of the queue is open: any other use
of that direction is refused.  A batch is one C call and one checkpoint.  Knows of the socket only what
:class:`Direction` says.

Invariant: a buffer is referred to from its acceptance until its event was read, and the end of the block waits
for the last event; after it no byte of any buffer moves.
"""

from __future__ import annotations

import errno
import itertools
from collections import deque
from typing import TYPE_CHECKING, Protocol, Self

import trio

from exs import _native
from exs._pump import Inbox, Pump, cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, protected
from exs.errors import Error
from exs.memory import BufferPool, RegionView, Split

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from typing_extensions import Buffer

    from exs._native import RawEvent, Span

__all__ = ["ReceiveQueue", "SendQueue"]

SEQUENCE = 1 << 32
"""Cookies of one queue differ in the low 32 bits."""


class Direction(Protocol):
    """One direction of a socket, as its queue sees it."""

    @property
    def pump(self) -> Pump:
        """The pump of the socket's run."""
        ...

    @property
    def handle(self) -> int:
        """The socket's handle."""
        ...

    @property
    def is_stream(self) -> bool:
        """Whether the socket is a stream."""
        ...

    def claim(self, queue: object) -> None:
        """Keep others out; raises ``BusyResourceError`` if somebody is in."""
        ...

    def release(self) -> None:
        """Let others in again."""
        ...

    def failure(self, event: RawEvent) -> Exception:
        """The exception for an event with an error."""
        ...

    def spoil(self) -> None:
        """A send was taken out of the middle of the stream: refuse what would follow."""
        ...

    def kept(self) -> deque[bytes]:
        """What arrived for an earlier queue and was not taken."""
        ...

    def copied(self, nbytes: int) -> None:
        """Count bytes that were copied."""
        ...


class _Queue:
    """What both have in common: the inbox, the sequence, one task at a time."""

    def __init__(self, direction: Direction, depth: int) -> None:
        if depth < 1:
            raise ValueError("a queue is at least one deep")
        self.depth = depth
        self._direction = direction
        self._pump = direction.pump
        self._caller = direction.pump.caller
        self._inbox: Inbox | None = None
        self._next = 0
        self._busy = False

    def _open(self) -> Inbox:
        self._pump.check()
        if self._inbox is not None:
            raise RuntimeError("the queue is open already")
        self._direction.claim(self)
        self._inbox = Inbox(self._pump, self)
        return self._inbox

    def _close(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None
        self._direction.release()

    def _enter(self) -> Inbox:
        """A call begins."""
        self._pump.check()
        if self._inbox is None:
            raise trio.ClosedResourceError("the queue is used inside its block only")
        if self._busy:
            raise trio.BusyResourceError("another task is inside a call of this queue")
        self._busy = True
        return self._inbox

    def _numbers(self, count: int) -> int:
        """The first of so many cookies in a row."""
        assert self._inbox is not None
        if self._next + count > SEQUENCE:
            self._next = 0
        first = self._inbox.cookie + self._next
        self._next += count
        return first

    def _cancel(self, cookies: Iterable[int]) -> None:
        try:
            for cookie in cookies:
                self._pump.context.cancel_match(self._direction.handle, cookie)
        except Error:
            pass  # the socket is closed: every operation has ended, the events are on their way


class SendQueue(_Queue):
    """Sends from one task, many in flight; made by :meth:`exs.Socket.send_queue`, used by ``async with``.

    A buffer given to it is the library's until :meth:`flush` or the end of the block returns.  Leaving the block
    flushes; leaving it by an exception withdraws what the device does not have yet and waits for the rest, for no
    longer than ``Options.close_timeout`` (then the connection is ended).  If a send of a stream was withdrawn, that
    direction refuses further sends, since the peer's byte position is unknown.

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
                await inbox.wait(1)
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
            await inbox.wait(max(1, self._in_flight // 2))
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
            await inbox.wait(max(1, self._in_flight // 2))
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
        inbox = self._enter()
        try:
            if kind is None:
                await checkpoint_if_cancelled()
                if not await self._drain(inbox, shielded=False):
                    await cancel_shielded_checkpoint()
                self._raise()
        finally:
            await self._withdraw(inbox)
            self._busy = False
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
        code = self._caller.send_many(self._direction.handle, _native.Pieces.of((span,)), 0, cookie, self._pump.eq)
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


class _Slab:
    """A slab of the pool, with its line in a vector for the core made once."""

    __slots__ = ("size", "view", "words")

    def __init__(self, view: RegionView) -> None:
        self.view = view
        self.size = view.length
        self.words = _native.Pieces.line(view)


class ReceiveQueue(_Queue):
    """Receives into the slabs of a pool, many posted ahead.

    Made by :meth:`exs.Socket.receive_queue`, used by ``async with``.  Iteration gives one :class:`exs.RegionView`
    after the other, in stream or message order, each valid until the next step; :meth:`get_many` gives several.
    Leaving the block revokes what is posted.  What had arrived and was not taken stays with the socket, and the next
    receive gets it first.

    Attributes:
        depth: Receives posted ahead.
        pool: Where the slabs come from.
    """

    def __init__(self, direction: Direction, pool: BufferPool, depth: int) -> None:
        super().__init__(direction, depth)
        self.pool = pool
        self._slabs: list[_Slab] = []
        self._posted: dict[int, _Slab] = {}  # by cookie, oldest first
        self._mine: list[_Slab] = []  # neither posted nor handed out
        self._handed: list[_Slab] = []
        self._over = False

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
            if self._direction.kept():
                chunks = self._from_kept(most)
            else:
                if self._mine and not self._over:
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
        inbox = self._enter()
        failed: RawEvent | None = None
        try:
            # The newest first, so that what still arrives goes to the oldest, in order.
            self._cancel(list(reversed(self._posted)))
            while len(inbox.events) < len(self._posted):
                await inbox.wait(len(self._posted), shielded=True)
            failed = self._keep(inbox.events)
            inbox.events.clear()
        finally:
            self._busy = False
            self._give_back()
            self._close()
        if kind is None:
            await checkpoint()
            if failed is not None:
                raise self._direction.failure(failed)

    # --- inside

    def _repost(self) -> None:
        """Post the slabs that are ours."""
        if self._direction.kept():
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
                if not flags & _native.EV_EOF or error:
                    raise self._direction.failure(event)
                break
            events.popleft()
            slab = posted.pop(cookie)
            handed.append(slab)
            view = slab.view
            chunks.append(view if length == slab.size else RegionView(view.region, view.offset, length))
        return chunks

    def _from_kept(self, most: int) -> list[RegionView]:
        """What an earlier queue left over, copied into slabs of ours."""
        kept = self._direction.kept()
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
                self._direction.kept().append(bytes(slab.view[:length].view))
                self._direction.copied(length)
        return failed

    def _give_back(self) -> None:
        for slab in self._slabs:
            self.pool.give(slab.view)
        self._slabs = []


_ENDS = _native.EV_EOF | _native.EV_TRUNCATED
