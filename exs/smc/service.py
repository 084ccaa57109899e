# SPDX-License-Identifier: MIT OR Apache-2.0
"""The SMC-R of one trio run: its link groups, served whatever its sockets and handshakes do.

Owns the performing of what the machines ask for: each action is one call into the core or one message.  Knows no rule
of the protocol.

Invariants: actions are performed in the order in which they were asked for, and what they release is released
whatever failed before it; a link is listened to from its making to its closing; a peer id belongs to one table of
link groups, hence to one run.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from typing import TYPE_CHECKING

import trio

from exs._native import ops, smc
from exs._pump import Waiting, current_pump
from exs.errors import Error
from exs.smc import actions as a
from exs.smc import status_socket
from exs.smc.groups import LinkGroups, make_peer_id
from exs.smc.local import Port
from exs.smc.snapshot import snapshot
from exs.smc.status import Status, offer

if TYPE_CHECKING:
    from exs._config import Settings
    from exs._native import RawEvent
    from exs._pump import Pump
    from exs.smc.connect import Call
    from exs.smc.handshake import Local

__all__ = ["Service", "current_service"]

log: logging.Logger = logging.getLogger("exs.smc")

_MOVES = (a.SendLlc, a.Fallback, a.Fail)
"""What a handshake asks for when it has changed when its group is next due."""

_runvar: trio.lowlevel.RunVar[Service] = trio.lowlevel.RunVar("exs smc service")


def current_service(settings: Settings) -> Service:
    """The service of this trio run, made if this is the first use.

    Raises:
        RuntimeError: Not inside a trio run.
    """
    try:
        service = _runvar.get()
    except LookupError:
        service = Service(current_pump(), settings)
        _runvar.set(service)
    return service


class Service:
    """What a trio run needs for SMC-R.  Used by the run's thread alone.

    Args:
        pump: The run's.
        settings: Of the first socket; the others' links are made with their own.
    """

    def __init__(self, pump: Pump, settings: Settings) -> None:
        self.pump = pump
        self._calls: dict[a.Listener, Call] = {}
        self._sockets: dict[int, int] = {}
        """The core's handle of each connection, by its token, until it is taken over by a stream."""
        self._rmbs: dict[int, tuple[int, int]] = {}
        """Link and handle of each buffer; the handle says which one of its link, ours which one of all."""
        self._last_rmb = 0
        self._soft: Port | None = None
        self._settings = settings
        self.facts: dict[tuple[str, Settings, bytes], tuple[float, Local]] = {}
        """What was found out of this host, and when: by our address, what was asked for, and the kind of peer."""
        instance = os.urandom(2)
        while instance == bytes(2):
            instance = os.urandom(2)
        mac = bytes([0x02]) + os.urandom(5)
        self.groups: LinkGroups = LinkGroups(
            peer_id=make_peer_id(instance, mac), tokens=lambda: int.from_bytes(os.urandom(4), "big")
        )
        self._links: dict[int, Link] = {}
        self._telling: deque[Link] = deque()
        self._changed = trio.Event()
        trio.lowlevel.spawn_system_task(self._serve, name="exs smc service")
        self._show()

    # --- what others want to know

    def status(self) -> Status:
        """What it is doing."""
        return snapshot(self.groups, len(self._calls))

    def _show(self) -> None:
        """Let this process, and others of its user, see what it is doing."""
        offer(self.status)
        try:
            listener = status_socket.open_listener()
        except OSError as error:
            log.info("smc: 'exs smc status' will not see this process: %s", error)
            return

        def look() -> Status:
            return snapshot(self.groups, len(self._calls), limited=True)

        trio.lowlevel.spawn_system_task(status_socket.serve, listener, look, name="exs smc status")

    # --- what a handshake needs

    def soft_port(self) -> Port | None:
        """The port of the embedded device; ``None`` if it has none here."""
        if self._soft is None:
            try:
                link = smc.link_new(self.pump.group_for(self._settings), "soft", None)
            except Error as error:
                log.info("smc: the embedded device takes no part: %s", error)
                return None
            address = smc.link_address(link)
            smc.link_close(link)
            self._soft = Port("soft", address.gid, address.mac)
        return self._soft

    def enlist(self, call: Call) -> None:
        """A handshake begins: its machine may be told things from now on."""
        self._calls[call.machine] = call

    def discharge(self, call: Call) -> None:
        """It is over."""
        self._calls.pop(call.machine, None)

    def take_socket(self, token: int) -> int:
        """The core's handle of a connection that is open now: its caller's from now on."""
        return self._sockets.pop(token)

    # --- performing

    def perform(self, actions: list[a.Action], call: Call | None = None) -> None:
        """Do what a machine asked for.

        Args:
            actions: In order.
            call: The handshake that asked; ``None``: a link group did.
        """
        failed: tuple[a.Action, OSError] | None = None
        for action in actions:
            release = isinstance(action, a.RELEASES)
            if failed is not None and not release:
                continue
            try:
                self._do(action, call)
            except OSError as error:
                if release:
                    log.debug("smc: %s was gone: %s", type(action).__name__, error)
                else:
                    failed = action, error
        if failed is not None:
            self._tell_failed(*failed, call)
        if call is None or any(isinstance(action, _MOVES) for action in actions):
            self._changed.set()

    def _tell_failed(self, action: a.Action, error: OSError, call: Call | None) -> None:
        """An action failed, and those behind it were not tried."""
        if call is not None:
            call.feed(a.ActionFailed(action, error.errno or 0))
        elif isinstance(action, a.SendLlc):
            self.perform(self.groups.link_down(action.link, now=trio.current_time()))

    def _do(self, action: a.Action, call: Call | None) -> None:
        match action:
            case a.SendLlc(link, message, big_endian):
                smc.llc_send(link, message.encode(big_endian=big_endian))
            case a.Tell(handshake, event):
                told = self._calls.get(handshake)
                if told is not None:
                    told.tell(event)
            case a.ToRtr(link, peer):
                smc.link_to_rtr(link, smc.Address(peer.gid, peer.mac, peer.mtu_code, peer.qpn, peer.psn))
            case a.ToRts(link):
                smc.link_to_rts(link)
            case a.ActivateLink(link, version, interval_ms, timeout_ms):
                smc.link_active(link, version, interval_ms, timeout_ms)
                log.info("smc: link %#x is active, version %d", link, version)
            case a.CloseLink(link):
                if (made := self._links.pop(link, None)) is not None:
                    made.close()
            case a.CloseRmb(rmb):
                smc.rmb_close(*self._rmbs.pop(rmb))
            case a.DropConnection(token):
                self.pump.context.abandon(self._sockets.pop(token))
            case _:
                assert call is not None, action
                self._do_for(action, call)

    def _do_for(self, action: a.Action, call: Call) -> None:
        """What only a handshake asks for."""
        match action:
            case a.NewLink(gid):
                self._new_link(gid, call)
            case a.NewRmb(link, size_code):
                handle, rkey, vaddr = smc.rmb_new(link, size_code)
                self._last_rmb += 1
                self._rmbs[self._last_rmb] = link, handle
                call.feed(a.RmbMade(self._last_rmb, rkey, vaddr, size_code))
            case a.NewConnection(_, rmb, token):
                self._sockets[token] = smc.connection_new(*self._rmbs[rmb], token, call.settings)
            case a.OpenConnection():
                sock = self._sockets[action.token]
                smc.connection_open(sock, action.peer_rkey, action.peer_vaddr, action.peer_size, action.peer_token)
                call.over(action)
            case a.SendClc(message):
                call.write(message.encode())
            case a.Fallback() | a.Fail():
                call.over(action)
            case _:
                raise AssertionError(action)

    def _new_link(self, gid: bytes, call: Call) -> None:
        device = "soft" if self._soft is not None and gid == self._soft.gid else "verbs"
        handle = smc.link_new(self.pump.group_for(call.settings), device, gid)
        found = smc.link_address(handle)
        self._links[handle] = link = Link(self, handle)
        link.listen()
        call.feed(a.LinkMade(handle, a.LinkAddress(found.gid, found.mac, found.mtu_code, found.qpn, found.psn)))

    # --- the task

    def wake(self, link: Link | None = None) -> None:
        """There is something to do; for a link: it has something to tell."""
        if link is not None:
            self._telling.append(link)
        self._changed.set()

    async def _serve(self) -> None:
        """Hand on what links have to tell, and call the groups when something of theirs is due."""
        while True:
            deadline = self.groups.deadline
            self._changed = trio.Event()
            if not self._telling:
                with trio.move_on_at(math.inf if deadline is None else deadline):
                    await self._changed.wait()
            while self._telling:
                self._hear(self._telling.popleft())
            self.perform(self.groups.timeout(now=trio.current_time()))

    def _hear(self, link: Link) -> None:
        while link.handle in self._links and (notice := smc.link_take(link.handle)) is not None:
            self._notice(link.handle, notice)
        if link.handle in self._links:
            link.listen()

    def _notice(self, link: int, notice: smc.Notice) -> None:
        now = trio.current_time()
        match notice:
            case smc.Llc(data):
                if log.isEnabledFor(logging.DEBUG):
                    log.debug("smc: link %#x received %s", link, data[:44].hex())
                self.perform(self.groups.receive(link, data, now=now))
            case smc.ConnectionDone(token, clean):
                self.perform(self.groups.connection_done(link, token, now=now, clean=clean))
            case smc.LinkDown(error, reason):
                log.warning("smc: link %#x is down: %s", link, reason or os.strerror(error))
                self.perform(self.groups.link_down(link, now=now))

    def leave(self, link: int) -> None:
        """The run ends: tell the peer that the group does."""
        for group in self.groups:
            if group.link == link:
                self.perform(group.leave())


