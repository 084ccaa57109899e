# SPDX-License-Identifier: MIT OR Apache-2.0
"""Streams that agree on SMC-R by the TCP option, as the protocol wants it; and those of which one side does not.

The other tests of streams assume the option, so that they need no privileges.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from ground import patient

import exs
from exs.smc import option

SMC = exs.Options(protocol="smc", device="soft", smc_option="bpf", smc_eid=("EXS.TEST",))
HOST = "127.0.0.1"
QUICK = patient(4.0)
"""Less than the 6 s for which a server waits for a silent client that had offered SMC-R."""


@pytest.fixture(autouse=True)
def program() -> None:
    if why := option.available():
        pytest.skip(f"needs root: {why}")


@asynccontextmanager
async def served() -> AsyncGenerator[tuple[exs.SocketListener, trio.MemoryReceiveChannel[exs.SocketStream]]]:
    """A listener, and what it accepts."""
    give, take = trio.open_memory_channel[exs.SocketStream](10)
    (listener,) = await exs.open_listeners(0, host=HOST, options=SMC)

    async def accept() -> None:
        while True:
            give.send_nowait(await listener.accept())

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        yield listener, take
        nursery.cancel_scope.cancel()


async def receive(stream: exs.SocketStream | trio.SocketStream, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        got += await stream.receive_some(size - len(got))
    return bytes(got)


@pytest.mark.smcr(1, 2)
async def test_two_sides_that_offer_and_answer_speak_smc() -> None:
    async with served() as (listener, take):
        async with await exs.open_stream(HOST, listener.address[1], options=SMC) as one:
            async with await take.receive() as two:
                assert (one.transport, two.transport) == ("smc-r v2", "smc-r v2")
                await one.send_all(b"there")
                assert await receive(two, 5) == b"there"


@pytest.mark.smcr(4)
async def test_a_server_that_does_not_answer_sees_payload_only() -> None:
    (plain,) = await trio.open_tcp_listeners(0, host=HOST)
    async with plain, await exs.open_stream(HOST, plain.socket.getsockname()[1], options=SMC) as stream:
        assert stream.transport == "tcp"
        assert stream.transport_reason
        async with await plain.accept() as peer:
            await stream.send_all(b"payload")
            await stream.send_eof()
            assert await receive(peer, 7) == b"payload"
            assert await peer.receive_some() == b""
            await peer.send_all(b"answer")
            assert await receive(stream, 6) == b"answer"


@pytest.mark.smcr(4)
async def test_a_client_that_did_not_offer_hears_a_server_that_speaks_first() -> None:
    async with served() as (listener, take):
        async with await trio.open_tcp_stream(HOST, listener.address[1]) as plain:
            with trio.fail_after(QUICK):
                stream = await take.receive()
            async with stream:
                assert stream.transport == "tcp"
                await stream.send_all(b"welcome")
                await stream.send_eof()
                assert await receive(plain, 7) == b"welcome"
                assert await plain.receive_some() == b""
                await plain.send_all(b"payload")
                assert await receive(stream, 7) == b"payload"


@pytest.mark.smcr(5)
async def test_a_client_that_offered_and_sends_payload_is_understood() -> None:
    async with served() as (listener, take):
        with socket.socket() as client:
            option.mark(client)
            client.connect((HOST, listener.address[1]))
            assert option.answered(client)
            client.sendall(b"\xe2\xd4GET")  # begins as SMC's eyecatcher does
            with trio.fail_after(QUICK):
                stream = await take.receive()
            async with stream:
                assert stream.transport == "tcp"
                assert await receive(stream, 5) == b"\xe2\xd4GET"
                await stream.send_all(b"OK")
                assert client.recv(2) == b"OK"


@pytest.mark.smcr(5)
async def test_a_client_that_offered_and_is_silent_is_served_by_tcp() -> None:
    async with served() as (listener, take):
        with socket.socket() as client:
            option.mark(client)
            client.connect((HOST, listener.address[1]))
            assert option.answered(client)
            with trio.fail_after(patient(15)):
                stream = await take.receive()
            async with stream:
                assert stream.transport == "tcp"
                await stream.send_all(b"welcome")
                assert client.recv(7) == b"welcome"
