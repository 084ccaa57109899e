# SPDX-License-Identifier: MIT OR Apache-2.0
"""Thin typed calls into the core; the only importer of ``exs._exs``.

Owns the process's one context (opened at first use, never by an import), the table of running operations, and
the way from a Python buffer to an address.  Knows no sockets' rules, no trio and no ES-API.

Invariant: whoever posts holds an entry of :data:`ops` from before the post until the event was dequeued, and
that entry refers to the :class:`Span` of every buffer.  C holds no Python object; it returns the cookie, and the
cookie leads to the entry: ``ops.add()`` gives a cookie whose low 32 bits are zero and the owner's to use.

A post returns what the core returned: 0, accepted, one event will come; 1, accepted and already over, the event
is :meth:`Caller.event`; ``-errno``, refused.  :func:`error` makes the exception for the last.
"""

from __future__ import annotations

import array
import atexit
import errno as _errno
import mmap
import os
import resource
import socket as _socket
import struct
import threading
from typing import TYPE_CHECKING, NamedTuple, Self

from exs import _config, _log
from exs._exs import ffi, lib
from exs.errors import BusyError, Error, from_errno

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from exs._exs import CData as CData

RawEvent = tuple[int, int, int, int, int, int]
"""Cookie, value, extra, error, kind (``OP_``), flags (``EV_``): ``struct exsi_event``."""

_EVENT = struct.Struct("<QQQiHH")

OP_SEND = lib.EXSI_OP_SEND
OP_RECV = lib.EXSI_OP_RECV
OP_CONNECT = lib.EXSI_OP_CONNECT
OP_ACCEPT = lib.EXSI_OP_ACCEPT
OP_SHUTDOWN = lib.EXSI_OP_SHUTDOWN
OP_CLOSE = lib.EXSI_OP_CLOSE
OP_POLL = lib.EXSI_OP_POLL

EV_TRUNCATED = lib.EXSI_EV_TRUNCATED
EV_EOR = lib.EXSI_EV_EOR
EV_DIRECT = lib.EXSI_EV_DIRECT
EV_INDIRECT = lib.EXSI_EV_INDIRECT
EV_EOF = lib.EXSI_EV_EOF
EV_SEND_SHUT = lib.EXSI_EV_SEND_SHUT

WAITALL = lib.EXSI_OPF_WAITALL
DONTWAIT = lib.EXSI_OPF_DONTWAIT
SHUT_WR_AFTER = lib.EXSI_OPF_SHUT_WR
STRICT_SIZE = lib.EXSI_OPF_STRICT_SIZE
POLL_IN = lib.EXSI_OPF_POLL_IN
POLL_OUT = lib.EXSI_OPF_POLL_OUT
FRAGILE = lib.EXSI_FLAG_FRAGILE
COPY_MAX = lib.EXSI_COPY_MAX

MR_READ = lib.EXSI_MR_READ
MR_WRITE = lib.EXSI_MR_WRITE
MR_HUGE = lib.EXSI_MR_HUGE

NULL = ffi.NULL

SOCK_NEW = lib.EXSI_SOCK_NEW
SOCK_LISTENING = lib.EXSI_SOCK_LISTENING
SOCK_CONNECTING = lib.EXSI_SOCK_CONNECTING
SOCK_CONNECTED = lib.EXSI_SOCK_CONNECTED
SOCK_CLOSING = lib.EXSI_SOCK_CLOSING
SOCK_DEAD = lib.EXSI_SOCK_DEAD
SOCK_CLOSED = lib.EXSI_SOCK_CLOSED

_PATHS = {
    "auto": lib.EXSI_PATH_AUTO,
    "tcp": lib.EXSI_PATH_TCP,
    "shm": lib.EXSI_PATH_SHM,
    "shm-vm": lib.EXSI_PATH_SHM_VM,
    "shm-ring": lib.EXSI_PATH_SHM_RING,
}

WAITS = {
    "adaptive": lib.EXSI_WAIT_ADAPTIVE,
    "notify": lib.EXSI_WAIT_NOTIFY,
    "busy": lib.EXSI_WAIT_BUSY,
}


# --- buffers ------------------------------------------------------------------------------------------------


