# SPDX-License-Identifier: MIT OR Apache-2.0
"""What ends early, and what is left then: a cancelled end mark, a cut stream, a block with a task still inside."""

from __future__ import annotations

import errno
import signal
import sys
from functools import partial

import pytest
import trio
import trio.testing
from endings import cancelled, rest_of
from ground import HOST

import exs
from exs.testing import stream_pair

Streams = tuple[exs.SocketStream, exs.SocketStream]


# --- the end mark


async def test_an_end_mark_that_was_cancelled_before_it_began_did_nothing(streams: Streams) -> None:
    a, b = streams
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled):
            await a.send_eof()
    await a.send_all(b"goes on")
    assert await b.receive_some() == b"goes on"


async def test_an_end_mark_whose_wait_was_cancelled_follows_what_was_accepted(clogged: Streams) -> None:
    a, b = clogged
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.socket.send, b"tail")
        await trio.testing.wait_all_tasks_blocked()
        await cancelled(a.send_eof)
        with pytest.raises(trio.ClosedResourceError):
            await a.send_all(b"too late")
        with pytest.raises(BrokenPipeError):
            await a.socket.send(b"too late")
        await a.wait_send_all_might_not_block()  # sending fails, and at once
        assert (await rest_of(b)).endswith(b"tail")
    await a.send_eof()  # by now it is out
    assert await a.receive_some()  # the other way is open


async def test_nobody_waits_for_room_in_a_stream_that_was_cut(options: exs.Options) -> None:
    few = exs.Options(path=options.path, progress=options.progress, close_timeout=2.0, ring_bytes=65536)
    a, b = await stream_pair(few)
    async with a, b:
        await cancelled(partial(a.send_all, bytes(300_000)))
        await a.wait_send_all_might_not_block()
        with pytest.raises(trio.BrokenResourceError):
            await a.send_all(b"x")
        await trio.aclose_forcefully(a)


# --- leaving the block of a queue


async def test_leaving_a_send_queue_ends_the_call_of_another_task(options: exs.Options) -> None:
    few = exs.Options(path=options.path, progress=options.progress, close_timeout=2.0, ring_bytes=65536)
    a, b = await stream_pair(few)
    ended = []

    async def produce(tx: exs.SendQueue, call: str) -> None:
        try:
            while True:
                await (tx.put(bytes(100_000)) if call == "put" else tx.put_many([bytes(100_000)] * 20))
        except trio.ClosedResourceError:
            ended.append(call)

    async with a, b:
        for call in ("put", "put_many"):
            async with trio.open_nursery() as nursery:
                with pytest.raises(KeyError):
                    async with a.socket.send_queue(depth=2) as tx:
                        nursery.start_soon(produce, tx, call)
                        await trio.testing.wait_all_tasks_blocked()
                        raise KeyError
                assert tx.in_flight == 0
            assert ended.pop() == call
            a, b = b, a
        await trio.aclose_forcefully(a)
        await trio.aclose_forcefully(b)


async def test_leaving_a_send_queue_flushes_although_another_task_is_waiting(options: exs.Options) -> None:
    few = exs.Options(path=options.path, progress=options.progress, ring_bytes=65536)
    a, b = await stream_pair(few)
    accepted = 0

    async def produce(tx: exs.SendQueue) -> None:
        with pytest.raises(trio.ClosedResourceError):
            while True:
                await tx.put(bytes(100_000))

    async def leave() -> None:
        nonlocal accepted
        async with trio.open_nursery() as nursery, a.socket.send_queue(depth=2) as tx:
            nursery.start_soon(produce, tx)
            await trio.testing.wait_all_tasks_blocked()
            nursery_outer.start_soon(rest)
        accepted = tx.accepted
        await a.send_eof()

    async def rest() -> None:
        nonlocal received
        received = len(await rest_of(b))

    received = 0
    async with a, b:
        async with trio.open_nursery() as nursery_outer:
            nursery_outer.start_soon(leave)
        assert received == accepted * 100_000 > 0


