# SPDX-License-Identifier: MIT OR Apache-2.0
"""How tasks wait for the pump other than for one operation: in line before a socket, or for a queue's events.

Owns the order of those that wait.  Invariant: posts keep the order in which their tasks came, and an event that was
put into an inbox stays there until its owner reads it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from exs._native import ops

if TYPE_CHECKING:
    import trio

    from exs._native import RawEvent

__all__ = ["Gate", "Inbox"]


class Waker(Protocol):
    """What an inbox tells the pump."""

    urgent: int
    """Tasks whose next step is an event: worth spinning for."""


class Gate:
    """The line before a socket that has too many operations in flight, so that posts keep their order."""

    __slots__ = ("tasks", "turn")

    def __init__(self) -> None:
        self.tasks: deque[trio.lowlevel.Task] = deque()
        self.turn: trio.lowlevel.Task | None = None  # awake, about to try; still the first in line

    def wake(self) -> None:
        """There may be room: let the first one try."""
        if self.turn is None and self.tasks:
            self.turn = self.tasks[0]
            reschedule(self.turn)

    async def wait(self, task: trio.lowlevel.Task) -> None:
        """Wait for the turn to try; whoever had it and tries again stays first."""
        if self.turn is task:
            self.turn = None
        else:
            self.tasks.append(task)

        def abort(_: object) -> Abort:
            self.tasks.remove(task)
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)

    def leave(self, task: trio.lowlevel.Task) -> None:
        """The one whose turn it was has posted, or was refused; the next may find room too."""
        self.tasks.remove(task)
        self.turn = None
        self.wake()


class Inbox:
    """Where the events of a queue's operations go; its owner reads them in a task of its own."""

    __slots__ = ("cookie", "events", "fresh", "owner", "pump", "task", "wanted")

    def __init__(self, pump: Waker, owner: object) -> None:
        self.pump = pump
        self.owner = owner  # and with it every buffer, until the last event came
        self.events: deque[RawEvent] = deque()
        self.task: trio.lowlevel.Task | None = None
        self.wanted = 1
        self.fresh = False
        self.cookie = ops.add(self)

    def close(self) -> None:
        """No event will come any more."""
        ops.remove(self.cookie)

    async def wait(self, wanted: int, *, shielded: bool = False, patient: bool = False) -> None:
        """Wait until so many events are here; ``patient`` where enough is under way meanwhile, so that none is urgent.

        *Cancellation:* no effect; if ``shielded``, it does not end the wait.
        """
        self.task = current_task()
        self.wanted = wanted
        pump, urgent = self.pump, not patient
        pump.urgent += urgent
        try:
            await wait_task_rescheduled(_refuse_abort if shielded else self._abort)
        finally:
            pump.urgent -= urgent

    def wake(self) -> None:
        """Events came."""
        self.fresh = False
        if self.task is not None and len(self.events) >= self.wanted:
            task, self.task = self.task, None
            reschedule(task)

    def _abort(self, _: object) -> Abort:
        self.task = None
        return Abort.SUCCEEDED


def _refuse_abort(_: object) -> Abort:
    return Abort.FAILED
