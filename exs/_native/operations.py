# SPDX-License-Identifier: MIT OR Apache-2.0
"""The table of running operations: what a cookie stands for.

Owns the table, and with it what an operation in flight keeps alive.  Knows neither the core nor its events.

Invariant: whoever posts holds an entry of :data:`ops` from before the post until the event was dequeued, and
that entry refers to the :class:`~exs._native.buffers.Span` of every buffer.  C holds no Python object; it returns
the cookie, and the cookie leads to the entry: ``ops.add()`` gives a cookie whose low 32 bits are zero and the
owner's to use.
"""

from __future__ import annotations

import threading


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
