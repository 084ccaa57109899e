# SPDX-License-Identifier: MIT OR Apache-2.0
"""Zero means zero, and memory stays where it is: the counters, and buffers that the program lets go of too early."""

from __future__ import annotations

import gc
import mmap
import os
import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
import trio.testing

import exs
from exs.testing import message_pair, stream_pair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1 << 20
KINDS = pytest.mark.parametrize("kind", ["stream", "seqpacket"])


async def connected(kind: str, options: exs.Options) -> tuple[exs.Socket, exs.Socket]:
    if kind == "stream":
        a, b = await stream_pair(options)
        return a.socket, b.socket
    c, d = await message_pair(options)
    return c.socket, d.socket


async def posted(sock: exs.Socket, buffer: object, nursery: trio.Nursery, **how: bool) -> None:
    """Post a receive and let the peer hear of it."""

    async def receive() -> None:
        await sock.recv_into(buffer, **how)  # type: ignore[arg-type]

    nursery.start_soon(receive)
    await trio.testing.wait_all_tasks_blocked(0.02)


@KINDS
@pytest.mark.parametrize("memory", ["private", "allocated"])
async def test_a_receive_that_was_posted_ahead_costs_no_copy(options: exs.Options, kind: str, memory: str) -> None:
    a, b = await connected(kind, options)
    data = os.urandom(MIB)
    if memory == "private":
        source = exs.MemoryRegion(bytearray(data))
        target = exs.MemoryRegion(bytearray(MIB))
    else:
        source = exs.MemoryRegion.allocate(MIB)
        source.view[:] = data
        target = exs.MemoryRegion.allocate(MIB)
    async with source, target, a, b:
        before = exs.statistics()
        async with trio.open_nursery() as nursery:
            await posted(b, target, nursery, waitall=True)
            assert await a.send(source) == MIB
        assert target.view == data
        sent, received, after = a.statistics(), b.statistics(), exs.statistics()
        assert received.bytes_copied == 0 or options.path == "shm-ring"
        assert sent.bytes_copied == 0 or options.path == "shm-ring"
        assert received.bytes_direct == MIB
        assert received.bytes_indirect == 0
        assert sent.bytes_sent == received.bytes_received == MIB
        assert after.bytes_direct - before.bytes_direct == MIB
        assert received.registrations == sent.registrations == 0
        if memory == "allocated" and options.path == "shm-vm":
            assert received.bytes_mapped == MIB
        if options.path == "shm-ring" and memory == "private":
            # The ring takes one copy on each side, and says so.
            assert (sent.bytes_copied, received.bytes_copied) == (MIB, MIB)


async def test_what_nobody_waits_for_goes_through_the_ring_and_is_counted(options: exs.Options) -> None:
    a, b = await connected("stream", options)
    async with a, b:
        with exs.MemoryRegion(bytearray(100_000)) as region:
            await a.send(region)
            got = 0
            while got < 100_000:
                got += await b.recv_into(region)
        received = b.statistics()
        assert received.bytes_indirect == 100_000
        assert received.bytes_copied >= 100_000
        assert received.bytes_direct == 0


async def test_plain_buffers_are_copied_when_small_and_registered_when_large(options: exs.Options) -> None:
    a, b = await connected("seqpacket", options)
    async with a, b:
        for size, copied, registrations in ((1000, 1000, 0), (100_000, 0, 1)):
            before = a.statistics()
            with exs.MemoryRegion(bytearray(size)) as room:
                async with trio.open_nursery() as nursery:
                    await posted(b, room, nursery)
                    await a.send(bytearray(size))
            after = a.statistics()
            if options.path == "tcp" or (options.path == "shm-vm" and not copied):  # else the ring takes its copies
                assert after.bytes_copied - before.bytes_copied == copied
            assert after.registrations - before.registrations == registrations


