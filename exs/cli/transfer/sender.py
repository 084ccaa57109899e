# SPDX-License-Identifier: MIT OR Apache-2.0
"""The sending half: small files are read and travel several in a frame, large ones are sent from their mapping.

A mapped file may be cut by anybody at any time, and touching what was cut off is a crash (SIGBUS).  So the
mapping is only ever read by system calls, the device's; the checksum is computed from ``pread``.  A file
that changed in between is found by its size and time, at the latest by its checksum.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from exs.cli.transfer import protocol
from exs.cli.transfer.link import CHANGED
from exs.cli.transfer.protocol import (
    DATA_BYTES,
    SMALL_FILE,
    DigestKind,
    Entry,
    FrameType,
    Kind,
    TransferError,
    new_hasher,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from exs.cli.transfer.link import Link, Window
    from exs.cli.transfer.paths import OpenFile, Root

_HASH_BYTES = 1 << 20


@dataclass(slots=True)
class Outgoing:
    """One file or directory to send.

    Attributes:
        root: What ``parts`` is below.
        path: The name that the peer is told.
        size: As listed; the true one is that of the opened file.
        attempts: How many connections were lost while it was under way.
        error: Why it must not be tried again.
    """

    root: Root
    parts: tuple[bytes, ...]
    path: bytes
    id: int = 0
    kind: Kind = Kind.FILE
    size: int = 0
    mode: int = 0o755
    attempts: int = 0
    error: TransferError | None = None


@dataclass(slots=True)
class _Packed:
    """What became of a run of items: a BATCH body, those that failed, and one too large for a batch."""

    taken: int = 0
    body: list[bytes] = field(default_factory=list[bytes])
    sizes: list[tuple[Outgoing, int]] = field(default_factory=list[tuple[Outgoing, int]])
    failed: list[tuple[Outgoing, TransferError]] = field(default_factory=list[tuple[Outgoing, TransferError]])
    large: tuple[Outgoing, OpenFile] | None = None


def _read_small(file: OpenFile) -> bytes:
    # One byte more than expected, so that a file that grew is noticed.
    data = os.pread(file.fd, file.size + 1, 0)
    if len(data) != file.size:
        raise CHANGED
    file.check_unchanged()
    return data


def _pack(items: Sequence[Outgoing], digest: DigestKind) -> _Packed:
    """Reads items from the front until a BATCH is full or a large file is next.  Blocks on the disk."""
    packed = _Packed()
    total = 0
    for item in items:
        if total >= protocol.BATCH_BYTES or packed.taken >= protocol.BATCH_FILES:
            break
        packed.taken += 1
        try:
            data, size, mode = b"", 0, item.mode
            if item.kind == Kind.FILE:
                file = item.root.open(item.parts)
                if file.size > SMALL_FILE:
                    packed.large = (item, file)
                    break
                try:
                    data, size, mode = _read_small(file), file.size, file.mode
                finally:
                    os.close(file.fd)
        except TransferError as error:
            packed.failed.append((item, error))
            continue
        except OSError as error:
            packed.failed.append((item, TransferError.of(error)))
            continue
        hasher = new_hasher(digest)
        hasher.update(memoryview(data))
        head = protocol.encode_batch_item(Entry(item.id, item.kind, item.path, size, mode), hasher.digest())
        packed.body += (head, data)
        packed.sizes.append((item, size))
        total += len(head) + size
    return packed


def _hash_file(fd: int, size: int, digest: DigestKind, stop: threading.Event) -> bytes:
    """The checksum of an open file, by system calls only.  Blocks on the disk."""
    hasher = new_hasher(digest)
    buffer = memoryview(bytearray(min(_HASH_BYTES, size)))
    at = 0
    while at < size and not stop.is_set():
        got = os.preadv(fd, [buffer[: size - at]], at)
        if got == 0:
            raise CHANGED
        hasher.update(buffer[:got])
        at += got
    return hasher.digest()


class Sender:
    """Sends items over one link.

    Args:
        link: For windows over mapped files.
        send: Sends the pieces of one frame; frames of other tasks never come between them.
        digest: The agreed checksum.
        failed: Told of each item that could not be read, before anything of it was sent.
        advanced: Told of bytes of contents as they are accepted.
    """

    def __init__(
        self,
        link: Link,
        send: Callable[..., Awaitable[None]],
        digest: DigestKind,
        *,
        failed: Callable[[Outgoing, TransferError], Awaitable[None]],
        advanced: Callable[[int], None],
    ) -> None:
        self._link = link
        self._send = send
        self._digest = digest
        self._failed = failed
        self._advanced = advanced
        self.rejected: set[int] = set()
        """Items whose failure the peer reported: there is no use in sending the rest of them."""

    async def send_items(self, items: Sequence[Outgoing]) -> None:
        """Sends every item, or reports it failed; returns when the last was accepted by the link."""
        left = list(items)
        while left:
            packed = await trio.to_thread.run_sync(_pack, left, self._digest)
            left = left[packed.taken :]
            try:
                if packed.sizes:
                    body = b"".join(packed.body)
                    await self._send(protocol.encode_header(FrameType.BATCH, len(body)), body)
                    self._advanced(sum(size for _, size in packed.sizes))
                for item, error in packed.failed:
                    await self._failed(item, error)
                if packed.large is not None:
                    await self._send_large(*packed.large)
            finally:
                if packed.large is not None:
                    os.close(packed.large[1].fd)

    async def _send_large(self, item: Outgoing, file: OpenFile) -> None:
        entry = Entry(item.id, Kind.FILE, item.path, file.size, file.mode)
        await self._send(protocol.encode_frame(FrameType.FILE, protocol.encode_entry(entry), item.id))
        try:
            digest = await self._send_contents(item, file)
            last = protocol.encode_frame(FrameType.END, digest, item.id)
        except TransferError as error:
            # The receiver answers with a result, unless this is itself the answer to one.
            last = protocol.encode_error(FrameType.ABORT, error, item.id)
        await self._send(last)

    async def _send_contents(self, item: Outgoing, file: OpenFile) -> bytes:
        """Sends DATA frames; returns the checksum, which a thread computes meanwhile."""
        stop = threading.Event()
        outcome: list[bytes | TransferError] = []

        async def hash_it() -> None:
            try:
                outcome.append(await trio.to_thread.run_sync(_hash_file, file.fd, file.size, self._digest, stop))
            except TransferError as error:
                outcome.append(error)
            except OSError as error:
                outcome.append(TransferError.of(error))

        mapping = mmap.mmap(file.fd, file.size, access=mmap.ACCESS_READ)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hash_it)
                failure = await self._try_window(item, file, mapping, stop)
        finally:
            # After a cancel the device may still hold the mapping; then it goes with its last user.
            with contextlib.suppress(BufferError):
                mapping.close()
        if failure is not None:
            raise failure
        file.check_unchanged()
        (result,) = outcome
        if isinstance(result, TransferError):
            raise result
        return result

    async def _try_window(
        self, item: Outgoing, file: OpenFile, mapping: mmap.mmap, stop: threading.Event
    ) -> TransferError | None:
        """Sends the contents; an error of the file is returned, since a nursery would wrap it."""
        try:
            async with self._link.window(file.fd, mapping) as window:
                await self._send_window(item, file, window)
        except TransferError as error:
            stop.set()
            return error
        except BaseException:
            stop.set()
            # A file that was cut takes the connection with it: the device cannot read what is not there.
            try:
                file.check_unchanged()
            except TransferError as error:
                item.error = error.bare()
            raise
        return None

    async def _send_window(self, item: Outgoing, file: OpenFile, window: Window) -> None:
        for at in range(0, file.size, DATA_BYTES):
            if item.id in self.rejected:
                raise TransferError(errno.ECANCELED, "the receiver gave up on the file")
            file.check_unchanged()
            length = min(DATA_BYTES, file.size - at)
            part = await window.part(at, at + length)
            await self._send(protocol.encode_header(FrameType.DATA, length, item.id), part)
            self._advanced(length)
