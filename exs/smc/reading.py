# SPDX-License-Identifier: MIT OR Apache-2.0
"""CLC messages out of a TCP stream that carries payload right behind them.

Owns how many bytes may be read, and the dropping of a DECLINE that crossed ours.  Invariant: not one byte of payload is
taken, changed or lost, however TCP cuts the stream; what was read and is no CLC message is given back whole.
"""

from __future__ import annotations

from exs.errors import RemoteProtocolError
from exs.smc import clc
from exs.smc.actions import ClcBroken, ClcReceived, Eof, NotClc

__all__ = ["CROSSING_TIMEOUT", "ClcReader", "CrossingFilter"]

HEADER = 8
"""Bytes from which the length of a CLC message is known."""

CROSSING_TIMEOUT = 2.0
"""Seconds after which bytes that could still become a crossing message are the application's."""


def _may_be_clc(data: bytes | bytearray) -> bool:
    start = bytes(data[:4])
    return any(eyecatcher.startswith(start) for eyecatcher in clc.EYECATCHERS)


class ClcReader:
    """Reads one message after the other, and never beyond one.

    Receive at most :attr:`missing` bytes, give them to :meth:`feed`, and go on until it returns an event.
    """

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def missing(self) -> int:
        """Bytes that may be received now; at least 1."""
        if len(self._data) < HEADER:
            return HEADER - len(self._data)
        return clc.length_of(bytes(self._data[:HEADER])) - len(self._data)

    def feed(self, data: bytes) -> ClcReceived | NotClc | ClcBroken | None:
        """Take what was received.

        Args:
            data: At most :attr:`missing` bytes, at least 1.

        Returns:
            The event that it completes, if it does.
        """
        assert 0 < len(data) <= self.missing
        self._data += data
        if not _may_be_clc(self._data):
            return NotClc(self._taken())
        try:
            if len(self._data) < HEADER or self.missing:
                return None
            return ClcReceived(clc.decode(self._taken()))
        except RemoteProtocolError as error:
            self._data.clear()
            return ClcBroken(error)

    def end(self) -> Eof:
        """TCP has ended."""
        return Eof(self._taken())

    def _taken(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


class CrossingFilter:
    """Drops CLC messages from the beginning of the payload, one of each type at most.

    Args:
        types: CLC types that may be there, from :attr:`exs.smc.actions.Fallback.crossing`.
    """

    def __init__(self, types: frozenset[int]) -> None:
        self._types = types
        self._data = bytearray()
        self.done: bool = not types
        """All that comes is payload: the filter may be taken out."""

    @property
    def held(self) -> int:
        """Bytes that wait for more; after :data:`CROSSING_TIMEOUT` call :meth:`end`."""
        return len(self._data)

    def feed(self, data: bytes) -> bytes:
        """Take what was received.

        Returns:
            What of it, and of what was held, is the application's.
        """
        self._data += data
        while not self.done:
            if len(self._data) < HEADER and _may_be_clc(self._data):
                return b""
            length = self._length()
            if len(self._data) < length:
                return b""
            if not length or not self._drop(length):
                break
        return self.end()

    def end(self) -> bytes:
        """Nothing more is waited for.

        Returns:
            What was held.
        """
        self.done = True
        data = bytes(self._data)
        self._data.clear()
        return data

    def _length(self) -> int:
        """Length of the message that begins so; 0 if it is none that may come."""
        if not _may_be_clc(self._data) or self._data[4] not in self._types:
            return 0
        try:
            return clc.length_of(bytes(self._data[:HEADER]))
        except RemoteProtocolError:
            return 0

    def _drop(self, length: int) -> bool:
        """Drop a message, if it is one from the first byte to the last."""
        data = bytes(self._data[:length])
        try:
            clc.decode(data)
        except RemoteProtocolError:
            return False
        if data[-4:] not in clc.EYECATCHERS:
            return False  # nobody else looks at a DECLINE's trailer; here it tells a message from payload
        self._types -= {data[4]}
        self.done = not self._types
        del self._data[:length]
        return True
