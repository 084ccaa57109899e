# SPDX-License-Identifier: MIT OR Apache-2.0
"""What both handshakes of SMC-R share: the interpreter of their tables, the steps of both roles, and the ways to end.

Owns the turning of events into inputs that are common to both roles, the release of what was made, and the codes that a
DECLINE gives.  Knows neither sockets nor clocks nor which role it plays.  Invariants: a handshake ends exactly once, by
:class:`OpenConnection`, :class:`Fallback` or :class:`Fail`; what was made for it is released unless it ends
by the first; a DECLINE is never answered.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from exs.errors import from_errno
from exs.smc import actions as a
from exs.smc import clc
from exs.smc.link_group import GroupState
from exs.smc.rkeys import Rmb
from exs.smc.states import ENDS, Input, Local, Refusal, State, code_for
from exs.smc.transitions import log_transition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from exs.errors import Error
    from exs.smc.groups import LinkGroups
    from exs.smc.link_group import LinkGroup, PeerKey, Role, Slot

__all__ = [
    "ANYWHERE",
    "CLC_TIMEOUT",
    "ENDS",
    "RKEY_TIMEOUT",
    "Handshake",
    "Local",
    "Row",
    "decline",
    "fail",
    "whole",
]

CLC_TIMEOUT = 6.0
"""Seconds for each CLC message of the peer."""

RKEY_TIMEOUT = 4.0
"""Seconds for the answer to our CONFIRM_RKEY, other requests of the group before it included; below the 6 s of CLC."""


Answer = TypeVar("Answer", clc.Accept, clc.Confirm)
M = TypeVar("M", bound="Handshake", contravariant=True)


class Row(NamedTuple, Generic[M]):
    """One entry of a table: the state afterwards, what is done in it, and how long it may last."""

    to: State
    steps: tuple[Callable[[M, a.Event, float], None], ...] = ()
    within: float | None = None
    """Seconds until :attr:`Input.TIMEOUT`; ``None``: no other deadline in the same state, none at all in another."""


class Handshake:
    """One connection's handshake, fed with events and read by its actions.

    :meth:`receive` is to be called with :class:`Start` first, then with whatever happens, and with :class:`Timeout`
    when :attr:`deadline` has passed.  It may be called after the end: what comes late is released.

    Args:
        groups: The process's link groups.
        local: What this side brings.
    """

    role: ClassVar[Role]
    table: ClassVar[Mapping[tuple[State, Input], Row[Any]]]  # Any: the subclass whose table it is

    def __init__(self, groups: LinkGroups, local: Local) -> None:
        self.groups = groups
        self.local = local
        self.serial: int = groups.number_handshake()
        """Number of the handshake among ours, for logs."""
        self.state: State = State.START
        self.version: int = 0
        """Of CLC, once both sides are agreed; 0 before."""
        self.deadline: float | None = None
        self.first_contact: bool = False
        self.peer: PeerKey | None = None
        self.group: LinkGroup | None = None
        self.slot: Slot | None = None
        self.remote: clc.Accept | clc.Confirm | None = None
        """The peer's end, from its ACCEPT or CONFIRM."""
        self._code = 0
        self._events: deque[a.Event] = deque()
        self._out: list[a.Action] = []

    @property
    def transport(self) -> str:
        """What carries the payload, in the words of ``stream.transport``; empty before the end."""
        return {State.OPEN: f"smc-r v{self.version}", State.TCP: "tcp"}.get(self.state, "")

    def receive(self, event: a.Event, *, now: float) -> list[a.Action]:
        """Take one event.

        Args:
            event: What happened.
            now: Seconds, from a clock that never goes back.

        Returns:
            What is to be done, in order.
        """
        self._events.append(event)
        while self._events:
            self._take(self._events.popleft(), now)
        out, self._out = self._out, []
        return out

    def _take(self, event: a.Event, now: float) -> None:
        try:
            what = self.classify(event, now)
            if what is not None:
                self._apply(what, event, now)
        except Refusal as refusal:
            self._code = refusal.code
            self._apply(Input.UNABLE, event, now)

    def _apply(self, what: Input, event: a.Event, now: float) -> None:
        row = self.table[self.state, what]
        if row.to is not self.state:
            self._log(what, row.to)
            self.deadline = None
        self.state = row.to
        if row.within is not None:
            self.deadline = now + row.within
        for step in row.steps:
            step(self, event, now)

    def _log(self, what: Input, to: State) -> None:
        happened = f"{what.value}: {clc.reason_text(self._code)}" if what is Input.UNABLE else what.value
        log_transition(
            "handshake",
            self.serial,
            happened,
            self.state.value,
            to.value,
            role=self.role.value,
            group=None if self.group is None else self.group.serial,
            link=None if self.group is None else self.group.link,
            token=None if self.slot is None else self.slot.token,
        )

    # -- what events mean -------------------------------------------------------------------------------------------

    def classify(self, event: a.Event, now: float) -> Input | None:
        """What an event means here; ``None`` for a time-out that is none.

        Raises:
            Refusal: SMC-R is impossible.
        """
        match event:
            case a.ClcReceived(clc.Decline(out_of_sync=out_of_sync)):
                return Input.DECLINE_OUT_OF_SYNC if out_of_sync else Input.DECLINE
            case a.Timeout() if self.deadline is None or now < self.deadline:
                return None
            case a.ActionFailed(a.SendClc()):
                return Input.SEND_FAILED
            case a.ActionFailed(action, number):
                if isinstance(action, a.NewConnection) and self.slot is not None:
                    self.slot.made = False
                raise Refusal(code_for(action, number))
            case _ if self._lost(event):
                return Input.GROUP_LOST
            case a.ClcReceived(message):
                return self.classify_clc(message, now)
            case a.Timeout():
                return self.classify_timeout(now)
            case a.LinkConfirm(message):
                return Input.LINK_CONFIRMED if message.no_eyecatchers else Input.EYECATCHERS
            case a.RkeyAnswer(accepted):
                return Input.RKEY_ACCEPTED if accepted else Input.RKEY_REFUSED
            case _:
                return _PLAIN[type(event)]

    def _lost(self, event: a.Event) -> bool:
        """The group has ended behind our back: whatever would be the next step of success is none."""
        if self.slot is None or self.group is None or self.state in ENDS:
            return False
        if not isinstance(event, _FORWARD) or self.group.state in (GroupState.FORMING, GroupState.ACTIVE):
            return False
        if isinstance(event, a.RmbMade) and self.slot.rmb is None:
            self._out.append(a.CloseRmb(event.rmb))
        return True

    def classify_clc(self, message: clc.Message, now: float) -> Input:
        """What a CLC message means that is no DECLINE."""
        raise NotImplementedError

    def classify_timeout(self, now: float) -> Input:
        """What the passing of the deadline means."""
        return Input.TIMEOUT

    # -- steps of both roles: each says what it does, for the page that is made of them ------------------------------

    def make_link(self, event: a.Event, now: float) -> None:
        """Make a link."""
        gid = self.own_gid()
        self._out.append(a.NewLink(gid))

    def form_group(self, event: a.Event, now: float) -> None:
        """Form a group on it."""
        assert isinstance(event, a.LinkMade)
        assert self.peer is not None
        self.group = self.groups.form(
            role=self.role, version=self.version, peer=self.peer, link=event.link, address=event.address
        )
        self.slot = self.groups.take(self.group, self)

    def join_group(self, event: a.Event, now: float) -> None:
        """Take a place in the group."""
        assert self.group is not None
        self.slot = self.groups.take(self.group, self)

    def get_rmb(self, event: a.Event, now: float) -> None:
        """Take a buffer from the group's stock, or make one."""
        group, slot = self._place()
        rmb = group.stock.take(self.local.size_code)
        if rmb is None:
            self._out.append(a.NewRmb(group.link, self.local.size_code))
        else:
            group.give_rmb(slot, rmb)
            self._events.append(a.RmbMade(rmb.handle, rmb.rkey, rmb.vaddr, rmb.size_code))

    def new_connection(self, event: a.Event, now: float) -> None:
        """Make the connection, so that it can receive."""
        assert isinstance(event, a.RmbMade)
        group, slot = self._place()
        if slot.rmb is None:
            group.give_rmb(slot, Rmb(event.rmb, event.rkey, event.vaddr, event.size_code))
        self._out.append(a.NewConnection(group.link, event.rmb, slot.token))
        slot.made = True

    def note_rtoken(self, event: a.Event, now: float) -> None:
        """Note the peer's buffer."""
        group, _ = self._place()
        assert self.remote is not None
        if not group.rtokens.add(self.remote.rkey, self.remote.vaddr):
            raise Refusal(clc.DECLINE_RTOKEN)

    def ask_confirm_rkey(self, event: a.Event, now: float) -> None:
        """Queue CONFIRM_RKEY for the buffer."""
        group, slot = self._place()
        self._out += group.ask_confirm_rkey(slot, now)

    def to_rtr(self, event: a.Event, now: float) -> None:
        """Link to RTR."""
        group, _ = self._place()
        remote = self.remote
        assert remote is not None
        assert self.peer is not None
        mtu_code = min(remote.mtu_code, group.address.mtu_code)
        group.peer_address = a.LinkAddress(self.peer.gid, remote.mac, mtu_code, remote.qpn, remote.psn)
        self._out.append(a.ToRtr(group.link, group.peer_address))

    def to_rts(self, event: a.Event, now: float) -> None:
        """Link to RTS."""
        self._out.append(a.ToRts(self._place()[0].link))

    def open(self, event: a.Event, now: float) -> None:
        """Open the connection."""
        group, slot = self._place()
        remote = self.remote
        assert remote is not None
        size = 16384 << remote.size_code
        vaddr = remote.vaddr + (remote.rmbe_index - 1) * size
        self._out.append(a.OpenConnection(slot.token, remote.rkey, vaddr, size, remote.token))
        group.established(slot)

    # -- the ways to end --------------------------------------------------------------------------------------------

    def release(self, event: a.Event, now: float) -> None:
        """Release what was made."""
        if self.group is not None and self.slot is not None:
            self._out += self.groups.release(self.group, self.slot, now, founder=self.first_contact)
        self.group = self.slot = None

    def give_up_group(self, event: a.Event, now: float) -> None:
        """Give the whole group up."""
        if self.group is not None:
            self._out += self.groups.out_of_sync(self.group, now)

    def plain_tcp(self, event: a.Event, now: float) -> None:
        """Go on in TCP, with what was read."""
        payload = event.data if isinstance(event, a.NotClc | a.Eof) else b""
        # After silence the PROPOSAL may still come, and then the DECLINE of a client that had no ACCEPT.
        late = (clc.PROPOSAL, clc.DECLINE) if isinstance(event, a.Timeout) else ()
        self._out.append(a.Fallback(0, by_peer=True, payload=payload, crossing=frozenset(late)))

    def follow_decline(self, event: a.Event, now: float) -> None:
        """Go on in TCP, without an answer."""
        assert isinstance(event, a.ClcReceived)
        assert isinstance(event.message, clc.Decline)
        self._out.append(a.Fallback(event.message.diagnosis, by_peer=True))

    def say_decline(self, code: int, *, out_of_sync: bool = False) -> None:
        """Append a DECLINE and the way to TCP."""
        version = self.decline_version()
        self._out.append(
            a.SendClc(
                clc.Decline(
                    version=version,
                    peer_id=self.groups.peer_id,
                    diagnosis=code,
                    out_of_sync=out_of_sync,
                    os_type=clc.OS_LINUX if version > 1 else 0,
                )
            )
        )
        self._out.append(a.Fallback(code, by_peer=False, crossing=self.expected()))

    def decline_unable(self, event: a.Event, now: float) -> None:
        """Send DECLINE with the code of what failed; go on in TCP."""
        self.say_decline(self._code)

    def fail(self, error: Error) -> None:
        """Append the end of the connection."""
        self._out.append(a.Fail(error))

    def close_late(self, event: a.Event, now: float) -> None:
        """Close it again."""
        if isinstance(event, a.LinkMade):
            self._out.append(a.CloseLink(event.link))
        elif isinstance(event, a.RmbMade):
            self._out.append(a.CloseRmb(event.rmb))

    # -- what a role fills in ---------------------------------------------------------------------------------------

    def decline_version(self) -> int:
        """Version of a DECLINE that is sent now."""
        raise NotImplementedError

    def expected(self) -> frozenset[int]:
        """CLC messages of which the peer may have sent one when our DECLINE reaches it."""
        raise NotImplementedError

    def own_gid(self) -> bytes:
        """Our GID for the version agreed on."""
        gid = self.local.gid_v1 if self.version == 1 else self.local.gid
        assert gid is not None
        return gid

    def own_end(self, kind: type[Answer], *, mtu_code: int, eid: str) -> Answer:
        """Our end of the connection, as ACCEPT and CONFIRM tell it."""
        group, slot = self._place()
        own, rmb = group.address, slot.rmb
        assert rmb is not None
        rmb.announced = True
        extended = self.first_contact and self.version > 1
        return kind(
            version=self.version,
            first_contact=self.first_contact,
            peer_id=self.groups.peer_id,
            gid=own.gid,
            mac=own.mac,
            qpn=own.qpn,
            rkey=rmb.rkey,
            token=slot.token,
            size_code=rmb.size_code,
            mtu_code=mtu_code,
            vaddr=rmb.vaddr,
            psn=own.psn,
            eid=eid if self.version > 1 else "",
            first_contact_extension=clc.FirstContact(v2_direct=self.local.direct, host=self.local.host)
            if extended
            else None,
        )

    def _place(self) -> tuple[LinkGroup, Slot]:
        assert self.group is not None
        assert self.slot is not None
        return self.group, self.slot


