# SPDX-License-Identifier: MIT OR Apache-2.0
"""The wire protocol of ``exs serve``, ``put`` and ``get``: frames as values, a decoder, no I/O.

A connection is one stream in each direction of frames: a 16-byte header and a body.  Bodies of DATA frames
are file contents and are handed out in whatever pieces arrived, without a copy; every other body is small
and is handed out whole.  docs/wire/transfer.md describes the same for other implementations.

Invariant: nothing is allocated or believed because of a length that a peer sent before that length was
compared with the limit of its frame type.
"""

from __future__ import annotations

import enum
import errno
import hashlib
import importlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAGIC = b"exs-xfer"
VERSION = 1
MIN_VERSION = 1
DIGEST_BYTES = 16
HEADER_BYTES = 16
MAX_BODY = 4 << 20
"""Longest body, in bytes, of any frame."""
DATA_BYTES = 4 << 20
"""File bytes that a sender puts in one DATA frame (the last of a file is shorter)."""
MAX_PATH = 4096
MAX_REASON = 512
BATCH_BYTES = 1 << 20
BATCH_FILES = 256
SMALL_FILE = 128 << 10
"""Files up to this size travel several in one BATCH frame."""


class TransferError(Exception):
    """One thing that went wrong, in a form that both people and programs can read.

    Args:
        code: errno value.
        reason: What happened, in words.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.errno = code
        self.reason = reason

    def __str__(self) -> str:
        return self.reason

    def bare(self) -> TransferError:
        """The same without a traceback, whose frames would keep files and mappings open: for keeping."""
        return TransferError(self.errno, self.reason)

    @classmethod
    def of(cls, error: OSError) -> TransferError:
        """The same error, without the local path that ``OSError`` would show to the peer."""
        return cls(error.errno or errno.EIO, error.strerror or str(error))


class ViolationError(TransferError):
    """The peer sent something that this protocol does not allow; the connection is of no use any more."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EPROTO, reason)


class FrameType(enum.IntEnum):
    """First byte of a frame."""

    HELLO = 1
    REFUSE = 2
    BATCH = 3
    FILE = 4
    DATA = 5
    END = 6
    ABORT = 7
    RESULT = 8
    LIST = 9
    ENTRIES = 10
    FETCH = 11


class Flag(enum.IntFlag):
    """Second byte of a frame."""

    NONE = 0
    MORE = 1


class Feature(enum.IntFlag):
    """What a later version may agree on; this one offers none and refuses a peer that requires one."""

    NONE = 0
    RESUME = 1
    AUTHENTICATION = 2
    TLS = 4


class Attribute(enum.IntFlag):
    """What a server says of itself."""

    NONE = 0
    READ_ONLY = 1


class DigestKind(enum.IntFlag):
    """Checksums, the preferred one first."""

    NONE = 0
    XXH3_128 = 1
    BLAKE2B_128 = 2


class Kind(enum.IntEnum):
    """What an entry of a tree is.  Symbolic links and special files are never sent."""

    FILE = 1
    DIRECTORY = 2
    SKIPPED = 3


