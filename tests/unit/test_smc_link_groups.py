# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tables of link groups, entry by entry, and the rules of their keys and times."""

from __future__ import annotations

import itertools

import pytest

from exs.smc import actions as a
from exs.smc import llc, llc_service
from exs.smc.groups import LinkGroups, make_peer_id
from exs.smc.link_group import GroupState, LinkGroup, PeerKey, Role
from exs.smc.llc_service import LlcInput
from exs.smc.rkeys import RTOKENS_MAX, STOCK_MAX, Flow, FlowKind, Flows, Rmb, Rtokens, Stock

MAC, GID = bytes([2, 0, 0, 0, 0, 9]), bytes(10) + b"\xff\xff" + bytes([10, 9, 0, 9])
PEER = PeerKey(bytes(8), GID, MAC)
OWN = a.LinkAddress(GID, MAC, 3, 7, 9)

MESSAGES: dict[LlcInput, llc.Message] = {
    LlcInput.CONFIRM_LINK_REQUEST: llc.ConfirmLink(mac=MAC, gid=GID, qpn=5, number=1),
    LlcInput.CONFIRM_LINK_RESPONSE: llc.ConfirmLink(mac=MAC, gid=GID, qpn=5, number=1, response=True),
    LlcInput.ADD_LINK_REQUEST: llc.AddLink(mac=MAC, gid=GID, qpn=6, number=2, mtu_code=3),
    LlcInput.ADD_LINK_REJECTED: llc.AddLink(mac=MAC, gid=GID, response=True, reject=True),
    LlcInput.ADD_LINK_ACCEPTED: llc.AddLink(mac=MAC, gid=GID, response=True, qpn=6, number=2, mtu_code=3),
    LlcInput.DELETE_LINK_ALL: llc.DeleteLink(all_links=True, orderly=True, reason=llc.DELETE_PROGRAM),
    LlcInput.DELETE_LINK_OURS: llc.DeleteLink(number=1, reason=llc.DELETE_LOST_PATH),
    LlcInput.DELETE_LINK_UNKNOWN: llc.DeleteLink(number=9, reason=llc.DELETE_LOST_PATH),
    LlcInput.DELETE_LINK_RESPONSE: llc.DeleteLink(number=1, response=True),
    LlcInput.REQ_ADD_LINK_REQUEST: llc.ReqAddLink(gids=(GID,)),
    LlcInput.CONFIRM_RKEY_REQUEST: llc.ConfirmRkey(rkey=77, vaddr=0x7000),
    LlcInput.CONFIRM_RKEY_RESPONSE: llc.ConfirmRkey(rkey=1, vaddr=0x1000, response=True),
    LlcInput.CONFIRM_RKEY_CONT_REQUEST: llc.ConfirmRkeyCont(version=1),
    LlcInput.DELETE_RKEY_REQUEST: llc.DeleteRkey(rkeys=(5,)),
    LlcInput.DELETE_RKEY_RESPONSE: llc.DeleteRkey(rkeys=(1,), response=True),
    LlcInput.NOTHING: llc.TestLink(),
}
REQUESTS = [what for what, message in MESSAGES.items() if not message.response and what is not LlcInput.NOTHING]


class Told(list[a.Event]):
    """A handshake that only listens."""

    __hash__ = object.__hash__

    def receive(self, event: a.Event, *, now: float) -> list[a.Action]:
        self.append(event)
        return []


def group_in(role: Role, state: GroupState) -> tuple[LinkGroups, LinkGroup, Told]:
    """A group in this state, with one handshake and its buffer."""
    tokens = itertools.count(1)
    groups = LinkGroups(peer_id=make_peer_id(b"\1\2", MAC), tokens=lambda: next(tokens))
    group = groups.form(role=role, version=2, peer=PEER, link=4, address=OWN)
    slot = groups.take(group, told := Told())
    group.give_rmb(slot, Rmb(11, 1, 0x1000, 0))
    if state is not GroupState.FORMING:
        group.activate(0.0)
    if state is GroupState.ENDING:
        groups.receive(4, MESSAGES[LlcInput.DELETE_LINK_ALL].encode(), now=0.0)
    if state is GroupState.ENDED:
        groups.link_down(4, now=0.0)
    assert group.state is state
    return groups, group, told


