# SPDX-License-Identifier: MIT OR Apache-2.0
"""Faults by script between two ends of path tcp: each operation ends once, with the error that is documented."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

import exs
from exs.testing import Corrupt, Cut, Inject, Stall, tcp_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

MIB = 1 << 20
SETUP = 1000  # by then the set-up is over, both ways


@asynccontextmanager
async def through(*faults: object, **choices: object) -> AsyncIterator[tuple[exs.SocketStream, exs.SocketStream]]:
    """A connected pair with a proxy in between: client, server."""
    options = exs.Options(path="tcp", close_timeout=0.5, **choices)  # type: ignore[arg-type]
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=options)
    async with tcp_proxy("127.0.0.1", listener.address[1], *faults) as port:  # type: ignore[arg-type]
        async with listener, trio.open_nursery() as nursery:
            accepted: list[exs.SocketStream] = []

            async def accept() -> None:
                accepted.append(await listener.accept())

            nursery.start_soon(accept)
            client = await exs.open_stream("127.0.0.1", port, options=options)
        async with client, accepted[0] as server:
            yield client, server


async def transfer(client: exs.SocketStream, server: exs.SocketStream, nbytes: int = 3 * MIB) -> bool:
    """Send much; whether all of it arrived. What arrives is what was sent, up to where it ends."""
    data = os.urandom(nbytes)
    got = bytearray()
    broken: list[str] = []

    async def send() -> None:
        try:
            await client.send_all(data)
            await client.send_eof()
        except trio.BrokenResourceError:
            broken.append("send")

    async def receive() -> None:
        try:
            async for part in server:
                got.extend(part)
        except trio.BrokenResourceError:
            broken.append("receive")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        nursery.start_soon(receive)
    assert data.startswith(got)
    assert len(got) == nbytes or "receive" in broken
    return not broken


async def test_a_proxy_that_does_nothing() -> None:
    async with through() as (client, server):
        assert await transfer(client, server)


@pytest.mark.parametrize("way", ["to_server", "to_client"])
@pytest.mark.parametrize("after", [SETUP, 2000, 70_000, 1_500_000])
async def test_a_connection_that_is_cut(way: str, after: int) -> None:
    async with through(Cut(way, after)) as (client, server):  # type: ignore[arg-type]
        # Toward the client there is little: it may be over before the cut.
        assert not await transfer(client, server) or way == "to_client"


async def refused(*faults: object) -> OSError:
    """Why a connection through such a proxy does not come about; the listener goes on."""
    options = exs.Options(path="tcp", close_timeout=0.5, connect_timeout=0.3)
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=options)
    error: OSError | None = None
    async with trio.open_nursery() as nursery:

        async def handler(stream: exs.SocketStream) -> None:
            try:
                await stream.receive_some()
            except trio.BrokenResourceError:
                pass

        nursery.start_soon(trio.serve_listeners, handler, [listener])
        async with tcp_proxy("127.0.0.1", listener.address[1], *faults) as port:  # type: ignore[arg-type]
            try:
                await exs.open_stream("127.0.0.1", port, options=options)
            except OSError as caught:
                error = caught
        async with await exs.open_stream("127.0.0.1", listener.address[1], options=options) as stream:
            await stream.send_all(b"the listener is well")
        nursery.cancel_scope.cancel()
    assert error is not None
    return error


@pytest.mark.parametrize("after", [0, 10, 60])
@pytest.mark.parametrize("way", ["to_server", "to_client"])
async def test_a_connection_that_is_cut_while_it_is_set_up(way: str, after: int) -> None:
    error = await refused(Cut(way, after))  # type: ignore[arg-type]
    assert isinstance(error.__cause__, ExceptionGroup)
    assert isinstance(error.__cause__.exceptions[0], exs.Error)


@pytest.mark.parametrize("after", [0, 30])
async def test_a_set_up_that_stalls_is_bounded(after: int) -> None:
    error = await refused(Stall("to_client", after))
    assert isinstance(error.__cause__, ExceptionGroup)
    assert isinstance(error.__cause__.exceptions[0], TimeoutError)


async def test_a_stall_can_be_cancelled_and_closed() -> None:
    async with through(Stall("to_server", 100_000)) as (client, server):
        region = exs.MemoryRegion(bytearray(3 * MIB))
        with trio.move_on_after(0.1) as scope:
            await client.send_all(region)
        assert scope.cancelled_caught
        assert region.in_use == 0
        region.close()
        await trio.aclose_forcefully(client)
        with trio.move_on_after(0.1):
            await server.receive_some()
        await trio.aclose_forcefully(server)


@pytest.mark.parametrize("at", [SETUP, 30_000, 200_001, 1_000_003])
async def test_a_byte_that_is_turned_is_found_by_the_checksum(at: int) -> None:
    async with through(Corrupt("to_server", at), crc=True) as (client, server):
        assert not await transfer(client, server)


async def test_a_checksum_that_is_wrong_is_named_on_both_ends(caplog: pytest.LogCaptureFixture) -> None:
    async with through(Corrupt("to_server", SETUP + 1000), crc=True) as (client, server):

        async def fails(operation: Awaitable[object], *words: str) -> None:
            with pytest.raises(trio.BrokenResourceError) as caught:
                await operation
            assert isinstance(caught.value.__cause__, exs.ProtocolError)
            assert all(word in str(caught.value) for word in words)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, client.send_all(bytes(3 * MIB)), "Terminate", "CRC")
            nursery.start_soon(fails, server.receive_some(), "CRC")
    assert sum("CRC" in record.message for record in caplog.records) == 2


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 64, os.urandom(33)], ids=range(4))
async def test_bytes_of_nobody_end_the_connection_and_nothing_else(data: bytes) -> None:
    async with through(Inject("to_client", SETUP, data), crc=True) as (client, server):
        await transfer(client, server)  # whatever it ends with, what came was right
    async with through() as (client, server):
        assert await transfer(client, server)