class Span:
    """A range of memory that a call may name, and what keeps it alive: as long as the span lives, so does the memory.

    Attributes:
        pointer: First byte.
        length: Bytes.
        handle: Handle of the registered region that contains it, or 0.
        flags: ``FRAGILE`` where the memory may be a mapped file, else 0.
    """

    __slots__ = ("flags", "handle", "length", "pointer")

    def __init__(self, pointer: CData, length: int, handle: int = 0, flags: int = 0) -> None:
        self.pointer: CData = pointer
        self.length: int = length
        self.handle: int = handle
        self.flags: int = flags

    @property
    def address(self) -> int:
        """The first byte's address as a number."""
        return int(ffi.cast("uintptr_t", self.pointer))


def readable(buffer: Buffer | Span) -> Span:
    """The span of a buffer to send from; holds the buffer's export.

    Raises:
        BufferError: The buffer is not contiguous.
        TypeError: It is no buffer.
    """
    return buffer if isinstance(buffer, Span) else _export(buffer, write=False)


def writable(buffer: Buffer | Span) -> Span:
    """The span of a buffer to receive into; holds the buffer's export.

    Raises:
        BufferError: The buffer is not contiguous.
        TypeError: It is no buffer.
        ValueError: It is read-only.
    """
    return buffer if isinstance(buffer, Span) else _export(buffer, write=True)


def _export(buffer: Buffer, *, write: bool) -> Span:
    try:
        pointer = ffi.from_buffer("char[]", buffer, require_writable=write)
    except (BufferError, ValueError):  # exporters disagree on which of the two it is
        view = memoryview(buffer)
        if not view.c_contiguous:
            raise BufferError("the buffer is not contiguous") from None
        if write and view.readonly:
            raise ValueError("the buffer is read-only; receiving needs a writable one") from None
        raise
    return Span(pointer, len(pointer), 0, fragile(buffer))


_PLAIN = frozenset({bytes, bytearray, array.array})


def fragile(buffer: object) -> int:
    """``FRAGILE`` if the memory belongs to an ``mmap``, else 0.

    A mapped file may be shortened by anybody at any moment; touching it then is SIGBUS.  Only system calls may, and
    they answer EFAULT.
    """
    for _ in range(16):
        if type(buffer) in _PLAIN:
            return 0
        if isinstance(buffer, mmap.mmap):
            return FRAGILE
        # numpy's arrays and most others say whose memory they show in .base
        buffer = buffer.obj if isinstance(buffer, memoryview) else getattr(buffer, "base", None)
        if buffer is None:
            return 0
    return FRAGILE


class Pieces:
    """A vector of buffers for one call; the memory is kept alive by the spans' owner, not by this."""

    __slots__ = ("_words", "count", "flags", "pointer")

    def __init__(self, words: array.array[int], flags: int = 0) -> None:
        self._words = words  # base, length, handle of each: struct exsi_piece
        self.count: int = len(words) // 3
        self.flags: int = flags
        self.pointer: CData = ffi.cast("exsi_piece *", ffi.from_buffer("char[]", words))

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Self:
        """The pieces for some spans, in order."""
        words = array.array("Q")
        flags = 0
        for span in spans:
            words.extend((span.address, span.length, span.handle))
            flags |= span.flags
        return cls(words, flags)

    @staticmethod
    def line(span: Span) -> bytes:
        """One span's line of a vector, for :meth:`joined`."""
        return struct.pack("=QQQ", span.address, span.length, span.handle)

    @classmethod
    def joined(cls, lines: Sequence[bytes]) -> Self:
        """The pieces for lines made before: for spans that are posted again and again."""
        words = array.array("Q")
        words.frombytes(b"".join(lines))
        return cls(words)

    @classmethod
    def equal(cls, address: int, nbytes: int, count: int, handle: int, last: int | None = None) -> Self:
        """Pieces of ``nbytes`` one behind the other, as from ``MemoryRegion.split()``; made without a loop.

        Args:
            address: First byte of the first.
            nbytes: Bytes of each.
            count: How many.
            handle: Handle of the region.
            last: Bytes of the last one, where it is shorter.
        """
        words = array.array("Q", bytes(24 * count))
        words[0::3] = array.array("Q", range(address, address + nbytes * count, nbytes or 1)[:count])
        words[1::3] = array.array("Q", [nbytes]) * count
        words[2::3] = array.array("Q", [handle]) * count
        if last is not None and count:
            words[-2] = last
        return cls(words)


def view(pointer: CData, length: int, read_only: bool) -> memoryview:
    """The bytes behind a pointer that owns them; the view keeps the pointer, and so the memory, alive."""
    flat = memoryview(ffi.buffer(pointer, length))
    return flat.toreadonly() if read_only else flat


