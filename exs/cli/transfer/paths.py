# SPDX-License-Identifier: MIT OR Apache-2.0
"""Files below one directory, reached so that nothing outside of it can ever be touched.

A path from a peer is checked as bytes, then walked component by component with ``openat`` and ``O_NOFOLLOW``
from the descriptor of the root: neither ``..`` nor a symbolic link, also one that appears while we walk, leads
out.  New contents go to a temporary name in the target's own directory and replace the target in one step.

Knows nothing of connections; every call may block on the disk and belongs on a worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exs.cli.transfer.protocol import MAX_PATH, Entry, Kind, TransferError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

MAX_NAME = 255
MAX_DEPTH = 128
TEMPORARY = re.compile(rb"\.exs-[0-9a-f]{16}\.part")
"""The names of files that are being received; see ``Temporary``."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def split_path(path: bytes) -> tuple[bytes, ...]:
    """The components of a path that a peer sent; an empty tuple is the root itself (``.``).

    Raises:
        TransferError: ``EINVAL`` for absolute paths, ``..``, empty components and NUL; ``ENAMETOOLONG``.
    """
    if path in (b"", b"."):
        return ()
    if len(path) > MAX_PATH:
        raise TransferError(errno.ENAMETOOLONG, "the path is too long")
    if b"\0" in path:
        raise TransferError(errno.EINVAL, "the path holds a NUL byte")
    if path.startswith(b"/"):
        raise TransferError(errno.EINVAL, "the path is absolute")
    parts = tuple(path.split(b"/"))
    if len(parts) > MAX_DEPTH:
        raise TransferError(errno.ENAMETOOLONG, "the path has too many components")
    for part in parts:
        if part in (b"", b".", b".."):
            raise TransferError(errno.EINVAL, "the path has an empty component, '.' or '..'")
        if len(part) > MAX_NAME:
            raise TransferError(errno.ENAMETOOLONG, "a component of the path is too long")
    return parts


def printable(path: bytes) -> str:
    """A peer's path for a terminal: control characters, which could move its cursor, are escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def current_umask() -> int:
    """The process's file creation mask, read without setting it, which would race with other threads."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022


def write_all(fd: int, data: memoryview) -> None:
    """``write`` until everything is written."""
    while data:
        data = data[os.write(fd, data) :]


def _not_a_directory(error: OSError) -> TransferError:
    # O_NOFOLLOW with O_DIRECTORY reports a symbolic link as "not a directory" on some systems.
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return TransferError(error.errno, "a component of the path is a symbolic link or no directory")
    return TransferError.of(error)


@dataclass(slots=True)
class OpenFile:
    """A file that is open for reading; the caller closes ``fd``."""

    fd: int
    size: int
    mode: int
    mtime_ns: int

    def check_unchanged(self) -> None:
        """Compares the file with what it was when it was opened.

        Raises:
            TransferError: ``ESTALE``, it was written to or cut in the meantime.
        """
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise TransferError(errno.ESTALE, "the file changed while it was being sent")


