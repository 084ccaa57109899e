# SPDX-License-Identifier: MIT OR Apache-2.0
"""SendQueue and ReceiveQueue: order, ownership, errors, cancellation, what stays behind."""

from __future__ import annotations

import errno
import os
import random

import pytest
import trio
import trio.testing
from endings import only_sending_is_over
from ground import scaled

import exs
from exs.testing import message_pair, stream_pair

Streams = tuple[exs.SocketStream, exs.SocketStream]
Channels = tuple[exs.MessageChannel, exs.MessageChannel]


def small(options: exs.Options, **more: object) -> exs.Options:
    return exs.Options(
        path=options.path,
        progress=options.progress,
        close_timeout=1.0,
        ring_bytes=65536,
        **more,  # type: ignore[arg-type]  # fields of Options
    )


async def collect(sock: exs.Socket, total: int, most: int = 1000) -> bytes:
    """Receive so many bytes by a queue."""
    got = bytearray()
    with exs.BufferPool(5000, 8) as pool:
        async with sock.receive_queue(pool, depth=8) as rx:
            while len(got) < total:
                chunks = await rx.get_many(most)
                assert chunks
                for chunk in chunks:
                    got += chunk.view
    return bytes(got)


async def test_bytes_come_in_order_however_they_are_put(streams: Streams) -> None:
    a, b = streams
    data = os.urandom(1_000_000)
    rng = random.Random(1)
    with exs.MemoryRegion(bytearray(data)) as region:

        async def send() -> None:
            async with a.socket.send_queue(depth=16) as tx:
                assert (tx.depth, tx.accepted, tx.in_flight) == (16, 0, 0)
                at = 0
                while at < len(data):
                    how = rng.randrange(4)
                    size = rng.randrange(1, 20_000)
                    part = region[at : at + size]
                    if how == 0:
                        await tx.put(part)
                    elif how == 1:
                        await tx.put_many(part.split(rng.randrange(50, 5000)))
                    elif how == 2:
                        half = len(part) // 2
                        await tx.put_many([part[:half], memoryview(data)[at + half : at + len(part)]])
                    else:
                        try:
                            tx.put_nowait(part)
                        except trio.WouldBlock:
                            continue
                    at += len(part)
                    assert tx.in_flight <= 16
                await tx.flush()
                assert tx.in_flight == 0
            assert region.in_use == 0

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert await collect(b.socket, len(data)) == data


async def test_messages_come_one_a_chunk(channels: Channels) -> None:
    a, b = channels
    messages = [bytes([i % 256]) * (i % 90) for i in range(scaled(1000, 100))]

    async def send() -> None:
        async with a.socket.send_queue(depth=32) as tx:
            await tx.put_many(messages)
            assert tx.accepted == len(messages)
        await a.aclose()

    got: list[bytes] = []
    with exs.BufferPool(100, 20) as pool:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async with b.socket.receive_queue(pool, depth=20) as rx:
                async for chunk in rx:
                    got.append(bytes(chunk.view))
    assert got == messages


async def test_the_end_of_the_stream_ends_the_iteration(streams: Streams) -> None:
    a, b = streams
    await a.send_all(b"all of it")
    await a.send_eof()
    with exs.BufferPool(4, 4) as pool:
        async with b.socket.receive_queue(pool) as rx:
            assert b"".join([bytes(chunk.view) async for chunk in rx]) == b"all of it"
            assert await rx.get_many(5) == []
        assert pool.available == 4
    await b.send_all(b"the other way is open")
    assert await a.receive_some() == b"the other way is open"


async def test_a_chunk_is_valid_until_the_next_step(streams: Streams) -> None:
    a, b = streams
    with exs.BufferPool(10, 2) as pool:
        async with b.socket.receive_queue(pool, depth=2) as rx:
            await a.send_all(b"0123456789")
            chunk = await anext(rx)
            before = bytes(chunk.view)
            await a.send_all(b"abcdefghijklmnopqrst")
            await trio.sleep(0.02)
            assert bytes(chunk.view) == before


@pytest.mark.parametrize("kind", ["stream", "seqpacket"])
async def test_what_was_not_taken_stays_with_the_socket(options: exs.Options, kind: str) -> None:
    maker = stream_pair if kind == "stream" else message_pair
    a, b = await maker(options)
    async with a, b:
        with exs.BufferPool(10, 5) as pool:
            async with b.socket.receive_queue(pool, depth=5) as rx:
                async with a.socket.send_queue(depth=5) as tx:
                    for i in range(5):
                        await tx.put(b"chunk %d" % i)
                first = bytes((await anext(rx)).view)
                await trio.sleep(0.02)
            assert pool.available == 5
            got = [first]
            copied = b.socket.statistics().bytes_copied
            # Each way to receive gives it first.
            room = bytearray(7)
            assert await b.socket.recv_into(room) == 7
            got.append(bytes(room))
            got.append(await b.socket.recv(7))
            assert b.socket.statistics().bytes_copied >= copied + 14
            async with b.socket.receive_queue(pool, depth=5) as rx:
                while len(got) < 5:
                    got += [bytes(chunk.view) for chunk in await rx.get_many(1)]
            assert b"".join(got) == b"".join(b"chunk %d" % i for i in range(5))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.socket.send, b"after it")
                assert await b.socket.recv(10) == b"after it"


