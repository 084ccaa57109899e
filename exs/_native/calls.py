# SPDX-License-Identifier: MIT OR Apache-2.0
"""The calls that post operations: one method, one call into the core.

Owns the block in which the core reports on the last post.  Knows no rule of a socket.

Invariant: a post returns what the core returned: 0, accepted, one event will come; 1, accepted and already over,
the event is :meth:`Caller.event`; ``-errno``, refused.  Nothing here raises or keeps a buffer alive: the first is
for the caller, by :func:`exs._native.error`, the second for its entry in :data:`exs._native.ops`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exs._exs import ffi, lib
from exs._native.events import EVENT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exs._exs import CData
    from exs._native.buffers import Pieces, Span
    from exs._native.events import RawEvent
    from exs._native.process import Context


class PollSet:
    """Sockets to ask about in one poll, each with what is asked."""

    __slots__ = ("bits", "count", "socks")

    def __init__(self, wanted: Sequence[tuple[int, int]]) -> None:
        self.count: int = len(wanted)
        self.socks: CData = ffi.new("uint64_t[]", [sock for sock, _ in wanted])
        self.bits: CData = ffi.new("uint32_t[]", [bits for _, bits in wanted])


class Caller:
    """Makes posts, and holds what the last one returned.  Used by one thread at a time: one a pump, one a thread."""

    __slots__ = ("_bytes", "_ctx", "_out")

    def __init__(self, ctx: Context, *, report: bool = True) -> None:
        self._ctx = ctx.pointer
        block = ffi.new("exsi_posted *")
        # Without a block to report in, the core never returns 1: every event goes to the queue.
        self._out = block if report else ffi.NULL
        self._bytes = memoryview(ffi.buffer(block))

    @property
    def event(self) -> RawEvent:
        """The event, where the last call returned 1."""
        event: RawEvent = EVENT.unpack_from(self._bytes)
        return event

    @property
    def op(self) -> int:
        """Handle of the operation for :meth:`cancel`, where the last post returned 0."""
        handle: int = self._out.op
        return handle

    @property
    def pending(self) -> int:
        """Events that lay in the queue after the last post: drain, since no signal was sent for them."""
        count: int = self._out.pending
        return count

    def send(self, sock: int, span: Span, flags: int, cookie: int, eq: int) -> int:
        """Send a span.  ``flags``: ``SHUT_WR_AFTER``, ``STRICT_SIZE``.  Result as in the module's head."""
        return lib.exsi_send(
            self._ctx, sock, span.pointer, span.length, flags | span.flags, span.handle, cookie, eq, self._out
        )

    def recv(self, sock: int, span: Span, flags: int, cookie: int, eq: int) -> int:
        """Receive into a span.  ``flags``: ``WAITALL``, ``DONTWAIT`` (1: value bytes taken, or ``-EAGAIN``)."""
        return lib.exsi_recv(
            self._ctx, sock, span.pointer, span.length, flags | span.flags, span.handle, cookie, eq, self._out
        )

    def sendmsg(self, sock: int, pieces: Pieces, flags: int, cookie: int, eq: int) -> int:
        """Send pieces as one."""
        return lib.exsi_sendmsg(
            self._ctx, sock, pieces.pointer, pieces.count, flags | pieces.flags, cookie, eq, self._out
        )

    def recvmsg(self, sock: int, pieces: Pieces, flags: int, cookie: int, eq: int) -> int:
        """Receive into pieces as one."""
        return lib.exsi_recvmsg(
            self._ctx, sock, pieces.pointer, pieces.count, flags | pieces.flags, cookie, eq, self._out
        )

    def send_many(self, sock: int, pieces: Pieces, flags: int, cookie: int, eq: int) -> int:
        """Send each piece as an operation of its own with cookie + its index: how many were accepted, or ``-errno``."""
        return lib.exsi_send_many(
            self._ctx, sock, pieces.pointer, pieces.count, flags | pieces.flags, cookie, eq, self._out
        )

    def recv_many(self, sock: int, pieces: Pieces, flags: int, cookie: int, eq: int) -> int:
        """Receive into each piece as an operation of its own with cookie + its index: how many, or ``-errno``."""
        return lib.exsi_recv_many(
            self._ctx, sock, pieces.pointer, pieces.count, flags | pieces.flags, cookie, eq, self._out
        )

    def send_split(self, sock: int, span: Span, piece: int, flags: int, cookie: int, eq: int) -> int:
        """As :meth:`send_many` for one span cut into pieces of ``piece`` bytes (the last may be shorter)."""
        return lib.exsi_send_split(
            self._ctx,
            sock,
            span.pointer,
            span.length,
            piece,
            flags | span.flags,
            span.handle,
            cookie,
            eq,
            self._out,
        )

    def connect(self, sock: int, address: bytes, cookie: int, eq: int) -> int:
        """Connect to an address made by :func:`pack_address`."""
        raw = ffi.from_buffer("char[]", address)
        return lib.exsi_connect(self._ctx, sock, raw, len(address), cookie, eq, self._out)

    def accept(self, sock: int, cookie: int, eq: int) -> int:
        """Take one connection: the event's value is the new socket."""
        return lib.exsi_accept(self._ctx, sock, cookie, eq, self._out)

    def poll(self, sock: int, flags: int, cookie: int, eq: int) -> int:
        """Wait until ``POLL_IN`` or ``POLL_OUT`` holds: the event's value says which."""
        return lib.exsi_poll(self._ctx, sock, flags, cookie, eq, self._out)

    def poll_many(self, polls: PollSet, cookie: int, eq: int) -> int:
        """Wait until one socket is ready: the event's extra says which, its value for what."""
        return lib.exsi_poll_many(self._ctx, polls.socks, polls.bits, polls.count, cookie, eq, self._out)

    def link_wait(self, link: int, cookie: int, eq: int) -> int:
        """Wait until a link of SMC-R has something to tell."""
        return lib.exsi_smc_link_wait(self._ctx, link, cookie, eq, self._out)

    def shutdown(self, sock: int, how: int, cookie: int, eq: int) -> int:
        """Shut a direction (``socket.SHUT_WR``, ``SHUT_RD``)."""
        return lib.exsi_shutdown(self._ctx, sock, how, cookie, eq, self._out)

    def close(self, sock: int, abort: bool, cookie: int, eq: int) -> int:
        """Close a socket, in order or at once; without a queue (0) no event comes."""
        return lib.exsi_socket_close(self._ctx, sock, abort, cookie, eq, self._out)

    def cancel(self, sock: int, op: int) -> int:
        """Ask for the end of an operation.

        Returns:
            1: over, its event is here and not in the queue; 0: it will come; ``-EBADF``: there is no such operation any
            more (its event lies in the queue).
        """
        return lib.exsi_cancel(self._ctx, sock, op, self._out)
