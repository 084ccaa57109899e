# SPDX-License-Identifier: MIT OR Apache-2.0
"""The exception tree: what the core says with an errno, said with an exception.

Owns the classes and the one function that picks among them.  Knows nothing of sockets or of the native
module.  Invariant: everything raised here is an :class:`Error`, hence an :class:`OSError` with a true
``errno``, and where Python has a class of its own for that errno it is that one too.
"""

from __future__ import annotations

import errno as _errno
import os

__all__ = [
    "BusyError",
    "Error",
    "NoDeviceError",
    "OperationCancelled",
    "ProtocolError",
    "QueueFullError",
    "RemoteProtocolError",
    "TruncatedError",
    "from_errno",
]


class Error(OSError):
    """An operation of exs failed; ``errno`` and ``strerror`` say how.

    Attributes:
        transferred: Bytes that had been handed over or placed when it failed.
        provider_status: What the device itself reported, where it said more than an errno; else ``None``.
    """

    transferred: int = 0
    provider_status: int | None = None


class BusyError(Error):
    """``EBUSY``: the region or queue is still used by operations in flight."""


class QueueFullError(Error, BlockingIOError):
    """``EAGAIN``: no slot in the event queue, or too many operations on the socket.  Nothing was started."""


class ProtocolError(Error):
    """``EPROTO``: the peer broke the protocol, or speaks another version of it."""


class RemoteProtocolError(ProtocolError):
    """``EPROTO``: the peer sent bytes that no rule of the protocol allows; the text says which."""


class TruncatedError(Error):
    """``EMSGSIZE``: a message was longer than the buffer given for it; the rest of it is lost.

    Attributes:
        length: Bytes that the message had.
        placed: Bytes of it that were placed in the buffer.
    """

    length: int = 0
    placed: int = 0


class OperationCancelled(Error):
    """``ECANCELED``: the operation ended because its end was asked for."""


class NoDeviceError(Error):
    """``EOPNOTSUPP``: no device, or not the path that was asked for; the text lists what was tried."""


class _AccessDenied(Error, PermissionError):
    """``EACCES``."""


class _BrokenPipe(Error, BrokenPipeError):
    """``EPIPE``."""


class _ConnectionAborted(Error, ConnectionAbortedError):
    """``ECONNABORTED``."""


class _ConnectionRefused(Error, ConnectionRefusedError):
    """``ECONNREFUSED``."""


class _ConnectionReset(Error, ConnectionResetError):
    """``ECONNRESET``."""


class _Interrupted(Error, InterruptedError):
    """``EINTR``."""


class _TimedOut(Error, TimeoutError):
    """``ETIMEDOUT``."""


_CLASSES: dict[int, type[Error]] = {
    _errno.EBUSY: BusyError,
    _errno.EAGAIN: QueueFullError,
    _errno.EPROTO: ProtocolError,
    _errno.EMSGSIZE: TruncatedError,
    _errno.ECANCELED: OperationCancelled,
    _errno.EACCES: _AccessDenied,
    _errno.EPERM: _AccessDenied,
    _errno.EPIPE: _BrokenPipe,
    _errno.ECONNABORTED: _ConnectionAborted,
    _errno.ECONNREFUSED: _ConnectionRefused,
    _errno.ECONNRESET: _ConnectionReset,
    _errno.EINTR: _Interrupted,
    _errno.ETIMEDOUT: _TimedOut,
}


def from_errno(number: int, text: str | None = None, *, setup: bool = False, transferred: int = 0) -> Error:
    """Make the exception for an errno.

    Args:
        number: The errno; the sign does not matter, since the core returns ``-errno``.
        text: What happened, in words; by default the system's words for the number.
        setup: It came from connect or listen, where ``EOPNOTSUPP`` means that there is no such device or path.
        transferred: Bytes handed over or placed before the failure.

    Returns:
        An instance of the class for that errno, to be raised by the caller.
    """
    number = abs(number)
    kind = NoDeviceError if setup and number == _errno.EOPNOTSUPP else _CLASSES.get(number, Error)
    error = kind(number, text or os.strerror(number))
    error.transferred = transferred
    return error
