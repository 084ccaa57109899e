# SPDX-License-Identifier: MIT OR Apache-2.0
"""LLC: the messages that two hosts exchange on a link, about links and receive buffers.

Owns the layouts of versions 1 and 2.  Knows nothing of when one is sent, nor of CDC messages, which share the link.
Invariant: :func:`decode` returns a message, :class:`Unknown` for what is to be ignored, or raises
:class:`exs.errors.RemoteProtocolError`.

Version 2 leaves the byte order of two fields to the sender's processor: the length in the header, and the number of
entries of ADD_LINK.  Neither is believed: how many bytes came is known from the completion.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from exs.smc.wire import LLC_BYTES, LLC_MOST_BYTES, Reader, Writer, broken

__all__ = [
    "DELETE_ASYMMETRIC",
    "DELETE_LOST_PATH",
    "DELETE_OPERATOR",
    "DELETE_PROGRAM",
    "DELETE_UNKNOWN_GROUP",
    "DELETE_UNKNOWN_LINK",
    "DELETE_VIOLATION",
    "REJECT_MTU",
    "REJECT_NO_PATH",
    "AddLink",
    "AddLinkCont",
    "AddLinkV2",
    "ConfirmLink",
    "ConfirmRkey",
    "ConfirmRkeyCont",
    "DeleteLink",
    "DeleteRkey",
    "LinkKey",
    "Message",
    "NewLinkKey",
    "ReqAddLink",
    "TestLink",
    "Unknown",
    "decode",
    "is_big_endian",
]

REJECT_NO_PATH, REJECT_MTU = 1, 2

DELETE_LOST_PATH = 0x00010000
DELETE_OPERATOR = 0x00020000
DELETE_PROGRAM = 0x00030000
DELETE_VIOLATION = 0x00040000
DELETE_ASYMMETRIC = 0x00050000
DELETE_UNKNOWN_LINK = 0x00100000
DELETE_UNKNOWN_GROUP = 0x00200000

_RESPONSE = 0x80


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    """What all have in common."""

    KIND: ClassVar[int]
    NAME: ClassVar[str]
    version: int = 2
    response: bool = False

    def encode(self, *, big_endian: bool = False) -> bytes:
        """The message.

        Args:
            big_endian: How the length of version 2 is written; as the peer does it.

        Raises:
            ValueError: A field does not fit, or there is no such message in that version.
        """
        order: Literal["big", "little"] = "big" if big_endian else "little"
        if self.version not in (1, 2) or (self.version, self.KIND) in _ABSENT:
            raise ValueError(f"there is no {self.NAME} in version {self.version}")
        out = Writer(self.NAME).number((self.version - 1) << 5 | self.KIND, 1).zeros(2)
        out.number(self._flags() | (_RESPONSE if self.response else 0), 1)
        self._put(out, order)
        out.zeros(max(0, LLC_BYTES - len(out.data)))
        if len(out.data) > (LLC_BYTES if self.version == 1 else LLC_MOST_BYTES):
            raise ValueError(f"{self.NAME}: {len(out.data)} bytes are too many")
        if self.version == 1:
            out.data[1:3] = bytes((LLC_BYTES, self._reason()))
        else:
            out.data[1:3] = len(out.data).to_bytes(2, order)
        return bytes(out.data)

    def _flags(self) -> int:
        return 0

    def _reason(self) -> int:
        return 0

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Unknown:
    """What is to be ignored: a type that is not known, or fewer than 44 bytes."""

    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmLink(_Message):
    """CONFIRM_LINK: the server's question whether a link works, and the answer."""

    KIND: ClassVar[int] = 1
    NAME: ClassVar[str] = "CONFIRM_LINK"
    mac: bytes
    gid: bytes
    qpn: int
    number: int
    """Link number, which the server gives and the client repeats."""
    user_id: int = 0
    max_links: int = 1
    no_eyecatchers: bool = True
    """Receive buffers hold nothing but payload; who does not say so is refused."""

    def _flags(self) -> int:
        return 0x03 if self.no_eyecatchers else 0

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        out.put(self.mac, 6).put(self.gid, 16).number(self.qpn, 3).number(self.number, 1)
        out.number(self.user_id, 4).number(self.max_links, 1)

    @classmethod
    def _read(cls, head: _Head, read: Reader) -> ConfirmLink:
        return cls(
            version=head.version,
            response=head.response,
            mac=read.take(6),
            gid=read.take(16),
            qpn=read.number(3),
            number=read.number(1),
            user_id=read.number(4),
            max_links=read.number(1),
            no_eyecatchers=bool(head.flags & 0x03),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLinkKey:
    """A receive buffer of the sender, as the new link knows it."""

    rkey: int
    """On the link that is there."""
    new_rkey: int
    new_vaddr: int

    @classmethod
    def read(cls, read: Reader) -> NewLinkKey:
        """Read it from where the reader stands."""
        return cls(rkey=read.number(4), new_rkey=read.number(4), new_vaddr=read.number(8))

    def put(self, out: Writer) -> None:
        """Write it."""
        out.number(self.rkey, 4).number(self.new_rkey, 4).number(self.new_vaddr, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddLinkV2:
    """What version 2 appends to ADD_LINK."""

    v2_direct: bool = True
    target_gid: bytes
    keys: tuple[NewLinkKey, ...] = ()

    SIZE: ClassVar[int] = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class AddLink(_Message):
    """ADD_LINK: a further queue pair for the group, or a server's way not to let a client wait for one."""

    KIND: ClassVar[int] = 2
    NAME: ClassVar[str] = "ADD_LINK"
    mac: bytes
    gid: bytes
    qpn: int = 0
    number: int = 0
    mtu_code: int = 0
    """Request: that of the port; 0 cannot be accepted.  Response: the smaller of both."""
    psn: int = 0
    reject: bool = False
    reason: int = 0
    """Of a rejection, version 1 only."""
    extension: AddLinkV2 | None = None
    """Version 2; absent if only the first 44 bytes are at hand, and in a rejection."""

    def rejected(self, reason: int = REJECT_NO_PATH) -> AddLink:
        """The answer that refuses: the request's first 44 bytes with other flags."""
        said = reason if self.version == 1 else 0
        return replace(self, response=True, reject=True, reason=said, extension=None)

    def _flags(self) -> int:
        return 0x40 if self.reject else 0

    def _reason(self) -> int:
        if not 0 <= self.reason < 16:
            raise ValueError(f"ADD_LINK: the reason is 0 to 15, not {self.reason}")
        return self.reason

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        if self.version == 2 and self.reason:
            raise ValueError("ADD_LINK: version 2 has no place for a reason")
        out.put(self.mac, 6).zeros(2).put(self.gid, 16).number(self.qpn, 3).number(self.number, 1)
        out.nibbles(0, self.mtu_code).number(self.psn, 3).zeros(8)
        extension = self.extension
        if extension is not None:
            if len(extension.keys) > 255:
                raise ValueError("ADD_LINK: at most 255 entries")
            out.number(0x80 if extension.v2_direct else 0, 1).zeros(1).put(extension.target_gid, 16).zeros(8)
            out.put(len(extension.keys).to_bytes(2, order), 2)
            for key in extension.keys:
                key.put(out)

    @classmethod
    def _read(cls, head: _Head, read: Reader) -> AddLink:
        mac = read.take(6)
        read.skip(2)
        gid, qpn, number, mtu, psn = read.take(16), read.number(3), read.number(1), read.number(1), read.number(3)
        read.skip(8)
        extension = None
        if head.version == 2 and read.left:
            direct = read.number(1)
            read.skip(1)
            target = read.take(16)
            read.skip(10)
            if read.left % 16:
                raise broken(f"ADD_LINK: {read.left} bytes are no whole number of entries")
            keys = tuple(NewLinkKey.read(read) for _ in range(read.left // 16))
            extension = AddLinkV2(v2_direct=bool(direct & 0x80), target_gid=target, keys=keys)
        return cls(
            version=head.version,
            response=head.response,
            mac=mac,
            gid=gid,
            qpn=qpn,
            number=number,
            mtu_code=mtu & 0x0F,
            psn=psn,
            reject=bool(head.flags & 0x40),
            reason=head.reason,
            extension=extension,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AddLinkCont(_Message):
    """ADD_LINK_CONT, version 1: receive buffers as the new link knows them, two at a time."""

    KIND: ClassVar[int] = 3
    NAME: ClassVar[str] = "ADD_LINK_CONT"
    number: int
    keys: tuple[NewLinkKey, ...] = ()
    more: int = 0
    """Buffers that further messages tell."""

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        if len(self.keys) > 2 or (self.more and len(self.keys) < 2):
            raise ValueError("ADD_LINK_CONT: two entries, and fewer only in the last message")
        out.number(self.number, 1).number(len(self.keys) + self.more, 1).zeros(2)
        for key in self.keys:
            key.put(out)

    @classmethod
    def _read(cls, head: _Head, read: Reader) -> AddLinkCont:
        number, count = read.number(1), read.number(1)
        read.skip(2)
        keys = tuple(NewLinkKey.read(read) for _ in range(min(2, count)))
        return cls(version=head.version, response=head.response, number=number, keys=keys, more=count - len(keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteLink(_Message):
    """DELETE_LINK: a link, or the whole group, ends."""

    KIND: ClassVar[int] = 4
    NAME: ClassVar[str] = "DELETE_LINK"
    number: int = 0
    """Link number; 0 with ``all_links``."""
    reason: int = 0
    all_links: bool = False
    orderly: bool = False

    def _flags(self) -> int:
        return (0x40 if self.all_links else 0) | (0x20 if self.orderly else 0)

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        out.number(self.number, 1).number(self.reason, 4)

    @classmethod
    def _read(cls, head: _Head, read: Reader) -> DeleteLink:
        return cls(
            version=head.version,
            response=head.response,
            number=read.number(1),
            reason=read.number(4),
            all_links=bool(head.flags & 0x40),
            orderly=bool(head.flags & 0x20),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReqAddLink(_Message):
    """REQ_ADD_LINK, version 2: a client asks for a further link and names its GIDs; the answer names none."""

    KIND: ClassVar[int] = 5
    NAME: ClassVar[str] = "REQ_ADD_LINK"
    gids: tuple[bytes, ...] = ()

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        out.zeros(20).number(len(self.gids), 1).zeros(3)
        for gid in self.gids:
            out.put(gid, 16)

    @classmethod
    def _read(cls, head: _Head, read: Reader) -> ReqAddLink:
        read.skip(20)
        count = read.number(1)
        read.skip(3)
        return cls(version=head.version, response=head.response, gids=tuple(read.take(16) for _ in range(count)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkKey:
    """A receive buffer as a further link of the group knows it."""

    number: int
    rkey: int
    vaddr: int

    @classmethod
    def read(cls, read: Reader) -> LinkKey:
        """Read it from where the reader stands."""
        return cls(number=read.number(1), rkey=read.number(4), vaddr=read.number(8))

    def put(self, out: Writer) -> None:
        """Write it."""
        out.number(self.number, 1).number(self.rkey, 4).number(self.vaddr, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRkey(_Message):
    """CONFIRM_RKEY: a receive buffer of the sender that a connection will use."""

    KIND: ClassVar[int] = 6
    NAME: ClassVar[str] = "CONFIRM_RKEY"
    rkey: int
    """On the link that the message travels on; the address too."""
    vaddr: int
    keys: tuple[LinkKey, ...] = ()
    """The same on other links, two at most."""
    more: int = 0
    """Further links, told by CONFIRM_RKEY_CONT."""
    negative: bool = False
    retry: bool = False

    def _flags(self) -> int:
        return (0x20 if self.negative else 0) | (0x10 if self.retry else 0)

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        if len(self.keys) > 2 or (self.more and len(self.keys) < 2):
            raise ValueError("CONFIRM_RKEY: two entries, and fewer only if no more follow")
        out.number(len(self.keys) + self.more, 1).number(self.rkey, 4).number(self.vaddr, 8)
        for key in self.keys:
            key.put(out)

    @classmethod
    def _read(cls, head: _Head, read: Reader) -> ConfirmRkey:
        count, rkey, vaddr = read.number(1), read.number(4), read.number(8)
        keys = tuple(LinkKey.read(read) for _ in range(min(2, count)))
        return cls(
            version=head.version,
            response=head.response,
            rkey=rkey,
            vaddr=vaddr,
            keys=keys,
            more=count - len(keys),
            negative=bool(head.flags & 0x20),
            retry=bool(head.flags & 0x10),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TestLink(_Message):
    """TEST_LINK: is the other side there; the answer repeats the 16 bytes."""

    __test__: ClassVar[bool] = False  # its name is the protocol's; pytest takes it for a test
    KIND: ClassVar[int] = 7
    NAME: ClassVar[str] = "TEST_LINK"
    data: bytes = bytes(16)

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        out.put(self.data, 16)

    @classmethod
    def _read(cls, head: _Head, read: Reader) -> TestLink:
        return cls(version=head.version, response=head.response, data=read.take(16))


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRkeyCont(_Message):
    """CONFIRM_RKEY_CONT, version 1: what CONFIRM_RKEY had no room for."""

    KIND: ClassVar[int] = 8
    NAME: ClassVar[str] = "CONFIRM_RKEY_CONT"
    keys: tuple[LinkKey, ...] = ()
    """Three at most."""
    more: int = 0

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        if len(self.keys) > 3 or (self.more and len(self.keys) < 3):
            raise ValueError("CONFIRM_RKEY_CONT: three entries, and fewer only in the last message")
        out.number(len(self.keys) + self.more, 1)
        for key in self.keys:
            key.put(out)

    @classmethod
    def _read(cls, head: _Head, read: Reader) -> ConfirmRkeyCont:
        count = read.number(1)
        keys = tuple(LinkKey.read(read) for _ in range(min(3, count)))
        return cls(version=head.version, response=head.response, keys=keys, more=count - len(keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRkey(_Message):
    """DELETE_RKEY: receive buffers of the sender that are withdrawn."""

    KIND: ClassVar[int] = 9
    NAME: ClassVar[str] = "DELETE_RKEY"
    MOST_V1: ClassVar[int] = 8
    rkeys: tuple[int, ...] = ()
    """As known on the link that the message travels on."""
    negative: bool = False
    errors: int = 0
    """Of a response: version 1 a mask, 0x80 for the first rkey; version 2 how many were unknown."""

    def answered(self, known: tuple[bool, ...]) -> DeleteRkey:
        """The response.

        Args:
            known: For each rkey of the request, whether it was known.
        """
        if self.version == 1:
            errors = sum(0x80 >> i for i, was in enumerate(known[: self.MOST_V1]) if not was)
        else:
            errors = known.count(False)
        return replace(self, response=True, negative=errors != 0, errors=errors)

    def _flags(self) -> int:
        return 0x20 if self.negative else 0

    def _put(self, out: Writer, order: Literal["big", "little"]) -> None:
        if self.version == 1 and len(self.rkeys) > self.MOST_V1:
            raise ValueError(f"DELETE_RKEY: at most {self.MOST_V1} rkeys in version 1")
        out.number(len(self.rkeys), 1).number(self.errors, 1).zeros(2)
        for rkey in self.rkeys:
            out.number(rkey, 4)

    @classmethod
    def _read(cls, head: _Head, read: Reader) -> DeleteRkey:
        count, errors = read.number(1), read.number(1)
        read.skip(2)
        if head.version == 1 and count > cls.MOST_V1:
            raise broken(f"DELETE_RKEY: it has {count} rkeys, and the most are {cls.MOST_V1} in version 1")
        if head.response:
            count = min(count, read.left // 4)  # Linux answers with 44 bytes, however many were asked for
        return cls(
            version=head.version,
            response=head.response,
            rkeys=tuple(read.number(4) for _ in range(count)),
            negative=bool(head.flags & 0x20),
            errors=errors,
        )


Message = (
    ConfirmLink
    | AddLink
    | AddLinkCont
    | DeleteLink
    | ReqAddLink
    | ConfirmRkey
    | TestLink
    | ConfirmRkeyCont
    | DeleteRkey
)

_KINDS: dict[int, type[Message]] = {
    kind.KIND: kind
    for kind in (
        ConfirmLink,
        AddLink,
        AddLinkCont,
        DeleteLink,
        ReqAddLink,
        ConfirmRkey,
        TestLink,
        ConfirmRkeyCont,
        DeleteRkey,
    )
}

_ABSENT = frozenset({(1, ReqAddLink.KIND), (2, AddLinkCont.KIND), (2, ConfirmRkeyCont.KIND)})
"""Types that a version has not."""


@dataclass(frozen=True, slots=True)
class _Head:
    version: int
    response: bool
    flags: int
    reason: int


def decode(data: bytes) -> Message | Unknown:
    """Read a message.

    Args:
        data: What one receive got; of an ADD_LINK the first 44 bytes do.

    Raises:
        RemoteProtocolError: Its counts name more than there is.
    """
    data = bytes(data)
    version, kind = (data[0] >> 5) + 1 if data else 0, data[0] & 0x0F if data else 0
    if len(data) < LLC_BYTES or data[0] & 0xD0 or kind not in _KINDS or (version, kind) in _ABSENT:
        return Unknown(data)
    if version == 1:
        said, reason = data[1], data[2] & 0x0F if kind == AddLink.KIND else 0
    else:
        said, reason = max(int.from_bytes(data[1:3], "big"), int.from_bytes(data[1:3], "little")), 0
    made = _KINDS[kind]
    if said < LLC_BYTES:
        raise broken(f"{made.NAME}: it cannot have {said} bytes")
    head = _Head(version, bool(data[3] & _RESPONSE), data[3], reason)
    return made._read(head, Reader(data, made.NAME, 4))


def is_big_endian(data: bytes) -> bool | None:
    """How the sender of a version 2 message writes lengths: high byte first or low byte first.

    Args:
        data: The message, as received.

    Returns:
        ``None`` if the message does not show it.
    """
    if len(data) < LLC_BYTES or data[0] >> 4 != 2:
        return None
    big, little = int.from_bytes(data[1:3], "big"), int.from_bytes(data[1:3], "little")
    return None if big == little or len(data) not in (big, little) else big == len(data)