class PollSet:
    """Sockets to ask about in one poll, each with what is asked."""

    __slots__ = ("bits", "count", "socks")

    def __init__(self, wanted: Sequence[tuple[int, int]]) -> None:
        self.count: int = len(wanted)
        self.socks: CData = ffi.new("uint64_t[]", [sock for sock, _ in wanted])
        self.bits: CData = ffi.new("uint32_t[]", [bits for _, bits in wanted])


# --- running operations ---------------------------------------------------------------------------------------


class OpTable:
    """From a cookie to the Python object that waits for its event.  Any thread may use it.

    Single list operations are atomic with and without the interpreter lock, so only growing takes the lock.
    """

    __slots__ = ("_free", "_lock", "_slots")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything, in a process that has just been forked: another thread may have held the lock."""
        self._slots: list[object] = []
        self._free: list[int] = []
        self._lock = threading.Lock()

    def add(self, owner: object) -> int:
        """Keep ``owner`` alive and reachable by the cookie returned, and by each that differs in the low 32 bits."""
        try:
            slot = self._free.pop()
        except IndexError:
            slot = self._grow()
        self._slots[slot] = owner
        return slot << 32

    def get(self, cookie: int) -> object:
        """The owner behind a cookie."""
        return self._slots[cookie >> 32]

    def remove(self, cookie: int) -> object:
        """Forget the owner behind a cookie and return it; its last event is there, or its post was refused."""
        slot = cookie >> 32
        owner = self._slots[slot]
        self._slots[slot] = None
        self._free.append(slot)
        return owner

    def owners(self) -> list[object]:
        """All that is in the table now."""
        return [owner for owner in self._slots.copy() if owner is not None]

    def _grow(self) -> int:
        with self._lock:
            start = len(self._slots)
            self._slots.extend([None] * 256)
            self._free.extend(range(start + 1, start + 256))
            return start


ops = OpTable()

watchers: list[Callable[[], None]] = []
"""Called after every batch of events, on the thread that took it: some memory may have come out of use."""


class Batch:
    """Room for events of one drain or wait.  Used by one thread at a time."""

    __slots__ = ("_bytes", "_dirty", "events", "size")

    def __init__(self, size: int = 64) -> None:
        self.size: int = size
        self.events: CData = ffi.new("exsi_event[]", size)
        self._bytes = memoryview(ffi.buffer(self.events))
        self._dirty = 0

    def take(self, count: int) -> list[RawEvent]:
        """The first ``count`` events."""
        if watchers:
            for watcher in tuple(watchers):
                watcher()
        self._dirty = max(self._dirty, count)
        return list(_EVENT.iter_unpack(self._bytes[: count * _EVENT.size]))

    def clear(self) -> None:
        """Before a wait that a signal handler may leave by an exception: then :meth:`rest` can tell what it got."""
        used = self._dirty * _EVENT.size
        self._bytes[:used] = bytes(used)
        self._dirty = 0

    def rest(self) -> list[RawEvent]:
        """What a wait put here since :meth:`clear`, whether or not :meth:`take` has handed it out.

        A handler's exception can strike between the return of the core and the use of what it returned.
        """
        count = 0
        while count < self.size and self.events[count].kind:
            count += 1
        return self.take(count)


class Caller:
    """Makes posts, and holds what the last one returned.  Used by one thread at a time: one a pump, one a thread."""

    __slots__ = ("_bytes", "_ctx", "_out")

    def __init__(self, ctx: Context, *, report: bool = True) -> None:
        self._ctx = ctx.pointer
        block = ffi.new("exsi_posted *")
        # Without a block to report in, the core never returns 1: every event goes to the queue.
        self._out = block if report else ffi.NULL
        self._bytes = memoryview(ffi.buffer(block))

    @property
    def event(self) -> RawEvent:
        """The event, where the last call returned 1."""
        event: RawEvent = _EVENT.unpack_from(self._bytes)
        return event

    @property
    def op(self) -> int:
        """Handle of the operation for :meth:`cancel`, where the last post returned 0."""
        handle: int = self._out.op
        return handle

    @property
    def pending(self) -> int:
        """Events that lay in the queue after the last post: drain, since no signal was sent for them."""
        count: int = self._out.pending
        return count

    def send(self, sock: int, span: Span, flags: int, cookie: int, eq: int) -> int:
        """Send a span.  ``flags``: ``SHUT_WR_AFTER``, ``STRICT_SIZE``.  Result as in the module's head."""
        return lib.exsi_send(
            self._ctx, sock, span.pointer, span.length, flags | span.flags, span.handle, cookie, eq, self._out
        )

    def recv(self, sock: int, span: Span, flags: int, cookie: int, eq: int) -> int:
        """Receive into a span.  ``flags``: ``WAITALL``, ``DONTWAIT`` (1: value bytes taken, or ``-EAGAIN``)."""
        return lib.exsi_recv(
            self._ctx, sock, span.pointer, span.length, flags | span.flags, span.handle, cookie, eq, self._out
        )

    def sendmsg(self, sock: int, pieces: Pieces, flags: int, cookie: int, eq: int) -> int:
        """Send pieces as one."""
        return lib.exsi_sendmsg(
            self._ctx, sock, pieces.pointer, pieces.count, flags | pieces.flags, cookie, eq, self._out
        )

    def recvmsg(self, sock: int, pieces: Pieces, flags: int, cookie: int, eq: int) -> int:
        """Receive into pieces as one."""
        return lib.exsi_recvmsg(
            self._ctx, sock, pieces.pointer, pieces.count, flags | pieces.flags, cookie, eq, self._out
        )

    def send_many(self, sock: int, pieces: Pieces, flags: int, cookie: int, eq: int) -> int:
        """Send each piece as an operation of its own with cookie + its index: how many were accepted, or ``-errno``."""
        return lib.exsi_send_many(
            self._ctx, sock, pieces.pointer, pieces.count, flags | pieces.flags, cookie, eq, self._out
        )

    def recv_many(self, sock: int, pieces: Pieces, flags: int, cookie: int, eq: int) -> int:
        """Receive into each piece as an operation of its own with cookie + its index: how many, or ``-errno``."""
        return lib.exsi_recv_many(
            self._ctx, sock, pieces.pointer, pieces.count, flags | pieces.flags, cookie, eq, self._out
        )

    def send_split(self, sock: int, span: Span, piece: int, flags: int, cookie: int, eq: int) -> int:
        """As :meth:`send_many` for one span cut into pieces of ``piece`` bytes (the last may be shorter)."""
        return lib.exsi_send_split(
            self._ctx,
            sock,
            span.pointer,
            span.length,
            piece,
            flags | span.flags,
            span.handle,
            cookie,
            eq,
            self._out,
        )

    def connect(self, sock: int, address: bytes, cookie: int, eq: int) -> int:
        """Connect to an address made by :func:`pack_address`."""
        raw = ffi.from_buffer("char[]", address)
        return lib.exsi_connect(self._ctx, sock, raw, len(address), cookie, eq, self._out)

    def accept(self, sock: int, cookie: int, eq: int) -> int:
        """Take one connection: the event's value is the new socket."""
        return lib.exsi_accept(self._ctx, sock, cookie, eq, self._out)

    def poll(self, sock: int, flags: int, cookie: int, eq: int) -> int:
        """Wait until ``POLL_IN`` or ``POLL_OUT`` holds: the event's value says which."""
        return lib.exsi_poll(self._ctx, sock, flags, cookie, eq, self._out)

    def poll_many(self, polls: PollSet, cookie: int, eq: int) -> int:
        """Wait until one socket is ready: the event's extra says which, its value for what."""
        return lib.exsi_poll_many(self._ctx, polls.socks, polls.bits, polls.count, cookie, eq, self._out)

    def shutdown(self, sock: int, how: int, cookie: int, eq: int) -> int:
        """Shut a direction (``socket.SHUT_WR``, ``SHUT_RD``)."""
        return lib.exsi_shutdown(self._ctx, sock, how, cookie, eq, self._out)

    def close(self, sock: int, abort: bool, cookie: int, eq: int) -> int:
        """Close a socket, in order or at once; without a queue (0) no event comes."""
        return lib.exsi_socket_close(self._ctx, sock, abort, cookie, eq, self._out)

    def cancel(self, sock: int, op: int) -> int:
        """Ask for the end of an operation.

        Returns:
            1: over, its event is here and not in the queue; 0: it will come; ``-EBADF``: there is no such operation any
            more (its event lies in the queue).
        """
        return lib.exsi_cancel(self._ctx, sock, op, self._out)


