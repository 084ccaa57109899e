# SPDX-License-Identifier: MIT OR Apache-2.0
"""exs.Socket and the functions of exs.api: transfers, names, options, errors, and whose a socket is."""

from __future__ import annotations

import errno
import os
import socket as std_socket
import threading
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from ground import DEVICE_NAME, HOST, HOST6, VERBS, scaled, shown

import exs
from exs.testing import message_pair, stream_pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Streams = tuple[exs.SocketStream, exs.SocketStream]
Channels = tuple[exs.MessageChannel, exs.MessageChannel]
MIB = 1 << 20


async def connected(kind: int, options: exs.Options | None = None) -> tuple[exs.Socket, exs.Socket]:
    if kind == exs.SOCK_STREAM:
        a, b = await stream_pair(options)
        return a.socket, b.socket
    c, d = await message_pair(options)
    return c.socket, d.socket


async def test_the_functions_are_the_methods(options: exs.Options) -> None:
    async with exs.socket(exs.SOCK_STREAM, options) as listener:
        listener.bind((HOST, 0))
        listener.listen()
        async with exs.socket(options=options) as a, trio.open_nursery() as nursery:
            taken: list[tuple[exs.Socket, object]] = []

            async def accept() -> None:
                taken.append(await exs.accept(listener))

            nursery.start_soon(accept)
            await exs.connect(a, listener.getsockname())
            nursery.cancel_scope.deadline = trio.current_time() + 10
            while not taken:
                await trio.sleep(0.001)
            b, address = taken[0]
            async with b:
                assert address == a.getsockname() == b.getpeername()
                assert b.getsockname() == listener.getsockname() == a.getpeername()
                assert await exs.send(a, b"hello") == 5
                assert await exs.recv(b, 100) == b"hello"
                room = bytearray(100)
                assert await exs.send(b, b"back") == 4
                assert await exs.recv_into(a, room) == 4
                assert room[:4] == b"back"
                assert a.path == b.path == shown(options.path)
                assert a.device is not None
                assert a.device.name == DEVICE_NAME


@pytest.mark.parametrize("kind", [exs.SOCK_STREAM, exs.SOCK_SEQPACKET], ids=["stream", "seqpacket"])
@pytest.mark.parametrize("register", [True, False], ids=["registered", "plain"])
async def test_bytes_arrive_as_they_were(options: exs.Options, kind: int, register: bool) -> None:
    a, b = await connected(kind, options)
    sizes = [1, 63, 64, 4096, 4097, 8192, 65536, 65537, 300_000, 3 * MIB + 5]
    data = os.urandom(max(sizes))
    room = bytearray(max(sizes))
    async with a, b:
        source = exs.MemoryRegion(data, exs.Access.READ) if register else None
        target = exs.MemoryRegion(room, exs.Access.WRITE) if register else None

        async def send(size: int) -> None:
            assert await a.send(source[:size] if source else memoryview(data)[:size]) == size

        async def receive(size: int) -> None:
            got = 0
            while got < size:
                got += await b.recv_into(target[got:size] if target else memoryview(room)[got:size])

        for size in sizes:
            for first, second in ((send, receive), (receive, send)):
                room[:size] = bytes(size)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(first, size)
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(second, size)
                assert room[:size] == data[:size]
        for region in (source, target):
            if region is not None:
                assert region.in_use == 0
                region.close()


async def test_several_operations_in_flight_take_effect_in_the_order_of_the_calls(options: exs.Options) -> None:
    a, b = await connected(exs.SOCK_STREAM, options)
    pieces = [bytes([i]) * (10_000 + i) for i in range(50)]
    async with a, b, trio.open_nursery() as nursery:
        for piece in pieces:
            nursery.start_soon(a.send, piece)
            await trio.testing.wait_all_tasks_blocked()
        total = sum(map(len, pieces))
        room = bytearray(total)
        assert await b.recv_into(room, waitall=True) == total
        assert room == b"".join(pieces)


async def test_more_operations_than_the_limit_wait_their_turn(options: exs.Options) -> None:
    few = exs.Options(path=options.path, progress=options.progress, queue_depth=4, ring_bytes=65536)
    a, b = await connected(exs.SOCK_STREAM, few)
    async with a, b, trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(a.send, bytes([i]) * 30_000)
            await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.01) as scope:  # one that gives up while it is in line
            await a.send(b"never")
        assert scope.cancelled_caught
        room = bytearray(20 * 30_000)
        assert await b.recv_into(room, waitall=True) == len(room)
        assert room == b"".join(bytes([i]) * 30_000 for i in range(20))