class Hasher(Protocol):
    """What hashlib and xxhash have in common."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """The checksum so far."""
        ...


def available_digests() -> DigestKind:
    """What this process can compute: blake2b always, xxh3 where the package xxhash is installed."""
    try:
        importlib.import_module("xxhash")
    except ImportError:
        return DigestKind.BLAKE2B_128
    return DigestKind.BLAKE2B_128 | DigestKind.XXH3_128


def new_hasher(kind: DigestKind) -> Hasher:
    """An empty checksum of one agreed kind, 16 bytes long in the end."""
    if kind == DigestKind.XXH3_128:
        hasher: Hasher = importlib.import_module("xxhash").xxh3_128()
        return hasher
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of each side.

    The client's names what it can do; the server's answer names the one version and digest that are used.
    """

    min_version: int = MIN_VERSION
    version: int = VERSION
    offered: Feature = Feature.NONE
    required: Feature = Feature.NONE
    digests: DigestKind = DigestKind.BLAKE2B_128
    attributes: Attribute = Attribute.NONE


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or directory of a tree, without its contents.

    Attributes:
        id: Number that its sender (BATCH) or its asker (FETCH) gave it on this connection.
        path: Relative, components divided by ``/``, as bytes of the file system.
        size: Bytes of contents.
        mode: Permission bits.
    """

    id: int
    kind: Kind
    path: bytes
    size: int = 0
    mode: int = 0o644
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """An entry with its whole contents, as it travels in a BATCH frame."""

    entry: Entry
    digest: bytes
    data: memoryview


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an entry: ``code`` is 0 or an errno value, ``reason`` says it in words."""

    id: int
    code: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame that is not DATA; ``body`` is valid until the decoder is fed again."""

    type: FrameType
    flags: Flag
    tag: int
    body: memoryview


@dataclass(frozen=True, slots=True)
class Data:
    """A piece of a DATA frame; ``view`` is valid until the decoder is fed again."""

    tag: int
    view: memoryview


_HEADER = struct.Struct(">BBHIQ")
_HELLO = struct.Struct(">8sHHIIIII")
_ENTRY = struct.Struct(">QBBHIQ")
_RESULT = struct.Struct(">QIH")
_FETCH = struct.Struct(">QH")
_REFUSE = struct.Struct(">IH")

# The longest body of each type.  DATA may be as long as MAX_BODY too, but is never collected.
_LIMITS = {
    FrameType.HELLO: 256,
    FrameType.REFUSE: _REFUSE.size + MAX_REASON,
    FrameType.BATCH: MAX_BODY,
    FrameType.FILE: _ENTRY.size + MAX_PATH + MAX_REASON,
    FrameType.DATA: MAX_BODY,
    FrameType.END: DIGEST_BYTES,
    FrameType.ABORT: _REFUSE.size + MAX_REASON,
    FrameType.RESULT: MAX_BODY,
    FrameType.LIST: MAX_PATH,
    FrameType.ENTRIES: MAX_BODY,
    FrameType.FETCH: MAX_BODY,
}


def encode_header(type_: FrameType, length: int, tag: int = 0, flags: Flag = Flag.NONE) -> bytes:
    """The 16 bytes before a body of ``length`` bytes."""
    return _HEADER.pack(type_, flags, 0, length, tag)


def encode_frame(type_: FrameType, body: bytes = b"", tag: int = 0, flags: Flag = Flag.NONE) -> bytes:
    """A whole small frame."""
    return encode_header(type_, len(body), tag, flags) + body


def encode_hello(hello: Hello) -> bytes:
    """A HELLO frame."""
    body = _HELLO.pack(
        MAGIC, hello.min_version, hello.version, hello.offered, hello.required, hello.digests, hello.attributes, 0
    )
    return encode_frame(FrameType.HELLO, body)


def decode_hello(body: memoryview) -> Hello:
    """Reads a HELLO; bytes behind the known ones belong to later versions and are ignored."""
    if len(body) < _HELLO.size:
        raise ViolationError("the greeting is too short")
    magic, low, high, offered, required, digests, attributes, _ = _HELLO.unpack_from(body)
    if magic != MAGIC:
        raise ViolationError("the peer does not speak the exs transfer protocol")
    if low > high:
        raise ViolationError("the greeting offers no version")
    return Hello(low, high, Feature(offered), Feature(required), DigestKind(digests), Attribute(attributes))


def answer_hello(theirs: Hello, digests: DigestKind, attributes: Attribute = Attribute.NONE) -> Hello:
    """What a server says to a client's greeting.

    Raises:
        ViolationError: Nothing in common; the text goes into a REFUSE frame.
    """
    version = min(theirs.version, VERSION)
    if version < max(theirs.min_version, MIN_VERSION):
        raise ViolationError(
            f"no common protocol version: {theirs.min_version} to {theirs.version} offered, "
            f"{MIN_VERSION} to {VERSION} spoken here"
        )
    if theirs.required:
        raise ViolationError(f"the peer requires what this version does not have: {theirs.required!r}")
    for kind in (DigestKind.XXH3_128, DigestKind.BLAKE2B_128):
        if kind in theirs.digests & digests:
            return Hello(version, version, Feature.NONE, Feature.NONE, kind, attributes)
    raise ViolationError("no common checksum")


def check_answer(answer: Hello, digests: DigestKind) -> DigestKind:
    """The checksum that the server chose, if its answer is a possible one."""
    if not MIN_VERSION <= answer.version <= VERSION or answer.min_version != answer.version:
        raise ViolationError("the server chose a version that was not offered")
    if answer.required or answer.offered:
        raise ViolationError("the server wants features that were not offered")
    for kind in (DigestKind.XXH3_128, DigestKind.BLAKE2B_128):
        if answer.digests == kind and kind in digests:
            return kind
    raise ViolationError("the server chose a checksum that was not offered")


def encode_entry(entry: Entry) -> bytes:
    """An entry as it stands in BATCH, FILE and ENTRIES bodies."""
    reason = entry.reason.encode("utf-8", "replace")[:255]
    fixed = _ENTRY.pack(entry.id, entry.kind, len(reason), len(entry.path), entry.mode & 0o777, entry.size)
    return fixed + entry.path + reason


def _decode_entry(body: memoryview, at: int) -> tuple[Entry, int]:
    if len(body) - at < _ENTRY.size:
        raise ViolationError("an entry is cut off")
    id_, kind, reason_len, path_len, mode, size = _ENTRY.unpack_from(body, at)
    at += _ENTRY.size
    if path_len > MAX_PATH or len(body) - at < path_len + reason_len:
        raise ViolationError("an entry's path is too long")
    path = bytes(body[at : at + path_len])
    at += path_len
    reason = str(body[at : at + reason_len], "utf-8", "replace")
    if kind not in (Kind.FILE, Kind.DIRECTORY, Kind.SKIPPED):
        raise ViolationError(f"unknown kind of entry: {kind}")
    return Entry(id_, Kind(kind), path, size, mode & 0o777, reason), at + reason_len


def decode_entry(body: memoryview) -> Entry:
    """The body of a FILE frame."""
    entry, at = _decode_entry(body, 0)
    if at != len(body) or entry.kind != Kind.FILE:
        raise ViolationError("a FILE frame holds something else")
    return entry


def decode_entries(body: memoryview) -> list[Entry]:
    """The body of an ENTRIES frame."""
    entries: list[Entry] = []
    at = 0
    while at < len(body):
        entry, at = _decode_entry(body, at)
        entries.append(entry)
    return entries


def encode_batch_item(entry: Entry, digest: bytes) -> bytes:
    """What stands before the contents of one entry in a BATCH body."""
    return encode_entry(entry) + digest


def decode_batch(body: memoryview) -> list[BatchItem]:
    """The body of a BATCH frame; the items' data are views of it."""
    items: list[BatchItem] = []
    at = 0
    while at < len(body):
        entry, at = _decode_entry(body, at)
        if len(body) - at < DIGEST_BYTES or entry.size > len(body) - at - DIGEST_BYTES:
            raise ViolationError("an entry's contents are cut off")
        if entry.kind == Kind.SKIPPED or (entry.kind == Kind.DIRECTORY and entry.size):
            raise ViolationError("a BATCH frame holds something else than files and directories")
        digest = bytes(body[at : at + DIGEST_BYTES])
        at += DIGEST_BYTES
        items.append(BatchItem(entry, digest, body[at : at + entry.size]))
        at += entry.size
    return items