class EventQueue:
    """An event queue of the core.

    Attributes:
        handle: What posts name it by.
        fd: Readable while there is something to drain, once a drain returned nothing.
    """

    __slots__ = ("_ctx", "fd", "handle")

    def __init__(self, ctx: Context, depth: int, group: int = 0) -> None:
        self._ctx = ctx.pointer
        out = ffi.new("uint64_t *")
        check(lib.exsi_eq_new(self._ctx, group, depth, out))
        self.handle: int = out[0]
        self.fd: int = lib.exsi_eq_fd(self._ctx, self.handle)

    def drain(self, batch: Batch, spin_us: int = 0, *, most: int = 1 << 30) -> list[RawEvent]:
        """Run the inline group once, then take up to ``batch.size`` events.

        Args:
            batch: Room for them.
            spin_us: Microseconds to poll for a first one.
            most: Take no more than this many.

        Returns:
            The events; if there are none, the descriptor is armed and may be slept on.
        """
        most = min(most, batch.size)
        count = lib.exsi_eq_drain(self._ctx, self.handle, batch.events, most, spin_us)
        if count > 0:
            return batch.take(count)
        if count < 0:
            raise error(count)
        return []

    def poll(self, batch: Batch) -> list[RawEvent]:
        """As :meth:`drain` without spinning, for a loop that looks again before it sleeps: arms nothing."""
        count = lib.exsi_eq_poll(self._ctx, self.handle, batch.events, batch.size)
        if count > 0:
            return batch.take(count)
        if count < 0:
            raise error(count)
        return []

    def kick(self) -> None:
        """Make the descriptor readable until the next drain or poll."""
        check(lib.exsi_eq_kick(self._ctx, self.handle))

    def wait(self, batch: Batch, most: int, least: int, timeout_us: int, wait: int, spin_us: int) -> list[RawEvent]:
        """Wait, without the interpreter lock.

        Args:
            batch: Room for the events.
            most: Take no more than this many, nor than ``batch.size``.
            least: Wait for this many.
            timeout_us: Microseconds; negative for no limit.
            wait: One of :data:`WAITS`.
            spin_us: Microseconds to spin first, where ``wait`` is adaptive.

        Returns:
            The events, fewer than ``least`` on time-out.

        Raises:
            InterruptedError: A signal came and no event was there.
            exs.Error: ``EBADF``: the queue was freed meanwhile.
        """
        most = min(most, batch.size)
        count = lib.exsi_eq_wait(self._ctx, self.handle, batch.events, most, least, timeout_us, wait, spin_us)
        if count > 0:
            return batch.take(count)
        if count < 0:
            raise error(count)
        return []

    def depth(self, depth: int = 0) -> int:
        """Set the depth (0: do not) and return it."""
        return check(lib.exsi_eq_depth(self._ctx, self.handle, depth))

    def count(self) -> int:
        """Events that lie in the queue."""
        return check(lib.exsi_eq_count(self._ctx, self.handle))

    def free(self) -> None:
        """Give it back.

        Raises:
            BusyError: Operations in flight will answer to it.
        """
        code = lib.exsi_eq_free(self._ctx, self.handle)
        if code == -_errno.EBUSY:
            raise BusyError(_errno.EBUSY, "the event queue still waits for operations in flight")
        check(code)


