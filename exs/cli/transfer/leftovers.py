# SPDX-License-Identifier: MIT OR Apache-2.0
"""Files that were being received when their process was killed.

Whoever receives a file holds its lock (``paths.Temporary``), and the kernel lets go of it when the process ends in any
way.  So a temporary file whose lock can be had is nobody's, on whatever host and after whatever boot it was left.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exs.cli.transfer.paths import TEMPORARY, Root, lock, sorted_scan
from exs.cli.transfer.protocol import TransferError

if TYPE_CHECKING:
    from collections.abc import Iterator

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that was removed."""

    path: bytes
    size: int


def clear(root: Root) -> Iterator[list[Leftover]]:
    """Removes the leftovers below a directory, one directory at a time; each step blocks on the disk.

    What cannot be looked at, is another user's, or is on a file system without locks stays.

    Args:
        root: The directory; symbolic links below it are not followed.

    Yields:
        What was removed from each directory.
    """
    stack: list[tuple[bytes, ...]] = [()]
    while stack:
        parts = stack.pop()
        found: list[Leftover] = []
        with contextlib.suppress(TransferError, OSError), root.directory(parts) as fd:
            for entry in sorted_scan(fd):
                name = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    stack.append((*parts, name))
                elif TEMPORARY.fullmatch(name) and (size := _remove(fd, name)) is not None:
                    found.append(Leftover(b"/".join((*parts, name)), size))
        yield found


def _remove(parent: int, name: bytes) -> int | None:
    """The bytes that it had; ``None`` if it is somebody's, or no such file."""
    try:
        fd = os.open(name, _OPEN, dir_fd=parent)
    except OSError:
        return None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.geteuid() or not lock(fd):
            return None
        os.unlink(name, dir_fd=parent)
    except OSError:
        return None
    else:
        return facts.st_size
    finally:
        os.close(fd)
