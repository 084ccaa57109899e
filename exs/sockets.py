# SPDX-License-Identifier: MIT OR Apache-2.0
"""The awaitable ES-API: :class:`Socket`.

Owns what an operation of a socket means: its arguments, its result, its exception, and what a cancelled one did.
The socket's life and facts are :mod:`exs._handles`; how the loop is woken is the pump's.

Invariant: each method checks for cancellation before it does anything and is a checkpoint; one that ends by
``Cancelled`` had the effect that its docstring says, and its buffer is the caller's again.
"""

from __future__ import annotations

import errno
import socket as _socket
from typing import TYPE_CHECKING

from exs import _native
from exs._addresses import Address, family_of, first_address
from exs._handles import SocketHandle, truncated
from exs._native import smc
from exs._pump import RECEIVING, SENDING, cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled, protected
from exs.errors import Error
from exs.queues import ReceiveQueue, SendQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from exs._native import RawEvent, Span
    from exs.pools import BufferPool

__all__ = ["Socket"]

EAGAIN = errno.EAGAIN


class Socket(SocketHandle):
    """A socket of exs; made by :func:`exs.socket` or accepted.

    Operations of one direction may be in flight in several tasks at once; they complete in the order of the calls.
    Used as ``async with``, it is closed in order at the end.

    Attributes:
        type: ``SOCK_STREAM`` or ``SOCK_SEQPACKET``.
        family: ``AF_INET`` or ``AF_INET6``.
    """

    __slots__ = ()

    # --- setting up

    def bind(self, address: Address) -> None:
        """Choose the local address.

        Args:
            address: ``(host, port)``; the host in numbers, ``""`` for any; port 0 for a free one.

        Raises:
            exs.Error: The address is in use, or not of this host.
            OSError: The host is no numeric address.

        *Source:* ES-API, ``exs_bind``.
        """
        self._check_open()
        self._take_family(family_of(address[0]) or self.family)
        self._pump.context.bind(self._handle, _native.pack_address(self.family, address))

    def listen(self, backlog: int = 128) -> None:
        """Wait for connections.

        Args:
            backlog: Connections that may wait to be accepted.

        Raises:
            exs.NoDeviceError: No device, or not the path that was asked for; says why.
            exs.Error: The address is in use.

        *Source:* ES-API, ``exs_listen``.
        """
        self._check_open()
        self._pump.context.listen(self._handle, backlog)

    @protected
    async def connect(self, address: Address) -> None:
        """Connect to a peer.

        Args:
            address: ``(host, port)``; the first address of the host is taken.

        Raises:
            exs.Error: Nobody listens there, the peer refused or speaks another protocol (``errno`` says which).
            exs.NoDeviceError: No device, or not the path that was asked for; says why.
            OSError: The host has no address.

        *Cancellation:* the socket is closed.

        *Source:* ES-API, ``exs_connect``.
        """
        self._check_open()
        try:
            family, numeric = await first_address(address)
            self._take_family(family)
            raw = _native.pack_address(family, numeric)
            event = await self._pump.operate(self._caller.connect, self._handle, raw, keep=raw)
        except Exception:
            raise  # of the arguments: nothing was begun
        except BaseException:
            self.close()
            raise
        if event[3]:
            raise self._failure(event, setup=True)

    @protected
    async def accept(self) -> tuple[Socket, Address]:
        """Take a connection from a listening socket.

        Returns:
            The connected socket, with the listener's options, and the peer's address.

        Raises:
            exs.Error: ``EINVAL``: not listening; ``ECONNABORTED``: the peer went away; ``EMFILE`` and its kin.

        *Cancellation:* no connection was taken.

        *Source:* ES-API, ``exs_accept``.
        """
        self._check_open()
        event = await self._pump.operate(self._caller.accept, self._handle)
        if event[3]:
            raise self._failure(event)
        sock = Socket(self._pump, self.type, self.family, self._settings, event[1])
        try:
            return sock, sock.getpeername()
        except Error as gone:
            sock.close()
            raise _native.error(errno.ECONNABORTED) from gone

    # --- sending

    @protected
    async def send(self, buffer: Buffer | Span) -> int:
        """Send a buffer, whole.

        Args:
            buffer: A region or a part of one, or any contiguous buffer.

        Returns:
            Bytes sent: all of them.

        Raises:
            exs.Error: The connection is over (``.transferred``: bytes handed over), or the call was refused.
            trio.BusyResourceError: A send queue is open.
            trio.ClosedResourceError: The socket is closed.

        *Cancellation:* nothing was sent; but of a stream's send that was partly out, the rest is dropped, and the
        socket refuses further sends, since the peer's byte position is unknown.

        *Source:* ES-API, ``exs_send``.
        """
        side = self._sending
        if self._closed or side.owner is not None:
            side.check()
        span = _native.readable(buffer)
        if (self._is_stream and not span.length) or self._spoiled:
            return await self._send_nothing()
        event = await self._pump.operate(self._caller.send, self._handle, span, 0, keep=span, direction=SENDING)
        if event[3]:
            raise self._failure(event)
        return span.length

    @protected
    async def sendmsg(self, buffers: Sequence[Buffer | Span]) -> int:
        """Send several buffers as one.

        Args:
            buffers: What :meth:`send` takes, in order.

        Returns:
            Bytes sent: all of them.

        Raises:
            exs.Error: As for :meth:`send`.

        *Cancellation:* as for :meth:`send`.

        *Source:* ES-API, ``exs_sendmsg``.
        """
        self._sending.check()
        spans = [_native.readable(buffer) for buffer in buffers]
        total = sum(span.length for span in spans)
        if (self._is_stream and not total) or self._spoiled:
            return await self._send_nothing()
        pieces = _native.Pieces.of(spans)
        event = await self._pump.operate(self._caller.sendmsg, self._handle, pieces, 0, keep=spans, direction=SENDING)
        if event[3]:
            raise self._failure(event)
        return total

    async def _send_nothing(self) -> int:
        await checkpoint()
        self._check_open()
        if self._spoiled:
            raise _native.error(errno.EPIPE)
        return 0

    @protected
    async def send_eof(self) -> None:
        """Tell the peer that nothing more will be sent; receiving goes on.

        Raises:
            exs.Error: The connection is over.

        *Cancellation:* nothing was done, or just the waiting was given up: the mark follows what was accepted before,
        and nothing more can be sent.  It may be called again, to wait.

        *Source:* ES-API, ``exs_shutdown``.
        """
        self._sending.check()
        event = await self._pump.operate(self._caller.shutdown, self._handle, _socket.SHUT_WR)
        if event[3]:
            raise self._failure(event)

    def send_queue(self, depth: int = 8) -> SendQueue:
        """A queue for many sends from one task: ``async with sock.send_queue() as tx``.

        Args:
            depth: Most sends in flight.
        """
        return SendQueue(self._sending, depth)

    # --- receiving

    @protected
    async def recv_into(self, buffer: Buffer | Span, *, waitall: bool = False) -> int:
        """Receive into a buffer; nothing is copied where the peer sends after this was called.

        Args:
            buffer: A region or a part of one, or any writable contiguous buffer.
            waitall: Wait until it is full (stream).

        Returns:
            Bytes placed; 0 at the end of the stream, or if the buffer has no room.

        Raises:
            exs.TruncatedError: The message was longer than the buffer.
            exs.Error: The connection is over, or the call was refused.
            ValueError: The buffer is read-only.
            trio.BusyResourceError: A receive queue is open.
            trio.ClosedResourceError: The socket is closed.

        *Cancellation:* nothing was received and nothing is lost; a ``waitall`` that was partly filled returns the
        count instead.

        *Source:* ES-API, ``exs_recv``.
        """
        event = await self._receive(_native.writable(buffer), waitall)
        return event[1]

    @protected
    async def recv(self, nbytes: int) -> bytes:
        """Receive into new memory.

        Args:
            nbytes: Most bytes to receive.

        Returns:
            The bytes; empty at the end of the stream.

        Raises:
            exs.Error: As for :meth:`recv_into`.

        *Cancellation:* as for :meth:`recv_into`.
        """
        room = bytearray(nbytes)
        event = await self._receive(_native.writable(room), False)
        return bytes(memoryview(room)[: event[1]])

    @protected
    async def recvmsg_into(self, buffers: Sequence[Buffer | Span]) -> int:
        """Receive into several buffers as if they were one.

        Args:
            buffers: What :meth:`recv_into` takes, in order.

        Returns:
            Bytes placed, over all buffers.

        Raises:
            exs.Error: As for :meth:`recv_into`.

        *Cancellation:* as for :meth:`recv_into`.

        *Source:* ES-API, ``exs_recvmsg``.
        """
        self._receiving.check()
        spans = [_native.writable(buffer) for buffer in buffers]
        if self._receiving.kept:
            for span in spans:
                if span.length:
                    return (await self._receive(span, False))[1]
        pieces = _native.Pieces.of(spans)
        event = await self._pump.operate(self._caller.recvmsg, self._handle, pieces, 0, keep=spans, direction=RECEIVING)
        return self._received(event)[1]

    @protected
    async def receive_event(self, span: Span) -> RawEvent:
        """As recv_into, but returns the event: an empty message and the end differ in its flags."""
        return await self._receive(span, False)

    async def _receive(self, span: Span, waitall: bool) -> RawEvent:
        side = self._receiving
        if self._closed or side.owner is not None:
            side.check()
        if side.kept:
            return await self._receive_kept(span, waitall)
        event = await self._pump.operate(
            self._caller.recv,
            self._handle,
            span,
            _native.WAITALL if waitall else 0,
            keep=span,
            direction=RECEIVING,
        )
        return self._received(event)

    def _received(self, event: RawEvent) -> RawEvent:
        if event[3] or event[5] & _native.EV_TRUNCATED:
            raise self._failure(event)
        return event

    async def _receive_kept(self, span: Span, waitall: bool) -> RawEvent:
        """First what a receive queue left behind."""
        await checkpoint_if_cancelled()
        side = self._receiving
        kept = side.kept
        room = _native.view(span.pointer, span.length, False)
        done = 0
        while kept and done < span.length:
            data = kept.popleft()
            part = data[: span.length - done]
            room[done : done + len(part)] = part
            done += len(part)
            if not self._is_stream:
                if len(part) < len(data):
                    raise truncated(len(data), len(part))
                break
            if len(part) < len(data):
                kept.appendleft(data[len(part) :])
        side.copied(done)
        if waitall and done < span.length:
            try:
                event = await self._receive(_part(span, done), True)
            except BaseException:
                kept.appendleft(bytes(room[:done]))
                raise
            return event[0], event[1] + done, *event[2:]
        await cancel_shielded_checkpoint()
        return 0, done, 0, 0, _native.OP_RECV, 0

    def take_now(self, most: int) -> bytes | None:
        """What is there now, copied; ``None`` if nothing is, empty at the end.  Not a checkpoint."""
        side = self._receiving
        side.check()
        if side.kept:
            data = side.kept.popleft()
            if len(data) > most:
                side.kept.appendleft(data[most:])
                data = data[:most]
            return data
        pump = self._pump
        pump.check()
        scratch = pump.scratch
        scratch.length = min(most, pump.scratch_size)
        code = self._caller.recv(self._handle, scratch, _native.DONTWAIT, 0, pump.eq)
        if code == -EAGAIN:
            return None
        event = self._caller.event if code == 1 else (0, 0, 0, -code, 0, 0)
        if event[3]:
            raise self._failure(event)
        return pump.scratch_view[: event[1]].tobytes()

    @property
    def has_kept(self) -> bool:
        """Whether bytes are here that were received and not handed out: they come before any others."""
        return bool(self._receiving.kept)

    def count_copied(self, nbytes: int) -> None:
        """Bytes of a loan were copied, on our side of the core."""
        self._receiving.copied(nbytes)

    def put_back(self, data: bytes) -> None:
        """Received after all for the next receive."""
        if data:
            self._receiving.kept.appendleft(data)

    def lend(self, most: int) -> memoryview[int] | None:
        """A view of what lies in the receive buffer of SMC-R; ``None`` if nothing does, empty at the end.

        Until :meth:`give_back` nothing else is received, and the socket cannot be closed.  Not a checkpoint.
        """
        self._receiving.check()
        self._pump.check()
        try:
            found = smc.recv_view(self._handle)
        except Error as error:
            raise self._failure((0, 0, 0, error.errno or 0, 0, 0)) from None
        if found is None:
            return None
        pointer, length = found
        return _native.view(pointer, min(length, most), True)

    def fail(self, number: int) -> None:
        """End a connection of SMC-R whose peer is gone: every operation ends with this errno."""
        smc.connection_abort(self._handle, number)

    def give_back(self, count: int) -> None:
        """End the loan: so many bytes were read, the others come again."""
        smc.recv_release(self._handle, count)

    @protected
    async def wait_ready(self, flags: int) -> None:
        """Wait until a receive (``POLL_IN``) or a send of one byte (``POLL_OUT``) would not have to wait."""
        event = await self._pump.operate(self._caller.poll, self._handle, flags)
        if event[3]:
            raise self._failure(event)

    def receive_queue(self, pool: BufferPool, depth: int = 8) -> ReceiveQueue:
        """A queue for many receives in one task: ``async with sock.receive_queue(pool) as rx``.

        Args:
            pool: Where to receive; its slabs are given back at the end of the block.
            depth: Receives posted ahead.
        """
        return ReceiveQueue(self._receiving, pool, depth)


def _part(span: Span, start: int) -> Span:
    return _native.Span(span.pointer + start, span.length - start, span.handle, span.flags)