async def test_pieces_travel_as_one(options: exs.Options) -> None:
    for kind in (exs.SOCK_STREAM, exs.SOCK_SEQPACKET):
        a, b = await connected(kind, options)
        async with a, b, trio.open_nursery() as nursery:
            with exs.MemoryRegion(bytearray(b"-middle-")) as region:
                nursery.start_soon(a.sendmsg, [b"first", region[1:7], bytearray(b"last")])
                got = b""
                while len(got) < 15:
                    one, two = bytearray(3), bytearray(100)
                    count = await b.recvmsg_into([one, two])
                    got += (one + two)[:count]
                    assert count == 15 or kind == exs.SOCK_STREAM  # which may deliver it in parts
                assert got == b"firstmiddlelast"


async def test_waitall_waits_for_all(options: exs.Options) -> None:
    a, b = await connected(exs.SOCK_STREAM, options)
    async with a, b, trio.open_nursery() as nursery:
        room = bytearray(10)

        async def send() -> None:
            for i in range(10):
                await trio.testing.wait_all_tasks_blocked()
                await a.send(bytes([i]))

        nursery.start_soon(send)
        assert await b.recv_into(room, waitall=True) == 10
        assert room == bytes(range(10))
        nursery.start_soon(a.send, b"short")
        assert await b.recv_into(room) == 5
        nursery.start_soon(a.send, b"end")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(a.send_eof)
        assert await b.recv_into(room, waitall=True) == 3
        assert await b.recv_into(room, waitall=True) == 0
        assert await b.recv(10) == b""


async def test_a_message_longer_than_the_buffer_says_so(options: exs.Options) -> None:
    a, b = await connected(exs.SOCK_SEQPACKET, options)
    async with a, b, trio.open_nursery() as nursery:
        nursery.start_soon(a.send, b"0123456789")
        room = bytearray(4)
        with pytest.raises(exs.TruncatedError) as caught:
            await b.recv_into(room)
        assert (caught.value.length, caught.value.placed, bytes(room)) == (10, 4, b"0123")
        nursery.start_soon(a.send, b"next")
        assert await b.recv(100) == b"next"


async def test_a_strict_sender_is_told_instead(path: str) -> None:
    a, b = await connected(exs.SOCK_SEQPACKET, exs.Options(path=path, strict_size=True))  # type: ignore[arg-type]
    async with a, b, trio.open_nursery() as nursery:
        got: list[bytes] = []

        async def receive() -> None:
            got.append(await b.recv(4))

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(exs.Error) as caught:
            await a.send(b"0123456789")
        assert caught.value.errno == errno.EMSGSIZE
        await a.send(b"0123")
    assert got == [b"0123"]


async def test_nobody_listens() -> None:
    with std_socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]
    async with exs.socket() as sock:
        with pytest.raises(ConnectionRefusedError) as caught:
            await sock.connect((HOST, port))
        assert isinstance(caught.value, exs.Error)
    with pytest.raises(OSError, match="all attempts to connect") as failed:
        await exs.open_stream(HOST, port)
    assert isinstance(failed.value.__cause__, ExceptionGroup)


async def test_a_socket_that_is_not_connected_says_so() -> None:
    async with exs.socket() as sock:
        for call in (lambda: sock.send(b"x"), lambda: sock.recv(1), sock.accept):
            with pytest.raises(exs.Error) as caught:
                await call()
            assert caught.value.errno in (errno.ENOTCONN, errno.EINVAL)
        with pytest.raises(exs.Error) as caught:
            sock.getpeername()
        assert caught.value.errno == errno.ENOTCONN


async def test_an_address_in_use() -> None:
    async with exs.socket() as one, exs.socket() as two:
        one.bind((HOST, 0))
        one.listen()
        with pytest.raises(exs.Error) as caught:
            two.bind(one.getsockname())
            two.listen()
        assert caught.value.errno == errno.EADDRINUSE


async def test_options_of_the_socket_api() -> None:
    async with exs.socket(exs.SOCK_SEQPACKET) as sock:
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_TYPE) == exs.SOCK_SEQPACKET
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_DOMAIN) == std_socket.AF_INET
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ERROR) == 0
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ACCEPTCONN) == 0
        assert sock.getsockopt(std_socket.IPPROTO_TCP, std_socket.TCP_NODELAY) == 1
        sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 0)
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR) == 0
        sock.bind((HOST6, 0))
        assert sock.family == std_socket.AF_INET6
        sock.listen()
        assert sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_ACCEPTCONN) == 1
        with pytest.raises(exs.Error) as caught:
            sock.setsockopt(std_socket.SOL_SOCKET, std_socket.SO_REUSEADDR, 1)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(exs.Error) as caught:
            sock.getsockopt(std_socket.SOL_SOCKET, std_socket.SO_BROADCAST)
        assert caught.value.errno == errno.ENOPROTOOPT


