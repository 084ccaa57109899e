# SPDX-License-Identifier: MIT OR Apache-2.0
"""One task at a time, and errors as trio says them: what streams and channels promise alike.

Owns which errno means that a connection is over.  Any other error means that the call was wrong, not the connection.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import trio

from exs.errors import Error

if TYPE_CHECKING:
    from types import TracebackType

_BROKEN = frozenset(
    {
        errno.EPIPE,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ETIMEDOUT,
        errno.EPROTO,
        errno.ENOTCONN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.ENODEV,
        errno.EADDRNOTAVAIL,
        errno.EHOSTDOWN,
        errno.EIO,
        errno.ECANCELED,
    }
)


class Exclusive:
    """Used as ``with``, around what one task may do at a time.

    Entering it twice raises ``BusyResourceError``; an :class:`exs.Error` that says that the connection is over leaves
    as ``BrokenResourceError``.
    """

    __slots__ = ("_busy", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(f"another task is {self._what}")
        self._busy = True

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._busy = False
        if isinstance(value, Error) and value.errno in _BROKEN:
            raise trio.BrokenResourceError(f"the connection is broken: {value}") from value
