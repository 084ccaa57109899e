# SPDX-License-Identifier: MIT OR Apache-2.0
"""The awaitable ES-API: :class:`Socket`, and its methods as functions under the names of the standard.

Owns a socket of the core from :func:`socket` to its close, and who uses which direction of it.  Knows nothing of
how the loop is woken; that is the pump's.

Invariant: each method checks for cancellation before it does anything and is a checkpoint; one that ends by
``Cancelled`` had the effect that its docstring says, and its buffer is the caller's again.
"""

from __future__ import annotations

import errno
import socket as _socket
import warnings
from collections import deque
from typing import TYPE_CHECKING, Self

import trio

from exs import _config, _native, _statistics
from exs._pump import (
    RECEIVING,
    SENDING,
    Pump,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_pump,
    protected,
)
from exs.devices import Device, device_named
from exs.errors import Error, TruncatedError
from exs.queues import ReceiveQueue, SendQueue

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from typing_extensions import Buffer

    from exs._native import RawEvent, Span
    from exs._statistics import Statistics
    from exs.memory import BufferPool

__all__ = [
    "SOCK_SEQPACKET",
    "SOCK_STREAM",
    "Socket",
    "accept",
    "connect",
    "recv",
    "recv_into",
    "send",
    "socket",
]

SOCK_STREAM = _socket.SOCK_STREAM
SOCK_SEQPACKET = _socket.SOCK_SEQPACKET

Address = tuple[str, int] | tuple[str, int, int, int]

EAGAIN = errno.EAGAIN


def socket(
    type: int = SOCK_STREAM,  # noqa: A002  the name that socket.socket gives it
    options: _config.Options | None = None,
    *,
    family: int = _socket.AF_INET,
) -> Socket:
    """A new socket; it belongs to this trio run.

    Args:
        type: ``SOCK_STREAM`` for bytes, ``SOCK_SEQPACKET`` for whole messages.
        options: What to choose; fields left out have their defaults.
        family: ``AF_INET`` or ``AF_INET6``; ``bind`` and ``connect`` change it to that of their address.

    Returns:
        The socket, not connected.

    Raises:
        RuntimeError: Not inside ``trio.run``.
        ValueError: No such type or family.

    *Source:* ES-API, ``exs_socket``.
    """
    if type not in (SOCK_STREAM, SOCK_SEQPACKET):
        raise ValueError(f"type must be SOCK_STREAM or SOCK_SEQPACKET, not {type!r}")
    if family not in (_socket.AF_INET, _socket.AF_INET6):
        raise ValueError(f"family must be AF_INET or AF_INET6, not {family!r}")
    return Socket(current_pump(), int(type), int(family), _config.resolve(options))


