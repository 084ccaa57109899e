# SPDX-License-Identifier: MIT OR Apache-2.0
"""What SMC-R is doing, as values: link groups, their links, their connections, and how handshakes ended.

Owns the values and :func:`status`.  Knows neither the core nor the machines: whoever serves a trio run says how its
groups are looked at.  Invariants: a value never changes; keys and addresses of memory are in none of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from exs.smc import outcomes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connection", "Cursor", "Direction", "Fallback", "Group", "Handshakes", "Link", "Status", "status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A place in a receive buffer.  *Source:* RFC 7609 A.4."""

    wrap: int
    """How often the end of the buffer was passed, modulo 65536."""
    count: int
    """Offset in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One direction of a connection: who writes, into which buffer, and how far both are."""

    buffer_bytes: int
    """Size of the reader's buffer; 0 before the peer has told its own."""
    producer: Cursor
    """How far the writer has written; of the peer's: as it has told."""
    consumer: Cursor
    """How far the reader has read; of the peer's: as it has told."""
    nbytes: int
    """Bytes written since the connection began."""
    waiting: int
    """Bytes that wait: sending, those accepted and not written yet, copied ones too; receiving, those not read yet."""
    writer_blocked: bool
    """The writer says that it has no room."""
    urgent_pending: bool
    """The writer says that an urgent byte is on its way."""
    urgent_present: bool
    """The writer says that its last byte is urgent."""
    done: bool
    """The writer said that it sends no more."""
    closed: bool
    """The writer said that it neither sends nor receives any more."""
    aborted: bool
    """The writer said that the connection ended by an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One connection on a link."""

    token: int
    """Our alert token."""
    peer_token: int
    """The peer's; 0 before it is known."""
    established: bool
    """Its handshake is over."""
    error: str
    """What ended it, in words; empty while it lives, and after an end in order."""
    sending: Direction
    """From us, into the peer's buffer."""
    receiving: Direction
    """From the peer, into our buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The link of a group: one queue pair of each side."""

    device: str
    """``"verbs"`` or ``"soft"``."""
    number: int
    """Link number, the server's choice."""
    state: str
    """``"forming"``, ``"up"`` or ``"down"``."""
    reason: str
    """Why it is down, in words; else empty."""
    gid: str
    """Our GID."""
    peer_gid: str
    """The peer's."""
    qpn: int
    """Number of our queue pair."""
    peer_qpn: int
    """The peer's; 0 before it is known."""
    mtu: int
    """Path MTU in bytes; our own before the peer's is known."""
    idle_s: float
    """Seconds since something came."""
    cdc_sent: int
    """CDC messages sent."""
    cdc_received: int
    """CDC messages received."""
    cdc_unknown: int
    """Those of them that no connection has the token of."""
    llc_sent: int
    """LLC messages sent, without TEST_LINK."""
    llc_received: int
    """LLC messages received, without TEST_LINK."""
    tests_sent: int
    """TEST_LINK requests sent."""
    tests_answered: int
    """TEST_LINK requests of the peer, all of which were answered."""
    buffers: int
    """Receive buffers that are registered, those in stock for the next connections included."""
    buffer_bytes: int
    """Bytes of all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One link group."""

    serial: int
    """Number of the group among those of this trio run."""
    role: str
    """Ours: ``"client"`` or ``"server"``."""
    version: int
    """Of SMC-R: 1 or 2."""
    peer_id: str
    """The peer's, 16 hexadecimal digits."""
    state: str
    """``"forming"``, ``"active"`` or ``"ending"``."""
    joinable: bool
    """One more connection may join now."""
    room: int
    """How many may; 0 if it is not joinable."""
    ignored: int
    """LLC messages that were none, or that nothing asked for."""
    link: Link
    """Its link."""
    connections: tuple[Connection, ...]
    """Those on it, from their handshake to their end on both sides."""
    connections_left_off: int = 0
    """How many more there are; not 0 only in an answer to ``exs smc status``, whose length is limited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """A reason for which connections went on in plain TCP."""

    code: int
    """Diagnosis code of the DECLINE; 0: there was none."""
    reason: str
    """In words."""
    by_peer: bool
    """It was the peer's decision."""
    count: int
    """How many connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshakes:
    """How the handshakes of this process ended, of all its trio runs."""

    smc_v2: int
    """In SMC-R of version 2."""
    smc_v1: int
    """In SMC-R of version 1."""
    failed: int
    """With an error, and no stream."""
    tcp: tuple[Fallback, ...]
    """In plain TCP, by reason, the most frequent one first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All that SMC-R is doing in one trio run."""

    pid: int
    """Of this process."""
    under_way: int
    """Handshakes that have not ended, of this trio run."""
    groups: tuple[Group, ...]
    """The link groups of this trio run, the oldest first."""
    handshakes: Handshakes
    """How those of this process ended."""
    groups_left_off: int = 0
    """How many more groups there are; as :attr:`Group.connections_left_off`."""


_source: trio.lowlevel.RunVar[Callable[[], Status]] = trio.lowlevel.RunVar("exs smc status")


def offer(source: Callable[[], Status]) -> None:
    """Say how SMC-R of this trio run is looked at."""
    _source.set(source)


def handshakes() -> Handshakes:
    """How the handshakes of this process ended."""
    ends = outcomes.counted()
    tcp = [Fallback(code=f.code, reason=f.reason, by_peer=f.by_peer, count=n) for f, n in ends.tcp.items()]
    return Handshakes(
        smc_v2=ends.smc_v2,
        smc_v1=ends.smc_v1,
        failed=ends.failed,
        tcp=tuple(sorted(tcp, key=lambda fallback: -fallback.count)),
    )


def status() -> Status:
    """What SMC-R is doing in this trio run; nothing is made or changed by it.

    Returns:
        A snapshot.  Groups are those of this trio run; how handshakes ended is counted for the whole process.

    Raises:
        RuntimeError: Not inside a trio run.
        exs.Error: ``EINVAL``: the process is a fork of one that used exs.
    """
    try:
        source = _source.get()
    except LookupError:
        return Status(pid=os.getpid(), under_way=0, groups=(), handshakes=handshakes())
    return source()
