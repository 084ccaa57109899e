# SPDX-License-Identifier: MIT OR Apache-2.0
"""Looking at link groups: what the machines know and what the core knows, put together into :mod:`exs.smc.status`.

Owns the meaning of the octets and the limits of an answer.  Invariant: looking changes nothing and waits for nothing.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from exs._native import smc
from exs.errors import Error
from exs.smc.link_group import CONNECTIONS_MAX
from exs.smc.status import Connection, Cursor, Direction, Group, Link, Status, handshakes

if TYPE_CHECKING:
    from exs.smc.groups import LinkGroups
    from exs.smc.link_group import LinkGroup, Slot

__all__ = ["CONNECTIONS_MOST", "GROUPS_MOST", "snapshot"]

GROUPS_MOST = 250
CONNECTIONS_MOST = 1000
"""Groups, and connections of all of them together, in an answer to another process."""

WRITER_BLOCKED, URGENT_PENDING, URGENT_PRESENT = 0x80, 0x40, 0x20
SENDING_DONE, CLOSED, ABORT = 0x80, 0x40, 0x20
"""RFC 7609 A.4: flags of the producer, and those of the connection."""


def snapshot(groups: LinkGroups, under_way: int, *, limited: bool = False) -> Status:
    """All groups, as values.

    Args:
        groups: Of the run.
        under_way: How many handshakes are.
        limited: Leave off what is too much for one answer, and say how much that is.
    """
    every = list(groups)
    shown = every[:GROUPS_MOST] if limited else every
    left = CONNECTIONS_MOST if limited else None
    found: list[Group] = []
    for group in shown:
        try:
            seen = look(group, left)
        except Error as error:
            if error.errno != errno.EBADF:
                raise
            continue  # its link is gone, and it will be in a moment
        left = None if left is None else left - len(seen.connections)
        found.append(seen)
    return Status(
        pid=os.getpid(),
        under_way=under_way,
        groups=tuple(found),
        handshakes=handshakes(),
        groups_left_off=len(every) - len(shown),
    )


def look(group: LinkGroup, most: int | None = None) -> Group:
    """One group, with at most so many of its connections."""
    slots = list(group.slots.values())[:most]
    seen = [connection(group, slot) for slot in slots]
    room = CONNECTIONS_MAX - len(group.slots)
    return Group(
        serial=group.serial,
        role=group.role.value,
        version=group.version,
        peer_id=group.peer.peer_id.hex(),
        state=group.state.value,
        joinable=group.room,
        room=room if group.room else 0,
        ignored=group.ignored,
        link=link(group),
        connections=tuple(one for one in seen if one is not None),
        connections_left_off=len(group.slots) - len(slots),
    )


def link(group: LinkGroup) -> Link:
    """Its link."""
    info = smc.link_query(group.link)
    own, peer = group.address, group.peer_address
    return Link(
        device=info.device,
        number=group.number,
        state="up" if info.up else "down" if info.down else "forming",
        reason=(info.reason or os.strerror(info.error)) if info.down else "",
        gid=socket.inet_ntop(socket.AF_INET6, own.gid),
        peer_gid=socket.inet_ntop(socket.AF_INET6, group.peer.gid if peer is None else peer.gid),
        qpn=own.qpn,
        peer_qpn=0 if peer is None else peer.qpn,
        mtu=128 << (own if peer is None else peer).mtu_code,
        idle_s=info.idle_ms / 1000,
        cdc_sent=info.cdc_sent,
        cdc_received=info.cdc_received,
        cdc_unknown=info.cdc_unknown,
        llc_sent=info.llc_sent,
        llc_received=info.llc_received,
        tests_sent=info.tests_sent,
        tests_answered=info.tests_answered,
        buffers=info.rings,
        buffer_bytes=info.ring_bytes,
    )


def connection(group: LinkGroup, slot: Slot) -> Connection | None:
    """One connection; ``None``: its handshake has not made it yet, or its end is about to be told."""
    info = smc.connection_query(group.link, slot.token)
    if info is None:
        return None
    return Connection(
        token=info.token,
        peer_token=info.peer_token,
        established=slot.listener is None,
        error=os.strerror(info.error) if info.error else "",
        sending=direction(
            info.peer_size, info.produced, info.peer_consumed, (info.sent, info.unsent),
            info.producer_flags, info.connection_flags,
        ),
        receiving=direction(
            info.size, info.peer_produced, info.consumed, (info.received, info.unread),
            info.peer_producer_flags, info.peer_connection_flags,
        ),
    )  # fmt: skip


def direction(
    size: int, producer: smc.CursorInfo, consumer: smc.CursorInfo, counts: tuple[int, int], flags: int, ends: int
) -> Direction:
    """One direction of it: the buffer's size, the two cursors, bytes in all and waiting, and the writer's flags."""
    return Direction(
        buffer_bytes=size,
        producer=Cursor(wrap=producer.wrap, count=producer.offset),
        consumer=Cursor(wrap=consumer.wrap, count=consumer.offset),
        nbytes=counts[0],
        waiting=counts[1],
        writer_blocked=bool(flags & WRITER_BLOCKED),
        urgent_pending=bool(flags & URGENT_PENDING),
        urgent_present=bool(flags & URGENT_PRESENT),
        done=bool(ends & SENDING_DONE),
        closed=bool(ends & CLOSED),
        aborted=bool(ends & ABORT),
    )
