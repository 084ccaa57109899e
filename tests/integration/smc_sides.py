# SPDX-License-Identifier: MIT OR Apache-2.0
"""Two sides of a connection over SMC-R on the embedded device, in one process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

import exs

EID = ("EXS.TEST",)
# Who is gone is waited for in the background: for less long than the search for leaks waits.
SMC = exs.Options(protocol="smc", device="soft", smc_option="assume", smc_eid=EID, close_timeout=2.0)


@asynccontextmanager
async def pair(
    options: exs.Options = SMC, server: exs.Options | None = None, host: str = "127.0.0.1"
) -> AsyncGenerator[tuple[exs.SocketStream, exs.SocketStream]]:
    """Client and server of one connection."""
    (listener,) = await exs.open_listeners(0, host=host, options=server or options)
    accepted: list[exs.SocketStream] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    async with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            stream = await exs.open_stream(host, listener.address[1], options=options)
        async with stream, accepted[0]:
            yield stream, accepted[0]


async def receive_all(stream: exs.SocketStream) -> bytes:
    """Everything until the end."""
    found = bytearray()
    async for chunk in stream:
        found += chunk
    return bytes(found)
