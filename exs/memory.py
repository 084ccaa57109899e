# SPDX-License-Identifier: MIT OR Apache-2.0
"""Registered memory: regions, and views of them.

Owns the Python side of a registration: the export of the caller's buffer (or the mapping that exs made), and
when it may end.  The count of operations in flight is the core's.

Invariant: while a region is open, its buffer cannot be resized or unmapped; a view of memory that exs
allocated stays valid after its region is closed, since the mapping goes with the last view.
"""

from __future__ import annotations

import enum
import errno
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, overload

import trio
from trio.abc import AsyncResource
from trio.lowlevel import enable_ki_protection as protected

from exs import _native
from exs.errors import Error

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Buffer

__all__ = ["Access", "MemoryRegion", "RegionView", "register"]


class Access(enum.IntFlag):
    """What a region may be used for."""

    READ = _native.MR_READ
    """The library reads it: sending."""
    WRITE = _native.MR_WRITE
    """The library and the peer write it: receiving."""


_BOTH = Access.READ | Access.WRITE


class Closing(AsyncResource):
    """What ends by ``with``, and fails while it is in use, or by ``async with``, and waits."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """End it now; raises :class:`BusyError` while it is in use."""

    def __enter__(self) -> Self:
        """The resource itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; raises :class:`BusyError` while it is in use."""
        self.close()


class _Sliceable(_native.Span, ABC):
    """What regions and their views have in common: length, slices, bytes."""

    __slots__ = ()

    @property
    @abstractmethod
    def _where(self) -> tuple[MemoryRegion, int]:
        """The region, and the offset of this in it."""

    def __len__(self) -> int:
        """Bytes."""
        return self.length

    def __getitem__(self, s: slice) -> RegionView:
        """A view of a part; no copy.

        Raises:
            TypeError: Not a slice.
            ValueError: A slice with a step.
        """
        if not isinstance(s, slice):
            raise TypeError("a region is sliced, not indexed: use .view for its bytes")
        if s.step is not None and s.step != 1:
            raise ValueError("a slice of a region has no step")
        start, stop, _ = s.indices(self.length)
        region, offset = self._where
        return RegionView(region, offset + start, max(stop - start, 0))

    def split(self, nbytes: int) -> Sequence[RegionView]:
        """Equal pieces, one behind the other, made on demand; the last may be shorter.

        Args:
            nbytes: Bytes of each.

        Returns:
            A sequence that queues pass to the core as one.

        Raises:
            ValueError: ``nbytes`` is not positive.
        """
        if nbytes <= 0:
            raise ValueError("pieces must have at least one byte")
        region, offset = self._where
        return Split(region, offset, self.length, nbytes)

    @property
    def view(self) -> memoryview:
        """The bytes, as a flat ``memoryview``; what is made from it (``numpy.frombuffer``) keeps the memory alive.

        Raises:
            exs.Error: ``EBADF``: the region is closed.
        """
        region, offset = self._where
        return region._bytes()[offset : offset + self.length]

    def __buffer__(self, flags: int, /) -> memoryview:
        """The buffer protocol, from Python 3.12; before, and always portable: :attr:`view`."""
        return self.view


class RegionView(_Sliceable):
    """A part of a :class:`MemoryRegion`; made by slicing.

    Attributes:
        region: The region.
        offset: Offset of the first byte in the region.
    """

    __slots__ = ("offset", "region")

    def __init__(self, region: MemoryRegion, offset: int, length: int) -> None:
        super().__init__(region.pointer + offset, length, region.handle)
        self.region: MemoryRegion = region
        self.offset: int = offset

    @property
    def _where(self) -> tuple[MemoryRegion, int]:
        return self.region, self.offset

    @property
    def address(self) -> int:
        """The first byte's address as a number."""
        return self.region.address + self.offset

    def __repr__(self) -> str:
        """For people."""
        return f"<exs.RegionView [{self.offset}:{self.offset + self.length}] of {self.region!r}>"


