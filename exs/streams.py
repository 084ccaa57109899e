# SPDX-License-Identifier: MIT OR Apache-2.0
"""Byte streams as trio knows them: :class:`SocketStream`, :class:`SocketListener`, and the functions that make them.

Owns the promises of ``trio.abc.HalfCloseableStream``: Closed, Broken and Busy, one user a direction.  All that
moves bytes is the socket's.

Invariant: a stream raises of trio's resource errors only, besides what a wrong argument raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.abc import HalfCloseableStream

from exs import _native
from exs._dial import dial
from exs._exclusive import Exclusive
from exs._handles import SOCK_STREAM
from exs._listen import ListenerBase, listen
from exs._pump import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, protected
from exs.sockets import Socket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Buffer

    from exs._config import Options
    from exs._native import Span

__all__ = ["SocketListener", "SocketStream", "open_listeners", "open_stream", "serve"]

DEFAULT_RECEIVE_BYTES = 65536


class SocketStream(HalfCloseableStream):
    """A stream over a connected socket of exs.

    Args:
        socket: A connected ``SOCK_STREAM`` socket; the stream owns it from now on.

    Attributes:
        socket: The socket, for its facts, queues and statistics.

    Raises:
        TypeError: Not a socket of exs.
        ValueError: Not a ``SOCK_STREAM`` socket.
    """

    def __init__(self, socket: Socket) -> None:
        if not isinstance(socket, Socket):
            raise TypeError("SocketStream needs an exs.Socket")
        if socket.type != SOCK_STREAM:
            raise ValueError("SocketStream needs a SOCK_STREAM socket")
        self.socket = socket
        self._sending = Exclusive("sending on this stream")
        self._receiving = Exclusive("receiving on this stream")
        self._eof_asked = self._eof_sent = False

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
        if max_bytes is None:
            max_bytes = DEFAULT_RECEIVE_BYTES
        elif not isinstance(max_bytes, int):
            raise TypeError(f"max_bytes must be a whole number, not {max_bytes!r}")
        elif max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        sock = self.socket
        with self._receiving:
            await checkpoint_if_cancelled()
            data = sock.take_now(max_bytes)
            if data is not None:
                await cancel_shielded_checkpoint()
                return data
            while data is None:
                await sock.wait_ready(_native.POLL_IN)
                data = sock.take_now(max_bytes)
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

    @protected
    async def aclose(self) -> None:
        """Close in order: what was sent still reaches the peer.

        *Cancellation:* it is closed in any case, and without waiting; see :meth:`exs.Socket.aclose`.
        """
        await self.socket.aclose()


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


async def open_stream(
    host: str | bytes,
    port: int,
    *,
    happy_eyeballs_delay: float | None = 0.25,
    options: Options | None = None,
) -> SocketStream:
    """Connect to a host by name; its addresses are raced as by ``trio.open_tcp_stream``.

    Args:
        host: Name or address.
        port: Port number.
        happy_eyeballs_delay: Seconds to wait for an address before the next is tried beside it.
        options: Choices for the socket.

    Returns:
        The connected stream.

    Raises:
        OSError: No address answers; the causes are in ``__cause__``.  :class:`exs.NoDeviceError` if no device, or
            not the path that was asked for.

    *Cancellation:* nothing is left open.
    """
    return SocketStream(await dial(host, port, SOCK_STREAM, options, happy_eyeballs_delay))


async def open_listeners(
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    options: Options | None = None,
) -> list[SocketListener]:
    """Listen for streams.

    Args:
        port: Port number; 0 for a free one (each address gets its own).
        host: Where to listen; ``None`` for all addresses of this machine.
        backlog: Connections that may wait to be accepted; by default as many as the system allows.
        options: Choices for the listeners and for what they accept.

    Returns:
        A listener for each address.

    Raises:
        exs.NoDeviceError: No device, or not the path that was asked for.
        OSError: An address is in use.
    """
    return [SocketListener(sock) for sock in await listen(host, port, SOCK_STREAM, backlog, options)]


async def serve(
    handler: Callable[[SocketStream], Awaitable[object]],
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    options: Options | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen, and run ``handler(stream)`` in a task of its own for each connection; as ``trio.serve_tcp``.

    Args:
        handler: Called for each connection; the stream is closed when it returns.
        port: Port number; 0 for a free one.
        host: Where to listen; ``None`` for all addresses of this machine.
        backlog: Connections that may wait to be accepted.
        options: Choices for the listeners and for what they accept.
        handler_nursery: Where to run the handlers; by default a nursery of this call.
        task_status: ``nursery.start`` gets the listeners by it.

    Raises:
        OSError: As :func:`open_listeners`.

    *Cancellation:* the only way in which it ends; the listeners are closed.
    """
    listeners = await open_listeners(port, host=host, backlog=backlog, options=options)
    await trio.serve_listeners(handler, listeners, handler_nursery=handler_nursery, task_status=task_status)