_FORWARD = (a.ClcReceived, a.Timeout, a.RmbMade, a.LinkConfirm, a.AddLinkCame, a.RkeyAnswer)
_PLAIN: Mapping[type[a.Event], Input] = {
    a.Start: Input.START,
    a.NotClc: Input.NOT_CLC,
    a.ClcBroken: Input.WRONG_CLC,
    a.Eof: Input.EOF,
    a.LinkMade: Input.LINK_MADE,
    a.RmbMade: Input.RMB_MADE,
    a.AddLinkCame: Input.ADD_LINK,
    a.GroupSettled: Input.GROUP_SETTLED,
    a.GroupLost: Input.GROUP_LOST,
}


def decline(code: int, *, out_of_sync: bool = False) -> Callable[[Handshake, a.Event, float], None]:
    """The step that sends a DECLINE with this code."""

    def step(machine: Handshake, event: a.Event, now: float) -> None:
        machine.say_decline(code, out_of_sync=out_of_sync)

    step.__doc__ = f"Send DECLINE {code:08x}{', out of sync' if out_of_sync else ''}; go on in TCP."
    return step


def fail(number: int, text: str) -> Callable[[Handshake, a.Event, float], None]:
    """The step that ends the connection with this error."""

    def step(machine: Handshake, event: a.Event, now: float) -> None:
        machine.fail(event.error if isinstance(event, a.ClcBroken) else from_errno(number, text))

    step.__doc__ = f"Fail with {errno.errorcode[number]}."
    return step


