# SPDX-License-Identifier: MIT OR Apache-2.0
"""LLC: the messages on a link by which two sides manage their link group (RFC 7609 A.3, and version 2).

Owns their bytes.  Knows nothing of who sends what when.  Invariant: what is decoded has been checked against the bytes
that came; counts of a peer are believed only as far as its bytes reach.

Linux writes the lengths of its version 2 messages in its own byte order; so do we, in that of the peer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from exs.smc.wire import MESSAGE_LEN, Reader, broken, u24

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "DELETE_ASYMMETRIC",
    "DELETE_LOST_PATH",
    "DELETE_OPERATOR",
    "DELETE_PROGRAM",
    "DELETE_UNKNOWN_GROUP",
    "DELETE_UNKNOWN_LINK",
    "DELETE_VIOLATION",
    "LONGEST",
    "AddLink",
    "AddLinkCont",
    "ConfirmLink",
    "ConfirmRkey",
    "ConfirmRkeyCont",
    "DeleteLink",
    "DeleteRkey",
    "Message",
    "NewKey",
    "OtherKey",
    "ReqAddLink",
    "TestLink",
    "Unknown",
    "decode",
    "is_big_endian",
]

DELETE_LOST_PATH = 0x00010000
DELETE_OPERATOR = 0x00020000
DELETE_PROGRAM = 0x00030000
DELETE_VIOLATION = 0x00040000
DELETE_ASYMMETRIC = 0x00050000
DELETE_UNKNOWN_LINK = 0x00100000
DELETE_UNKNOWN_GROUP = 0x00200000

LONGEST = 8192
V2 = 0x20
RESPONSE = 0x80
NO_EYECATCHERS = 0x03
REJECT = 0x40
ALL_LINKS, ORDERLY = 0x40, 0x20
NEGATIVE, RETRY = 0x20, 0x10
V2_DIRECT = 0x80
RKEYS_MAX = 255
RKEYS_V1 = 8
OTHERS_IN_ONE = 2
OTHERS_IN_CONT = 3

Order = Literal["little", "big"]


@dataclass(frozen=True, slots=True)
class Unknown:
    """What is no message that we know: it is ignored."""

    data: bytes


@dataclass(frozen=True, slots=True)
class NewKey:
    """A buffer on a link that is being added: its key on the old link, and key and address on the new one."""

    rkey: int
    new_rkey: int
    new_vaddr: int

    def encode(self) -> bytes:
        """16 bytes."""
        return self.rkey.to_bytes(4, "big") + self.new_rkey.to_bytes(4, "big") + self.new_vaddr.to_bytes(8, "big")


@dataclass(frozen=True, slots=True)
class OtherKey:
    """A buffer on another link of the group."""

    number: int
    rkey: int
    vaddr: int

    def encode(self) -> bytes:
        """13 bytes."""
        return bytes([self.number]) + self.rkey.to_bytes(4, "big") + self.vaddr.to_bytes(8, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Base:
    """What every message has."""

    TYPE: ClassVar[int]
    version: int = 2
    response: bool = False

    def _flags(self) -> int:
        return 0

    def _body(self, order: Order) -> bytes:
        raise NotImplementedError

    def encode(self, *, big_endian: bool = False) -> bytes:
        """The message.

        Args:
            big_endian: How the lengths of version 2 are written.
        """
        order: Order = "big" if big_endian else "little"
        body = self._body(order).ljust(MESSAGE_LEN - 4, b"\0")
        flags = bytes([self._flags() | (RESPONSE if self.response else 0)])
        if self.version > 1:
            return bytes([V2 | self.TYPE]) + (4 + len(body)).to_bytes(2, order) + flags + body
        return bytes([self.TYPE, MESSAGE_LEN, self._reason()]) + flags + body

    def _reason(self) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmLink(_Base):
    """CONFIRM_LINK: the link works, and this is its number."""

    TYPE: ClassVar[int] = 1
    mac: bytes = bytes(6)
    gid: bytes = bytes(16)
    qpn: int = 0
    number: int = 0
    user_id: int = 0
    max_links: int = 2
    no_eyecatchers: bool = True
    """The sender's buffers hold payload from their first byte."""

    def _flags(self) -> int:
        return NO_EYECATCHERS if self.no_eyecatchers else 0

    def _body(self, order: Order) -> bytes:
        end = bytes([self.number]) + self.user_id.to_bytes(4, "big") + bytes([self.max_links])
        return self.mac + self.gid + u24(self.qpn) + end


