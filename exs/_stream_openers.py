# SPDX-License-Identifier: MIT OR Apache-2.0
"""The functions that make streams and their listeners, over whichever protocol was chosen.

Knows nothing of either protocol.  Who does not use SMC-R does not load it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from exs import _config
from exs._dial import dial
from exs._handles import SOCK_STREAM
from exs._listen import listen
from exs.streams import SocketListener, SocketStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from exs._config import Options, Settings

__all__ = ["open_listeners", "open_stream", "serve"]

_OF_A_LINK = {"path": ("auto", None), "crc": (False, None)}
"""What belongs to the link that connections of SMC-R share, and the values that ask nothing of it."""


def _smc(options: Options | None) -> Settings | None:
    """The settings of a stream of SMC-R; None for exs's own protocol.

    Raises:
        ValueError: An argument asks for what no connection of SMC-R can have for itself.
    """
    settings = _config.resolve(options)
    if settings.protocol != "smc":
        return None
    for name, nothing in _OF_A_LINK.items():
        if (value := getattr(options, name, None)) not in nothing:
            raise ValueError(f"{name}={value!r} is not for protocol 'smc', whose connections share a link: omit it")
    return settings


async def open_stream(
    host: str | bytes,
    port: int,
    *,
    happy_eyeballs_delay: float | None = 0.25,
    options: Options | None = None,
) -> SocketStream:
    """Connect to a host by name; its addresses are raced as by ``trio.open_tcp_stream``.

    Args:
        host: Name or address.
        port: Port number.
        happy_eyeballs_delay: Seconds to wait for an address before the next is tried beside it.
        options: Choices for the socket.

    Returns:
        The connected stream.

    Raises:
        OSError: No address answers; the causes are in ``__cause__``.  :class:`exs.NoDeviceError` if no device, or
            not the path that was asked for.
        ValueError: ``path`` or ``crc`` was asked for with ``protocol="smc"``, whose connections share a link.

    *Cancellation:* nothing is left open.
    """
    if settings := _smc(options):
        from exs.smc.connect import open_smc_stream

        return await open_smc_stream(host, port, settings, happy_eyeballs_delay)
    return SocketStream(await dial(host, port, SOCK_STREAM, options, happy_eyeballs_delay))


async def open_listeners(
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    options: Options | None = None,
) -> list[SocketListener]:
    """Listen for streams.

    Args:
        port: Port number; 0 for a free one (each address gets its own).
        host: Where to listen; ``None`` for all addresses of this machine.
        backlog: Connections that may wait to be accepted; by default as many as the system allows.
        options: Choices for the listeners and for what they accept.

    Returns:
        A listener for each address.

    Raises:
        exs.NoDeviceError: No device, or not the path that was asked for.
        OSError: An address is in use.
        ValueError: As :func:`open_stream`.
    """
    if settings := _smc(options):
        from exs.smc.listen import open_smc_listeners

        return [*await open_smc_listeners(host, port, backlog, settings)]
    return [SocketListener(sock) for sock in await listen(host, port, SOCK_STREAM, backlog, options)]


async def serve(
    handler: Callable[[SocketStream], Awaitable[object]],
    port: int,
    *,
    host: str | bytes | None = None,
    backlog: int | None = None,
    options: Options | None = None,
    handler_nursery: trio.Nursery | None = None,
    task_status: trio.TaskStatus[list[SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen, and run ``handler(stream)`` in a task of its own for each connection; as ``trio.serve_tcp``.

    Args:
        handler: Called for each connection; the stream is closed when it returns.
        port: Port number; 0 for a free one.
        host: Where to listen; ``None`` for all addresses of this machine.
        backlog: Connections that may wait to be accepted.
        options: Choices for the listeners and for what they accept.
        handler_nursery: Where to run the handlers; by default a nursery of this call.
        task_status: ``nursery.start`` gets the listeners by it.

    Raises:
        OSError: As :func:`open_listeners`.
        ValueError: As :func:`open_listeners`.

    *Cancellation:* the only way in which it ends; the listeners are closed.
    """
    listeners = await open_listeners(port, host=host, backlog=backlog, options=options)
    await trio.serve_listeners(handler, listeners, handler_nursery=handler_nursery, task_status=task_status)
