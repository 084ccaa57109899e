# SPDX-License-Identifier: MIT OR Apache-2.0
"""What all messages of SMC-R are made of: bounded reading, sizes, and the CDC message.

Owns the one exception that bytes of a peer can cause.  CDC is the core's (native/wire/smc_cdc.h); it is decoded here
only to be shown.  Invariant: nothing is read outside the bytes at hand, whatever they say.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass

from exs.errors import RemoteProtocolError

__all__ = [
    "EYECATCHERS",
    "EYECATCHER_SMCD",
    "EYECATCHER_SMCR",
    "MESSAGE_LEN",
    "TCP_OPTION",
    "Cdc",
    "Cursor",
    "Reader",
    "broken",
    "mtu_bytes",
    "rmbe_bytes",
    "u24",
]

EYECATCHER_SMCR = b"\xe2\xd4\xc3\xd9"
EYECATCHER_SMCD = b"\xe2\xd4\xc3\xc4"
EYECATCHERS = (EYECATCHER_SMCR, EYECATCHER_SMCD)
TCP_OPTION = b"\xfe\x06" + EYECATCHER_SMCR
"""Experimental option 254 in the SYN and the SYN-ACK of who speaks SMC-R."""

MESSAGE_LEN = 44
"""Bytes of a CDC message, and of an LLC message of version 1."""

CDC_TYPE = 0xFE


def broken(text: str) -> RemoteProtocolError:
    """The exception for bytes that are no message."""
    return RemoteProtocolError(errno.EPROTO, text)


def u24(value: int) -> bytes:
    """Three bytes, most significant first."""
    return value.to_bytes(3, "big")


def rmbe_bytes(code: int) -> int:
    """Bytes of a receive buffer whose size code this is."""
    return 16384 << code


def mtu_bytes(code: int) -> int:
    """Bytes of a path MTU whose code this is."""
    return 128 << code


class Reader:
    """Reads fields one after the other, or from a place, and never beyond the end.

    Args:
        data: All there is.
        what: Name of the message, for the exception.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.at = 0

    @property
    def length(self) -> int:
        """Bytes in all."""
        return len(self._data)

    def take(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            RemoteProtocolError: There are not so many.
        """
        end = self.at + count
        if end > len(self._data):
            raise broken(f"{self._what}: ends at byte {len(self._data)}, within what is to be at {self.at} to {end}")
        data = self._data[self.at : end]
        self.at = end
        return data

    def number(self, count: int) -> int:
        """The next bytes as a number, most significant first."""
        return int.from_bytes(self.take(count), "big")

    def skip(self, count: int) -> None:
        """Step over reserved bytes, which are not looked at."""
        self.take(count)

    def go(self, place: int) -> Reader:
        """Go on at a place that the message names."""
        self.at = place
        return self


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a receive buffer: how often its end was passed, and bytes from its start."""

    wrap: int
    count: int


_CDC = struct.Struct(">BBHI2xHI2xHIBB18x")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cdc:
    """A CDC message, for people.

    *Source:* RFC 7609 A.3.
    """

    sequence: int
    token: int
    """Alert token of the receiver."""
    producer: Cursor
    """How far the sender has written."""
    consumer: Cursor
    """How far the sender has read."""
    producer_flags: int
    state_flags: int

    @classmethod
    def decode(cls, data: bytes) -> Cdc:
        """Read one.

        Raises:
            RemoteProtocolError: It is none.
        """
        if len(data) < MESSAGE_LEN or data[0] != CDC_TYPE or data[1] != MESSAGE_LEN:
            raise broken("CDC: 44 bytes that begin with FE 2C are wanted")
        _, _, sequence, token, p_wrap, p_count, c_wrap, c_count, producer_flags, state_flags = _CDC.unpack_from(data)
        return cls(
            sequence=sequence,
            token=token,
            producer=Cursor(p_wrap, p_count),
            consumer=Cursor(c_wrap, c_count),
            producer_flags=producer_flags,
            state_flags=state_flags,
        )

    def encode(self) -> bytes:
        """The message."""
        where = self.producer.wrap, self.producer.count, self.consumer.wrap, self.consumer.count
        return _CDC.pack(
            CDC_TYPE, MESSAGE_LEN, self.sequence, self.token, *where, self.producer_flags, self.state_flags
        )

    def flag_names(self) -> list[str]:
        """The flags that are set, in words."""
        names = [name for bit, name in _PRODUCER_FLAGS.items() if self.producer_flags & bit]
        return names + [name for bit, name in _STATE_FLAGS.items() if self.state_flags & bit]


_PRODUCER_FLAGS = {
    0x80: "writer blocked",
    0x40: "urgent pending",
    0x20: "urgent present",
    0x10: "consumer update requested",
    0x08: "failover validation",
}
_STATE_FLAGS = {0x80: "sending done", 0x40: "closed", 0x20: "abort"}
