# SPDX-License-Identifier: MIT OR Apache-2.0
"""A socket of the core as Python holds it: :class:`SocketHandle`, and its two sides, :class:`Direction`.

Owns the handle from its making to its close, the socket's options and facts, and who uses which direction of it.
Knows nothing of how bytes are moved: that is said by what is built on it, sockets and queues.

Invariant: the handle is given back to the core exactly once, and after that every call refuses.
"""

from __future__ import annotations

import errno
import socket as _socket
import warnings
from collections import deque
from typing import TYPE_CHECKING

import trio
from trio.abc import AsyncResource

from exs import _native, _statistics
from exs._pump import RECEIVING, SENDING, checkpoint, protected
from exs.devices import Device, device_named
from exs.errors import TruncatedError, from_errno

if TYPE_CHECKING:
    from exs._addresses import Address
    from exs._config import Settings
    from exs._native import RawEvent
    from exs._pump import Pump
    from exs._statistics import Statistics

SOCK_STREAM = _socket.SOCK_STREAM
SOCK_SEQPACKET = _socket.SOCK_SEQPACKET

_BUSY = "a queue, or another task, is using this direction of the socket"

_SETTABLE = {
    (_socket.SOL_SOCKET, _socket.SO_REUSEADDR): "reuse_address",
    (_socket.SOL_SOCKET, _socket.SO_REUSEPORT): "reuse_port",
    (_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY): "v6_only",
}


class Direction:
    """One direction of a socket: who owns it, and what a queue left behind.

    Attributes:
        kept: What arrived for an earlier queue and was not taken; the next receive gets it first.
        owner: The queue that is open on it.
    """

    __slots__ = ("_number", "_sock", "kept", "owner")

    def __init__(self, sock: SocketHandle, number: int) -> None:
        self._sock = sock
        self._number = number
        self.owner: object = None
        self.kept: deque[bytes] = deque()

    @property
    def pump(self) -> Pump:
        """The pump of the socket's run."""
        return self._sock._pump

    @property
    def handle(self) -> int:
        """The socket's handle."""
        return self._sock._handle

    @property
    def is_stream(self) -> bool:
        """Whether the socket is a stream."""
        return self._sock._is_stream

    def claim(self, queue: object) -> None:
        """Keep others out.

        Raises:
            trio.BusyResourceError: Somebody is in.
            trio.ClosedResourceError: The socket is closed.
        """
        self.check()
        if self._sock._pump.is_used(self._sock._handle, self._number):
            raise trio.BusyResourceError(_BUSY)
        self.owner = queue

    def release(self) -> None:
        """Let others in again."""
        self.owner = None

    def check(self) -> None:
        """Keep out of a queue's direction, and of a closed socket."""
        if self._sock._closed:
            raise trio.ClosedResourceError("the socket is closed")
        if self.owner is not None:
            raise trio.BusyResourceError(_BUSY)

    def failure(self, event: RawEvent) -> Exception:
        """The exception for an event with an error."""
        return self._sock._failure(event)

    def spoil(self) -> None:
        """A send was taken out of the middle of the stream: refuse what would follow."""
        self._sock._spoiled = True

    def copied(self, nbytes: int) -> None:
        """Count bytes that were copied."""
        self._sock._copied += nbytes
        _statistics.count_copied(nbytes)


class SocketHandle(AsyncResource):
    """What a socket is, whatever is done with it: its options, names and facts, and its end."""

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

    def __init__(self, pump: Pump, kind: int, family: int, settings: Settings, handle: int = 0) -> None:
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
        self._sending = Direction(self, SENDING)
        self._receiving = Direction(self, RECEIVING)
        self._handle = handle or self._make()
        self._closed = False
        pump.adopt(self._handle, self, settings)

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
    def peer_done(self) -> bool:
        """Whether the peer has said that it sends no more, or the connection is over."""
        info = self._pump.context.query(self._handle)
        return info.peer_fin or bool(info.error)

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
        if settings.protocol != "exs":
            text = "SMC-R has no sockets of its own: use exs.open_stream, exs.open_listeners, or exs.serve"
            raise from_errno(errno.EOPNOTSUPP, text)
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
            return truncated(extra, value)
        done = extra if kind == _native.OP_SEND else value if kind == _native.OP_RECV else 0
        return self._pump.context.explain(self._handle, number, setup=setup, transferred=done)


def truncated(length: int, placed: int) -> TruncatedError:
    """The exception for a message that was longer than its buffer."""
    error = TruncatedError(
        errno.EMSGSIZE, f"the message has {length} bytes, the buffer had room for {placed}; the rest is lost"
    )
    error.length = length
    error.placed = error.transferred = placed
    return error
