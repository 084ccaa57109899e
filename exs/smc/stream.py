# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a handshake of SMC-R becomes: :class:`SmcStream`, or :class:`FallbackStream` over plain TCP.

Owns the TCP connection behind a stream: silent and watched while SMC-R carries the bytes, else what carries them.
Both are :class:`exs.SocketStream`, and a program need not know which it has.

Invariants: a FIN of TCP ends nothing by itself, since it may overtake what the peer says on the link; of what was read
during the handshake every byte of payload is received, in order, before what TCP brings.
"""

from __future__ import annotations

import errno
import logging
import socket as _socket
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from exs import _native
from exs._exclusive import Exclusive
from exs._pump import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, protected
from exs.errors import from_errno
from exs.smc.reading import CROSSING_TIMEOUT, CrossingFilter
from exs.streams import DEFAULT_RECEIVE_BYTES, SocketStream, checked_size

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from typing_extensions import Buffer

    from exs._native import Span
    from exs.sockets import Socket

__all__ = ["FallbackStream", "SmcStream"]

log: logging.Logger = logging.getLogger("exs.smc")

GRACE_S = 2.0
"""How long after the end of TCP the peer's last word on the link is waited for."""


class SmcStream(SocketStream):
    """A stream over SMC-R.

    A send of at most 8 KiB is copied, as into the send buffer of a kernel socket: it is over, and its buffer free, as
    soon as there is room for the copy.  A longer one goes from where it lies, and is over when the peer has it in its
    receive buffer.

    Args:
        socket: The connection, open.
        tcp: The TCP connection of its handshake; the stream owns it from now on.
        transport: ``"smc-r v2"`` or ``"smc-r v1"``.
    """

    def __init__(self, socket: Socket, tcp: _socket.socket, transport: str) -> None:
        super().__init__(socket)
        self._tcp = trio.socket.from_stdlib_socket(tcp)
        self._transport = transport
        self._view_is_out = False
        self._watch = trio.CancelScope()
        trio.lowlevel.spawn_system_task(_watch, self._tcp, socket, self._watch, name="exs smc tcp")

    @property
    def transport(self) -> str:
        """``"smc-r v2"`` or ``"smc-r v1"``."""
        return self._transport

    @protected
    async def send_eof(self) -> None:
        """As :meth:`exs.SocketStream.send_eof`."""
        await super().send_eof()
        self._shut_tcp()

    @protected
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As :meth:`exs.SocketStream.receive_some`; of more than 64 KiB there is one copy only."""
        size = checked_size(max_bytes)
        if size <= DEFAULT_RECEIVE_BYTES:
            return await super().receive_some(size)
        async with self.receive_view(size) as view:
            self.socket.count_copied(len(view))
            return bytes(view)

    @asynccontextmanager
    async def receive_view(self, max_bytes: int | None = None) -> AsyncGenerator[memoryview[int]]:
        """As :meth:`exs.SocketStream.receive_view`: a view of the buffer that the peer writes into."""
        size = sys.maxsize if max_bytes is None else checked_size(max_bytes)
        if self.socket.has_kept:  # copies, and older than what lies in the buffer
            async with super().receive_view(min(size, DEFAULT_RECEIVE_BYTES)) as kept:
                yield kept
            return
        with self._receiving:
            await checkpoint_if_cancelled()
            at_once = (view := self.socket.lend(size)) is not None
            while view is None:
                await self.socket.wait_ready(_native.POLL_IN)
                view = self.socket.lend(size)
            self._view_is_out = len(view) > 0  # there is no loan at the end of the stream
            taken = 0
            try:
                if at_once:
                    await cancel_shielded_checkpoint()
                yield view
                taken = len(view)
            finally:
                if self._view_is_out:
                    self._view_is_out = False
                    self.socket.give_back(taken)

    @protected
    async def aclose(self) -> None:
        """As :meth:`exs.SocketStream.aclose`; TCP is closed behind it.

        Raises:
            trio.BusyResourceError: A view is in use.
        """
        if self._view_is_out:
            raise trio.BusyResourceError("a view of the received bytes is in use")
        try:
            await super().aclose()
        finally:
            self._watch.cancel()
            self._tcp.close()

    def abandon(self) -> None:
        """Close at once, without waiting."""
        self.socket.close()
        self._watch.cancel()
        self._tcp.close()

    def _shut_tcp(self) -> None:
        try:
            self._tcp.shutdown(_socket.SHUT_WR)
        except OSError as gone:
            log.debug("smc: TCP was gone already: %s", gone)


async def _watch(tcp: trio.socket.SocketType, sock: Socket, scope: trio.CancelScope) -> None:
    """See whether the peer's host is still there: when TCP has ended, its end on the link must come.

    RFC 7609 section 4.8.
    """
    with scope:
        try:
            while await tcp.recv(4096):
                log.warning("smc: bytes on the TCP connection of a stream over SMC-R were ignored")
        except OSError as error:
            log.debug("smc: TCP: %s", error)
        except trio.ClosedResourceError:
            return
        await trio.sleep(GRACE_S)
        if not sock.closed and not sock.peer_done:
            log.warning("smc: the peer is gone: its TCP connection has ended without a word on the link")
            sock.fail(errno.ECONNRESET)


class FallbackStream(SocketStream):
    """A stream over the TCP connection on which SMC-R was not possible.

    Args:
        tcp: Connected, non-blocking; the stream owns it from now on.
        held: What was read of the payload already.
        crossing: CLC types of which one message may still come before the payload.
        reason: Why, in words.
    """

    def __init__(
        self, tcp: _socket.socket, held: bytes = b"", crossing: frozenset[int] = frozenset(), reason: str = ""
    ) -> None:
        self.tcp: trio.SocketStream = trio.SocketStream(trio.socket.from_stdlib_socket(tcp))
        self._filter = CrossingFilter(crossing)
        self._held = self._filter.feed(held) if held else b""
        self._reason = reason
        self._receiving = Exclusive("receiving on this stream")

    @property
    def socket(self) -> Socket:
        """There is none of exs.

        Raises:
            exs.Error: ``EOPNOTSUPP``, always.
        """
        raise from_errno(errno.EOPNOTSUPP, f"this stream is plain TCP, without a socket of exs: {self._reason}")

    @property
    def transport(self) -> str:
        """``"tcp"``."""
        return "tcp"

    @property
    def transport_reason(self) -> str:
        """Why it is not SMC-R, in words."""
        return self._reason

    async def send_all(self, data: Buffer | Span) -> None:
        """As ``trio.SocketStream.send_all``."""
        span = _native.readable(data)
        await self.tcp.send_all(_native.view(span.pointer, span.length, True))

    async def wait_send_all_might_not_block(self) -> None:
        """As ``trio.SocketStream.wait_send_all_might_not_block``."""
        await self.tcp.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """As ``trio.SocketStream.send_eof``."""
        await self.tcp.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As ``trio.SocketStream.receive_some``."""
        size = checked_size(max_bytes)
        with self._receiving:
            if not self._held and not self._filter.done:
                self._held = await self._sift()
                if not self._held:
                    return b""
            if self._held:
                await checkpoint()
                data, self._held = self._held[:size], self._held[size:]
                return data
            return bytes(await self.tcp.receive_some(size))

    async def receive_into(self, buffer: Buffer | Span) -> int:
        """As :meth:`exs.SocketStream.receive_into`; the kernel copies."""
        span = _native.writable(buffer)
        room = _native.view(span.pointer, span.length, False)
        if not span.length:
            await checkpoint()
            return 0
        if self._held or not self._filter.done:
            data = await self.receive_some(span.length)
            room[: len(data)] = data
            return len(data)
        with self._receiving:
            try:
                return await self.tcp.socket.recv_into(room)
            except OSError as error:
                raise trio.BrokenResourceError(f"the connection is broken: {error}") from error

    def abandon(self) -> None:
        """Close at once, without waiting."""
        self.tcp.socket.close()

    async def aclose(self) -> None:
        """As ``trio.SocketStream.aclose``."""
        await self.tcp.aclose()

    @asynccontextmanager
    async def receive_view(self, max_bytes: int | None = None) -> AsyncGenerator[memoryview[int]]:
        """As :meth:`exs.SocketStream.receive_view`, of bytes that the kernel copied."""
        data = await self.receive_some(max_bytes)
        try:
            yield memoryview(data)
        except BaseException:
            self._held = data + self._held
            raise

    async def _sift(self) -> bytes:
        """Receive until it is known whether a message of the peer crossed ours; payload, nothing at the end."""
        while True:
            data = None
            with trio.move_on_after(CROSSING_TIMEOUT if self._filter.held else float("inf")):
                data = await self.tcp.receive_some(DEFAULT_RECEIVE_BYTES)
            if data is None:
                return self._filter.end()
            found = self._filter.feed(bytes(data)) if data else self._filter.end()
            if found or not data:
                return found
