# SPDX-License-Identifier: MIT OR Apache-2.0
"""What an idle connection costs a process: its memory files, and what malloc gave for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio
from ground import HOST, PATHS, patient

import exs

PAIRS = 32
MIB = 1 << 20
MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ (\d+) +(/memfd:exs\S*)", re.MULTILINE)


def memory_files() -> int:
    """Bytes of all memory files of ours that are mapped here, each counted once: their pages exist from the start."""
    files: dict[str, int] = {}
    for start, end, offset, inode, _ in MAPPING.findall(Path("/proc/self/maps").read_text()):
        files[inode] = max(files.get(inode, 0), int(offset, 16) + int(end, 16) - int(start, 16))
    return sum(files.values())


def private_bytes() -> int:
    """Memory of this process alone that is present."""
    found = re.search(r"^Anonymous:\s+(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


async def connect_pairs(count: int, options: exs.Options) -> list[exs.SocketStream]:
    (listener,) = await exs.open_listeners(0, host=HOST, options=options)
    async with listener:
        streams: list[exs.SocketStream] = []
        for _ in range(count):
            ends: dict[str, exs.SocketStream] = {}

            async def dial(ends: dict[str, exs.SocketStream] = ends) -> None:
                ends["a"] = await exs.open_stream(HOST, listener.address[1], options=options)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(dial)
                ends["b"] = await listener.accept()
            streams += ends.values()
        return streams


@pytest.mark.parametrize("way", [way for way in PATHS if way != "shm-ring"])
@pytest.mark.parametrize(("ring_bytes", "limit"), [(1 << 20, 3 * MIB // 2), (65536, 100 << 10)])
async def test_an_idle_stream_costs_no_more_than_it_may(way: str, ring_bytes: int, limit: int) -> None:
    options = exs.Options(path=way, ring_bytes=ring_bytes)
    for stream in await connect_pairs(2, options):  # what is made once is not counted
        await stream.aclose()
    with trio.fail_after(patient(20)):
        before = memory_files() + private_bytes()
        streams = await connect_pairs(PAIRS, options)
        each = (memory_files() + private_bytes() - before) / len(streams)
        for stream in streams:
            await trio.aclose_forcefully(stream)
    assert each <= limit
