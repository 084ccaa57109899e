# SPDX-License-Identifier: MIT OR Apache-2.0
"""Packets of a capture file, pcap or pcapng, down to TCP segments and UDP datagrams.

Owns the two file formats and the headers below the transport.  Invariant: no length of the file is believed beyond
:data:`MOST_BYTES`; what does not fit is a :class:`CaptureError`, and a packet of another kind is passed over.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAGICS", "CaptureError", "Segment", "packets", "segment"]

MOST_BYTES = 1 << 20
"""Bytes of a packet or block; more is taken for a broken file."""
MOST_INTERFACES = 4096

_PCAP = {
    b"\xa1\xb2\xc3\xd4": (">", 1e6),
    b"\xd4\xc3\xb2\xa1": ("<", 1e6),
    b"\xa1\xb2\x3c\x4d": (">", 1e9),
    b"\x4d\x3c\xb2\xa1": ("<", 1e9),
}
"""Order of the bytes, and units of the fraction of a second."""
_PCAPNG = b"\x0a\x0d\x0d\x0a"
MAGICS = frozenset({*_PCAP, _PCAPNG})
"""How such a file begins."""

ETHERNET, RAW_BSD, RAW, SLL, SLL2 = 1, 12, 101, 113, 276
TCP, UDP = 6, 17


class CaptureError(ValueError):
    """The file is broken."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet as it was captured."""

    number: int
    time: float
    """Seconds since 1970."""
    link: int
    """Link type, which says what the bytes begin with."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment or a UDP datagram."""

    packet: Packet
    source: str
    destination: str
    protocol: int
    ports: tuple[int, int]
    payload: bytes
    sequence: int = 0
    syn: bool = False


def packets(magic: bytes, file: BinaryIO) -> Iterator[Packet]:
    """The packets of a file.

    Args:
        magic: Its first four bytes, one of :data:`MAGICS`.
        file: The rest.

    Raises:
        CaptureError: It is broken; the packets before that place were given.
    """
    yield from _pcapng(file) if magic == _PCAPNG else _pcap(file, *_PCAP[magic])


def _exactly(file: BinaryIO, size: int, what: str) -> bytes:
    if not 0 <= size <= MOST_BYTES:
        raise CaptureError(f"{what} of {size} bytes: the file is broken")
    data = file.read(size)
    if len(data) != size:
        raise CaptureError(f"the file ends inside {what}")
    return data


def _pcap(file: BinaryIO, order: str, unit: float) -> Iterator[Packet]:
    link: int = struct.unpack(order + "16xI", _exactly(file, 20, "the file header"))[0] & 0x0FFFFFFF
    number = 0
    while head := file.read(16):
        if len(head) < 16:
            raise CaptureError("the file ends inside a packet header")
        seconds, fraction, size, _ = struct.unpack(order + "4I", head)
        number += 1
        yield Packet(number, seconds + fraction / unit, link, _exactly(file, size, f"packet {number}"))


@dataclass(slots=True)
class _Section:
    order: str = "<"
    interfaces: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    """Link type, and units in a second."""


def _pcapng(file: BinaryIO) -> Iterator[Packet]:
    section, number, kind_bytes = _Section(), 0, _PCAPNG
    while kind_bytes:
        length_bytes = _exactly(file, 4, "a block")
        if kind_bytes == _PCAPNG:
            magic = _exactly(file, 4, "a section")
            section = _Section("<" if magic == b"\x4d\x3c\x2b\x1a" else ">")
            _block(file, section.order, length_bytes, 4)
        else:
            kind: int = struct.unpack(section.order + "I", kind_bytes)[0]
            body = _block(file, section.order, length_bytes, 0)
            if kind == 1:
                _interface(section, body)
            elif kind in (3, 6):
                number += 1
                yield _packet(section, kind, body, number)
        kind_bytes = file.read(4)
        if 0 < len(kind_bytes) < 4:
            raise CaptureError("the file ends inside a block")


def _block(file: BinaryIO, order: str, length_bytes: bytes, taken: int) -> bytes:
    length: int = struct.unpack(order + "I", length_bytes)[0]
    if length < 12 + taken or length % 4:
        raise CaptureError(f"a block of {length} bytes: the file is broken")
    body = _exactly(file, length - 12 - taken, "a block")
    if _exactly(file, 4, "a block") != length_bytes:
        raise CaptureError("a block whose two lengths differ: the file is broken")
    return body