@KINDS
async def test_every_kind_of_buffer(options: exs.Options, kind: str, tmp_path: Path) -> None:
    """bytes, bytearray, numpy, mmap of a file, memoryview: sent and received, plain and registered."""
    a, b = await connected(kind, options)
    data = os.urandom(50_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        sources: list[Callable[[], object]] = [
            lambda: data,
            lambda: bytearray(data),
            lambda: memoryview(b"." + data)[1:],
            lambda: np.frombuffer(data, dtype=np.uint16),
            lambda: mapped,
        ]
        async with a, b:
            for source in sources:
                for register in (False, True):
                    room = bytearray(len(data))
                    buffer: object = source()
                    region = exs.MemoryRegion(buffer, exs.Access.READ) if register else None  # type: ignore[arg-type]
                    async with trio.open_nursery() as nursery:
                        await posted(b, room, nursery)
                        await a.send(region or buffer)  # type: ignore[arg-type]
                    assert room == data
                    if region is not None:
                        region.close()
                    del buffer, region
            target = np.zeros(25_000, dtype=np.uint16)
            async with trio.open_nursery() as nursery:
                await posted(b, target, nursery)
                await a.send(data)
            assert target.tobytes() == data
            mapped[:] = bytes(len(data))
            async with trio.open_nursery() as nursery:
                await posted(b, mapped, nursery)
                await a.send(data)
            assert mapped[:] == data


@KINDS
async def test_buffers_that_the_program_forgets_live_as_long_as_they_are_used(options: exs.Options, kind: str) -> None:
    a, b = await connected(kind, options)
    results: list[bytes] = []

    async def receive(size: int) -> None:
        results.append(await b.recv(size))  # the only reference to its memory is ours

    async def send(data: bytes) -> None:
        await a.send(bytearray(data))

    async with a, b:
        async with trio.open_nursery() as nursery:
            for size in (10, 5000, 200_000):
                results.clear()
                nursery.start_soon(receive, size)
                await trio.testing.wait_all_tasks_blocked(0.01)
                gc.collect()
                junk = [bytearray(size) for _ in range(50)]
                nursery.start_soon(send, b"z" * size)
                del junk
                gc.collect()
                while not results:
                    await trio.sleep(0.001)
                assert results == [b"z" * size]


async def test_a_cancelled_task_that_forgets_its_buffer_at_once(options: exs.Options) -> None:
    a, b = await connected("stream", options)
    rng = random.Random(3)
    async with a, b:
        for _ in range(60):
            with trio.move_on_after(rng.random() * 0.002):
                await b.recv_into(bytearray(100_000))
            gc.collect(0)
        data = os.urandom(300_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, data)
            room = bytearray(len(data))
            assert await b.recv_into(room, waitall=True) == len(data)
            assert room == data


async def test_a_buffer_in_use_cannot_be_resized_or_unmapped(options: exs.Options) -> None:
    a, b = await connected("stream", options)
    async with a, b:
        plain = bytearray(1000)
        mapped = mmap.mmap(-1, 4096)
        region = exs.MemoryRegion(mapped)
        async with trio.open_nursery() as nursery:
            await posted(b, plain, nursery)
            await posted(b, region, nursery)
            with pytest.raises(BufferError):
                plain.extend(b"x")
            with pytest.raises(BufferError):
                mapped.close()
            with pytest.raises(exs.BusyError):
                region.close()
            assert region.in_use == 1
            await a.send(b"1")
            await a.send(b"2")
            await trio.sleep(0.01)
        plain.extend(b"x")
        assert region.in_use == 0
        region.close()
        del region
        mapped.close()


async def test_a_view_of_allocated_memory_outlives_its_region(options: exs.Options) -> None:
    a, b = await connected("stream", options)
    async with a, b:
        async with exs.MemoryRegion.allocate(10_000) as region:
            view = region.view
            array = np.frombuffer(view, dtype=np.uint8)
            async with trio.open_nursery() as nursery:
                await posted(b, region, nursery, waitall=True)
                await a.send(b"v" * 10_000)
        del region
        gc.collect()
        assert bytes(view) == b"v" * 10_000
        assert (array == ord("v")).all()
