# SPDX-License-Identifier: MIT OR Apache-2.0
"""Sockets' addresses: from the tuples of :mod:`socket` to ``struct sockaddr`` and back.

Owns both layouts.  Resolves nothing: a host is numeric, or empty for any.

Invariant: what :func:`pack_address` made, :func:`unpack_address` reads back, with an IPv6 zone as its number.
"""

from __future__ import annotations

import socket as _socket
import struct

_IN4 = struct.Struct("=H2s4s8x")
_IN6 = struct.Struct("=H2s4s16sI")


def pack_address(family: int, address: tuple[str | int, ...]) -> bytes:
    """The ``struct sockaddr`` of a numeric address written as :mod:`socket` does.

    Raises:
        OSError: The host is no numeric address of that family.
        OverflowError: The port is not within 0 and 65535.
        TypeError: Not a tuple of the shape that :mod:`socket` uses.
    """
    if not 2 <= len(address) <= (4 if family == _socket.AF_INET6 else 2):
        raise TypeError(f"the address must be a tuple (host, port, ...), not {address!r}")
    host, port = address[:2]
    more = [m for m in address[2:] if isinstance(m, int)]
    if not isinstance(host, str) or not isinstance(port, int) or len(more) != len(address) - 2:
        raise TypeError(f"the address must be (str, int, ...), not {address!r}")
    if not 0 <= port <= 65535:
        raise OverflowError("the port must be from 0 to 65535")
    net_port = struct.pack("!H", port)
    if family == _socket.AF_INET:
        return _IN4.pack(family, net_port, _socket.inet_pton(family, host or "0.0.0.0"))  # noqa: S104  as in socket
    host, _, zone = host.partition("%")
    flow = more[0] if more else 0
    scope = more[1] if len(more) > 1 else 0
    if zone and not scope:
        scope = _socket.if_nametoindex(zone) if not zone.isdigit() else int(zone)
    return _IN6.pack(family, net_port, struct.pack("!I", flow), _socket.inet_pton(family, host or "::"), scope)


def unpack_address(raw: bytes | memoryview) -> tuple[str, int] | tuple[str, int, int, int]:
    """An address of the core, as :mod:`socket` writes it."""
    family: int = struct.unpack_from("=H", raw)[0]
    if family == _socket.AF_INET6:
        _, port, flow, host, scope = _IN6.unpack_from(raw)
        return (
            _socket.inet_ntop(family, host),
            int.from_bytes(port, "big"),
            int.from_bytes(flow, "big"),
            scope,
        )
    _, port, host = _IN4.unpack_from(raw)
    return _socket.inet_ntop(_socket.AF_INET, host), int.from_bytes(port, "big")
