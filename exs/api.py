# SPDX-License-Identifier: MIT OR Apache-2.0
"""The awaitable ES-API under the names of the standard: :func:`socket`, and what is done with one as functions.

Owns the names only; each function is the method of :class:`exs.Socket` that has its name.
"""

from __future__ import annotations

import socket as _socket
from typing import TYPE_CHECKING

from exs import _config
from exs._handles import SOCK_SEQPACKET, SOCK_STREAM
from exs._pump import current_pump
from exs.sockets import Socket

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from exs._addresses import Address
    from exs._native import Span

__all__ = ["SOCK_SEQPACKET", "SOCK_STREAM", "accept", "connect", "recv", "recv_into", "send", "socket"]


def socket(
    type: int = SOCK_STREAM,  # noqa: A002  the name that socket.socket gives it
    options: _config.Options | None = None,
    *,
    family: int = _socket.AF_INET,
) -> Socket:
    """A new socket; it belongs to this trio run.

    Args:
        type: ``SOCK_STREAM`` for bytes, ``SOCK_SEQPACKET`` for whole messages.
        options: What to choose; fields left out have their defaults.
        family: ``AF_INET`` or ``AF_INET6``; ``bind`` and ``connect`` change it to that of their address.

    Returns:
        The socket, not connected.

    Raises:
        RuntimeError: Not inside ``trio.run``.
        ValueError: No such type or family.

    *Source:* ES-API, ``exs_socket``.
    """
    if type not in (SOCK_STREAM, SOCK_SEQPACKET):
        raise ValueError(f"type must be SOCK_STREAM or SOCK_SEQPACKET, not {type!r}")
    if family not in (_socket.AF_INET, _socket.AF_INET6):
        raise ValueError(f"family must be AF_INET or AF_INET6, not {family!r}")
    return Socket(current_pump(), int(type), int(family), _config.resolve(options))


async def connect(sock: Socket, address: Address) -> None:
    """See :meth:`Socket.connect`."""
    await sock.connect(address)


async def accept(sock: Socket) -> tuple[Socket, Address]:
    """See :meth:`Socket.accept`."""
    return await sock.accept()


async def send(sock: Socket, buffer: Buffer | Span) -> int:
    """See :meth:`Socket.send`."""
    return await sock.send(buffer)


async def recv(sock: Socket, nbytes: int) -> bytes:
    """See :meth:`Socket.recv`."""
    return await sock.recv(nbytes)


async def recv_into(sock: Socket, buffer: Buffer | Span, *, waitall: bool = False) -> int:
    """See :meth:`Socket.recv_into`."""
    return await sock.recv_into(buffer, waitall=waitall)
