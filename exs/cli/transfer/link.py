# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a transfer needs of a connection, and how an exs socket gives it.

The tools use nothing of exs outside of this file, which is therefore the example of how a program keeps a
pipe full: a send queue, a receive queue over a pool of registered slabs, and a file sent from its mapping.
"""

from __future__ import annotations

import errno
import os
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

import exs
from exs.cli.common import innermost
from exs.cli.transfer.protocol import TransferError

if TYPE_CHECKING:
    import mmap
    from collections.abc import AsyncGenerator, Sequence

    from typing_extensions import Buffer

SLAB_BYTES = 512 << 10
HOLD_US = 20_000
"""How long file contents wait for a posted slab, in microseconds, before they take the way through the ring and are
copied: the receiver is a moment behind whenever it writes to the disk."""
SLABS = 16
SENDS = 8
CHANGED = TransferError(errno.ESTALE, "the file changed while it was being sent")


class Window(Protocol):
    """A file that can be sent in parts."""

    async def part(self, start: int, stop: int) -> Buffer:
        """What lies between two offsets in bytes."""
        ...


class _Mapped:
    """Parts of a mapping, without a copy."""

    def __init__(self, memory: exs.MemoryRegion | memoryview) -> None:
        self._memory = memory

    async def part(self, start: int, stop: int) -> Buffer:
        return self._memory[start:stop]


class _Read:
    """Parts that are read.

    Cards want memory that is pinned, for which a file may be too large, and kernels before 6.2 do not pin a shared
    mapping that may only be read.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def part(self, start: int, stop: int) -> Buffer:
        return await trio.to_thread.run_sync(self._read, start, stop)

    def _read(self, start: int, stop: int) -> Buffer:
        data = bytearray(stop - start)
        got = 0
        with memoryview(data) as room:
            while got < len(data):
                more = os.preadv(self._fd, [room[got:]], start + got)
                if more == 0:
                    raise CHANGED
                got += more
        return data


class Link(Protocol):
    """One connection of a transfer."""

    @property
    def device(self) -> str:
        """Name of the device that carries it."""
        ...

    @property
    def path(self) -> str:
        """How the bytes travel: ``tcp``, ``shm-vm``, ``shm-ring``."""
        ...

    async def send(self, *pieces: Buffer) -> None:
        """Accepts pieces in order; they belong to the link until ``flush`` or, of a ``window``, its exit."""

    async def flush(self) -> None:
        """Returns when no piece is in use any more."""

    async def receive(self) -> Sequence[memoryview]:
        """What has arrived, valid until the next call; empty at the end of the stream."""
        ...

    def window(self, fd: int, mapping: mmap.mmap) -> AbstractAsyncContextManager[Window]:
        """An open file and its mapping, to send parts of; nothing of it is in use when the block is left."""
        ...


class ExsLink:
    """A connected STREAM socket with its queues open; see ``open_link``."""

    def __init__(self, socket: exs.Socket, sends: exs.SendQueue, receives: exs.ReceiveQueue) -> None:
        self._socket = socket
        self._sends = sends
        self._receives = receives

    @property
    def device(self) -> str:
        """Name of the device that carries it."""
        device = self._socket.device
        return device.name if device else ""

    @property
    def path(self) -> str:
        """How the bytes travel."""
        return self._socket.path

    async def send(self, *pieces: Buffer) -> None:
        """Accepts pieces in order."""
        await self._sends.put_many(pieces)

    async def flush(self) -> None:
        """Returns when no piece is in use any more."""
        await self._sends.flush()

    async def receive(self) -> Sequence[memoryview]:
        """What has arrived, valid until the next call; empty at the end of the stream."""
        return [chunk.view for chunk in await self._receives.get_many(SLABS)]

    @asynccontextmanager
    async def window(self, fd: int, mapping: mmap.mmap) -> AsyncGenerator[Window]:
        """A file to send parts of."""
        if self.device != "soft":
            yield _Read(fd)
            return
        # Leaving the region waits for the sends that use it, so the mapping can be closed behind it.
        async with exs.MemoryRegion(mapping, exs.Access.READ) as region:
            yield _Mapped(region)


@asynccontextmanager
async def open_link(stream: exs.SocketStream) -> AsyncGenerator[ExsLink]:
    """Opens the queues of a stream for a transfer, and closes the stream at the end."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(stream)
        pool = stack.enter_context(exs.BufferPool(SLAB_BYTES, SLABS))
        receives = await stack.enter_async_context(stream.socket.receive_queue(pool, depth=SLABS))
        sends = await stack.enter_async_context(stream.socket.send_queue(depth=SENDS))
        yield ExsLink(stream.socket, sends, receives)


class StreamLink:
    """The same over any trio stream: what the tools are without exs, for comparison and for tests."""

    device = "none"

    def __init__(self, stream: trio.abc.Stream, path: str = "trio-tcp") -> None:
        self._stream = stream
        self.path = path

    async def send(self, *pieces: Buffer) -> None:
        """Sends pieces in order; they are not in use any more afterwards."""
        for piece in pieces:
            await self._stream.send_all(piece if isinstance(piece, bytes) else memoryview(piece))

    async def flush(self) -> None:
        """Nothing is ever in use between calls."""
        await trio.lowlevel.checkpoint()

    async def receive(self) -> Sequence[memoryview]:
        """What has arrived; empty at the end of the stream."""
        data = await self._stream.receive_some(SLAB_BYTES)
        return [memoryview(data)] if data else []

    @asynccontextmanager
    async def window(self, fd: int, mapping: mmap.mmap) -> AsyncGenerator[Window]:
        """A file to send parts of."""
        with memoryview(mapping) as whole:
            yield _Mapped(whole)


LINK_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a link's methods raise when the connection is lost."""


def lost(error: BaseException) -> TransferError:
    """A lost connection in the words of a transfer."""
    cause: BaseException | None = error
    while cause is not None:
        cause = innermost(cause)  # one for each address that was tried
        if isinstance(cause, TransferError):
            return cause
        if isinstance(cause, OSError) and cause.errno:
            return TransferError.of(cause)
        cause = cause.__cause__ or cause.__context__
    return TransferError(errno.ECONNRESET, f"the connection was lost: {error}")
