# SPDX-License-Identifier: MIT OR Apache-2.0
"""Listening for SMC-R and for plain TCP on one port: :class:`SmcListener`.

Owns the handshakes of connections that nobody has accepted yet; they take the time of several round trips, and none
waits for another.

Invariants: a connection is handed out once its handshake is over, in the order in which they end; of those that
nobody accepted none is left open.
"""

from __future__ import annotations

import errno
import logging
import math
import socket as _socket
from typing import TYPE_CHECKING

import trio

from exs._addresses import named, resolve
from exs._listen import BACKLOG, IGNORED_AT_ACCEPT
from exs._pump import protected
from exs.errors import Error
from exs.smc import option
from exs.smc.connect import greet, without_option
from exs.streams import SocketListener, SocketStream

if TYPE_CHECKING:
    from exs._addresses import Address
    from exs._config import Settings

__all__ = ["SmcListener", "open_smc_listeners"]

log: logging.Logger = logging.getLogger("exs.smc")

PAUSE_S = 0.1
"""How long to wait when the process has no descriptor left for a connection."""


class SmcListener(SocketListener):
    """A listener whose connections speak SMC-R, or plain TCP.

    Args:
        tcp: Listening, non-blocking; the listener owns it from now on.
        settings: Choices for what it accepts.
        backlog: Connections that may wait to be accepted, those in their handshake included.
    """

    def __init__(self, tcp: _socket.socket, settings: Settings, backlog: int) -> None:
        self._plain = tcp
        self._tcp = trio.socket.from_stdlib_socket(tcp)
        self._settings = settings
        self._places = trio.Semaphore(backlog)
        self._give, self._ready = trio.open_memory_channel["SocketStream | OSError"](math.inf)
        self._scope = trio.CancelScope()
        self._closed = False
        trio.lowlevel.spawn_system_task(self._run, name="exs smc listener")

    @property
    def address(self) -> Address:
        """The address that it is bound to; the port is the true one also where 0 was asked for."""
        name = self._tcp.getsockname()
        return (str(name[0]), int(name[1]), *name[2:])

    @protected
    async def accept(self) -> SocketStream:
        """As :meth:`exs.SocketListener.accept`."""
        try:
            found = await self._ready.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError("the listener is closed") from None
        self._places.release()
        if isinstance(found, OSError):
            raise found
        return found

    async def aclose(self) -> None:
        """Stop listening."""
        self._closed = True
        self._stop()
        self._scope.cancel()
        self._ready.close()
        await trio.lowlevel.checkpoint()

    # --- inside

    async def _run(self) -> None:
        with self._scope, self._give:
            try:
                async with trio.open_nursery() as nursery:
                    while not self._closed:
                        await self._places.acquire()
                        tcp = await self._next()
                        if tcp is not None:
                            nursery.start_soon(self._greet, tcp)
            finally:
                self._stop()
                self._drop_waiting()

    def _stop(self) -> None:
        if self._tcp.fileno() != -1:
            if self._settings.smc_option == "bpf":
                option.forget(self._plain)
            self._tcp.close()

    async def _next(self) -> _socket.socket | None:
        """One more TCP connection; ``None``: none, and its place is free or its error handed out."""
        try:
            tcp, _ = await self._tcp.accept()
        except OSError as error:
            if error.errno in IGNORED_AT_ACCEPT:
                self._places.release()
            else:
                self._give.send_nowait(error)
                await trio.sleep(PAUSE_S)
            return None
        except trio.ClosedResourceError:
            return None
        plain = _socket.socket(fileno=tcp.detach())
        plain.setblocking(False)
        return plain

    async def _greet(self, tcp: _socket.socket) -> None:
        try:
            if self._settings.smc_option == "bpf" and not option.offered(tcp):
                stream: SocketStream = without_option(tcp, client=False)
            else:
                stream = await greet(tcp, self._settings)
        except Error as error:
            log.info("smc: a connection failed in its handshake: %s", error)
            self._places.release()
            return
        self._give.send_nowait(stream)

    def _drop_waiting(self) -> None:
        """Close what nobody accepted."""
        while True:
            try:
                found = self._ready.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
                return
            if isinstance(found, SocketStream):
                found.abandon()


async def open_smc_listeners(
    host: str | bytes | None, port: int, backlog: int | None, settings: Settings
) -> list[SmcListener]:
    """Listeners for every address of the host, of this machine if it is ``None``."""
    if backlog is not None and not isinstance(backlog, int):
        raise TypeError(f"the backlog must be a number or None, not {backlog!r}")
    targets = await resolve(host, port, passive=True)
    room = BACKLOG if backlog is None else max(1, min(backlog, BACKLOG))
    opened: list[_socket.socket] = []
    unsupported: list[OSError] = []
    try:
        for family, address in targets:
            try:
                opened.append(_listening(family, address, room, settings))
            except OSError as error:
                # A name may have addresses of a family that this system was built without.
                if error.errno != errno.EAFNOSUPPORT:
                    raise
                unsupported.append(error)
    except BaseException:
        for tcp in opened:
            tcp.close()
        raise
    if not opened:
        text = f"this system supports no address of {named(host, port)}"
        raise OSError(errno.EAFNOSUPPORT, text) from ExceptionGroup(text, unsupported)
    return [SmcListener(tcp, settings, room) for tcp in opened]


def _listening(family: int, address: Address, backlog: int, settings: Settings) -> _socket.socket:
    tcp = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    try:
        tcp.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        if family == _socket.AF_INET6:
            tcp.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        tcp.bind(address)
        if settings.smc_option == "bpf":
            option.mark(tcp)
        tcp.listen(backlog)
    except BaseException:
        tcp.close()
        raise
    return tcp