# --- sockets' addresses -----------------------------------------------------------------------------------------

_IN4 = struct.Struct("=H2s4s8x")
_IN6 = struct.Struct("=H2s4s16sI")


def pack_address(family: int, address: tuple[str | int, ...]) -> bytes:
    """The ``struct sockaddr`` of a numeric address written as :mod:`socket` does.

    Raises:
        OSError: The host is no numeric address of that family.
        OverflowError: The port is not within 0 and 65535.
        TypeError: Not a tuple of the shape that :mod:`socket` uses.
    """
    if not 2 <= len(address) <= (4 if family == _socket.AF_INET6 else 2):
        raise TypeError(f"the address must be a tuple (host, port, ...), not {address!r}")
    host, port = address[:2]
    more = [m for m in address[2:] if isinstance(m, int)]
    if not isinstance(host, str) or not isinstance(port, int) or len(more) != len(address) - 2:
        raise TypeError(f"the address must be (str, int, ...), not {address!r}")
    if not 0 <= port <= 65535:
        raise OverflowError("the port must be from 0 to 65535")
    net_port = struct.pack("!H", port)
    if family == _socket.AF_INET:
        return _IN4.pack(family, net_port, _socket.inet_pton(family, host or "0.0.0.0"))  # noqa: S104  as in socket
    host, _, zone = host.partition("%")
    flow = more[0] if more else 0
    scope = more[1] if len(more) > 1 else 0
    if zone and not scope:
        scope = _socket.if_nametoindex(zone) if not zone.isdigit() else int(zone)
    return _IN6.pack(family, net_port, struct.pack("!I", flow), _socket.inet_pton(family, host or "::"), scope)


