# SPDX-License-Identifier: MIT OR Apache-2.0
"""The parts of CLC messages that are there or not: networks, the version 2 part, the first contact extension.

Owns their layouts; which message has which part is :mod:`exs.smc.clc`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from exs.smc.wire import MOST_EIDS, MOST_PREFIXES, Reader, broken

if TYPE_CHECKING:
    from exs.smc.wire import Writer

__all__ = ["OS_AIX", "OS_LINUX", "OS_NAMES", "OS_ZOS", "V2", "Area", "FirstContact", "Ism", "Prefix", "SmcdV2", "text"]

OS_ZOS, OS_LINUX, OS_AIX = 1, 2, 3
OS_NAMES = {OS_ZOS: "z/OS", OS_LINUX: "Linux", OS_AIX: "AIX"}


def text(data: bytes) -> str:
    """Text without its padding; one byte a character, so that it goes out as it came."""
    return data.rstrip(b" ").decode("latin-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """An IPv6 network."""

    address: bytes
    """16 bytes."""
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Area:
    """Networks of the client, which version 1 compares with the server's."""

    subnet: bytes = bytes(4)
    """IPv4: address AND mask; zeros over IPv6."""
    prefix_length: int = 0
    ipv6: tuple[Prefix, ...] = ()

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return 8 + 17 * len(self.ipv6)

    @classmethod
    def read(cls, read: Reader) -> Area:
        """Read it from where the reader stands."""
        subnet, prefix_length = read.take(4), read.number(1)
        read.skip(2)
        count = read.number(1)
        if count > MOST_PREFIXES:
            raise broken(f"{read.what}: it has {count} IPv6 prefixes, and the most are {MOST_PREFIXES}")
        prefixes = tuple(Prefix(address=read.take(16), length=read.number(1)) for _ in range(count))
        return cls(subnet=subnet, prefix_length=prefix_length, ipv6=prefixes)

    def put(self, out: Writer) -> None:
        """Write it."""
        if len(self.ipv6) > MOST_PREFIXES:
            raise ValueError(f"{out.what}: at most {MOST_PREFIXES} IPv6 prefixes")
        out.put(self.subnet, 4).number(self.prefix_length, 1).zeros(2).number(len(self.ipv6), 1)
        for prefix in self.ipv6:
            out.put(prefix.address, 16).number(prefix.length, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ism:
    """The fixed area behind the head of a PROPOSAL: SMC-D's device, and the vendor fields of version 2.1."""

    gid: bytes = bytes(8)
    chid: int = 0
    vendor_oui: bytes = bytes(3)
    vendor_options: bytes = bytes(5)

    @classmethod
    def read(cls, read: Reader) -> tuple[Ism, int]:
        """Read it, and the offset of the version 2 part that is in its midst."""
        gid, chid, v2_offset = read.take(8), read.number(2), read.number(2)
        ism = cls(gid=gid, chid=chid, vendor_oui=read.take(3), vendor_options=read.take(5))
        read.skip(20)
        return ism, v2_offset

    def put(self, out: Writer, v2_offset: int) -> None:
        """Write it, with the offset of the version 2 part."""
        out.put(self.gid, 8).number(self.chid, 2).number(v2_offset, 2)
        out.put(self.vendor_oui, 3).put(self.vendor_options, 5).zeros(20)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmcdV2:
    """SMC-D's part of version 2: the system EID, and GID and CHID of each device."""

    seid: bytes = bytes(32)
    devices: tuple[tuple[bytes, int], ...] = ()

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return 48 + 10 * len(self.devices)

    @classmethod
    def read(cls, read: Reader, devices: int) -> SmcdV2:
        """Read it; how many devices it has was said before it."""
        seid = read.take(32)
        read.skip(16)
        return cls(seid=seid, devices=tuple((read.take(8), read.number(2)) for _ in range(devices)))

    def put(self, out: Writer) -> None:
        """Write it."""
        out.put(self.seid, 32).zeros(16)
        for gid, chid in self.devices:
            out.put(gid, 8).number(chid, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class V2:
    """The version 2 part of a PROPOSAL."""

    gid: bytes
    """RoCEv2 GID of the client, ``::ffff:a.b.c.d``."""
    eids: tuple[str, ...]
    """User EIDs without their padding, the preferred one first."""
    release: int = 0
    seid_present: bool = False
    max_connections: int = 0
    """Version 2.1; 0 below."""
    max_links: int = 0
    """Version 2.1; 0 below."""
    feature_mask: int = 0
    smcd: SmcdV2 | None = None

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return 40 + 32 * len(self.eids) + (self.smcd.size if self.smcd else 0)

    @classmethod
    def read(cls, read: Reader) -> V2:
        """Read it from where the reader stands."""
        eids, devices = read.number(1), read.number(1)
        if eids > MOST_EIDS or devices > MOST_EIDS:
            raise broken(f"{read.what}: it has {eids} EIDs and {devices} ISM devices, and the most are {MOST_EIDS}")
        read.skip(1)
        release = read.number(1)
        read.skip(2)
        smcd_offset = read.number(2)
        smcd_at = read.position + smcd_offset
        gid, most, links, mask = read.take(16), read.number(1), read.number(1), read.number(2)
        read.skip(12)
        names = tuple(text(read.take(32)) for _ in range(eids))
        return cls(
            gid=gid,
            eids=names,
            release=release >> 4,
            seid_present=bool(release & 0x01),
            max_connections=most,
            max_links=links,
            feature_mask=mask,
            smcd=SmcdV2.read(Reader(read.data, read.what, smcd_at), devices) if smcd_offset else None,
        )

    def put(self, out: Writer) -> None:
        """Write it."""
        devices = self.smcd.devices if self.smcd else ()
        if len(self.eids) > MOST_EIDS or len(devices) > MOST_EIDS:
            raise ValueError(f"{out.what}: at most {MOST_EIDS} EIDs and devices")
        out.number(len(self.eids), 1).number(len(devices), 1).zeros(1)
        out.nibbles(self.release, int(self.seid_present)).zeros(2)
        out.number(32 + 32 * len(self.eids) if self.smcd else 0, 2).put(self.gid, 16)
        out.number(self.max_connections, 1).number(self.max_links, 1).number(self.feature_mask, 2).zeros(12)
        for eid in self.eids:
            out.padded(eid, 32)
        if self.smcd is not None:
            self.smcd.put(out)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstContact:
    """What ACCEPT and CONFIRM of a new link group carry in version 2."""

    v2_direct: bool = True
    """The peer is reachable without a router."""
    os_type: int = OS_LINUX
    release: int = 0
    host: str = ""
    """Host name, up to 32 characters."""
    max_connections: int = 0
    """Version 2.1; 0 below."""
    max_links: int = 0
    """Version 2.1; 0 below."""
    feature_mask: int = 0
    vendor_options: bytes = bytes(4)

    SIZE: ClassVar[int] = 52
    """Bytes on the wire, those of version 2.1 included: they are reserved below it."""

    @classmethod
    def read(cls, read: Reader) -> FirstContact:
        """Read it from where the reader stands."""
        direct, system = read.number(1), read.number(1)
        read.skip(2)
        host, most, links, mask, vendor = read.take(32), read.number(1), read.number(1), read.number(2), read.take(4)
        read.skip(8)
        return cls(
            v2_direct=bool(direct & 0x80),
            os_type=system >> 4,
            release=system & 0x0F,
            host=text(host),
            max_connections=most,
            max_links=links,
            feature_mask=mask,
            vendor_options=vendor,
        )

    def put(self, out: Writer) -> None:
        """Write it."""
        out.number(0x80 if self.v2_direct else 0, 1).nibbles(self.os_type, self.release).zeros(2).padded(self.host, 32)
        out.number(self.max_connections, 1).number(self.max_links, 1).number(self.feature_mask, 2)
        out.put(self.vendor_options, 4).zeros(8)
