# SPDX-License-Identifier: MIT OR Apache-2.0
"""What this host brings to a handshake: the port and the GID on the way of a TCP connection.

Owns the choice of the device.  The GID of an RDMA card is that of the address which TCP uses, so that both take the
same way; the embedded device makes its own, and takes part only where no card is there.  Opens no device.
"""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exs.smc import clc
from exs.smc.handshake import Local

if TYPE_CHECKING:
    from collections.abc import Callable

    from exs._config import Settings

__all__ = ["SOFT_PREFIX", "Port", "facts", "is_soft", "roce_port"]

SYSFS = Path("/sys/class/infiniband")
SOFT_PREFIX = b"\xfdEXS"
"""How the GIDs of the embedded device begin."""

MAPPED = bytes(10) + b"\xff\xff"
SIOCGIFADDR, SIOCGIFNETMASK = 0x8915, 0x891B
LARGEST_CODE = 5
"""512 KiB: the largest buffer that a kernel gives a connection."""


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a device, as far as SMC-R is concerned."""

    device: str
    """``"verbs"`` or ``"soft"``."""
    gid: bytes
    mac: bytes


def is_soft(gid: bytes) -> bool:
    """Whether a GID is one of the embedded device."""
    return gid.startswith(SOFT_PREFIX)


def roce_port(address: bytes, sysfs: Path = SYSFS) -> Port | None:
    """The RoCE port with a version 2 GID of an IPv4 address.

    Args:
        address: 4 bytes.
        sysfs: Where the kernel lists RDMA devices.
    """
    wanted = str(ipaddress.IPv6Address(MAPPED + address).exploded)
    for entry in sorted(sysfs.glob("*/ports/*/gids/*")):
        attributes = entry.parent.parent / "gid_attrs"
        try:
            if entry.read_text().strip() != wanted:
                continue
            if (attributes / "types" / entry.name).read_text().strip() != "RoCE v2":
                continue
            netdev = (attributes / "ndevs" / entry.name).read_text().strip()
            mac = (sysfs.parent / "net" / netdev / "address").read_text().strip()
        except OSError:  # an entry without a GID cannot be read
            continue
        return Port("verbs", MAPPED + address, bytes.fromhex(mac.replace(":", "")))
    return None


def subnet(address: bytes) -> tuple[bytes, int]:
    """The IPv4 network that an address of this host is in: its address, and the length of its prefix."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ask:
        for _, name in socket.if_nameindex():
            request = struct.pack("16s24x", name.encode())
            try:
                if fcntl.ioctl(ask, SIOCGIFADDR, request)[20:24] != address:
                    continue
                mask = fcntl.ioctl(ask, SIOCGIFNETMASK, request)[20:24]
            except OSError:  # an interface without an IPv4 address
                continue
            network = int.from_bytes(address, "big") & int.from_bytes(mask, "big")
            return network.to_bytes(4, "big"), int.from_bytes(mask, "big").bit_count()
    return address, 32


def size_code(settings: Settings) -> int:
    """Of the receive buffer: 16 KiB << code, at least what the settings ask for, within what is allowed."""
    return min(LARGEST_CODE, max(0, (settings.ring_bytes - 1).bit_length() - 14))


def facts(local: tuple[str, int], settings: Settings, soft: Callable[[], Port | None], peer: bytes = b"") -> Local:
    """What a handshake over a TCP connection begins with.

    Args:
        local: Our address of the TCP connection.
        settings: Choices for the connection.
        soft: Finds the port of the embedded device.
        peer: GID of the peer, where it spoke first: two devices of different kinds do not reach one another.
    """
    try:
        address = socket.inet_pton(socket.AF_INET, local[0])
    except OSError:
        return Local(unable=clc.DECLINE_NO_SMCR_DEVICE)
    port = None
    if settings.device in ("auto", "verbs") and not is_soft(peer):
        port = roce_port(address)
    if port is None and settings.device in ("auto", "soft") and (not peer or is_soft(peer)):
        port = soft()
    if port is None:
        return Local(unable=clc.DECLINE_NO_SMCR_DEVICE)
    return Local(
        eids=settings.smc_eid,
        gid=port.gid,
        gid_v1=port.gid if port.device == "soft" else None,
        mac=port.mac,
        subnet=subnet(address),
        size_code=size_code(settings),
        host=socket.gethostname()[:32],
    )
