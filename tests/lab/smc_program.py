# SPDX-License-Identifier: MIT OR Apache-2.0
"""Programs on exs's SMC-R that a test kills, or that speak the protocol badly: ``python smc_program.py ACTION ...``.

Each says in lines what a test waits for, and ends when its input does.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path

import trio

import exs
from exs._config import resolve
from exs._native import smc
from exs.smc.service import current_service
from exs.smc.wire import Cdc, Cursor

sys.path.append(str(Path(__file__).resolve().parent))
import kernel_smc  # nobody puts a program's folder on the path in a guest

OPTIONS = exs.Options(protocol="smc", device="verbs", smc_eid=(kernel_smc.EID,))


async def input_line() -> None:
    """Wait for a line of input, or its end."""
    await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def accepted(count: int) -> list[exs.SocketStream]:
    """Listen, say where, and take so many connections."""
    (listener,) = await exs.open_listeners(0, host="0.0.0.0", options=OPTIONS)
    print("listening", listener.address[1], flush=True)
    async with listener:
        return [await listener.accept() for _ in range(count)]


async def hold(options: argparse.Namespace) -> None:
    """Connect or accept, and hold the connection; with ``--flood`` send on it for ever."""
    if options.host:
        stream = await exs.open_stream(options.host, options.port, options=OPTIONS)
    else:
        (stream,) = await accepted(1)
    print("transport", stream.transport, flush=True)
    while options.flood:
        await stream.send_all(bytes(1 << 16))
    await input_line()


async def echo(stream: exs.SocketStream) -> None:
    """Return what comes; say how it ended."""
    try:
        async for data in stream:
            await stream.send_all(data)
        print("ended", flush=True)
    except trio.BrokenResourceError as broken:
        cause = broken.__cause__
        print("broken", cause.errno if isinstance(cause, OSError) else cause, flush=True)


async def hostile(options: argparse.Namespace) -> None:
    """Accept two connections, echo on both; at a line of input send garbage on their link, at the next one a message
    that breaks the first connection.
    """
    tokens: list[int] = []
    opened = smc.connection_open

    def note(sock: int, rkey: int, vaddr: int, size: int, token: int) -> None:
        tokens.append(token)
        opened(sock, rkey, vaddr, size, token)

    smc.connection_open = note  # type: ignore[attr-defined]
    first, second = await accepted(2)
    (group,) = current_service(resolve(OPTIONS)).groups
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, first)
        nursery.start_soon(echo, second)
        await input_line()
        for message in garbage(random.Random(1)):
            smc.llc_send(group.link, message)
        print("garbage sent", flush=True)
        await input_line()
        smc.llc_send(group.link, Cdc(sequence=7, token=tokens[0], producer=Cursor(3, 0x7FFFFFFF)).encode())
        print("nonsense sent", flush=True)


def garbage(rng: random.Random) -> list[bytes]:
    """Messages of types that do not exist, of wrong lengths within, and for connections that do not exist."""
    known = {*range(1, 10), *range(0x21, 0x2A), Cdc.TYPE}
    unknown = [
        bytes([kind]) + rng.randbytes(43) for kind in range(256) if kind & 0x7F not in known and kind not in known
    ]
    lengths = [bytes([Cdc.TYPE, length]) + rng.randbytes(42) for length in (0, 43, 45, 255)]
    nobody = [Cdc(sequence=n, token=0x80000000 | n, producer=Cursor(0, 100)).encode() for n in range(16)]
    return [*rng.sample(unknown, 24), *lengths, *nobody]


ACTIONS = {"hold": hold, "hostile": hostile}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--flood", action="store_true")
    options = parser.parse_args()
    trio.run(ACTIONS[options.action], options)
    os._exit(0)  # a thread may still wait for input


if __name__ == "__main__":
    main()
