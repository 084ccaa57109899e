# SPDX-License-Identifier: MIT OR Apache-2.0
"""Regions of huge pages: really huge, mapped by a peer as others are, given back whole, and only a wish."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

import exs
from exs.testing import stream_pair

MIB = 1 << 20
POOL = Path("/proc/sys/vm/nr_hugepages")
WANTED = 16


def free_pages() -> int:
    """Huge pages that nobody has; 0 where they are not of 2 MiB."""
    facts = dict(re.findall(r"^(\w+):\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return int(facts.get("HugePages_Free", 0)) if facts.get("Hugepagesize") == "2048" else 0


@pytest.fixture
def huge_pages() -> Iterator[int]:
    """A pool of huge pages: what is there, or for a privileged user more for as long as the test takes."""
    before = POOL.read_text()
    if free_pages() < WANTED and os.geteuid() == 0:
        try:
            POOL.write_text(str(int(before) + WANTED))
        except OSError:
            pass  # a container's view of it
    try:
        if free_pages() < WANTED:
            pytest.skip("no huge pages")
        yield free_pages()
    finally:
        if POOL.read_text() != before:
            POOL.write_text(before)


def page_size_at(address: int) -> int:
    """Of the mapping that holds an address, in bytes."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("KernelPageSize:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the address is in no mapping")


def test_a_region_takes_its_pages_from_the_pool_and_gives_them_back(huge_pages: int) -> None:
    with exs.MemoryRegion.allocate(5 * MIB + 1, huge_pages=True) as region:
        assert page_size_at(region.address) == 2 * MIB
        assert free_pages() == huge_pages - 3
        region.view[-1] = 7
        assert region.view[0] == 0
    assert free_pages() == huge_pages


def test_less_than_one_huge_page_or_more_than_there_are_come_in_small_ones(huge_pages: int) -> None:
    with (
        exs.MemoryRegion.allocate(MIB, huge_pages=True) as small,
        exs.MemoryRegion.allocate((huge_pages + 1) * 2 * MIB, huge_pages=True) as large,
    ):
        assert page_size_at(small.address) == page_size_at(large.address) == os.sysconf("SC_PAGESIZE")
        assert free_pages() == huge_pages


async def test_bytes_go_from_huge_pages_to_huge_pages(huge_pages: int, path: str) -> None:
    length = 3 * MIB + 5
    data = os.urandom(length)
    async with (
        exs.MemoryRegion.allocate(length, huge_pages=True) as source,
        exs.MemoryRegion.allocate(length, huge_pages=True) as target,
    ):
        source.view[:] = data
        a, b = await stream_pair(exs.Options(path=path))
        async with a, b:
            for _ in range(2):
                target.view[:] = bytes(length)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: b.socket.recv_into(target, waitall=True))
                    await trio.testing.wait_all_tasks_blocked(0.02)
                    assert await a.socket.send(source) == length
                assert target.view == data
            received = b.socket.statistics()
            assert received.bytes_direct == 2 * length
            if path == "shm-vm":
                assert received.bytes_mapped == 2 * length
                assert received.bytes_copied == 0
    with trio.fail_after(10):  # the peer's mapping goes with the connection
        while free_pages() != huge_pages:
            await trio.sleep(0.01)
