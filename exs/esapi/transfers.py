# SPDX-License-Identifier: MIT OR Apache-2.0
"""ES-API: registered memory, transfers, readiness and cancelling."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from exs import _native
from exs._native import Caller
from exs.errors import from_errno
from exs.esapi import descriptors
from exs.esapi.constants import (
    EXS_ACCESS_READ,
    EXS_ACCESS_WRITE,
    EXS_EVT_POLL,
    EXS_EVT_RECV,
    EXS_EVT_RECVMSG,
    EXS_EVT_SEND,
    EXS_EVT_SENDFILE,
    EXS_EVT_SENDMSG,
    EXS_MRF_SHARED,
    EXS_POLLIN,
    EXS_POLLOUT,
    EXS_SHUT_WR,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_WAITALL,
)
from exs.esapi.descriptors import Post
from exs.esapi.files import file_span
from exs.events import FilePart
from exs.memory import Access, MemoryRegion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from exs._native import Span
    from exs.esapi.descriptors import Descriptor, Process, QHandle

# Plain numbers: the complement of an IntFlag has only bits that it knows, and the unknown ones are to be refused;
# and its operators cost more than the rest of a call.
_DONTWAIT, _WAITALL, _SHUT_WR = int(MSG_DONTWAIT), int(MSG_WAITALL), int(EXS_SHUT_WR)
_SEND_FLAGS = int(MSG_DONTWAIT | MSG_NOSIGNAL | EXS_SHUT_WR)
_RECV_FLAGS = int(MSG_DONTWAIT | MSG_NOSIGNAL | MSG_WAITALL)
_POLL_FLAGS = int(EXS_POLLIN | EXS_POLLOUT)
_ACCESS = int(EXS_ACCESS_READ | EXS_ACCESS_WRITE)
# Bits that the socket API knows and this one does not offer, as opposed to bits that mean nothing.
_FOREIGN_FLAGS = int(socket.MSG_OOB | socket.MSG_PEEK | socket.MSG_DONTROUTE | socket.MSG_TRUNC | socket.MSG_CTRUNC)


class MHandle:
    """A registered region, or ``EXS_MHANDLE_UNREGISTERED``; opaque."""

    __slots__ = ("_region",)

    def __init__(self, region: MemoryRegion | None) -> None:
        self._region = region

    def __repr__(self) -> str:
        """For people."""
        return f"<MHandle {self._region!r}>" if self._region else "EXS_MHANDLE_UNREGISTERED"


EXS_MHANDLE_UNREGISTERED = MHandle(None)


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
    descriptors.process()
    access = flags & _ACCESS
    if not access or flags & ~(_ACCESS | int(EXS_MRF_SHARED)):
        raise from_errno(errno.EINVAL)
    return MHandle(buf if isinstance(buf, MemoryRegion) else MemoryRegion(buf, Access(access)))


def exs_mderegister(mh: MHandle) -> None:
    """End a registration.

    Raises:
        BusyError: Operations in flight use it; nothing happened.
        exs.Error: ``EINVAL``: not a registration, or ended already.

    *Source:* ES-API ``exs_mderegister``.
    """
    descriptors.process()
    if mh._region is None or mh._region.closed:
        raise from_errno(errno.EINVAL)
    mh._region.close()


def _span(buf: Buffer, length: int | None, mh: MHandle, *, write: bool) -> Span:
    """The range that a transfer names."""
    region = mh._region
    if region is not None:
        if region.closed:
            raise from_errno(errno.EINVAL, "the memory handle is not valid any more")
        span = _native.registered(buf, region.handle, write)
    else:
        span = _native.writable(buf) if write else _native.readable(buf)
        if isinstance(buf, _native.Span):
            span = _native.Span(span.pointer, span.length)  # what names the memory here is the handle
    if length is not None:
        if not 0 <= length <= span.length:
            raise from_errno(errno.EFAULT, f"{length} bytes do not fit in a buffer of {span.length}")
        span.length = length
    return span


def _send_flags(flags: int) -> int:
    flags = int(flags)
    if flags & _FOREIGN_FLAGS:
        raise from_errno(errno.EOPNOTSUPP, "a flag of the socket API that ES-API does not offer")
    if flags & ~_SEND_FLAGS:
        raise from_errno(errno.EINVAL)
    return _native.SHUT_WR_AFTER if flags & _SHUT_WR else 0


def _recv_flags(flags: int) -> int:
    flags = int(flags)
    if flags & _FOREIGN_FLAGS:
        raise from_errno(errno.EOPNOTSUPP, "a flag of the socket API that ES-API does not offer")
    if flags & ~_RECV_FLAGS:
        raise from_errno(errno.EINVAL)
    return _native.WAITALL if flags & _WAITALL else 0


def _would_wait(process: Process, descriptor: Descriptor, flags: int, *, send: bool) -> bool:
    """Whether a call without a queue must fail with ``EAGAIN`` instead of waiting.

    A send that can start is made, and waited for: how much of it is out is not for the sender to see.
    """
    if not descriptor.nonblocking and not int(flags) & _DONTWAIT:
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
            registration), ``EACCES`` (registered for receiving only); without a queue also what the operation
            failed with.

    *Source:* ES-API ``exs_send``, argument order of UNH EXS.
    """
    process = descriptors.process()
    descriptor = process.lookup(fd)
    span = _span(buf, length, mh, write=False)
    bits = _send_flags(flags) if flags else 0
    if qh is None and _would_wait(process, descriptor, flags, send=True):
        raise from_errno(errno.EAGAIN)
    post = Post(EXS_EVT_SEND, descriptor, ah, (span, buf, mh))
    return process.run(post, qh, Caller.send, descriptor.handle, span, bits)


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
    process = descriptors.process()
    descriptor = process.lookup(fd)
    span = _span(buf, length, mh, write=True)
    bits = _recv_flags(flags) if flags else 0
    if qh is None and _would_wait(process, descriptor, flags, send=False):
        bits |= _native.DONTWAIT
    post = Post(EXS_EVT_RECV, descriptor, ah, (span, buf, mh))
    return process.run(post, qh, Caller.recv, descriptor.handle, span, bits)


