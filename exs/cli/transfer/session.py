# SPDX-License-Identifier: MIT OR Apache-2.0
"""Both ends of a transfer connection: the greeting, and the task that reads.

The reader hands everything to the synchronous receiver on a worker thread, answers with its results, and
passes the other frames on.  So files are written while the device already fills the next slabs.
"""

from __future__ import annotations

import errno
import math
from typing import TYPE_CHECKING, cast

import trio

from exs.cli.transfer import protocol
from exs.cli.transfer.link import LINK_ERRORS, lost
from exs.cli.transfer.protocol import (
    Attribute,
    Data,
    Decoder,
    DigestKind,
    Frame,
    FrameType,
    Hello,
    TransferError,
    ViolationError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from typing_extensions import Buffer

    from exs.cli.transfer.link import Link
    from exs.cli.transfer.receiver import Fed, Outcome, Receiver

GREETING_SECONDS = 15.0

_TOO_SLOW = TransferError(errno.ETIMEDOUT, "the peer did nothing for too long")
_CUT = TransferError(errno.ECONNRESET, "the connection ended in the middle of a file")


async def _one_frame(link: Link) -> Frame:
    """The first frame of the peer, which must not be followed by another before it was answered."""
    decoder = Decoder()
    with trio.move_on_after(GREETING_SECONDS):
        while True:
            frames: list[Frame] = []
            views = await link.receive()
            if not views:
                raise TransferError(errno.ECONNRESET, "the peer closed the connection instead of a greeting")
            for view in views:
                for item in decoder.feed(view):
                    if isinstance(item, Data):
                        raise ViolationError("file contents before a greeting")
                    frames.append(Frame(item.type, item.flags, item.tag, memoryview(bytes(item.body))))
            if frames:
                if len(frames) > 1 or not decoder.at_boundary:
                    raise ViolationError("more than a greeting")
                return frames[0]
    raise TransferError(errno.ETIMEDOUT, "the peer sent no greeting")


def check_refusal(frame: Frame, expected: FrameType) -> None:
    """Raises what the peer says in a REFUSE frame, or that the frame is not the expected one."""
    if frame.type == FrameType.REFUSE:
        raise protocol.decode_error(frame.body)
    if frame.type != expected:
        raise ViolationError(f"a {frame.type.name} frame instead of {expected.name}")


async def greet_server(link: Link, digests: DigestKind) -> tuple[DigestKind, Attribute]:
    """The client's half of the greeting.

    Returns:
        The agreed checksum, and what the server says of itself.

    Raises:
        TransferError: The server refused, or is something else.
    """
    await link.send(protocol.encode_hello(Hello(digests=digests)))
    frame = await _one_frame(link)
    check_refusal(frame, FrameType.HELLO)
    answer = protocol.decode_hello(frame.body)
    return protocol.check_answer(answer, digests), answer.attributes


async def greet_client(link: Link, digests: DigestKind, attributes: Attribute) -> DigestKind:
    """The server's half of the greeting; a client that cannot be served is told why.

    Raises:
        TransferError: There is no conversation.
    """
    try:
        frame = await _one_frame(link)
        check_refusal(frame, FrameType.HELLO)
        answer = protocol.answer_hello(protocol.decode_hello(frame.body), digests, attributes)
    except ViolationError as error:
        await refuse(link, error)
        raise
    await link.send(protocol.encode_hello(answer))
    return answer.digests


async def refuse(link: Link, error: TransferError) -> None:
    """Tells the peer why nothing more will come, as far as it still listens."""
    with trio.move_on_after(1):
        try:
            await link.send(protocol.encode_error(FrameType.REFUSE, error))
            await link.flush()
        except LINK_ERRORS:
            pass


class Session:
    """One connection after its greeting.

    Args:
        receiver: Writes what comes.
        on_fed: Told, for everything that was read, what it led to.
        patience: Seconds without progress after which the connection is given up; a dead peer is noticed much
            sooner, so this is about one that lives and does nothing.

    Attributes:
        answering: True while this side is busy for the peer, who then may be silent.
    """

    def __init__(
        self,
        link: Link,
        receiver: Receiver,
        on_fed: Callable[[Fed], Awaitable[None]],
        *,
        patience: float = math.inf,
    ) -> None:
        self._patience = patience
        self.answering = False
        self.link = link
        self._receiver = receiver
        self._on_fed = on_fed
        self._turn = trio.Lock()

    async def send(self, *pieces: Buffer) -> None:
        """Sends the pieces of one frame, with none of another task between them."""
        async with self._turn:
            with trio.move_on_after(self._patience) as scope:
                await self.link.send(*pieces)
            if scope.cancelled_caught:
                raise _TOO_SLOW

    async def read(self) -> None:
        """Reads until the peer's end of the stream.

        Raises:
            TransferError: The peer broke the protocol, or ended in the middle of something.
        """
        while True:
            views = await self._receive()
            if not views:
                if not self._receiver.at_boundary:
                    raise _CUT
                return
            if self._receiver.blocks:
                fed = await trio.to_thread.run_sync(self._receiver.feed, views)
            else:
                fed = self._receiver.feed(views)
            if fed.outcomes:
                await self.send(protocol.encode_results([outcome.result for outcome in fed.outcomes]))
            await self._on_fed(fed)

    async def _receive(self) -> Sequence[memoryview]:
        while True:
            with trio.move_on_after(self._patience):
                return await self.link.receive()
            if not self.answering:
                raise _TOO_SLOW

    async def close_receiver(self, error: TransferError) -> Outcome | None:
        """Takes away what was received of an unfinished file."""
        outcome = None
        with trio.CancelScope(shield=True):
            outcome = await trio.to_thread.run_sync(self._receiver.close, error)
        return outcome


def first_error(error: BaseException) -> TransferError | None:
    """What went wrong, out of the groups that nurseries make; ``None`` if it is nothing of a connection."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        found = [first_error(inner) for inner in group.exceptions if not isinstance(inner, trio.Cancelled)]
        return found[0] if found and all(found) else None
    if isinstance(error, TransferError):
        return error
    if isinstance(error, LINK_ERRORS):
        return lost(error)
    return None


__all__ = ["Session", "check_refusal", "first_error", "greet_client", "greet_server", "refuse"]