class Link(Waiting):
    """A link of the core, for the pump: what waits for its notices, and what is ended with the run.

    Args:
        service: The run's.
        handle: The core's.
    """

    def __init__(self, service: Service, handle: int) -> None:
        self.handle = handle
        self._service = service
        self._cookie = ops.add(self)
        self._asked = False  # an event is to come
        self._closed = False
        service.pump.sockets[-handle] = self  # beside the sockets, whose handles are positive

    def listen(self) -> None:
        """Ask to be told when there is a notice."""
        pump = self._service.pump
        pump.make_room(1)
        code = pump.caller.link_wait(self.handle, self._cookie, pump.eq)
        if code == 0:
            pump.in_flight += 1
            self._asked = True
        elif code == 1:
            self._service.wake(self)

    def finish(self, event: RawEvent) -> None:
        """The pump has the event."""
        del event  # whether there is a notice or none will come, the core is asked anyway
        self._asked = False
        if self._closed:
            ops.remove(self._cookie)
        else:
            self._service.wake(self)

    def close(self) -> None:
        """End it; it is kept until the event that was asked for is there.

        Raises:
            OSError: The core has none of that handle.
        """
        self._closed = True
        if not self._asked:
            ops.remove(self._cookie)
        smc.link_close(self.handle)

    def abandon(self) -> bool:
        """The run ends."""
        self._service.leave(self.handle)
        return False
