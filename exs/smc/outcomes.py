# SPDX-License-Identifier: MIT OR Apache-2.0
"""How the handshakes of this process ended, counted.

Owns the counters.  Knows what a reason is called, and nothing of handshakes.  Invariant: what a peer says cannot make
the table of reasons grow beyond :data:`REASONS_MAX`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["REASONS_MAX", "Outcomes", "Reason", "count_failure", "count_fallback", "count_smc", "counted"]

REASONS_MAX = 64
"""Reasons that are counted one by one: the code in a DECLINE is any number of 32 bits."""


class Reason(NamedTuple):
    """Why a connection is plain TCP."""

    code: int
    """Diagnosis code; 0: none."""
    reason: str
    """In words."""
    by_peer: bool


OTHER = Reason(0, "other reasons", False)


@dataclass
class Outcomes:
    """The counts."""

    smc_v1: int = 0
    smc_v2: int = 0
    failed: int = 0
    tcp: dict[Reason, int] = field(default_factory=lambda: dict[Reason, int]())

    def add_fallback(self, reason: Reason) -> None:
        """One more for this reason; for another one, if there are too many of them."""
        if reason not in self.tcp and len(self.tcp) >= REASONS_MAX:
            reason = OTHER
        self.tcp[reason] = self.tcp.get(reason, 0) + 1


_lock = threading.Lock()
_counts = Outcomes()


def count_smc(version: int) -> None:
    """A handshake ended in SMC-R."""
    with _lock:
        if version == 1:
            _counts.smc_v1 += 1
        else:
            _counts.smc_v2 += 1


def count_fallback(reason: str, code: int = 0, *, by_peer: bool) -> None:
    """A connection is plain TCP."""
    with _lock:
        _counts.add_fallback(Reason(code, reason, by_peer))


def count_failure() -> None:
    """A handshake ended with an error."""
    with _lock:
        _counts.failed += 1


def counted() -> Outcomes:
    """A copy of the counts."""
    with _lock:
        return Outcomes(_counts.smc_v1, _counts.smc_v2, _counts.failed, dict(_counts.tcp))
