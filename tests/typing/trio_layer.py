# SPDX-License-Identifier: MIT OR Apache-2.0
"""What type checkers see of the trio layer; never run."""

from __future__ import annotations

import ssl
from typing import assert_type

import trio

import exs


async def handler(stream: exs.SocketStream) -> None:
    assert_type(await stream.receive_some(), bytes)
    assert_type(await stream.receive_into(bytearray(5)), int)
    await stream.send_all(b"x")
    await stream.send_all(memoryview(b"x"))
    await stream.send_all(exs.MemoryRegion(bytearray(5))[1:])


async def streams() -> None:
    async with await exs.open_stream("node2", 7471, options=exs.Options(path="tcp")) as stream:
        assert_type(stream, exs.SocketStream)
        assert_type(stream.socket, exs.Socket)
        half: trio.abc.HalfCloseableStream = stream
        trio.SSLStream(half, ssl.create_default_context(), server_hostname="node2")
    listeners = await exs.open_listeners(0, host="127.0.0.1")
    assert_type(listeners, list[exs.SocketListener])
    assert_type(await listeners[0].accept(), exs.SocketStream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handler, listeners)
        await nursery.start(exs.serve, handler, 7471)


async def messages() -> None:
    async with await exs.open_message_channel("node2", 7472) as channel:
        assert_type(channel, exs.MessageChannel)
        await channel.send(b"whole")
        assert_type(await channel.receive(), bytes)
        sender: trio.abc.SendChannel[bytes] = channel
        await sender.send(b"x")


async def sockets() -> None:
    sock = exs.socket(type=exs.SOCK_SEQPACKET, options=exs.Options(progress="thread", spin_us=0))
    assert_type(sock, exs.Socket)
    await sock.connect(("127.0.0.1", 7471))
    assert_type(await exs.send(sock, b"x"), int)
    assert_type(await exs.recv(sock, 100), bytes)
    assert_type(await exs.recv_into(sock, bytearray(5), waitall=True), int)
    assert_type(sock.statistics(), exs.Statistics)
    assert_type(exs.statistics().bytes_copied, int)
    with exs.BufferPool(4096, 16) as pool:
        async with sock.receive_queue(pool, depth=8) as rx:
            async for chunk in rx:
                assert_type(chunk, exs.RegionView)
            assert_type(await rx.get_many(64), list[exs.RegionView])
        async with sock.send_queue(depth=8) as tx:
            await tx.put_many(pool.region.split(64))
            tx.put_nowait(b"x")
            assert_type(tx.accepted, int)


def options() -> None:
    exs.Options(path="pigeon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    exs.Options(ring_bytes=1 << 20, keepalive=5, crc=True)
    for device in exs.list_devices():
        assert_type(device, exs.Device)
        assert_type(device.capabilities, exs.Capabilities | None)
