# SPDX-License-Identifier: MIT OR Apache-2.0
"""What both queues have in common: :class:`Queue`.

Owns the inbox and the cookies of a queue's operations, and who is inside a call of it.

Invariant: cookies of operations in flight differ, and rise in the order of the posts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import outcome
import trio
from trio.lowlevel import reschedule

from exs._pump import Inbox, cancel_shielded_checkpoint
from exs.errors import Error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from exs._handles import Direction

SEQUENCE = 1 << 32
"""Cookies of one queue differ in the low 32 bits."""


class Queue:
    """What both have in common: the inbox, the sequence, one task at a time."""

    def __init__(self, direction: Direction, depth: int) -> None:
        if depth < 1:
            raise ValueError("a queue is at least one deep")
        self.depth = depth
        self._direction = direction
        self._pump = direction.pump
        self._caller = direction.pump.caller
        self._inbox: Inbox | None = None
        self._entry: Inbox | None = None  # the same, as long as calls may begin
        self._next = 0
        self._busy = False

    def _open(self) -> Inbox:
        self._pump.check()
        if self._inbox is not None:
            raise RuntimeError("the queue is open already")
        self._direction.claim(self)
        self._inbox = self._entry = Inbox(self._pump, self)
        return self._inbox

    def _close(self) -> None:
        if self._inbox is not None:
            self._inbox.close()
            self._inbox = None
        self._direction.release()

    def _enter(self) -> Inbox:
        """A call begins."""
        self._pump.check()
        if self._entry is None:
            raise trio.ClosedResourceError("the queue is used inside its block only")
        if self._busy:
            raise trio.BusyResourceError("another task is inside a call of this queue")
        self._busy = True
        return self._entry

    async def _leave(self) -> Inbox:
        """The block ends: no call begins any more, and one that another task is inside of ends by an exception."""
        self._pump.check()
        inbox, self._entry = self._inbox, None
        assert inbox is not None
        while self._busy:
            task, inbox.task = inbox.task, None
            if task is not None:
                reschedule(task, outcome.Error(trio.ClosedResourceError("the block of the queue has ended")))
            await cancel_shielded_checkpoint()
        return inbox

    def _numbers(self, count: int) -> int:
        """The first of so many cookies in a row."""
        assert self._inbox is not None
        if self._next + count > SEQUENCE:
            self._next = 0
        first = self._inbox.cookie + self._next
        self._next += count
        return first

    def _cancel(self, cookies: Iterable[int]) -> None:
        try:
            for cookie in cookies:
                self._pump.context.cancel_match(self._direction.handle, cookie)
        except Error:
            pass  # the socket is closed: every operation has ended, the events are on their way
