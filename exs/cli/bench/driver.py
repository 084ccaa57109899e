# SPDX-License-Identifier: MIT OR Apache-2.0
"""Starts pairs of processes and measures them in interleaved rounds.

All pairs live through all rounds, so that every figure of a round was taken within seconds of the others: the
speed of a small virtual machine changes by a third from one minute to the next, the ratios much less.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from exs.cli.bench.peers import Config

START_SECONDS = 20.0
OPERATION_SECONDS = 60.0


class PairError(Exception):
    """A pair could not be started, or broke down; the text says what its processes said."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing to measure.

    Attributes:
        operation: ``throughput`` or ``roundtrip``.
        size: Bytes of a message.
        depth: Operations in flight.
    """

    operation: str
    size: int
    depth: int = 16

    @property
    def warm_count(self) -> int:
        """Messages of the first, untimed run."""
        if self.operation == "roundtrip":
            return 200
        return max(4, min(2000, (32 << 20) // self.size))


@dataclass(slots=True)
class Figures:
    """What one run of one measurement gave.

    Attributes:
        mib_per_s: Payload throughput.
        per_s: Messages a second.
        cpu_per_gib: Seconds of CPU of both sides for a GiB.
        cpu_us: Microseconds of CPU of both sides for a message (or round trip).
        p50: Median round trip in microseconds.
        p99: Its 99th percentile.
    """

    mib_per_s: float = 0.0
    per_s: float = 0.0
    cpu_per_gib: float = 0.0
    cpu_us: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


class Side:
    """One process of a pair, a child of this one.

    Args:
        command: What it runs.
        cores: Cores for it; ``None`` for all.
        fds: Descriptors that it inherits.
    """

    def __init__(self, command: Sequence[str], cores: set[int] | None, fds: Sequence[int]) -> None:
        def pin() -> None:
            if cores:
                os.sched_setaffinity(0, cores)

        # The very package that runs here, whatever lies in the current directory.
        home = str(Path(__file__).resolve().parents[3])
        self._process = subprocess.Popen(  # noqa: S603  a command of ours
            command,
            env={**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": home},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=pin,
            pass_fds=fds,
        )
        assert self._process.stdout is not None
        self._out: IO[bytes] = self._process.stdout
        self._buffer = b""
        self._words = ""

    def read(self, seconds: float) -> Config:
        """The next JSON line.

        Raises:
            PairError: None came, or it is gone; the text is its last words.
        """
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    raise PairError(f"no answer within {seconds:.0f} s")
                data = os.read(self._out.fileno(), 65536)
                if not data:
                    raise PairError(self.last_words())
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: Config = json.loads(line)
        return found

    def last_words(self) -> str:
        """The last line of its standard error; if it does not end soon, that it runs."""
        assert self._process.stderr is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
        os.set_blocking(self._process.stderr.fileno(), False)
        text = (self._process.stderr.read() or b"").decode("utf-8", "replace").strip()
        if text:
            self._words = text.splitlines()[-1]
        code = self._process.poll()
        return self._words or ("still runs" if code is None else f"ended with code {code}")

    def write(self, line: str) -> None:
        """Gives it a command.

        Raises:
            PairError: It is gone; the text is its last words.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise PairError(self.last_words()) from None

    def close(self) -> None:
        """Asks it to end."""
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def end(self) -> None:
        """Waits for its end, for a while."""
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
        assert self._process.stderr is not None
        self._process.stderr.close()


@dataclass(frozen=True, slots=True)
class PairSpec:
    """What to start.

    Attributes:
        label: How the report calls it.
        peer: Name of the peer.
        config: For it.
        command: Instead of Python: a program that takes ``listen`` or ``connect ADDRESS``.
        cores: Cores for both processes; empty for all.
        eventfds: How many eventfds both inherit; their numbers are the configuration's ``eventfds``.
    """

    label: str
    peer: str = ""
    config: Config = field(default_factory=dict[str, Any])  # Any: as Config
    command: tuple[str, ...] = ()
    cores: frozenset[int] = frozenset()
    eventfds: int = 0


