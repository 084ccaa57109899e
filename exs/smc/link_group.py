# SPDX-License-Identifier: MIT OR Apache-2.0
"""One link group: its connections, its buffers, and the requests that it has open.

Owns what a group knows and the actions that follow when that changes; what is answered to an LLC message is
:mod:`exs.smc.llc_service`'s.  Knows neither the clock nor how a message travels, and never waits for a handshake.
Invariants: at most 255 connections; a buffer whose rkey the peer knows is withdrawn before another connection gets it;
an ended group asks for nothing more than releases.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from exs.smc import llc
from exs.smc.actions import (
    ActivateLink,
    AddLinkCame,
    CloseLink,
    CloseRmb,
    DropConnection,
    GroupLost,
    GroupSettled,
    LinkConfirm,
    RkeyAnswer,
    SendLlc,
    Tell,
)
from exs.smc.rkeys import Flow, FlowKind, Flows, Rmb, Rtokens, Stock
from exs.smc.transitions import log_transition

if TYPE_CHECKING:
    from exs.smc.actions import Action, LinkAddress, Listener

__all__ = ["CONNECTIONS_MAX", "GroupState", "LinkGroup", "PeerKey", "Role", "Slot"]

CONNECTIONS_MAX = 255
"""Connections that one group carries; the next one gets another group."""

TEST_INTERVAL = 30.0
"""Seconds without reception after which C sends TEST_LINK."""

TEST_TIMEOUT = 2.0
"""Seconds for the answer to it, after which the link is down."""

IDLE_SERVER = 600.0
IDLE_CLIENT = 610.0
"""Seconds that a group without connections is kept; the client's is longer, so that the two do not cross."""

LINGER = 2.0
"""Seconds that a queue pair outlives our DELETE_LINK, while the peer's is awaited."""

DRAIN = 0.5
"""Seconds for our last message to get out, when nothing more is expected."""

QUIET = 3.0
"""Seconds after its last connection before a group is given up early: the peer's DELETE_RKEY comes in them."""


class Role(enum.Enum):
    """Who listened on TCP is the server of the group, for all of its life."""

    SERVER = "server"
    CLIENT = "client"


class GroupState(enum.Enum):
    """Where a group is in its life."""

    FORMING = "forming"
    """First contact is under way; nobody may join."""
    ACTIVE = "active"
    """CONFIRM_LINK was answered."""
    ENDING = "ending"
    """DELETE_LINK was sent or received; the queue pair lives a little longer."""
    ENDED = "ended"
    """The queue pair is gone."""


class PeerKey(NamedTuple):
    """Who a peer is, as far as link groups are concerned."""

    peer_id: bytes
    """8 bytes; zeros from a Linux client without version 1."""
    gid: bytes
    mac: bytes

    def matches(self, other: PeerKey, version: int) -> bool:
        """The same peer, over the same port; version 2 tells ports by their GID alone."""
        return self[:2] == other[:2] and (version > 1 or self.mac == other.mac)


@dataclass(eq=False, slots=True)
class Slot:
    """One connection's place in a group, from its handshake to its end."""

    token: int
    """Our alert token."""
    listener: Listener | None
    """The handshake, until it is over."""
    rmb: Rmb | None = None
    made: bool = False
    """The native connection exists."""


