# SPDX-License-Identifier: MIT OR Apache-2.0
"""ES-API: sockets and connections, from ``exs_init`` to ``exs_close``."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from typing import TYPE_CHECKING

from exs._native import Caller
from exs.errors import from_errno
from exs.esapi import descriptors
from exs.esapi.constants import (
    EXS_EVT_ACCEPT,
    EXS_EVT_CLOSE,
    EXS_EVT_CONNECT,
    EXS_EVT_SHUTDOWN,
    EXS_VERSION,
    EXS_VERSION1,
)
from exs.esapi.descriptors import Descriptor, Post

if TYPE_CHECKING:
    from exs.esapi.descriptors import Process, QHandle


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
    descriptors.start()


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
    process = descriptors.process()
    kind = type & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    if family not in (socket.AF_INET, socket.AF_INET6):
        raise from_errno(errno.EAFNOSUPPORT)
    if kind not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        raise from_errno(errno.ESOCKTNOSUPPORT)
    if proto != 0:
        raise from_errno(errno.EPROTONOSUPPORT)
    descriptor = _new(process, family, kind)
    descriptor.nonblocking = bool(type & socket.SOCK_NONBLOCK)
    process.table[descriptor.fd] = descriptor
    return descriptor.fd


def _new(process: Process, family: int, kind: int) -> Descriptor:
    try:
        return Descriptor(process, family, kind)
    except OSError as problem:
        raise from_errno(problem.errno or errno.EMFILE) from None


def exs_bind(fd: int, address: tuple[str | int, ...]) -> None:
    """Bind to an address, written as :mod:`socket` does; port 0 asks for a free one.

    Raises:
        exs.Error: ``EADDRINUSE``, ``EADDRNOTAVAIL``, ``EINVAL`` (bound already).
    """
    process = descriptors.process()
    descriptor = process.lookup(fd)
    process.ctx.bind(descriptor.handle, descriptors.numeric(descriptor.family, address, passive=True))


def exs_listen(fd: int, backlog: int = 128) -> None:
    """Listen for connections.

    Raises:
        exs.NoDeviceError: No device, or not the path that was asked for.
        exs.Error: ``EADDRINUSE``, ``EINVAL`` (connected).
    """
    process = descriptors.process()
    process.ctx.listen(process.lookup(fd).handle, backlog)


def exs_getsockname(fd: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """The local address."""
    process = descriptors.process()
    return process.ctx.sockname(process.lookup(fd).handle)


def exs_getpeername(fd: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """The peer's address.

    Raises:
        exs.Error: ``ENOTCONN``.
    """
    process = descriptors.process()
    return process.ctx.peername(process.lookup(fd).handle)


def exs_fcntl(fd: int, command: int, arg: int = 0) -> int:
    """``F_GETFL`` and ``F_SETFL``, for ``O_NONBLOCK``: whether calls without a queue try and fail instead of waiting.

    Raises:
        exs.Error: ``EINVAL``: another command or flag.
    """
    descriptor = descriptors.process().lookup(fd)
    if command == fcntl.F_GETFL:
        return os.O_RDWR | (os.O_NONBLOCK if descriptor.nonblocking else 0)
    if command == fcntl.F_SETFL and not arg & ~(os.O_NONBLOCK | os.O_RDWR):
        descriptor.nonblocking = bool(arg & os.O_NONBLOCK)
        return 0
    raise from_errno(errno.EINVAL)


def exs_connect(fd: int, address: tuple[str | int, ...], ah: object, qh: QHandle | None) -> None:
    """Connect.

    Args:
        fd: The socket.
        address: Host and port, as :mod:`socket` writes them; a name is looked up first, at once.
        ah: Comes back in the event (``EXS_EVT_CONNECT``).
        qh: The queue for the event; ``None``: wait.

    Raises:
        exs.Error: Refused; without a queue also what the connection failed with: ``ECONNREFUSED``, ``ETIMEDOUT``,
            ``EHOSTUNREACH``, ``EPROTO`` and so on, or :class:`exs.NoDeviceError`; on a non-blocking socket
            ``EINPROGRESS``, then ``EXS_POLLOUT`` and ``SO_ERROR`` tell.

    *Source:* ES-API ``exs_connect``.
    """
    process = descriptors.process()
    descriptor = process.lookup(fd)
    raw = descriptors.numeric(descriptor.family, address)
    sock = descriptor.handle
    post = Post(EXS_EVT_CONNECT, descriptor, ah)
    if qh is None and descriptor.nonblocking:
        # Its event comes to the thread's own queue, where it is let go; exs_poll and SO_ERROR tell the caller.
        post.stale = process.private().left_behind = True
        process.post(post, process.private().queue, Caller.connect, sock, raw)
        raise from_errno(errno.EINPROGRESS)
    process.run(post, qh, Caller.connect, sock, raw)


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
    process = descriptors.process()
    descriptor = process.lookup(fd)
    sock = descriptor.handle
    if qh is None and descriptor.nonblocking and not process.ctx.query(sock).readable:
        raise from_errno(errno.EAGAIN)
    post = Post(EXS_EVT_ACCEPT, descriptor, ah)
    post.more = _new(process, descriptor.family, descriptor.type)  # now, so that it cannot fail later
    raw = process.begin(post, qh, Caller.accept, sock)
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
    process = descriptors.process()
    descriptor = process.lookup(fd)
    sock = descriptor.handle
    if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
        raise from_errno(errno.EINVAL)
    if how == socket.SHUT_RDWR:
        exs_shutdown(fd, socket.SHUT_RD, None, None)
        how = socket.SHUT_WR
    post = Post(EXS_EVT_SHUTDOWN, descriptor, ah)
    process.run(post, qh, Caller.shutdown, sock, how)


def exs_close(fd: int, ah: object = None, qh: QHandle | None = None) -> None:
    """Close a socket: in order, or at once with ``SO_LINGER`` on and 0.  The number is free when the event was taken.

    Args:
        fd: The socket; dead from now on.
        ah: Comes back in the event (``EXS_EVT_CLOSE``).
        qh: The queue for the event; ``None``: wait.

    It succeeds also if the peer or the network has ended the connection: that is told by the operations that were
    under way, each in its own event.

    Raises:
        exs.Error: Refused: ``EBADF``, ``EAGAIN`` (no slot; the socket is still open).  ``ETIMEDOUT`` (with a queue: in
            the event): what was accepted could not be sent in time; the socket is closed all the same.
    """
    process = descriptors.process()
    descriptor = process.lookup(fd)
    if not descriptor.made and qh is None:
        del process.table[fd]
        return
    sock = descriptor.handle
    abort = descriptor.linger_s == 0
    post = Post(EXS_EVT_CLOSE, descriptor, ah)
    if process.table.pop(fd, None) is not descriptor:
        raise from_errno(errno.EBADF)  # another thread was faster
    try:
        process.run(post, qh, Caller.close, sock, abort)
    except OSError as problem:
        if problem.errno == errno.EAGAIN:
            process.table[fd] = descriptor
        raise
