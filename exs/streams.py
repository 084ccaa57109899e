# SPDX-License-Identifier: MIT OR Apache-2.0
"""Byte streams as trio knows them: :class:`SocketStream` and :class:`SocketListener`.

Owns the promises of ``trio.abc.HalfCloseableStream``: Closed, Broken and Busy, one user a direction.  All that
moves bytes is the socket's.

Invariant: a stream raises of trio's resource errors only, besides what a wrong argument raises.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio
from trio.abc import HalfCloseableStream

from exs import _native
from exs._exclusive import Exclusive
from exs._handles import SOCK_STREAM
from exs._listen import ListenerBase
from exs._pump import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, protected
from exs.sockets import Socket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from typing_extensions import Buffer

    from exs._native import Span

__all__ = ["SocketListener", "SocketStream"]

DEFAULT_RECEIVE_BYTES = 65536


def checked_size(max_bytes: int | None) -> int:
    """The most bytes that a receive may return.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is not positive.
    """
    if max_bytes is None:
        return DEFAULT_RECEIVE_BYTES
    if not isinstance(max_bytes, int):
        raise TypeError(f"max_bytes must be a whole number, not {max_bytes!r}")
    if max_bytes < 1:
        raise ValueError("max_bytes must be at least 1")
    return max_bytes


class SocketStream(HalfCloseableStream):
    """A stream over a connected socket of exs.

    Args:
        socket: A connected ``SOCK_STREAM`` socket; the stream owns it from now on.

    Raises:
        TypeError: Not a socket of exs.
        ValueError: Not a ``SOCK_STREAM`` socket.
    """

    def __init__(self, socket: Socket) -> None:
        if not isinstance(socket, Socket):
            raise TypeError("SocketStream needs an exs.Socket")
        if socket.type != SOCK_STREAM:
            raise ValueError("SocketStream needs a SOCK_STREAM socket")
        self._socket = socket
        self._sending = Exclusive("sending on this stream")
        self._receiving = Exclusive("receiving on this stream")
        self._eof_asked = self._eof_sent = False

    @property
    def socket(self) -> Socket:
        """The socket, for its facts, queues and statistics."""
        return self._socket

    @property
    def transport(self) -> str:
        """Which protocol carries the bytes: ``"exs"``, ``"smc-r v2"``, ``"smc-r v1"`` or ``"tcp"``."""
        return "exs"

    @property
    def transport_reason(self) -> str:
        """Why it is plain TCP, in words; else empty."""
        return ""

    @protected
    async def send_all(self, data: Buffer | Span) -> None:
        """Send all of some data; returns when the buffer may be used again.

        Args:
            data: A region or a part of one, or any contiguous buffer.

        Raises:
            trio.BusyResourceError: Another task is sending.
            trio.BrokenResourceError: The connection is over.
            trio.ClosedResourceError: The stream is closed, or ``send_eof`` was called.

        *Cancellation:* nothing was sent, or a part; after a part the stream refuses further sends with
        ``BrokenResourceError``, since the peer's byte position is unknown.
        """
        with self._sending:
            if self._eof_asked:
                raise trio.ClosedResourceError("nothing can be sent after send_eof")
            await self.socket.send(data)

    @protected
    async def wait_send_all_might_not_block(self) -> None:
        """Wait until one byte could be sent without waiting, or sending would fail at once.

        Raises:
            trio.BusyResourceError: Another task is sending.
            trio.BrokenResourceError: The connection ended while this waited.
            trio.ClosedResourceError: The stream is closed.

        *Cancellation:* no effect.
        """
        with self._sending:
            if self.socket.closed:
                raise trio.ClosedResourceError("the stream is closed")
            if self.socket.send_shut:
                await checkpoint()
                return
            await self.socket.wait_ready(_native.POLL_OUT)

    @protected
    async def send_eof(self) -> None:
        """Tell the peer that nothing more will be sent; receiving goes on.  Silent the second time.

        Raises:
            trio.BusyResourceError: Another task is sending.
            trio.BrokenResourceError: The connection is over.
            trio.ClosedResourceError: The stream is closed.

        *Cancellation:* nothing was done, or just the waiting was given up: the mark follows what was accepted before,
        and nothing more can be sent.  It may be called again, to wait.
        """
        with self._sending:
            if self.socket.closed:
                raise trio.ClosedResourceError("the stream is closed")
            if self._eof_sent:
                await checkpoint()
                return
            try:
                await self.socket.send_eof()
            except BaseException:
                self._eof_asked = self.socket.send_shut
                raise
            self._eof_asked = self._eof_sent = True

    @protected
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive some bytes, as soon as there are any.

        They are copied out of the stream's ring; :meth:`receive_into` spares the copy.

        Args:
            max_bytes: Most bytes to return, at least 1; by default some 64 KiB.

        Returns:
            The bytes; empty at the end of the stream only.

        Raises:
            TypeError: ``max_bytes`` is no whole number.
            ValueError: It is not positive.
            trio.BusyResourceError: Another task is receiving.
            trio.BrokenResourceError: The connection is over.
            trio.ClosedResourceError: The stream is closed.

        *Cancellation:* nothing was received and nothing is lost.
        """
        size = checked_size(max_bytes)
        sock = self.socket
        with self._receiving:
            await checkpoint_if_cancelled()
            data = sock.take_now(size)
            if data is not None:
                await cancel_shielded_checkpoint()
                return data
            while data is None:
                await sock.wait_ready(_native.POLL_IN)
                data = sock.take_now(size)
            return data

    @protected
    async def receive_into(self, buffer: Buffer | Span) -> int:
        """Receive some bytes into a buffer; the peer's device may place them there itself.

        Args:
            buffer: A region or a part of one, or any writable contiguous buffer.

        Returns:
            Bytes placed; 0 at the end of the stream, or if the buffer has no room.

        Raises:
            ValueError: The buffer is read-only.
            trio.BusyResourceError: Another task is receiving.
            trio.BrokenResourceError: The connection is over.
            trio.ClosedResourceError: The stream is closed.

        *Cancellation:* nothing was received and nothing is lost.
        """
        with self._receiving:
            return await self.socket.recv_into(buffer)

    @asynccontextmanager
    async def receive_view(self, max_bytes: int | None = None) -> AsyncGenerator[memoryview[int]]:
        """Receive some bytes where they are: ``async with stream.receive_view() as view``.

        Over SMC-R the view is the receive buffer itself, and nothing was copied by this side; elsewhere the bytes were
        copied.  At the end of the block they are consumed and the peer may write there again, so nothing made of
        the view may be used afterwards.  If the block ends with an exception they are not, and come again.

        Args:
            max_bytes: Most bytes of the view, at least 1; by default all that are there, but not always as one piece.

        Yields:
            A view of bytes that cannot be written to; empty at the end of the stream only.

        Raises:
            TypeError: ``max_bytes`` is no whole number.
            ValueError: It is not positive.
            trio.BusyResourceError: Another task is receiving.
            trio.BrokenResourceError: The connection is over.
            trio.ClosedResourceError: The stream is closed.

        *Cancellation:* while it waits, nothing was received; inside the block, as any exception.
        """
        data = await self.receive_some(max_bytes)
        try:
            yield memoryview(data)
        except BaseException:
            self.socket.put_back(data)
            raise

    @protected
    async def aclose(self) -> None:
        """Close in order: what was sent still reaches the peer.

        *Cancellation:* it is closed in any case, and without waiting; see :meth:`exs.Socket.aclose`.
        """
        await self.socket.aclose()

    def abandon(self) -> None:
        """Close at once, without waiting: for emergencies.  The peer sees the connection broken."""
        self.socket.close()


class SocketListener(ListenerBase[SocketStream]):
    """A ``trio.abc.Listener``: takes connections from a listening socket, as streams.

    Args:
        socket: A listening ``SOCK_STREAM`` socket; the listener owns it from now on.

    Attributes:
        socket: The socket.

    Raises:
        TypeError: Not a socket of exs.
        ValueError: Not a listening ``SOCK_STREAM`` socket.
    """

    _kind = SOCK_STREAM

    def _made_of(self, socket: Socket) -> SocketStream:
        return SocketStream(socket)