class LinkGroup:
    """A link and the connections on it.

    Every method that takes ``now`` (seconds, never going back) returns the actions that follow, in order.

    Args:
        serial: Number of the group among ours, for logs and for the user id in CONFIRM_LINK.
        role: Ours.
        version: Of CLC and LLC, 1 or 2.
        peer: Who the peer is, from its CLC message.
        link: Handle of the link.
        address: Our end of it.
    """

    def __init__(
        self, *, serial: int, role: Role, version: int, peer: PeerKey, link: int, address: LinkAddress
    ) -> None:
        self.serial = serial
        self.role = role
        self.version = version
        self.peer = peer
        self.link = link
        self.address = address
        self.peer_address: LinkAddress | None = None
        self.number = 1
        """Link number; the server's choice, adopted by the client."""
        self.state: GroupState = GroupState.FORMING
        self.joinable: bool = True
        """New connections may join, as far as the state and the room allow it."""
        self.big_endian = False
        """How the lengths of our version 2 messages are written: as the peer writes its own."""
        self.slots: dict[int, Slot] = {}
        self.rtokens: Rtokens = Rtokens()
        self.stock: Stock = Stock()
        self.flows: Flows = Flows()
        self.rmbs: set[Rmb] = set()
        """All buffers that are registered on the link."""
        self.waiters: list[Listener] = []
        """Handshakes that join once the first contact is over."""
        self.ignored: int = 0
        """Messages that were none, or that nothing asked for."""
        self.idle_at: float | None = None
        """When a group without connections ends."""
        self.closes_at: float | None = None
        """When the link of an ending group is closed."""
        self._out: list[Action] = []
        self._log("link made", "new", self.state)

    @property
    def place(self) -> bool:
        """One more connection whose buffer the peer has announced already may join now."""
        return self.state is GroupState.ACTIVE and self.joinable and len(self.slots) < CONNECTIONS_MAX

    @property
    def room(self) -> bool:
        """One more connection, with one more buffer of the peer, may join now."""
        return self.place and not self.rtokens.full

    @property
    def deadline(self) -> float | None:
        """When the service's ``timeout`` is to be called, if nothing else comes first."""
        return min((d for d in (self.flows.deadline, self.idle_at, self.closes_at) if d is not None), default=None)

    # -- what handshakes ask ----------------------------------------------------------------------------------------

    def take(self, token: int, listener: Listener) -> Slot:
        """Give a handshake its place."""
        assert token not in self.slots
        assert len(self.slots) < CONNECTIONS_MAX
        self.slots[token] = slot = Slot(token, listener)
        self.idle_at = None
        return slot

    def give_rmb(self, slot: Slot, rmb: Rmb) -> None:
        """A buffer, new or from the stock, belongs to a connection now."""
        self.rmbs.add(rmb)
        slot.rmb = rmb

    def ask_confirm_rkey(self, slot: Slot, now: float) -> list[Action]:
        """Announce a connection's buffer; its handshake is told by :class:`RkeyAnswer`."""
        assert slot.rmb is not None
        request = llc.ConfirmRkey(version=self.version, rkey=slot.rmb.rkey, vaddr=slot.rmb.vaddr)
        self.flows.add(Flow(FlowKind.CONFIRM_RKEY, request, slot.rmb, slot.token))
        self.send_next(now)
        return self.flush()

    def ask_confirm_link(self) -> list[Action]:
        """The server's CONFIRM_LINK request, which may be sent again."""
        self.send(self.confirm_link(response=False))
        return self.flush()

    def activate(self, now: float) -> list[Action]:
        """The link is confirmed: a client answers, a server refuses a second link before it is offered one."""
        self.enter(GroupState.ACTIVE, "CONFIRM_LINK")
        interval, patience = round(TEST_INTERVAL * 1000), round(TEST_TIMEOUT * 1000)
        self._out.append(ActivateLink(self.link, self.version, interval, patience))
        if self.role is Role.CLIENT:
            self.send(self.confirm_link(response=True))
        if self.role is Role.SERVER:
            self.flows.add(Flow(FlowKind.ADD_LINK, self._unacceptable_link()))
            self.send_next(now)
        self.settle()
        return self.flush()

    def established(self, slot: Slot) -> None:
        """A handshake is over, and its connection open."""
        slot.listener = None

    def release(self, slot: Slot, now: float, *, founder: bool) -> list[Action]:
        """A handshake ended without a connection.

        Args:
            slot: Its place, given up here.
            now: Seconds.
            founder: It was the first contact, so the peer gives the group up as well.
        """
        del self.slots[slot.token]
        if slot.made:
            self._out.append(DropConnection(slot.token))
        if founder and not self.slots and self.state is not GroupState.ENDED:
            self.enter(GroupState.ENDED, "first contact failed")
            self.close()
        self._vacate(slot, now)
        return self.flush()

    def connection_done(self, token: int, now: float, *, clean: bool = True) -> list[Action]:
        """An open connection has ended, and nothing reads its buffer any more.

        Args:
            token: Its own.
            now: Seconds.
            clean: The peer said so too; else it may still write into the buffer, which serves nobody else then.
        """
        slot = self.slots.pop(token, None)
        if slot is not None:
            if slot.rmb is not None and not clean:
                slot.rmb.spoiled = True
            self._vacate(slot, now)
        return self.flush()

    def wind_down(self, now: float) -> list[Action]:
        """Take no more connections, and end once the last one is gone for long enough for the peer to tidy up."""
        self.joinable = False
        if self.idle_at is not None:
            self.idle_at = min(self.idle_at, now + QUIET)
        return self.flush()

    def leave(self) -> list[Action]:
        """The run ends: tell the peer, and close the link at once."""
        self.delete_all(llc.DELETE_PROGRAM, orderly=True)
        self.enter(GroupState.ENDED, "end of the run")
        self.close()
        return self.flush()

    # -- what the LLC service asks ----------------------------------------------------------------------------------

    def enter(self, state: GroupState, what: str) -> None:
        """Be in this state from now on, because of what happened."""
        if state is not self.state:
            self._log(what, self.state.value, state)
            self.state = state

    def send(self, message: llc.Message) -> None:
        """Send a message on the link."""
        self._out.append(SendLlc(self.link, message, self.big_endian))

    def send_next(self, now: float) -> None:
        """Send our next request, if none is unanswered."""
        flow = self.flows.next(now)
        if flow is not None:
            if flow.kind is FlowKind.CONFIRM_RKEY and flow.rmb is not None:
                flow.rmb.announced = True
            self.send(flow.request)

    def end_request(self, kind: FlowKind) -> Flow | None:
        """Our request of this kind is answered; ``None`` if none is open."""
        if self.flows.current is None or self.flows.current.kind is not kind:
            self.ignored += 1
            return None
        return self.flows.end()

    def finish(self, flow: Flow, *, accepted: bool) -> None:
        """Hand on what the end of a request of ours means."""
        if flow.kind is FlowKind.CONFIRM_RKEY:
            slot = self.slots.get(flow.token)
            if slot is not None and slot.listener is not None:
                self._out.append(Tell(slot.listener, RkeyAnswer(accepted)))
        elif flow.kind is FlowKind.DELETE_RKEY and flow.rmb is not None:
            flow.rmb.announced = False
            self._keep(flow.rmb)

    def tell(self, event: LinkConfirm | AddLinkCame | GroupLost) -> None:
        """Tell the handshakes that are under way."""
        self._out.extend(Tell(slot.listener, event) for slot in self.slots.values() if slot.listener is not None)

    def settle(self) -> None:
        """The first contact is over: tell those who wait for it."""
        self._out.extend(Tell(waiter, GroupSettled()) for waiter in self.waiters)
        self.waiters.clear()

    def delete_all(self, reason: int, *, orderly: bool) -> None:
        """Send DELETE_LINK for all links."""
        self.send(llc.DeleteLink(version=self.version, all_links=True, orderly=orderly, reason=reason))

    def close(self) -> None:
        """The end of the link: the connections first, the buffers last."""
        self.settle()
        for slot in list(self.slots.values()):
            if slot.listener is None:
                del self.slots[slot.token]
            elif slot.made:
                slot.made = False
                self._out.append(DropConnection(slot.token))
        self._out.append(CloseLink(self.link))
        self._out.extend(CloseRmb(rmb.handle) for rmb in sorted(self.rmbs, key=lambda rmb: rmb.handle))
        self.rmbs.clear()
        self.stock.drain()
        self.flows.clear()
        self.idle_at = self.closes_at = None

    def confirm_link(self, *, response: bool) -> llc.ConfirmLink:
        """Our CONFIRM_LINK."""
        own = self.address
        return llc.ConfirmLink(
            version=self.version,
            response=response,
            mac=own.mac,
            gid=own.gid,
            qpn=own.qpn,
            number=self.number,
            user_id=(self.serial << 8 | self.number) & 0xFFFFFFFF,
            max_links=1,
        )

    def flush(self) -> list[Action]:
        """The actions since the last call."""
        out, self._out = self._out, []
        return out

    # -- private ----------------------------------------------------------------------------------------------------

    def _vacate(self, slot: Slot, now: float) -> None:
        """A place is free: withdraw its buffer, so that the peer's table does not fill, then keep it."""
        self.flows.withdraw(slot.token)
        if self.state is not GroupState.ACTIVE:
            return  # the end of the link is the end of the buffer
        if slot.rmb is not None and slot.rmb.announced:
            request = llc.DeleteRkey(version=self.version, rkeys=(slot.rmb.rkey,))
            self.flows.add(Flow(FlowKind.DELETE_RKEY, request, slot.rmb))
            self.send_next(now)
        elif slot.rmb is not None:
            self._keep(slot.rmb)
        if not self.slots:
            wait = IDLE_SERVER if self.role is Role.SERVER else IDLE_CLIENT
            self.idle_at = now + (wait if self.joinable else QUIET)

    def _log(self, what: str, old: str, state: GroupState) -> None:
        log_transition(
            "group", self.serial, what, old, state.value, role=self.role.value, group=self.serial, link=self.link
        )

    def _keep(self, rmb: Rmb) -> None:
        surplus = rmb if rmb.spoiled else self.stock.put(rmb)
        if surplus is not None:
            self.rmbs.remove(surplus)
            self._out.append(CloseRmb(surplus.handle))

    def _unacceptable_link(self) -> llc.AddLink:
        """An ADD_LINK that nobody can accept, its MTU code being 0.

        Without one a Linux client waits 3 s in connect().  MAC and GID stay, since Linux takes a body of zeros for an
        event of its own.
        """
        return llc.AddLink(version=self.version, mac=self.address.mac, gid=self.address.gid, number=0)