def exs_sendmsg(
    fd: int, iov: Sequence[tuple[Buffer, MHandle]], flags: int, ah: object, qh: QHandle | None
) -> int | None:
    """Send several buffers as one, each with its own registration; else as :func:`exs_send` (``EXS_EVT_SENDMSG``)."""
    process = descriptors.process()
    descriptor = process.lookup(fd)
    spans = [_span(buf, None, mh, write=False) for buf, mh in iov]
    bits = _send_flags(flags) if flags else 0
    if qh is None and _would_wait(process, descriptor, flags, send=True):
        raise from_errno(errno.EAGAIN)
    return _send_pieces(process, Post(EXS_EVT_SENDMSG, descriptor, ah, (spans, iov)), spans, bits, qh)


def _send_pieces(process: Process, post: Post, spans: Sequence[Span], bits: int, qh: QHandle | None) -> int | None:
    return process.run(post, qh, Caller.sendmsg, post.descriptor.handle, _native.Pieces.of(spans), bits)


def exs_recvmsg(
    fd: int, iov: Sequence[tuple[Buffer, MHandle]], flags: int, ah: object, qh: QHandle | None
) -> int | None:
    """Receive into several buffers as one; else as :func:`exs_recv` (``EXS_EVT_RECVMSG``)."""
    process = descriptors.process()
    descriptor = process.lookup(fd)
    spans = [_span(buf, None, mh, write=True) for buf, mh in iov]
    bits = _recv_flags(flags) if flags else 0
    waits = qh is not None or not _would_wait(process, descriptor, flags, send=False)
    if not waits and not process.ctx.query(descriptor.handle).readable:
        raise from_errno(errno.EAGAIN)
    post = Post(EXS_EVT_RECVMSG, descriptor, ah, (spans, iov))
    return process.run(post, qh, Caller.recvmsg, descriptor.handle, _native.Pieces.of(spans), bits)


def exs_sendfile(fd: int, parts: Sequence[Buffer | FilePart], flags: int, ah: object, qh: QHandle | None) -> int | None:
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
    process = descriptors.process()
    descriptor = process.lookup(fd)
    bits = _send_flags(flags)
    spans = [file_span(p) if isinstance(p, FilePart) else _native.readable(p) for p in parts]
    if qh is None and _would_wait(process, descriptor, flags, send=True):
        raise from_errno(errno.EAGAIN)
    return _send_pieces(process, Post(EXS_EVT_SENDFILE, descriptor, ah, (spans, parts)), spans, bits, qh)


def exs_poll(fds: Sequence[tuple[int, int]], ah: object, qh: QHandle | None) -> Sequence[tuple[int, int]] | None:
    """Ask once which of some sockets are ready; one event answers, as soon as one is.

    Args:
        fds: Descriptors, each with ``EXS_POLLIN``, ``EXS_POLLOUT`` or both.
        ah: Comes back in the event (``EXS_EVT_POLL``, with the descriptors that are ready).
        qh: The queue for the event; ``None``: wait.

    Returns:
        Without a queue, the descriptors that are ready, each with its bits.

    Raises:
        exs.Error: Refused: ``EINVAL`` (none, or other bits), ``EBADF``, ``EAGAIN`` (no slot).
    """
    process = descriptors.process()
    if not fds or any(not bits or bits & ~_POLL_FLAGS for _, bits in fds):
        raise from_errno(errno.EINVAL)
    wanted = [(process.lookup(fd), int(bits)) for fd, bits in fds]
    poll = _native.PollSet([(descriptor.handle, bits) for descriptor, bits in wanted])
    post = Post(EXS_EVT_POLL, wanted[0][0], ah)
    post.more = wanted
    raw = process.begin(post, qh, Caller.poll_many, poll)
    if raw is None:
        return None
    process.result(post, raw)
    return process.ready(post, raw)


def exs_cancel(*, fd: int | None = None, ah: object | None = None) -> int:
    """Ask for the end of operations, by socket, by cookie (the very object), or both; each still yields its event.

    Returns:
        How many operations were asked; one that is over is not among them.

    Raises:
        exs.Error: ``EINVAL``: neither was given; ``EBADF``.
    """
    process = descriptors.process()
    if fd is None and ah is None:
        raise from_errno(errno.EINVAL)
    wanted = process.lookup(fd) if fd is not None else None
    asked = 0
    for post in _native.ops.owners():
        if not isinstance(post, Post) or post.stale or (ah is not None and post.ah is not ah):
            continue
        touched = [d for d, _ in post.more] if isinstance(post.more, list) else [post.descriptor]
        asked += process.ask_end(post) if wanted is None or wanted in touched else 0
    return asked
