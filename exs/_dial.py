# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a name and a port to a connected socket.

Owns the race between the addresses of a host (RFC 8305, the part that needs no resolver of one's own).  Knows nothing
of what is made of the winner.

Invariant: of all sockets that a race opened, at most the winner is left open.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from exs import _config
from exs._addresses import interleave, named, resolve
from exs._pump import current_pump
from exs.errors import NoDeviceError
from exs.sockets import Socket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from exs._addresses import Address
    from exs._config import Options

DELAY_S = 0.25
"""How long an attempt may take before the next one starts beside it (RFC 8305, section 5)."""


class _Closeable(Protocol):
    def close(self) -> object: ...


S = TypeVar("S", bound=_Closeable)


async def dial(
    host: str | bytes, port: int, kind: int, options: Options | None, delay: float | None = DELAY_S
) -> Socket:
    """A socket connected to the first address of the host that answers.

    Raises:
        OSError: None does; the causes are in its ``__cause__``.
    """
    settings = _config.resolve(options)
    pump = current_pump()
    return await race(host, port, delay, lambda family: Socket(pump, kind, family, settings), Socket.connect)


async def race(
    host: str | bytes,
    port: int,
    delay: float | None,
    make: Callable[[int], S],
    connect: Callable[[S, Address], Awaitable[object]],
) -> S:
    """What is connected first, of one socket for each address of a host.

    Args:
        host: Name or address.
        port: Port number.
        delay: Seconds that an address is waited for before the next one is tried beside it.
        make: Makes a socket of a family.
        connect: Connects it.

    Raises:
        OSError: No address answers; the causes are in its ``__cause__``.

    *Cancellation:* all are closed.
    """
    if not isinstance(host, str | bytes):
        raise TypeError(f"the host must be a string, not {host!r}")
    targets = interleave(await resolve(host, port))
    wait = DELAY_S if delay is None else delay
    errors: list[OSError] = []
    opened: list[S] = []
    winner: S | None = None

    async def attempt(family: int, address: Address, over: trio.Event) -> None:
        nonlocal winner
        try:
            sock = make(family)
            opened.append(sock)
            await connect(sock, address)
        except OSError as error:
            errors.append(error)
            over.set()
            return
        if winner is None:
            winner = sock
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for family, address in targets:
                over = trio.Event()
                nursery.start_soon(attempt, family, address, over)
                with trio.move_on_after(wait):
                    await over.wait()
    except BaseException:
        winner = None
        raise
    finally:
        for sock in opened:
            if sock is not winner:  # pyright: ignore[reportUnnecessaryComparison]  # a nested function sets it
                sock.close()
    if winner is None:
        raise _nobody(host, port, errors)
    return winner


def _nobody(host: str | bytes, port: int, errors: list[OSError]) -> OSError:
    text = f"all attempts to connect to {named(host, port)} failed"
    if errors and all(isinstance(error, NoDeviceError) for error in errors):
        failure: OSError = NoDeviceError(errno.EOPNOTSUPP, f"{text}: {errors[0].strerror}")
    else:
        failure = OSError(text)
    failure.__cause__ = ExceptionGroup(text, errors)
    return failure
