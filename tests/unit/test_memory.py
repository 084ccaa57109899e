# SPDX-License-Identifier: MIT OR Apache-2.0
from __future__ import annotations

import array
import errno
import gc
import mmap
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import trio
import trio.testing

import exs
from exs import Access, BufferPool, MemoryRegion, RegionView, _native, register
from exs._native import process


def closed(region: MemoryRegion) -> bool:
    return region.closed


# --- what may be registered


@pytest.mark.parametrize(
    "buffer",
    [
        bytearray(100),
        array.array("d", [1.0] * 10),
        memoryview(bytearray(100))[10:20],
        np.zeros((4, 5), np.float32),
        np.zeros(10, np.dtype([("a", "i4"), ("b", "f8")])),
        mmap.mmap(-1, 8192),
    ],
    ids=lambda b: type(b).__name__,
)
def test_any_contiguous_buffer_can_be_registered(buffer) -> None:
    with MemoryRegion(buffer) as region:
        flat = memoryview(buffer)
        assert len(region) == flat.nbytes == len(region.view)
        region.view[0] = 7
        assert bytes(region.view) == flat.tobytes()
        assert not region.in_use


def test_bytes_are_for_reading_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        MemoryRegion(b"hello")
    with MemoryRegion(b"hello", Access.READ) as region:
        assert bytes(region.view) == b"hello"
        assert region.view.readonly


def test_read_only_views_of_writable_memory_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        MemoryRegion(memoryview(bytearray(5)).toreadonly())


@pytest.mark.parametrize(
    "buffer", [memoryview(bytearray(10))[::2], np.zeros((4, 4))[:, 1], np.asfortranarray(np.arange(16.0).reshape(4, 4))]
)
def test_what_is_not_contiguous_is_refused(buffer) -> None:
    for access in (Access.READ, Access.READ | Access.WRITE):
        with pytest.raises(BufferError, match="contiguous"):
            MemoryRegion(buffer, access)


def test_what_is_no_buffer_is_refused() -> None:
    for thing in ("text", 5, None):
        with pytest.raises(TypeError):
            MemoryRegion(thing)  # type: ignore[arg-type]
    with MemoryRegion(bytearray(5)) as region, pytest.raises(TypeError):
        MemoryRegion(region[1:])


def test_nothing_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        MemoryRegion(bytearray())
    for nbytes in (0, -1):
        with pytest.raises(ValueError, match="at least one byte"):
            MemoryRegion.allocate(nbytes)


def test_a_registered_buffer_cannot_be_resized_until_the_region_closes() -> None:
    buffer = bytearray(10)
    region = MemoryRegion(buffer)
    with pytest.raises(BufferError):
        buffer.append(1)
    region.close()
    buffer.append(1)
    mapped = mmap.mmap(-1, 4096)
    with MemoryRegion(mapped), pytest.raises(BufferError):
        mapped.close()
    mapped.close()


def test_two_regions_may_overlap() -> None:
    buffer = bytearray(10)
    with MemoryRegion(buffer) as whole, MemoryRegion(memoryview(buffer)[3:6]) as part:
        part.view[0] = 9
        assert whole.view[3] == 9


# --- slices


def test_slices_are_views_without_copies() -> None:
    with MemoryRegion(bytearray(range(100))) as region:
        part = region[10:20]
        assert isinstance(part, RegionView)
        assert (part.offset, len(part), part.region) == (10, 10, region)
        part.view[0] = 255
        assert region.view[10] == 255
        deeper = part[2:-3]
        assert (deeper.offset, len(deeper)) == (12, 5)
        assert bytes(deeper.view) == bytes(range(12, 17))
        assert len(region[:]) == 100
        assert len(region[200:300]) == len(region[50:40]) == 0
        assert deeper.address == region.address + 12
        assert int(_native.ffi.cast("uintptr_t", deeper.pointer)) == deeper.address


