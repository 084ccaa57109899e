# SPDX-License-Identifier: MIT OR Apache-2.0
"""Progress bars: with rich, on a terminal, and nowhere else."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from types import TracebackType

    import rich.progress


class Progress(Protocol):
    """What a transfer tells while it runs."""

    def total(self, files: int, nbytes: int) -> None:
        """There is that much to do."""

    def advance(self, nbytes: int) -> None:
        """That many bytes were accepted or written."""

    def file_done(self) -> None:
        """One more file has arrived."""

    def __enter__(self) -> Self:
        """Begins to show."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends; the last state stays on the screen."""


class Silent:
    """Shows nothing."""

    def total(self, files: int, nbytes: int) -> None:
        """Ignored."""

    def advance(self, nbytes: int) -> None:
        """Ignored."""

    def file_done(self) -> None:
        """Ignored."""

    def __enter__(self) -> Self:
        """Nothing to begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to end."""


class Bar:
    """One line on standard error: files, bytes, rate, what is left."""

    def __init__(self, title: str) -> None:
        from rich import progress
        from rich.console import Console

        # rich itself honours NO_COLOR: the bar is then drawn without colours.
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[done]}/{task.fields[files]} files"),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._files_done = 0
        self._task: rich.progress.TaskID = self._bar.add_task(title, total=None, done=0, files=0)

    def total(self, files: int, nbytes: int) -> None:
        """There is that much to do."""
        self._bar.update(self._task, total=nbytes, files=files)

    def advance(self, nbytes: int) -> None:
        """That many bytes were accepted or written."""
        self._bar.advance(self._task, nbytes)

    def file_done(self) -> None:
        """One more file has arrived."""
        self._files_done += 1
        self._bar.update(self._task, done=self._files_done)

    def __enter__(self) -> Self:
        """Begins to show."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends; the last state stays on the screen."""
        self._bar.stop()


def make_progress(title: str, *, wanted: bool) -> Progress:
    """A bar where one makes sense, else silence.

    Args:
        title: Stands before the bar.
        wanted: False, for instance, with ``--json``.
    """
    if wanted and sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        return Bar(title)
    return Silent()
