# SPDX-License-Identifier: MIT OR Apache-2.0
"""What stands behind the literal ES-API: descriptors, running posts, and how an event becomes a value.

Owns the process's ES-API state (made by ``exs_init``), the table of descriptors, and the per-thread queue on which
calls without a queue wait.  Knows neither trio nor the argument rules of the calls; those are its neighbours'.

Invariant: a :class:`Post` is in ``_native.ops`` from before the call into the core until its event was taken
out of a queue, and it refers to its buffers and to its :class:`Descriptor`.  A descriptor's number goes back to
the system with the last reference to it, so it is never reused while an operation on it is outstanding.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from exs import _config, _native
from exs._native import ops
from exs.errors import Error, TruncatedError, from_errno
from exs.esapi.constants import EXS_EVTVEC_MAX
from exs.events import (
    AcceptPart,
    ExsEvent,
    ExsEvtType,
    PollPart,
    XferFilePart,
    XferFlags,
    XferMsgPart,
    XferPart,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from exs._native import RawEvent

PRIVATE_DEPTH = 256  # slots of a thread's own queue: one running call, and what interrupted calls left behind
SIGNAL_SLICE_S = 1.0  # the longest sleep of the main thread: a signal may fall between its check and the sleep

_XFER = (ExsEvtType.EXS_EVT_SEND, ExsEvtType.EXS_EVT_RECV)
_XFER_MSG = (ExsEvtType.EXS_EVT_SENDMSG, ExsEvtType.EXS_EVT_RECVMSG)

_FLAGS = [
    XferFlags(
        (XferFlags.MSG_TRUNC if bits & _native.EV_TRUNCATED else 0)
        | (XferFlags.MSG_EOR if bits & _native.EV_EOR else 0)
        | (XferFlags.EXS_XF_DIRECT if bits & _native.EV_DIRECT else 0)
        | (XferFlags.EXS_XF_INDIRECT if bits & _native.EV_INDIRECT else 0)
    )
    for bits in range(16)
]

# As calling the classes, without a function of Python for each event; typeshed leaves open of what the tuples are.
_event: Callable[[tuple[object, ...]], ExsEvent] = partial(tuple.__new__, ExsEvent)  # pyright: ignore[reportUnknownMemberType]
_xfer_part: Callable[[tuple[object, ...]], XferPart] = partial(tuple.__new__, XferPart)  # pyright: ignore[reportUnknownMemberType]


class Descriptor:
    """A socket of ES-API: a number, and from the first call that needs it on, a socket of the core."""

    __slots__ = (
        "_handle",
        "_lock",
        "family",
        "fd",
        "linger_s",
        "nonblocking",
        "process",
        "settings",
        "switches",
        "type",
    )

    def __init__(self, process: Process, family: int, kind: int, handle: int = 0) -> None:
        self.fd: int = -1
        self.process: Process = process
        self.family: int = family
        self.type: int = kind
        self.settings: _config.Settings = _config.environment()
        self.switches: dict[str, bool] = {"reuse_address": True, "reuse_port": False, "v6_only": False}
        self.linger_s: int | None = None
        self.nonblocking: bool = False
        self._handle = handle
        self._lock = threading.Lock()
        # A descriptor of the system stands behind the number, so that it never collides with another.
        self.fd = os.eventfd(0, os.EFD_CLOEXEC)

    @property
    def made(self) -> bool:
        """Whether the core has a socket for it: then options that shape it cannot change any more."""
        return self._handle != 0

    @property
    def handle(self) -> int:
        """The core's socket, made at first use so that options could be set before."""
        if not self._handle:
            with self._lock:
                if not self._handle:
                    ctx = self.process.ctx
                    threaded = self.settings.progress == "thread"
                    group = ctx.threaded_group() if threaded else self.process.group
                    self._handle = ctx.socket_new(self.family, self.type, self.settings, group, **self.switches)
        return self._handle

    def adopt(self, handle: int, listener: Descriptor) -> None:
        """Become an accepted socket: with its listener's options."""
        self._handle = handle
        self.settings = listener.settings

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Post:
    """A call that was accepted and whose event has not been dequeued."""

    __slots__ = ("ah", "cookie", "descriptor", "more", "spans", "stale", "type")

    def __init__(self, kind: ExsEvtType, descriptor: Descriptor, ah: object, spans: object = None) -> None:
        self.type: ExsEvtType = kind
        self.descriptor: Descriptor = descriptor
        self.ah: object = ah
        self.spans: object = spans  # keeps the memory
        self.more: Descriptor | list[tuple[Descriptor, int]] | None = None  # to accept into; to poll
        self.stale: bool = False  # its caller has gone (interrupted): nobody wants the event
        self.cookie: int = 0


