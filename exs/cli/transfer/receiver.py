# SPDX-License-Identifier: MIT OR Apache-2.0
"""The receiving half: frames in, files out, results back.  Synchronous, so that it runs on a worker thread.

Invariant: for every BATCH entry and every FILE frame exactly one outcome is reported, and when it is a failure
nothing of the file is left in the tree.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exs.cli.transfer import protocol
from exs.cli.transfer.paths import Root, Temporary, split_path, write_all
from exs.cli.transfer.protocol import (
    BatchItem,
    Data,
    Decoder,
    DigestKind,
    Entry,
    Frame,
    FrameType,
    Hasher,
    Kind,
    Result,
    TransferError,
    ViolationError,
    new_hasher,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_OWN_FRAMES = frozenset({FrameType.BATCH, FrameType.FILE, FrameType.END, FrameType.ABORT})


@dataclass(slots=True)
class _Incoming:
    entry: Entry
    temporary: Temporary | None
    hasher: Hasher
    left: int


class _Parent:
    """The directory of the file before, kept open, since the next one mostly lies in it too."""

    def __init__(self) -> None:
        self._parts: tuple[bytes, ...] = ()
        self._fd = -1

    def enter(self, root: Root, parts: tuple[bytes, ...]) -> int:
        if self._fd < 0 or parts != self._parts:
            self.close()
            with root.directory(parts, create=True) as fd:
                self._fd = os.dup(fd)
            self._parts = parts
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file: ``error`` is ``None`` if it is there, whole and verified."""

    id: int
    path: bytes
    kind: Kind
    size: int
    error: TransferError | None

    @property
    def result(self) -> Result:
        """The same, as the sender is told it."""
        return Result(self.id, self.error.errno, self.error.reason) if self.error else Result(self.id)


@dataclass(slots=True)
class Fed:
    """What one ``feed`` led to.

    Attributes:
        outcomes: What ended, also what failed early.
        frames: Frames that are not the receiver's, in order, with bodies of their own.
        bytes_written: File contents that were written.
    """

    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    frames: list[tuple[FrameType, int, bool, bytes]] = field(default_factory=list[tuple[FrameType, int, bool, bytes]])
    bytes_written: int = 0


def _by_path(entry: Entry) -> tuple[bytes, ...]:
    return split_path(entry.path)


def _outcome(entry: Entry, error: TransferError | None) -> Outcome:
    return Outcome(entry.id, entry.path, entry.kind, entry.size, error)