async def test_ipv6(options: exs.Options) -> None:
    a, b = await stream_pair(options, host=HOST6)
    async with a, b:
        await a.send_all(b"six")
        assert await b.receive_some() == b"six"
        assert a.socket.getpeername()[0] == HOST6


async def test_a_forced_path_that_is_not_available_is_refused() -> None:
    shm, tcp = exs.Options(path="shm-vm"), exs.Options(path="tcp")
    listeners = await exs.open_listeners(0, host=HOST, options=tcp)
    async with listeners[0]:
        with pytest.raises(exs.NoDeviceError):
            await exs.open_stream(HOST, listeners[0].address[1], options=shm)


async def test_closing_ends_what_waits(options: exs.Options) -> None:
    for kind in (exs.SOCK_STREAM, exs.SOCK_SEQPACKET):
        for in_order in (True, False):
            a, b = await connected(kind, options)

            async def expect(call: Callable[[], Awaitable[object]]) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await call()

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(expect, lambda a=a: a.recv(10))
                await trio.testing.wait_all_tasks_blocked()
                if in_order:
                    await a.aclose()
                else:
                    a.close()
            with pytest.raises(trio.ClosedResourceError):
                await a.send(b"x")
            with pytest.raises(trio.ClosedResourceError):
                a.getsockname()
            assert a.closed
            a.close()
            await a.aclose()
            await b.aclose()


async def test_a_peer_that_is_aborted_leaves_an_error_on_each_operation(options: exs.Options) -> None:
    a, b = await connected(exs.SOCK_STREAM, options)
    errors: list[int | None] = []

    async def receive() -> None:
        try:
            await b.recv(10)
        except exs.Error as error:
            errors.append(error.errno)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        a.close()
    assert errors == [errno.ECONNRESET] * 3
    with pytest.raises(exs.Error):
        await b.send(b"x")
    await b.aclose()


async def test_what_was_accepted_goes_out_before_an_orderly_close(options: exs.Options) -> None:
    a, b = await connected(exs.SOCK_STREAM, options)
    data = os.urandom(scaled(5 * MIB, MIB))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.send, data)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(a.aclose)
        await trio.testing.wait_all_tasks_blocked()
        room = bytearray(len(data) + 1)
        assert await b.recv_into(room, waitall=True) == len(data)
        assert room[:-1] == data
    await b.aclose()


async def test_counters_of_a_closed_socket_stay(streams: Streams) -> None:
    a, b = streams
    await a.send_all(b"12345")
    assert await b.receive_some() == b"12345"
    await a.aclose()
    assert a.socket.statistics().bytes_sent == 5
    assert a.socket.path == b.socket.path
    assert bool(a.socket.path) != VERBS


def test_a_socket_belongs_to_its_run() -> None:
    kept: list[exs.Socket] = []

    async def make() -> None:
        kept.append(exs.socket())
        kept[0].close()
        kept.append(exs.socket())

    with pytest.warns(ResourceWarning, match="still open at the end"):
        trio.run(make)

    async def use() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await kept[1].send(b"x")

    trio.run(use)
    with pytest.raises(RuntimeError):
        exs.socket()


async def test_a_socket_is_not_used_from_another_thread_or_run(streams: Streams) -> None:
    a, _ = streams

    async def elsewhere() -> None:
        for call in (lambda: a.socket.send(b"x"), lambda: a.receive_some(), lambda: a.socket.aclose()):
            with pytest.raises(RuntimeError, match="trio run that made it"):
                await call()

    await trio.to_thread.run_sync(trio.run, elsewhere)
    assert threading.active_count() >= 1
    await a.send_all(b"still well")


async def test_wrong_arguments(streams: Streams) -> None:
    a, _ = streams
    with pytest.raises(TypeError):
        await a.send_all("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        await a.send_all(memoryview(b"0123456789")[::2])
    with pytest.raises(ValueError, match="read-only"):
        await a.receive_into(b"read-only")
    with pytest.raises(ValueError, match="type must be"):
        exs.socket(std_socket.SOCK_DGRAM)
    with exs.MemoryRegion(b"only to be read", exs.Access.READ) as region:
        with pytest.raises(PermissionError):
            await a.receive_into(region)
    region = exs.MemoryRegion(bytearray(10))
    region.close()
    with pytest.raises(exs.Error):
        await a.send_all(region)
    await a.send_all(b"still well")