def unpack_address(raw: bytes | memoryview) -> tuple[str, int] | tuple[str, int, int, int]:
    """An address of the core, as :mod:`socket` writes it."""
    family: int = struct.unpack_from("=H", raw)[0]
    if family == _socket.AF_INET6:
        _, port, flow, host, scope = _IN6.unpack_from(raw)
        return (
            _socket.inet_ntop(family, host),
            int.from_bytes(port, "big"),
            int.from_bytes(flow, "big"),
            scope,
        )
    _, port, host = _IN4.unpack_from(raw)
    return _socket.inet_ntop(_socket.AF_INET, host), int.from_bytes(port, "big")


# --- the context ------------------------------------------------------------------------------------------------


class SocketInfo(NamedTuple):
    """What the core knows of a socket."""

    state: int
    error: int
    family: int
    type: int
    device: str
    path: str
    reason: str
    readable: bool
    writable: bool
    peer_fin: bool
    send_shut: bool
    ops_in_flight: int


class DeviceInfo(NamedTuple):
    """What the core knows of a device."""

    name: str
    summary: str
    reason: str
    present: bool
    max_msg: int
    max_inline: int
    has_immediate: bool
    has_key_per_range: bool
    has_read: bool
    pins_memory: bool


def _text(chars: CData) -> str:
    return ffi.string(chars).decode("utf-8", "replace")


