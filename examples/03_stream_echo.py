# SPDX-License-Identifier: MIT OR Apache-2.0
"""A server that sends back what it gets, and a client: streams, as trio knows them.

python examples/03_stream_echo.py serve [PORT [HOST]]    the server; says its port
python examples/03_stream_echo.py HOST PORT WORDS        the client; says what came back
"""

from __future__ import annotations

import sys

import trio

import exs


async def echo(stream: exs.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def serve(port: int = 0, host: str = "127.0.0.1") -> None:
    async with trio.open_nursery() as nursery:
        listeners = await exs.open_listeners(port, host=host)
        print("listening on port", listeners[0].address[1], flush=True)
        nursery.start_soon(trio.serve_listeners, echo, listeners)


async def ask(host: str, port: int, words: list[str]) -> None:
    async with await exs.open_stream(host, port) as stream:
        await stream.send_all(" ".join(words).encode())
        await stream.send_eof()
        async for data in stream:
            print(data.decode())
        print("over", stream.socket.path)  # shm-vm: both are on one host, no network is in between


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        trio.run(serve, *map(int, sys.argv[2:3]), *sys.argv[3:4])
    elif len(sys.argv) > 3:
        trio.run(ask, sys.argv[1], int(sys.argv[2]), sys.argv[3:])
    else:
        sys.exit(__doc__)
