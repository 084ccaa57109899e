# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a port to listening sockets, and what listeners for streams and for messages share.

Owns the list of errors that an accept may meet without the listener being any worse for it.  Knows nothing of what
is made of an accepted socket.

Invariant: of all sockets that :func:`listen` opened, either each listens and is returned or none is left open.
"""

from __future__ import annotations

import errno
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from trio.abc import AsyncResource, Listener

from exs import _config
from exs._addresses import named, resolve
from exs._pump import current_pump, protected
from exs.errors import Error
from exs.sockets import Socket

if TYPE_CHECKING:
    from exs._addresses import Address
    from exs._config import Options

BACKLOG = 0xFFFF

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

T = TypeVar("T", bound=AsyncResource)


class ListenerBase(Listener[T], Generic[T]):
    """Takes connections from a listening socket of exs."""

    socket: Socket

    _kind: ClassVar[int]

    def __init__(self, socket: Socket) -> None:
        who = type(self).__name__
        if not isinstance(socket, Socket):
            raise TypeError(f"{who} needs an exs.Socket")
        if socket.type != self._kind or not socket.listening:
            raise ValueError(f"{who} needs a listening socket of its type")
        self.socket = socket

    @abstractmethod
    def _made_of(self, socket: Socket) -> T:
        """What :meth:`accept` returns, made of the accepted socket."""

    @property
    def address(self) -> Address:
        """The address that it is bound to; the port is the true one also where 0 was asked for."""
        return self.socket.getsockname()

    @protected
    async def accept(self) -> T:
        """Wait for a connection.

        Raises:
            trio.ClosedResourceError: The listener is closed.
            OSError: No more descriptors, or memory.

        *Cancellation:* no connection was taken.
        """
        while True:
            try:
                return self._made_of((await self.socket.accept())[0])
            except Error as error:
                if error.errno not in IGNORED_AT_ACCEPT:
                    raise

    async def aclose(self) -> None:
        """Stop listening."""
        await self.socket.aclose()


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
        text = f"this system supports no address of {named(host, port)}"
        raise OSError(errno.EAFNOSUPPORT, text) from ExceptionGroup(text, unsupported)
    return sockets