def open_request(group: LinkGroup, kind: FlowKind) -> None:
    """The request whose response comes next."""
    group.flows.clear()
    rmb = next(iter(group.rmbs), None)
    request = llc.DeleteLink() if kind is FlowKind.DELETE_LINK else llc.ConfirmRkey(rkey=1, vaddr=0x1000)
    group.flows.add(Flow(kind, request, rmb, next(iter(group.slots), 0)))
    group.flows.next(0.0)


RESPONSES = {
    LlcInput.ADD_LINK_REJECTED: FlowKind.ADD_LINK,
    LlcInput.ADD_LINK_ACCEPTED: FlowKind.ADD_LINK,
    LlcInput.DELETE_LINK_RESPONSE: FlowKind.DELETE_LINK,
    LlcInput.CONFIRM_RKEY_RESPONSE: FlowKind.CONFIRM_RKEY,
    LlcInput.DELETE_RKEY_RESPONSE: FlowKind.DELETE_RKEY,
    LlcInput.RESPONSE_OVERDUE: FlowKind.CONFIRM_RKEY,
}


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("state", GroupState)
@pytest.mark.parametrize("what", LlcInput)
def test_every_entry_leads_where_it_says(role: Role, state: GroupState, what: LlcInput) -> None:
    _, group, told = group_in(role, state)
    row = llc_service.TABLES[role][state, what]
    told.clear()
    if what in RESPONSES and state is not GroupState.ENDED:
        open_request(group, RESPONSES[what])
    ignored = group.ignored
    actions = llc_service._apply(group, what, MESSAGES.get(what), 1.0)
    assert group.state is row.to
    sent = [action.message for action in actions if isinstance(action, a.SendLlc)]
    if row.steps == (llc_service.ignore,):
        assert (actions, group.ignored) == ([], ignored + 1)
    elif what in REQUESTS and llc_service.tell_confirm_link not in row.steps and llc_service.close not in row.steps:
        ending = what is LlcInput.DELETE_LINK_ALL and state is GroupState.ENDING
        assert len(sent) == (0 if ending else 1), "every request gets exactly one answer"
    if row.to is GroupState.ENDED and state is not GroupState.ENDED:
        assert [action for action in actions if isinstance(action, a.CloseLink)] == [a.CloseLink(4)]
        assert [action for action in actions if isinstance(action, a.CloseRmb)] == [a.CloseRmb(11)]
        assert group.deadline is None
    if row.to is GroupState.ENDING and state in (GroupState.FORMING, GroupState.ACTIVE):
        assert [action.event for action in actions if isinstance(action, a.Tell)][:1] == [a.GroupLost()]
        assert group.closes_at is not None
    if what in RESPONSES and row.steps != (llc_service.ignore,) and row.to is state:
        assert group.flows.current is None or group.flows.current.kind is FlowKind.DELETE_LINK


@pytest.mark.parametrize("what", MESSAGES)
@pytest.mark.parametrize("role", Role)
def test_messages_are_taken_for_what_they_are(role: Role, what: LlcInput) -> None:
    groups, group, _ = group_in(role, GroupState.ACTIVE)
    message = MESSAGES[what]
    if message.version == 1:
        assert llc_service._classify(group, message) is what
        return
    assert llc_service._classify(group, llc.decode(message.encode())) is what  # type: ignore[arg-type]  # none is unknown
    groups.receive(4, message.encode(), now=1.0)
    groups.receive(5, message.encode(), now=1.0)  # of a link that is not there


def test_lengths_are_written_as_the_peer_writes_them() -> None:
    groups, _, _ = group_in(Role.CLIENT, GroupState.ACTIVE)
    for big in (True, False):
        request = MESSAGES[LlcInput.CONFIRM_RKEY_REQUEST].encode(big_endian=big)
        (answer,) = groups.receive(4, request, now=1.0)
        assert isinstance(answer, a.SendLlc)
        assert answer.encode()[1:3] == request[1:3]


