# SPDX-License-Identifier: MIT OR Apache-2.0
"""The handshake of the side that listened.

Owns the server's table, the looking at a PROPOSAL, and the choice between a group that exists and a new one.
Everything both roles share is in :mod:`exs.smc.handshake`.  Invariant: the client is told a token only when the
connection behind it can receive, since its first CDC may come before its CONFIRM was read.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from exs.smc import actions as a
from exs.smc import clc, eid
from exs.smc.handshake import (
    CLC_TIMEOUT,
    RKEY_TIMEOUT,
    Handshake,
    Row,
    decline,
    fail,
    whole,
)
from exs.smc.link_group import PeerKey, Role
from exs.smc.states import Input, Refusal, State

if TYPE_CHECKING:
    from exs.smc.groups import LinkGroups
    from exs.smc.link_group import LinkGroup
    from exs.smc.states import Local

__all__ = ["STATES", "TABLE", "Server"]

GROUP_TIMEOUT = 1.0
"""Seconds that a connection waits for another one's first contact; after that it begins one of its own."""

RESEND = 0.75
"""Seconds after which CONFIRM_LINK is sent again: a Linux client may drop the first one, in the instant between its
sending CONFIRM and its waiting for CONFIRM_LINK."""

CONFIRM_LINK_TIMEOUT = 3.0
"""Seconds for the client's answer, all repetitions included."""


class Server(Handshake):
    """Handshake of a server; see :class:`exs.smc.handshake.Handshake`."""

    role = Role.SERVER
    # Declared again for type checkers: what is assigned here too has no other type than in the base class.
    version: int
    first_contact: bool
    peer: PeerKey | None
    group: LinkGroup | None
    remote: clc.Accept | clc.Confirm | None
    deadline: float | None

    def __init__(self, groups: LinkGroups, local: Local) -> None:
        super().__init__(groups, local)
        self.proposal: clc.Proposal | None = None
        self.eid: str = ""
        self._accepted = False
        self._patience = 0.0
        """When CONFIRM_LINK is no longer repeated, or a first contact no longer waited for."""

    # -- what events mean -------------------------------------------------------------------------------------------

    def classify(self, event: a.Event, now: float) -> Input | None:
        """As in the base class; whoever waited for a group looks for it again."""
        if isinstance(event, a.GroupSettled) and self.state is State.WAIT_GROUP:
            return self.choose_group(now)
        return super().classify(event, now)

    def classify_timeout(self, now: float) -> Input:
        """The end of a wait, or the time for a repetition."""
        if self.state is State.WAIT_GROUP:
            return self.choose_group(now)
        repeat = self.state is State.WAIT_CONFIRM_LINK and now < self._patience
        return Input.REPEAT if repeat else Input.TIMEOUT

    def classify_clc(self, message: clc.Message, now: float) -> Input:
        """Look at a PROPOSAL or a CONFIRM."""
        if isinstance(message, clc.Proposal) and self.state is State.WAIT_PROPOSAL:
            self.proposal = message
            self.version, self.peer = self.choose_version(message)
            self._patience = now + GROUP_TIMEOUT
            return self.choose_group(now)
        if isinstance(message, clc.Confirm) and self.state is State.WAIT_CONFIRM:
            return self.look_at_confirm(message)
        return Input.WRONG_CLC

    def choose_version(self, proposal: clc.Proposal) -> tuple[int, PeerKey]:
        """The version for this connection, and who the client is in it: 2 before 1, as Linux does.

        Raises:
            Refusal: Neither is possible; the code says why the better one is not.
        """
        local = self.local
        if not local.versions:
            raise Refusal(local.unable or clc.DECLINE_NO_DEVICE)
        why = clc.DECLINE_VERSION
        if proposal.offers_v2 and 2 in local.versions:
            extension = proposal.v2
            if extension is None:
                why = clc.DECLINE_NO_V2_EXTENSION
            else:
                self.eid = eid.choose(extension.eids, local.eids) or ""
                if self.eid:
                    return 2, PeerKey(proposal.peer_id, extension.gid, proposal.mac)
                why = clc.DECLINE_NO_UEID
        if proposal.offers_v1 and 1 in local.versions:
            if self.same_subnet(proposal):
                return 1, PeerKey(proposal.peer_id, proposal.gid, proposal.mac)
            why = clc.DECLINE_PREFIX
        raise Refusal(why)

    def same_subnet(self, proposal: clc.Proposal) -> bool:
        """The client's IPv4 network is ours, or one of its IPv6 prefixes is: version 1 knows no routers."""
        area = proposal.ip_area
        if area is None:
            return False
        return (area.subnet, area.prefix_length) == self.local.subnet or any(
            prefix in self.local.prefixes for prefix in area.ipv6
        )

    def choose_group(self, now: float) -> Input:
        """Join a group with room; else wait for one that forms, but not for long; else form one."""
        assert self.peer is not None
        group = self.groups.for_proposal(self.version, self.peer)
        if group is not None:
            self.group = group
            return Input.PROPOSAL_JOIN
        forming = self.groups.forming(self.version, self.peer)
        if forming is not None and now < self._patience:
            self._forming = forming
            return Input.PROPOSAL_WAIT
        return Input.PROPOSAL_FIRST

    def look_at_confirm(self, confirm: clc.Confirm) -> Input:
        """Refuse what was not agreed on."""
        self.remote = confirm
        if confirm.version != self.version:
            raise Refusal(clc.DECLINE_VERSION)
        if confirm.smcd:
            raise Refusal(clc.DECLINE_MODES)
        first = confirm.first_contact_extension
        if first is not None and first.release > 0:
            raise Refusal(clc.DECLINE_RELEASE)
        # Only what we said decides: kernels of before version 2 do not set the bit in CONFIRM.
        return Input.CONFIRM_FIRST if self.first_contact else Input.CONFIRM_JOIN

    # -- steps ------------------------------------------------------------------------------------------------------

    def wait_for_group(self, event: a.Event, now: float) -> None:
        """Wait for that group."""
        self._forming.waiters.append(self)
        self.deadline = self._patience

    def found_group(self, event: a.Event, now: float) -> None:
        """First contact: make a link."""
        self.first_contact = True
        self._out.append(a.NewLink(self.own_gid()))

    def send_accept(self, event: a.Event, now: float) -> None:
        """Send ACCEPT."""
        own = self._place()[0].address
        self._out.append(a.SendClc(self.own_end(clc.Accept, mtu_code=own.mtu_code, eid=self.eid)))
        self._accepted = True

    def ask_confirm_link(self, event: a.Event, now: float) -> None:
        """Send a CONFIRM_LINK request."""
        self._out += self._place()[0].ask_confirm_link()

    def be_patient(self, event: a.Event, now: float) -> None:
        """Allow 3 s in all."""
        self._patience = now + CONFIRM_LINK_TIMEOUT

    def refuse_second_link(self, event: a.Event, now: float) -> None:
        """The group is active; send an ADD_LINK request that must be rejected."""
        self._out += self._place()[0].activate(now)

    # -- what the base class asks -----------------------------------------------------------------------------------

    def decline_version(self) -> int:
        """That of the PROPOSAL's header, whatever was chosen."""
        return 2 if self.proposal is not None and self.proposal.version > 1 else 1

    def expected(self) -> frozenset[int]:
        """A CONFIRM, if ACCEPT was sent and none has come."""
        late = (clc.CONFIRM,) if self._accepted and self.remote is None else ()
        return frozenset((clc.DECLINE, *late))