def test_only_plain_slices() -> None:
    with MemoryRegion(bytearray(10)) as region:
        with pytest.raises(TypeError, match="sliced"):
            region[3]  # type: ignore[index]
        with pytest.raises(ValueError, match="step"):
            region[::2]


@pytest.mark.parametrize(("total", "nbytes", "sizes"), [(12, 4, [4, 4, 4]), (10, 4, [4, 4, 2]), (3, 8, [3])])
def test_split_gives_equal_pieces(total: int, nbytes: int, sizes: list[int]) -> None:
    with MemoryRegion(bytearray(range(total + 5))) as region:
        pieces = region[5:].split(nbytes)
        assert [len(p) for p in pieces] == sizes
        assert b"".join(p.view for p in pieces) == bytes(range(5, total + 5))
        assert len(pieces) == len(sizes)
        assert bytes(pieces[-1].view) == bytes(pieces[len(sizes) - 1].view)
        assert [p.offset for p in pieces[1:]] == [5 + nbytes * i for i in range(1, len(sizes))]
        with pytest.raises(IndexError):
            pieces[len(sizes)]
        with pytest.raises(ValueError, match="at least one byte"):
            region.split(0)


def test_a_vector_of_pieces_is_what_the_core_reads() -> None:
    with MemoryRegion(bytearray(100)) as region:
        made = region.split(30).pieces(1, 4)  # type: ignore[attr-defined]
        listed = _native.Pieces.of(list(region.split(30))[1:4])
        assert made._words == listed._words
        assert made.count == 3


# --- allocated memory


def test_allocated_memory_is_zero_and_page_aligned() -> None:
    with MemoryRegion.allocate(5000) as region:
        assert len(region) == 5000
        assert region.address % mmap.PAGESIZE == 0
        assert not any(region.view)
        region.view[:] = b"x" * 5000


def test_a_view_outlives_its_allocated_region() -> None:
    region = MemoryRegion.allocate(1 << 20)
    view = region.view
    numbers = np.frombuffer(region[4096:8192].view, np.uint8)
    region.close()
    del region
    gc.collect()
    view[4096] = 42
    assert numbers[0] == 42
    assert view[-1] == 0


def test_the_mapping_goes_with_the_last_view() -> None:
    def mapped() -> int:
        return sum("memfd:exs" in line for line in Path("/proc/self/maps").read_text().splitlines())

    gc.collect()
    before = mapped()
    region = MemoryRegion.allocate(1 << 20)
    view = region.view
    assert mapped() > before
    region.close()
    del region
    gc.collect()
    assert mapped() > before
    del view
    gc.collect()
    assert mapped() == before


def test_huge_pages_are_a_wish() -> None:
    with MemoryRegion.allocate(4 << 20, huge_pages=True) as region:
        region.view[-1] = 1
        assert region.view[-1] == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs Python 3.12 for the buffer protocol of classes")
def test_regions_are_buffers_from_312_on() -> None:
    with MemoryRegion(bytearray(b"hello")) as region:
        assert bytes(memoryview(region)) == b"hello"
        assert bytes(memoryview(region[1:3])) == b"el"


# --- the end


def test_closing_is_idempotent_and_final() -> None:
    region = MemoryRegion(bytearray(5))
    part = region[1:2]
    region.close()
    region.close()
    assert closed(region)
    for thing in (region, part):
        with pytest.raises(exs.Error) as caught:
            thing.view  # noqa: B018
        assert caught.value.errno == errno.EBADF


def test_with_closes() -> None:
    with MemoryRegion(bytearray(5)) as region:
        assert not closed(region)
    assert closed(region)


async def test_async_with_closes_and_checkpoints() -> None:
    with trio.testing.assert_checkpoints():
        async with MemoryRegion(bytearray(5)) as region:
            pass
    assert closed(region)
    with trio.testing.assert_checkpoints():
        await region.aclose()


def test_a_forgotten_region_warns_and_is_given_back() -> None:
    buffer = bytearray(5)
    with pytest.warns(ResourceWarning, match="never closed"):
        MemoryRegion(buffer)
        gc.collect()
    buffer.append(1)


