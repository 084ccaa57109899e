# SPDX-License-Identifier: MIT OR Apache-2.0
"""A thousand connections at once in one process, and nothing left behind."""

from __future__ import annotations

import resource

import pytest
import trio
from ground import HOST, patient, scaled

import exs
from exs.testing import no_leaks

CONNECTIONS = scaled(1000, 60)
DESCRIPTORS_EACH = 12  # both ends are here: a TCP and a UNIX socket each, memory files in passing


@pytest.mark.timeout(120)
def test_a_thousand_connections(path: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS * DESCRIPTORS_EACH + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"the hard limit of open files is {hard}, this needs {wanted}")
    options = exs.Options(path=path, ring_bytes=65536)  # type: ignore[arg-type]

    async def main() -> None:
        with trio.fail_after(patient(100)):
            (listener,) = await exs.open_listeners(0, host=HOST, options=options)
            ends: list[exs.SocketStream] = []
            limit = trio.CapacityLimiter(50)

            async def accept() -> None:
                for _ in range(CONNECTIONS):
                    ends.append(await listener.accept())

            async def dial() -> None:
                async with limit:
                    ends.append(await exs.open_stream(HOST, listener.address[1], options=options))

            async with listener, trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                for _ in range(CONNECTIONS):
                    nursery.start_soon(dial)
            assert len(ends) == 2 * CONNECTIONS

            async def use(stream: exs.SocketStream) -> None:
                await stream.send_all(b"there")
                assert await stream.receive_some() == b"there"

            async with trio.open_nursery() as nursery:
                for stream in ends:
                    nursery.start_soon(use, stream)
            async with trio.open_nursery() as nursery:
                for stream in ends:
                    nursery.start_soon(stream.aclose)

    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, wanted), hard), hard))
    try:
        with no_leaks():
            trio.run(main)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