class Context:
    """The root object of the core, one a process; got from :func:`context`."""

    __slots__ = ("_groups", "_lock", "_log_records", "_pins", "_threaded", "pointer")

    def __init__(self) -> None:
        out = ffi.new("exsi_ctx **")
        code = lib.exsi_open(out)
        if code < 0:
            raise from_errno(code)
        self.pointer: CData = out[0]
        self._groups: set[int] = set()
        self._threaded = 0
        self._pins: bool | None = None
        self._lock = threading.Lock()
        self._log_records = ffi.new("exsi_log_record[]", 16)
        lib.exsi_log_threshold(self.pointer, _config.log_level())

    def forked(self) -> bool:
        """Whether this is a child of the process that opened it."""
        return bool(lib.exsi_forked(self.pointer))

    # groups

    def group_new(self) -> int:
        """A new inline progress group."""
        out = ffi.new("uint64_t *")
        check(lib.exsi_group_new(self.pointer, 0, out))
        group: int = out[0]
        with self._lock:
            self._groups.add(group)
        return group

    def threaded_group(self) -> int:
        """The one group that a native thread drives; made at first use."""
        with self._lock:
            if not self._threaded:
                out = ffi.new("uint64_t *")
                check(lib.exsi_group_new(self.pointer, 1, out))
                self._threaded = out[0]
                self._groups.add(self._threaded)
            return self._threaded

    def group_free(self, group: int) -> None:
        """End a group; what is open in it is aborted."""
        with self._lock:
            self._groups.discard(group)
        check(lib.exsi_group_free(self.pointer, group))

    def quit(self) -> None:
        """Abort all groups and join the native thread, before the interpreter ends.

        The context itself stays: daemon threads may still be inside a call, and the process is about to go.
        """
        with self._lock:
            groups, self._groups = self._groups, set()
        for group in groups:
            lib.exsi_group_free(self.pointer, group)

    # log and devices

    def drain_log(self) -> None:
        """Hand the core's log records to Python's logging."""
        count = lib.exsi_log_drain(self.pointer, self._log_records, 16)
        for i in range(count):
            record = self._log_records[i]
            _log.emit(record.level, _text(record.text), record.socket, record.dropped)

    def devices(self) -> list[DeviceInfo]:
        """Every device known, present or not."""
        room = ffi.new("exsi_device_info[]", 16)
        count = check(lib.exsi_devices(self.pointer, room, 16))
        return [
            DeviceInfo(
                name=_text(d.name),
                summary=_text(d.summary),
                reason=_text(d.reason),
                present=bool(d.present),
                max_msg=d.max_msg,
                max_inline=d.max_inline,
                has_immediate=bool(d.has_immediate),
                has_key_per_range=bool(d.has_key_per_range),
                has_read=bool(d.has_read),
                pins_memory=bool(d.pins_memory),
            )
            for d in (room[i] for i in range(count))
        ]

    def pins_memory(self) -> bool:
        """Whether registering may take long, because a device pins pages."""
        if self._pins is None:
            self._pins = any(d.present and d.pins_memory for d in self.devices())
        return self._pins

    # memory

    def mem_register(self, pointer: CData, length: int, flags: int) -> int:
        """Register memory, without the interpreter lock: the region's handle.

        Raises:
            exs.Error: ``ENOMEM`` names the memlock limit; ``EFAULT``: not mapped; ``EINVAL``: no bytes.
        """
        out = ffi.new("uint64_t *")
        _check_memory(lib.exsi_mem_register(self.pointer, pointer, length, flags, out), length)
        handle: int = out[0]
        return handle

    def mem_allocate(self, length: int, flags: int) -> tuple[int, CData]:
        """New memory of the core's own, registered: handle, and the pointer with which the mapping goes.

        Raises:
            exs.Error: ``ENOMEM``: no memory, or not as much as the memlock limit allows.
        """
        out = ffi.new("uint64_t *")
        addr = ffi.new("void **")
        _check_memory(lib.exsi_mem_allocate(self.pointer, length, flags, out, addr), length)
        unmap = lib.exsi_mem_unmap
        pointer = ffi.gc(ffi.cast("char *", addr[0]), lambda p: unmap(p, length), length)
        return out[0], pointer

    def mem_close(self, handle: int) -> None:
        """End a registration.

        Raises:
            BusyError: Operations in flight use it.
        """
        code = lib.exsi_mem_close(self.pointer, handle)
        if code == -_errno.EBUSY:
            count = lib.exsi_mem_in_use(self.pointer, handle)
            raise BusyError(_errno.EBUSY, f"the memory region is used by {max(count, 1)} operation(s) in flight")
        check(code)

    def mem_close_later(self, handle: int) -> None:
        """End a registration when its last operation ends; never fails."""
        lib.exsi_mem_close_later(self.pointer, handle)

    def mem_in_use(self, handle: int) -> int:
        """Operations in flight that use a region."""
        return max(lib.exsi_mem_in_use(self.pointer, handle), 0)

    # sockets

    def socket_new(
        self,
        family: int,
        kind: int,
        settings: _config.Settings,
        group: int,
        *,
        reuse_address: bool = True,
        reuse_port: bool = False,
        v6_only: bool = True,
    ) -> int:
        """A new socket in a group: its handle."""
        opt = ffi.new("exsi_options *")
        lib.exsi_options_default(opt)
        opt.device = settings.device.encode()
        opt.path = _PATHS[settings.path]
        opt.ring_bytes = settings.ring_bytes
        opt.max_adverts = settings.max_adverts
        opt.max_ops = settings.queue_depth
        opt.keepalive_ms = round(settings.keepalive * 1000)
        opt.close_timeout_ms = max(round(settings.close_timeout * 1000), 1)
        opt.connect_timeout_ms = max(round(settings.connect_timeout * 1000), 1)
        opt.direct_threshold = settings.direct_threshold
        opt.direct_hold_us = settings.direct_hold_us
        opt.strict_keys = settings.strict_keys
        opt.crc = settings.crc
        opt.strict_size = settings.strict_size
        opt.reuse_address = reuse_address
        opt.reuse_port = reuse_port
        opt.v6_only = v6_only
        out = ffi.new("uint64_t *")
        check(lib.exsi_socket_new(self.pointer, group, family, kind, opt, out))
        handle: int = out[0]
        return handle

    def bind(self, sock: int, address: bytes) -> None:
        """Bind to an address made by :func:`pack_address`."""
        check(lib.exsi_bind(self.pointer, sock, ffi.from_buffer("char[]", address), len(address)))

    def listen(self, sock: int, backlog: int) -> None:
        """Listen.

        Raises:
            NoDeviceError: No device or path as it was asked for.
            exs.Error: The address is in use, and so on.
        """
        code = lib.exsi_listen(self.pointer, sock, backlog)
        if code < 0:
            raise self.explain(sock, -code, setup=True)

    def sockname(self, sock: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """The local address."""
        room = ffi.new("char[]", 128)
        size = ffi.new("uint32_t *", 128)
        check(lib.exsi_sockname(self.pointer, sock, room, size))
        return unpack_address(memoryview(ffi.buffer(room)))

    def peername(self, sock: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """The peer's address."""
        room = ffi.new("char[]", 128)
        size = ffi.new("uint32_t *", 128)
        check(lib.exsi_peername(self.pointer, sock, room, size))
        return unpack_address(memoryview(ffi.buffer(room)))

    def query(self, sock: int) -> SocketInfo:
        """The state of a socket."""
        info = ffi.new("exsi_socket_info *")
        check(lib.exsi_socket_query(self.pointer, sock, info))
        return SocketInfo(
            state=info.state,
            error=info.error,
            family=info.family,
            type=info.type,
            device=_text(info.device),
            path=_text(info.path),
            reason=_text(info.reason),
            readable=bool(info.readable),
            writable=bool(info.writable),
            peer_fin=bool(info.peer_fin),
            send_shut=bool(info.send_shut),
            ops_in_flight=info.ops_in_flight,
        )

    def explain(self, sock: int, number: int, *, setup: bool = False, transferred: int = 0) -> Error:
        """The exception for an errno of a socket, with the core's own words where it has some."""
        info = ffi.new("exsi_socket_info *")
        reason = ""
        if sock and lib.exsi_socket_query(self.pointer, sock, info) == 0:
            reason = _text(info.reason)
        if not reason and number == _errno.EINVAL:
            return error(-number)
        return from_errno(number, reason or None, setup=setup, transferred=transferred)

    def abandon(self, sock: int) -> None:
        """Close a socket at once, from any thread; operations in flight end with their events."""
        lib.exsi_socket_close(self.pointer, sock, 1, 0, 0, NULL)

    def cancel_match(self, sock: int = 0, cookie: int | None = None) -> int:
        """Ask for the end of all operations of a socket, with a cookie, or both; their events come: how many."""
        return check(lib.exsi_cancel_match(self.pointer, sock, cookie is not None, cookie or 0))

    def statistics(self, sock: int = 0) -> dict[str, int]:
        """Counters of a socket, or of the process, by name."""
        names = _counter_names()
        room = ffi.new("uint64_t[]", len(names))
        count = check(lib.exsi_statistics(self.pointer, sock, room, len(names)))
        return dict(zip(names, (room[i] for i in range(count)), strict=True))


def _counter_names() -> list[str]:
    names: list[str] = []
    while name := lib.exsi_statistics_name(len(names)):
        names.append(_text(name))
    return names


_current: Context | None = None
_is_fork = False
_open_lock = threading.Lock()
_FORKED = "this process is a fork of the one that used exs: every exs object is dead here (use spawn, or fork first)"


def context() -> Context:
    """The process's context, opened by the first call.

    Raises:
        exs.Error: ``EINVAL``: this is a forked child of a process that had used exs.
    """
    if _current is not None:
        return _current
    return _open()


def _open() -> Context:
    global _current
    with _open_lock:
        if _is_fork:
            raise Error(_errno.EINVAL, _FORKED)
        if _current is None:
            first = _current = Context()
            os.register_at_fork(after_in_child=_mark_fork)
            atexit.register(first.quit)
        return _current


def _mark_fork() -> None:
    global _current, _is_fork, _open_lock
    _open_lock = threading.Lock()  # another thread may have held it at the moment of the fork
    if _current is not None:
        _current, _is_fork = None, True


def forked() -> bool:
    """Whether this is a forked child of a process that had used exs, and has not started again."""
    return _is_fork


def start_again_after_fork() -> None:
    """Let a forked child open a context of its own; what it inherited stays dead.  *Source:* ES-API, ``exs_init``."""
    global _is_fork
    _is_fork = False
    ops.reset()  # entries of the parent's operations, whose events never come here


def check(code: int) -> int:
    """A result of the core: itself if not negative, else raises what it means."""
    if code < 0:
        raise error(code)
    return code


def error(code: int, *, setup: bool = False, transferred: int = 0) -> Error:
    """The exception for a negative result (or an errno); in a forked child it names the fork."""
    number = abs(code)
    if number == _errno.EINVAL and _is_fork:
        return Error(number, _FORKED)
    return from_errno(number, setup=setup, transferred=transferred)


def _check_memory(code: int, length: int) -> None:
    if code != -_errno.ENOMEM:
        check(code)
        return
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft} bytes"
    raise Error(
        _errno.ENOMEM,
        f"no memory to register {length} bytes; the limit of locked memory (memlock) is {limit}: "
        "raise it with 'ulimit -l', in /etc/security/limits.conf or with LimitMEMLOCK= of the service, "
        "or register less",
    )
