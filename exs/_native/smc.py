# SPDX-License-Identifier: MIT OR Apache-2.0
"""The calls for links and connections of SMC-R: one function, one call into the core.

Knows nothing of what the messages mean.  Invariant: every failure raises with the core's errno.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from exs._exs import ffi, lib
from exs._native.constants import NULL
from exs._native.process import check, context, options_of

if TYPE_CHECKING:
    from exs._config import Settings
    from exs._exs import CData

__all__ = ["Address", "ConnectionDone", "ConnectionInfo", "CursorInfo", "LinkDown", "LinkInfo", "Llc", "Notice"]

ADDRESS = "exsi_smc_address *"
NOTHING = ffi.new("char[1]")


class Address(NamedTuple):
    """Where one end of a link is."""

    gid: bytes
    mac: bytes
    mtu_code: int
    qpn: int
    psn: int


@dataclass(frozen=True, slots=True)
class Llc:
    """A message came on a link."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ConnectionDone:
    """A connection has ended on both sides."""

    token: int
    clean: bool
    """The peer said so: it will not write into the buffer any more."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """A link has failed."""

    error: int
    reason: str


Notice = Llc | ConnectionDone | LinkDown


class LinkInfo(NamedTuple):
    """What the core knows of a link."""

    device: str
    up: bool
    down: bool
    error: int
    reason: str
    connections: int
    cdc_received: int
    cdc_sent: int
    cdc_unknown: int
    llc_received: int
    llc_sent: int
    tests_answered: int
    tests_sent: int
    idle_ms: int
    rings: int
    ring_bytes: int


class CursorInfo(NamedTuple):
    """A place in a ring: how often its end was passed, and the offset."""

    wrap: int
    offset: int


class ConnectionInfo(NamedTuple):
    """What the core knows of a connection; ``peer_token`` and ``peer_size`` are 0 before the peer's end is known."""

    socket: int
    token: int
    peer_token: int
    size: int
    peer_size: int
    produced: CursorInfo
    peer_consumed: CursorInfo
    peer_produced: CursorInfo
    consumed: CursorInfo
    told: CursorInfo
    sent: int
    received: int
    unsent: int
    unread: int
    producer_flags: int
    peer_producer_flags: int
    connection_flags: int
    peer_connection_flags: int
    error: int


def link_new(group: int, device: str, gid: bytes | None) -> int:
    """A link on a device, in a progress group; its receives are posted."""
    out = ffi.new("uint64_t *")
    raw = NULL if gid is None else ffi.from_buffer("uint8_t[]", gid)
    name = ffi.new("char[]", device.encode())
    check(lib.exsi_smc_link_new(context().pointer, group, name, raw, out))
    link: int = out[0]
    return link


def link_address(link: int) -> Address:
    """Our end of a link."""
    own = ffi.new(ADDRESS)
    check(lib.exsi_smc_link_address(context().pointer, link, own))
    return Address(bytes(own.gid), bytes(own.mac), own.mtu_code, own.qpn, own.psn)


def link_to_rtr(link: int, peer: Address) -> None:
    """Tell a link its peer; from then on it receives."""
    raw = ffi.new(ADDRESS)
    raw.gid, raw.mac = peer.gid, peer.mac
    raw.mtu_code, raw.qpn, raw.psn = peer.mtu_code, peer.qpn, peer.psn
    check(lib.exsi_smc_link_to_rtr(context().pointer, link, raw))


def link_to_rts(link: int) -> None:
    """Let a link send."""
    check(lib.exsi_smc_link_to_rts(context().pointer, link))


def link_active(link: int, version: int, interval_ms: int, timeout_ms: int) -> None:
    """Let the core watch a link by TEST_LINK."""
    check(lib.exsi_smc_link_active(context().pointer, link, version, interval_ms, timeout_ms))


def llc_send(link: int, data: bytes) -> None:
    """Send an LLC message."""
    check(lib.exsi_smc_llc_send(context().pointer, link, ffi.from_buffer("uint8_t[]", data), len(data)))