def test_an_idle_group_ends_by_itself_the_server_first() -> None:
    for role, seconds in ((Role.SERVER, 600.0), (Role.CLIENT, 610.0)):
        groups, group, _ = group_in(role, GroupState.ACTIVE)
        (token,) = group.slots
        group.flows.clear()
        groups.connection_done(4, token, now=10.0)
        assert groups.deadline == 10.0 + seconds
        assert groups.timeout(now=9.0 + seconds) == []
        (sent,) = groups.timeout(now=10.0 + seconds)
        assert isinstance(sent, a.SendLlc)
        assert sent.message == llc.DeleteLink(all_links=True, orderly=True, reason=0x00030000)
        assert groups.timeout(now=12.0 + seconds)[0] == a.CloseLink(4)
        assert len(groups) == 0


@pytest.mark.parametrize("clean", [True, False])
def test_a_buffer_that_the_peer_may_still_write_into_serves_nobody_else(clean: bool) -> None:
    groups, group, _ = group_in(Role.SERVER, GroupState.ACTIVE)
    ((token, slot),) = group.slots.items()
    group.flows.clear()
    rmb = Rmb(71, 0x71, 0x710000, 0)
    group.give_rmb(slot, rmb)
    closed = groups.connection_done(4, token, now=10.0, clean=clean)
    assert closed == ([] if clean else [a.CloseRmb(71)])
    assert group.stock.take(0) is (rmb if clean else None)


def test_a_group_that_winds_down_gives_the_peer_time_to_tidy_up() -> None:
    groups, group, _ = group_in(Role.SERVER, GroupState.ACTIVE)
    group.flows.clear()
    assert groups.wind_down(now=1.0) == []
    assert groups.for_proposal(2, PEER) is None
    (token,) = group.slots
    groups.connection_done(4, token, now=10.0)
    assert groups.deadline == 13.0


def test_a_client_that_answers_no_rkey_gets_no_more_connections_into_that_group() -> None:
    groups, group, told = group_in(Role.SERVER, GroupState.ACTIVE)
    assert groups.for_proposal(2, PEER) is group
    open_request(group, FlowKind.CONFIRM_RKEY)
    (tell,) = groups.timeout(now=2.0)
    assert tell == a.Tell(told, a.RkeyAnswer(accepted=False))
    assert groups.for_proposal(2, PEER) is None


def test_a_token_is_neither_0_nor_in_use() -> None:
    given = iter([0, 5, 5, 0, 5, 6])
    groups = LinkGroups(peer_id=make_peer_id(b"\1\2", MAC), tokens=lambda: next(given))
    first = groups.form(role=Role.SERVER, version=2, peer=PEER, link=1, address=OWN)
    second = groups.form(role=Role.CLIENT, version=2, peer=PEER, link=2, address=OWN)
    assert groups.take(first, Told()).token == 5
    assert groups.take(second, Told()).token == 6


def test_version_1_tells_ports_by_their_mac_too() -> None:
    other = PEER._replace(mac=bytes(6))
    assert PEER.matches(other, 2)
    assert not PEER.matches(other, 1)


def test_255_rtokens_and_a_known_one_takes_no_second_entry() -> None:
    table = Rtokens()
    assert all(table.add(rkey, rkey) for rkey in range(RTOKENS_MAX))
    assert table.full
    assert not table.add(1000, 1)
    assert table.add(5, 99)
    assert table.remove((5, 1000)) == (True, False)
    assert table.add(1000, 1)


def test_the_stock_is_bounded_and_gives_the_size_that_is_wanted() -> None:
    stock = Stock()
    rmbs = [Rmb(handle, handle, 0, handle % 2) for handle in range(STOCK_MAX + 1)]
    assert [stock.put(rmb) for rmb in rmbs] == [None] * STOCK_MAX + [rmbs[0]]
    assert stock.take(0) is rmbs[2]
    assert stock.take(5) is None
    assert len(stock.drain()) == STOCK_MAX - 1


def test_one_request_at_a_time() -> None:
    flows = Flows()
    one, two = (Flow(FlowKind.CONFIRM_RKEY, llc.ConfirmRkey(rkey=n, vaddr=0), None, n) for n in (1, 2))
    flows.add(one)
    flows.add(two)
    assert flows.next(0.0) is one
    assert flows.next(0.0) is None
    assert flows.withdraw(1) is None, "it was sent"
    assert flows.withdraw(2) is two
    assert flows.end() is one
    assert flows.next(0.0) is None