STATES = (
    State.START,
    State.WAIT_PROPOSAL,
    State.WAIT_GROUP,
    State.MAKING,
    State.JOINING,
    State.WAIT_RKEY,
    State.WAIT_CONFIRM,
    State.WAIT_CONFIRM_LINK,
)

S = Server
FIRST: Row[Server] = Row(State.MAKING, (S.found_group,))
JOIN: Row[Server] = Row(State.JOINING, (S.join_group, S.get_rmb))
WAIT: Row[Server] = Row(State.WAIT_GROUP, (S.wait_for_group,))
PLAIN: Row[Server] = Row(State.TCP, (S.plain_tcp,))
NO_LINK_ANSWER: Row[Server] = Row(State.TCP, (S.release, decline(clc.DECLINE_CONFIRM_LINK_TIMEOUT)))
NO_RKEY: Row[Server] = Row(State.TCP, (S.release, decline(clc.DECLINE_REGISTRATION)))

ROWS: dict[tuple[State, Input], Row[Server]] = {
    (State.START, Input.START): Row(State.WAIT_PROPOSAL, (), CLC_TIMEOUT),
    (State.WAIT_PROPOSAL, Input.PROPOSAL_FIRST): FIRST,
    (State.WAIT_PROPOSAL, Input.PROPOSAL_JOIN): JOIN,
    (State.WAIT_PROPOSAL, Input.PROPOSAL_WAIT): WAIT,
    (State.WAIT_PROPOSAL, Input.NOT_CLC): PLAIN,
    (State.WAIT_PROPOSAL, Input.TIMEOUT): PLAIN,
    (State.WAIT_PROPOSAL, Input.EOF): PLAIN,
    (State.WAIT_GROUP, Input.PROPOSAL_FIRST): FIRST,
    (State.WAIT_GROUP, Input.PROPOSAL_JOIN): JOIN,
    (State.WAIT_GROUP, Input.PROPOSAL_WAIT): WAIT,
    (State.MAKING, Input.LINK_MADE): Row(State.MAKING, (S.form_group, S.get_rmb)),
    (State.MAKING, Input.RMB_MADE): Row(State.WAIT_CONFIRM, (S.new_connection, S.send_accept), CLC_TIMEOUT),
    (State.JOINING, Input.RMB_MADE): Row(State.WAIT_RKEY, (S.new_connection, S.ask_confirm_rkey), RKEY_TIMEOUT),
    (State.WAIT_RKEY, Input.RKEY_ACCEPTED): Row(State.WAIT_CONFIRM, (S.send_accept,), CLC_TIMEOUT),
    (State.WAIT_RKEY, Input.RKEY_REFUSED): NO_RKEY,
    (State.WAIT_RKEY, Input.TIMEOUT): NO_RKEY,
    (State.WAIT_CONFIRM, Input.CONFIRM_FIRST): Row(
        State.WAIT_CONFIRM_LINK, (S.note_rtoken, S.to_rtr, S.to_rts, S.be_patient, S.ask_confirm_link), RESEND
    ),
    (State.WAIT_CONFIRM, Input.CONFIRM_JOIN): Row(State.OPEN, (S.note_rtoken, S.open)),
    (State.WAIT_CONFIRM, Input.TIMEOUT): Row(State.FAILED, (S.release, fail(errno.ETIMEDOUT, "no SMC CONFIRM"))),
    (State.WAIT_CONFIRM_LINK, Input.LINK_CONFIRMED): Row(State.OPEN, (S.refuse_second_link, S.open)),
    (State.WAIT_CONFIRM_LINK, Input.REPEAT): Row(State.WAIT_CONFIRM_LINK, (S.ask_confirm_link,), RESEND),
    (State.WAIT_CONFIRM_LINK, Input.EYECATCHERS): Row(State.TCP, (S.release, decline(clc.DECLINE_EYECATCHERS))),
    (State.WAIT_CONFIRM_LINK, Input.TIMEOUT): NO_LINK_ANSWER,
}
TABLE = Server.table = whole(ROWS, STATES)