def link_take(link: int) -> Notice | None:
    """What a link has to tell, one thing; ``None`` if nothing."""
    notice = ffi.new("exsi_smc_notice *")
    if not check(lib.exsi_smc_link_take(context().pointer, link, notice)):
        return None
    if notice.kind == lib.EXSI_SMC_LLC:
        return Llc(bytes(ffi.buffer(notice.bytes, notice.len)))
    if notice.kind == lib.EXSI_SMC_CONNECTION_DONE:
        return ConnectionDone(notice.token, bool(notice.clean))
    return LinkDown(notice.error, _text(notice.reason))


def link_query(link: int) -> LinkInfo:
    """What the core knows of a link."""
    info = ffi.new("exsi_smc_link_info *")
    check(lib.exsi_smc_link_query(context().pointer, link, info))
    return LinkInfo(
        _text(info.device),
        bool(info.up),
        bool(info.down),
        info.error,
        _text(info.reason),
        info.connections,
        info.cdc_received,
        info.cdc_sent,
        info.cdc_unknown,
        info.llc_received,
        info.llc_sent,
        info.tests_answered,
        info.tests_sent,
        info.idle_ms,
        info.rings,
        info.ring_bytes,
    )


def link_close(link: int) -> None:
    """End a link, and with ``ECONNABORTED`` each connection that is left on it."""
    check(lib.exsi_smc_link_close(context().pointer, link))


def rmb_new(link: int, size_code: int) -> tuple[int, int, int]:
    """A buffer for the peer to write into: its handle, rkey and address."""
    rmb, rkey, vaddr = ffi.new("uint64_t *"), ffi.new("uint32_t *"), ffi.new("uint64_t *")
    check(lib.exsi_smc_rmb_new(context().pointer, link, size_code, rmb, rkey, vaddr))
    return rmb[0], rkey[0], vaddr[0]


def rmb_close(link: int, rmb: int) -> None:
    """Give a buffer back."""
    check(lib.exsi_smc_rmb_close(context().pointer, link, rmb))


def connection_new(link: int, rmb: int, token: int, settings: Settings) -> int:
    """A connection on a link: the handle of a socket that is not connected yet."""
    out = ffi.new("uint64_t *")
    check(lib.exsi_smc_connection_new(context().pointer, link, rmb, token, options_of(settings), out))
    sock: int = out[0]
    return sock


def connection_open(sock: int, rkey: int, vaddr: int, size: int, token: int) -> None:
    """Connect it, to the buffer that the peer has told."""
    check(lib.exsi_smc_connection_open(context().pointer, sock, rkey, vaddr, size, token))


def connection_abort(sock: int, error: int) -> None:
    """The peer is gone without a word on the link: every operation ends with this errno."""
    check(lib.exsi_smc_connection_abort(context().pointer, sock, error))


def connection_query(link: int, token: int) -> ConnectionInfo | None:
    """What the core knows of the connection with that token of ours; ``None``: there is none (any more)."""
    info = ffi.new("exsi_smc_connection_info *")
    code = lib.exsi_smc_connection_query(context().pointer, link, token, info)
    if code == -errno.ENOENT:
        return None
    check(code)
    return ConnectionInfo(
        info.socket,
        info.token,
        info.peer_token,
        info.size,
        info.peer_size,
        _cursor(info.produced),
        _cursor(info.peer_consumed),
        _cursor(info.peer_produced),
        _cursor(info.consumed),
        _cursor(info.told),
        info.sent,
        info.received,
        info.unsent,
        info.unread,
        info.producer_flags,
        info.peer_producer_flags,
        info.connection_flags,
        info.peer_connection_flags,
        info.error,
    )


def recv_view(sock: int) -> tuple[CData, int] | None:
    """Received bytes where they lie, as a pointer and a length that is 0 at the end; ``None`` if there are none yet."""
    address, length = ffi.new("void **"), ffi.new("uint64_t *")
    code = lib.exsi_recv_view(context().pointer, sock, address, length)
    if code == -errno.EAGAIN:
        return None
    return (address[0], int(length[0])) if check(code) else (NOTHING, 0)


def recv_release(sock: int, count: int) -> None:
    """End the loan: ``count`` of its bytes have been read."""
    check(lib.exsi_recv_release(context().pointer, sock, count))


def _cursor(info: CData) -> CursorInfo:
    return CursorInfo(info.wrap, info.count)


def _text(chars: CData) -> str:
    return ffi.string(chars).decode("utf-8", "replace")
