# SPDX-License-Identifier: MIT OR Apache-2.0
"""Counters of a socket or of the process, as a value.

Owns the names; the core counts.  A snapshot is not a consistent cut: the counters go on while it is taken.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from exs import _native

__all__ = ["Statistics", "of_socket", "statistics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Counters since the socket, or the process's first use of exs, began."""

    bytes_direct: int
    """Payload bytes that the device placed straight in a posted buffer."""
    bytes_indirect: int
    """Payload bytes that arrived through a stream's ring."""
    bytes_copied: int
    """Payload bytes that exs copied: ring to buffer, small unregistered sends, pieces."""
    bytes_mapped: int
    """Payload bytes read through a mapping of the peer's region."""
    bytes_device: int
    """Payload bytes that the device moved, both ways."""
    bytes_sent: int
    """Payload bytes of completed sends."""
    bytes_received: int
    """Payload bytes of completed receives."""
    operations: int
    """Operations completed."""
    wakeups: int
    """Times a sleeping peer had to be woken."""
    syscalls: int
    """System calls of the data path."""
    adverts_sent: int
    """Receives advertised to the peer."""
    adverts_received: int
    """Receives that the peer advertised."""
    adverts_void: int
    """Advertisements of the peer that could not be used."""
    credit_stalls: int
    """Times a message waited for credit."""
    registrations: int
    """Regions made for a single call."""


_copied = 0
"""Bytes that queues copied on their way back to a socket; the core does not see them."""

_lock = threading.Lock()


def count_copied(nbytes: int) -> None:
    """Bytes were copied by Python code of ours."""
    global _copied
    with _lock:
        _copied += nbytes


def statistics() -> Statistics:
    """Counters of the whole process, closed sockets included.

    Raises:
        exs.Error: ``EINVAL``: the process is a fork of one that used exs.
    """
    counters = _native.context().statistics()
    counters["bytes_copied"] += _copied
    return Statistics(**counters)


def of_socket(ctx: _native.Context, sock: int, copied: int = 0) -> Statistics:
    """Counters of one socket, by its handle; ``copied``: bytes that Python code of ours copied for it."""
    counters = ctx.statistics(sock)
    counters["bytes_copied"] += copied
    return Statistics(**counters)