@dataclass(frozen=True, slots=True, kw_only=True)
class AddLink(_Base):
    """ADD_LINK: another link is offered, taken or rejected."""

    TYPE: ClassVar[int] = 2
    mac: bytes = bytes(6)
    gid: bytes = bytes(16)
    qpn: int = 0
    number: int = 0
    mtu_code: int = 0
    psn: int = 0
    reject: bool = False
    reason: int = 0
    """Version 1, of a rejection: 1 no other path, 2 MTU."""
    extension: bool = False
    """Version 2: the fields below follow."""
    v2_direct: bool = False
    target_gid: bytes = bytes(16)
    keys: tuple[NewKey, ...] = ()

    def rejected(self, reason: int) -> AddLink:
        """The answer that refuses it: its first 44 bytes, with other flags."""
        return replace(
            self,
            response=True,
            reject=True,
            reason=reason if self.version == 1 else 0,
            extension=False,
            v2_direct=False,
            target_gid=bytes(16),
            keys=(),
        )

    def _flags(self) -> int:
        return REJECT if self.reject else 0

    def _reason(self) -> int:
        return self.reason

    def _body(self, order: Order) -> bytes:
        head = self.mac + bytes(2) + self.gid + u24(self.qpn) + bytes([self.number, self.mtu_code]) + u24(self.psn)
        if not self.extension:
            return head
        more = bytes([V2_DIRECT if self.v2_direct else 0, 0]) + self.target_gid + bytes(8)
        more += len(self.keys).to_bytes(2, order)
        return head.ljust(MESSAGE_LEN - 4, b"\0") + more + b"".join(key.encode() for key in self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddLinkCont(_Base):
    """ADD_LINK_CONT, of version 1: buffers on the new link."""

    TYPE: ClassVar[int] = 3
    version: int = 1
    number: int = 0
    left: int = 0
    """Buffers still to be sent, those in this message included."""
    keys: tuple[NewKey, ...] = ()

    def _body(self, order: Order) -> bytes:
        return bytes([self.number, self.left, 0, 0]) + b"".join(key.encode() for key in self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteLink(_Base):
    """DELETE_LINK: a link ends, or all do."""

    TYPE: ClassVar[int] = 4
    all_links: bool = False
    orderly: bool = False
    number: int = 0
    reason: int = 0

    def _flags(self) -> int:
        return (ALL_LINKS if self.all_links else 0) | (ORDERLY if self.orderly else 0)

    def _body(self, order: Order) -> bytes:
        return bytes([self.number]) + self.reason.to_bytes(4, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReqAddLink(_Base):
    """REQ_ADD_LINK: a client asks for another link."""

    TYPE: ClassVar[int] = 5
    gids: tuple[bytes, ...] = ()

    def _body(self, order: Order) -> bytes:
        return bytes(20) + bytes([len(self.gids), 0, 0, 0]) + b"".join(self.gids) if self.gids else b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRkey(_Base):
    """CONFIRM_RKEY: a buffer may be written into."""

    TYPE: ClassVar[int] = 6
    negative: bool = False
    retry: bool = False
    rkey: int = 0
    """On the link that this message travels on."""
    vaddr: int = 0
    count: int = 0
    """Entries for other links, of which two fit here."""
    others: tuple[OtherKey, ...] = ()

    def _flags(self) -> int:
        return (NEGATIVE if self.negative else 0) | (RETRY if self.retry else 0)

    def _body(self, order: Order) -> bytes:
        head = bytes([self.count]) + self.rkey.to_bytes(4, "big") + self.vaddr.to_bytes(8, "big")
        return head + b"".join(other.encode() for other in self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class TestLink(_Base):
    """TEST_LINK: is anybody there?  The core answers it."""

    __test__ = False  # no test of pytest's

    TYPE: ClassVar[int] = 7
    data: bytes = bytes(16)

    def _body(self, order: Order) -> bytes:
        return self.data


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmRkeyCont(_Base):
    """CONFIRM_RKEY_CONT, of version 1: entries for further links."""

    TYPE: ClassVar[int] = 8
    version: int = 1
    negative: bool = False
    retry: bool = False
    left: int = 0
    others: tuple[OtherKey, ...] = ()

    def _flags(self) -> int:
        return (NEGATIVE if self.negative else 0) | (RETRY if self.retry else 0)

    def _body(self, order: Order) -> bytes:
        return bytes([self.left]) + b"".join(other.encode() for other in self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRkey(_Base):
    """DELETE_RKEY: buffers are withdrawn."""

    TYPE: ClassVar[int] = 9
    negative: bool = False
    unknown: int = 0
    """Response: a mask whose first bit is the first key (version 1), or how many were not known (version 2)."""
    rkeys: tuple[int, ...] = ()

    def answered(self, known: Sequence[bool]) -> DeleteRkey:
        """The answer: for each key, whether it was known.  That of version 2 does not repeat the keys."""
        missing = [at for at, found in enumerate(known) if not found]
        mask = sum(0x80 >> at for at in missing if at < RKEYS_V1)
        return replace(
            self,
            response=True,
            negative=bool(missing),
            unknown=mask if self.version == 1 else len(missing),
            rkeys=self.rkeys if self.version == 1 else (0,) * len(self.rkeys),
        )

    def _flags(self) -> int:
        return NEGATIVE if self.negative else 0

    def _body(self, order: Order) -> bytes:
        keys = b"".join(rkey.to_bytes(4, "big") for rkey in self.rkeys)
        if self.response and self.version > 1:
            keys = keys[: MESSAGE_LEN - 8]
        return bytes([len(self.rkeys), self.unknown, 0, 0]) + keys


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


# -- reading ----------------------------------------------------------------------------------------------------------


def _confirm_link(reader: Reader, version: int, flags: int, reason: int) -> ConfirmLink:
    return ConfirmLink(
        version=version,
        response=bool(flags & RESPONSE),
        mac=reader.take(6),
        gid=reader.take(16),
        qpn=reader.number(3),
        number=reader.number(1),
        user_id=reader.number(4),
        max_links=reader.number(1),
        no_eyecatchers=bool(flags & NO_EYECATCHERS),
    )


def _new_key(reader: Reader) -> NewKey:
    return NewKey(reader.number(4), reader.number(4), reader.number(8))


def _other_key(reader: Reader) -> OtherKey:
    return OtherKey(reader.number(1), reader.number(4), reader.number(8))


def _add_link(reader: Reader, version: int, flags: int, reason: int) -> AddLink:
    mac = reader.take(6)
    reader.skip(2)
    gid, qpn, number, mtu, psn = (
        reader.take(16),
        reader.number(3),
        reader.number(1),
        reader.number(1),
        reader.number(3),
    )
    found = AddLink(
        version=version,
        response=bool(flags & RESPONSE),
        reject=bool(flags & REJECT),
        reason=reason if version == 1 else 0,
        mac=mac,
        gid=gid,
        qpn=qpn,
        number=number,
        mtu_code=mtu & 15,
        psn=psn,
    )
    if version == 1 or reader.length < _ADD_LINK_V2:
        return found
    direct = reader.go(MESSAGE_LEN).number(1)
    reader.skip(1)
    target = reader.take(16)
    # How many there are is said by the bytes: the count is in the byte order of who wrote it.
    reader.go(_ADD_LINK_V2)
    keys = tuple(_new_key(reader) for _ in range(min((reader.length - _ADD_LINK_V2) // 16, RKEYS_MAX)))
    return replace(found, extension=True, v2_direct=bool(direct & V2_DIRECT), target_gid=target, keys=keys)


_ADD_LINK_V2 = 72


def _add_link_cont(reader: Reader, version: int, flags: int, reason: int) -> AddLinkCont:
    number, left = reader.number(1), reader.number(1)
    reader.skip(2)
    keys = tuple(_new_key(reader) for _ in range(min(left, 2)))
    return AddLinkCont(version=version, response=bool(flags & RESPONSE), number=number, left=left, keys=keys)


def _delete_link(reader: Reader, version: int, flags: int, reason: int) -> DeleteLink:
    return DeleteLink(
        version=version,
        response=bool(flags & RESPONSE),
        all_links=bool(flags & ALL_LINKS),
        orderly=bool(flags & ORDERLY),
        number=reader.number(1),
        reason=reader.number(4),
    )


def _req_add_link(reader: Reader, version: int, flags: int, reason: int) -> ReqAddLink:
    reader.skip(20)
    count = reader.number(1)
    reader.skip(3)
    gids = tuple(reader.take(16) for _ in range(count))
    return ReqAddLink(version=version, response=bool(flags & RESPONSE), gids=gids)


def _confirm_rkey(reader: Reader, version: int, flags: int, reason: int) -> ConfirmRkey:
    count, rkey, vaddr = reader.number(1), reader.number(4), reader.number(8)
    others = tuple(_other_key(reader) for _ in range(min(count, OTHERS_IN_ONE)))
    return ConfirmRkey(
        version=version,
        response=bool(flags & RESPONSE),
        negative=bool(flags & NEGATIVE),
        retry=bool(flags & RETRY),
        rkey=rkey,
        vaddr=vaddr,
        count=count,
        others=others,
    )


def _confirm_rkey_cont(reader: Reader, version: int, flags: int, reason: int) -> ConfirmRkeyCont:
    left = reader.number(1)
    others = tuple(_other_key(reader) for _ in range(min(left, OTHERS_IN_CONT)))
    return ConfirmRkeyCont(
        version=version,
        response=bool(flags & RESPONSE),
        negative=bool(flags & NEGATIVE),
        retry=bool(flags & RETRY),
        left=left,
        others=others,
    )


def _test_link(reader: Reader, version: int, flags: int, reason: int) -> TestLink:
    return TestLink(version=version, response=bool(flags & RESPONSE), data=reader.take(16))


def _delete_rkey(reader: Reader, version: int, flags: int, reason: int) -> DeleteRkey:
    count, unknown = reader.number(1), reader.number(1)
    reader.skip(2)
    response = bool(flags & RESPONSE)
    if version == 1 and count > RKEYS_V1:
        raise broken(f"DELETE_RKEY: {count} keys, more than {RKEYS_V1}")
    fits = (reader.length - 8) // 4
    rkeys = (0,) * count if response and count > fits else tuple(reader.number(4) for _ in range(count))
    return DeleteRkey(version=version, response=response, negative=bool(flags & NEGATIVE), unknown=unknown, rkeys=rkeys)


_READERS: dict[int, Callable[[Reader, int, int, int], Message]] = {
    1: _confirm_link,
    2: _add_link,
    3: _add_link_cont,
    4: _delete_link,
    5: _req_add_link,
    6: _confirm_rkey,
    7: _test_link,
    8: _confirm_rkey_cont,
    9: _delete_rkey,
}
_NAMES = {
    1: "CONFIRM_LINK",
    2: "ADD_LINK",
    3: "ADD_LINK_CONT",
    4: "DELETE_LINK",
    5: "REQ_ADD_LINK",
    6: "CONFIRM_RKEY",
    7: "TEST_LINK",
    8: "CONFIRM_RKEY_CONT",
    9: "DELETE_RKEY",
}


def decode(data: bytes) -> Message | Unknown:
    """Read one message, as it was received.

    Its length is that of the bytes: the field of that name is in either byte order, and says no more.

    Returns:
        The message, or that it is none of a kind that we know.

    Raises:
        RemoteProtocolError: It is of a known kind, and counts more than it has.
    """
    if len(data) < MESSAGE_LEN or len(data) > LONGEST or data[0] & 0xF0 not in (0, V2):
        return Unknown(bytes(data))
    kind, version = data[0] & 0x0F, 2 if data[0] & 0xF0 else 1
    read = _READERS.get(kind)
    if read is None:
        return Unknown(bytes(data))
    reason = data[2] & 15 if version == 1 else 0
    return read(Reader(data, _NAMES[kind]).go(4), version, data[3], reason)


def is_big_endian(data: bytes) -> bool | None:
    """How the writer of a version 2 message writes lengths; ``None`` if it does not show."""
    if len(data) < MESSAGE_LEN or data[0] & 0xF0 != V2:
        return None
    little, big = int.from_bytes(data[1:3], "little"), int.from_bytes(data[1:3], "big")
    return (big == len(data)) if (little == len(data)) != (big == len(data)) else None
