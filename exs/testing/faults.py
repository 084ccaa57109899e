# SPDX-License-Identifier: MIT OR Apache-2.0
"""Scripted faults on the way between two ends of path tcp.

Owns a proxy that hands bytes on and, at a byte that the script names, does something else.  Nothing is random: the
same script does the same again.  It knows TCP only, so the ends must be told ``Options(path="tcp")``.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["Corrupt", "Cut", "Inject", "Stall", "tcp_proxy"]

Way = Literal["to_server", "to_client"]


@dataclass(frozen=True, slots=True)
class Cut:
    """Both connections are reset, once so many bytes went that way."""

    way: Way
    after: int


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing more goes that way, after so many bytes; the connections stay open."""

    way: Way
    after: int


@dataclass(frozen=True, slots=True)
class Corrupt:
    """All bits of the byte at that position are turned."""

    way: Way
    at: int


@dataclass(frozen=True, slots=True)
class Inject:
    """Bytes of nobody are put in at that position."""

    way: Way
    at: int
    data: bytes


Fault = Cut | Stall | Corrupt | Inject


@asynccontextmanager
async def tcp_proxy(host: str, port: int, *faults: Fault) -> AsyncGenerator[int, None]:
    """Stand between clients and a server, and misbehave by script.

    Args:
        host: Address of the server.
        port: Its port.
        *faults: What to do; positions count the bytes of each connection and way from 0.

    Yields:
        The port on 127.0.0.1 where clients dial.
    """
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def handle(client: trio.SocketStream) -> None:
            try:
                server = await trio.open_tcp_stream(host, port)
            except OSError:
                return
            async with server:
                await _relay(client, server, faults)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


class _CutHereError(Exception):
    """The script says that the connection ends."""


async def _relay(client: trio.SocketStream, server: trio.SocketStream, faults: tuple[Fault, ...]) -> None:
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_one_way, client, server, [f for f in faults if f.way == "to_server"])
            nursery.start_soon(_one_way, server, client, [f for f in faults if f.way == "to_client"])
    except* _CutHereError:
        for side in (client, server):
            _reset(side)
    except* (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def _one_way(source: trio.SocketStream, sink: trio.SocketStream, faults: list[Fault]) -> None:
    done = 0
    while True:
        data = await source.receive_some(65536)
        if not data:
            await sink.send_eof()
            return
        await _pass_on(bytes(data), done, sink, faults)
        done += len(data)


async def _pass_on(data: bytes, start: int, sink: trio.SocketStream, faults: list[Fault]) -> None:
    changed = bytearray(data)
    extra: list[tuple[int, bytes]] = []
    for fault in faults:
        match fault:
            case Corrupt(at=at) if start <= at < start + len(data):
                changed[at - start] ^= 0xFF
            case Inject(at=at, data=more) if start <= at < start + len(data):
                extra.append((at - start, more))
            case Cut(after=after) | Stall(after=after) if after <= start + len(data):
                await sink.send_all(changed[: max(after - start, 0)])
                if isinstance(fault, Cut):
                    raise _CutHereError
                await trio.sleep_forever()
            case _:
                pass
    for at, more in sorted(extra, reverse=True):
        changed[at:at] = more
    await sink.send_all(changed)


def _reset(side: trio.SocketStream) -> None:
    # A linger time of 0 makes the close a reset.
    side.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    side.socket.close()