class Split(Sequence[RegionView]):
    """Equal pieces of a region, made on demand; see ``MemoryRegion.split()``.

    Attributes:
        region: The region.
        nbytes: Bytes of each piece but perhaps the last.
    """

    __slots__ = ("_length", "_offset", "nbytes", "region")

    def __init__(self, region: MemoryRegion, offset: int, length: int, nbytes: int) -> None:
        self.region: MemoryRegion = region
        self.nbytes: int = nbytes
        self._offset = offset
        self._length = length

    def __len__(self) -> int:
        """How many pieces."""
        return -(-self._length // self.nbytes)

    @overload
    def __getitem__(self, index: int) -> RegionView: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RegionView]: ...
    def __getitem__(self, index: int | slice) -> RegionView | Sequence[RegionView]:
        """A piece, or some of them."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return [self[i] for i in range(start, stop, step)]
            first = min(start * self.nbytes, self._length)
            last = min(max(stop, start) * self.nbytes, self._length)
            return Split(self.region, self._offset + first, last - first, self.nbytes)
        count = len(self)
        if not -count <= index < count:
            raise IndexError("no such piece")
        start = (index % count) * self.nbytes
        return RegionView(self.region, self._offset + start, min(self.nbytes, self._length - start))

    def span(self, start: int, stop: int) -> RegionView:
        """Pieces ``start`` up to ``stop`` as one view, for a call that cuts it itself."""
        first = start * self.nbytes
        return RegionView(self.region, self._offset + first, min(stop * self.nbytes, self._length) - first)

    def pieces(self, start: int, stop: int) -> _native.Pieces:
        """Pieces ``start`` up to ``stop`` as one vector for the core."""
        count = stop - start
        address = self.region.address + self._offset + start * self.nbytes
        last = self._length - (stop - 1) * self.nbytes
        return _native.Pieces.equal(
            address, self.nbytes, count, self.region.handle, last if last < self.nbytes else None
        )


class MemoryRegion(_Sliceable, Closing):
    """Memory registered once, for any number of transfers.

    A context manager: ``with`` closes (and so fails while operations are in flight), ``async with`` waits for them.

    Args:
        buffer: Any contiguous buffer; ``bytes`` and other read-only ones for ``Access.READ`` only.
        access: What it may be used for.

    Raises:
        BufferError: The buffer is not contiguous.
        ValueError: It is read-only and ``access`` has ``WRITE``, or it is empty.
        exs.Error: ``ENOMEM``: over the limit of locked memory.

    *Source:* ES-API, ``exs_mregister``.
    """

    __slots__ = ("__weakref__", "_address", "_ctx", "_is_open", "_memory", "_read_only", "access")

    access: Access
    """What it may be used for."""

    def __init__(self, buffer: Buffer, access: Access = _BOTH) -> None:
        if isinstance(buffer, _native.Span):
            raise TypeError("this is a region, or part of one, already")
        span = _native.writable(buffer) if access & Access.WRITE else _native.readable(buffer)
        if not span.length:
            raise ValueError("a region has at least one byte")
        ctx = _native.context()
        handle = ctx.mem_register(span.pointer, span.length, int(access))
        self._set(ctx, span, handle, access, memoryview(buffer).readonly)

    @classmethod
    def allocate(cls, nbytes: int, *, access: Access = _BOTH, huge_pages: bool = False) -> Self:
        """A region of new memory, page-aligned and filled with zeros.

        It is backed by a memory file of its own, so a peer on the same host can be given it to read, and nothing has to
        be asked of the kernel for each transfer.

        Args:
            nbytes: Bytes.
            access: What it may be used for.
            huge_pages: Use huge pages where the system has some to give.

        Raises:
            ValueError: ``nbytes`` is not positive.
            exs.Error: ``ENOMEM``: not enough memory, or over the limit of locked memory.
        """
        if nbytes <= 0:
            raise ValueError("a region has at least one byte")
        ctx = _native.context()
        handle, pointer = ctx.mem_allocate(nbytes, int(access) | (_native.MR_HUGE if huge_pages else 0))
        self = cls.__new__(cls)
        self._set(ctx, _native.Span(pointer, nbytes), handle, access, read_only=False)
        return self

    def _set(self, ctx: _native.Context, span: _native.Span, handle: int, access: Access, read_only: bool) -> None:
        _native.Span.__init__(self, span.pointer, span.length, handle)
        self._address = span.address
        self.access = access
        self._ctx = ctx
        self._memory: _native.CData | None = span.pointer  # holds the export, or the mapping
        self._read_only = read_only
        self._is_open = True

    @property
    def _where(self) -> tuple[MemoryRegion, int]:
        return self, 0

    def _bytes(self) -> memoryview:
        memory = self._memory
        if memory is None or not self._is_open:
            raise Error(errno.EBADF, "the memory region is closed")
        return _native.view(memory, self.length, self._read_only)

    @property
    def address(self) -> int:
        """The first byte's address as a number."""
        return self._address

    @property
    def in_use(self) -> int:
        """Operations in flight that use it."""
        return self._ctx.mem_in_use(self.handle)

    @property
    def closed(self) -> bool:
        """Whether it was closed; operations in flight may still be using the memory after a cancelled ``aclose``."""
        return not self._is_open

    @protected
    def close(self) -> None:
        """End the registration; nothing if it has ended.

        Raises:
            BusyError: Operations in flight use it; nothing happened.
        """
        if self._is_open:
            self._ctx.mem_close(self.handle)
            self._is_open = False
            self._release()

    @protected
    def close_when_idle(self) -> None:
        """Refuse new operations; the registration, and our hold on the memory, end with the last one in flight."""
        if self._is_open:
            self._is_open = False
            self._ctx.mem_close_later(self.handle)

    @protected
    async def aclose(self) -> None:
        """Refuse new operations, wait for those in flight, end the registration.

        *Cancellation:* the region is closed for new operations and ends with the last one in flight; until then the
        memory stays valid and belongs to the library.  Another ``aclose`` waits for that.
        """
        self.close_when_idle()
        if self._memory is not None:
            if self.in_use:
                await self._idle()
            self._release()
        await trio.lowlevel.checkpoint()

    async def _idle(self) -> None:
        """Wait until nothing uses it: told by whoever takes events out of a queue."""
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def look() -> None:
            if not self.in_use:
                try:
                    token.run_sync_soon(done.set)
                except trio.RunFinishedError:
                    pass

        _native.watchers.append(look)
        try:
            while self.in_use:
                # An operation may also end where nobody dequeues its event, hence the bound.
                with trio.move_on_after(0.1):
                    await done.wait()
        finally:
            _native.watchers.remove(look)

    def _release(self) -> None:
        self._memory = None
        self.pointer: _native.CData = _native.NULL

    def __repr__(self) -> str:
        """For people."""
        state = "" if self._is_open else " closed"
        return f"<exs.MemoryRegion {self.length} bytes{state}>"

    def __del__(self) -> None:
        """A forgotten region: warn, and let the core end it with its last operation."""
        if getattr(self, "_is_open", False):
            self._is_open = False
            self._ctx.mem_close_later(self.handle)
            warnings.warn(f"a memory region of {self.length} bytes was never closed", ResourceWarning, stacklevel=2)


async def register(buffer: Buffer, access: Access = _BOTH) -> MemoryRegion:
    """Register memory without holding up the event loop: on a worker thread, where a device pins pages.

    Args:
        buffer: Any contiguous buffer; read-only ones for ``Access.READ`` only.
        access: What it may be used for.

    Returns:
        The region.

    Raises:
        BufferError: The buffer is not contiguous.
        ValueError: It is read-only and ``access`` has ``WRITE``, or it is empty.
        exs.Error: ``ENOMEM``: over the limit of locked memory.

    *Cancellation:* a registration that has begun is finished and undone; nothing is left.
    """
    await trio.lowlevel.checkpoint()
    if not _native.context().pins_memory():
        return MemoryRegion(buffer, access)
    region = await trio.to_thread.run_sync(MemoryRegion, buffer, access)
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        region.close()
        raise
    return region