def test_a_region_does_not_live_in_cycles() -> None:
    region = MemoryRegion(bytearray(5))
    alive = weakref.ref(region)
    region[1:2].view  # noqa: B018
    region.close()
    del region
    assert alive() is None


def test_over_the_memlock_limit_the_error_names_limit_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    with pytest.raises(exs.Error, match=r"memlock\) is 8388608 bytes.*ulimit -l") as caught:
        process._check_memory(-errno.ENOMEM, 1 << 30)
    assert caught.value.errno == errno.ENOMEM
    assert "1073741824" in str(caught.value)


def test_memory_that_cannot_be_had_is_enomem() -> None:
    for nbytes in (1 << 44, 1 << 60):  # never so little that the system tries
        with pytest.raises(exs.Error) as caught:
            MemoryRegion.allocate(nbytes)
        assert caught.value.errno == errno.ENOMEM


def test_registering_lets_other_threads_run() -> None:
    done = threading.Event()
    ticks = 0

    def count() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # from here on this thread runs alone, but where it gives the lock up
    try:
        before = ticks
        for _ in range(500):
            with MemoryRegion.allocate(1 << 20):
                pass
            if ticks > before:
                break
        assert ticks > before
    finally:
        sys.setswitchinterval(interval)
        done.set()
        thread.join()


# --- register()


async def test_register_is_a_region_and_a_checkpoint() -> None:
    with trio.testing.assert_checkpoints():
        region = await register(bytearray(10))
    assert len(region) == 10
    region.close()


@pytest.mark.parametrize("pins", [False, True])
async def test_register_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch, pins: bool) -> None:
    monkeypatch.setattr(_native.Context, "pins_memory", lambda _: pins)
    buffer = bytearray(10)
    with trio.CancelScope() as scope:
        scope.cancel()
        await register(buffer)
    assert scope.cancelled_caught
    buffer.append(1)


async def test_register_uses_a_thread_where_a_device_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native.Context, "pins_memory", lambda _: True)
    threads: list[int] = []
    plain = _native.Context.mem_register

    def watched(self: _native.Context, *args: object) -> int:
        threads.append(threading.get_ident())
        return plain(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(_native.Context, "mem_register", watched)
    region = await register(bytearray(10))
    region.close()
    assert threads != [threading.get_ident()]


async def test_register_undoes_what_a_late_cancel_finds_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native.Context, "pins_memory", lambda _: True)
    buffer = bytearray(10)
    scope = trio.CancelScope()
    token = trio.lowlevel.current_trio_token()
    plain = _native.Context.mem_register

    def slow(self: _native.Context, *args: object) -> int:
        token.run_sync_soon(scope.cancel)
        time.sleep(0.05)
        return plain(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(_native.Context, "mem_register", slow)
    with scope:
        await register(buffer)
    assert scope.cancelled_caught
    buffer.append(1)


# --- pools


async def test_a_pool_hands_out_each_slab_once() -> None:
    async with BufferPool(1000, 3) as pool:
        async with pool.take() as a, pool.take() as b, pool.take() as c:
            slabs = [a, b, c]
            assert [len(s) for s in slabs] == [1000] * 3
            assert len({s.offset for s in slabs}) == 3
            assert all(s.address % 64 == 0 for s in slabs)
            assert pool.available == 0
            with pytest.raises(trio.WouldBlock):
                pool.take_nowait()
        assert pool.available == 3


async def test_a_pool_makes_takers_wait_in_order() -> None:
    order: list[int] = []

    async def taker(pool: BufferPool, number: int) -> None:
        async with pool.take():
            order.append(number)
            await trio.testing.wait_all_tasks_blocked()

    async with BufferPool(100, 1) as pool:
        async with trio.open_nursery() as nursery:
            async with pool.take():
                for number in range(3):
                    nursery.start_soon(taker, pool, number)
                    await trio.testing.wait_all_tasks_blocked()
                assert order == []
        assert order == [0, 1, 2]
        assert pool.available == 1


async def test_a_cancelled_taker_takes_nothing() -> None:
    async with BufferPool(100, 1) as pool:
        async with pool.take():
            with trio.move_on_after(0.01) as scope:
                await pool.acquire()
            assert scope.cancelled_caught
        async with pool.take():
            pass
        assert pool.available == 1


async def test_a_slab_given_to_a_cancelled_taker_comes_back() -> None:
    async with BufferPool(100, 1) as pool:
        slab = pool.take_nowait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.acquire)
            await trio.testing.wait_all_tasks_blocked()
            pool.give(slab)
            nursery.cancel_scope.cancel()
        assert pool.available == 1