def lock(fd: int) -> bool | None:
    """Whether we hold the file's lock now; ``None`` where the file system has none.

    The kernel lets go of it when the last descriptor goes, however the process ends: so a file that nobody holds
    belongs to nobody.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


class Temporary:
    """A file being received: written under a temporary name, then ``commit`` or ``discard``, once.

    It is locked while it is open, which tells it from one that a killed process left (``leftovers``).
    """

    def __init__(self, parent: int, name: bytes, mode: int) -> None:
        self._parent = os.dup(parent)
        self._name = name
        self._mode = mode
        try:
            while not self._create():
                pass
        except BaseException:
            os.close(self._parent)
            raise

    def _create(self) -> bool:
        """Make the file and lock it; false if somebody who clears up was in between and took it for a leftover."""
        self._temporary = b".exs-" + secrets.token_hex(8).encode() + b".part"
        self.fd: int = os.open(self._temporary, _CREATE, 0o600, dir_fd=self._parent)
        if lock(self.fd) is not False and os.fstat(self.fd).st_nlink > 0:
            return True
        os.close(self.fd)
        return False

    def commit(self) -> None:
        """Gives the file its mode and its name; what had the name before is replaced in one step."""
        try:
            os.fchmod(self.fd, self._mode)
            os.replace(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        except BaseException:
            self.discard()
            raise
        self._close()

    def discard(self) -> None:
        """Takes the file away, as if it had never been."""
        with contextlib.suppress(OSError):
            os.unlink(self._temporary, dir_fd=self._parent)
        self._close()

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            os.close(self._parent)
            self.fd = -1


class Root:
    """A directory, held by a descriptor, and what may be done below it.

    Args:
        path: The directory; symbolic links in this path itself are the user's own and are followed.

    Raises:
        OSError: It cannot be opened or is no directory.
    """

    def __init__(self, path: bytes | str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._umask = current_umask()

    def close(self) -> None:
        """Closes the descriptor; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def free_bytes(self) -> int:
        """What the file system says is free for us."""
        facts = os.fstatvfs(self._fd)
        return facts.f_bavail * facts.f_frsize

    @contextlib.contextmanager
    def directory(self, parts: tuple[bytes, ...], *, create: bool = False) -> Generator[int]:
        """A descriptor of the directory ``parts``, valid within the block.

        Args:
            parts: From ``split_path``.
            create: Make what is missing on the way.

        Raises:
            TransferError: A component is missing, a symbolic link, or no directory.
        """
        fd = os.dup(self._fd)
        try:
            for part in parts:
                fd, old = self._step(fd, part, create=create), fd
                os.close(old)
            yield fd
        finally:
            os.close(fd)

    @staticmethod
    def _step(fd: int, part: bytes, *, create: bool) -> int:
        try:
            return os.open(part, _DIRECTORY, dir_fd=fd)
        except FileNotFoundError as error:
            if not create:
                raise TransferError.of(error) from None
        except OSError as error:
            raise _not_a_directory(error) from None
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o777, dir_fd=fd)
            return os.open(part, _DIRECTORY, dir_fd=fd)
        except OSError as error:
            raise _not_a_directory(error) from None

    def create(self, parts: tuple[bytes, ...], mode: int) -> Temporary:
        """Begins to receive the file ``parts``; missing directories are made.

        Raises:
            TransferError: See ``directory``; also when the target is a directory or the root.
        """
        with self.directory(parts[:-1], create=True) as parent:
            return self.create_in(parent, parts, mode)

    def create_in(self, parent: int, parts: tuple[bytes, ...], mode: int) -> Temporary:
        """``create`` where the parent directory is already open."""
        if not parts:
            raise TransferError(errno.EISDIR, "the path names the served directory itself")
        try:
            return Temporary(parent, parts[-1], mode & 0o777 & ~self._umask)
        except OSError as error:
            raise TransferError.of(error) from None

    def make_directory(self, parts: tuple[bytes, ...], mode: int) -> None:
        """Makes a directory, if it is missing, and gives it its mode."""
        with self.directory(parts, create=True) as fd:
            if parts:
                try:
                    os.fchmod(fd, mode & 0o777 & ~self._umask)
                except OSError as error:
                    raise TransferError.of(error) from None

    def open(self, parts: tuple[bytes, ...]) -> OpenFile:
        """Opens a regular file for reading.

        Raises:
            TransferError: Missing, unreadable, a symbolic link, or not a regular file.
        """
        if not parts:
            raise TransferError(errno.EISDIR, "the path names a directory")
        with self.directory(parts[:-1]) as parent:
            try:
                fd = os.open(parts[-1], _READ, dir_fd=parent)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise TransferError(errno.ELOOP, "symbolic links are not followed") from None
                raise TransferError.of(error) from None
        return checked(fd)

    def list(self, parts: tuple[bytes, ...]) -> Iterator[Entry]:
        """Everything at and below ``parts``: a directory comes before what it holds.

        Symbolic links and special files come as ``Kind.SKIPPED`` with a reason, unreadable directories too.

        Raises:
            TransferError: ``parts`` itself is missing, a symbolic link or a special file.
        """
        if parts:
            with self.directory(parts[:-1]) as parent:
                try:
                    facts = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
                except OSError as error:
                    raise TransferError.of(error) from None
            entry = describe(parts, facts)
            if entry.kind == Kind.SKIPPED:
                raise TransferError(errno.ELOOP if stat.S_ISLNK(facts.st_mode) else errno.EINVAL, entry.reason)
            if entry.kind == Kind.FILE:
                yield entry
                return
        yield from self._list_directory(parts)

    def _list_directory(self, top: tuple[bytes, ...]) -> Iterator[Entry]:
        # Own stack, not recursion: a deep tree must not end in RecursionError or hold a descriptor per level.
        stack = [top]
        while stack:
            parts = stack.pop()
            try:
                with self.directory(parts) as fd:
                    yield Entry(0, Kind.DIRECTORY, b"/".join(parts), mode=os.fstat(fd).st_mode & 0o777)
                    found = [(os.fsencode(e.name), e.stat(follow_symlinks=False)) for e in sorted_scan(fd)]
            except TransferError as error:
                yield Entry(0, Kind.SKIPPED, b"/".join(parts), reason=error.reason)
                continue
            except OSError as error:
                yield Entry(0, Kind.SKIPPED, b"/".join(parts), reason=error.strerror or str(error))
                continue
            for name, facts in found:
                if stat.S_ISDIR(facts.st_mode):
                    stack.append((*parts, name))
                elif not TEMPORARY.fullmatch(name):
                    yield describe((*parts, name), facts)


def sorted_scan(fd: int) -> list[os.DirEntry[str]]:
    """The entries of an open directory, by name, so that two runs do the same in the same order."""
    with os.scandir(fd) as entries:
        return sorted(entries, key=lambda e: e.name)


def describe(parts: tuple[bytes, ...], facts: os.stat_result) -> Entry:
    """The entry of one name, by its own mode (links are not followed)."""
    path = b"/".join(parts)
    if stat.S_ISREG(facts.st_mode):
        return Entry(0, Kind.FILE, path, facts.st_size, facts.st_mode & 0o777)
    if stat.S_ISDIR(facts.st_mode):
        return Entry(0, Kind.DIRECTORY, path, 0, facts.st_mode & 0o777)
    what = "symbolic links are not followed" if stat.S_ISLNK(facts.st_mode) else "not a regular file"
    return Entry(0, Kind.SKIPPED, path, reason=what)


def checked(fd: int) -> OpenFile:
    """What an open descriptor is; closes it if it is no regular file.

    Raises:
        TransferError: ``EINVAL``.
    """
    facts = os.fstat(fd)
    if not stat.S_ISREG(facts.st_mode):
        os.close(fd)
        raise TransferError(errno.EISDIR if stat.S_ISDIR(facts.st_mode) else errno.EINVAL, "not a regular file")
    return OpenFile(fd, facts.st_size, facts.st_mode & 0o777, facts.st_mtime_ns)