class Pair:
    """Two processes, connected; see ``open_pair``."""

    def __init__(self, spec: PairSpec, listener: Side, connector: Side, facts: Config) -> None:
        self.spec = spec
        self.facts = facts
        self._listener = listener
        self._connector = connector
        self._counts: dict[Measurement, int] = {}

    def run(self, what: Measurement, count: int) -> Figures:
        """Runs one measurement with a fixed count.

        Raises:
            PairError: It broke down; the text has the last words of both, since one only sees what the other did.
        """
        try:
            return self._run(what, count)
        except PairError as error:
            sides = f"listener: {self._listener.last_words()}; connector: {self._connector.last_words()}"
            raise PairError(f"{what.operation} of {what.size} bytes: {error} ({sides})") from None

    def _run(self, what: Measurement, count: int) -> Figures:
        command = f"{what.operation} {what.size} {count} {what.depth}"
        self._listener.write(command)
        self._listener.read(OPERATION_SECONDS)
        self._connector.write(command)
        ours = self._connector.read(OPERATION_SECONDS)
        theirs = self._listener.read(OPERATION_SECONDS)
        seconds, cpu = ours["seconds"], ours["cpu"] + theirs["cpu"]
        gib = what.size * count / 2**30
        return Figures(
            gib * 1024 / seconds,
            count / seconds,
            cpu / gib,
            cpu * 1e6 / count,
            ours.get("p50", 0.0),
            ours.get("p99", 0.0),
        )

    def measure(self, what: Measurement, seconds: float) -> Figures:
        """Runs one measurement for about that long; the first time after a warm-up."""
        if what not in self._counts:
            warm = self.run(what, what.warm_count)
            # The second guess: the first run also paid for fresh memory.
            again = self.run(what, max(what.warm_count, int(warm.per_s * seconds / 4) + 1))
            self._counts[what] = max(4, int(again.per_s * seconds) + 1)
        return self.run(what, self._counts[what])

    def close(self) -> None:
        """Ends both processes."""
        self._connector.close()
        self._listener.close()
        self._connector.end()
        self._listener.end()


def open_pair(spec: PairSpec) -> Pair:
    """Starts a pair.

    Raises:
        PairError: One of the two did not come up; the text is the last line that it wrote on standard error.
    """
    config: Config = dict(spec.config)
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(spec.eventfds)]
    if fds:
        config["eventfds"] = fds
    base = spec.command or (sys.executable, "-m", "exs.cli.bench.side")
    tail = () if spec.command else (spec.peer, json.dumps(config))
    cores = set(spec.cores) or None
    sides: list[Side] = []
    try:
        sides.append(Side([*base, "listen", *tail], cores, fds))
        address = str(sides[0].read(START_SECONDS)["address"])
        sides.append(Side([*base, "connect", *tail, address], cores, fds))
        facts = sides[1].read(START_SECONDS)
        sides[0].read(START_SECONDS)
        return Pair(spec, sides[0], sides[1], facts)
    except BaseException:
        for side in sides:
            side.close()
            side.end()
        raise
    finally:
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def open_pairs(specs: Sequence[PairSpec]) -> Generator[tuple[list[Pair], dict[str, str]]]:
    """All pairs that can be started, and for the others, by label, the reason."""
    pairs: list[Pair] = []
    missing: dict[str, str] = {}
    try:
        for spec in specs:
            try:
                pairs.append(open_pair(spec))
            except PairError as error:
                missing[spec.label] = str(error)
        yield pairs, missing
    finally:
        for pair in pairs:
            pair.close()


def median_of(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure."""
    return Figures(
        *(
            statistics.median(getattr(figures, name) for figures in rounds)
            for name in ("mib_per_s", "per_s", "cpu_per_gib", "cpu_us", "p50", "p99")
        )
    )