class Receiver:
    """Writes what a peer sends below a root.

    Args:
        root: Where; ``None`` refuses every file with ``EROFS``.
        digest: The agreed checksum.
        place: Says where an entry goes, as components below ``root``, and may refuse it with ``TransferError``;
            the default takes the peer's path, checked.
    """

    def __init__(
        self,
        root: Root | None,
        digest: DigestKind,
        *,
        place: Callable[[Entry], tuple[bytes, ...]] | None = None,
    ) -> None:
        self._root = root
        self._digest = digest
        self._place = place or _by_path
        self._decoder = Decoder()
        self._incoming: _Incoming | None = None

    @property
    def blocks(self) -> bool:
        """Whether ``feed`` touches the disk and so belongs on a worker thread."""
        return self._root is not None

    @property
    def at_boundary(self) -> bool:
        """Whether the stream may end here."""
        return self._decoder.at_boundary and self._incoming is None

    def close(self, error: TransferError) -> Outcome | None:
        """Ends a file that is still being received; idempotent.  Returns its outcome if it had none yet."""
        incoming, self._incoming = self._incoming, None
        if incoming is None or incoming.temporary is None:
            return None
        incoming.temporary.discard()
        return _outcome(incoming.entry, error)

    def feed(self, views: Sequence[memoryview]) -> Fed:
        """Takes bytes of the stream; the views are not used after the return.

        Raises:
            ViolationError: The peer broke the protocol; ``close`` is the next call.
        """
        fed = Fed()
        for view in views:
            for item in self._decoder.feed(view):
                if isinstance(item, Data):
                    self._data(item, fed)
                elif item.type in _OWN_FRAMES:
                    self._frame(item, fed)
                else:
                    more = bool(item.flags & protocol.Flag.MORE)
                    fed.frames.append((item.type, item.tag, more, bytes(item.body)))
        return fed

    def _frame(self, frame: Frame, fed: Fed) -> None:
        if frame.type == FrameType.BATCH:
            self._batch(protocol.decode_batch(frame.body), fed)
        elif frame.type == FrameType.FILE:
            self._file(protocol.decode_entry(frame.body), fed)
        elif frame.type == FrameType.END:
            self._end(frame.tag, bytes(frame.body), fed)
        else:
            self._abort(frame.tag, protocol.decode_error(frame.body), fed)

    # --- small files and directories ---------------------------------------------------------------------

    def _batch(self, items: list[BatchItem], fed: Fed) -> None:
        if self._incoming is not None:
            raise ViolationError("a batch within a file")
        with contextlib.closing(_Parent()) as parent:
            for item in items:
                error = None
                try:
                    self._store(item, parent)
                    fed.bytes_written += item.entry.size
                except TransferError as failure:
                    error = failure
                except OSError as failure:
                    error = TransferError.of(failure)
                fed.outcomes.append(_outcome(item.entry, error))

    def _store(self, item: BatchItem, parent: _Parent) -> None:
        entry = item.entry
        root = self._writable()
        parts = self._place(entry)
        if entry.kind == Kind.DIRECTORY:
            root.make_directory(parts, entry.mode)
            return
        hasher = new_hasher(self._digest)
        hasher.update(item.data)
        if hasher.digest() != item.digest:
            raise TransferError(errno.EBADMSG, "the checksum does not match")
        temporary = root.create_in(parent.enter(root, parts[:-1]), parts, entry.mode)
        try:
            write_all(temporary.fd, item.data)
        except BaseException:
            temporary.discard()
            raise
        temporary.commit()

    def _writable(self) -> Root:
        if self._root is None:
            raise TransferError(errno.EROFS, "the server is read-only")
        return self._root

    # --- large files ------------------------------------------------------------------------------------------

    def _file(self, entry: Entry, fed: Fed) -> None:
        if self._incoming is not None:
            raise ViolationError("a file within a file")
        incoming = _Incoming(entry, None, new_hasher(self._digest), entry.size)
        self._incoming = incoming
        try:
            root = self._writable()
            parts = self._place(entry)
            if entry.size > root.free_bytes():
                raise TransferError(errno.ENOSPC, "not enough space for the file")
            incoming.temporary = root.create(parts, entry.mode)
        except (TransferError, OSError) as error:
            self._fail(incoming, error, fed)

    def _fail(self, incoming: _Incoming, error: TransferError | OSError, fed: Fed) -> None:
        """Ends a file early: the sender is told at once, what else it has sent of the file is dropped."""
        if incoming.temporary is not None:
            incoming.temporary.discard()
            incoming.temporary = None
        failure = error if isinstance(error, TransferError) else TransferError.of(error)
        fed.outcomes.append(_outcome(incoming.entry, failure))

    def _data(self, data: Data, fed: Fed) -> None:
        incoming = self._incoming
        if incoming is None or incoming.entry.id != data.tag:
            raise ViolationError("file contents without a file")
        if len(data.view) > incoming.left:
            raise ViolationError("more file contents than were announced")
        incoming.left -= len(data.view)
        if incoming.temporary is None:
            return
        incoming.hasher.update(data.view)
        try:
            write_all(incoming.temporary.fd, data.view)
            fed.bytes_written += len(data.view)
        except OSError as error:
            self._fail(incoming, error, fed)

    def _end(self, tag: int, digest: bytes, fed: Fed) -> None:
        incoming = self._incoming
        if incoming is None or incoming.entry.id != tag or incoming.left or len(digest) != protocol.DIGEST_BYTES:
            raise ViolationError("the end of a file at a wrong place")
        self._incoming = None
        if incoming.temporary is None:
            return
        error: TransferError | None = None
        if incoming.hasher.digest() != digest:
            incoming.temporary.discard()
            error = TransferError(errno.EBADMSG, "the checksum does not match")
        else:
            try:
                incoming.temporary.commit()
            except OSError as failure:
                error = TransferError.of(failure)
        fed.outcomes.append(_outcome(incoming.entry, error))

    def _abort(self, tag: int, error: TransferError, fed: Fed) -> None:
        """The sender gave up: on the file under way, or on one that was asked for and never begun."""
        incoming = self._incoming
        if incoming is None or incoming.entry.id != tag:
            fed.outcomes.append(_outcome(Entry(tag, Kind.SKIPPED, b""), error))
            return
        self._incoming = None
        if incoming.temporary is not None:
            incoming.temporary.discard()
            fed.outcomes.append(_outcome(incoming.entry, error))
