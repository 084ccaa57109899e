# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a Python buffer to an address: spans, and the vectors of them that one call names.

Owns the export of the buffer, and the judgement whether its memory may vanish under a reader (:func:`fragile`).

Invariant: as long as a :class:`Span` lives its memory stays where it is, mapped and of that length, a shortened
file excepted; a :class:`Pieces` keeps nothing alive, its spans' owner does.
"""

from __future__ import annotations

import array
import mmap
import struct
from typing import TYPE_CHECKING, Self

from exs._exs import ffi
from exs._native.constants import FRAGILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from exs._exs import CData


class Span:
    """A range of memory that a call may name, and what keeps it alive: as long as the span lives, so does the memory.

    Attributes:
        pointer: First byte.
        length: Bytes.
        handle: Handle of the registered region that contains it, or 0.
        flags: ``FRAGILE`` where the memory may be a mapped file, else 0.
    """

    __slots__ = ("flags", "handle", "length", "pointer")

    def __init__(self, pointer: CData, length: int, handle: int = 0, flags: int = 0) -> None:
        self.pointer: CData = pointer
        self.length: int = length
        self.handle: int = handle
        self.flags: int = flags

    @property
    def address(self) -> int:
        """The first byte's address as a number."""
        return int(ffi.cast("uintptr_t", self.pointer))


def readable(buffer: Buffer | Span) -> Span:
    """The span of a buffer to send from; holds the buffer's export.

    Raises:
        BufferError: The buffer is not contiguous.
        TypeError: It is no buffer.
    """
    return buffer if isinstance(buffer, Span) else _export(buffer, write=False)


def writable(buffer: Buffer | Span) -> Span:
    """The span of a buffer to receive into; holds the buffer's export.

    Raises:
        BufferError: The buffer is not contiguous.
        TypeError: It is no buffer.
        ValueError: It is read-only.
    """
    return buffer if isinstance(buffer, Span) else _export(buffer, write=True)


def registered(buffer: Buffer, handle: int, write: bool) -> Span:
    """As :func:`readable` or :func:`writable`, where the memory lies in a region; the core knows the region's nature.

    For every single transfer, so without a question that has been answered.
    """
    if isinstance(buffer, Span):
        return Span(buffer.pointer, buffer.length, handle)
    pointer = _pointer(buffer, write)
    return Span(pointer, len(pointer), handle)


def _export(buffer: Buffer, *, write: bool) -> Span:
    pointer = _pointer(buffer, write)
    return Span(pointer, len(pointer), 0, fragile(buffer))


def _pointer(buffer: Buffer, write: bool) -> CData:
    try:
        return ffi.from_buffer("char[]", buffer, write)
    except (BufferError, ValueError):  # exporters disagree on which of the two it is
        view = memoryview(buffer)
        if not view.c_contiguous:
            raise BufferError("the buffer is not contiguous") from None
        if write and view.readonly:
            raise ValueError("the buffer is read-only; receiving needs a writable one") from None
        raise


_PLAIN = frozenset({bytes, bytearray, array.array})


def fragile(buffer: object) -> int:
    """``FRAGILE`` if the memory belongs to an ``mmap``, else 0.

    A mapped file may be shortened by anybody at any moment; touching it then is SIGBUS.  Only system calls may, and
    they answer EFAULT.
    """
    for _ in range(16):
        if type(buffer) in _PLAIN:
            return 0
        if isinstance(buffer, mmap.mmap):
            return FRAGILE
        # numpy's arrays and most others say whose memory they show in .base
        buffer = buffer.obj if isinstance(buffer, memoryview) else getattr(buffer, "base", None)
        if buffer is None:
            return 0
    return FRAGILE


class Pieces:
    """A vector of buffers for one call; the memory is kept alive by the spans' owner, not by this."""

    __slots__ = ("_words", "count", "flags", "pointer")

    def __init__(self, words: array.array[int], flags: int = 0) -> None:
        self._words = words  # base, length, handle of each: struct exsi_piece
        self.count: int = len(words) // 3
        self.flags: int = flags
        self.pointer: CData = ffi.cast("exsi_piece *", ffi.from_buffer("char[]", words))

    @classmethod
    def of(cls, spans: Sequence[Span]) -> Self:
        """The pieces for some spans, in order."""
        words = array.array("Q")
        flags = 0
        for span in spans:
            words.extend((span.address, span.length, span.handle))
            flags |= span.flags
        return cls(words, flags)

    @staticmethod
    def line(span: Span) -> bytes:
        """One span's line of a vector, for :meth:`joined`."""
        return struct.pack("=QQQ", span.address, span.length, span.handle)

    @classmethod
    def joined(cls, lines: Sequence[bytes]) -> Self:
        """The pieces for lines made before: for spans that are posted again and again."""
        words = array.array("Q")
        words.frombytes(b"".join(lines))
        return cls(words)

    @classmethod
    def equal(cls, address: int, nbytes: int, count: int, handle: int, last: int | None = None) -> Self:
        """Pieces of ``nbytes`` one behind the other, as from ``MemoryRegion.split()``; made without a loop.

        Args:
            address: First byte of the first.
            nbytes: Bytes of each.
            count: How many.
            handle: Handle of the region.
            last: Bytes of the last one, where it is shorter.
        """
        words = array.array("Q", bytes(24 * count))
        words[0::3] = array.array("Q", range(address, address + nbytes * count, nbytes or 1)[:count])
        words[1::3] = array.array("Q", [nbytes]) * count
        words[2::3] = array.array("Q", [handle]) * count
        if last is not None and count:
            words[-2] = last
        return cls(words)


def view(pointer: CData, length: int, read_only: bool) -> memoryview:
    """The bytes behind a pointer that owns them; the view keeps the pointer, and so the memory, alive."""
    flat = memoryview(ffi.buffer(pointer, length))
    return flat.toreadonly() if read_only else flat
