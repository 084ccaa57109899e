# SPDX-License-Identifier: MIT OR Apache-2.0
"""Frames and messages of our wire as values: MPA set-up, soft's block, hello, control messages, notice word.

Written from docs/wire/ and RFC 5044 and 6581, not from exs: the two must agree without having met.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Self

TIMEOUT = 10.0  # no single wait is longer

REQUEST_KEY, REPLY_KEY = b"MPA ID Req Frame", b"MPA ID Rep Frame"
F_MARKERS, F_CRC, F_REJECT, F_ENHANCED = 0x80, 0x40, 0x20, 0x10

WRITE, READ_REQUEST, READ_RESPONSE, SEND, SEND_INVALIDATE, SEND_SE, SEND_SE_INVALIDATE, TERMINATE = range(8)

ADVERT, ACK, CREDIT, REVOKE, REVOKED, FIN, RESET, PING, PONG, LENGTH, RING = range(1, 12)
WAITALL, FIN_PROCESSED = 1, 2

STREAM, SEQPACKET = 1, 2
DIRECT, INDIRECT = 0, 1

HELLO_MAGIC, REJECT_MAGIC, BLOCK_MAGIC = 0x45585331, 0x45585352, 0x45585342


class Closed(Exception):
    """The connection ended: in order (reset False) or not."""

    def __init__(self, reset: bool = False) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


class Terminated(Exception):
    """A Terminate came: what the other side holds against us."""

    def __init__(self, layer: int, etype: int, code: int) -> None:
        super().__init__(f"terminate layer {layer} type {etype} code {code}")
        self.layer, self.etype, self.code = layer, etype, code


class Rejected(Exception):
    """The set-up was refused, with private data."""

    def __init__(self, private: bytes) -> None:
        super().__init__(f"rejected: {private[:64]!r}")
        self.private = private

    def reason(self) -> tuple[int, str]:
        """Code and text of our refusal block."""
        magic, version, code, length = struct.unpack_from(">IBBB", self.private)
        assert magic == REJECT_MAGIC, self.private
        assert version == 1
        return code, self.private[8 : 8 + length].decode()


# --- checksums ---------------------------------------------------------------------------------------------


def _crc_table() -> list[int]:
    table = []
    for i in range(256):
        for _ in range(8):
            i = i >> 1 ^ (0x82F63B78 if i & 1 else 0)
        table.append(i)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC32C (Castagnoli), as iSCSI and MPA use it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# --- set-up frames -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    """An MPA request or reply (RFC 5044 §7.1.1, RFC 6581 §6)."""

    reply: bool = False
    flags: int = F_ENHANCED
    revision: int = 2
    private: bytes = b""
    depths: tuple[int, int] = (1, 1)
    key: bytes | None = None
    length: int | None = None  # what the length field says, if not the truth

    def encode(self) -> bytes:
        body = self.private
        if self.revision >= 2 and self.flags & F_ENHANCED:
            body = struct.pack(">HH", *self.depths) + body
        key = self.key if self.key is not None else REPLY_KEY if self.reply else REQUEST_KEY
        length = len(body) if self.length is None else self.length
        return key + struct.pack(">BBH", self.flags, self.revision, length) + body


def read_frame(sock: socket.socket, *, reply: bool) -> Frame:
    """Read the other side's frame; Rejected if it refuses."""
    head = read_exactly(sock, 20)
    assert head[:16] == (REPLY_KEY if reply else REQUEST_KEY), head
    flags, revision, length = struct.unpack(">BBH", head[16:])
    assert revision in (1, 2)
    assert length <= 512, "RFC 5044: private data ends at 512 bytes"
    body = read_exactly(sock, length)
    depths = (0, 0)
    if revision == 2 and flags & F_ENHANCED:
        depths = struct.unpack(">HH", body[:4])
        body = body[4:]
    if flags & F_REJECT:
        raise Rejected(body)
    return Frame(reply, flags, revision, body, depths)


def read_exactly(sock: socket.socket, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        try:
            got = sock.recv(n - len(data))
        except ConnectionError:
            raise Closed(reset=True) from None
        if not got:
            raise Closed(reset=bool(data))
        data += got
    return bytes(data)


@dataclass(frozen=True)
class Block:
    """Soft's own block at the end of the private data (docs/wire/soft.md)."""

    flags: int = 0
    why: int = 0
    token: bytes = bytes(16)
    probe_addr: int = 0
    pid_hint: int = 0
    name: bytes = b""
    magic: int = BLOCK_MAGIC
    version: int = 1
    length: int = 104
    name_len: int | None = None

    SHM = 1
    LAYOUT = struct.Struct(">HH16sQIHBB32s4I12xHBBI")

    def encode(self) -> bytes:
        size = len(self.name) if self.name_len is None else self.name_len
        return self.LAYOUT.pack(
            self.flags, self.why, self.token, self.probe_addr, self.pid_hint, 0, 0, size, self.name,
            0, 0, 0, 0, self.length, self.version, 0, self.magic,
        )  # fmt: skip

    @classmethod
    def decode(cls, private: bytes) -> Self | None:
        """The block at the end of private data, or None."""
        if len(private) < cls.LAYOUT.size:
            return None
        v = cls.LAYOUT.unpack(private[-cls.LAYOUT.size :])
        if v[16] != BLOCK_MAGIC:
            return None
        assert v[13] == 104
        assert v[14] == 1
        return cls(v[0], v[1], v[2], v[3], v[4], v[8][: v[7]])


assert Block.LAYOUT.size == 104


@dataclass(frozen=True)
class Hello:
    """Our 56 bytes (docs/wire/exs.md)."""

    version: int = 1
    min_version: int = 1
    flags: int = STREAM
    ring_addr: int = 0x7000_0000
    ring_rkey: int = 0x1000_0001
    ring_len: int = 65536
    credits: int = 64
    max_adverts: int = 32
    max_transfer: int = 1 << 28
    cookie: int = 0x1122334455667788
    magic: int = HELLO_MAGIC

    LAYOUT = struct.Struct(">IBBHQIIHHIQ16x")

    def encode(self) -> bytes:
        return self.LAYOUT.pack(
            self.magic, self.version, self.min_version, self.flags, self.ring_addr, self.ring_rkey, self.ring_len,
            self.credits, self.max_adverts, self.max_transfer, self.cookie,
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Self:
        v = cls.LAYOUT.unpack(data[:56])
        assert data[40:56] == bytes(16), "reserved bytes are written zero"
        return cls(*v[1:], v[0])

    @classmethod
    def for_messages(cls) -> Self:
        return cls(flags=SEQPACKET, ring_addr=0, ring_rkey=0, ring_len=0)


assert Hello.LAYOUT.size == 56


def reject_block(code: int, text: str) -> bytes:
    return struct.pack(">IBBBx56s", REJECT_MAGIC, 1, code, len(text), text.encode())


# --- messages of the protocol ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """A control message, 48 bytes."""

    type: int
    flags: int = 0
    credits: int = 0
    id: int = 0
    freed: int = 0
    addr: int = 0
    rkey: int = 0
    len: int = 0
    ind: int = 0
    seq: int = 0

    LAYOUT = struct.Struct(">BBHIQQIIQQ")

    def encode(self) -> bytes:
        return self.LAYOUT.pack(
            self.type, self.flags, self.credits, self.id, self.freed, self.addr, self.rkey, self.len, self.ind, self.seq
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        return cls(*cls.LAYOUT.unpack(data))


assert Control.LAYOUT.size == 48


def word(kind: int, count: int, *, end: bool = False) -> bytes:
    return struct.pack(">I", kind << 30 | end << 29 | count)
