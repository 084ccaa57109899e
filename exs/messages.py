# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whole messages as trio knows them: :class:`MessageChannel`, :class:`MessageListener`, and what makes them.

Owns the promises of ``trio.abc.Channel`` over ``SOCK_SEQPACKET``: the end of the channel, Closed, Broken and Busy.
All that moves bytes is the socket's.

Invariant: one call of ``send`` is one message at the peer, of the same length or refused, never cut in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.abc import Channel

from exs import _native
from exs._dial import dial
from exs._exclusive import Exclusive
from exs._handles import SOCK_SEQPACKET
from exs._listen import ListenerBase, listen
from exs._pump import protected
from exs.memory import Access, MemoryRegion
from exs.sockets import Socket

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from exs._config import Options
    from exs._native import Span

__all__ = ["MessageChannel", "MessageListener", "open_message_channel", "open_message_listeners"]


class MessageChannel(Channel["Buffer"]):
    """A channel of messages over a connected socket of exs.

    Args:
        socket: A connected ``SOCK_SEQPACKET`` socket; the channel owns it from now on.

    Attributes:
        socket: The socket, for its facts, queues and statistics.

    Raises:
        TypeError: Not a socket of exs.
        ValueError: Not a ``SOCK_SEQPACKET`` socket.
    """

    def __init__(self, socket: Socket) -> None:
        if not isinstance(socket, Socket):
            raise TypeError("MessageChannel needs an exs.Socket")
        if socket.type != SOCK_SEQPACKET:
            raise ValueError("MessageChannel needs a SOCK_SEQPACKET socket")
        self.socket = socket
        self._sending = Exclusive("sending on this channel")
        self._receiving = Exclusive("receiving on this channel")
        self._room: MemoryRegion | None = None

    @protected
    async def send(self, value: Buffer | Span) -> None:
        """Send one message, once the peer has a receive posted for it.

        Args:
            value: A region or a part of one, or any contiguous buffer; it may be empty.

        Raises:
            trio.BusyResourceError: Another task is sending.
            trio.BrokenResourceError: The connection is over.
            trio.ClosedResourceError: The channel is closed.
            exs.TruncatedError: With ``Options(strict_size=True)``: the peer's buffer is too small.

        *Cancellation:* nothing was sent.
        """
        with self._sending:
            await self.socket.send(value)

    @protected
    async def receive(self) -> bytes:
        """Receive one message into new memory; :meth:`receive_into` spares the copy.

        Returns:
            The message, of at most ``Options.max_message_bytes``.

        Raises:
            trio.EndOfChannel: The peer has closed, and all was received.
            trio.BusyResourceError: Another task is receiving.
            trio.BrokenResourceError: The connection is over.
            trio.ClosedResourceError: The channel is closed.
            exs.TruncatedError: The message was longer.

        *Cancellation:* nothing was received and nothing is lost.
        """
        with self._receiving:
            room = self._room
            if room is None:
                room = self._room = MemoryRegion(bytearray(self.socket.max_message_bytes), Access.WRITE)
            return bytes(room.view[: await self._receive(room)])

    @protected
    async def receive_into(self, buffer: Buffer | Span) -> int:
        """Receive one message into a buffer.

        Args:
            buffer: A region or a part of one, or any writable contiguous buffer.

        Returns:
            Bytes of the message.

        Raises:
            trio.EndOfChannel: The peer has closed, and all was received.
            trio.BusyResourceError: Another task is receiving.
            trio.BrokenResourceError: The connection is over.
            trio.ClosedResourceError: The channel is closed.
            exs.TruncatedError: The message was longer than the buffer; the rest is lost.
            ValueError: The buffer is read-only.

        *Cancellation:* nothing was received and nothing is lost.
        """
        with self._receiving:
            return await self._receive(_native.writable(buffer))

    async def _receive(self, span: Span) -> int:
        event = await self.socket.receive_event(span)
        if event[5] & _native.EV_EOF:
            raise trio.EndOfChannel
        return event[1]

    @protected
    async def aclose(self) -> None:
        """Close in order: what was sent still reaches the peer.

        *Cancellation:* it is closed in any case, and without waiting; see :meth:`exs.Socket.aclose`.
        """
        try:
            await self.socket.aclose()
        finally:
            self._give_room_back()

    def _give_room_back(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.close_when_idle()

    def __del__(self) -> None:
        """The socket warns if it was forgotten; the room of ``receive`` is no business of the program."""
        if getattr(self, "_room", None) is not None:
            self._give_room_back()


class MessageListener(ListenerBase[MessageChannel]):
    """A ``trio.abc.Listener``: takes connections from a listening socket, as channels.

    Args:
        socket: A listening ``SOCK_SEQPACKET`` socket; the listener owns it from now on.

    Attributes:
        socket: The socket.

    Raises:
        TypeError: Not a socket of exs.
        ValueError: Not a listening ``SOCK_SEQPACKET`` socket.
    """

    _kind = SOCK_SEQPACKET

    def _made_of(self, socket: Socket) -> MessageChannel:
        return MessageChannel(socket)


async def open_message_channel(
    host: str | bytes,
    port: int,
    *,
    happy_eyeballs_delay: float | None = 0.25,
    options: Options | None = None,
) -> MessageChannel:
    """Connect to a host by name; its addresses are raced as by :func:`exs.open_stream`.

    Args:
        host: Name or address.
        port: Port number.
        happy_eyeballs_delay: Seconds to wait for an address before the next is tried beside it.
        options: Choices for the socket.

    Returns:
        The connected channel.

    Raises:
        OSError: As :func:`exs.open_stream`.

    *Cancellation:* nothing is left open.
    """
    return MessageChannel(await dial(host, port, SOCK_SEQPACKET, options, happy_eyeballs_delay))


async def open_message_listeners(
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    options: Options | None = None,
) -> list[MessageListener]:
    """Listen for channels; serve them with ``trio.serve_listeners``.

    Args:
        port: Port number; 0 for a free one (each address gets its own).
        host: Where to listen; ``None`` for all addresses of this machine.
        backlog: Connections that may wait to be accepted; by default as many as the system allows.
        options: Choices for the listeners and for what they accept.

    Returns:
        A listener for each address.

    Raises:
        OSError: As :func:`exs.open_listeners`.
    """
    return [MessageListener(sock) for sock in await listen(host, port, SOCK_SEQPACKET, backlog, options)]