def encode_results(results: Sequence[Result]) -> bytes:
    """A RESULT frame."""
    parts: list[bytes] = []
    for result in results:
        reason = result.reason.encode("utf-8", "replace")[:MAX_REASON]
        parts.append(_RESULT.pack(result.id, result.code, len(reason)) + reason)
    return encode_frame(FrameType.RESULT, b"".join(parts))


def decode_results(body: memoryview) -> list[Result]:
    """The body of a RESULT frame."""
    results: list[Result] = []
    at = 0
    while at < len(body):
        if len(body) - at < _RESULT.size:
            raise ViolationError("a result is cut off")
        id_, code, length = _RESULT.unpack_from(body, at)
        at += _RESULT.size
        if length > MAX_REASON or length > len(body) - at:
            raise ViolationError("a result's text is too long")
        results.append(Result(id_, code, str(body[at : at + length], "utf-8", "replace")))
        at += length
    return results


def encode_fetch(wanted: Sequence[tuple[int, bytes]]) -> bytes:
    """A FETCH frame: numbers that the asker chose, and paths."""
    return encode_frame(FrameType.FETCH, b"".join(_FETCH.pack(id_, len(path)) + path for id_, path in wanted))


def decode_fetch(body: memoryview) -> list[tuple[int, bytes]]:
    """The body of a FETCH frame."""
    wanted: list[tuple[int, bytes]] = []
    at = 0
    while at < len(body):
        if len(body) - at < _FETCH.size:
            raise ViolationError("a request is cut off")
        id_, length = _FETCH.unpack_from(body, at)
        at += _FETCH.size
        if length > MAX_PATH or length > len(body) - at:
            raise ViolationError("a requested path is too long")
        wanted.append((id_, bytes(body[at : at + length])))
        at += length
    return wanted


