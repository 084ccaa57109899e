# SPDX-License-Identifier: MIT OR Apache-2.0
"""Capture files for tests, made by hand: packets of TCP and RoCEv2, in pcap and in pcapng."""

from __future__ import annotations

import ipaddress
import struct

CLIENT, SERVER = "10.9.0.1", "10.9.0.2"


def _ip(source: str, destination: str, protocol: int, data: bytes) -> bytes:
    first, second = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if first.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(data), protocol, 64) + first.packed + second.packed + data
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 0, 0, 64, protocol, 0)
    return head + first.packed + second.packed + data


def tcp(
    data: bytes, sequence: int, *, syn: bool = False, back: bool = False, options: bytes = b"", v6: bool = False
) -> bytes:
    """An IP packet of the connection from client port 40000 to server port 7471, or back."""
    ends, ports = ((CLIENT, SERVER), (40000, 7471)) if not v6 else (("fd00::1", "fd00::2"), (40000, 7471))
    if back:
        ends, ports = ends[::-1], ports[::-1]
    flags = (5 + len(options) // 4) << 12 | (0x02 if syn else 0x10)
    return _ip(*ends, 6, struct.pack("!HHIIHHHH", *ports, sequence & 0xFFFFFFFF, 0, flags, 1000, 0, 0) + options + data)


def roce(data: bytes, *, opcode: int = 0x04, queue_pair: int = 0x11, extra: bytes = b"") -> bytes:
    """An IP packet of RoCEv2 to the server, with a CRC of zeros."""
    pad = -len(data) % 4
    body = struct.pack("!BBHII", opcode, 0x80 | pad << 4, 0xFFFF, queue_pair, 1) + extra + data + bytes(pad + 4)
    return _ip(CLIENT, SERVER, 17, struct.pack("!HHHH", 50000, 4791, 8 + len(body), 0) + body)


def ethernet(packet: bytes, vlan: bool = False) -> bytes:
    kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
    return bytes(12) + (b"\x81\x00\x00\x05" if vlan else b"") + kind + packet


def pcap(packets: list[bytes], link: int = 101, order: str = "<", nanoseconds: bool = False) -> bytes:
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    data = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 65535, link)
    for number, packet in enumerate(packets, 1):
        data += struct.pack(order + "IIII", number, 500, len(packet), len(packet)) + packet
    return data


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", 12 + len(body))
    return struct.pack(order + "I", kind) + size + body + size


def pcapng(packets: list[bytes], link: int = 101, order: str = "<", resolution: int | None = None) -> bytes:
    data = block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)
    option = b"" if resolution is None else struct.pack(order + "HHB3xHH", 9, 1, resolution, 0, 0)
    data += block(1, struct.pack(order + "HHI", link, 0, 65535) + option, order)
    data += block(0x0BAD, b"passed over", order)
    for number, packet in enumerate(packets, 1):
        if number % 2:
            data += block(6, struct.pack(order + "5I", 0, 0, number, len(packet), len(packet)) + packet, order)
        else:
            data += block(3, struct.pack(order + "I", len(packet)) + packet, order)
    return data
