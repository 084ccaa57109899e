# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a name and a port to a connected socket, or to listening ones.

Owns the race between the addresses of a host (RFC 8305, the part that needs no resolver of one's own), and what
streams and channels share: error translation, one task at a time, accepting.  Knows nothing of either.

Invariant: of all sockets that a race opened, at most the winner is left open.
"""

from __future__ import annotations

import errno
import socket as _socket
from typing import TYPE_CHECKING

import trio

from exs import _config, _native
from exs._pump import current_pump, protected
from exs.api import SOCK_STREAM, Socket
from exs.errors import Error, NoDeviceError

if TYPE_CHECKING:
    from types import TracebackType

    from exs._config import Options
    from exs.api import Address

Target = tuple[int, "Address"]

DELAY_S = 0.25
"""How long an attempt may take before the next one starts beside it (RFC 8305, section 5)."""

BACKLOG = 0xFFFF

# After these the connection is over.  Any other error means that the call was wrong, not that the stream is.
_BROKEN = frozenset(
    {
        errno.EPIPE,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ETIMEDOUT,
        errno.EPROTO,
        errno.ENOTCONN,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EIO,
        errno.ECANCELED,
    }
)

# The connection that was about to be accepted came to nothing; the listener is well.
IGNORED_AT_ACCEPT = frozenset(
    {
        errno.ECONNABORTED,
        errno.ECONNRESET,
        errno.EPROTO,
        errno.ETIMEDOUT,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)


class Exclusive:
    """One task at a time, and errors as trio says them.

    Used as ``with``: entering it twice raises ``BusyResourceError``; an :class:`exs.Error` that says that the
    connection is over leaves as ``BrokenResourceError``.
    """

    __slots__ = ("_busy", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._busy = False

    def __enter__(self) -> None:
        if self._busy:
            raise trio.BusyResourceError(f"another task is {self._what}")
        self._busy = True

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._busy = False
        if isinstance(value, Error) and value.errno in _BROKEN:
            raise trio.BrokenResourceError(f"the connection is broken: {value}") from value


async def resolve(host: str | bytes | None, port: int, *, passive: bool = False) -> list[Target]:
    """The addresses of a host, in the order to try them.

    Raises:
        OSError: There are none.
        TypeError: The port is no number.
    """
    if not isinstance(port, int):
        raise TypeError(f"the port must be a number, not {port!r}")
    found = await trio.socket.getaddrinfo(host, port, type=SOCK_STREAM, flags=_socket.AI_PASSIVE if passive else 0)
    targets: list[Target] = []
    for family, _, _, _, address in found:
        if family in (_socket.AF_INET, _socket.AF_INET6):
            numeric = (str(address[0]), int(address[1]), *address[2:])
            targets.append((int(family), _native.unpack_address(_native.pack_address(family, numeric))))
    if not targets:
        raise OSError(errno.EADDRNOTAVAIL, f"{_name(host, port)} has no address")
    return targets


def interleave(targets: list[Target]) -> list[Target]:
    """Addresses of the first one's family and of the other by turns (RFC 8305, section 4)."""
    first = [t for t in targets if t[0] == targets[0][0]]
    other = [t for t in targets if t[0] != targets[0][0]]
    mixed: list[Target] = []
    while first or other:
        mixed += first[:1] + other[:1]
        del first[:1], other[:1]
    return mixed


async def dial(
    host: str | bytes, port: int, kind: int, options: Options | None, delay: float | None = DELAY_S
) -> Socket:
    """A socket connected to the first address of the host that answers.

    Raises:
        OSError: None does; the causes are in its ``__cause__``.
    """
    if not isinstance(host, str | bytes):
        raise TypeError(f"the host must be a string, not {host!r}")
    settings = _config.resolve(options)
    targets = interleave(await resolve(host, port))
    pump = current_pump()
    wait = DELAY_S if delay is None else delay
    errors: list[OSError] = []
    opened: list[Socket] = []
    winner: Socket | None = None

    async def attempt(family: int, address: Address, over: trio.Event) -> None:
        nonlocal winner
        try:
            sock = Socket(pump, kind, family, settings)
            opened.append(sock)
            await sock.connect(address)
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
    text = f"all attempts to connect to {_name(host, port)} failed"
    if errors and all(isinstance(error, NoDeviceError) for error in errors):
        failure: OSError = NoDeviceError(errno.EOPNOTSUPP, f"{text}: {errors[0].strerror}")
    else:
        failure = OSError(text)
    failure.__cause__ = ExceptionGroup(text, errors)
    return failure


async def listen(
    host: str | bytes | None, port: int, kind: int, backlog: int | None, options: Options | None
) -> list[Socket]:
    """Listening sockets for every address of the host, of this machine if it is ``None``."""
    if backlog is not None and not isinstance(backlog, int):
        raise TypeError(f"the backlog must be a number or None, not {backlog!r}")
    settings = _config.resolve(options)
    targets = await resolve(host, port, passive=True)
    pump = current_pump()
    sockets: list[Socket] = []
    unsupported: list[OSError] = []
    try:
        for family, address in targets:
            sock = Socket(pump, kind, family, settings)
            sockets.append(sock)
            try:
                sock.bind(address)
                sock.listen(BACKLOG if backlog is None else min(backlog, BACKLOG))
            except OSError as error:
                # A name may have addresses of a family that this system was built without.
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                unsupported.append(error)
                sockets.pop().close()
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    if not sockets:
        text = f"this system supports no address of {_name(host, port)}"
        raise OSError(errno.EAFNOSUPPORT, text) from ExceptionGroup(text, unsupported)
    return sockets


def _name(host: str | bytes | None, port: int) -> str:
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host or "this host"
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def check_listening(socket: Socket, kind: int, who: str) -> None:
    """Refuse what a listener cannot be made of."""
    if not isinstance(socket, Socket):
        raise TypeError(f"{who} needs an exs.Socket")
    if socket.type != kind or not socket.listening:
        raise ValueError(f"{who} needs a listening socket of its type")


@protected
async def accept_one(socket: Socket) -> Socket:
    """The next connection that did not come to nothing before it was taken."""
    while True:
        try:
            return (await socket.accept())[0]
        except Error as error:
            if error.errno not in IGNORED_AT_ACCEPT:
                raise
