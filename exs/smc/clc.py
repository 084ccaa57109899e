# SPDX-License-Identifier: MIT OR Apache-2.0
"""CLC: the messages that two hosts exchange on the TCP connection before, and instead of, its payload.

Owns the layouts of PROPOSAL, ACCEPT, CONFIRM and DECLINE, versions 1, 2 and 2.1, and the reasons to decline.  Knows
nothing of when one is sent.  Invariant: :func:`decode` returns a message or raises
:class:`exs.errors.RemoteProtocolError`; reserved bytes are written as zeros and never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from exs.smc.clc_parts import (
    OS_AIX,
    OS_LINUX,
    OS_NAMES,
    OS_ZOS,
    V2,
    Area,
    FirstContact,
    Ism,
    Prefix,
    SmcdV2,
    text,
)
from exs.smc.wire import EYECATCHER, EYECATCHER_SMCD, MTU_BYTES, Reader, Writer, broken, rmbe_bytes

__all__ = [
    "ACCEPT",
    "CONFIRM",
    "DECLINE",
    "EYECATCHERS",
    "HEADER_BYTES",
    "NAMES",
    "OS_AIX",
    "OS_LINUX",
    "OS_NAMES",
    "OS_ZOS",
    "PROPOSAL",
    "REASONS",
    "V2",
    "Accept",
    "Area",
    "Confirm",
    "Decline",
    "FirstContact",
    "Ism",
    "Message",
    "Prefix",
    "Proposal",
    "SmcdV2",
    "decode",
    "length_of",
    "reason_text",
]

EYECATCHERS = (EYECATCHER, EYECATCHER_SMCD)
HEADER_BYTES = 8
"""Bytes from which the length of a message is known."""

PROPOSAL, ACCEPT, CONFIRM, DECLINE = 1, 2, 3, 4
NAMES = {PROPOSAL: "PROPOSAL", ACCEPT: "ACCEPT", CONFIRM: "CONFIRM", DECLINE: "DECLINE"}

DECLINE_MEMORY = 0x01010000
DECLINE_CONFIRM_LINK_TIMEOUT = 0x02010000
DECLINE_ADD_LINK_TIMEOUT = 0x02020000
DECLINE_CONFIGURATION = 0x03000000
DECLINE_PEER_NO_SMC = 0x03010000
DECLINE_IPSEC = 0x03020000
DECLINE_NO_DEVICE = 0x03030000
DECLINE_NO_SMCR_DEVICE = 0x03030002
DECLINE_NO_V2_EXTENSION = 0x03030004
DECLINE_NO_UEID = 0x03030008
DECLINE_RELEASE = 0x03030009
DECLINE_MAX_CONNECTIONS = 0x0303000A
DECLINE_MAX_LINKS = 0x0303000B
DECLINE_MODES = 0x03040000
DECLINE_EYECATCHERS = 0x03050000
DECLINE_PREFIX = 0x03070000
DECLINE_NO_LINK = 0x030A0000
DECLINE_LINK_NOT_FOUND = 0x030B0000
DECLINE_VERSION = 0x030C0000
DECLINE_NO_ROUTE = 0x030E0000
DECLINE_INDIRECT = 0x030F0000
DECLINE_SYNC = 0x04000000
DECLINE_BY_PEER = 0x05000000
DECLINE_INTERNAL = 0x09990000
DECLINE_RTOKEN = 0x09990001
DECLINE_QP = 0x09990002
DECLINE_REGISTRATION = 0x09990003

REASONS = {
    DECLINE_MEMORY: "no memory, or no buffer of the size",
    DECLINE_CONFIRM_LINK_TIMEOUT: "CONFIRM_LINK was not answered in time",
    DECLINE_ADD_LINK_TIMEOUT: "ADD_LINK was not answered in time",
    DECLINE_CONFIGURATION: "configuration error",
    DECLINE_PEER_NO_SMC: "the peer did not offer SMC",
    DECLINE_IPSEC: "IPsec is in use",
    DECLINE_NO_DEVICE: "no SMC device on this path",
    0x03030001: "no SMC-D device",
    DECLINE_NO_SMCR_DEVICE: "no RoCE device on this path",
    0x03030003: "the hardware has no ISM of version 2",
    DECLINE_NO_V2_EXTENSION: "the proposal has no version 2 part",
    0x03030005: "the proposal has no SMC-D version 2 part",
    0x03030006: "no system EID",
    0x03030007: "no ISM device of version 2",
    DECLINE_NO_UEID: "no enterprise id in common",
    DECLINE_RELEASE: "the releases do not fit",
    DECLINE_MAX_CONNECTIONS: "the numbers of connections do not fit",
    DECLINE_MAX_LINKS: "the numbers of links do not fit",
    DECLINE_MODES: "one side speaks SMC-R, the other SMC-D",
    DECLINE_EYECATCHERS: "the peer has eyecatchers in its receive buffers",
    0x03060000: "a socket option that SMC does not have",
    DECLINE_PREFIX: "the two hosts are in different subnets",
    0x03080000: "the VLAN cannot be told",
    0x03090000: "the VLAN was not registered with the ISM device",
    DECLINE_NO_LINK: "no active link in the link group",
    DECLINE_LINK_NOT_FOUND: "the server named a link that is not there",
    DECLINE_VERSION: "the versions do not fit",
    0x030D0000: "too many SMC-D buffers",
    DECLINE_NO_ROUTE: "no route to the peer's RoCE address",
    DECLINE_INDIRECT: "the peer sees a router where there is none",
    DECLINE_SYNC: "the server named a link group that is not there",
    DECLINE_BY_PEER: "the peer declined",
    DECLINE_INTERNAL: "internal error",
    DECLINE_RTOKEN: "the peer's receive buffer could not be noted",
    DECLINE_QP: "the queue pair could not be made ready",
    DECLINE_REGISTRATION: "the receive buffer was not confirmed",
}


def reason_text(code: int) -> str:
    """A diagnosis code in words."""
    return REASONS.get(code, f"reason {code:08x}")


# -- messages -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """PROPOSAL: the client offers SMC."""

    version: int
    """That of the header: 2 also where only version 1 is offered, by Linux 6.1."""
    peer_id: bytes
    """8 bytes: an instance number and a MAC."""
    gid: bytes = bytes(16)
    """RoCEv1 GID; zeros where version 1 is not offered."""
    mac: bytes = bytes(6)
    offers_v1: bool = False
    """SMC-R of version 1."""
    offers_v2: bool = False
    """SMC-R of version 2."""
    smcd_v1: bool = False
    """SMC-D of version 1."""
    smcd_v2: bool = False
    """SMC-D of version 2."""
    ism: Ism | None = None
    ip_area: Area | None = None
    v2: V2 | None = None

    def encode(self) -> bytes:
        """The message.

        Raises:
            ValueError: A field does not fit, or a version is offered without its part.
        """
        v1 = self.offers_v1 or self.smcd_v1
        if self.version not in (1, 2) or (self.version == 1 and self.v2 is not None):
            raise ValueError("PROPOSAL: the version of the header is 1, or 2 if it has a version 2 part")
        if v1 != (self.ip_area is not None):
            raise ValueError("PROPOSAL: the IP area goes with version 1")
        v2_type = _path_type(smcr=self.offers_v2, smcd=self.smcd_v2)
        low = _path_type(smcr=self.offers_v1, smcd=self.smcd_v1) | (v2_type << 2 if self.version == 2 else 0)
        out = _begin(PROPOSAL, self.version, low)
        out.put(self.peer_id, 8).put(self.gid, 16).put(self.mac, 6)
        with_ism = self.version == 2 or self.ism is not None
        out.number(40 if with_ism and v1 else 0, 2)
        area_bytes = self.ip_area.size if self.ip_area else 0
        if with_ism:
            (self.ism or Ism()).put(out, 28 + area_bytes if self.v2 else 0)
        for part in (self.ip_area, self.v2):
            if part is not None:
                part.put(out)
        return _end(out)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What ACCEPT and CONFIRM have in common: each side describes itself."""

    version: int
    first_contact: bool
    """A link group is new."""
    peer_id: bytes
    gid: bytes
    """RoCEv1 GID, or in version 2 ``::ffff:a.b.c.d``."""
    mac: bytes
    qpn: int
    rkey: int
    token: int
    """Alert token: what the peer puts into its CDC messages."""
    size_code: int
    """Of the receive buffer: 16 KiB << code."""
    mtu_code: int
    """ACCEPT: that of the port; CONFIRM: the smaller of both."""
    vaddr: int
    """Where the receive buffer is, for the peer's RDMA WRITEs."""
    psn: int
    rmbe_index: int = 1
    """Element of the buffer, counted from 1: the peer adds (index - 1) x size to the address."""
    smcd: bool = False
    """It answers for SMC-D: then nothing else of this holds."""
    eid: str = ""
    """Version 2: the user EID that was chosen."""
    first_contact_extension: FirstContact | None = None
    """Version 2, first contact."""

    @property
    def base(self) -> int:
        """Address of the first byte that the peer may write."""
        return self.vaddr + (self.rmbe_index - 1) * rmbe_bytes(self.size_code)

    def _put(self, out: Writer) -> Writer:
        if self.smcd:
            raise ValueError("exs does not speak SMC-D")
        if self.mtu_code not in MTU_BYTES or self.rmbe_index < 1:
            raise ValueError("MTU codes are 1 to 5, RMBE indices 1 to 255")
        out.put(self.peer_id, 8).put(self.gid, 16).put(self.mac, 6)
        out.number(self.qpn, 3).number(self.rkey, 4).number(self.rmbe_index, 1).number(self.token, 4)
        out.nibbles(self.size_code, self.mtu_code).zeros(1).number(self.vaddr, 8).zeros(1).number(self.psn, 3)
        extension = self.first_contact_extension
        if self.version == 1:
            if self.eid or extension is not None:
                raise ValueError("version 1 knows neither EIDs nor a first contact extension")
            return out
        if self.first_contact and extension is None:
            raise ValueError("a first contact of version 2 has its extension")
        out.padded(self.eid, 32).zeros(8)
        if extension is not None:
            extension.put(out)
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept(_Answer):
    """ACCEPT: the server describes its end."""

    def encode(self) -> bytes:
        """The message.

        Raises:
            ValueError: A field does not fit.
        """
        out = _begin(ACCEPT, self.version, 0x08 if self.first_contact else 0)
        return _end(self._put(out))


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm(_Answer):
    """CONFIRM: the client describes its end."""

    gids: tuple[bytes, ...] = ()
    """Version 2, first contact: all GIDs of the client, that of this link first."""

    def encode(self) -> bytes:
        """The message.

        Raises:
            ValueError: A field does not fit.
        """
        out = self._put(_begin(CONFIRM, self.version, 0x08 if self.first_contact else 0))
        if self.version > 1 and self.first_contact_extension is not None:
            out.number(len(self.gids), 1).zeros(3)
            for gid in self.gids:
                out.put(gid, 16)
        elif self.gids:
            raise ValueError("the list of GIDs goes with the first contact extension")
        return _end(out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decline:
    """DECLINE: from here on the TCP connection carries the payload."""

    version: int
    peer_id: bytes
    diagnosis: int
    """Why; :func:`reason_text` says it in words."""
    out_of_sync: bool = False
    """The peer is to give up the whole link group."""
    os_type: int = 0
    more: tuple[int, int, int, int] = field(default=(0, 0, 0, 0))
    """Version 2: further codes; Linux sends zeros."""

    def encode(self) -> bytes:
        """The message.

        Raises:
            ValueError: A field does not fit.
        """
        out = _begin(DECLINE, self.version, 0x08 if self.out_of_sync else 0)
        out.put(self.peer_id, 8).number(self.diagnosis, 4).nibbles(self.os_type, 0).zeros(3)
        if self.version > 1:
            for code in self.more:
                out.number(code, 4)
        return _end(out)


Message = Proposal | Accept | Confirm | Decline


# -- reading --------------------------------------------------------------------------------------------------------

_LEAST = {PROPOSAL: 44, ACCEPT: 48, CONFIRM: 48, DECLINE: 28}
_MOST = {PROPOSAL: 652, ACCEPT: 4248, CONFIRM: 4248, DECLINE: 44}


def length_of(header: bytes) -> int:
    """Bytes of a message, from its first eight.

    Args:
        header: At least 8 bytes.

    Raises:
        RemoteProtocolError: No message begins so.
    """
    if len(header) < HEADER_BYTES or header[:4] not in EYECATCHERS:
        raise broken("a CLC message begins with an eyecatcher and has a header of 8 bytes")
    kind, version, length = header[4], header[7] >> 4, int.from_bytes(header[5:7], "big")
    if kind not in NAMES:
        raise broken(f"there is no CLC message of type {kind}")
    if version < 1 or (version > 2 and kind != PROPOSAL):
        raise broken(f"{NAMES[kind]}: there is no version {version}")
    if not _LEAST[kind] <= length <= _MOST[kind]:
        raise broken(f"{NAMES[kind]}: it cannot have {length} bytes")
    return length


def decode(data: bytes) -> Message:
    """Read one whole message.

    Args:
        data: Exactly as many bytes as :func:`length_of` says.

    Raises:
        RemoteProtocolError: They are none.
    """
    data = bytes(data)
    length = length_of(data[:HEADER_BYTES])
    kind, version = data[4], data[7] >> 4
    if len(data) != length:
        raise broken(f"{NAMES[kind]}: its header says {length} bytes, and there are {len(data)}")
    if kind != DECLINE and data[-4:] not in EYECATCHERS:
        raise broken(f"{NAMES[kind]}: it does not end with an eyecatcher")
    read = Reader(data[:-4], NAMES[kind], HEADER_BYTES)
    if kind == PROPOSAL:
        return _read_proposal(read, version, data[7] & 0x0F, length)
    if kind == DECLINE:
        return _read_decline(read, version, out_of_sync=bool(data[7] & 0x08))
    return _read_answer(read, kind, version, data[7] & 0x0F)


def _read_decline(read: Reader, version: int, *, out_of_sync: bool) -> Decline:
    peer_id, diagnosis, os_type = read.take(8), read.number(4), read.number(1) >> 4
    read.skip(3)
    if read.left not in (0, 16):
        raise broken("DECLINE: it has 28 or 44 bytes")
    more = (
        (read.number(4), read.number(4), read.number(4), read.number(4)) if read.left and version > 1 else (0, 0, 0, 0)
    )
    return Decline(
        version=version, peer_id=peer_id, diagnosis=diagnosis, out_of_sync=out_of_sync, os_type=os_type, more=more
    )


def _read_answer(read: Reader, kind: int, version: int, low: int) -> Accept | Confirm:
    made = Accept if kind == ACCEPT else Confirm
    first, path = bool(low & 0x08), low & 0x03
    if path == 1:
        # Whoever offers SMC-R only declines it; its fields are others.
        return made(
            version=version,
            first_contact=first,
            peer_id=bytes(8),
            gid=bytes(16),
            mac=bytes(6),
            qpn=0,
            rkey=0,
            token=0,
            size_code=0,
            mtu_code=0,
            vaddr=0,
            psn=0,
            smcd=True,
        )
    if path or (version == 1 and len(read.data) != 64):
        raise broken(f"{read.what}: it is neither of SMC-R nor of SMC-D, or has not 68 bytes in version 1")
    peer_id, gid, mac = read.take(8), read.take(16), read.take(6)
    qpn, rkey, index, token, codes = (read.number(size) for size in (3, 4, 1, 4, 1))
    read.skip(1)
    vaddr = read.number(8)
    read.skip(1)
    psn = read.number(3)
    if index == 0:
        raise broken(f"{read.what}: RMBE index 0 would be before the buffer")
    if codes & 0x0F not in MTU_BYTES:
        raise broken(f"{read.what}: there is no MTU code {codes & 0x0F}")
    eid, extension = "", None
    if version > 1:
        eid = text(read.take(32))
        read.skip(8)
        if first or read.left >= FirstContact.SIZE:
            extension = FirstContact.read(read)
    message = made(
        version=version,
        first_contact=first,
        peer_id=peer_id,
        gid=gid,
        mac=mac,
        qpn=qpn,
        rkey=rkey,
        token=token,
        size_code=codes >> 4,
        mtu_code=codes & 0x0F,
        vaddr=vaddr,
        psn=psn,
        rmbe_index=index,
        eid=eid,
        first_contact_extension=extension,
    )
    if isinstance(message, Confirm) and extension is not None:
        return replace(message, gids=_read_gids(read))
    return message


def _read_gids(read: Reader) -> tuple[bytes, ...]:
    count = read.number(1)
    read.skip(3)
    return tuple(read.take(16) for _ in range(count))


def _read_proposal(read: Reader, version: int, low: int, length: int) -> Proposal:
    v1_type, v2_type = low & 0x03, (low >> 2 & 0x03 if version > 1 else _NEITHER)
    peer_id, gid, mac, area_offset = read.take(8), read.take(16), read.take(6), read.number(2)
    if area_offset > 40 or (version > 1 and v1_type != _NEITHER and area_offset != 40):
        raise broken(f"PROPOSAL: the IP area cannot be at offset {area_offset}")
    ism, v2_offset = None, 0
    if version > 1 or area_offset == 40:
        ism, v2_offset = Ism.read(read)
    expected = 40 + (40 if version > 1 else area_offset) + 4
    area, v2 = None, None
    if v1_type != _NEITHER:
        area = Area.read(Reader(read.data, "PROPOSAL", 40 + area_offset))
        expected += area.size
    if v2_type != _NEITHER and v2_offset:
        v2 = V2.read(Reader(read.data, "PROPOSAL", 52 + v2_offset))
        expected += v2.size
    if length != expected:
        raise broken(f"PROPOSAL: its counts make {expected} bytes, its header says {length}")
    return Proposal(
        version=min(version, 2),
        peer_id=peer_id,
        gid=gid,
        mac=mac,
        offers_v1=v1_type in _SMCR,
        offers_v2=v2_type in _SMCR,
        smcd_v1=v1_type in _SMCD,
        smcd_v2=v2_type in _SMCD,
        ism=None if ism == Ism() else ism,
        ip_area=area,
        v2=v2,
    )


# -- writing --------------------------------------------------------------------------------------------------------

# Of the two bits for a version: 0 SMC-R, 1 SMC-D, 2 neither, 3 both.
_NEITHER = 2
_SMCR, _SMCD = (0, 3), (1, 3)


def _path_type(*, smcr: bool, smcd: bool) -> int:
    return {(True, False): 0, (False, True): 1, (False, False): 2, (True, True): 3}[smcr, smcd]


def _begin(kind: int, version: int, low: int) -> Writer:
    if version not in (1, 2):
        raise ValueError(f"{NAMES[kind]}: there is no version {version}")
    return Writer(NAMES[kind]).put(EYECATCHER, 4).number(kind, 1).zeros(2).nibbles(version, low)


def _end(out: Writer) -> bytes:
    """Append the trailer and fill in the length."""
    out.put(EYECATCHER, 4)
    out.data[5:7] = len(out.data).to_bytes(2, "big")
    return bytes(out.data)
