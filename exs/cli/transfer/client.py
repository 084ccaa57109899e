# SPDX-License-Identifier: MIT OR Apache-2.0
"""``put`` and ``get``: the work is cut into groups, and a few workers with a connection each take them.

A group is one large file, or several small ones that travel together.  When a connection is lost, what was
under way on it is tried once more on a new one, each item then alone, so that a file that breaks connections
(one that is cut while it is sent, for instance) takes no other with it.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import trio

from exs.cli.transfer import protocol
from exs.cli.transfer.link import Link
from exs.cli.transfer.paths import Root, split_path
from exs.cli.transfer.protocol import (
    Attribute,
    Decoder,
    DigestKind,
    Entry,
    Flag,
    Frame,
    FrameType,
    Kind,
    TransferError,
    ViolationError,
)
from exs.cli.transfer.receiver import Fed, Receiver
from exs.cli.transfer.sender import Outgoing, Sender
from exs.cli.transfer.session import Session, check_refusal, first_error, greet_server
from exs.cli.transfer.summary import Summary

if TYPE_CHECKING:
    from exs.cli.transfer.progress import Progress

Connect = Callable[[], AbstractAsyncContextManager[Link]]
"""Opens one more connection to the server."""

ATTEMPTS = 2
REFUSALS = 20
FETCHES_IN_FLIGHT = 2
_DONE = TransferError(errno.ECONNRESET, "the server closed the connection")


class _Item(Protocol):
    id: int
    size: int
    attempts: int
    error: TransferError | None

    @property
    def path(self) -> bytes: ...


T = TypeVar("T", bound=_Item)


@dataclass(slots=True)
class Wanted:
    """A file to fetch.

    Attributes:
        path: Its name at the server.
        local: Where it goes, below the local root.
    """

    path: bytes
    local: tuple[bytes, ...]
    id: int = 0
    size: int = 0
    attempts: int = 0
    error: TransferError | None = None


def group_items(items: Iterable[T]) -> deque[list[T]]:
    """Cuts a list into groups: a large file alone, small ones up to the size of a batch."""
    groups: deque[list[T]] = deque()
    small: list[T] = []
    total = 0
    for item in items:
        if item.size > protocol.SMALL_FILE:
            groups.append([item])
            continue
        small.append(item)
        total += item.size + 64 + len(item.path)
        if total >= protocol.BATCH_BYTES or len(small) >= protocol.BATCH_FILES:
            groups.append(small)
            small, total = [], 0
    if small:
        groups.append(small)
    return groups


class _Job(Generic[T]):
    """Items, the workers that move them, and what became of each.  Exactly one outcome per item."""

    def __init__(self, connect: Connect, summary: Summary, progress: Progress, digests: DigestKind) -> None:
        self._connect = connect
        self._summary = summary
        self._progress = progress
        self._digests = digests
        self._groups: deque[list[T]] = deque()
        self._refused = _DONE

    async def run(self, items: Sequence[T], workers: int) -> None:
        """Moves every item, or reports why not."""
        for number, item in enumerate(items, 1):
            item.id = number
        self._groups = group_items(items)
        async with trio.open_nursery() as nursery:
            for _ in range(min(workers, len(self._groups))):
                nursery.start_soon(self._work)
        # Workers end early only when no connection is to be had; the others did their share then.
        if self._groups:
            self._summary.connection_error = self._refused
        while self._groups:
            for item in self._groups.popleft():
                self._failed(item, self._refused)

    def _failed(self, item: T, error: TransferError) -> None:
        self._summary.failed.append((item.path, error.bare()))

    def _succeeded(self, item: T) -> None:
        self._summary.nbytes += item.size
        self._summary.files += 1
        self._progress.file_done()

    async def _work(self) -> None:
        refusals = 0
        while self._groups:
            under_way: dict[int, T] = {}
            try:
                async with self._connect() as link:
                    digest, attributes = await greet_server(link, self._digests)
                    self._summary.device, self._summary.path = link.device, link.path
                    self._summary.digest = (digest.name or "").lower()
                    await self._converse(link, digest, attributes, under_way)
            except Exception as failure:
                error = first_error(failure)
                if error is None:
                    raise
                if error.errno == errno.EAGAIN and refusals < REFUSALS:
                    # The server has too many connections for the moment.
                    refusals += 1
                    self._retry(under_way, error)
                    await trio.sleep(0.02 * refusals)
                elif not under_way:
                    # Not even a greeting: another try would end the same way.
                    self._refused = error
                    return
                else:
                    self._retry(under_way, error)

    def _retry(self, under_way: dict[int, T], error: TransferError) -> None:
        for item in under_way.values():
            item.attempts += 1
            if item.error is not None:
                self._failed(item, item.error)
            elif item.attempts < ATTEMPTS:
                self._groups.append([item])
            else:
                self._failed(item, error)

    async def _converse(self, link: Link, digest: DigestKind, attributes: Attribute, under_way: dict[int, T]) -> None:
        raise NotImplementedError


class _Put(_Job[Outgoing]):
    def _succeeded(self, item: Outgoing) -> None:
        if item.kind == Kind.DIRECTORY:
            self._summary.directories += 1
        else:
            super()._succeeded(item)

    async def _converse(
        self, link: Link, digest: DigestKind, attributes: Attribute, under_way: dict[int, Outgoing]
    ) -> None:
        if Attribute.READ_ONLY in attributes:
            while self._groups:
                for item in self._groups.popleft():
                    self._failed(item, TransferError(errno.EROFS, "the server is read-only"))
            return
        quiet = trio.Event()

        async def on_fed(fed: Fed) -> None:
            nonlocal quiet
            for type_, tag, _, body in fed.frames:
                check_refusal(Frame(type_, Flag.NONE, tag, memoryview(body)), FrameType.RESULT)
                for result in protocol.decode_results(memoryview(body)):
                    item = under_way.pop(result.id, None)
                    if item is None:
                        raise ViolationError("a result for a file that was not sent")
                    if result.code:
                        sender.rejected.add(result.id)
                        self._failed(item, TransferError(result.code, result.reason))
                    else:
                        self._succeeded(item)
            if not under_way:
                quiet.set()
                quiet = trio.Event()

        async def gave_up(item: Outgoing, error: TransferError) -> None:
            if under_way.pop(item.id, None) is not None:
                self._failed(item, error)

        session = Session(link, Receiver(None, digest), on_fed)
        sender = Sender(link, session.send, digest, failed=gave_up, advanced=self._progress.advance)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read_on, session)
            while self._groups:
                group = self._groups.popleft()
                alone = any(item.attempts for item in group)
                if alone and under_way:
                    await quiet.wait()
                under_way.update((item.id, item) for item in group)
                await sender.send_items(group)
                if alone and under_way:
                    await quiet.wait()
            if under_way:
                await quiet.wait()
            nursery.cancel_scope.cancel()


async def _read_on(session: Session) -> None:
    """Reads; here the end of the stream is an error, since the client is the one who ends."""
    await session.read()
    raise _DONE


class _Get(_Job[Wanted]):
    def __init__(self, connect: Connect, summary: Summary, progress: Progress, digests: DigestKind, root: Root) -> None:
        super().__init__(connect, summary, progress, digests)
        self._root = root

    async def _converse(
        self, link: Link, digest: DigestKind, attributes: Attribute, under_way: dict[int, Wanted]
    ) -> None:
        changed = trio.Event()

        def place(entry: Entry) -> tuple[bytes, ...]:
            wanted = under_way.get(entry.id)
            if wanted is None or entry.kind != Kind.FILE:
                raise ViolationError("a file that was not asked for")
            return wanted.local

        async def on_fed(fed: Fed) -> None:
            nonlocal changed
            self._progress.advance(fed.bytes_written)
            for type_, tag, _, body in fed.frames:
                check_refusal(Frame(type_, Flag.NONE, tag, memoryview(body)), FrameType.REFUSE)
            for outcome in fed.outcomes:
                wanted = under_way.pop(outcome.id, None)
                if wanted is None:
                    raise ViolationError("a file that was not asked for")
                if outcome.error is not None:
                    self._failed(wanted, outcome.error)
                else:
                    wanted.size = outcome.size
                    self._succeeded(wanted)
            changed.set()
            changed = trio.Event()

        session = Session(link, Receiver(self._root, digest, place=place), on_fed)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_read_on, session)
                in_flight: list[set[int]] = []
                while self._groups or under_way:
                    in_flight = [ids for ids in in_flight if not ids.isdisjoint(under_way)]
                    # An item that is tried again is alone on its connection, before and after.
                    alone = any(item.attempts for item in under_way.values()) or (
                        self._groups and self._groups[0][0].attempts
                    )
                    if self._groups and len(in_flight) < (1 if alone else FETCHES_IN_FLIGHT):
                        group = self._groups.popleft()
                        under_way.update((item.id, item) for item in group)
                        in_flight.append({item.id for item in group})
                        await session.send(protocol.encode_fetch([(item.id, item.path) for item in group]))
                    else:
                        await changed.wait()
                nursery.cancel_scope.cancel()
        finally:
            await session.close_receiver(_DONE)


# --- put ----------------------------------------------------------------------------------------------------


def list_sources(names: Sequence[str], into: bytes, summary: Summary) -> tuple[list[Outgoing], list[Root]]:
    """Every file and directory that a command line names.  Blocks on the disk.

    Args:
        names: Files and directories; of these themselves, as named by the user, links are followed.
        into: Directory at the server that they go into.
        summary: Told of what is left out and of what does not exist.

    Returns:
        The items, files first and then directories, the deepest first; and the roots, to be closed behind
        the last use of an item.
    """
    files: list[Outgoing] = []
    directories: list[Outgoing] = []
    roots: list[Root] = []
    taken: set[bytes] = set()
    for name in names:
        real = os.fsencode(os.path.realpath(name))
        base = os.path.basename(os.fsencode(os.path.abspath(name)))
        prefix = b"/".join(part for part in (into, base) if part)
        try:
            if prefix in taken:
                raise TransferError(errno.EEXIST, "two of the sources have the same name at the server")
            taken.add(prefix)
            if os.path.isdir(real):
                root = Root(real)
                roots.append(root)
                _list_tree(root, prefix, files, directories, summary)
            else:
                root = Root(os.path.dirname(real))
                roots.append(root)
                (entry,) = root.list((os.path.basename(real),))
                files.append(Outgoing(root, (os.path.basename(real),), prefix, size=entry.size, mode=entry.mode))
        except TransferError as error:
            summary.failed.append((os.fsencode(name), error))
        except OSError as error:
            summary.failed.append((os.fsencode(name), TransferError.of(error)))
    directories.sort(key=lambda item: item.path.count(b"/"), reverse=True)
    return files + directories, roots


def _list_tree(root: Root, prefix: bytes, files: list[Outgoing], directories: list[Outgoing], summary: Summary) -> None:
    for entry in root.list(()):
        path = b"/".join(part for part in (prefix, entry.path) if part)
        parts = split_path(entry.path)
        if entry.kind == Kind.SKIPPED:
            summary.skipped.append((path, entry.reason))
        elif entry.kind == Kind.DIRECTORY:
            directories.append(Outgoing(root, parts, path, kind=Kind.DIRECTORY, mode=entry.mode))
        else:
            files.append(Outgoing(root, parts, path, size=entry.size, mode=entry.mode))


async def put(
    connect: Connect,
    names: Sequence[str],
    *,
    into: bytes = b"",
    workers: int = 4,
    progress: Progress,
    digests: DigestKind | None = None,
) -> Summary:
    """Sends files and trees to a server.

    Args:
        connect: Opens a connection to it.
        names: Local files and directories; a directory arrives under its own name, with all it holds.
        into: Directory at the server, relative; made if missing.
        workers: Connections at the same time.
        progress: Told what happens.
        digests: Checksums to offer; the default is what this process can compute.

    Returns:
        What happened; the caller looks at ``exit_code``.
    """
    summary = Summary("put")
    items, roots = await trio.to_thread.run_sync(list_sources, names, into, summary)
    try:
        files = [item for item in items if item.kind == Kind.FILE]
        directories = [item for item in items if item.kind == Kind.DIRECTORY]
        progress.total(len(files), sum(item.size for item in files))
        offered = available(digests)
        await _Put(connect, summary, progress, offered).run(files, workers)
        # Last, so that a directory that nobody may write to gets its files first.
        await _Put(connect, summary, progress, offered).run(directories, 1)
    finally:
        for root in roots:
            root.close()
    summary.finish()
    return summary


def available(digests: DigestKind | None) -> DigestKind:
    """The checksums to offer."""
    return protocol.available_digests() if digests is None else digests


# --- get ----------------------------------------------------------------------------------------------------


async def _list_remote(link: Link, paths: Sequence[bytes], digests: DigestKind, summary: Summary) -> list[list[Entry]]:
    """What the server has at each path; an empty list for one that failed."""
    await greet_server(link, digests)
    for tag, path in enumerate(paths):
        await link.send(protocol.encode_frame(FrameType.LIST, path, tag))
    decoder = Decoder()
    found: list[list[Entry]] = [[] for _ in paths]
    open_tags = set(range(len(paths)))
    while open_tags:
        views = await link.receive()
        if not views:
            raise _DONE
        for view in views:
            for frame in decoder.feed(view):
                if not isinstance(frame, Frame) or frame.tag not in open_tags:
                    raise ViolationError("an answer to no question")
                if frame.type == FrameType.ABORT:
                    summary.failed.append((paths[frame.tag], protocol.decode_error(frame.body)))
                    open_tags.remove(frame.tag)
                    continue
                check_refusal(frame, FrameType.ENTRIES)
                found[frame.tag] += protocol.decode_entries(frame.body)
                if Flag.MORE not in frame.flags:
                    open_tags.remove(frame.tag)
    return found


def plan_local(
    asked: Sequence[bytes], found: Sequence[Sequence[Entry]], summary: Summary
) -> tuple[list[Wanted], list[tuple[tuple[bytes, ...], int]]]:
    """Where what the server has goes to.  The server is not trusted: every path is checked.

    Returns:
        The files, and the directories with their modes, the deepest first.
    """
    files: list[Wanted] = []
    directories: dict[tuple[bytes, ...], int] = {}
    taken: set[tuple[bytes, ...]] = set()
    for path, entries in zip(asked, found, strict=True):
        if not entries:
            continue
        top = split_path(path)
        cut = max(len(top) - 1, 0)
        for entry in entries:
            try:
                parts = split_path(entry.path)
                if parts[: len(top)] != top:
                    raise TransferError(errno.EINVAL, "the server named a path that was not asked for")
                local = parts[cut:]
                if entry.kind == Kind.SKIPPED:
                    summary.skipped.append((entry.path, entry.reason))
                elif entry.kind == Kind.DIRECTORY:
                    directories[local] = entry.mode
                elif local in taken:
                    raise TransferError(errno.EEXIST, "two of the paths have the same local name")
                else:
                    taken.add(local)
                    files.append(Wanted(entry.path, local, size=entry.size))
            except TransferError as error:
                summary.failed.append((entry.path, error))
    ordered = sorted(directories.items(), key=lambda item: len(item[0]), reverse=True)
    return files, [(parts, mode) for parts, mode in ordered if parts]


def _make_directories(root: Root, directories: Sequence[tuple[tuple[bytes, ...], int]], summary: Summary) -> None:
    for parts, mode in directories:
        try:
            root.make_directory(parts, mode)
            summary.directories += 1
        except (TransferError, OSError) as error:
            failure = error if isinstance(error, TransferError) else TransferError.of(error)
            summary.failed.append((b"/".join(parts), failure))


async def get(
    connect: Connect,
    paths: Sequence[bytes],
    root: Root,
    *,
    workers: int = 4,
    progress: Progress,
    digests: DigestKind | None = None,
) -> Summary:
    """Fetches files and trees from a server.

    Args:
        connect: Opens a connection to it.
        paths: Relative to the served directory; ``.`` is all of it.
        root: The local directory that they go into, under their last component.
        workers: Connections at the same time.
        progress: Told what happens.
        digests: Checksums to offer; the default is what this process can compute.

    Returns:
        What happened; the caller looks at ``exit_code``.
    """
    summary = Summary("get")
    offered = available(digests)
    try:
        async with connect() as link:
            found = await _list_remote(link, paths, offered, summary)
    except Exception as failure:
        summary.connection_error = first_error(failure)
        if summary.connection_error is None:
            raise
        summary.failed += [(path, summary.connection_error) for path in paths]
        summary.finish()
        return summary
    files, directories = plan_local(paths, found, summary)
    progress.total(len(files), sum(item.size for item in files))
    await _Get(connect, summary, progress, offered, root).run(files, workers)
    await trio.to_thread.run_sync(_make_directories, root, directories, summary)
    summary.finish()
    return summary