async def test_waitall_counts_what_stayed(streams: Streams) -> None:
    a, b = streams
    with exs.BufferPool(4, 5) as pool:
        async with b.socket.receive_queue(pool, depth=5):
            await a.send_all(b"0123")
            await a.send_all(b"4567")
            await trio.sleep(0.02)
    room = bytearray(12)
    with trio.move_on_after(0.02) as scope:
        await b.socket.recv_into(room, waitall=True)
    assert scope.cancelled_caught
    await a.send_all(b"89ab")
    assert await b.socket.recv_into(room, waitall=True) == 12
    assert room == b"0123456789ab"


async def test_a_direction_is_the_queues_own(streams: Streams) -> None:
    a, b = streams
    with exs.BufferPool(10, 2) as pool:
        async with a.socket.send_queue() as tx, b.socket.receive_queue(pool) as rx:
            for call in (
                lambda: a.send_all(b"x"),
                lambda: a.socket.sendmsg([b"x"]),
                a.send_eof,
                b.receive_some,
                lambda: b.socket.recv(1),
                lambda: b.socket.recvmsg_into([bytearray(1)]),
            ):
                with pytest.raises(trio.BusyResourceError):
                    await call()
            with pytest.raises(trio.BusyResourceError):
                async with a.socket.send_queue():
                    pass
            with pytest.raises(trio.BusyResourceError):
                async with b.socket.receive_queue(pool):
                    pass
            await b.send_all(b"the other way is free")
            assert await a.receive_some() == b"the other way is free"
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rx.get_many, 1)
                await trio.testing.wait_all_tasks_blocked()
                with pytest.raises(trio.BusyResourceError):
                    await rx.get_many(1)
                await tx.put(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await tx.put(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await rx.get_many(1)
        await a.send_all(b"free again")
        assert await b.receive_some() == b"free again"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.socket.recv, 1)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                async with b.socket.receive_queue(pool):
                    pass
            assert pool.available == 2
            await a.send_all(b"x")


async def test_room_is_waited_for(options: exs.Options) -> None:
    a, b = await stream_pair(small(options))
    async with a, b:
        async with a.socket.send_queue(depth=3) as tx:
            for _ in range(3):
                tx.put_nowait(bytes(60_000))
            with pytest.raises(trio.WouldBlock):
                for _ in range(10):
                    tx.put_nowait(bytes(60_000))
            await trio.testing.wait_all_tasks_blocked(0.1)
            with pytest.raises(trio.WouldBlock):  # a thread may have moved something meanwhile; now nothing moves
                for _ in range(10):
                    tx.put_nowait(bytes(60_000))
            accepted = tx.accepted
            with trio.move_on_after(0.02) as scope:
                await tx.put(b"waits")
            assert scope.cancelled_caught
            with trio.move_on_after(0.02) as scope:
                await tx.flush()
            assert scope.cancelled_caught
            assert tx.accepted == accepted
            with trio.move_on_after(0.02) as scope:
                await tx.put_many([b"x"] * 10)
            assert scope.cancelled_caught
            total = accepted * 60_000
            async with trio.open_nursery() as nursery:
                nursery.start_soon(collect, b.socket, total)
                await tx.flush()


async def test_more_depth_than_the_socket_allows(options: exs.Options) -> None:
    a, b = await message_pair(small(options, queue_depth=4))
    async with a, b:
        got: list[bytes] = []

        async def send() -> None:
            async with a.socket.send_queue(depth=100) as tx:
                await tx.put_many([b"%d" % i for i in range(300)])

        with exs.BufferPool(10, 50) as pool:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                async with b.socket.receive_queue(pool, depth=50) as rx:
                    while len(got) < 300:
                        got += [bytes(chunk.view) for chunk in await rx.get_many(7)]
        assert got == [b"%d" % i for i in range(300)]


async def test_leaving_by_an_exception_withdraws_and_ends_the_direction_of_a_stream(options: exs.Options) -> None:
    a, b = await stream_pair(small(options))
    async with a, b:
        buffers = [bytearray(b"%d" % (i % 10)) * 30_000 for i in range(8)]
        with pytest.raises(KeyError):
            async with a.socket.send_queue(depth=8) as tx:
                for buffer in buffers:
                    await tx.put(buffer)
                raise KeyError
        for buffer in buffers:
            buffer[:] = b"?" * len(buffer)  # ours again
        got = await only_sending_is_over(a, b)
        whole = b"".join(b"%d" % i * 30_000 for i in range(8))
        assert whole.startswith(got)
        assert len(got) < len(whole)


async def test_leaving_by_a_cancel_withdraws_messages_and_nothing_else(channels: Channels) -> None:
    a, b = channels
    with trio.CancelScope() as scope:
        async with a.socket.send_queue(depth=8) as tx:
            for i in range(8):
                await tx.put(b"%d" % i)
            scope.cancel()
            await tx.flush()
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, b"next")
        assert await b.receive() == b"next"


