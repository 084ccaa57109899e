# SPDX-License-Identifier: MIT OR Apache-2.0
"""What type checkers see of memory; never run."""

from __future__ import annotations

import array
import mmap
from collections.abc import Sequence
from typing import assert_type

import numpy as np

import exs


def every_buffer_is_accepted() -> None:
    # numpy's own stubs call an array a buffer from Python 3.12 on; its .data is one everywhere.
    for buffer in (bytearray(5), array.array("d"), mmap.mmap(-1, 5), np.zeros(5).data, memoryview(b"x")):
        exs.MemoryRegion(buffer)
    exs.MemoryRegion(b"x", exs.Access.READ)
    exs.MemoryRegion(b"x", access=exs.Access.READ | exs.Access.WRITE)
    exs.MemoryRegion("text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def regions_and_views() -> None:
    region = exs.MemoryRegion.allocate(1 << 20, huge_pages=True)
    assert_type(region, exs.MemoryRegion)
    view = region[10:20]
    assert_type(view, exs.RegionView)
    assert_type(view[1:], exs.RegionView)
    assert_type(view.view, memoryview)
    assert_type(len(view), int)
    assert_type(view.offset, int)
    assert_type(region.in_use, int)
    assert_type(region.split(64), Sequence[exs.RegionView])
    memoryview(region)  # buffers for checkers, on every version
    memoryview(view)
    region[3]  # type: ignore[index]  # pyright: ignore[reportArgumentType]
    with region as same:
        assert_type(same, exs.MemoryRegion)


async def waiting() -> None:
    assert_type(await exs.register(bytearray(5)), exs.MemoryRegion)
    async with exs.MemoryRegion(bytearray(5)) as region:
        assert_type(region, exs.MemoryRegion)
    async with exs.BufferPool(100, 5, huge_pages=False) as pool:
        assert_type(pool, exs.BufferPool)
        async with pool.take() as slab:
            assert_type(slab, exs.RegionView)


class MyRegion(exs.MemoryRegion):
    """A subclass comes back as itself."""


assert_type(MyRegion.allocate(5), MyRegion)
