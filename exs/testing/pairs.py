# SPDX-License-Identifier: MIT OR Apache-2.0
"""Two connected ends in one process.

Owns nothing: who asks for a pair closes both ends.  The connection is a real one, set up over the loopback
interface, on the device and path that the options say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from exs._config import Options
from exs._stream_openers import open_listeners, open_stream
from exs.messages import MessageChannel, open_message_channel, open_message_listeners

if TYPE_CHECKING:
    from trio.abc import Listener

    from exs.streams import SocketStream

__all__ = ["clogged_stream_pair", "message_pair", "stream_pair"]

LOOPBACK = "127.0.0.1"


async def stream_pair(options: Options | None = None, *, host: str = LOOPBACK) -> tuple[SocketStream, SocketStream]:
    """Two connected streams: the one that dialled, the one that accepted.

    Args:
        options: Choices for both sides.
        host: Address of this machine to do it on.
    """
    (listener,) = await open_listeners(0, host=host, options=options)
    async with listener:
        return await _meet(listener, listener.address[1], options, host)


async def _meet(
    listener: Listener[SocketStream], port: int, options: Options | None, host: str
) -> tuple[SocketStream, SocketStream]:
    accepted: list[SocketStream] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        dialled = await open_stream(host, port, options=options)
    return dialled, accepted[0]


async def message_pair(
    options: Options | None = None, *, host: str = LOOPBACK
) -> tuple[MessageChannel, MessageChannel]:
    """Two connected channels: the one that dialled, the one that accepted.

    Args:
        options: Choices for both sides.
        host: Address of this machine to do it on.
    """
    (listener,) = await open_message_listeners(0, host=host, options=options)
    accepted: list[MessageChannel] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    async with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            dialled = await open_message_channel(host, listener.address[1], options=options)
    return dialled, accepted[0]


async def clogged_stream_pair(
    options: Options | None = None, *, host: str = LOOPBACK
) -> tuple[SocketStream, SocketStream]:
    """As :func:`stream_pair`, but neither side can send until the other receives.

    The rings are made as small as they may be, and filled.  Not by a ``send_all`` that is cancelled: that ends the
    sending for good.

    Args:
        options: Choices for both sides; ``ring_bytes`` is chosen here.
        host: Address of this machine to do it on.
    """
    ring_bytes = 65536
    pair = await stream_pair(replace(options or Options(), ring_bytes=ring_bytes), host=host)
    try:
        for stream in pair:
            # Nobody receives, so all of this lies in the peer's ring to the last byte, and nothing of it waits.
            await stream.send_all(bytes(ring_bytes))
    except BaseException:
        for stream in pair:
            await trio.aclose_forcefully(stream)
        raise
    return pair
