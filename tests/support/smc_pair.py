# SPDX-License-Identifier: MIT OR Apache-2.0
"""Two hosts that speak SMC-R with one another, without sockets, devices or time.

A :class:`World` has a clock that jumps from event to event, and TCP connections and links whose messages a
:class:`Fault` may delay, cut, double or lose.  A :class:`Host` does what the machines ask for and holds them to their
rules: no use of what was released, nothing sent on a link before RTS, one end for each handshake.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exs.smc import actions as a
from exs.smc.client import Client
from exs.smc.groups import LinkGroups, make_peer_id
from exs.smc.reading import ClcReader, CrossingFilter
from exs.smc.server import Server
from exs.smc.states import ENDS, Local, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from exs.smc.handshake import Handshake

    Sent = a.SendClc | a.SendLlc

EID = "SMCEXS"


@dataclass(frozen=True)
class Fault:
    """What happens to one message."""

    delay: float = 0.0
    lost: bool = False
    """On a link: it never comes.  On TCP: the connection ends instead."""
    doubled: bool = False
    """On a link only."""
    cut: int = 0
    """On TCP only: it comes in two pieces, the first of this many bytes."""


@dataclass
class World:
    """The clock, and the messages under way."""

    faults: Callable[[Sent, int], Fault] = lambda message, index: Fault()
    now: float = 100.0
    sent: list[Sent] = field(default_factory=list)
    _due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    hosts: list[Host] = field(default_factory=list)

    def at(self, when: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), do))

    def fault(self, message: Sent) -> Fault:
        self.sent.append(message)
        return self.faults(message, len(self.sent) - 1)

    def step(self, end: float = float("inf")) -> bool:
        """Let the next thing happen, unless it is due later than that."""
        deadlines = [d for h in self.hosts if (d := h.deadline) is not None]
        nearest = min(deadlines, default=float("inf"))
        if self._due and self._due[0][0] <= min(nearest, end):
            self.now, _, do = heapq.heappop(self._due)
            do()
        elif nearest <= end and deadlines:
            self.now = max(self.now, nearest)
            for host in self.hosts:
                host.tick()
        else:
            return False
        return True

    def run(self, seconds: float) -> None:
        """Let everything happen that is due within so many seconds."""
        end = self.now + seconds
        while self.step(end):
            pass
        self.now = end


class Pipe:
    """One direction of a TCP connection: whole, in order, but late and in pieces."""

    def __init__(self, world: World, to: Callable[[bytes | None], None]) -> None:
        self.world = world
        self.to = to
        self._free = 0.0
        self.ended = False

    def write(self, data: bytes | None, fault: Fault = Fault()) -> None:
        if self.ended:
            return
        if data is None or fault.lost:
            self.ended = True
            data = None
        pieces = [data[: fault.cut], data[fault.cut :]] if data and fault.cut else [data]
        for piece in pieces:
            self._free = max(self._free, self.world.now + 0.001) + fault.delay
            self.world.at(self._free, lambda piece=piece: self.to(piece))


@dataclass
class Link:
    """A queue pair of a host."""

    host: Host
    handle: int
    address: a.LinkAddress
    state: str = "init"
    version: int = 0
    """Set when TEST_LINK runs."""
    peer: a.LinkAddress | None = None
    free: float = 0.0


@dataclass
class Call:
    """One TCP connection of a host, and its handshake."""

    host: Host
    machine: Handshake
    out: Pipe | None = None
    reader: ClcReader = field(default_factory=ClcReader)
    inbox: bytearray = field(default_factory=bytearray)
    eof: bool = False
    end: a.OpenConnection | a.Fallback | a.Fail | None = None
    filter: CrossingFilter | None = None
    payload: bytearray = field(default_factory=bytearray)
    link: int = 0
    log: list[a.Action] = field(default_factory=list)

    @property
    def state(self) -> State:
        return self.machine.state

    def arrive(self, data: bytes | None) -> None:
        if data is None:
            self.eof = True
        else:
            self.inbox += data
        self.read()

    def read(self) -> None:
        """Read as the machine wants it: exactly, while the handshake lasts."""
        while self.machine.state not in ENDS and self.inbox:
            piece = bytes(self.inbox[: self.reader.missing])
            del self.inbox[: len(piece)]
            event = self.reader.feed(piece)
            if event is not None:
                self.host.feed(self, event)
        if self.machine.state not in ENDS and self.eof:
            self.host.feed(self, self.reader.end())
        if self.filter is not None:
            self.payload += self.filter.feed(bytes(self.inbox))
            self.inbox.clear()
            if self.eof:
                self.payload += self.filter.end()

    def feed(self, event: a.Event) -> None:
        self.host.feed(self, event)


class Host:
    """One process: its link groups, and a device that does at once what it is asked for."""

    def __init__(self, world: World, number: int, **local: object) -> None:
        self.world = world
        self.number = number
        world.hosts.append(self)
        mac = bytes([2, 0, 0, 0, 0, number])
        tokens = itertools.count(number << 16)
        self.groups = LinkGroups(peer_id=make_peer_id(bytes([0xEE, number]), mac), tokens=lambda: next(tokens))
        gid = bytes(10) + b"\xff\xff" + bytes([10, 9, 0, number])
        facts: dict[str, object] = {"eids": (EID,), "gid": gid, "mac": mac, "host": f"host-{number}"}
        self.local = Local(**(facts | local))  # type: ignore[arg-type]  # names and types are the caller's
        self.calls: list[Call] = []
        self.links: dict[int, Link] = {}
        self.rmbs: dict[int, int] = {}
        self.connections: dict[int, str] = {}
        self.on: dict[int, int] = {}
        """Connection to link."""
        self.failing: Callable[[a.Action], int] = lambda action: 0
        self.silent: type[a.Action] | None = None
        """A native call of which the answer does not come."""
        self.mtu_code = 3
        self._handles = itertools.count(number * 1000)

    @property
    def deadline(self) -> float | None:
        own = [c.machine.deadline for c in self.calls if c.machine.deadline is not None]
        groups = self.groups.deadline
        return min([*own, *([groups] if groups is not None else [])], default=None)

    def tick(self) -> None:
        now = self.world.now
        for call in list(self.calls):
            if call.machine.deadline is not None and now >= call.machine.deadline:
                self.feed(call, a.Timeout())
        if self.groups.deadline is not None and now >= self.groups.deadline:
            self.perform(self.groups.timeout(now=now), None)

    def feed(self, call: Call, event: a.Event) -> None:
        self.perform(call.machine.receive(event, now=self.world.now), call)
        call.read() if call.filter is not None else None

    def notice(self, link: Link, data: bytes) -> None:
        """An LLC message came on a link."""
        if link.state == "closed":
            return
        if data[:1] in (b"\x07", b"\x27"):
            return  # TEST_LINK is the native engine's
        self.perform(self.groups.receive(link.handle, data, now=self.world.now), None)

    def finish(self, call: Call) -> None:
        """The connection ends on both sides."""
        assert isinstance(call.end, a.OpenConnection)
        assert self.connections.pop(call.end.token) == "open"
        self.perform(self.groups.connection_done(call.link, call.end.token, now=self.world.now), None)

    def fail_link(self, handle: int) -> None:
        """The queue pair of a link breaks."""
        self.links[handle].state = "error"
        self.perform(self.groups.link_down(handle, now=self.world.now), None)

    def check(self) -> None:
        """What exists is what the groups know of, and no handshake holds anything after its end."""
        groups = list(self.groups)
        assert set(self.links) == {g.link for g in groups}
        assert set(self.rmbs) == {rmb.handle for g in groups for rmb in g.rmbs}
        slots = {token: slot for g in groups for token, slot in g.slots.items()}
        assert set(self.connections) == set(slots)
        ended = {call.machine for call in self.calls if call.end is not None}
        assert not [slot for slot in slots.values() if slot.listener in ended]

    # -- the interpreter ----------------------------------------------------------------------------------------------

    def perform(self, actions: list[a.Action], call: Call | None) -> None:
        pending = deque(actions)
        while pending:
            action = pending.popleft()
            if call is not None:
                call.log.append(action)
            error = 0 if isinstance(action, a.RELEASES) else self.failing(action)
            if error:
                rest = [left for left in pending if isinstance(left, a.RELEASES)]
                assert not rest, f"{rest} would be lost with {action}"
                if call is not None:
                    self.feed(call, a.ActionFailed(action, error))
                elif isinstance(action, a.SendLlc):
                    self.fail_link(action.link)
                return
            self.do(action, call)

    def do(self, action: a.Action, call: Call | None) -> None:
        if self.silent is not None and isinstance(action, self.silent):
            return
        match action:
            case a.NewLink(gid):
                self.new_link(gid, call)
            case a.ToRtr(handle, peer):
                link = self.links[handle]
                assert link.state == "init"
                link.state, link.peer = "rtr", peer
            case a.ToRts(handle):
                assert self.links[handle].state == "rtr"
                self.links[handle].state = "rts"
            case a.ActivateLink(handle, version):
                assert self.links[handle].state == "rts"
                self.links[handle].version = version
            case a.SendLlc(handle):
                self.send_llc(self.links[handle], action)
            case a.CloseLink(handle):
                self.links.pop(handle).state = "closed"
                for token in [t for t, link in self.on.items() if link == handle and self.connections.get(t) == "open"]:
                    del self.connections[token]
            case a.NewRmb(handle, size_code):
                assert call is not None
                rmb = next(self._handles)
                self.rmbs[rmb] = handle
                self.feed(call, a.RmbMade(rmb, 0x1000 + rmb, rmb << 20, size_code))
            case a.CloseRmb(rmb):
                del self.rmbs[rmb]
            case a.NewConnection(handle, rmb, token):
                assert call is not None
                assert self.rmbs[rmb] == handle
                assert token not in self.connections
                self.connections[token] = "new"
                self.on[token] = call.link = handle
            case a.OpenConnection(token):
                assert self.connections[token] == "new"
                self.connections[token] = "open"
                self.end(action, call)
            case a.DropConnection(token):
                assert self.connections.pop(token) == "new"
            case a.SendClc(message):
                assert call is not None
                assert call.out is not None
                call.out.write(message.encode(), self.world.fault(action))
            case a.Fallback():
                self.end(action, call)
                assert call is not None
                call.filter = CrossingFilter(action.crossing)
                call.payload += action.payload
            case a.Fail():
                self.end(action, call)
                assert call is not None
                assert call.out is not None
                call.out.write(None)
            case a.Tell(listener, event):
                told = next(c for c in self.calls if c.machine is listener)
                self.world.at(self.world.now, lambda: self.feed(told, event))

    def new_link(self, gid: bytes, call: Call | None) -> None:
        assert call is not None
        handle = next(self._handles)
        address = a.LinkAddress(gid, self.local.mac, self.mtu_code, 0x100 + handle, 0x777000 + handle)
        self.links[handle] = Link(self, handle, address)
        self.feed(call, a.LinkMade(handle, address))

    def send_llc(self, link: Link, action: a.SendLlc) -> None:
        assert link.state in ("rts", "error"), f"{action} on a link in {link.state}"
        fault = self.world.fault(action)
        peer = self.world_link(link.peer)
        if fault.lost or peer is None or link.state == "error":
            return
        data = action.encode()
        for _ in range(2 if fault.doubled else 1):
            link.free = max(link.free, self.world.now + 0.0001) + fault.delay
            self.world.at(link.free, lambda: peer.host.notice(peer, data))

    def world_link(self, address: a.LinkAddress | None) -> Link | None:
        assert address is not None
        for host in self.world.hosts:
            for link in host.links.values():
                if link.address.qpn == address.qpn and link.address.gid == address.gid:
                    return link if link.state in ("rtr", "rts") else None
        return None

    def end(self, action: a.OpenConnection | a.Fallback | a.Fail, call: Call | None) -> None:
        assert call is not None
        assert call.end is None, f"{action} after {call.end}"
        call.end = action


def connect(client: Host, server: Host) -> tuple[Call, Call]:
    """A TCP connection whose SYNs both carried the option; the handshakes start."""
    world = client.world
    one = Call(client, Client(client.groups, client.local))
    two = Call(server, Server(server.groups, server.local))
    one.out, two.out = Pipe(world, two.arrive), Pipe(world, one.arrive)
    client.calls.append(one)
    server.calls.append(two)
    server.feed(two, a.Start())
    client.feed(one, a.Start())
    return one, two


def pair(**faults: object) -> tuple[World, Host, Host]:
    """A world with a client and a server."""
    world = World(**faults)  # type: ignore[arg-type]  # passed on
    return world, Host(world, 1), Host(world, 2)


def alone(role: str, **local: object) -> tuple[World, Call, bytearray]:
    """One side, whose peer is the test; what it writes to TCP is gathered."""
    world = World()
    host = Host(world, 1 if role == "client" else 2, **local)
    written = bytearray()
    made = Client if role == "client" else Server
    call = Call(host, made(host.groups, host.local), Pipe(world, lambda data: written.extend(data or b"")))
    host.calls.append(call)
    call.feed(a.Start())
    world.run(0.1)
    return world, call, written
