# SPDX-License-Identifier: MIT OR Apache-2.0
"""CLC: the four messages on TCP by which two sides agree on SMC-R (RFC 7609 A.2, and versions 2 and 2.1).

Owns their bytes and the codes of a DECLINE.  Knows nothing of who sends what when.  Invariants: what is decoded has
been checked against its own length and counts; reserved fields are written as zeros and never looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from exs.smc import eid
from exs.smc.decline import *  # noqa: F403  the codes are names of this module
from exs.smc.decline import __all__ as _codes
from exs.smc.wire import EYECATCHER_SMCR, EYECATCHERS, Reader, broken, u24

__all__ = [
    "ACCEPT",
    "CONFIRM",
    "DECLINE",
    "EYECATCHERS",
    "OS_LINUX",
    "PROPOSAL",
    "Accept",
    "Area",
    "Confirm",
    "Decline",
    "FirstContact",
    "Message",
    "Proposal",
    "SmcdV2",
    "V2",
    "decode",
    "length_of",
    *_codes,
]

PROPOSAL, ACCEPT, CONFIRM, DECLINE = 1, 2, 3, 4
NAMES = {PROPOSAL: "PROPOSAL", ACCEPT: "ACCEPT", CONFIRM: "CONFIRM", DECLINE: "DECLINE"}
OS_LINUX = 2

HEADER, TRAILER = 8, 4
SHORTEST, LONGEST = HEADER + TRAILER, 2048
FIRST_CONTACT, OUT_OF_SYNC = 0x08, 0x08
TYPE_R, TYPE_D, TYPE_N, TYPE_B = 0, 1, 2, 3
POINTER_AREA = 40
LISTED_MAX = 8
"""EIDs, IPv6 prefixes, or ISM devices in one message."""
NO_GID = bytes(16)


def _path_type(smcr: bool, smcd: bool) -> int:
    return {(True, False): TYPE_R, (False, True): TYPE_D, (False, False): TYPE_N, (True, True): TYPE_B}[smcr, smcd]


def _padded(text: str) -> bytes:
    return text.encode("ascii", "replace")[:32].ljust(32, b" ")


def _framed(kind: int, nibbles: int, body: bytes) -> bytes:
    length = (HEADER + len(body) + TRAILER).to_bytes(2, "big")
    return EYECATCHER_SMCR + bytes([kind]) + length + bytes([nibbles]) + body + EYECATCHER_SMCR


# -- PROPOSAL ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """The client's IP networks: version 1 needs both sides in one."""

    subnet: bytes = bytes(4)
    """IPv4 network address."""
    prefix_length: int = 0
    ipv6: tuple[tuple[bytes, int], ...] = ()
    """IPv6 prefixes and their lengths."""

    def encode(self) -> bytes:
        """The area."""
        head = self.subnet + bytes([self.prefix_length, 0, 0, len(self.ipv6)])
        return head + b"".join(prefix + bytes([length]) for prefix, length in self.ipv6)

    @classmethod
    def read(cls, reader: Reader) -> Area:
        """Read it where the reader stands."""
        subnet, prefix_length = reader.take(4), reader.number(1)
        reader.skip(2)
        count = reader.number(1)
        if count > LISTED_MAX:
            raise broken(f"PROPOSAL: {count} IPv6 prefixes, more than {LISTED_MAX}")
        prefixes = tuple((reader.take(16), reader.number(1)) for _ in range(count))
        return cls(subnet=subnet, prefix_length=prefix_length, ipv6=prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmcdV2:
    """The version 2 extension for SMC-D, which is only stepped over."""

    seid: bytes = bytes(32)
    devices: tuple[tuple[bytes, int], ...] = ()
    """GID of 8 bytes and CHID of each."""

    def encode(self) -> bytes:
        """The extension."""
        return self.seid + bytes(16) + b"".join(gid + chid.to_bytes(2, "big") for gid, chid in self.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class V2:
    """The version 2 extension."""

    gid: bytes
    """RoCEv2 GID of the client."""
    eids: tuple[str, ...] = ()
    """UEIDs without padding, in order of preference."""
    release: int = 0
    has_seid: bool = False
    max_connections: int = 0
    """Release 1: most connections of a link group."""
    max_links: int = 0
    features: int = 0
    smcd: SmcdV2 | None = None

    def encode(self) -> bytes:
        """The extension, without that for SMC-D behind it."""
        devices = len(self.smcd.devices) if self.smcd is not None else 0
        offset = 32 + eid.EID_LEN * len(self.eids) if self.smcd is not None else 0
        head = bytes([len(self.eids), devices, 0, self.release << 4 | self.has_seid, 0, 0]) + offset.to_bytes(2, "big")
        limits = bytes([self.max_connections, self.max_links]) + self.features.to_bytes(2, "big") + bytes(12)
        return head + self.gid + limits + b"".join(eid.to_wire(text) for text in self.eids)

    @classmethod
    def read(cls, reader: Reader) -> V2:
        """Read it where the reader stands."""
        start = reader.at
        count, devices = reader.number(1), reader.number(1)
        if count > LISTED_MAX or devices > LISTED_MAX:
            raise broken(f"PROPOSAL: {count} EIDs and {devices} ISM devices, more than {LISTED_MAX}")
        reader.skip(1)
        bits = reader.number(1)
        reader.skip(2)
        smcd_offset = reader.number(2)
        gid = reader.take(16)
        max_connections, max_links, features = reader.number(1), reader.number(1), reader.number(2)
        reader.skip(12)
        eids = tuple(eid.from_wire(reader.take(eid.EID_LEN)) for _ in range(count))
        smcd = None
        if smcd_offset:
            reader.go(start + 8 + smcd_offset)
            seid = reader.take(32)
            reader.skip(16)
            smcd = SmcdV2(seid=seid, devices=tuple((reader.take(8), reader.number(2)) for _ in range(devices)))
        return cls(
            gid=gid,
            eids=eids,
            release=bits >> 4,
            has_seid=bool(bits & 1),
            max_connections=max_connections,
            max_links=max_links,
            features=features,
            smcd=smcd,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """PROPOSAL: what a client can do.

    Of version 1 it has the form of RFC 7609; of version 2 the one that Linux gives it, also where version 2 is not
    offered.
    """

    version: int = 2
    """Of the form; what is offered is said below."""
    peer_id: bytes = bytes(8)
    gid: bytes = NO_GID
    """RoCEv1 GID; zeros where version 1 is not offered."""
    mac: bytes = bytes(6)
    offers_v1: bool = False
    offers_v2: bool = False
    offers_v1_smcd: bool = False
    offers_v2_smcd: bool = False
    ism_gid: bytes = bytes(8)
    ism_chid: int = 0
    vendor: bytes = bytes(8)
    """Release 1: identifier of a vendor, and its options."""
    ip_area: Area | None = None
    v2: V2 | None = None

    @property
    def v1_type(self) -> int:
        """How version 1 is offered."""
        return _path_type(self.offers_v1, self.offers_v1_smcd)

    @property
    def v2_type(self) -> int:
        """How version 2 is offered."""
        return _path_type(self.offers_v2, self.offers_v2_smcd)

    def encode(self) -> bytes:
        """The message."""
        area = b"" if self.ip_area is None else self.ip_area.encode()
        if self.version == 1:
            base = self.peer_id + self.gid + self.mac + bytes(2)
            return _framed(PROPOSAL, 1 << 4 | self.v1_type, base + area)
        base = self.peer_id + self.gid + self.mac + (POINTER_AREA if area else 0).to_bytes(2, "big")
        extension = b"" if self.v2 is None else self.v2.encode()
        smcd = b"" if self.v2 is None or self.v2.smcd is None else self.v2.smcd.encode()
        offset = 28 + len(area) if extension else 0
        pointers = self.ism_gid + self.ism_chid.to_bytes(2, "big") + offset.to_bytes(2, "big") + self.vendor + bytes(20)
        nibbles = self.version << 4 | self.v2_type << 2 | self.v1_type
        return _framed(PROPOSAL, nibbles, base + pointers + area + extension + smcd)


def _proposal(data: bytes, version: int, bits: int) -> Proposal:
    reader = Reader(data[:-TRAILER], "PROPOSAL").go(HEADER)
    peer_id, gid, mac, area_at = reader.take(8), reader.take(16), reader.take(6), reader.number(2)
    if area_at > POINTER_AREA:
        raise broken(f"PROPOSAL: the IP area is said to be {area_at} bytes away, more than {POINTER_AREA}")
    v1_type, v2_type = bits & 3, (bits >> 2 & 3 if version > 1 else TYPE_N)
    ism_gid, ism_chid, v2_at, vendor = bytes(8), 0, 0, bytes(8)
    if version > 1 or area_at == POINTER_AREA:
        ism_gid, ism_chid = reader.take(8), reader.number(2)
        v2_at, vendor = reader.number(2), reader.take(8)
    area = v2 = None
    expected = HEADER + 32 + (POINTER_AREA if version > 1 else area_at) + TRAILER
    if version == 1 or v1_type != TYPE_N:
        area = Area.read(reader.go(40 + area_at))
        expected += 8 + 17 * len(area.ipv6)
    if v2_type != TYPE_N and v2_at:
        v2 = V2.read(reader.go(52 + v2_at))
        expected += 40 + eid.EID_LEN * len(v2.eids) + (0 if v2.smcd is None else 48 + 10 * len(v2.smcd.devices))
    if len(data) != expected:
        raise broken(f"PROPOSAL: has {len(data)} bytes, by its counts it should have {expected}")
    return Proposal(
        version=version,
        peer_id=peer_id,
        gid=gid,
        mac=mac,
        offers_v1=v1_type in (TYPE_R, TYPE_B),
        offers_v2=v2_type in (TYPE_R, TYPE_B),
        offers_v1_smcd=v1_type in (TYPE_D, TYPE_B),
        offers_v2_smcd=v2_type in (TYPE_D, TYPE_B),
        ism_gid=ism_gid,
        ism_chid=ism_chid,
        vendor=vendor,
        ip_area=area,
        v2=v2,
    )


# -- ACCEPT and CONFIRM -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstContact:
    """What a first contact of version 2 says besides."""

    v2_direct: bool = True
    """The peer's GID is reached without a gateway."""
    os_type: int = OS_LINUX
    release: int = 0
    host: str = ""
    max_connections: int = 0
    """Release 1."""
    max_links: int = 0
    features: int = 0
    vendor: bytes = bytes(4)

    def encode(self) -> bytes:
        """The extension."""
        head = bytes([0x80 if self.v2_direct else 0, self.os_type << 4 | self.release, 0, 0]) + _padded(self.host)
        limits = bytes([self.max_connections, self.max_links]) + self.features.to_bytes(2, "big")
        return head + limits + self.vendor + bytes(8)

    @classmethod
    def read(cls, reader: Reader) -> FirstContact:
        """Read it where the reader stands."""
        direct, system = reader.number(1), reader.number(1)
        reader.skip(2)
        host = reader.take(32).decode("ascii", "replace").rstrip(" \0")
        max_connections, max_links, features = reader.number(1), reader.number(1), reader.number(2)
        vendor = reader.take(4)
        reader.skip(8)
        return cls(
            v2_direct=bool(direct & 0x80),
            os_type=system >> 4,
            release=system & 15,
            host=host,
            max_connections=max_connections,
            max_links=max_links,
            features=features,
            vendor=vendor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """One side's end of a connection, as it describes itself."""

    version: int = 2
    first_contact: bool = False
    smcd: bool = False
    """It is about SMC-D; then nothing below means anything."""
    peer_id: bytes = bytes(8)
    gid: bytes = NO_GID
    mac: bytes = bytes(6)
    qpn: int = 0
    rkey: int = 0
    """Of the receive buffer, on this link."""
    rmbe_index: int = 1
    token: int = 0
    size_code: int = 0
    """The receive buffer has 16 KiB << size_code."""
    mtu_code: int = 1
    vaddr: int = 0
    """Of the receive buffer's first element."""
    psn: int = 0
    eid: str = ""
    """Version 2: the UEID agreed on."""
    first_contact_extension: FirstContact | None = None

    def _encode(self, kind: int, behind: bytes = b"") -> bytes:
        body = (
            self.peer_id
            + self.gid
            + self.mac
            + u24(self.qpn)
            + self.rkey.to_bytes(4, "big")
            + bytes([self.rmbe_index])
            + self.token.to_bytes(4, "big")
            + bytes([self.size_code << 4 | self.mtu_code, 0])
            + self.vaddr.to_bytes(8, "big")
            + b"\0"
            + u24(self.psn)
        )
        if self.version > 1:
            body += eid.to_wire(self.eid) + bytes(8)
            if self.first_contact_extension is not None:
                body += self.first_contact_extension.encode()
        return _framed(kind, self.version << 4 | (FIRST_CONTACT if self.first_contact else 0), body + behind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accept(_End):
    """ACCEPT: the server's end."""

    def encode(self) -> bytes:
        """The message."""
        return self._encode(ACCEPT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm(_End):
    """CONFIRM: the client's end."""

    gids: tuple[bytes, ...] = ()
    """First contact of version 2: GIDs of the client, its own first."""

    def encode(self) -> bytes:
        """The message."""
        behind = b""
        if self.version > 1 and self.first_contact_extension is not None:
            behind = bytes([len(self.gids), 0, 0, 0]) + b"".join(self.gids)
        return self._encode(CONFIRM, behind)


LENGTH_V1, LENGTH_V2, LENGTH_V2_FIRST = 68, 108, 160


def _end(data: bytes, kind: int, version: int, bits: int) -> Accept | Confirm:
    name = NAMES[kind]
    make: type[Accept | Confirm] = Accept if kind == ACCEPT else Confirm
    if bits & 3 == TYPE_D:
        return make(version=version, first_contact=bool(bits & FIRST_CONTACT), smcd=True)
    if bits & 3 != TYPE_R:
        raise broken(f"{name}: names the path type {bits & 3}, which is no choice")
    if (version == 1 and len(data) != LENGTH_V1) or (version > 1 and len(data) < LENGTH_V2):
        raise broken(f"{name}: has {len(data)} bytes, wrong for version {version}")
    reader = Reader(data[:-TRAILER], name).go(HEADER)
    peer_id, gid, mac, qpn = reader.take(8), reader.take(16), reader.take(6), reader.number(3)
    rkey, rmbe_index, token, codes = reader.number(4), reader.number(1), reader.number(4), reader.number(1)
    reader.skip(1)
    vaddr = reader.number(8)
    reader.skip(1)
    psn = reader.number(3)
    if rmbe_index == 0:
        raise broken(f"{name}: the index of its element is 0, below the buffer")
    if not 1 <= codes & 15 <= 5:
        raise broken(f"{name}: {codes & 15} is no MTU code")
    text, extension = "", None
    gids: tuple[bytes, ...] = ()
    if version > 1:
        text = eid.from_wire(reader.take(eid.EID_LEN))
        reader.skip(8)
        if bits & FIRST_CONTACT and len(data) >= LENGTH_V2_FIRST:
            extension = FirstContact.read(reader)
            gids = _gids(reader) if kind == CONFIRM else ()
    found = make(
        version=version,
        first_contact=bool(bits & FIRST_CONTACT),
        peer_id=peer_id,
        gid=gid,
        mac=mac,
        qpn=qpn,
        rkey=rkey,
        rmbe_index=rmbe_index,
        token=token,
        size_code=codes >> 4,
        mtu_code=codes & 15,
        vaddr=vaddr,
        psn=psn,
        eid=text,
        first_contact_extension=extension,
    )
    return replace(found, gids=gids) if isinstance(found, Confirm) else found


def _gids(reader: Reader) -> tuple[bytes, ...]:
    count = reader.number(1)
    reader.skip(3)
    return tuple(reader.take(16) for _ in range(count))


# -- DECLINE ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Decline:
    """DECLINE: no SMC-R on this connection, the next byte is payload."""

    version: int = 2
    peer_id: bytes = bytes(8)
    diagnosis: int = 0
    out_of_sync: bool = False
    """The sender does not know the link group that its peer named."""
    os_type: int = 0
    more: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Version 2: further codes."""

    def encode(self) -> bytes:
        """The message."""
        body = self.peer_id + self.diagnosis.to_bytes(4, "big") + bytes([self.os_type << 4, 0, 0, 0])
        if self.version > 1:
            body += b"".join(code.to_bytes(4, "big") for code in self.more)
        return _framed(DECLINE, self.version << 4 | (OUT_OF_SYNC if self.out_of_sync else 0), body)


DECLINE_LENGTHS = (28, 44)


def _decline(data: bytes, version: int, bits: int) -> Decline:
    if len(data) not in DECLINE_LENGTHS:
        raise broken(f"DECLINE: has {len(data)} bytes, not 28 or 44")
    reader = Reader(data[:-TRAILER], "DECLINE").go(HEADER)
    peer_id, diagnosis, system = reader.take(8), reader.number(4), reader.number(1)
    reader.skip(3)
    more = (0, 0, 0, 0)
    if len(data) == DECLINE_LENGTHS[1]:
        more = (reader.number(4), reader.number(4), reader.number(4), reader.number(4))
    return Decline(
        version=version,
        peer_id=peer_id,
        diagnosis=diagnosis,
        out_of_sync=bool(bits & OUT_OF_SYNC),
        os_type=system >> 4,
        more=more,
    )


# -- all --------------------------------------------------------------------------------------------------------------

Message = Proposal | Accept | Confirm | Decline


def length_of(head: bytes) -> int:
    """Bytes of the message that begins so.

    Args:
        head: Its first 8 bytes.

    Raises:
        RemoteProtocolError: No message begins so.
    """
    reader = Reader(head, "CLC")
    if reader.take(4) not in EYECATCHERS:
        raise broken("CLC: no eyecatcher at the beginning")
    kind, length, nibbles = reader.number(1), reader.number(2), reader.number(1)
    if kind not in NAMES:
        raise broken(f"CLC: there is no message type {kind}")
    if not nibbles >> 4:
        raise broken(f"{NAMES[kind]}: of version 0")
    if not SHORTEST <= length <= LONGEST:
        raise broken(f"{NAMES[kind]}: {length} bytes are no possible length")
    return length


def decode(data: bytes) -> Message:
    """Read one message.

    Args:
        data: All of it, and nothing else.

    Raises:
        RemoteProtocolError: It is none; says which field is wrong.
    """
    length = length_of(data)
    kind, version, bits = data[4], data[7] >> 4, data[7] & 15
    if length != len(data):
        raise broken(f"{NAMES[kind]}: says {length} bytes and has {len(data)}")
    if kind == DECLINE:
        return _decline(data, version, bits)
    if data[-TRAILER:] not in EYECATCHERS:
        raise broken(f"{NAMES[kind]}: no eyecatcher at the end")
    return _proposal(data, version, bits) if kind == PROPOSAL else _end(data, kind, version, bits)