async def test_a_broken_connection_ends_the_queues_and_never_looks_like_the_end(options: exs.Options) -> None:
    a, b = await stream_pair(small(options))
    async with a:
        with exs.BufferPool(10, 4) as pool:
            with pytest.raises(exs.Error) as told:
                async with a.socket.send_queue(depth=4) as tx, a.socket.receive_queue(pool, depth=4) as rx:
                    await b.send_all(b"before")
                    await tx.put(bytes(100_000))
                    await trio.sleep(0.02)
                    b.socket.close()
                    assert bytes((await anext(rx)).view) == b"before"
                    for call in (lambda: rx.get_many(1), lambda: anext(rx)):
                        with pytest.raises(exs.Error) as caught:
                            await call()
                        assert caught.value.errno == errno.ECONNRESET
            assert told.value.errno == errno.ECONNRESET  # of the send queue, at its exit
            assert pool.available == 4


async def test_a_closed_socket_wakes_its_queues(options: exs.Options) -> None:
    a, b = await stream_pair(options)

    async def receive() -> None:
        with exs.BufferPool(10, 4) as pool:
            with pytest.raises(trio.ClosedResourceError):
                async with a.socket.receive_queue(pool) as rx:
                    await rx.get_many(1)
            assert pool.available == 4

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await a.aclose()
    await trio.aclose_forcefully(b)


async def test_a_message_longer_than_a_slab(channels: Channels) -> None:
    a, b = channels
    with exs.BufferPool(4, 4) as pool:
        async with b.socket.receive_queue(pool, depth=4) as rx:
            for message in (b"1", b"too long", b"3"):
                await a.send(message)
            assert [bytes(c.view) for c in await rx.get_many(10)] == [b"1"]
            with pytest.raises(exs.TruncatedError) as caught:
                await rx.get_many(10)
            assert (caught.value.length, caught.value.placed) == (8, 4)
            assert [bytes(c.view) for c in await rx.get_many(10)] == [b"3"]


async def test_refused_buffers_and_wrong_arguments(streams: Streams) -> None:
    a, b = streams
    with pytest.raises(ValueError, match="at least one deep"):
        a.socket.send_queue(0)
    with exs.BufferPool(10, 2) as pool:
        async with b.socket.receive_queue(pool) as rx:
            with pytest.raises(ValueError, match="at least one chunk"):
                await rx.get_many(0)
        async with a.socket.send_queue() as tx:
            with pytest.raises(TypeError):
                await tx.put("text")  # type: ignore[arg-type]
            with exs.MemoryRegion(bytearray(10), exs.Access.WRITE) as region:
                with pytest.raises(PermissionError):
                    await tx.put(region)
            await tx.put(b"")
            await tx.put_many([])
            with trio.testing.assert_checkpoints():
                await tx.put_many([b"x"])
            with trio.testing.assert_checkpoints():
                await tx.put(b"y")
            with trio.testing.assert_checkpoints():
                await tx.flush()
            with trio.testing.assert_no_checkpoints():
                tx.put_nowait(b"z")
    got = b""
    while len(got) < 3:
        got += await b.receive_some()
    assert got == b"xyz"


async def test_random_use_of_receive_queues_loses_nothing(options: exs.Options) -> None:
    """Queues come and go, chunks are taken or left, sends of all sizes: the bytes are the same."""
    a, b = await stream_pair(small(options))
    rng = random.Random(7)
    data = os.urandom(400_000)
    got = bytearray()

    async def send() -> None:
        at = 0
        while at < len(data):
            size = rng.randrange(1, 30_000)
            await a.send_all(data[at : at + size])
            at += size
        await a.send_eof()

    async with a, b, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        with exs.BufferPool(3000, 6) as pool:
            ended = False
            while not ended:
                async with b.socket.receive_queue(pool, depth=rng.randrange(1, 7)) as rx:
                    for _ in range(rng.randrange(1, 6)):
                        with trio.move_on_after(0.005):
                            chunks = await rx.get_many(rng.randrange(1, 5))
                            got += b"".join(bytes(c.view) for c in chunks)
                            ended = not chunks
                        if ended:
                            break
                if rng.random() < 0.5 and not ended:
                    more = await b.socket.recv(rng.randrange(1, 5000))
                    got += more
                    ended = not more
    assert got == data
