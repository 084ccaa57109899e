# SPDX-License-Identifier: MIT OR Apache-2.0
"""The handshake of the side that connected.

Owns the client's table and the looking at an ACCEPT.  Everything both roles share is in :mod:`exs.smc.handshake`.
Invariant: nothing that could lose a byte in a fallback happens before the server is known not to decline: the
connection opens when its CONFIRM_RKEY was answered, or in a first contact when ADD_LINK has come or is overdue.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from exs.smc import actions as a
from exs.smc import clc
from exs.smc.handshake import (
    CLC_TIMEOUT,
    RKEY_TIMEOUT,
    Handshake,
    Row,
    decline,
    whole,
)
from exs.smc.link_group import PeerKey, Role
from exs.smc.states import Input, Refusal, State

if TYPE_CHECKING:
    from exs.smc.groups import LinkGroups
    from exs.smc.link_group import LinkGroup
    from exs.smc.states import Local

__all__ = ["STATES", "TABLE", "Client"]

CONFIRM_LINK_TIMEOUT = 5.0
"""Seconds for the server's CONFIRM_LINK: longer than a server waits for our answer, lest two DECLINEs cross."""

ADD_LINK_TIMEOUT = 3.5
"""Seconds for the ADD_LINK that follows it; a server that had no answer of ours has declined by then."""


class Client(Handshake):
    """Handshake of a client; see :class:`exs.smc.handshake.Handshake`."""

    role = Role.CLIENT
    # Declared again for type checkers: what is assigned here too has no other type than in the base class.
    version: int
    first_contact: bool
    peer: PeerKey | None
    group: LinkGroup | None
    remote: clc.Accept | clc.Confirm | None

    def __init__(self, groups: LinkGroups, local: Local) -> None:
        super().__init__(groups, local)
        self._proposed = False

    # -- what events mean -------------------------------------------------------------------------------------------

    def classify(self, event: a.Event, now: float) -> Input | None:
        """As in the base class; a client that cannot offer any version says so at once."""
        if isinstance(event, a.Start) and not self.local.versions:
            raise Refusal(self.local.unable or clc.DECLINE_NO_DEVICE)
        return super().classify(event, now)

    def classify_clc(self, message: clc.Message, now: float) -> Input:
        """Look at an ACCEPT, and for the group that it names."""
        if self.state is not State.WAIT_ACCEPT or not isinstance(message, clc.Accept):
            return Input.WRONG_CLC
        self.remote = message
        self.version = message.version
        self.peer = PeerKey(message.peer_id, message.gid, message.mac)
        self.check(message)
        self.first_contact = message.first_contact
        if message.first_contact:
            return Input.ACCEPT_FIRST
        found = self.groups.for_accept(self.version, self.peer, message.qpn)
        if found.group is None:
            return Input.ACCEPT_UNKNOWN_LINK if found.known else Input.ACCEPT_UNKNOWN_GROUP
        if not found.group.place:
            raise Refusal(clc.DECLINE_NO_LINK)
        self.group = found.group
        return Input.ACCEPT_JOIN

    def check(self, accept: clc.Accept) -> None:
        """Refuse what was not offered."""
        if accept.version not in self.local.versions:
            self.version = max(self.local.versions)
            raise Refusal(clc.DECLINE_VERSION)
        if accept.smcd:
            raise Refusal(clc.DECLINE_MODES)
        if accept.version == 1:
            return
        if accept.eid not in self.local.eids:
            raise Refusal(clc.DECLINE_NO_UEID)
        first = accept.first_contact_extension
        if first is not None and first.release > 0:
            raise Refusal(clc.DECLINE_RELEASE)
        if first is not None and not first.v2_direct and self.local.direct:
            raise Refusal(clc.DECLINE_INDIRECT)

    # -- steps ------------------------------------------------------------------------------------------------------

    def propose(self, event: a.Event, now: float) -> None:
        """Send PROPOSAL."""
        self._out.append(a.SendClc(proposal(self.groups.peer_id, self.local)))
        self._proposed = True

    def send_confirm(self, event: a.Event, now: float) -> None:
        """Send CONFIRM."""
        own = self._place()[0].address
        assert isinstance(self.remote, clc.Accept)
        mtu_code = min(own.mtu_code, self.remote.mtu_code)
        confirm = self.own_end(clc.Confirm, mtu_code=mtu_code, eid=self.remote.eid)
        if confirm.first_contact_extension is not None:
            confirm = replace(confirm, gids=(own.gid,))
        self._out.append(a.SendClc(confirm))

    def adopt_number(self, event: a.Event, now: float) -> None:
        """Adopt the link number."""
        assert isinstance(event, a.LinkConfirm)
        self._place()[0].number = event.message.number

    def answer_confirm_link(self, event: a.Event, now: float) -> None:
        """Send a CONFIRM_LINK response; the group is active."""
        self._out += self._place()[0].activate(now)

    # -- what the base class asks -----------------------------------------------------------------------------------

    def decline_version(self) -> int:
        """That of the ACCEPT, else of the PROPOSAL; 1, which every server reads, before that."""
        return self.version or (max(self.local.versions) if self._proposed else 1)

    def expected(self) -> frozenset[int]:
        """A late ACCEPT, if none has come."""
        late = (clc.ACCEPT,) if self._proposed and self.remote is None else ()
        return frozenset((clc.DECLINE, *late))