_BROKEN = fail(errno.EPROTO, "the peer sent something else than the SMC handshake asks for")
_GONE = fail(errno.ECONNRESET, "the peer ended TCP in the middle of the SMC handshake")
_LATE = fail(errno.ECONNABORTED, "SMC failed after the peer was told of its success")

ANYWHERE: Mapping[Input, Row[Handshake]] = {
    Input.DECLINE: Row(State.TCP, (Handshake.release, Handshake.follow_decline)),
    Input.DECLINE_OUT_OF_SYNC: Row(State.TCP, (Handshake.give_up_group, Handshake.release, Handshake.follow_decline)),
    Input.UNABLE: Row(State.TCP, (Handshake.release, Handshake.decline_unable)),
    Input.GROUP_LOST: Row(State.TCP, (Handshake.release, decline(clc.DECLINE_NO_LINK))),
    Input.WRONG_CLC: Row(State.FAILED, (Handshake.release, _BROKEN)),
    Input.NOT_CLC: Row(State.FAILED, (Handshake.release, _BROKEN)),
    Input.EOF: Row(State.FAILED, (Handshake.release, _GONE)),
    Input.SEND_FAILED: Row(State.FAILED, (Handshake.release, _GONE)),
}
"""What an input means in every state that is no end, where a role's own rows do not say otherwise."""


def whole(rows: Mapping[tuple[State, Input], Row[M]], states: Iterable[State]) -> dict[tuple[State, Input], Row[M]]:
    """A role's own rows, completed by what holds in all of its states: an entry for every state and input."""
    states = tuple(states)
    table: dict[tuple[State, Input], Row[M]] = {}
    for state in (*states, *ENDS):
        table.update({(state, what): Row(state) for what in Input})
        table[state, Input.LINK_MADE] = table[state, Input.RMB_MADE] = Row(state, (Handshake.close_late,))
    for state in states:
        table.update({(state, what): row for what, row in ANYWHERE.items()})
    # The end stood last in its list, behind what failed: it was not performed, and this one is.
    table[State.TCP, Input.SEND_FAILED] = Row(State.FAILED, (_GONE,))
    table[State.OPEN, Input.SEND_FAILED] = table[State.OPEN, Input.UNABLE] = Row(
        State.FAILED, (Handshake.release, _LATE)
    )
    table.update(rows)
    return table
