# SPDX-License-Identifier: MIT OR Apache-2.0
"""The Extended Sockets API, literally: its names, its argument order, its event queues.  Needs no trio.

Owns the rules of the arguments; what stands behind a descriptor is :mod:`exs._descriptors`.  A call that is
accepted returns ``None`` and yields exactly one event on its queue; one that is refused raises :class:`exs.Error`
and yields none.  ``qh=None`` waits instead, without the interpreter lock, and returns the result.

From an accepted post until its event is dequeued the buffer belongs to the library.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import mmap
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

from exs import _descriptors, _native
from exs._descriptors import Descriptor, PollSet, Post, QHandle
from exs.errors import from_errno
from exs.events import AcceptPart, ExsEvent, ExsEvtType, FilePart, PollPart, XferFilePart, XferMsgPart, XferPart
from exs.memory import Access, MemoryRegion

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from exs._descriptors import Process
    from exs._native import Caller, RawEvent, Span


class MemoryFlag(enum.IntFlag):
    """Flags of ``exs_mregister``."""

    EXS_ACCESS_READ = Access.READ
    """The library reads the memory: sending."""
    EXS_ACCESS_WRITE = Access.WRITE
    """The library and the peer write it: receiving."""
    EXS_MRF_SHARED = 0x100
    """The memory is shared with other processes; has no effect."""


class QueueAttribute(enum.IntEnum):
    """Attributes of a queue, for ``exs_qmodify`` and ``exs_qstatus``."""

    EXS_QATTR_DEPTH = 1
    """Slots."""
    EXS_QATTR_EVENTS = 2
    """Events present; read only."""
    EXS_QATTR_SIGNAL = 3
    """Signal when events come; only ``EXS_SIG_DISABLE``."""
    EXS_QATTR_WAIT = 4
    """How a dequeue waits: ``EXS_WAIT_...``."""


class QueueSignal(enum.IntEnum):
    """Values of ``EXS_QATTR_SIGNAL``."""

    EXS_SIG_DISABLE = 0
    EXS_SIG_ENABLE = 1


class QueueWait(enum.IntEnum):
    """Values of ``EXS_QATTR_WAIT``."""

    EXS_WAIT_ADAPTIVE = 0
    EXS_WAIT_NOTIFY = 1
    EXS_WAIT_BUSY_POLL = 2


class PollFlag(enum.IntFlag):
    """Bits of ``exs_poll``."""

    EXS_POLLIN = _native.POLL_IN
    """Data, the end of data, or a connection to accept."""
    EXS_POLLOUT = _native.POLL_OUT
    """A send would be taken without waiting."""


class TransferFlag(enum.IntFlag):
    """Flags of transfer calls; the ``MSG_`` ones have the values of :mod:`socket`."""

    MSG_DONTWAIT = 0x40
    """Without a queue: take what is there or fail with ``EAGAIN``."""
    MSG_WAITALL = 0x100
    """Receive: only when the buffer is full."""
    MSG_NOSIGNAL = 0x4000
    """Always so."""
    EXS_SHUT_WR = 0x0100_0000
    """Send: the end of data behind it."""


class SocketOption(enum.IntEnum):
    """Options at level ``SOL_SOCKET`` that only ES-API has."""

    SO_ASYNC_RECV_ORDERED = 0x4501
    """Receives complete in the order of posting; always 1."""
    SO_ASYNC_SEND_TIMEOUT = 0x4502
    """Not offered."""
    SO_ASYNC_RECV_TIMEOUT = 0x4503
    """Not offered."""


EXS_VERSION1 = 1
EXS_VERSION = EXS_VERSION1
EXS_EVTVEC_MAX = _descriptors.EVTVEC_MAX
EXS_TIMEOUT_ONCE = 1

EXS_ACCESS_READ = MemoryFlag.EXS_ACCESS_READ
EXS_ACCESS_WRITE = MemoryFlag.EXS_ACCESS_WRITE
EXS_MRF_SHARED = MemoryFlag.EXS_MRF_SHARED
EXS_QATTR_DEPTH = QueueAttribute.EXS_QATTR_DEPTH
EXS_QATTR_EVENTS = QueueAttribute.EXS_QATTR_EVENTS
EXS_QATTR_SIGNAL = QueueAttribute.EXS_QATTR_SIGNAL
EXS_QATTR_WAIT = QueueAttribute.EXS_QATTR_WAIT
EXS_SIG_DISABLE = QueueSignal.EXS_SIG_DISABLE
EXS_SIG_ENABLE = QueueSignal.EXS_SIG_ENABLE
EXS_WAIT_ADAPTIVE = QueueWait.EXS_WAIT_ADAPTIVE
EXS_WAIT_NOTIFY = QueueWait.EXS_WAIT_NOTIFY
EXS_WAIT_BUSY_POLL = QueueWait.EXS_WAIT_BUSY_POLL
EXS_POLLIN = PollFlag.EXS_POLLIN
EXS_POLLOUT = PollFlag.EXS_POLLOUT
MSG_DONTWAIT = TransferFlag.MSG_DONTWAIT
MSG_WAITALL = TransferFlag.MSG_WAITALL
MSG_NOSIGNAL = TransferFlag.MSG_NOSIGNAL
EXS_SHUT_WR = TransferFlag.EXS_SHUT_WR
SO_ASYNC_RECV_ORDERED = SocketOption.SO_ASYNC_RECV_ORDERED
SO_ASYNC_SEND_TIMEOUT = SocketOption.SO_ASYNC_SEND_TIMEOUT
SO_ASYNC_RECV_TIMEOUT = SocketOption.SO_ASYNC_RECV_TIMEOUT
EXS_EVT_SEND = ExsEvtType.EXS_EVT_SEND
EXS_EVT_RECV = ExsEvtType.EXS_EVT_RECV
EXS_EVT_CONNECT = ExsEvtType.EXS_EVT_CONNECT
EXS_EVT_ACCEPT = ExsEvtType.EXS_EVT_ACCEPT
EXS_EVT_SHUTDOWN = ExsEvtType.EXS_EVT_SHUTDOWN
EXS_EVT_CLOSE = ExsEvtType.EXS_EVT_CLOSE
EXS_EVT_POLL = ExsEvtType.EXS_EVT_POLL
EXS_EVT_SENDMSG = ExsEvtType.EXS_EVT_SENDMSG
EXS_EVT_RECVMSG = ExsEvtType.EXS_EVT_RECVMSG
EXS_EVT_SENDFILE = ExsEvtType.EXS_EVT_SENDFILE

# Bits that the socket API knows and this one does not offer, as opposed to bits that mean nothing.
_FOREIGN_FLAGS = socket.MSG_OOB | socket.MSG_PEEK | socket.MSG_DONTROUTE | socket.MSG_TRUNC | socket.MSG_CTRUNC
_MAP_FROM = 64 * 1024  # bytes of a piece of a file from which it is mapped; reading a smaller one is quicker


class MHandle:
    """A registered region, or ``EXS_MHANDLE_UNREGISTERED``; opaque."""

    __slots__ = ("_region",)

    def __init__(self, region: MemoryRegion | None) -> None:
        self._region = region

    def __repr__(self) -> str:
        """For people."""
        return f"<MHandle {self._region!r}>" if self._region else "EXS_MHANDLE_UNREGISTERED"


EXS_MHANDLE_UNREGISTERED = MHandle(None)


def exs_init(version: int = EXS_VERSION) -> None:
    """Begin: once in a process, before anything else; again in a forked child, where all older handles are dead.

    Args:
        version: ``EXS_VERSION``.

    Raises:
        exs.Error: ``EINVAL``: another version.

    *Source:* ES-API ``exs_init``.
    """
    if version != EXS_VERSION1:
        raise from_errno(errno.EINVAL, f"version {version} of ES-API is not known, only {EXS_VERSION1}")
    _descriptors.start()


# --- sockets ----------------------------------------------------------------------------------------------------


def exs_socket(family: int, type: int, proto: int = 0) -> int:  # noqa: A002  the standard's name
    """A new socket.

    Args:
        family: ``socket.AF_INET`` or ``AF_INET6``.
        type: ``socket.SOCK_STREAM`` or ``SOCK_SEQPACKET``, perhaps with ``SOCK_NONBLOCK``.
        proto: 0.

    Returns:
        Its descriptor: a small number that no other descriptor of the process has.

    Raises:
        exs.Error: ``EAFNOSUPPORT``, ``ESOCKTNOSUPPORT``, ``EPROTONOSUPPORT``: not that; ``EMFILE``: too many.
    """
    process = _descriptors.process()
    kind = type & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise from_errno(errno.EAFNOSUPPORT)
    if kind not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        raise from_errno(errno.ESOCKTNOSUPPORT)
    if proto != 0:
        raise from_errno(errno.EPROTONOSUPPORT)
    descriptor = _new_descriptor(process, family, kind)
    descriptor.nonblocking = bool(type & socket.SOCK_NONBLOCK)
    process.table[descriptor.fd] = descriptor
    return descriptor.fd


def _new_descriptor(process: Process, family: int, kind: int) -> Descriptor:
    try:
        return Descriptor(process, family, kind)
    except OSError as problem:
        raise from_errno(problem.errno or errno.EMFILE) from None


def exs_bind(fd: int, address: tuple[str | int, ...]) -> None:
    """Bind to an address, written as :mod:`socket` does; port 0 asks for a free one.

    Raises:
        exs.Error: ``EADDRINUSE``, ``EADDRNOTAVAIL``, ``EINVAL`` (bound already).
    """
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    process.ctx.bind(descriptor.handle, _descriptors.numeric(descriptor.family, address, passive=True))


def exs_listen(fd: int, backlog: int = 128) -> None:
    """Listen for connections.

    Raises:
        exs.NoDeviceError: No device, or not the path that was asked for.
        exs.Error: ``EADDRINUSE``, ``EINVAL`` (connected).
    """
    process = _descriptors.process()
    process.ctx.listen(process.lookup(fd).handle, backlog)


def exs_getsockname(fd: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """The local address."""
    process = _descriptors.process()
    return process.ctx.sockname(process.lookup(fd).handle)


def exs_getpeername(fd: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """The peer's address.

    Raises:
        exs.Error: ``ENOTCONN``.
    """
    process = _descriptors.process()
    return process.ctx.peername(process.lookup(fd).handle)


_SWITCHES = {
    (socket.SOL_SOCKET, socket.SO_REUSEADDR): "reuse_address",
    (socket.SOL_SOCKET, socket.SO_REUSEPORT): "reuse_port",
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY): "v6_only",
}
# What is always so: may be asked, and "set" to what it is.
_FIXED = {
    (socket.SOL_SOCKET, int(SO_ASYNC_RECV_ORDERED)): 1,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
}


def exs_getsockopt(fd: int, level: int, option: int) -> int | bytes:
    """An option of a socket.

    Args:
        fd: The socket.
        level: ``SOL_SOCKET``, ``IPPROTO_IPV6``, ``IPPROTO_TCP``.
        option: ``SO_TYPE``, ``SO_DOMAIN``, ``SO_ERROR``, ``SO_ACCEPTCONN``, ``SO_LINGER`` (bytes, as in C),
            ``SO_RCVBUF`` (bytes of the ring), ``SO_REUSEADDR``, ``SO_REUSEPORT``, ``IPV6_V6ONLY``, and some that are always 1.

    Raises:
        exs.Error: ``ENOPROTOOPT``: not known here.
    """
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    key = (level, option)
    if key in _SWITCHES:
        return int(descriptor.switches[_SWITCHES[key]])
    if key in _FIXED:
        return _FIXED[key]
    if level == socket.SOL_SOCKET:
        if option == socket.SO_TYPE:
            return descriptor.type
        if option == socket.SO_DOMAIN:
            return descriptor.family
        if option == socket.SO_RCVBUF:
            return descriptor.settings.ring_bytes
        if option == socket.SO_LINGER:
            return struct.pack("ii", descriptor.linger_s is not None, descriptor.linger_s or 0)
        if option in (socket.SO_ERROR, socket.SO_ACCEPTCONN):
            if not descriptor.made:
                return 0
            info = process.ctx.query(descriptor.handle)
            return info.error if option == socket.SO_ERROR else int(info.state == _native.SOCK_LISTENING)
    raise from_errno(errno.ENOPROTOOPT)


def exs_setsockopt(fd: int, level: int, option: int, value: int | Buffer) -> None:
    """Set an option of a socket: ``SO_REUSEADDR``, ``SO_REUSEPORT``, ``IPV6_V6ONLY`` before bind; ``SO_LINGER``.

    Args:
        fd: The socket.
        level: ``SOL_SOCKET``, ``IPPROTO_IPV6``, ``IPPROTO_TCP``.
        option: The option.
        value: A number, or bytes as in C. ``SO_LINGER`` with time 0: closing aborts.

    Raises:
        exs.Error: ``ENOPROTOOPT``: not known here; ``EINVAL``: too late, or it cannot have that value;
            ``EOPNOTSUPP``: a timer of ES-API.
    """
    descriptor = _descriptors.process().lookup(fd)
    key = (level, option)
    if key == (socket.SOL_SOCKET, socket.SO_LINGER):
        raw = value.to_bytes(8, "little") if isinstance(value, int) else bytes(value)
        if len(raw) != 8:
            raise from_errno(errno.EINVAL, "SO_LINGER takes struct linger: two ints")
        on, seconds = struct.unpack("ii", raw)
        descriptor.linger_s = seconds if on else None
        return
    if option in (SO_ASYNC_SEND_TIMEOUT, SO_ASYNC_RECV_TIMEOUT) and level == socket.SOL_SOCKET:
        raise from_errno(errno.EOPNOTSUPP, "ES-API's timers are not offered; cancel the operation instead")
    number = value if isinstance(value, int) else int.from_bytes(bytes(value), "little")
    if key in _SWITCHES:
        if descriptor.made:
            raise from_errno(errno.EINVAL, "this option is set before bind, listen and connect")
        descriptor.switches[_SWITCHES[key]] = bool(number)
    elif key in _FIXED:
        if number != _FIXED[key]:
            raise from_errno(errno.EINVAL, "this option cannot be changed")
    else:
        raise from_errno(errno.ENOPROTOOPT)


def exs_fcntl(fd: int, command: int, arg: int = 0) -> int:
    """``F_GETFL`` and ``F_SETFL``, for ``O_NONBLOCK``: whether calls without a queue try and fail instead of waiting.

    Raises:
        exs.Error: ``EINVAL``: another command or flag.
    """
    descriptor = _descriptors.process().lookup(fd)
    if command == fcntl.F_GETFL:
        return os.O_RDWR | (os.O_NONBLOCK if descriptor.nonblocking else 0)
    if command == fcntl.F_SETFL and not arg & ~(os.O_NONBLOCK | os.O_RDWR):
        descriptor.nonblocking = bool(arg & os.O_NONBLOCK)
        return 0
    raise from_errno(errno.EINVAL)


# --- memory -----------------------------------------------------------------------------------------------------


def exs_mregister(buf: Buffer, flags: int) -> MHandle:
    """Register memory, without the interpreter lock.

    Args:
        buf: A contiguous buffer; all of it.
        flags: ``EXS_ACCESS_READ``, ``EXS_ACCESS_WRITE``; ``EXS_MRF_SHARED`` has no effect.

    Returns:
        What transfers name it by; any part of it may be named with the same handle.

    Raises:
        BufferError: Not contiguous.
        ValueError: Read-only, with ``EXS_ACCESS_WRITE``.
        exs.Error: ``EINVAL``: no access, or an unknown flag; ``ENOMEM``: over the limit of locked memory.

    *Source:* ES-API ``exs_mregister``.
    """
    _descriptors.process()
    access = flags & (EXS_ACCESS_READ | EXS_ACCESS_WRITE)
    if not access or flags & ~(EXS_ACCESS_READ | EXS_ACCESS_WRITE | EXS_MRF_SHARED):
        raise from_errno(errno.EINVAL)
    return MHandle(buf if isinstance(buf, MemoryRegion) else MemoryRegion(buf, Access(access)))


def exs_mderegister(mh: MHandle) -> None:
    """End a registration.

    Raises:
        BusyError: Operations in flight use it; nothing happened.
        exs.Error: ``EINVAL``: not a registration, or ended already.

    *Source:* ES-API ``exs_mderegister``.
    """
    _descriptors.process()
    if mh._region is None or mh._region.closed:  # noqa: SLF001  this module's own class
        raise from_errno(errno.EINVAL)
    mh._region.close()  # noqa: SLF001


# --- queues -----------------------------------------------------------------------------------------------------


def exs_qcreate(depth: int) -> QHandle:
    """A new event queue.

    Args:
        depth: Operations that may be outstanding on it; each holds a slot from the post until its event is dequeued.

    Raises:
        exs.Error: ``EINVAL``: not a depth.

    *Source:* ES-API ``exs_qcreate``.
    """
    if depth <= 0:
        raise from_errno(errno.EINVAL)
    return QHandle(_descriptors.process(), depth)


def exs_qdelete(qh: QHandle) -> None:
    """End a queue; events that nobody dequeued are discarded.

    Raises:
        BusyError: Operations in flight will answer to it; nothing happened.
        exs.Error: ``EBADF``: ended already.

    *Source:* ES-API ``exs_qdelete``.
    """
    process = _descriptors.process()
    own = process.private()
    while taken := process.poll(qh, own.batch, EXS_EVTVEC_MAX):
        qh.backlog += taken
        if len(qh.backlog) == len(taken):
            break
    left = list(qh.backlog)
    try:
        qh.queue.free()
    except OSError:
        if left:
            qh.queue.kick()
        raise
    for raw in left:
        process.discard(raw)


def exs_qdequeue(qh: QHandle, count: int = 1, timeout: float | None = None) -> list[ExsEvent]:
    """Take events out of a queue; waits without the interpreter lock.

    Args:
        qh: The queue.
        count: Positive: wait for one event, take up to so many. Negative: wait for ``-count``.
        timeout: Seconds; ``None`` for no limit, 0 to look only.

    Returns:
        The events, oldest first; fewer than were waited for only if the time was over.

    Raises:
        exs.Error: ``EINVAL``: no count, more than ``EXS_EVTVEC_MAX``, or a threshold above the depth;
            ``EBADF``: the queue is or was deleted.

    *Source:* ES-API ``exs_qdequeue``.
    """
    process = _descriptors.process()
    most = abs(count)
    least = most if count < 0 else 1
    if not count or most > EXS_EVTVEC_MAX or (count < 0 and most > qh.queue.depth()):
        raise from_errno(errno.EINVAL)
    batch = process.private().batch
    if timeout is not None and timeout <= 0:
        return _events(process, process.poll(qh, batch, most))
    events: list[ExsEvent] = []
    while len(events) < least:
        raw = process.wait(qh, batch, most - len(events), least - len(events), timeout)
        if not raw:
            break
        events += _events(process, raw)
        timeout = 0 if timeout is not None and len(raw) < least else timeout
    return events


def _events(process: Process, raw: list[RawEvent]) -> list[ExsEvent]:
    events = [event for event in map(process.finish, raw) if event is not None]
    if any(r[3] for r in raw):
        process.ctx.drain_log()
    return events


def exs_qmodify(qh: QHandle, attr: int, value: int) -> None:
    """Change an attribute of a queue.

    Args:
        qh: The queue.
        attr: ``EXS_QATTR_DEPTH``, ``EXS_QATTR_WAIT``; ``EXS_QATTR_SIGNAL`` can only be disabled.
        value: The new value.

    Raises:
        exs.Error: ``EINVAL``: not such an attribute or value, or a depth below what is in use;
            ``EOPNOTSUPP``: signals.
    """
    _descriptors.process()
    if attr == EXS_QATTR_DEPTH and value > 0:
        qh.queue.depth(value)
    elif attr == EXS_QATTR_WAIT and value in list(QueueWait):
        qh.wait = {EXS_WAIT_ADAPTIVE: "adaptive", EXS_WAIT_NOTIFY: "notify", EXS_WAIT_BUSY_POLL: "busy"}[QueueWait(value)]
    elif attr == EXS_QATTR_SIGNAL and value == EXS_SIG_ENABLE:
        raise from_errno(errno.EOPNOTSUPP, "queues do not send signals; exs_qfd() gives a descriptor to wait on")
    elif attr != EXS_QATTR_SIGNAL or value != EXS_SIG_DISABLE:
        raise from_errno(errno.EINVAL)


def exs_qstatus(qh: QHandle, attr: int) -> int:
    """An attribute of a queue: ``EXS_QATTR_DEPTH``, ``_EVENTS``, ``_SIGNAL``, ``_WAIT``.

    Raises:
        exs.Error: ``EINVAL``: not such an attribute.
    """
    _descriptors.process()
    if attr == EXS_QATTR_DEPTH:
        return qh.queue.depth()
    if attr == EXS_QATTR_EVENTS:
        return qh.queue.count() + len(qh.backlog)
    if attr == EXS_QATTR_WAIT:
        return {"adaptive": EXS_WAIT_ADAPTIVE, "notify": EXS_WAIT_NOTIFY, "busy": EXS_WAIT_BUSY_POLL}[qh.wait]
    if attr == EXS_QATTR_SIGNAL:
        return EXS_SIG_DISABLE
    raise from_errno(errno.EINVAL)


def exs_qfd(qh: QHandle) -> int:
    """A descriptor that is readable when a dequeue has something to do (an addition to the standard).

    It may be readable without an event to be had: dequeue with ``timeout=0``, and wait again only after that gave nothing.
    """
    _descriptors.process()
    return qh.fileno()


# --- connections ------------------------------------------------------------------------------------------------


def exs_connect(fd: int, address: tuple[str | int, ...], ah: object, qh: QHandle | None) -> None:
    """Connect.

    Args:
        fd: The socket.
        address: Host and port, as :mod:`socket` writes them; a name is looked up first, at once.
        ah: Comes back in the event (``EXS_EVT_CONNECT``).
        qh: The queue for the event; ``None``: wait.

    Raises:
        exs.Error: Refused; without a queue also what the connection failed with: ``ECONNREFUSED``, ``ETIMEDOUT``,
            ``EHOSTUNREACH``, ``EPROTO`` and so on, or :class:`exs.NoDeviceError`.

    *Source:* ES-API ``exs_connect``.
    """
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    raw = _descriptors.numeric(descriptor.family, address)
    sock = descriptor.handle
    post = Post(EXS_EVT_CONNECT, descriptor, ah)
    _run(process, post, qh, lambda caller, cookie, eq: caller.connect(sock, raw, cookie, eq))


def exs_accept(fd: int, ah: object, qh: QHandle | None) -> int | None:
    """Take a connection; several may be armed at once and are filled in that order.

    Args:
        fd: A listening socket.
        ah: Comes back in the event (``EXS_EVT_ACCEPT``, with the new descriptor and the peer's address).
        qh: The queue for the event; ``None``: wait.

    Returns:
        Without a queue, the new descriptor.

    Raises:
        exs.Error: Refused: ``EINVAL`` (not listening), ``EMFILE``; without a queue ``EAGAIN`` on a non-blocking socket.

    *Source:* ES-API ``exs_accept``.
    """
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    sock = descriptor.handle
    if qh is None and descriptor.nonblocking and not process.ctx.query(sock).readable:
        raise from_errno(errno.EAGAIN)
    post = Post(EXS_EVT_ACCEPT, descriptor, ah)
    post.more = _new_descriptor(process, descriptor.family, descriptor.type)  # now, so that it cannot fail later
    raw = _begin(process, post, qh, lambda caller, cookie, eq: caller.accept(sock, cookie, eq))
    if raw is None:
        return None
    process.result(post, raw)
    return process.accepted(post, raw).exs_evt_fd


def exs_shutdown(fd: int, how: int, ah: object, qh: QHandle | None) -> None:
    """Shut a direction: ``SHUT_WR`` when what was sent before has gone out, ``SHUT_RD`` at once.

    Args:
        fd: The socket.
        how: ``socket.SHUT_WR``, ``SHUT_RD``, ``SHUT_RDWR``.
        ah: Comes back in the event (``EXS_EVT_SHUTDOWN``).
        qh: The queue for the event; ``None``: wait.

    Raises:
        exs.Error: Refused: ``ENOTCONN``, ``EINVAL``.
    """
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    sock = descriptor.handle
    if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        raise from_errno(errno.EINVAL)
    if how == socket.SHUT_RDWR:
        exs_shutdown(fd, socket.SHUT_RD, None, None)
        how = socket.SHUT_WR
    post = Post(EXS_EVT_SHUTDOWN, descriptor, ah)
    _run(process, post, qh, lambda caller, cookie, eq: caller.shutdown(sock, how, cookie, eq))


def exs_close(fd: int, ah: object = None, qh: QHandle | None = None) -> None:
    """Close a socket: in order, or at once with ``SO_LINGER`` on and 0.  The number is free when the event was taken.

    Args:
        fd: The socket; dead from now on.
        ah: Comes back in the event (``EXS_EVT_CLOSE``).
        qh: The queue for the event; ``None``: wait.

    Raises:
        exs.Error: Refused: ``EBADF``, ``EAGAIN`` (no slot; the socket is still open).
    """
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    if not descriptor.made and qh is None:
        del process.table[fd]
        return
    sock = descriptor.handle
    abort = descriptor.linger_s == 0
    post = Post(EXS_EVT_CLOSE, descriptor, ah)
    removed = process.table.pop(fd)
    try:
        _run(process, post, qh, lambda caller, cookie, eq: caller.close(sock, abort, cookie, eq))
    except OSError as problem:
        if problem.errno == errno.EAGAIN:
            process.table[fd] = removed
        raise


# --- transfers --------------------------------------------------------------------------------------------------


def _span(buf: Buffer, length: int | None, mh: MHandle, *, write: bool) -> Span:
    """The range that a transfer names."""
    span = _native.writable(buf) if write else _native.readable(buf)
    size = span.length if length is None else length
    if not 0 <= size <= span.length:
        raise from_errno(errno.EFAULT, f"{size} bytes do not fit in a buffer of {span.length}")
    region = mh._region  # noqa: SLF001  this module's own class
    if region is None:
        handle, flags = 0, span.flags
    elif region.closed:
        raise from_errno(errno.EINVAL, "the memory handle is not valid any more")
    else:
        handle, flags = region.handle, 0
    return _native.Span(span.pointer, size, handle, flags)


def _send_flags(flags: int) -> int:
    if not flags:
        return 0
    if flags & _FOREIGN_FLAGS:
        raise from_errno(errno.EOPNOTSUPP, "a flag of the socket API that ES-API does not offer")
    if flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL | EXS_SHUT_WR):
        raise from_errno(errno.EINVAL)
    return _native.SHUT_WR_AFTER if flags & EXS_SHUT_WR else 0


def _recv_flags(flags: int) -> int:
    if not flags:
        return 0
    if flags & _FOREIGN_FLAGS:
        raise from_errno(errno.EOPNOTSUPP, "a flag of the socket API that ES-API does not offer")
    if flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_WAITALL):
        raise from_errno(errno.EINVAL)
    return _native.WAITALL if flags & MSG_WAITALL else 0


def _begin(
    process: Process, post: Post, qh: QHandle | None, call: Callable[[Caller, int, int], int]
) -> RawEvent | None:
    """Start an operation (``None``), or make it and wait (what it ended with)."""
    if qh is None:
        return process.call(post, call)
    process.post(post, qh, call)
    return None


def _run(process: Process, post: Post, qh: QHandle | None, call: Callable[[Caller, int, int], int]) -> int | None:
    """As :func:`_begin`, and the result's value."""
    raw = _begin(process, post, qh, call)
    return None if raw is None else process.result(post, raw)


def _would_wait(process: Process, descriptor: Descriptor, flags: int, *, send: bool) -> bool:
    """Whether a call without a queue must fail with ``EAGAIN`` instead of waiting.

    A send that can start is made, and waited for: how much of it is out is not for the sender to see.
    """
    if not descriptor.nonblocking and not flags & MSG_DONTWAIT:
        return False
    return not send or not process.ctx.query(descriptor.handle).writable


def exs_send(
    fd: int, buf: Buffer, length: int | None, flags: int, mh: MHandle, ah: object, qh: QHandle | None
) -> int | None:
    """Send bytes, or one message.

    Args:
        fd: A connected socket.
        buf: What to send; the library's until the event, and not to be changed until then.
        length: Bytes of it; ``None`` for all.
        flags: ``EXS_SHUT_WR``: the end of data behind it. ``MSG_DONTWAIT``: without a queue, fail with ``EAGAIN`` where
            it could not start.
        mh: The registration that contains the buffer, or ``EXS_MHANDLE_UNREGISTERED``.
        ah: Comes back in the event (``EXS_EVT_SEND``).
        qh: The queue for the event; ``None``: wait.

    Returns:
        Without a queue, the number of bytes.

    Raises:
        BufferError: The buffer is not contiguous.
        exs.Error: Refused: ``EAGAIN`` (queue full), ``EBADF``, ``ENOTCONN``, ``EPIPE``, ``EFAULT`` (outside the
            registration), ``EACCES`` (registered for receiving only); without a queue also what the operation failed with.

    *Source:* ES-API ``exs_send``, argument order of UNH EXS.
    """
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    span = _span(buf, length, mh, write=False)
    bits = _send_flags(flags)
    if qh is None and _would_wait(process, descriptor, flags, send=True):
        raise from_errno(errno.EAGAIN)
    sock = descriptor.handle
    post = Post(EXS_EVT_SEND, descriptor, ah, (span, buf, mh))
    return _run(process, post, qh, lambda caller, cookie, eq: caller.send(sock, span, bits, cookie, eq))


def exs_recv(
    fd: int, buf: Buffer, length: int | None, flags: int, mh: MHandle, ah: object, qh: QHandle | None
) -> int | None:
    """Receive bytes, or one message.

    Args:
        fd: A connected socket.
        buf: Where to; the library's until the event, not to be read or changed until then.
        length: Bytes of it; ``None`` for all.
        flags: ``MSG_WAITALL``: only when full. ``MSG_DONTWAIT``: without a queue, take what is there or ``EAGAIN``.
        mh: The registration that contains the buffer, or ``EXS_MHANDLE_UNREGISTERED``.
        ah: Comes back in the event (``EXS_EVT_RECV``).
        qh: The queue for the event; ``None``: wait.

    Returns:
        Without a queue, the number of bytes; 0 at the end of data.

    Raises:
        BufferError: The buffer is not contiguous.
        ValueError: It is read-only.
        exs.TruncatedError: Without a queue: the message was longer.
        exs.Error: Refused: as for :func:`exs_send`; without a queue also what the operation failed with.

    *Source:* ES-API ``exs_recv``.
    """
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    span = _span(buf, length, mh, write=True)
    bits = _recv_flags(flags)
    if qh is None and _would_wait(process, descriptor, flags, send=False):
        bits |= _native.DONTWAIT
    sock = descriptor.handle
    post = Post(EXS_EVT_RECV, descriptor, ah, (span, buf, mh))
    return _run(process, post, qh, lambda caller, cookie, eq: caller.recv(sock, span, bits, cookie, eq))


def exs_sendmsg(
    fd: int, iov: Sequence[tuple[Buffer, MHandle]], flags: int, ah: object, qh: QHandle | None
) -> int | None:
    """Send several buffers as one, each with its own registration; else as :func:`exs_send` (``EXS_EVT_SENDMSG``)."""
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    spans = [_span(buf, None, mh, write=False) for buf, mh in iov]
    bits = _send_flags(flags)
    if qh is None and _would_wait(process, descriptor, flags, send=True):
        raise from_errno(errno.EAGAIN)
    return _send_pieces(process, Post(EXS_EVT_SENDMSG, descriptor, ah, (spans, iov)), spans, bits, qh)


def _send_pieces(
    process: Process, post: Post, spans: Sequence[Span], bits: int, qh: QHandle | None
) -> int | None:
    sock = post.descriptor.handle
    pieces = _native.Pieces.of(spans)
    return _run(process, post, qh, lambda caller, cookie, eq: caller.sendmsg(sock, pieces, bits, cookie, eq))


def exs_recvmsg(
    fd: int, iov: Sequence[tuple[Buffer, MHandle]], flags: int, ah: object, qh: QHandle | None
) -> int | None:
    """Receive into several buffers as one; else as :func:`exs_recv` (``EXS_EVT_RECVMSG``)."""
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    spans = [_span(buf, None, mh, write=True) for buf, mh in iov]
    bits = _recv_flags(flags)
    if qh is None and _would_wait(process, descriptor, flags, send=False):
        if not process.ctx.query(descriptor.handle).readable:
            raise from_errno(errno.EAGAIN)
    sock = descriptor.handle
    pieces = _native.Pieces.of(spans)
    post = Post(EXS_EVT_RECVMSG, descriptor, ah, (spans, iov))
    return _run(process, post, qh, lambda caller, cookie, eq: caller.recvmsg(sock, pieces, bits, cookie, eq))


def exs_sendfile(
    fd: int, parts: Sequence[Buffer | FilePart], flags: int, ah: object, qh: QHandle | None
) -> int | None:
    """Send memory and parts of files as one, in order; the offsets of the files are not moved.

    A large part is mapped and sent from the page cache; a small one is read first.

    Args:
        fd: A connected socket.
        parts: Buffers, and :class:`FilePart` for files. A part that reaches beyond the end of its file is cut there.
        flags: ``EXS_SHUT_WR``: the end of data behind it.
        ah: Comes back in the event (``EXS_EVT_SENDFILE``, with the total).
        qh: The queue for the event; ``None``: wait.

    Returns:
        Without a queue, the number of bytes.

    Raises:
        exs.Error: Refused, as for :func:`exs_send`; or a file could not be read, with its errno.
    """
    process = _descriptors.process()
    descriptor = process.lookup(fd)
    bits = _send_flags(flags)
    spans = [_file_span(p) if isinstance(p, FilePart) else _native.readable(p) for p in parts]
    if qh is None and _would_wait(process, descriptor, flags, send=True):
        raise from_errno(errno.EAGAIN)
    return _send_pieces(process, Post(EXS_EVT_SENDFILE, descriptor, ah, (spans, parts)), spans, bits, qh)


def _file_span(part: FilePart) -> Span:
    """A part of a file as memory: mapped, or read where it is small or cannot be mapped."""
    if part.offset < 0 or (part.length is not None and part.length < 0):
        raise from_errno(errno.EINVAL)
    try:
        info = os.fstat(part.file)
        if not stat.S_ISREG(info.st_mode) and part.length is None:
            raise from_errno(errno.EINVAL, "the length of a part must be given where the file has none")
        rest = max(info.st_size - part.offset, 0)
        length = rest if part.length is None else part.length
        if stat.S_ISREG(info.st_mode):
            length = min(length, rest)
            if length >= _MAP_FROM:
                start = part.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
                skip = part.offset - start
                mapped = mmap.mmap(part.file, length + skip, access=mmap.ACCESS_READ, offset=start)
                return _native.readable(memoryview(mapped)[skip:])
        return _native.readable(_read(part.file, part.offset, length))
    except OSError as problem:
        raise from_errno(problem.errno or errno.EIO) from problem


def _read(file: int, offset: int, length: int) -> bytearray:
    """Bytes of a file without moving its offset; fewer at its end."""
    data = bytearray(length)
    view = memoryview(data)
    done = 0
    while done < length:
        count = os.preadv(file, [view[done:]], offset + done)
        if not count:
            break
        done += count
    view.release()
    del data[done:]
    return data


# --- readiness, cancelling ----------------------------------------------------------------------------------------


def exs_poll(fds: Sequence[tuple[int, int]], ah: object, qh: QHandle | None) -> Sequence[tuple[int, int]] | None:
    """Ask once which of some sockets are ready; one event answers, as soon as one is.

    Takes a slot of the queue for each socket until then.

    Args:
        fds: Descriptors, each with ``EXS_POLLIN``, ``EXS_POLLOUT`` or both.
        ah: Comes back in the event (``EXS_EVT_POLL``, with the descriptors that are ready).
        qh: The queue for the event; ``None``: wait.

    Returns:
        Without a queue, the descriptors that are ready, each with its bits.

    Raises:
        exs.Error: Refused: ``EINVAL`` (none, or other bits), ``EBADF``, ``EAGAIN`` (not enough slots).
    """
    process = _descriptors.process()
    if not fds or any(not bits or bits & ~(EXS_POLLIN | EXS_POLLOUT) for _, bits in fds):
        raise from_errno(errno.EINVAL)
    poll = PollSet([(process.lookup(fd), int(bits)) for fd, bits in fds])
    post = Post(EXS_EVT_POLL, poll.wanted[0][0], ah)
    post.more = poll

    def start(_: Caller, cookie: int, eq: int) -> int:
        posts = process.private().posts  # every answer through the queue, also where the call waits
        for i, (descriptor, bits) in enumerate(poll.wanted):
            code = posts.poll(descriptor.handle, bits, cookie | i, eq)
            if code < 0:
                if not poll.left:
                    return code
                poll.answered = True  # those that were accepted answer into nothing
                process.drop_polls(post, poll)
                raise process.refusal(descriptor, code)
            poll.left += 1
        return 0

    raw = _begin(process, post, qh, start)
    event = process.finish(raw) if raw is not None else None
    if event is None:
        return None
    event.raise_for_errno()
    assert isinstance(event.exs_evt_union, PollPart)
    return event.exs_evt_union.exs_evt_fds


def exs_cancel(*, fd: int | None = None, ah: object | None = None) -> int:
    """Ask for the end of operations, by socket, by cookie (the very object), or both; each still yields its event.

    Returns:
        How many operations were asked; one that is over is not among them.

    Raises:
        exs.Error: ``EINVAL``: neither was given; ``EBADF``.
    """
    process = _descriptors.process()
    if fd is None and ah is None:
        raise from_errno(errno.EINVAL)
    wanted = process.lookup(fd) if fd is not None else None
    asked = 0
    for post in _native.ops.owners():
        if not isinstance(post, Post) or post.stale or (ah is not None and post.ah is not ah):
            continue
        if isinstance(post.more, PollSet):
            hit = wanted in (None, *(d for d, _ in post.more.wanted))
        else:
            hit = wanted in (None, post.descriptor)
        asked += process.ask_end(post) if hit else 0
    return asked