async def test_leaving_a_receive_queue_ends_the_call_of_another_task(streams: Streams) -> None:
    a, b = streams

    async def consume(rx: exs.ReceiveQueue) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await rx.get_many(1)

    with exs.BufferPool(4096, 4) as pool:
        async with trio.open_nursery() as nursery, b.socket.receive_queue(pool) as rx:
            nursery.start_soon(consume, rx)
            await trio.testing.wait_all_tasks_blocked()
        assert pool.available == 4
        with pytest.raises(trio.ClosedResourceError):
            await rx.get_many(1)
    await a.send_all(b"for the next one")
    assert await b.receive_some() == b"for the next one"


# --- memory


async def test_another_aclose_of_a_region_waits_as_the_first_did(options: exs.Options) -> None:
    few = exs.Options(path=options.path, progress=options.progress, close_timeout=2.0, ring_bytes=65536)
    a, b = await stream_pair(few)
    region = exs.MemoryRegion(bytearray(300_000))

    async def send() -> None:
        await a.send_all(region)
        await a.send_eof()

    async def close() -> None:
        await region.aclose()
        assert region.in_use == 0

    async with a, b, trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await cancelled(region.aclose)
        assert region.closed
        assert region.in_use
        nursery.start_soon(close)
        nursery.start_soon(region.aclose)
        await trio.testing.wait_all_tasks_blocked()
        assert region.in_use
        assert len(await rest_of(b)) == 300_000


# --- connect


class NoAnswer(trio.abc.HostnameResolver):
    """Looks a name up for ever."""

    async def getaddrinfo(self, *args: object, **kwargs: object) -> list:  # type: ignore[type-arg, override]
        await trio.sleep_forever()
        return []

    async def getnameinfo(self, *args: object) -> tuple[str, str]:  # type: ignore[override]
        raise NotImplementedError


async def test_a_connect_that_is_cancelled_while_it_looks_the_name_up_closes_the_socket() -> None:
    trio.socket.set_custom_hostname_resolver(NoAnswer())
    sock = exs.socket()
    await cancelled(lambda: sock.connect(("name.invalid", 1)))
    assert sock.closed


async def test_wrong_arguments_of_connect_leave_the_socket_as_it_is() -> None:
    sock = exs.socket()
    for address in ((80, 80), (HOST, "80"), (HOST,)):
        with pytest.raises((TypeError, IndexError)):
            await sock.connect(address)  # type: ignore[arg-type]
    assert not sock.closed
    with pytest.raises(exs.Error) as caught:
        await sock.connect((HOST, 1))
    assert caught.value.errno == errno.ECONNREFUSED
    await sock.aclose()


# --- Ctrl-C


def test_ctrl_c_loses_no_slab() -> None:
    """A line of a pool after the other is interrupted: afterwards all slabs are there."""
    here = exs.BufferPool.acquire.__code__.co_filename

    async def one(pool: exs.BufferPool, step: int) -> bool:
        count = 0

        def trace(frame: object, event: str, arg: object) -> object:
            nonlocal count
            if frame.f_code.co_filename != here:  # type: ignore[attr-defined]
                return None
            if event == "line":
                count += 1
                if count == step:
                    signal.raise_signal(signal.SIGINT)
            return trace

        async def hold() -> None:
            async with pool.take() as slab:
                await trio.lowlevel.checkpoint()
                assert slab.length == 100

        first = await pool.acquire()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hold)  # waits, since there is one only
                await trio.testing.wait_all_tasks_blocked()
                sys.settrace(trace)  # type: ignore[arg-type]
                try:
                    pool.give(first)
                    await trio.testing.wait_all_tasks_blocked()
                    async with pool.take():
                        pass
                finally:
                    sys.settrace(None)
        finally:
            sys.settrace(None)
        return count < step

    interrupted = 0
    with exs.BufferPool(100, 1) as pool:
        step = 1
        while True:
            over = False
            try:
                over = trio.run(one, pool, step)
            except (KeyboardInterrupt, BaseExceptionGroup):
                interrupted += 1
            assert pool.available == 1, step
            if over:
                break
            step += 1
    assert step > 20
    assert interrupted > 20