def proposal(peer_id: bytes, local: Local) -> clc.Proposal:
    """What a client offers: peer id and MAC always, since Linux takes the MAC for its queue pair's destination."""
    one, two = 1 in local.versions, 2 in local.versions
    assert one or two
    area = clc.Area(subnet=local.subnet[0], prefix_length=local.subnet[1], ipv6=local.prefixes)
    return clc.Proposal(
        version=2 if two else 1,
        peer_id=peer_id,
        gid=local.gid_v1 if one and local.gid_v1 is not None else bytes(16),
        mac=local.mac,
        offers_v1=one,
        offers_v2=two,
        ip_area=area if one else None,
        v2=clc.V2(gid=local.gid, eids=local.eids) if two and local.gid is not None else None,
    )


STATES = (
    State.START,
    State.WAIT_ACCEPT,
    State.MAKING,
    State.JOINING,
    State.WAIT_RKEY,
    State.WAIT_CONFIRM_LINK,
    State.WAIT_ADD_LINK,
)

C = Client
ROWS: dict[tuple[State, Input], Row[Client]] = {
    (State.START, Input.START): Row(State.WAIT_ACCEPT, (C.propose,), CLC_TIMEOUT),
    (State.WAIT_ACCEPT, Input.ACCEPT_FIRST): Row(State.MAKING, (C.make_link,)),
    (State.WAIT_ACCEPT, Input.ACCEPT_JOIN): Row(State.JOINING, (C.join_group, C.note_rtoken, C.get_rmb)),
    (State.WAIT_ACCEPT, Input.ACCEPT_UNKNOWN_GROUP): Row(State.TCP, (decline(clc.DECLINE_SYNC, out_of_sync=True),)),
    (State.WAIT_ACCEPT, Input.ACCEPT_UNKNOWN_LINK): Row(State.TCP, (decline(clc.DECLINE_LINK_NOT_FOUND),)),
    (State.WAIT_ACCEPT, Input.TIMEOUT): Row(State.TCP, (decline(clc.DECLINE_PEER_NO_SMC),)),
    (State.MAKING, Input.LINK_MADE): Row(State.MAKING, (C.form_group, C.note_rtoken, C.to_rtr, C.get_rmb)),
    (State.MAKING, Input.RMB_MADE): Row(
        State.WAIT_CONFIRM_LINK, (C.new_connection, C.send_confirm), CONFIRM_LINK_TIMEOUT
    ),
    (State.WAIT_CONFIRM_LINK, Input.LINK_CONFIRMED): Row(
        State.WAIT_ADD_LINK, (C.adopt_number, C.to_rts, C.answer_confirm_link), ADD_LINK_TIMEOUT
    ),
    (State.WAIT_CONFIRM_LINK, Input.EYECATCHERS): Row(State.TCP, (C.release, decline(clc.DECLINE_EYECATCHERS))),
    (State.WAIT_CONFIRM_LINK, Input.TIMEOUT): Row(State.TCP, (C.release, decline(clc.DECLINE_CONFIRM_LINK_TIMEOUT))),
    (State.WAIT_ADD_LINK, Input.ADD_LINK): Row(State.OPEN, (C.open,)),
    (State.WAIT_ADD_LINK, Input.TIMEOUT): Row(State.OPEN, (C.open,)),
    (State.JOINING, Input.RMB_MADE): Row(State.WAIT_RKEY, (C.new_connection, C.ask_confirm_rkey), RKEY_TIMEOUT),
    (State.WAIT_RKEY, Input.RKEY_ACCEPTED): Row(State.OPEN, (C.send_confirm, C.open)),
    (State.WAIT_RKEY, Input.RKEY_REFUSED): Row(State.TCP, (C.release, decline(clc.DECLINE_REGISTRATION))),
    (State.WAIT_RKEY, Input.TIMEOUT): Row(State.TCP, (C.release, decline(clc.DECLINE_REGISTRATION))),
}
TABLE = Client.table = whole(ROWS, STATES)