class QHandle:
    """An event queue of ES-API; opaque but for its descriptor."""

    __slots__ = ("backlog", "depth", "process", "queue", "wait")

    def __init__(self, process: Process, depth: int) -> None:
        self.process: Process = process
        self.queue: _native.EventQueue = _native.EventQueue(process.ctx, depth, process.group)
        self.depth: int = depth
        self.wait: str = _config.environment().wait
        self.backlog: list[RawEvent] = []  # taken from the core when a signal struck, not handed out yet

    def fileno(self) -> int:
        """The descriptor of ``exs_qfd``."""
        return self.queue.fd


class _Local(threading.local):
    """What each thread has for itself."""

    private: Private | None = None


class Private:
    """A thread's own queue and scratch, for calls that wait, and scratch for its posts."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.batch: _native.Batch = _native.Batch(EXS_EVTVEC_MAX)
        self.calls: _native.Caller = _native.Caller(process.ctx)
        self.left_behind = False  # an interrupted call has, or will have, an event here
        self._queue: QHandle | None = None

    @property
    def queue(self) -> QHandle:
        """The queue, made by the first call that waits."""
        if self._queue is None:
            self._queue = QHandle(self.process, PRIVATE_DEPTH)
        return self._queue

    def __del__(self) -> None:
        """End of the thread: the queue goes too, unless an interrupted operation still answers to it."""
        if self._queue is not None:
            try:
                self._queue.queue.free()
            except OSError:
                pass


class Process:
    """All that ``exs_init`` made."""

    def __init__(self, ctx: _native.Context) -> None:
        self.ctx = ctx
        self.group: int = ctx.group_new()
        self.table: dict[int, Descriptor] = {}
        self.posts: _native.Caller = _native.Caller(ctx, report=False)  # reports nothing: every thread may use it
        self._local = _Local()

    def private(self) -> Private:
        """The calling thread's own things."""
        own = self._local.private
        if own is None:
            own = self._local.private = Private(self)
        return own

    def lookup(self, fd: int) -> Descriptor:
        """The socket behind a number.

        Raises:
            exs.Error: ``EBADF``: nothing is; ``ENOTSOCK``: something foreign is.
        """
        try:
            return self.table[fd]
        except KeyError:
            pass
        try:
            os.fstat(fd)
        except OSError:
            raise from_errno(errno.EBADF) from None
        raise from_errno(errno.ENOTSOCK, "not a socket of exs")

    # --- posting

    def post(self, post: Post, qh: QHandle, call: Callable[..., int], *args: object) -> None:
        """Start an operation whose event goes to a queue.

        Args:
            post: What to keep until then.
            qh: The queue.
            call: A post of :class:`exs._native.Caller`, called with who makes it, ``args``, a cookie and the queue.
            *args: As the post wants them.

        Raises:
            exs.Error: Refused; nothing happened.
        """
        cookie = post.cookie = ops.add(post)
        code = call(self.posts, *args, cookie, qh.queue.handle)
        if code < 0:
            ops.remove(cookie)
            raise self.refusal(post.descriptor, code)

    def refusal(self, descriptor: Descriptor, code: int) -> Error:
        """The exception for a post that the core refused."""
        if code == -errno.EAGAIN:
            return _native.error(code)
        return self.ctx.explain(descriptor.handle if descriptor.made else 0, -code)

    def run(self, post: Post, qh: QHandle | None, call: Callable[..., int], *args: object) -> int | None:
        """Start an operation (``None``), or make it and wait: its result."""
        if qh is None:
            return self.result(post, self.call(post, call, *args))
        self.post(post, qh, call, *args)
        return None

    def begin(self, post: Post, qh: QHandle | None, call: Callable[..., int], *args: object) -> RawEvent | None:
        """Start an operation (``None``), or make it and wait: what it ended with."""
        if qh is None:
            return self.call(post, call, *args)
        self.post(post, qh, call, *args)
        return None

    def call(self, post: Post, call: Callable[..., int], *args: object) -> RawEvent:
        """Make an operation and wait for its end, without the interpreter lock.

        When a signal's handler raises meanwhile, the end of the operation is asked for, and what it uses is kept until
        then.

        Raises:
            exs.Error: Refused; nothing happened.
        """
        own = self.private()
        if own.left_behind:
            self.tidy()
        queue = own.queue  # before anything happens: making it may fail
        cookie = post.cookie = ops.add(post)
        accepted = False
        try:
            code = call(own.calls, *args, cookie, queue.queue.handle)
            if code < 0:
                ops.remove(cookie)
                raise self.refusal(post.descriptor, code)
            accepted = True
            raw = own.calls.event if code == 1 else self._await(own, queue, cookie)
            ops.remove(cookie)
            return raw
        except BaseException:
            post.stale = True
            own.left_behind = True
            if accepted:
                self.ask_end(post)
            raise

    def _await(self, own: Private, queue: QHandle, cookie: int) -> RawEvent:
        """The event with this cookie, from the thread's own queue; what an interrupted call left there is let go."""
        found: RawEvent | None = None
        while found is None:
            taken: list[RawEvent] = []
            try:
                self._take(queue, own.batch, taken, EXS_EVTVEC_MAX, 1, None)
            except BaseException:
                self._put_back(queue, own.batch, taken)
                raise
            for raw in taken:
                if raw[0] == cookie:
                    found = raw
                else:
                    self.discard(raw)
        return found

    def tidy(self) -> None:
        """Let go of the events of interrupted calls, as far as they have come."""
        own = self.private()
        taken: list[RawEvent] = []
        self._take(own.queue, own.batch, taken, EXS_EVTVEC_MAX, 0, 0)
        for raw in taken:
            self.discard(raw)
        own.left_behind = any(isinstance(p, Post) and p.stale for p in ops.owners())

    def ask_end(self, post: Post) -> int:
        """Ask for the end of an operation: 0 if it is over."""
        # A poll sits in several sockets; all else is found quicker by its own.
        sock = 0 if post.type is ExsEvtType.EXS_EVT_POLL else post.descriptor.handle
        return self.ctx.cancel_match(sock, post.cookie)

    # --- waiting

    def events(self, qh: QHandle, most: int, least: int, timeout: float | None) -> list[ExsEvent]:
        """Take events out of a queue.  If a signal's handler raises before they are there, none is taken.

        Args:
            qh: The queue.
            most: How many to take at most.
            least: How many to wait for.
            timeout: Seconds; ``None`` for no limit, 0 to look only.
        """
        batch = self.private().batch
        taken: list[RawEvent] = []
        try:
            self._take(qh, batch, taken, most, least, timeout)
            found = [self.finish(raw) for raw in taken]
            if any(raw[3] for raw in taken):
                self.ctx.drain_log()
        except BaseException:
            self._put_back(qh, batch, taken)
            raise
        for raw in taken:
            ops.remove(raw[0])
        return found

    def _take(
        self,
        qh: QHandle,
        batch: _native.Batch,
        taken: list[RawEvent],
        most: int,
        least: int,
        timeout: float | None,
    ) -> None:
        """Add to ``taken``: fewer than ``least`` only if the time is over.  Signal handlers run between the sleeps."""
        batch.clear()
        taken += qh.backlog[:most]
        del qh.backlog[:most]
        if timeout is not None and timeout <= 0:
            if len(taken) < most:
                taken += qh.queue.drain(batch, most=most - len(taken))
                batch.clear()
            return
        spin_us = _config.environment().spin_us
        mode = _native.WAITS[qh.wait]
        deadline = None if timeout is None else time.monotonic() + timeout
        sliced = threading.get_ident() == threading.main_thread().ident or qh.wait == "busy"
        while len(taken) < least:
            left = None if deadline is None else max(deadline - time.monotonic(), 0)
            nap = SIGNAL_SLICE_S if sliced and (left is None or left > SIGNAL_SLICE_S) else left
            nap_us = -1 if nap is None else round(nap * 1e6)
            try:
                got = qh.queue.wait(batch, most - len(taken), least - len(taken), nap_us, mode, spin_us)
            except InterruptedError:
                continue  # handlers have run by now; go on if none raised
            taken += got
            batch.clear()
            if nap == left and left is not None:
                break

    def hold(self, qh: QHandle) -> list[RawEvent]:
        """Move all events of a queue to its backlog, and return that."""
        batch = self.private().batch
        while got := qh.queue.drain(batch):
            qh.backlog += got
        return list(qh.backlog)

    def _put_back(self, qh: QHandle, batch: _native.Batch, taken: list[RawEvent]) -> None:
        """Keep for the next dequeue what an exception of a signal's handler kept from being handed out."""
        rest = batch.rest()
        if taken[-len(rest) :] != rest:  # struck before they were added
            taken = taken + rest
        batch.clear()
        if taken:
            qh.backlog[:0] = taken
            qh.queue.kick()

    # --- from what the core says to what the program sees

    def finish(self, raw: RawEvent) -> ExsEvent:
        """The event for what the core said; its entry among the running operations stays, for another try."""
        cookie, value, extra, error, _, bits = raw
        post = ops.get(cookie)
        assert isinstance(post, Post)
        kind = post.type
        part: XferPart | XferMsgPart | XferFilePart | AcceptPart | PollPart | None = None
        done = extra if error else value
        full = extra if bits & _native.EV_TRUNCATED else 0
        if kind in _XFER:
            part = _xfer_part((done, _FLAGS[bits & 15], full))
        elif kind in _XFER_MSG:
            part = XferMsgPart(done, _FLAGS[bits & 15], full)
        elif kind is ExsEvtType.EXS_EVT_SENDFILE:
            part = XferFilePart(done)
        elif kind is ExsEvtType.EXS_EVT_ACCEPT:
            part = self.accepted(post, raw)
        elif kind is ExsEvtType.EXS_EVT_POLL:
            part = PollPart(self.ready(post, raw))
        return _event((kind, error, post.descriptor.fd, post.ah, part))

    def accepted(self, post: Post, raw: RawEvent) -> AcceptPart:
        """Give a new connection the number that was set aside for it."""
        _, value, _, error, _, _ = raw
        new = post.more
        assert isinstance(new, Descriptor)
        if error:
            return AcceptPart(-1)
        new.adopt(value, post.descriptor)
        self.table[new.fd] = new
        try:
            address: tuple[object, ...] = self.ctx.peername(value)
        except OSError:  # gone already; the connection will say so itself
            address = ()
        return AcceptPart(new.fd, address)

    def ready(self, post: Post, raw: RawEvent) -> tuple[tuple[int, int], ...]:
        """The sockets of a poll that are ready now, the one that answered among them."""
        _, value, extra, error, _, _ = raw
        assert isinstance(post.more, list)
        found: list[tuple[int, int]] = []
        for i, (descriptor, wanted) in enumerate(post.more if not error else ()):
            now = value
            if i != extra:
                try:
                    info = self.ctx.query(descriptor.handle)
                except OSError:  # closed meanwhile
                    continue
                now = (_native.POLL_IN if info.readable else 0) | (_native.POLL_OUT if info.writable else 0)
            if now & wanted:
                found.append((descriptor.fd, now & wanted))
        return tuple(found)

    def discard(self, raw: RawEvent) -> None:
        """Let go of an event that nobody will take."""
        part = self.finish(raw).exs_evt_union
        ops.remove(raw[0])
        if isinstance(part, AcceptPart):
            orphan = self.table.pop(part.exs_evt_fd, None)
            if orphan is not None:
                self.posts.close(orphan.handle, True, 0, 0)

    def result(self, post: Post, raw: RawEvent) -> int:
        """The value of a call that waited.

        Raises:
            exs.Error: What the operation ended with.
        """
        _, value, extra, error, _, bits = raw
        if error:
            setup = post.type is ExsEvtType.EXS_EVT_CONNECT
            raise self.ctx.explain(post.descriptor.handle, error, setup=setup, transferred=extra)
        if bits & _native.EV_TRUNCATED and post.type in (ExsEvtType.EXS_EVT_RECV, ExsEvtType.EXS_EVT_RECVMSG):
            cut = TruncatedError(errno.EMSGSIZE, f"a message of {extra} bytes was cut to the {value} of its buffer")
            cut.length, cut.placed, cut.transferred = extra, value, value
            raise cut
        return value


_process: Process | None = None
_lock = threading.Lock()


def start() -> None:
    """Make the ES-API state of this process, if it is not there."""
    global _process
    with _lock:
        if _native.forked():
            _native.start_again_after_fork()
            _process = None
        if _process is None:
            _process = Process(_native.context())


def process() -> Process:
    """The ES-API state of this process.

    Raises:
        exs.Error: ``EINVAL``: ``exs_init`` was not called, or not since the fork.
    """
    if _native.forked():
        raise _native.error(-errno.EINVAL)
    if _process is None:
        raise from_errno(errno.EINVAL, "exs_init was not called")
    return _process


def numeric(family: int, address: tuple[str | int, ...], *, passive: bool = False) -> bytes:
    """The ``struct sockaddr`` of an address; names are looked up, which may take a while.

    Raises:
        OSError: The name is unknown (``socket.gaierror``).
    """
    try:
        return _native.pack_address(family, address)
    except OSError:
        flags = socket.AI_PASSIVE if passive else 0
        host, port = address[:2]
        found = socket.getaddrinfo(str(host), port, family, socket.SOCK_STREAM, 0, flags)
        return _native.pack_address(family, tuple(p for p in found[0][4] if isinstance(p, str | int)))