def encode_error(type_: FrameType, error: TransferError, tag: int = 0) -> bytes:
    """A REFUSE or ABORT frame."""
    reason = error.reason.encode("utf-8", "replace")[:MAX_REASON]
    return encode_frame(type_, _REFUSE.pack(error.errno, len(reason)) + reason, tag)


def decode_error(body: memoryview) -> TransferError:
    """The body of a REFUSE or ABORT frame."""
    if len(body) < _REFUSE.size:
        raise ViolationError("an error message is cut off")
    code, length = _REFUSE.unpack_from(body)
    if length != len(body) - _REFUSE.size:
        raise ViolationError("an error message has the wrong length")
    return TransferError(code, str(body[_REFUSE.size :], "utf-8", "replace"))


class Decoder:
    """Cuts a stream of bytes into frames, however it arrives.

    DATA bodies come out as the pieces that went in; other bodies are views of the input where they lie in
    it whole, else they are collected first.
    """

    def __init__(self) -> None:
        self._head = bytearray()
        self._type: FrameType | None = None
        self._flags = Flag.NONE
        self._tag = 0
        self._left = 0
        self._body = bytearray()

    @property
    def at_boundary(self) -> bool:
        """Whether the stream may end here."""
        return self._type is None and not self._head

    def feed(self, view: memoryview) -> Iterator[Frame | Data]:
        """Frames and pieces of DATA in ``view``, in order; what they show is valid until the next call.

        Raises:
            ViolationError: The bytes are not of this protocol.
        """
        at, end = 0, len(view)
        while at < end:
            if self._type is None:
                take = min(HEADER_BYTES - len(self._head), end - at)
                self._head += view[at : at + take]
                at += take
                if len(self._head) < HEADER_BYTES:
                    return
                self._start()
                if self._left == 0:
                    yield self._finish(memoryview(b""))
                continue
            take = min(self._left, end - at)
            piece = view[at : at + take]
            at += take
            self._left -= take
            if self._type == FrameType.DATA:
                tag = self._tag
                if self._left == 0:
                    self._type = None
                yield Data(tag, piece)
            elif self._left or self._body:
                self._body += piece
                if self._left == 0:
                    whole, self._body = self._body, bytearray()
                    yield self._finish(memoryview(whole))
            else:
                yield self._finish(piece)

    def _start(self) -> None:
        kind, flags, reserved, length, tag = _HEADER.unpack(self._head)
        self._head.clear()
        try:
            type_ = FrameType(kind)
        except ValueError:
            raise ViolationError(f"unknown frame type {kind}") from None
        if reserved or flags & ~int(Flag.MORE):
            raise ViolationError("reserved bits of a frame are set")
        if length > _LIMITS[type_]:
            raise ViolationError(f"a {type_.name} frame of {length} bytes is too long")
        if type_ == FrameType.DATA and length == 0:
            raise ViolationError("an empty DATA frame")
        self._type, self._flags, self._tag, self._left = type_, Flag(flags), tag, length

    def _finish(self, body: memoryview) -> Frame:
        assert self._type is not None
        frame = Frame(self._type, self._flags, self._tag, body)
        self._type = None
        return frame
