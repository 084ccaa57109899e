# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the messages of SMC-R are made of: a reader and a writer with bounds, sizes, codes, and the CDC message.

Owns the numbers that CLC and LLC share.  Invariant: whatever bytes are read, the only error is
:class:`exs.errors.RemoteProtocolError`; whatever value does not fit when written is a :class:`ValueError`.
CDC messages are sent and taken by the native engine; here they are decoded for people.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import ClassVar

from exs.errors import RemoteProtocolError

__all__ = [
    "EYECATCHER",
    "EYECATCHER_SMCD",
    "LLC_BYTES",
    "LLC_MOST_BYTES",
    "MOST_EIDS",
    "MOST_PREFIXES",
    "MTU_BYTES",
    "SMALLEST_RMBE",
    "TCP_OPTION",
    "Cdc",
    "Cursor",
    "Reader",
    "Writer",
    "broken",
    "mtu_bytes",
    "rmbe_bytes",
    "rmbe_code",
]

EYECATCHER = bytes.fromhex("e2d4c3d9")
"""``SMCR`` in EBCDIC."""
EYECATCHER_SMCD = bytes.fromhex("e2d4c3c4")
"""``SMCD`` in EBCDIC: memory shared between the guests of a mainframe, which exs neither offers nor takes."""

TCP_OPTION = b"\xfe\x06" + EYECATCHER
"""The experimental TCP option of RFC 7609, without padding."""

LLC_BYTES = 44
"""Bytes of a CDC message, and of an LLC message that is not one of the longer ones of version 2."""
LLC_MOST_BYTES = 8192
"""Bytes that an LLC message of version 2 may have."""

MOST_EIDS = 8
"""EIDs in a PROPOSAL; devices of SMC-D likewise."""
MOST_PREFIXES = 8
"""IPv6 prefixes in a PROPOSAL."""

MTU_BYTES = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
"""Bytes of each MTU code."""

SMALLEST_RMBE = 16384
"""Bytes of a receive buffer with size code 0; each further code doubles it."""


def broken(text: str) -> RemoteProtocolError:
    """The exception for bytes that no peer may send."""
    return RemoteProtocolError(errno.EPROTO, text)


def mtu_bytes(code: int) -> int:
    """Bytes of a packet for an MTU code.

    Raises:
        RemoteProtocolError: There is no such code.
    """
    try:
        return MTU_BYTES[code]
    except KeyError:
        raise broken(f"there is no MTU code {code}") from None


def rmbe_bytes(code: int) -> int:
    """Bytes of a receive buffer for a size code, 0 to 15."""
    if not 0 <= code <= 15:
        raise ValueError(f"the size code is 0 to 15, not {code}")
    return SMALLEST_RMBE << code


def rmbe_code(size: int) -> int:
    """The smallest size code for at least so many bytes; the largest, 15, if there is none."""
    return min(15, max(0, (size - 1).bit_length() - 14))


class Reader:
    """Reads fields one after the other, and never beyond the end.

    Args:
        data: The bytes of a message; a trailer is left out by the caller.
        what: The message's name, for the error.
        position: Where to begin.
    """

    def __init__(self, data: bytes | memoryview, what: str, position: int = 0) -> None:
        self.data: bytes = bytes(data)
        self.what = what
        self.position: int = position

    @property
    def left(self) -> int:
        """Bytes that were not read."""
        return len(self.data) - self.position

    def take(self, size: int) -> bytes:
        """The next bytes."""
        end = self.position + size
        if end > len(self.data):
            raise broken(f"{self.what}: the field at byte {self.position} would end at byte {end} of {len(self.data)}")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, size: int) -> int:
        """The next bytes as an unsigned number, most significant byte first."""
        return int.from_bytes(self.take(size), "big")

    def skip(self, size: int) -> None:
        """Reserved bytes: senders write zeros there, and nobody looks."""
        self.take(size)


class Writer:
    """Writes fields one after the other.

    Args:
        what: The message's name, for errors.
    """

    def __init__(self, what: str) -> None:
        self.data: bytearray = bytearray()
        self.what = what

    def put(self, value: bytes, size: int) -> Writer:
        """Bytes of a fixed size."""
        if len(value) != size:
            raise ValueError(f"{self.what}: the field at byte {len(self.data)} has {size} bytes, not {len(value)}")
        self.data += value
        return self

    def number(self, value: int, size: int) -> Writer:
        """An unsigned number, most significant byte first."""
        if not 0 <= value < 1 << 8 * size:
            raise ValueError(f"{self.what}: {value} does not fit into the {size} bytes at byte {len(self.data)}")
        self.data += value.to_bytes(size, "big")
        return self

    def nibbles(self, high: int, low: int) -> Writer:
        """Two numbers of four bits in a byte."""
        if not (0 <= high < 16 and 0 <= low < 16):
            raise ValueError(f"{self.what}: {high} and {low} do not fit into the byte at {len(self.data)}")
        self.data.append(high << 4 | low)
        return self

    def padded(self, text: str, size: int) -> Writer:
        """Text of one byte a character, filled up with blanks."""
        value = text.encode("latin-1")
        if len(value) > size:
            raise ValueError(f"{self.what}: {text!r} is longer than {size} characters")
        self.data += value.ljust(size)
        return self

    def zeros(self, size: int) -> Writer:
        """Reserved bytes."""
        self.data += bytes(size)
        return self


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position in a receive buffer: how often its end was passed, and the byte."""

    wrap: int = 0
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cdc:
    """One CDC message: how far its sender has written, and how far it has read.  The same in both versions."""

    TYPE: ClassVar[int] = 0xFE
    BLOCKED: ClassVar[int] = 0x80
    URGENT_PENDING: ClassVar[int] = 0x40
    URGENT_PRESENT: ClassVar[int] = 0x20
    UPDATE_REQUESTED: ClassVar[int] = 0x10
    VALIDATION: ClassVar[int] = 0x08
    DONE: ClassVar[int] = 0x80
    CLOSED: ClassVar[int] = 0x40
    ABORTED: ClassVar[int] = 0x20

    sequence: int
    token: int
    """Alert token of the receiver."""
    producer: Cursor = Cursor()
    consumer: Cursor = Cursor()
    producer_flags: int = 0
    state_flags: int = 0

    @classmethod
    def decode(cls, data: bytes) -> Cdc:
        """Read a message.

        Raises:
            RemoteProtocolError: It is no CDC message.
        """
        if len(data) < LLC_BYTES or data[0] != cls.TYPE or data[1] != LLC_BYTES:
            raise broken("CDC: it begins with fe 2c and has 44 bytes")
        read = Reader(data, "CDC", 2)
        sequence, token = read.number(2), read.number(4)
        cursors: list[Cursor] = []
        for _ in range(2):
            read.skip(2)
            cursors.append(Cursor(read.number(2), read.number(4)))
        return cls(
            sequence=sequence,
            token=token,
            producer=cursors[0],
            consumer=cursors[1],
            producer_flags=read.number(1),
            state_flags=read.number(1),
        )

    def encode(self) -> bytes:
        """The 44 bytes.

        Raises:
            ValueError: A field does not fit.
        """
        out = Writer("CDC").number(self.TYPE, 1).number(LLC_BYTES, 1)
        out.number(self.sequence, 2).number(self.token, 4)
        for cursor in (self.producer, self.consumer):
            out.zeros(2).number(cursor.wrap, 2).number(cursor.count, 4)
        out.number(self.producer_flags, 1).number(self.state_flags, 1).zeros(18)
        return bytes(out.data)
