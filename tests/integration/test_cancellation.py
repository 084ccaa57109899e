# SPDX-License-Identifier: MIT OR Apache-2.0
"""What cancellation does to each operation, row by row, and that the buffer is ours again afterwards."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from endings import cancelled, only_sending_is_over
from ground import HOST

import exs
from exs.testing import PoisonedBuffer, message_pair, stream_pair

if TYPE_CHECKING:
    pass

Streams = tuple[exs.SocketStream, exs.SocketStream]
Channels = tuple[exs.MessageChannel, exs.MessageChannel]
MIB = 1 << 20


# --- before the post


async def test_nothing_is_done_in_a_cancelled_scope(streams: Streams) -> None:
    a, b = streams
    with trio.CancelScope() as scope:
        scope.cancel()
        for call in (
            lambda: a.send_all(b"never"),
            lambda: a.socket.send(b"never"),
            lambda: a.socket.sendmsg([b"never"]),
            a.wait_send_all_might_not_block,
            a.send_eof,
            a.receive_some,
            lambda: a.socket.recv(1),
            lambda: a.socket.recv_into(bytearray(1)),
            lambda: exs.register(bytearray(1)),
        ):
            with pytest.raises(trio.Cancelled):
                await call()
    await a.send_all(b"first")
    assert await b.receive_some() == b"first"


# --- sends


async def test_a_send_that_waits_is_withdrawn_without_effect(channels: Channels) -> None:
    a, b = channels
    with exs.MemoryRegion(bytearray(b"x" * 10_000)) as region:
        await cancelled(lambda: a.socket.send(region))
        assert region.in_use == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.socket.send, b"next")
            assert await b.receive() == b"next"


async def test_a_queued_send_of_a_stream_is_withdrawn_without_effect(clogged: Streams) -> None:
    a, b = clogged
    with exs.MemoryRegion(bytearray(b"x" * 10_000)) as region:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.socket.send, b"waits in front")
            await trio.testing.wait_all_tasks_blocked()
            await cancelled(lambda: a.socket.send(region))
            assert region.in_use == 0
            nursery.start_soon(a.socket.send, b"waits behind")
            got = bytearray()
            while not got.endswith(b"waits behind"):
                got += await b.receive_some()
    assert got.endswith(b"\0waits in frontwaits behind")


async def test_a_send_that_was_partly_given_ends_the_direction(options: exs.Options) -> None:
    few = exs.Options(path=options.path, progress=options.progress, close_timeout=2.0, ring_bytes=65536)
    a, b = await stream_pair(few)
    data = os.urandom(300_000)
    async with a, b:
        with exs.MemoryRegion(bytearray(data)) as region:
            await cancelled(lambda: a.send_all(region))
            assert region.in_use == 0
        got = await only_sending_is_over(a, b)
        assert 0 < len(got) < len(data)
        assert data.startswith(got)


async def test_waiting_for_room_is_withdrawn(clogged: Streams) -> None:
    a, b = clogged
    for _ in range(2):
        await cancelled(a.wait_send_all_might_not_block)
    assert await b.receive_some()
    await a.wait_send_all_might_not_block()


# --- receives


@pytest.mark.parametrize("waitall", [False, True])
async def test_a_receive_is_revoked_and_no_byte_is_lost(options: exs.Options, waitall: bool) -> None:
    a, b = await stream_pair(options)
    buffer = PoisonedBuffer(100_000)
    async with a, b:
        for i in range(5):
            await cancelled(lambda: b.socket.recv_into(buffer.buffer, waitall=waitall))
            buffer.poison()
            await a.send_all(b"whole %d" % i)
            assert await b.receive_some() == b"whole %d" % i
            buffer.check()
    buffer.close()


async def test_many_receives_are_revoked_in_any_order(options: exs.Options) -> None:
    a, b = await stream_pair(options)
    buffers = [PoisonedBuffer(10_000) for _ in range(20)]
    async with a, b:
        scopes: list[trio.CancelScope] = []
        results: dict[int, int] = {}

        async def receive(i: int) -> None:
            with trio.CancelScope() as scope:
                scopes.append(scope)
                results[i] = await b.socket.recv_into(buffers[i].buffer)

        async with trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(receive, i)
                await trio.testing.wait_all_tasks_blocked()
            for i in (19, 0, 7, 3, 12, 1):
                scopes[i].cancel()
            await trio.testing.wait_all_tasks_blocked()
            for i in range(20):
                if i not in (19, 0, 7, 3, 12, 1):
                    await a.send_all(bytes([i]) * 100)
                    await trio.testing.wait_all_tasks_blocked(0.005)
        assert results == {i: 100 for i in range(20) if i not in (19, 0, 7, 3, 12, 1)}
        for i in results:
            assert buffers[i].memory[:100] == bytes([i]) * 100
    for buffer in buffers:
        buffer.close()


async def test_a_receive_that_was_used_meanwhile_ends_normally_or_loses_nothing(options: exs.Options) -> None:
    a, b = await stream_pair(options)
    room = bytearray(1000)
    seen = bytearray()
    sent = b""
    async with a, b:
        for i in range(200):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def receive() -> None:
                        count = await b.socket.recv_into(room)
                        seen.extend(room[:count])

                    nursery.start_soon(receive)
                    if i % 3:
                        await trio.testing.wait_all_tasks_blocked()
                    piece = b"<%d>" % i
                    sent += piece
                    await a.send_all(piece)
                    scope.cancel()
        await a.aclose()
        while more := await b.receive_some():
            seen += more
    assert seen == sent


async def test_a_waitall_that_was_partly_filled_returns_what_it_has(options: exs.Options) -> None:
    a, b = await stream_pair(options)
    async with a, b:
        room = bytearray(100_000)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                counts: list[int] = []

                async def receive() -> None:
                    counts.append(await b.socket.recv_into(room, waitall=True))

                nursery.start_soon(receive)
                await trio.testing.wait_all_tasks_blocked()
                await a.send_all(b"partly")
                await trio.sleep(0.05)
                scope.cancel()
        assert counts == [6]
        assert room[:6] == b"partly"
        await a.send_all(b"more")
        assert await b.receive_some() == b"more"


async def test_receive_some_is_cancelled_or_returns_data(streams: Streams) -> None:
    a, b = streams
    for i in range(20):
        await cancelled(b.receive_some)
        await a.send_all(b"%d" % i)
        assert await b.receive_some() == b"%d" % i


async def test_a_message_is_not_lost_by_cancelled_receives(channels: Channels) -> None:
    a, b = channels
    got: list[bytes] = []
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            for i in range(100):
                await a.send(b"%d" % i)

        nursery.start_soon(send)
        while len(got) < 100:
            with trio.move_on_after(0.0005):
                while len(got) < 100:
                    got.append(await b.receive())
    assert got == [b"%d" % i for i in range(100)]


# --- connections


async def test_a_cancelled_connect_closes_the_socket(options: exs.Options) -> None:
    # A listener of TCP that never answers the set-up.
    silent = trio.socket.socket()
    with silent:
        await silent.bind((HOST, 0))
        silent.listen(5)
        sock = exs.socket(options=options)
        await cancelled(lambda: sock.connect(silent.getsockname()))
        assert sock.closed
        with pytest.raises(trio.ClosedResourceError):
            await sock.send(b"x")


async def test_a_cancelled_accept_takes_no_connection(options: exs.Options) -> None:
    (listener,) = await exs.open_listeners(0, host=HOST, options=options)
    async with listener:
        for _ in range(3):
            await cancelled(listener.accept)
        async with trio.open_nursery() as nursery:
            got: list[exs.SocketStream] = []

            async def dial() -> None:
                got.append(await exs.open_stream(HOST, listener.address[1], options=options))

            nursery.start_soon(dial)
            await trio.sleep(0.05)  # the connection waits in the backlog
            with trio.CancelScope() as scope:
                scope.cancel()
                await listener.accept()
            b = await listener.accept()
        async with got[0] as a, b:
            await a.send_all(b"here")
            assert await b.receive_some() == b"here"


# --- memory and closing


async def test_aclose_of_a_region_waits_and_its_cancel_leaves_the_memory_valid(options: exs.Options) -> None:
    a, b = await message_pair(options)
    async with a, b:
        region = exs.MemoryRegion(bytearray(b"y" * 100))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.send, region)
            await trio.testing.wait_all_tasks_blocked()
            await cancelled(region.aclose)
            with pytest.raises(exs.Error):
                await b.send(region)
            assert await b.receive() == b"y" * 100
        await trio.testing.wait_all_tasks_blocked()
        assert region.in_use == 0


async def test_a_cancelled_aclose_with_an_operation_in_flight_breaks_the_connection(options: exs.Options) -> None:
    for make in (stream_pair, message_pair):
        a, b = await make(options)

        async def receive(sock: exs.Socket = a.socket) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await sock.recv(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                scope.cancel()
                await a.aclose()
            assert scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await a.socket.send(b"x")
        with pytest.raises(exs.Error) as caught:
            await b.socket.recv(10)
        assert caught.value.errno == errno.ECONNRESET
        await trio.aclose_forcefully(b)


async def test_a_cancelled_aclose_of_an_idle_stream_loses_nothing_of_what_was_sent(options: exs.Options) -> None:
    """A handler of trio.serve_listeners need not close its stream: trio does it, in a cancelled scope."""
    data = os.urandom(200_000)

    async def handler(stream: exs.SocketStream) -> None:
        await stream.send_all(data)

    (listener,) = await exs.open_listeners(0, host=HOST, options=options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        for _ in range(5):
            async with await exs.open_stream(HOST, listener.address[1], options=options) as stream:
                got = bytearray()
                async for part in stream:
                    got += part
                    await trio.sleep(0)
            assert got == data
        nursery.cancel_scope.cancel()


async def test_an_aclose_that_waits_is_made_an_abort(clogged: Streams) -> None:
    a, _ = clogged
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await a.socket.send(b"waits for ever")

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        await cancelled(a.aclose)
    assert a.socket.closed


async def test_a_deadline_on_a_stalled_peer_costs_no_more_than_the_close_timeout(options: exs.Options) -> None:
    few = exs.Options(path=options.path, progress=options.progress, close_timeout=0.3, ring_bytes=65536)
    a, b = await stream_pair(few)
    with exs.MemoryRegion(bytearray(MIB)) as region:
        with trio.move_on_after(0.05) as scope:
            await a.send_all(region)
        assert scope.cancelled_caught
        assert region.in_use == 0
    await trio.aclose_forcefully(a)
    await trio.aclose_forcefully(b)
