# SPDX-License-Identifier: MIT OR Apache-2.0
"""One side of a measured pair: a process that obeys lines on its standard input.

``python -m exs.cli.bench.side listen PEER CONFIG`` or ``... connect PEER CONFIG ADDRESS``; CONFIG is JSON, with
``module`` to load further peers from a file.  It writes JSON lines: the address it listens on, the facts of the
connection, then for each command ``OPERATION SIZE COUNT DEPTH`` ``{"ready": true}`` from a receiver and the figures.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import time
from typing import TYPE_CHECKING

import trio

from exs.cli.bench.peers import PEERS, Config, RoundTripPeer, SyncPeer, ThroughputPeer, TrioPeer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def cpu_seconds() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def emit(**values: object) -> None:
    """One JSON line."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


class Meter:
    """The clocks around one operation of one side."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._cpu = cpu_seconds()

    def ready(self) -> None:
        """For a receiver: starts its clocks and lets the sender begin."""
        self._cpu = cpu_seconds()
        emit(ready=True)

    def report(self, times: list[float] | None = None) -> None:
        """Writes the figures."""
        wall, cpu = time.perf_counter() - self._wall, cpu_seconds() - self._cpu
        values: dict[str, object] = {"seconds": wall, "cpu": cpu}
        if times:
            times.sort()
            values["p50"] = times[len(times) // 2]
            values["p99"] = times[min(len(times) - 1, len(times) * 99 // 100)]
        emit(**values)


def _parse(line: str) -> tuple[str, int, int, int]:
    operation, size, count, depth = line.split()
    return operation, int(size), int(count), int(depth)


def run_sync(peer: SyncPeer, address: str | None) -> None:
    """The life of a blocking side."""
    if address is None:
        emit(address=peer.listen())
        peer.accept()
    else:
        peer.connect(address)
    emit(**peer.facts())
    for line in sys.stdin:
        operation, size, count, depth = _parse(line)
        meter = Meter()
        times: list[float] | None = None
        if address is None:
            if operation == "throughput":
                peer.receive_many(size, count, depth, meter.ready)
            else:
                peer.answer(size, count, meter.ready)
        elif operation == "throughput":
            peer.send_many(size, count, depth)
        else:
            times = peer.ask(size, count)
        meter.report(times)
    peer.close()


async def _lines(fd: int, each: Callable[[str], Awaitable[None]]) -> None:
    pending = b""
    async with trio.lowlevel.FdStream(os.dup(fd)) as stream:
        async for data in stream:
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                await each(line.decode())


async def run_trio(peer: TrioPeer, address: str | None) -> None:
    """The life of a side in trio."""
    if address is None:
        emit(address=await peer.listen())
        await peer.accept()
    else:
        await peer.connect(address)
    emit(**peer.facts())

    async def obey(line: str) -> None:
        operation, size, count, depth = _parse(line)
        meter = Meter()
        times: list[float] | None = None
        if operation == "throughput" and isinstance(peer, ThroughputPeer):
            if address is None:
                await peer.receive_many(size, count, depth, meter.ready)
            else:
                await peer.send_many(size, count, depth)
        elif operation == "roundtrip" and isinstance(peer, RoundTripPeer):
            if address is None:
                await peer.answer(size, count, meter.ready)
            else:
                times = await peer.ask(size, count)
        else:
            raise ValueError(f"{type(peer).__name__} does not measure {operation}")
        meter.report(times)

    await _lines(0, obey)
    await peer.close()


def load_peers(path: str) -> dict[str, type[SyncPeer | TrioPeer]]:
    """The peers of another file, by its ``PEERS``."""
    spec = importlib.util.spec_from_file_location("more_peers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, type[SyncPeer | TrioPeer]] = module.PEERS
    return found


def main(argv: list[str]) -> None:
    """Runs one side."""
    role, name, text = argv[:3]
    config: Config = json.loads(text)
    known = PEERS | (load_peers(config["module"]) if "module" in config else {})
    peer = known[name](config)
    address = None if role == "listen" else argv[3]
    if isinstance(peer, SyncPeer):
        run_sync(peer, address)
    else:
        trio.run(run_trio, peer, address)


if __name__ == "__main__":
    main(sys.argv[1:])
