# SPDX-License-Identifier: MIT OR Apache-2.0
"""Steps that tests of cancellation and of early ends share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import exs


async def cancelled(call: Callable[[], Awaitable[object]]) -> None:
    """The call blocks, and ends by Cancelled when it is cancelled."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()

            nursery.start_soon(stop)
            await call()
            raise AssertionError("it did not block")
    assert scope.cancelled_caught


async def rest_of(stream: exs.SocketStream) -> bytes:
    """What comes until the end."""
    got = bytearray()
    async for part in stream:
        got += part
    return bytes(got)


async def only_sending_is_over(a: exs.SocketStream, b: exs.SocketStream) -> bytes:
    """That ``a`` refuses to send and still receives; then it is closed.  What ``b`` got."""
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError):
            await a.send_all(b"x")
    await b.send_all(b"the other way is open")
    assert await a.receive_some() == b"the other way is open"
    await a.aclose()
    return await rest_of(b)