async def test_a_pool_serves_runs_in_other_threads() -> None:
    got = threading.Event()

    async def other(pool: BufferPool) -> None:
        async with pool.take():
            got.set()

    with BufferPool(100, 1) as pool:
        slab = pool.take_nowait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, trio.run, other, pool)
            await trio.sleep(0.05)
            assert not got.is_set()
            pool.give(slab)
        assert got.is_set()


def test_a_pool_knows_its_slabs() -> None:
    with BufferPool(100, 2) as pool:
        slab = pool.take_nowait()
        with pytest.raises(ValueError, match="not a slab"):
            pool.give(slab[1:])
        pool.give(slab)
        with pytest.raises(ValueError, match="not a slab"):
            pool.give(slab)
        with MemoryRegion(bytearray(100)) as region, pytest.raises(ValueError, match="not a slab"):
            pool.give(region[:100])


def test_a_pool_in_use_is_busy() -> None:
    pool = BufferPool(100, 2)
    slab = pool.take_nowait()
    with pytest.raises(exs.BusyError):
        pool.close()
    pool.give(slab)
    pool.close()
    pool.close()
    with pytest.raises(exs.Error) as caught:
        pool.take_nowait()
    assert caught.value.errno == errno.EBADF


async def test_closing_a_pool_wakes_those_who_wait() -> None:
    pool = BufferPool(100, 1)
    slab = pool.take_nowait()

    async def waiter() -> None:
        with pytest.raises(exs.Error) as caught:
            await pool.acquire()
        assert caught.value.errno == errno.EBADF

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter)
        await trio.testing.wait_all_tasks_blocked()
        await pool.aclose()
    del slab


@pytest.mark.parametrize(("slab", "count"), [(0, 1), (1, 0), (-5, 2)])
def test_a_pool_has_slabs(slab: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        BufferPool(slab, count)


async def test_pool_calls_checkpoint() -> None:
    async with BufferPool(100, 1) as pool:
        with trio.testing.assert_checkpoints():
            slab = await pool.acquire()
        pool.give(slab)


# --- what may be a mapped file


def test_mapped_files_are_known_through_every_wrapping(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(8192))
    with file.open("r+b") as f, mmap.mmap(f.fileno(), 0) as mapped:
        wrapped = [
            mapped,
            memoryview(mapped),
            memoryview(memoryview(mapped)[10:])[5:],
            np.frombuffer(mapped, np.uint8),
            np.frombuffer(mapped, np.uint8)[3:].view(np.int8),
            memoryview(np.frombuffer(mapped, np.uint8)),
        ]
        assert [_native.fragile(w) for w in wrapped] == [_native.FRAGILE] * len(wrapped)
        assert _native.fragile(np.memmap(file, np.uint8)) == _native.FRAGILE
        while wrapped:
            wrapped.pop()
        gc.collect()
    plain = [
        b"x",
        bytearray(5),
        array.array("b"),
        memoryview(b"x"),
        np.zeros(4),
        np.zeros(8)[2:],
        memoryview(np.zeros(3)),
    ]
    assert [_native.fragile(p) for p in plain] == [0] * len(plain)
    with MemoryRegion.allocate(10) as region:
        assert _native.fragile(region.view) == 0
