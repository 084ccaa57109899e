# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a transfer did, as a value: for the exit code, the closing lines and ``--json``."""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass, field

from exs.cli.transfer.paths import printable
from exs.cli.transfer.protocol import TransferError

EXIT_OK = 0
EXIT_SOME_FAILED = 1
EXIT_USAGE = 2
EXIT_CONNECTION = 3


def error_record(error: TransferError) -> dict[str, object]:
    """An error for JSON: number, symbol and words."""
    return {
        "errno": error.errno,
        "code": errno.errorcode.get(error.errno, str(error.errno)),
        "reason": error.reason,
    }


@dataclass(slots=True)
class Summary:
    """Collects what happened.

    Attributes:
        nbytes: Contents of the files that arrived whole.
        failed: Paths and what happened to them.
        skipped: Paths that were left out, and why: symbolic links and special files.
        connection_error: Why there was no (more) connection.
    """

    command: str
    files: int = 0
    directories: int = 0
    nbytes: int = 0
    failed: list[tuple[bytes, TransferError]] = field(default_factory=list[tuple[bytes, TransferError]])
    skipped: list[tuple[bytes, str]] = field(default_factory=list[tuple[bytes, str]])
    connection_error: TransferError | None = None
    device: str = ""
    path: str = ""
    digest: str = ""
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0

    def finish(self) -> None:
        """Stops the clock."""
        self.seconds = time.perf_counter() - self.began

    @property
    def exit_code(self) -> int:
        """As documented for the commands."""
        if self.connection_error is not None:
            return EXIT_CONNECTION
        return EXIT_SOME_FAILED if self.failed else EXIT_OK

    def record(self) -> dict[str, object]:
        """All of it for JSON."""
        return {
            "command": self.command,
            "files": self.files,
            "directories": self.directories,
            "bytes": self.nbytes,
            "seconds": round(self.seconds, 6),
            "device": self.device,
            "path": self.path,
            "digest": self.digest,
            "failed": [{"path": printable(p), **error_record(e)} for p, e in self.failed],
            "skipped": [{"path": printable(p), "reason": r} for p, r in self.skipped],
            "connection_error": error_record(self.connection_error) if self.connection_error else None,
            "exit_code": self.exit_code,
        }

    def lines(self) -> list[str]:
        """The closing lines for people; errors first."""
        out = [f"skipped {printable(p)}: {r}" for p, r in self.skipped]
        out += [f"failed  {printable(p)}: {e.reason}" for p, e in self.failed]
        if self.connection_error is not None:
            out.append(f"connection: {self.connection_error.reason}")
        rate = self.nbytes / self.seconds / 2**20 if self.seconds else 0.0
        way = f"{self.device}, {self.path}" if self.path else self.device
        out.append(
            f"{self.files} files, {size_text(self.nbytes)} in {self.seconds:.2f} s, {rate:,.0f} MiB/s"
            + (f" ({way}, {self.digest})" if self.device else "")
            + (f"; {len(self.failed)} failed" if self.failed else "")
        )
        return out


def size_text(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
