# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a TCP connection to a stream: the handshake's I/O, for either side.

Owns the reading and writing of CLC and the end of a handshake, whatever it is.  What is said is the machines', what
is done on a device is the service's.

Invariants: not one byte is read from TCP beyond what the machine asked for; whatever ends a handshake, cancellation
too, what was made for it is released, and TCP is closed or belongs to the stream that is returned.
"""

from __future__ import annotations

import errno
import logging
import math
import socket as _socket
from typing import TYPE_CHECKING

import trio

from exs._dial import DELAY_S, race
from exs._handles import SOCK_STREAM
from exs.errors import from_errno
from exs.smc import actions as a
from exs.smc import clc, option, outcomes
from exs.smc.client import Client
from exs.smc.local import SOFT_PREFIX, facts
from exs.smc.reading import ClcReader
from exs.smc.server import Server
from exs.smc.service import current_service
from exs.smc.stream import FallbackStream, SmcStream
from exs.smc.turns import current_turns
from exs.sockets import Socket

if TYPE_CHECKING:
    from exs._addresses import Address
    from exs._config import Settings
    from exs.smc.handshake import Handshake, Local
    from exs.smc.service import Service
    from exs.streams import SocketStream

__all__ = ["Call", "greet", "open_smc_stream", "propose", "without_option"]

log: logging.Logger = logging.getLogger("exs.smc")

FACTS_S = 1.0
"""How long what was found out of this host is believed."""


class Call:
    """One handshake over one TCP connection.

    Args:
        service: The run's.
        machine: Decides.
        tcp: Connected, non-blocking; belongs to the call until :meth:`run` returns.
        settings: Choices for the connection.
    """

    def __init__(self, service: Service, machine: Handshake, tcp: _socket.socket, settings: Settings) -> None:
        self.machine = machine
        self.settings = settings
        self._service = service
        self._tcp = tcp
        self._reader = ClcReader()
        self._end: a.OpenConnection | a.Fallback | a.Fail | None = None
        self._wait = trio.CancelScope()
        """Around the present wait for TCP; ended by whatever else there is to look at."""

    async def run(self) -> SocketStream:
        """Go through with it.

        Raises:
            exs.Error: It failed in a way that leaves no TCP connection to go on with.

        *Cancellation:* nothing is left open.
        """
        self._service.enlist(self)
        try:
            self.feed(a.Start())
            while self._end is None:
                with trio.CancelScope(deadline=self._deadline()) as self._wait:
                    await trio.lowlevel.wait_readable(self._tcp)
                # Also if the time is up: on a busy host what came in time may be seen late.
                if self._read() and self._wait.cancelled_caught:
                    self.feed(a.Timeout())
            return self._result()
        except BaseException:
            if self._end is None:
                self.feed(a.Eof())
            self._tcp.close()
            raise
        finally:
            self._service.discharge(self)

    # --- what the service calls

    def feed(self, event: a.Event) -> None:
        """Give the machine an event, and do what it asks for."""
        self._service.perform(self.machine.receive(event, now=trio.current_time()), self)

    def tell(self, event: a.Event) -> None:
        """An event from a link group, while :meth:`run` waits for TCP."""
        self.feed(event)
        if self._end is None:
            self._wait.deadline = self._deadline()
        else:
            self._wait.cancel()

    def write(self, data: bytes) -> None:
        """Write a CLC message: a new connection has room for it.

        Raises:
            OSError: TCP is gone, or has no room.
        """
        if self._tcp.send(data, _socket.MSG_NOSIGNAL) != len(data):
            raise from_errno(errno.ENOBUFS)

    def over(self, end: a.OpenConnection | a.Fallback | a.Fail) -> None:
        """The handshake has ended; a failure behind it changes how."""
        self._end = end

    # --- inside

    def _deadline(self) -> float:
        deadline = self.machine.deadline
        return math.inf if deadline is None else deadline

    def _read(self) -> bool:
        """Take what lies there, one message after the other, and nothing behind the last one.

        Returns:
            Whether the handshake goes on.
        """
        while self._end is None:
            try:
                data = self._tcp.recv(self._reader.missing)
            except BlockingIOError:
                return True
            except OSError:
                data = b""
            event = self._reader.feed(data) if data else self._reader.end()
            if event is not None:
                self._look_at(event)
                self.feed(event)
        return False

    def _look_at(self, event: a.Event) -> None:
        """A PROPOSAL says by its GID which kind of device it came from."""
        if isinstance(event, a.ClcReceived) and isinstance(event.message, clc.Proposal):
            proposal = event.message
            gid = proposal.v2.gid if proposal.v2 is not None else proposal.gid
            self.machine.local = local_facts(self._service, self._tcp, self.settings, gid)

    def _result(self) -> SocketStream:
        match self._end:
            case a.OpenConnection(token):
                handle = self._service.take_socket(token)
                outcomes.count_smc(self.machine.version)
                sock = Socket(self._service.pump, SOCK_STREAM, _socket.AF_INET, self.settings, handle)
                return SmcStream(sock, self._tcp, self.machine.transport)
            case a.Fallback(reason, by_peer, payload, crossing):
                why = f"{clc.reason_text(reason)} ({reason:08x})" if reason else "the peer speaks plain TCP"
                outcomes.count_fallback(clc.reason_text(reason) if reason else why, reason, by_peer=by_peer)
                log.info("smc: plain TCP: %s%s", why, ", says the peer" if by_peer and reason else "")
                return FallbackStream(self._tcp, payload + self._reader.end().data, crossing, why)
            case a.Fail(error):
                outcomes.count_failure()
                raise error
            case None:
                raise AssertionError("a handshake ends in one of three ways")


def local_facts(service: Service, tcp: _socket.socket, settings: Settings, peer: bytes = b"") -> Local:
    """What this side brings, for the TCP connection at hand.

    Of a burst of connections each would find the same, so it is looked up once a second at most.
    """
    name = tcp.getsockname()
    key = name[0], settings, peer[: len(SOFT_PREFIX)]
    now = trio.current_time()
    for old in [k for k, (at, _) in service.facts.items() if now - at > FACTS_S]:
        del service.facts[old]
    if key not in service.facts:
        service.facts[key] = now, facts((name[0], name[1]), settings, service.soft_port, peer)
    return service.facts[key][1]


async def propose(tcp: _socket.socket, settings: Settings) -> SocketStream:
    """The client's handshake over a TCP connection of which both SYNs carried the option.

    Raises:
        exs.Error: It failed without a way back to TCP.

    *Cancellation:* the TCP connection is closed.
    """
    service = current_service(settings)
    try:
        machine = Client(service.groups, local_facts(service, tcp, settings))
    except BaseException:
        tcp.close()
        raise
    return await Call(service, machine, tcp, settings).run()


async def greet(tcp: _socket.socket, settings: Settings) -> SocketStream:
    """The server's handshake, which plain payload ends as well; see :func:`propose`."""
    service = current_service(settings)
    try:
        machine = Server(service.groups, local_facts(service, tcp, settings))
    except BaseException:
        tcp.close()
        raise
    return await Call(service, machine, tcp, settings).run()


