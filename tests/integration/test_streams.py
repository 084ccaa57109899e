# SPDX-License-Identifier: MIT OR Apache-2.0
"""Streams and listeners with the rest of trio: serve_listeners, TLS, names with several addresses, Ctrl-C rules."""

from __future__ import annotations

import errno
import os
import socket as std_socket
import ssl
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
import trustme
from ground import HOST, HOST6, scaled, silent

import exs
from exs.testing import message_pair, stream_pair

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Streams = tuple[exs.SocketStream, exs.SocketStream]
MIB = 1 << 20


async def echo(stream: exs.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def test_serve_runs_a_task_for_each_connection(options: exs.Options) -> None:
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[exs.SocketListener]]) -> None:
            await exs.serve(echo, 0, host=HOST, options=options, task_status=task_status)

        (listener,) = await nursery.start(serve)

        async def client(i: int) -> None:
            async with await exs.open_stream(HOST, listener.address[1], options=options) as stream:
                for size in (1, 1000, 100_000):
                    data = bytes([i]) * size
                    async with trio.open_nursery() as both:
                        both.start_soon(stream.send_all, data)
                        got = bytearray()
                        while len(got) < size:
                            got += await stream.receive_some()
                    assert got == data

        async with trio.open_nursery() as clients:
            for i in range(10):
                clients.start_soon(client, i)
        nursery.cancel_scope.cancel()


