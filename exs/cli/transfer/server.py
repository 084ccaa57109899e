# SPDX-License-Identifier: MIT OR Apache-2.0
"""``serve``: one directory, for any number of clients that put and get.

Every connection has two tasks: one reads (and writes files), one answers LIST and FETCH.  A client can spoil its
own connection and nothing else.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import trio

from exs.cli.transfer import protocol
from exs.cli.transfer.paths import Root, printable, split_path
from exs.cli.transfer.protocol import (
    Attribute,
    DigestKind,
    Entry,
    Flag,
    FrameType,
    Kind,
    TransferError,
    ViolationError,
)
from exs.cli.transfer.receiver import Fed, Outcome, Receiver
from exs.cli.transfer.sender import Outgoing, Sender
from exs.cli.transfer.session import Session, first_error, greet_client, refuse
from exs.cli.transfer.summary import error_record

if TYPE_CHECKING:
    from exs.cli.transfer.link import Link

MAX_CONNECTIONS = 64
"""More at the same time are refused: each has its slabs."""
PATIENCE = 300.0
"""Seconds that a client may be silent, or not take what it asked for."""
REQUESTS = 16
LISTED_AT_ONCE = 1000

Report = Callable[[dict[str, object]], None]
"""Takes one event of the server, ready for JSON."""


@dataclass(slots=True)
class _Tally:
    """What one connection did."""

    files_received: int = 0
    bytes_received: int = 0
    files_sent: int = 0
    failed: list[dict[str, object]] = field(default_factory=list[dict[str, object]])

    def count(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self.failed.append({"path": printable(outcome.path), **error_record(outcome.error)})
        elif outcome.kind == Kind.FILE:
            self.files_received += 1
            self.bytes_received += outcome.size


class Server:
    """A served directory.

    Args:
        root: The directory.
        read_only: Refuse what clients put.
        report: Told of every connection that ended.
        digests: Checksums to agree on.
    """

    def __init__(
        self, root: Root, *, read_only: bool = False, report: Report, digests: DigestKind | None = None
    ) -> None:
        self._root = root
        self._read_only = read_only
        self._report = report
        self._digests = protocol.available_digests() if digests is None else digests
        self._connections = 0

    async def handle(self, link: Link, peer: str) -> None:
        """Serves one connection to its end.  Never raises for what a peer or the network does.

        Args:
            link: The connection; closed by the caller.
            peer: Its address, for reports.
        """
        tally = _Tally()
        error: TransferError | None = None
        self._connections += 1
        try:
            if self._connections > MAX_CONNECTIONS:
                await refuse(link, TransferError(errno.EAGAIN, "the server has too many connections"))
                return
            attributes = Attribute.READ_ONLY if self._read_only else Attribute.NONE
            digest = await greet_client(link, self._digests, attributes)
            await self._converse(link, digest, tally)
        except Exception as failure:
            error = first_error(failure)
            if error is None:
                raise
            if isinstance(error, ViolationError):
                await refuse(link, error)
        finally:
            self._connections -= 1
            self._report(
                {
                    "event": "connection",
                    "peer": peer,
                    "path": link.path,
                    "files_received": tally.files_received,
                    "bytes_received": tally.bytes_received,
                    "files_sent": tally.files_sent,
                    "failed": tally.failed,
                    "error": error_record(error) if error else None,
                }
            )

    async def _converse(self, link: Link, digest: DigestKind, tally: _Tally) -> None:
        ask, asked = trio.open_memory_channel[tuple[FrameType, int, bytes]](REQUESTS)
        receiver = Receiver(None if self._read_only else self._root, digest)

        async def on_fed(fed: Fed) -> None:
            for outcome in fed.outcomes:
                tally.count(outcome)
            for type_, tag, _, body in fed.frames:
                if type_ == FrameType.RESULT:
                    self._results(body, sender, tally)
                elif type_ in (FrameType.LIST, FrameType.FETCH):
                    await ask.send((type_, tag, body))
                else:
                    raise ViolationError(f"a {type_.name} frame from a client")

        async def give_up(item: Outgoing, error: TransferError) -> None:
            await session.send(protocol.encode_error(FrameType.ABORT, error, item.id))

        session = Session(link, receiver, on_fed, patience=PATIENCE)
        sender = Sender(link, session.send, digest, failed=give_up, advanced=lambda nbytes: None)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._answer, asked, session, sender)
                async with ask:
                    await session.read()
        finally:
            cut = TransferError(errno.ECONNRESET, "the connection ended in the middle of the file")
            outcome = await session.close_receiver(cut)
            if outcome is not None:
                tally.count(outcome)

    @staticmethod
    def _results(body: bytes, sender: Sender, tally: _Tally) -> None:
        """What became, at the client, of what was sent to it."""
        for result in protocol.decode_results(memoryview(body)):
            if result.code:
                sender.rejected.add(result.id)
                error = TransferError(result.code, result.reason)
                tally.failed.append({"id": result.id, **error_record(error)})
            else:
                tally.files_sent += 1

    async def _answer(
        self, asked: trio.MemoryReceiveChannel[tuple[FrameType, int, bytes]], session: Session, sender: Sender
    ) -> None:
        async with asked:
            async for type_, tag, body in asked:
                session.answering = True
                if type_ == FrameType.LIST:
                    await self._list(tag, body, session)
                else:
                    await self._fetch(protocol.decode_fetch(memoryview(body)), session, sender)
                session.answering = False

    async def _list(self, tag: int, path: bytes, session: Session) -> None:
        try:
            entries = self._root.list(split_path(path))
            while True:
                body, more = await trio.to_thread.run_sync(_some_entries, entries)
                flags = Flag.MORE if more else Flag.NONE
                await session.send(protocol.encode_frame(FrameType.ENTRIES, body, tag, flags))
                if not more:
                    return
        except TransferError as error:
            await session.send(protocol.encode_error(FrameType.ABORT, error, tag))

    async def _fetch(self, wanted: list[tuple[int, bytes]], session: Session, sender: Sender) -> None:
        items: list[Outgoing] = []
        for id_, path in wanted:
            try:
                items.append(Outgoing(self._root, split_path(path), path, id=id_))
            except TransferError as error:
                await session.send(protocol.encode_error(FrameType.ABORT, error, id_))
        await sender.send_items(items)


def _some_entries(entries: Iterator[Entry]) -> tuple[bytes, bool]:
    """The next part of a listing, and whether more may follow.  Blocks on the disk."""
    some = list(islice(entries, LISTED_AT_ONCE))
    return b"".join(protocol.encode_entry(entry) for entry in some), len(some) == LISTED_AT_ONCE