def _interface(section: _Section, body: bytes) -> None:
    if len(body) < 8 or len(section.interfaces) >= MOST_INTERFACES:
        raise CaptureError("an interface block that cannot be")
    link: int = struct.unpack_from(section.order + "H", body)[0]
    units, at = 1e6, 8
    while at + 4 <= len(body):
        code, size = struct.unpack_from(section.order + "2H", body, at)
        if code == 9 and size == 1 and at + 4 < len(body):
            exponent = body[at + 4]
            units = 2.0 ** (exponent & 0x7F) if exponent & 0x80 else 10.0**exponent
        if code == 0:
            break
        at += 4 + size + -size % 4
    section.interfaces.append((link, units))


def _packet(section: _Section, kind: int, body: bytes, number: int) -> Packet:
    head = 20 if kind == 6 else 4
    if len(body) < head:
        raise CaptureError(f"packet {number} is shorter than its header")
    interface, high, low, size = (0, 0, 0, len(body) - head)
    if kind == 6:
        interface, high, low, size = struct.unpack_from(section.order + "4I", body)
    if interface >= len(section.interfaces) or size > len(body) - head:
        raise CaptureError(f"packet {number} names an interface or a length that is not there")
    link, units = section.interfaces[interface]
    return Packet(number, (high << 32 | low) / units, link, body[head : head + size])


# -- headers --------------------------------------------------------------------------------------------------------


def segment(packet: Packet) -> Segment | None:
    """What a packet carries, if it is TCP or UDP and whole."""
    found = _network(packet)
    if found is None:
        return None
    kind, data = found
    ip = _ipv4(data) if kind == 0x0800 else _ipv6(data) if kind == 0x86DD else None
    if ip is None:
        return None
    source, destination, protocol, data = ip
    if protocol == UDP and len(data) >= 8:
        size = int.from_bytes(data[4:6], "big")
        whole = 8 <= size <= len(data)
        return Segment(packet, source, destination, UDP, _ports(data), data[8:size]) if whole else None
    if protocol == TCP and len(data) >= 20:
        sequence, head = int.from_bytes(data[4:8], "big"), data[12] >> 4 << 2
        syn = bool(data[13] & 0x02)
        return Segment(packet, source, destination, TCP, _ports(data), data[max(head, 20) :], sequence, syn)
    return None


def _ports(data: bytes) -> tuple[int, int]:
    return int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big")


def _network(packet: Packet) -> tuple[int, bytes] | None:
    """EtherType and what is behind it."""
    data, link = packet.data, packet.link
    if link in (RAW, RAW_BSD):
        return ({4: 0x0800, 6: 0x86DD}.get(data[0] >> 4, 0), data) if data else None
    offsets = {ETHERNET: (12, 14), SLL: (14, 16), SLL2: (0, 20)}.get(link)
    if offsets is None or len(data) < offsets[1]:
        return None
    kind, data = int.from_bytes(data[offsets[0] : offsets[0] + 2], "big"), data[offsets[1] :]
    for _ in range(2):
        if kind in (0x8100, 0x88A8) and len(data) >= 4:
            kind, data = int.from_bytes(data[2:4], "big"), data[4:]
    return kind, data


def _ipv4(data: bytes) -> tuple[str, str, int, bytes] | None:
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    head, total = (data[0] & 0x0F) * 4, int.from_bytes(data[2:4], "big")
    fragment = int.from_bytes(data[6:8], "big") & 0x3FFF
    if head < 20 or total < head or fragment:
        return None
    source, destination = (str(ipaddress.IPv4Address(data[at : at + 4])) for at in (12, 16))
    return source, destination, data[9], data[head:total]


def _ipv6(data: bytes) -> tuple[str, str, int, bytes] | None:
    if len(data) < 40 or data[0] >> 4 != 6:
        return None
    source, destination = (f"[{ipaddress.IPv6Address(data[at : at + 16])}]" for at in (8, 24))
    return source, destination, data[6], data[40 : 40 + int.from_bytes(data[4:6], "big")]
