# SPDX-License-Identifier: MIT OR Apache-2.0
"""Hosts by name, and the order in which their addresses are tried.

Owns the look-up, which is trio's, and the form that the core takes: numbers, with an IPv6 zone as its number.
Opens no socket.

Invariant: what leaves here as a target is numeric, and of a family that the core knows.
"""

from __future__ import annotations

import errno
import socket as _socket

import trio

from exs import _native

Address = tuple[str, int] | tuple[str, int, int, int]
"""As :mod:`socket` writes it."""

Target = tuple[int, Address]
"""A family, and a numeric address of it."""

_FAMILIES = (_socket.AF_INET, _socket.AF_INET6)


def family_of(host: str) -> int:
    """The family of a numeric address, 0 if it is none."""
    if not host:
        return 0
    for family in _FAMILIES:
        try:
            _socket.inet_pton(family, host.partition("%")[0])
        except OSError:
            continue
        return family
    return 0


async def first_address(address: Address) -> Target:
    """Family and numeric form of an address; of a host with several, the first.

    Raises:
        OSError: The host has no address.
        TypeError: The host is no string.
    """
    host = address[0]
    if not isinstance(host, str):
        raise TypeError(f"the host must be a string, not {host!r}")
    family = family_of(host)
    return (family, address) if family else (await resolve(host, address[1]))[0]


async def resolve(host: str | bytes | None, port: int, *, passive: bool = False) -> list[Target]:
    """The addresses of a host, in the order to try them; of this machine if it is ``None``.

    Args:
        host: Name or address.
        port: Port number.
        passive: They are to be listened on.

    Raises:
        OSError: There are none.
        TypeError: The port is no number.
    """
    if not isinstance(port, int):
        raise TypeError(f"the port must be a number, not {port!r}")
    flags = _socket.AI_PASSIVE if passive else 0
    found = await trio.socket.getaddrinfo(host, port, type=_socket.SOCK_STREAM, flags=flags)
    targets: list[Target] = []
    for family, _, _, _, address in found:
        if family in _FAMILIES:
            numeric = (str(address[0]), int(address[1]), *address[2:])
            targets.append((int(family), _native.unpack_address(_native.pack_address(family, numeric))))
    if not targets:
        raise OSError(errno.EADDRNOTAVAIL, f"{named(host, port)} has no address")
    return targets


def interleave(targets: list[Target]) -> list[Target]:
    """Addresses of the first one's family and of the other by turns (RFC 8305, section 4)."""
    first = [t for t in targets if t[0] == targets[0][0]]
    other = [t for t in targets if t[0] != targets[0][0]]
    mixed: list[Target] = []
    while first or other:
        mixed += first[:1] + other[:1]
        del first[:1], other[:1]
    return mixed


def named(host: str | bytes | None, port: int) -> str:
    """Host and port for people."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host or "this host"
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
