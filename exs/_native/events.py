# SPDX-License-Identifier: MIT OR Apache-2.0
"""Events on their way from the core: the queue, and the room into which it is emptied.

Owns the layout of ``struct exsi_event``, and the list of who looks at memory after a batch.

Invariant: an event is handed out once, by the call that took it out of the queue; only where that call was left by
a signal handler's exception does :meth:`Batch.rest` find it again.  The room is C's memory, written over by the next
drain, so what is handed out is a copy.
"""

from __future__ import annotations

import errno as _errno
import struct
from functools import partial
from typing import TYPE_CHECKING

from exs._exs import ffi, lib
from exs._native.process import check, error
from exs.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from exs._exs import CData
    from exs._native.process import Context

RawEvent = tuple[int, int, int, int, int, int]
"""Cookie, value, extra, error, kind (``OP_``), flags (``EV_``): ``struct exsi_event``."""

EVENT = struct.Struct("<QQQiHH")
"""What unpacks a :data:`RawEvent`."""

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
        if count == 1:
            return [EVENT.unpack_from(self._bytes)]
        return list(EVENT.iter_unpack(self._bytes[: count * EVENT.size]))

    def clear(self) -> None:
        """Before a wait that a signal handler may leave by an exception: then :meth:`rest` can tell what it got."""
        used = self._dirty * EVENT.size
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

    def bound(self, batch: Batch) -> tuple[Callable[[int], int], Callable[[], int]]:
        """:meth:`drain` (called with ``spin_us``) and :meth:`poll` for one batch, as calls that cost no Python code.

        They return how many events :meth:`Batch.take` has, or ``-errno``.
        """
        arguments = self._ctx, self.handle, batch.events, batch.size
        return partial(lib.exsi_eq_drain, *arguments), partial(lib.exsi_eq_poll, *arguments)

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
