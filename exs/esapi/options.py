# SPDX-License-Identifier: MIT OR Apache-2.0
"""ES-API: options of sockets."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from exs import _config, _native
from exs.errors import from_errno
from exs.esapi import descriptors
from exs.esapi.constants import (
    EXS_PROGRESS_INLINE,
    EXS_PROGRESS_THREAD,
    EXS_SO_CLOSE_TIMEOUT,
    EXS_SO_CONNECT_TIMEOUT,
    EXS_SO_CRC,
    EXS_SO_DEVICE,
    EXS_SO_PATH,
    EXS_SO_PROGRESS,
    EXS_SO_REASON,
    EXS_SO_RING,
    EXS_SO_STRICT_SIZE,
    SO_ASYNC_RECV_ORDERED,
    SO_ASYNC_RECV_TIMEOUT,
    SO_ASYNC_SEND_TIMEOUT,
    SOL_EXS,
    ProgressMode,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from exs.esapi.descriptors import Descriptor, Process

# Bits that are set before the core has a socket for the descriptor.
_SWITCHES = {
    (socket.SOL_SOCKET, socket.SO_REUSEADDR): "reuse_address",
    (socket.SOL_SOCKET, socket.SO_REUSEPORT): "reuse_port",
    (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY): "v6_only",
}
# What is always so: may be asked, and "set" to what it is.
_FIXED = {
    (socket.SOL_SOCKET, int(SO_ASYNC_RECV_ORDERED)): 1,
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_NODELAY): 1,
}


def exs_getsockopt(fd: int, level: int, option: int) -> int | bytes:
    """An option of a socket.

    Args:
        fd: The socket.
        level: ``SOL_SOCKET``, ``SOL_EXS``, ``IPPROTO_IPV6``, ``IPPROTO_TCP``.
        option: ``SO_TYPE``, ``SO_DOMAIN``, ``SO_ERROR``, ``SO_ACCEPTCONN``, ``SO_LINGER`` (bytes, as in C),
            ``SO_RCVBUF`` (bytes of the ring), ``SO_REUSEADDR``, ``SO_REUSEPORT``, ``IPV6_V6ONLY``, and some that
            are always 1. At level ``SOL_EXS``: the ``EXS_SO_...`` options; text comes as bytes.

    Raises:
        exs.Error: ``ENOPROTOOPT``: not known here.
    """
    process = descriptors.process()
    descriptor = process.lookup(fd)
    key = (level, option)
    if key in _SWITCHES:
        return int(descriptor.switches[_SWITCHES[key]])
    if key in _FIXED:
        return _FIXED[key]
    if level == SOL_EXS:
        return _ask_exs(process, descriptor, option)
    if level == socket.SOL_SOCKET:
        if option == socket.SO_TYPE:
            return descriptor.type
        if option == socket.SO_DOMAIN:
            return descriptor.family
        if option == socket.SO_RCVBUF:
            return descriptor.settings.ring_bytes
        if option == socket.SO_LINGER:
            return struct.pack("ii", descriptor.linger_s is not None, descriptor.linger_s or 0)
        if option in (socket.SO_ERROR, socket.SO_ACCEPTCONN):
            if not descriptor.made:
                return 0
            info = process.ctx.query(descriptor.handle)
            return info.error if option == socket.SO_ERROR else int(info.state == _native.SOCK_LISTENING)
    raise from_errno(errno.ENOPROTOOPT)


def exs_setsockopt(fd: int, level: int, option: int, value: int | Buffer) -> None:
    """Set an option: ``SO_REUSEADDR``, ``SO_REUSEPORT``, ``IPV6_V6ONLY``, ``EXS_SO_...`` before bind; ``SO_LINGER``.

    Args:
        fd: The socket.
        level: ``SOL_SOCKET``, ``SOL_EXS``, ``IPPROTO_IPV6``, ``IPPROTO_TCP``.
        option: The option.
        value: A number, or bytes as in C. ``SO_LINGER`` with time 0: closing aborts.

    Raises:
        exs.Error: ``ENOPROTOOPT``: not known here; ``EINVAL``: too late, or it cannot have that value;
            ``EOPNOTSUPP``: a timer of ES-API.
    """
    descriptor = descriptors.process().lookup(fd)
    key = (level, option)
    if key == (socket.SOL_SOCKET, socket.SO_LINGER):
        raw = value.to_bytes(8, "little") if isinstance(value, int) else bytes(value)
        if len(raw) != 8:
            raise from_errno(errno.EINVAL, "SO_LINGER takes struct linger: two ints")
        on, seconds = struct.unpack("ii", raw)
        descriptor.linger_s = seconds if on else None
        return
    if option in (SO_ASYNC_SEND_TIMEOUT, SO_ASYNC_RECV_TIMEOUT) and level == socket.SOL_SOCKET:
        raise from_errno(errno.EOPNOTSUPP, "ES-API's timers are not offered; cancel the operation instead")
    if level == SOL_EXS:
        _set_exs(descriptor, option, value)
        return
    number = value if isinstance(value, int) else int.from_bytes(bytes(value), "little")
    if key in _SWITCHES:
        if descriptor.made:
            raise from_errno(errno.EINVAL, "this option is set before bind, listen and connect")
        descriptor.switches[_SWITCHES[key]] = bool(number)
    elif key in _FIXED:
        if number != _FIXED[key]:
            raise from_errno(errno.EINVAL, "this option cannot be changed")
    else:
        raise from_errno(errno.ENOPROTOOPT)


# Options of a socket by their number, and what one unit of the number is.
_EXS_FIELDS: dict[int, tuple[str, float | None]] = {
    EXS_SO_DEVICE: ("device", None),
    EXS_SO_PATH: ("path", None),
    EXS_SO_RING: ("ring_bytes", 1),
    EXS_SO_CLOSE_TIMEOUT: ("close_timeout", 0.001),
    EXS_SO_CONNECT_TIMEOUT: ("connect_timeout", 0.001),
    EXS_SO_CRC: ("crc", 1),
    EXS_SO_STRICT_SIZE: ("strict_size", 1),
}
_PROGRESS = {EXS_PROGRESS_INLINE: "inline", EXS_PROGRESS_THREAD: "thread"}


def _ask_exs(process: Process, descriptor: Descriptor, option: int) -> int | bytes:
    settings = descriptor.settings
    if option in (EXS_SO_PATH, EXS_SO_REASON):
        info = process.ctx.query(descriptor.handle) if descriptor.made else None
        if option == EXS_SO_REASON:
            return info.reason.encode() if info else b""
        return (info.path if info and info.path else settings.path).encode()
    if option == EXS_SO_DEVICE:
        return settings.device.encode()
    if option == EXS_SO_PROGRESS:
        return int(next(number for number, name in _PROGRESS.items() if name == settings.progress))
    if option in _EXS_FIELDS:
        field, unit = _EXS_FIELDS[option]
        value: float = getattr(settings, field)
        return round(value / (unit or 1))
    raise from_errno(errno.ENOPROTOOPT)


def _set_exs(descriptor: Descriptor, option: int, value: int | Buffer) -> None:
    if option != EXS_SO_PROGRESS and option not in _EXS_FIELDS:
        raise from_errno(errno.ENOPROTOOPT)
    if descriptor.made:
        raise from_errno(errno.EINVAL, "this option is set before bind, listen and connect")
    number = value if isinstance(value, int) else int.from_bytes(bytes(value)[:8], "little", signed=True)
    if option == EXS_SO_PROGRESS:
        field, unit = "progress", None
        wanted: object = _PROGRESS.get(ProgressMode(number)) if number in _PROGRESS else None
    else:
        field, unit = _EXS_FIELDS[option]
        if field in ("crc", "strict_size"):
            wanted = bool(number)
        elif unit is None:
            wanted = None if isinstance(value, int) else bytes(value).rstrip(b"\0").decode("ascii", "replace")
        else:
            wanted = number if unit == 1 else number * unit
    try:
        if wanted is None:
            raise ValueError(f"{field} cannot be {value!r}")
        descriptor.settings = _config.resolve_over(descriptor.settings, field, wanted)
    except ValueError as problem:
        raise from_errno(errno.EINVAL, str(problem)) from None