async def test_trio_serve_listeners_serves_messages_too(options: exs.Options) -> None:
    async def handler(channel: exs.MessageChannel) -> None:
        async for message in channel:
            await channel.send(bytes(message)[::-1])

    listeners = await exs.open_message_listeners(0, host=HOST, options=options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        async with await exs.open_message_channel(HOST, listeners[0].address[1], options=options) as channel:
            for message in (b"abc", b"", b"0" * 60_000 + b"1"):
                await channel.send(message)
                assert await channel.receive() == message[::-1]
        nursery.cancel_scope.cancel()


async def test_tls_over_our_stream(options: exs.Options) -> None:
    authority = trustme.CA()
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("example.org").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    data = os.urandom(scaled(2 * MIB))

    async def handler(stream: trio.SSLStream[exs.SocketStream]) -> None:
        got = bytearray()
        async for part in stream:
            got += part
            if len(got) == len(data):
                await stream.send_all(bytes(got[::-1]))

    listeners = [
        trio.SSLListener(listener, server_context)
        for listener in await exs.open_listeners(0, host=HOST, options=options)
    ]
    port = listeners[0].transport_listener.address[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        raw = await exs.open_stream(HOST, port, options=options)
        async with trio.SSLStream(raw, client_context, server_hostname="example.org") as stream:
            await stream.send_all(data)
            got = bytearray()
            while len(got) < len(data):
                got += await stream.receive_some()
            assert got == data[::-1]
        nursery.cancel_scope.cancel()


async def test_an_accepted_connection_may_be_dead_already(options: exs.Options) -> None:
    (listener,) = await exs.open_listeners(0, host=HOST, options=options)
    alive = 0

    async def accept() -> None:
        nonlocal alive
        while alive < 2:
            async with await listener.accept() as stream:
                try:
                    alive += await stream.receive_some() == b"alive"
                except trio.BrokenResourceError:
                    pass

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        for i in range(4):
            stream = await exs.open_stream(HOST, listener.address[1], options=options)
            if i % 2:
                await stream.send_all(b"alive")
                await stream.aclose()
            else:
                await trio.aclose_forcefully(stream)
    assert alive == 2


async def test_a_closed_listener_wakes_accept(options: exs.Options) -> None:
    (listener,) = await exs.open_listeners(0, host=HOST, options=options)

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    with pytest.raises(OSError, match="failed"):
        await exs.open_stream(HOST, 1, options=options)


# --- names with several addresses


class Resolver(trio.abc.HostnameResolver):
    """Gives the addresses that a test wants."""

    def __init__(self, *targets: tuple[str, int]) -> None:
        self.targets = targets

    async def getaddrinfo(
        self, host: object, port: object, family: object = 0, *_: object, **__: object
    ) -> list[object]:  # type: ignore[override]
        await trio.lowlevel.checkpoint()
        return [
            (
                std_socket.AF_INET6 if ":" in address else std_socket.AF_INET,
                std_socket.SOCK_STREAM,
                0,
                "",
                (address, p, 0, 0) if ":" in address else (address, p),
            )
            for address, p in self.targets
        ]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:  # type: ignore[override]
        raise NotImplementedError


async def test_the_next_address_is_tried_when_one_refuses_or_is_silent(path: str) -> None:
    options = exs.Options(path=path)  # type: ignore[arg-type]
    (listener,) = await exs.open_listeners(0, host=HOST, options=options)
    mute = trio.socket.socket()
    await mute.bind(("127.0.0.2", 0))
    mute.listen(1)
    with std_socket.create_server((HOST, 0)) as unused:
        refused = unused.getsockname()[1]
    try:
        async with listener:
            good = (HOST, listener.address[1])
            trio.socket.set_custom_hostname_resolver(
                Resolver(("127.0.0.2", mute.getsockname()[1]), (HOST, refused), (HOST6, refused), good)
            )
            async with trio.open_nursery() as nursery:
                accepted: list[exs.SocketStream] = []

                async def accept() -> None:
                    accepted.append(await listener.accept())

                nursery.start_soon(accept)
                stream = await exs.open_stream("several.example", 1, options=options, happy_eyeballs_delay=0.05)
            assert stream.socket.getpeername()[:2] == good
            await stream.send_all(b"x")
            assert await accepted[0].receive_some() == b"x"
            await stream.aclose()
            await accepted[0].aclose()
            trio.socket.set_custom_hostname_resolver(Resolver((HOST, refused), (HOST6, refused)))
            with pytest.raises(OSError, match=r"several\.example:1 failed") as caught:
                await exs.open_stream("several.example", 1, options=options)
            cause = caught.value.__cause__
            assert isinstance(cause, ExceptionGroup)
            assert [error.errno for error in cause.exceptions] == [errno.ECONNREFUSED] * 2  # type: ignore[attr-defined]
    finally:
        mute.close()


async def test_a_cancelled_open_leaves_nothing_open() -> None:
    with silent() as (host, port):
        with trio.move_on_after(0.05) as scope:
            await exs.open_stream(host, port)
        assert scope.cancelled_caught


async def test_wrong_arguments() -> None:
    for call in (
        lambda: exs.open_stream(HOST, "80"),  # type: ignore[arg-type]
        lambda: exs.open_stream(80, 80),  # type: ignore[arg-type]
        lambda: exs.open_listeners("80"),  # type: ignore[arg-type]
        lambda: exs.open_listeners(0, backlog="many"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            await call()  # type: ignore[no-untyped-call]
    sock = exs.socket()
    with pytest.raises(ValueError, match="SOCK_SEQPACKET"):
        exs.MessageChannel(sock)
    with pytest.raises(ValueError, match="listening"):
        exs.SocketListener(sock)
    with pytest.raises(TypeError):
        exs.SocketStream(object())  # type: ignore[arg-type]
    sock.close()


async def test_listeners_on_every_address() -> None:
    listeners = await exs.open_listeners(0)
    try:
        for listener in listeners:
            host = HOST6 if ":" in listener.address[0] else HOST
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, echo, [listener])
                async with await exs.open_stream(host, listener.address[1]) as stream:
                    await stream.send_all(b"x")
                    assert await stream.receive_some() == b"x"
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            await listener.aclose()


# --- Busy, Closed, Broken, and checkpoints


async def test_every_call_is_a_checkpoint(options: exs.Options) -> None:
    a, b = await stream_pair(options)
    c, d = await message_pair(options)
    room = bytearray(100)

    async def yields(call: Callable[[], Awaitable[object]]) -> None:
        with trio.testing.assert_checkpoints():
            await call()

    for call in (
        lambda: a.send_all(b"12345678"),
        lambda: a.send_all(b""),
        a.wait_send_all_might_not_block,
        lambda: b.receive_some(1),
        lambda: b.receive_into(room),
        lambda: b.socket.send(b"x"),
        lambda: b.socket.sendmsg([b"x", b"y"]),
        lambda: b.socket.send(b""),
        lambda: a.socket.recv(1),
        lambda: a.socket.recv_into(room),
        a.send_eof,
        a.send_eof,
        b.receive_some,
        a.aclose,
        a.aclose,
        b.aclose,
    ):
        await yields(call)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(yields, lambda: c.send(b"x"))
        nursery.start_soon(yields, d.receive)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(yields, lambda: c.send(b"x"))
        nursery.start_soon(yields, lambda: d.receive_into(room))
    await yields(c.aclose)
    await yields(d.aclose)
    (listener,) = await exs.open_listeners(0, host=HOST, options=options)
    ends: list[exs.SocketStream] = []

    async def dial() -> None:
        ends.append(await exs.open_stream(HOST, listener.address[1], options=options))

    async def accept() -> None:
        ends.append(await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(yields, dial)
        nursery.start_soon(yields, accept)
    await yields(listener.aclose)
    for end in ends:
        await end.aclose()


async def test_receiving_in_two_tasks_is_busy(streams: Streams) -> None:
    a, b = streams
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        for call in (b.receive_some, lambda: b.receive_into(bytearray(1))):
            with pytest.raises(trio.BusyResourceError):
                await call()
        await a.send_all(b"x")


async def test_broken_keeps_its_cause(streams: Streams) -> None:
    a, b = streams
    b.socket.close()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await a.receive_some()
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    for call in (lambda: a.send_all(b"x"), a.send_eof):
        with pytest.raises(trio.BrokenResourceError):
            await call()
    await a.wait_send_all_might_not_block()  # what comes next will not block, it will fail


async def test_both_ways_at_once_and_much(streams: Streams) -> None:
    a, b = streams
    data = os.urandom(scaled(8 * MIB))

    async def send(stream: exs.SocketStream, data: bytes) -> None:
        await stream.send_all(data)
        await stream.send_eof()

    async def receive(stream: exs.SocketStream, data: bytes) -> None:
        got = bytearray()
        async for part in stream:
            got += part
        assert got == data

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, a, data)
        nursery.start_soon(send, b, data[::-1])
        nursery.start_soon(receive, b, data)
        nursery.start_soon(receive, a, data[::-1])