async def open_smc_stream(
    host: str | bytes, port: int, settings: Settings, delay: float | None = DELAY_S
) -> SocketStream:
    """Connect by TCP to the first address of a host that answers, then by SMC-R if the peer can.

    Raises:
        OSError: No address answers, or the handshake failed without a way back to TCP.

    *Cancellation:* nothing is left open.
    """
    async with current_turns().one((host, port)):
        tcp = await race(host, port, delay, lambda family: _Dialled(family, settings), _Dialled.connect)
        found = tcp.socket
        if settings.smc_option == "bpf" and not option.answered(found):
            return without_option(found, client=True)
        return await propose(found, settings)


def without_option(tcp: _socket.socket, *, client: bool) -> FallbackStream:
    """The stream over a TCP connection in whose handshake SMC-R was not agreed on."""
    own = option.available()
    said = "the peer does not speak SMC-R" if client else "the peer did not offer SMC-R"
    outcomes.count_fallback(own or said, by_peer=not own)
    return FallbackStream(tcp, reason=own or said)


class _Dialled:
    """A TCP socket of ours that asks for SMC-R in its SYN."""

    def __init__(self, family: int, settings: Settings) -> None:
        self.socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
        try:
            if settings.smc_option == "bpf":
                option.mark(self.socket)
        except BaseException:
            self.socket.close()
            raise

    async def connect(self, address: Address) -> None:
        """Connect it."""
        borrowed = trio.socket.from_stdlib_socket(self.socket)
        await borrowed.connect(address)

    def close(self) -> None:
        """Close it."""
        self.socket.close()
