# SPDX-License-Identifier: MIT OR Apache-2.0
"""Keys of a link group: the peer's rtokens, our own buffers, and the queue of our own LLC requests.

Owns the three tables and their limits; which message follows from them is :mod:`exs.smc.link_group`'s.
Invariants: at most 255 rtokens of the peer; a buffer is in exactly one place (with a connection, being withdrawn, in
stock, or closed); at most one request of ours is unanswered, and each one ends exactly once.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exs.smc import llc

__all__ = ["RTOKENS_MAX", "STOCK_MAX", "Flow", "FlowKind", "Flows", "Rmb", "Rtokens", "Stock"]

RTOKENS_MAX = 255
"""Pairs of rkey and address that a peer may have announced at one time."""

STOCK_MAX = 4
"""Withdrawn buffers that a group keeps for its next connections."""

RESPONSE_TIMEOUT = 2.0
"""Seconds for the answer to a request of ours."""


class Rtokens:
    """Buffers of the peer: rkey to address."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def full(self) -> bool:
        """No other rkey can be added."""
        return len(self._known) >= RTOKENS_MAX

    def add(self, rkey: int, vaddr: int) -> bool:
        """Note a buffer; one that is known takes no second entry.

        Returns:
            Whether there was room.
        """
        if rkey not in self._known and self.full:
            return False
        self._known[rkey] = vaddr
        return True

    def remove(self, rkeys: tuple[int, ...]) -> tuple[bool, ...]:
        """Forget buffers.

        Returns:
            For each rkey, whether it was known.
        """
        return tuple(self._known.pop(rkey, None) is not None for rkey in rkeys)


@dataclass(eq=False, slots=True)
class Rmb:
    """A receive buffer of ours, registered on the group's link."""

    handle: int
    rkey: int
    vaddr: int
    size_code: int
    announced: bool = False
    """The peer knows its rkey: it has to be withdrawn before the memory serves anything else."""
    spoiled: bool = False
    """The peer may still write into it: it is given back, and serves no other connection."""


class Stock:
    """Buffers that no connection uses and no peer knows."""

    def __init__(self) -> None:
        self._idle: list[Rmb] = []

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, size_code: int) -> Rmb | None:
        """A buffer of this size, if there is one."""
        for place, rmb in enumerate(self._idle):
            if rmb.size_code == size_code:
                return self._idle.pop(place)
        return None

    def put(self, rmb: Rmb) -> Rmb | None:
        """Keep a buffer.

        Returns:
            The buffer to close, where there are enough.
        """
        assert not rmb.announced
        self._idle.append(rmb)
        return self._idle.pop(0) if len(self._idle) > STOCK_MAX else None

    def drain(self) -> list[Rmb]:
        """All of them, for their closing."""
        idle, self._idle = self._idle, []
        return idle


class FlowKind(enum.Enum):
    """Requests of ours that wait for a response."""

    ADD_LINK = "ADD_LINK"
    DELETE_LINK = "DELETE_LINK"
    CONFIRM_RKEY = "CONFIRM_RKEY"
    DELETE_RKEY = "DELETE_RKEY"


@dataclass(eq=False, slots=True)
class Flow:
    """One request of ours, from its queueing to its end."""

    kind: FlowKind
    request: llc.Message
    rmb: Rmb | None = None
    """Of CONFIRM_RKEY and DELETE_RKEY: the buffer concerned."""
    token: int = 0
    """Of CONFIRM_RKEY: the connection that waits."""


@dataclass(slots=True)
class Flows:
    """Our requests, one after the other.

    A peer drops a request that comes while it still serves one of ours of the same kind, and most other kinds exclude
    each other, so there is one queue for all.  The peer's own requests are answered at once and never wait here.
    """

    _queue: deque[Flow] = field(default_factory=lambda: deque[Flow]())
    current: Flow | None = None
    deadline: float | None = None
    """When the answer to the current one is overdue."""

    def __len__(self) -> int:
        return len(self._queue) + (self.current is not None)

    def add(self, flow: Flow) -> None:
        """Queue a request."""
        self._queue.append(flow)

    def next(self, now: float) -> Flow | None:
        """The request to send now, if none is unanswered; its time starts."""
        if self.current is not None or not self._queue:
            return None
        self.current = self._queue.popleft()
        self.deadline = now + RESPONSE_TIMEOUT
        return self.current

    def end(self) -> Flow:
        """The current one has its answer, or will never have one."""
        assert self.current is not None
        flow, self.current, self.deadline = self.current, None, None
        return flow

    def withdraw(self, token: int) -> Flow | None:
        """Take back the CONFIRM_RKEY of a connection that no longer waits, if it was not sent yet."""
        for flow in self._queue:
            if flow.kind is FlowKind.CONFIRM_RKEY and flow.token == token:
                self._queue.remove(flow)
                return flow
        return None

    def clear(self) -> list[Flow]:
        """All of them, for a group that has ended."""
        flows = [self.current] if self.current is not None else []
        flows.extend(self._queue)
        self._queue.clear()
        self.current = self.deadline = None
        return flows
