# SPDX-License-Identifier: MIT OR Apache-2.0
"""The bridge between the core's event queue and trio: one pump per trio run.

Owns the run's progress group and event queue, and the tasks that wait for its events.  Knows of sockets only
their handles.

An operation goes: check for cancellation, post (one C call), then either a shielded checkpoint (it was over at
once) or parking until its event is dispatched.  Whatever ends the wait, the operation has ended first: that is
rule C1, no ``await`` of ours returns or raises while the caller's buffer is in use.  So everything from the post
to the parking runs with Ctrl-C held off, and a cancelled wait ends only with the event, unless the core gave the
operation back within the very call that asked for it.

How the loop is woken.  To ask trio whether anything is runnable is dear, but an instrument is told: in
``before_io_wait(timeout)`` nothing is runnable if ``timeout > 0``.  There the pump looks for events a last time
(spinning a little), dispatches them, and if there are none arms the queue's descriptor: from then on events
signal and peers ring.  While the loop is busy the queue stays unarmed, which spares peers the ringing, and the
pump looks at it once a pass; so an event that a post left in the queue is seen before the next sleep, whatever
happens, and nobody need ask for it.  The task exists because trio must have somebody to wake when the descriptor is
readable, and to notice the end of the run.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import threading
import time
import types
import warnings
import weakref
from typing import TYPE_CHECKING, Protocol

import outcome
import trio
from trio.lowlevel import (
    Abort,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)
from trio.lowlevel import enable_ki_protection as protected

from exs import _native
from exs._native import ops
from exs._waiting import Gate, Inbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from exs._config import Settings
    from exs._native import RawEvent

__all__ = [
    "RECEIVING",
    "SENDING",
    "Inbox",
    "Pump",
    "cancel_shielded_checkpoint",
    "checkpoint",
    "checkpoint_if_cancelled",
    "current_pump",
    "protected",
]

FIRST_DEPTH = 1024
BATCH = 64
IDLE_PASSES = 16
BUSY_SPIN_US = 1000
SCRATCH = 65536
LOG_S = 1.0
EXPECTING_PASSES = 8
EARLY_TRIES = 8
EARLY_REST = 30

SENDING = 1
RECEIVING = 2

EAGAIN = errno.EAGAIN
ECANCELED = errno.ECANCELED


class Closeable(Protocol):
    """What the pump may do with a socket, at the end of the run."""

    def abandon(self) -> bool:
        """End it at once; true if it was open."""
        ...


class Waiting:
    """What else may be told of an event: anything that has asked for one."""

    def finish(self, event: RawEvent) -> None:
        """The event; called while the loop is about to sleep: to take note, and no more."""
        raise NotImplementedError


_runvar: trio.lowlevel.RunVar[Pump] = trio.lowlevel.RunVar("exs pump")


def current_pump() -> Pump:
    """The pump of this trio run, made if this is the first use.

    Raises:
        RuntimeError: Not inside a trio run.
        trio.ClosedResourceError: The run is ending: its pump is gone.
    """
    try:
        pump = _runvar.get()
    except LookupError:
        pump = Pump()
        _runvar.set(pump)
    pump.check()
    return pump


class Parked:
    """One operation whose task waits for its event.

    Its place in the table of operations is made once and used again for a later operation.
    """

    __slots__ = ("always_raise", "cookie", "direction", "event", "keep", "op", "pump", "raise_cancel", "sock", "task")

    def __init__(self, pump: Pump) -> None:
        self.pump: Pump = pump
        self.cookie: int = ops.add(self)
        self.task: trio.lowlevel.Task | None = None
        self.sock: int = 0
        self.direction: int = 0
        self.op: int = 0
        self.keep: object = None  # what holds the buffer: alive until the event is there
        self.event: RawEvent | None = None
        self.raise_cancel: trio.lowlevel.RaiseCancelT | None = None
        self.always_raise: bool = False

    def finish(self, event: RawEvent) -> None:
        """The operation is over."""
        self.event = event
        self.keep = None
        if self.task is None:
            return  # it has not parked yet, and will not
        if self.raise_cancel is not None and (self.always_raise or event[3] == ECANCELED):
            reschedule(self.task, outcome.capture(self.raise_cancel))
        else:
            reschedule(self.task)

    def abort(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> Abort:
        """Trio asks to end the wait: take the operation back, or wait for its event."""
        pump = self.pump
        caller = pump.caller
        if caller.cancel(self.sock, self.op) != 1:
            self.raise_cancel = raise_cancel
            return Abort.FAILED
        event = caller.event
        pump.over(self)
        if event[3] != ECANCELED:
            self.finish(event)
            return Abort.FAILED
        self.event = event
        self.keep = None
        return Abort.SUCCEEDED

    def abort_close(self, raise_cancel: trio.lowlevel.RaiseCancelT) -> Abort:
        """Trio asks to end an orderly close: make it a close at once, and wait for that."""
        self.raise_cancel = raise_cancel
        self.always_raise = True
        self.pump.caller.close(self.sock, True, 0, 0)
        return Abort.FAILED


class Pump:
    """What a trio run needs of the core.  Used by the run's thread alone."""

    def __init__(self) -> None:
        self.context: _native.Context = _native.context()
        self.caller: _native.Caller = _native.Caller(self.context)
        self.group: int = self.context.group_new()
        self.queue: _native.EventQueue = _native.EventQueue(self.context, FIRST_DEPTH, self.group)
        self.eq: int = self.queue.handle
        self.depth: int = FIRST_DEPTH
        self.in_flight: int = 0  # accepted, and not yet seen to be over
        self.urgent: int = 0  # tasks whose next step is an event: worth spinning for
        self.batch: _native.Batch = _native.Batch(BATCH)
        self.drain: Callable[[int], int]
        self.poll: Callable[[], int]
        self.drain, self.poll = self.queue.bound(self.batch)
        room = bytearray(SCRATCH)
        self.scratch: _native.Span = _native.writable(room)  # for data on its way into new bytes, within one call
        self.scratch_size = SCRATCH
        self.scratch_view: memoryview[int] = memoryview(room)
        self.gates: dict[tuple[int, int], Gate] = {}
        self.sockets: weakref.WeakValueDictionary[int, Closeable] = weakref.WeakValueDictionary()
        self.thread: int = threading.get_ident()
        self.spin_us: int = 0
        self.busy: bool = False
        self.ended: bool = False
        self._spare: Parked | None = None
        self._log_due = 0.0
        self._chance = 0
        self.expecting: int = 0  # passes in which an answer is likely: a receive had to wait a moment ago
        self._instrument = _Looks(self)
        trio.lowlevel.add_instrument(self._instrument)
        trio.lowlevel.spawn_system_task(self._run, name="exs pump")

    # --- sockets

    def adopt(self, handle: int, sock: Closeable, settings: Settings) -> None:
        """A socket was made."""
        self.sockets[handle] = sock
        if settings.wait != "notify":
            self.spin_us = max(self.spin_us, settings.spin_us)
        if settings.wait == "busy":
            self.busy = True

    def group_for(self, settings: Settings) -> int:
        """The progress group that a socket belongs to."""
        return self.context.threaded_group() if settings.progress == "thread" else self.group

    def check(self) -> None:
        """Refuse use from elsewhere.

        Raises:
            RuntimeError: From another run or thread.
            trio.ClosedResourceError: The run is ending.
        """
        if not self.ended and self.thread == threading.get_ident():
            return
        try:
            here = _runvar.get(None)  # type: ignore[arg-type]  # any default does
        except RuntimeError:
            here = None
        if here is not self:
            raise RuntimeError("an exs socket, stream or queue belongs to the trio run that made it")
        raise trio.ClosedResourceError("this trio run is ending")

    def is_used(self, sock: int, direction: int) -> bool:
        """Whether a task has an operation in flight in that direction of a socket; slow."""
        return (sock, direction) in self.gates or any(
            isinstance(owner, Parked) and owner.sock == sock and owner.direction == direction for owner in ops.owners()
        )

    # --- one operation

    @protected
    async def operate(
        self, call: Callable[..., int], sock: int, *args: object, keep: object = None, direction: int = 0
    ) -> RawEvent:
        """Start an operation and wait for its event.

        Args:
            call: A post of :class:`exs._native.Caller`, called with ``sock``, ``args``, a cookie and the queue.
            sock: Handle of the socket.
            *args: As the post wants them.
            keep: What holds the buffers.
            direction: ``SENDING`` or ``RECEIVING`` where the number of operations in flight is limited.

        Returns:
            The event; of a refused post, one with its errno.

        *Cancellation:* before the post: nothing was done.  After it: the core is asked for the end of the
        operation, and ``Cancelled`` is raised only if it ended without effect.
        """
        await checkpoint_if_cancelled()
        if self.ended or self.thread != threading.get_ident():
            self.check()
        if self.gates and (sock, direction) in self.gates:
            return await self._operate_gated(call, sock, args, keep, direction)
        if self.in_flight >= self.depth:
            self.make_room(1)
        parked = self._spare
        if parked is None:
            parked = self._spare = Parked(self)
        code = call(sock, *args, parked.cookie, self.eq)
        if code == 1:
            event = self.caller.event
            await cancel_shielded_checkpoint()
            return event
        if code == 0:
            return await self._park(parked, sock, keep, direction)
        if code == -EAGAIN and direction:
            return await self._operate_gated(call, sock, args, keep, direction)
        return parked.cookie, 0, 0, -code, 0, 0

    @protected
    async def _park(self, parked: Parked, sock: int, keep: object, direction: int) -> RawEvent:
        """Wait for the event of what was just accepted."""
        self._spare = None
        self.in_flight += 1
        parked.sock = sock
        parked.direction = direction
        parked.op = self.caller.op
        parked.keep = keep
        try:
            if direction:
                if direction == RECEIVING:
                    self.expecting = EXPECTING_PASSES
                self._look_early(parked)
            if parked.event is None:
                parked.task = current_task()
                self.urgent += 1
                try:
                    await wait_task_rescheduled(parked.abort)
                finally:
                    self.urgent -= 1
            else:
                await cancel_shielded_checkpoint()
            assert parked.event is not None
            return parked.event
        finally:
            self._reuse(parked)

    def _look_early(self, parked: Parked) -> None:
        """Look for the event before the task parks: where a peer answers at once, that spares sleeping and waking.

        As long as it helps; else now and then, to see whether it would.
        """
        self._chance -= 1
        if self._chance < -EARLY_REST:
            self._chance = 0
        if self._chance >= 0:
            self.look()
            if parked.event is not None:
                self._chance = EARLY_TRIES

    def _reuse(self, parked: Parked) -> None:
        if parked.event is None:
            return  # the run was abandoned: the buffer stays with the operation for ever
        if self._spare is not None or self.ended:
            ops.remove(parked.cookie)
            return
        parked.task = None
        parked.sock = 0
        parked.event = None
        parked.raise_cancel = None
        parked.always_raise = False
        self._spare = parked

    @protected
    async def _operate_gated(
        self, call: Callable[..., int], sock: int, args: tuple[object, ...], keep: object, direction: int
    ) -> RawEvent:
        """As operate, where the socket had no room: wait in line, then post."""
        task = current_task()
        key = (sock, direction)
        gate = self.gates.setdefault(key, Gate())
        while True:
            try:
                await gate.wait(task)
            finally:
                if not gate.tasks:
                    self.gates.pop(key, None)
            self.make_room(1)
            parked = self._spare
            if parked is None:
                parked = self._spare = Parked(self)
            code = call(sock, *args, parked.cookie, self.eq)
            if code == -EAGAIN:
                continue
            event = self.caller.event if code == 1 else (parked.cookie, 0, 0, -code, 0, 0)
            gate.leave(task)
            if not gate.tasks:
                self.gates.pop(key, None)
            return await self._park(parked, sock, keep, direction) if code == 0 else event

    @protected
    async def close(self, sock: int, *, idle: bool) -> None:
        """Close a socket and wait until it is closed.

        Args:
            sock: Its handle.
            idle: Nothing is in flight on it.

        *Cancellation:* an idle socket is closed in order if that takes no wait: trio closes so what a handler left
        open, and what it had sent must not be lost.  Else it is closed at once.  Then ``Cancelled`` is raised.
        """
        abort = not idle and trio.current_effective_deadline() == float("-inf")
        self.make_room(1)
        parked = Parked(self)
        code = self.caller.close(sock, abort, parked.cookie, self.eq)
        if code != 0:
            ops.remove(parked.cookie)
            await checkpoint()
            return
        self.in_flight += 1
        parked.task = current_task()
        parked.sock = sock
        try:
            await wait_task_rescheduled(parked.abort_close)
        finally:
            self._reuse(parked)

    def make_room(self, count: int) -> None:
        """Let the queue have room for so many more operations: an event is never refused for want of it."""
        wanted = self.in_flight + count
        if wanted > self.depth:
            self.depth = self.queue.depth(max(wanted, 2 * self.depth))

    def over(self, parked: Parked) -> None:
        """An operation ended without an event in the queue."""
        self.in_flight -= 1
        self.freed(parked.sock)
        for watcher in tuple(_native.watchers):
            watcher()

    def freed(self, sock: int) -> None:
        """A socket may have room for another operation, or none for ever."""
        if self.gates:
            for direction in (SENDING, RECEIVING):
                gate = self.gates.get((sock, direction))
                if gate is not None:
                    gate.wake()

    # --- events

    def look(self) -> None:
        """Run the engines once and dispatch what they brought; never blocks."""
        while (count := self.poll()) > 0:
            self.dispatch(self.batch.take(count))
            if count < BATCH:
                return

    def last_look(self, timeout: float) -> None:
        """As look, before the loop sleeps: spin a little, and arm the descriptor if there is nothing."""
        spin = 0
        if self.urgent:
            spin = min(BUSY_SPIN_US if self.busy else self.spin_us, int(timeout * 1e6))
        count = self.drain(spin)
        if count > 0:
            self.dispatch(self.batch.take(count))
        if count > 0 or (self.busy and self.in_flight):
            self.queue.kick()
        now = time.monotonic()
        if now >= self._log_due:
            self._drain_log(now)

    def dispatch(self, events: list[RawEvent]) -> None:
        """Hand events to those that wait for them."""
        self.in_flight -= len(events)
        get = ops.get
        fresh: list[Inbox] = []
        failed = False
        for event in events:
            owner = get(event[0])
            if event[3]:
                failed = True
            if type(owner) is Parked:
                owner.finish(event)
                if self.gates:
                    self.freed(owner.sock)
            elif type(owner) is Inbox:
                owner.events.append(event)
                if not owner.fresh:
                    owner.fresh = True
                    fresh.append(owner)
            elif isinstance(owner, Waiting):
                owner.finish(event)
        for inbox in fresh:
            inbox.wake()
        if failed:
            self._drain_log(time.monotonic())

    def _drain_log(self, now: float) -> None:
        """Hand on what the core logged: where an operation failed, and now and then."""
        self._log_due = now + LOG_S
        self.context.drain_log()

    # --- the run

    async def _run(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(self.queue.fd)
        finally:
            self._end()

    def _end(self) -> None:
        """The run is over: end what is open, see it through, give everything back."""
        self.ended = True
        trio.lowlevel.remove_instrument(self._instrument)
        for sock in list(self.sockets.values()):
            if sock.abandon():
                _warn(f"{sock!r} was still open at the end of its trio run", sock)
        try:
            self._see_through()
            self.context.group_free(self.group)
            self._see_through()
            trio.lowlevel.notify_closing(self.queue.fd)
            self.queue.free()
        except OSError as error:
            _unraisable(error, self)
        if self._spare is not None:
            ops.remove(self._spare.cookie)
        self.context.drain_log()

    def _see_through(self) -> None:
        """Dispatch events until all operations are over; a bounded wait, since every one has been aborted."""
        for _ in range(100):
            self.look()
            if not self.in_flight:
                return
            with contextlib.suppress(InterruptedError):
                self.dispatch(self.queue.wait(self.batch, BATCH, 1, 10_000, _native.WAITS["notify"], 0))


class _Looks(trio.abc.Instrument):
    """Tells the pump when the loop goes to sleep and when it wakes."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._passes = 0

    def before_io_wait(self, timeout: float) -> None:
        """The tasks of this pass have run."""
        pump = self._pump
        if timeout > 0:
            pump.last_look(timeout)
            return
        self._passes += 1
        if pump.expecting:
            pump.expecting -= 1
        elif not pump.in_flight and self._passes < IDLE_PASSES:
            return
        self._passes = 0
        pump.look()

    def after_io_wait(self, timeout: float) -> None:
        """The loop has slept: what woke it may be ours, and then its task can run in this very pass."""
        if timeout > 0:
            self._pump.look()


def _warn(text: str, source: object) -> None:
    """Warn where an exception, which a warning may be turned into, must not go up."""
    try:
        warnings.warn(text, ResourceWarning, source=source, stacklevel=2)
    except ResourceWarning as error:
        _unraisable(error, source)


def _unraisable(error: BaseException, source: object) -> None:
    sys.unraisablehook(
        types.SimpleNamespace(  # pyright: ignore[reportArgumentType]  # the very shape that the hook takes
            exc_type=type(error), exc_value=error, exc_traceback=error.__traceback__, err_msg=None, object=source
        )
    )
