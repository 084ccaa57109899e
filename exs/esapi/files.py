# SPDX-License-Identifier: MIT OR Apache-2.0
"""Parts of files as memory to send from: mapped where large, read where small."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import TYPE_CHECKING

from exs import _native
from exs.errors import from_errno

if TYPE_CHECKING:
    from exs._native import Span
    from exs.events import FilePart

_MAP_FROM = 64 * 1024  # bytes of a piece of a file from which it is mapped; reading a smaller one is quicker


def file_span(part: FilePart) -> Span:
    """A part of a file as memory: mapped, or read where it is small or cannot be mapped."""
    if part.offset < 0 or (part.length is not None and part.length < 0):
        raise from_errno(errno.EINVAL)
    try:
        info = os.fstat(part.file)
        if not stat.S_ISREG(info.st_mode) and part.length is None:
            raise from_errno(errno.EINVAL, "the length of a part must be given where the file has none")
        rest = max(info.st_size - part.offset, 0)
        length = rest if part.length is None else part.length
        if stat.S_ISREG(info.st_mode):
            length = min(length, rest)
            if length >= _MAP_FROM:
                start = part.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
                skip = part.offset - start
                mapped = mmap.mmap(part.file, length + skip, access=mmap.ACCESS_READ, offset=start)
                return _native.readable(memoryview(mapped)[skip:])
        return _native.readable(_read(part.file, part.offset, length))
    except OSError as problem:
        raise from_errno(problem.errno or errno.EIO) from problem


def _read(file: int, offset: int, length: int) -> bytearray:
    """Bytes of a file without moving its offset; fewer at its end."""
    data = bytearray(length)
    view = memoryview(data)
    done = 0
    while done < length:
        count = os.preadv(file, [view[done:]], offset + done)
        if not count:
            break
        done += count
    view.release()
    del data[done:]
    return data