class _Side:
    """One direction of a socket: who owns it, and what a queue left behind."""

    __slots__ = ("_kept", "number", "owner", "sock")

    def __init__(self, sock: Socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.owner: object = None
        self._kept: deque[bytes] = deque()

    @property
    def pump(self) -> Pump:
        return self.sock._pump

    @property
    def handle(self) -> int:
        return self.sock._handle

    @property
    def is_stream(self) -> bool:
        return self.sock._is_stream

    def claim(self, queue: object) -> None:
        self.check()
        if self.sock._pump.is_used(self.sock._handle, self.number):
            raise trio.BusyResourceError(_BUSY)
        self.owner = queue

    def release(self) -> None:
        self.owner = None

    def check(self) -> None:
        """Keep out of a queue's direction, and of a closed socket."""
        if self.sock._closed:
            raise trio.ClosedResourceError("the socket is closed")
        if self.owner is not None:
            raise trio.BusyResourceError(_BUSY)

    def failure(self, event: RawEvent) -> Exception:
        return self.sock._failure(event)

    def spoil(self) -> None:
        self.sock._spoiled = True

    def kept(self) -> deque[bytes]:
        return self._kept

    def copied(self, nbytes: int) -> None:
        self.sock._copied += nbytes
        _statistics.count_copied(nbytes)


_BUSY = "a queue, or another task, is using this direction of the socket"


class Socket:
    """A socket of exs; made by :func:`socket` or accepted.

    Operations of one direction may be in flight in several tasks at once; they complete in the order of the calls.
    Used as ``async with``, it is closed in order at the end.

    Attributes:
        type: ``SOCK_STREAM`` or ``SOCK_SEQPACKET``.
        family: ``AF_INET`` or ``AF_INET6``.
    """

    __slots__ = (
        "__weakref__",
        "_caller",
        "_closed",
        "_copied",
        "_flags",
        "_handle",
        "_is_stream",
        "_last",
        "_pump",
        "_receiving",
        "_sending",
        "_settings",
        "_spoiled",
        "family",
        "type",
    )

    def __init__(self, pump: Pump, kind: int, family: int, settings: _config.Settings, handle: int = 0) -> None:
        self.type: int = kind
        self.family: int = family
        self._pump = pump
        self._caller = pump.caller
        self._settings = settings
        self._is_stream = kind == SOCK_STREAM
        self._closed = True  # until there is something to close
        self._spoiled = False
        self._copied = 0
        self._last: tuple[Statistics, str, str] | None = None
        self._flags = {"reuse_address": True, "reuse_port": False, "v6_only": True}
        self._sending = _Side(self, SENDING)
        self._receiving = _Side(self, RECEIVING)
        self._handle = handle or self._make()
        self._closed = False
        pump.adopt(self._handle, self, settings)

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
        self._take_family(_family(address[0]) or self.family)
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
        family, numeric = await _resolve(address)
        self._take_family(family)
        raw = _native.pack_address(family, numeric)
        try:
            event = await self._pump.operate(self._caller.connect, self._handle, raw, keep=raw)
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
        except Error:  # it has gone again
            sock.close()
            raise

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

        *Cancellation:* nothing more can be sent, but whether the peer hears of it is open: it may be called again.

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
            Bytes placed; 0 at the end of the stream.

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
        if self._receiving.kept():
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
        if side._kept:
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
        kept = side._kept
        room = _native.view(span.pointer, span.length, False)
        done = 0
        while kept and done < span.length:
            data = kept.popleft()
            part = data[: span.length - done]
            room[done : done + len(part)] = part
            done += len(part)
            if not self._is_stream:
                if len(part) < len(data):
                    raise _truncated(len(data), len(part))
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
        if side._kept:
            data = side._kept.popleft()
            if len(data) > most:
                side._kept.appendleft(data[most:])
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

    # --- closing

    @protected
    async def aclose(self) -> None:
        """Close in order: what was accepted goes out, then the end mark; returns when the device has it all.

        *Cancellation:* the socket is closed in any case, and without waiting.  If nothing was in flight and the device
        takes the end mark at once, in order; else the connection is ended, and the peer sees it broken.

        *Source:* ES-API, ``exs_close``.
        """
        if self._closed:
            await checkpoint()
            return
        self._pump.check()
        idle = self._shut()
        try:
            await self._pump.close(self._handle, idle=idle)
        finally:
            self._pump.freed(self._handle)

    def close(self) -> None:
        """Close at once, without waiting: for emergencies.  Operations in flight end with ``ClosedResourceError``."""
        if self.abandon():
            self._pump.freed(self._handle)

    def abandon(self) -> bool:
        """End it at once; true if it was open."""
        if self._closed:
            return False
        self._shut()
        self._pump.context.abandon(self._handle)
        return True

    def _shut(self) -> bool:
        """Refuse new operations, and remember what may still be asked; whether no operation is in flight."""
        ctx = self._pump.context
        idle = False
        try:
            info = ctx.query(self._handle)
            idle = info.ops_in_flight == 0
            self._last = _statistics.of_socket(ctx, self._handle, self._copied), info.device, info.path
        except OSError:
            pass  # dead already: a fork, or the process ends
        self._closed = True
        self._pump.sockets.pop(self._handle, None)
        return idle

    async def __aenter__(self) -> Self:
        """The socket itself; no checkpoint, since what is raised here would leave it open."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        await self.aclose()

    def __del__(self) -> None:
        """A forgotten socket: end it, and say so."""
        if not getattr(self, "_closed", True):
            self.abandon()
            warnings.warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)

    # --- facts

    @property
    def closed(self) -> bool:
        """Whether this side has closed it."""
        return self._closed

    @property
    def send_shut(self) -> bool:
        """Whether nothing more can be sent."""
        return self._closed or self._spoiled or self._pump.context.query(self._handle).send_shut

    @property
    def max_message_bytes(self) -> int:
        """``Options.max_message_bytes``, as it was chosen."""
        return self._settings.max_message_bytes

    @property
    def listening(self) -> bool:
        """Whether it waits for connections."""
        return not self._closed and self._pump.context.query(self._handle).state == _native.SOCK_LISTENING

    @property
    def device(self) -> Device | None:
        """The device that carries it; ``None`` before it is connected or listens."""
        name = self._last[1] if self._last else self._pump.context.query(self._handle).device
        return device_named(name) if name else None

    @property
    def path(self) -> str:
        """How the soft device moves its bytes: ``"tcp"``, ``"shm-vm"``, ``"shm-ring"``; else empty."""
        return self._last[2] if self._last else self._pump.context.query(self._handle).path

    def statistics(self) -> Statistics:
        """Its counters; of a closed socket, those at its close."""
        if self._last:
            return self._last[0]
        return _statistics.of_socket(self._pump.context, self._handle, self._copied)

    def getsockname(self) -> Address:
        """The local address.  *Source:* ES-API, ``exs_getsockname``."""
        self._check_open()
        return self._pump.context.sockname(self._handle)

    def getpeername(self) -> Address:
        """The peer's address.

        Raises:
            exs.Error: ``ENOTCONN``: there is none.

        *Source:* ES-API, ``exs_getpeername``.
        """
        self._check_open()
        return self._pump.context.peername(self._handle)

    def getsockopt(self, level: int, option: int) -> int:
        """An option of the socket: ``SO_TYPE``, ``SO_DOMAIN``, ``SO_ERROR``, ``SO_ACCEPTCONN``, and what may be set.

        Raises:
            exs.Error: ``ENOPROTOOPT``: there is no such option.
        """
        self._check_open()
        if (level, option) in _SETTABLE:
            return int(self._flags[_SETTABLE[level, option]])
        if (level, option) == (_socket.IPPROTO_TCP, _socket.TCP_NODELAY):
            return 1
        if level == _socket.SOL_SOCKET:
            if option == _socket.SO_TYPE:
                return self.type
            if option == _socket.SO_DOMAIN:
                return self.family
            if option == _socket.SO_ERROR:
                return self._pump.context.query(self._handle).error
            if option == _socket.SO_ACCEPTCONN:
                return int(self.listening)
        raise _native.error(errno.ENOPROTOOPT)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Set an option, before ``bind``: ``SO_REUSEADDR``, ``SO_REUSEPORT``, ``IPV6_V6ONLY``.

        ``TCP_NODELAY`` is always on; setting it does nothing.  All else is chosen by :class:`exs.Options`.

        Raises:
            exs.Error: ``ENOPROTOOPT``: there is no such option; ``EINVAL``: too late.
        """
        self._check_open()
        if (level, option) == (_socket.IPPROTO_TCP, _socket.TCP_NODELAY):
            return
        name = _SETTABLE.get((level, option))
        if name is None:
            raise _native.error(errno.ENOPROTOOPT)
        if self._flags[name] != bool(value):
            self._flags[name] = bool(value)
            self._renew()

    def __repr__(self) -> str:
        """For people."""
        kind = "stream" if self._is_stream else "seqpacket"
        return f"<exs.Socket {kind} {'closed' if self._closed else hex(self._handle)}>"

    # --- inside

    def _make(self) -> int:
        pump, settings = self._pump, self._settings
        return pump.context.socket_new(self.family, self.type, settings, pump.group_for(settings), **self._flags)

    def _take_family(self, family: int) -> None:
        """Be of the family of an address."""
        if family != self.family:
            self.family = family
            self._renew()

    def _renew(self) -> None:
        """What the core must know from the start has changed: begin again, if nothing has happened yet."""
        context = self._pump.context
        if context.query(self._handle).state != _native.SOCK_NEW:
            raise _native.error(errno.EINVAL)
        self._pump.sockets.pop(self._handle, None)
        context.abandon(self._handle)
        self._handle = self._make()
        self._pump.adopt(self._handle, self, self._settings)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the socket is closed")
        self._pump.check()

    def _failure(self, event: RawEvent, *, setup: bool = False) -> Exception:
        """The exception for an event, or for a refused post."""
        if self._closed:
            return trio.ClosedResourceError("the socket was closed")
        _, value, extra, number, kind, flags = event
        if not number and flags & _native.EV_TRUNCATED:
            return _truncated(extra, value)
        done = extra if kind == _native.OP_SEND else value if kind == _native.OP_RECV else 0
        return self._pump.context.explain(self._handle, number, setup=setup, transferred=done)


_SETTABLE = {
    (_socket.SOL_SOCKET, _socket.SO_REUSEADDR): "reuse_address",
    (_socket.SOL_SOCKET, _socket.SO_REUSEPORT): "reuse_port",
    (_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY): "v6_only",
}


def _truncated(length: int, placed: int) -> TruncatedError:
    error = TruncatedError(
        errno.EMSGSIZE, f"the message has {length} bytes, the buffer had room for {placed}; the rest is lost"
    )
    error.length = length
    error.placed = error.transferred = placed
    return error


def _part(span: Span, start: int) -> Span:
    return _native.Span(span.pointer + start, span.length - start, span.handle, span.flags)


def _family(host: str) -> int:
    """The family of a numeric address, 0 if it is none."""
    if not host:
        return 0
    for family in (_socket.AF_INET, _socket.AF_INET6):
        try:
            _socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return family
    return 0


async def _resolve(address: Address) -> tuple[int, Address]:
    """Family and numeric form of an address."""
    host = address[0]
    if not isinstance(host, str):
        raise TypeError(f"the host must be a string, not {host!r}")
    family = _family(host)
    if family:
        return family, address
    found = await trio.socket.getaddrinfo(host, address[1], type=SOCK_STREAM)
    if not found:
        raise OSError(errno.EHOSTUNREACH, f"{host} has no address")
    family, _, _, _, numeric = found[0]
    raw = _native.pack_address(family, (str(numeric[0]), int(numeric[1]), *numeric[2:]))
    return int(family), _native.unpack_address(raw)


async def connect(sock: Socket, address: Address) -> None:
    """See :meth:`Socket.connect`."""
    await sock.connect(address)


async def accept(sock: Socket) -> tuple[Socket, Address]:
    """See :meth:`Socket.accept`."""
    return await sock.accept()


async def send(sock: Socket, buffer: Buffer | Span) -> int:
    """See :meth:`Socket.send`."""
    return await sock.send(buffer)


async def recv(sock: Socket, nbytes: int) -> bytes:
    """See :meth:`Socket.recv`."""
    return await sock.recv(nbytes)


async def recv_into(sock: Socket, buffer: Buffer | Span, *, waitall: bool = False) -> int:
    """See :meth:`Socket.recv_into`."""
    return await sock.recv_into(buffer, waitall=waitall)
