# SPDX-License-Identifier: MIT OR Apache-2.0
"""exs and unmodified programs that a preload has put on AF_SMC: redis-server with a client on exs, redis-cli with a
server on exs.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import agent
import pytest
import smc_peer
import trio
from smc_peer import OPTIONS, in_thread

import exs

pytestmark = [
    pytest.mark.skipif("EXS_LAB_PEER" not in os.environ, reason="needs two guests"),
    pytest.mark.timeout(300),
]

Value = bytes | int | None


@pytest.fixture(scope="module", autouse=True)
def smc() -> None:
    """Both kernels are ready for SMC-R."""
    smc_peer.set_up()


def command(*words: bytes) -> bytes:
    """A command of redis as bytes."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class Replies:
    """Reads what redis, or a client of it, sends: one value or command after the other."""

    def __init__(self, stream: exs.SocketStream) -> None:
        self._stream = stream
        self._data = bytearray()

    async def _more(self) -> None:
        data = await self._stream.receive_some()
        if not data:
            raise EOFError
        self._data += data

    async def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n")) < 0:
            await self._more()
        line = bytes(self._data[:end])
        del self._data[: end + 2]
        return line

    async def value(self) -> Value | list[Value]:
        """The next one."""
        line = await self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest
        if kind == b":":
            return int(rest)
        if kind == b"*":
            return [await self._single() for _ in range(int(rest))]
        assert kind == b"$", line
        length = int(rest)
        if length < 0:
            return None
        while len(self._data) < length + 2:
            await self._more()
        taken = bytes(self._data[:length])
        del self._data[: length + 2]
        return taken

    async def _single(self) -> Value:
        found = await self.value()
        assert not isinstance(found, list)
        return found


async def redis(port: int) -> agent.Remote:
    """redis-server on AF_SMC in the second guest, ready."""
    server = await in_thread(lambda: agent.Remote(smc_peer.redis_server(smc_peer.THERE, port)))
    while "Ready to accept connections" not in (line := await in_thread(server.readline)):
        assert line, server.wait()
    return server


async def test_a_client_of_redis() -> None:
    with await redis(6380), trio.fail_after(200):
        async with await exs.open_stream(smc_peer.THERE, 6380, options=OPTIONS) as stream:
            assert stream.transport == "smc-r v2", stream.transport_reason
            assert await in_thread(smc_peer.modes_there, 6380) == {"SMC-R"}
            replies = Replies(stream)
            big = bytes(range(256)) * 4096
            for words, answer in (
                ((b"SET", b"key", b"value"), b"OK"),
                ((b"GET", b"key"), b"value"),
                ((b"GET", b"nobody's"), None),
                ((b"SET", b"big", big), b"OK"),
                ((b"GET", b"big"), big),
                ((b"DEL", b"key", b"big"), 2),
            ):
                await stream.send_all(command(*words))
                assert await replies.value() == answer


async def test_pipelines_to_redis() -> None:
    count = 2000
    with await redis(6381), trio.fail_after(200):
        async with await exs.open_stream(smc_peer.THERE, 6381, options=OPTIONS) as stream:
            assert stream.transport == "smc-r v2", stream.transport_reason
            replies = Replies(stream)

            async def ask() -> None:
                for at in range(0, count, 100):
                    await stream.send_all(b"".join(command(b"INCRBY", b"n", b"%d" % n) for n in range(at, at + 100)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                for n in range(count):
                    assert await replies.value() == n * (n + 1) // 2


async def requests(stream: exs.SocketStream) -> AsyncIterator[list[Value]]:
    """What a client asks, until it ends."""
    replies = Replies(stream)
    while True:
        try:
            words = await replies.value()
        except EOFError:
            return
        assert isinstance(words, list)
        yield words


async def serve(stream: exs.SocketStream, stored: dict[Value, bytes]) -> None:
    """As much of a redis server as redis-cli asks for."""
    async for words in requests(stream):
        match words:
            case [b"SET" | b"set", key, bytes() as value]:
                stored[key] = value
                await stream.send_all(b"+OK\r\n")
            case [b"GET" | b"get", key]:
                value = stored[key]
                await stream.send_all(b"$%d\r\n%s\r\n" % (len(value), value))
            case _:
                await stream.send_all(b"*0\r\n")


@pytest.mark.parametrize("length", [5, 100_000])
async def test_redis_cli_and_a_server_on_exs(length: int) -> None:
    stored: dict[Value, bytes] = {}
    value = "v" * length
    (listener,) = await exs.open_listeners(0, host=smc_peer.HERE, options=OPTIONS)
    port = listener.address[1]
    cli = smc_peer.on_smc("/usr/bin/redis-cli", "-h", smc_peer.HERE, "-p", port)
    async with listener:
        for words, printed in ((["SET", "key", value], "OK"), (["GET", "key"], value)):
            client = await in_thread(lambda w=words: agent.Remote([*cli, *w]))
            with client, trio.fail_after(100):
                async with await listener.accept() as stream:
                    assert stream.transport == "smc-r v2", stream.transport_reason
                    await serve(stream, stored)
                status, text = await in_thread(client.wait)
            assert (status, text.strip()) == (0, printed)
    assert stored == {b"key": value.encode()}
