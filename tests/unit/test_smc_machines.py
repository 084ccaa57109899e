# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tables of the SMC-R machines are complete, and each entry does what it says."""

from __future__ import annotations

import errno
import itertools
import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from smc_pair import Call, Fault, Pipe, connect, pair

from exs.errors import RemoteProtocolError
from exs.smc import actions as a
from exs.smc import clc, client, llc, llc_service, server
from exs.smc.handshake import ANYWHERE, Handshake
from exs.smc.link_group import GroupState, Role
from exs.smc.llc_service import LlcInput
from exs.smc.states import ENDS, Input, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from smc_pair import World

    Sent = a.SendClc | a.SendLlc

ROLES = {"client": client, "server": server}


@pytest.mark.parametrize("role", ROLES)
def test_a_handshake_has_an_entry_for_every_state_and_input(role: str) -> None:
    states = (*ROLES[role].STATES, *ENDS)
    assert set(ROLES[role].TABLE) == set(itertools.product(states, Input))
    assert {row.to for row in ROLES[role].TABLE.values()} <= set(states)


@pytest.mark.parametrize("role", Role)
def test_a_link_group_has_an_entry_for_every_state_and_input(role: Role) -> None:
    assert set(llc_service.TABLES[role]) == set(itertools.product(GroupState, LlcInput))


@pytest.mark.parametrize("role", ROLES)
def test_every_state_can_be_reached_and_leads_to_an_end(role: str) -> None:
    table = ROLES[role].TABLE
    reached = {State.START}
    while more := {row.to for (state, _), row in table.items() if state in reached} - reached:
        reached |= more
    assert reached == {state for state, _ in table}
    for state in ROLES[role].STATES:
        assert any(row.to in ENDS for (at, _), row in table.items() if at is state), f"{state} leads to no end"


@pytest.mark.parametrize("role", ROLES)
def test_every_wait_for_the_peer_has_a_bound(role: str) -> None:
    ours = (State.START, State.MAKING, State.JOINING)  # nothing but native calls is waited for
    for (state, what), row in ROLES[role].TABLE.items():
        if row.to not in (*ENDS, *ours) and row.to is not state:
            assert row.within is not None or server.Server.wait_for_group in row.steps, f"{state} + {what}"


def test_the_page_shows_the_tables_that_the_code_runs_on() -> None:
    script = Path(__file__).resolve().parents[2] / "docs" / "smc_machines.py"
    assert runpy.run_path(str(script))["main"]("check") == 0


# -- walking: every entry of the handshakes -------------------------------------------------------------------------


def reach(role: str, state: State) -> tuple[World, Call]:
    """A machine of this role that came to this state by itself."""
    world, one, two = pair()
    host, other = (one, two) if role == "client" else (two, one)
    if state in (State.JOINING, State.WAIT_RKEY):
        connect(one, two)
        world.run(5)
    if state is State.START:
        made = client.Client if role == "client" else server.Server
        host.calls.append(Call(host, made(host.groups, host.local), Pipe(world, lambda data: None)))
        return world, host.calls[0]
    if state is State.TCP:
        other.failing = lambda action: errno.ENOMEM if isinstance(action, a.NewLink) else 0
    if state is State.FAILED:
        world.faults = lambda message, index: Fault(lost=index == 1)
    host.silent = {State.MAKING: a.NewLink, State.JOINING: a.NewRmb}.get(state)
    connect(one, two)
    if state is State.WAIT_GROUP:
        connect(one, two)
    call = host.calls[-1]
    while call.state is not state:
        assert world.step(), f"{state} is not reached"
    host.silent = None
    return world, call


ANYWHERE_EVENTS: dict[Input, a.Event] = {
    Input.DECLINE: a.ClcReceived(clc.Decline(version=2, peer_id=bytes(8), diagnosis=0x03030000)),
    Input.DECLINE_OUT_OF_SYNC: a.ClcReceived(
        clc.Decline(version=2, peer_id=bytes(8), diagnosis=0x04000000, out_of_sync=True)
    ),
    Input.UNABLE: a.ActionFailed(a.NewRmb(1, 1), errno.ENOMEM),
    Input.GROUP_LOST: a.GroupLost(),
    Input.WRONG_CLC: a.ClcBroken(RemoteProtocolError(errno.EPROTO, "broken")),
    Input.NOT_CLC: a.NotClc(b"GET /"),
    Input.EOF: a.Eof(b"GE"),
    Input.SEND_FAILED: a.ActionFailed(a.SendClc(clc.Decline(version=1, peer_id=bytes(8), diagnosis=1)), errno.EPIPE),
}


def test_there_is_an_event_for_everything_that_holds_anywhere() -> None:
    assert set(ANYWHERE_EVENTS) == set(ANYWHERE)


@pytest.mark.parametrize(
    ("role", "state", "what"),
    [(role, state, what) for role in ROLES for state in ROLES[role].STATES for what in ANYWHERE],
)
def test_in_every_state_a_handshake_ends_once_and_releases_all(role: str, state: State, what: Input) -> None:
    world, call = reach(role, state)
    event = ANYWHERE_EVENTS[what]
    assert call.machine.classify(event, world.now) is what if what is not Input.UNABLE else True
    call.feed(event)
    row = ROLES[role].TABLE[state, what]
    assert call.state is row.to
    assert isinstance(call.end, a.Fallback if row.to is State.TCP else a.Fail)
    declines = [
        action for action in call.log if isinstance(action, a.SendClc) and isinstance(action.message, clc.Decline)
    ]
    assert len(declines) == (what in (Input.UNABLE, Input.GROUP_LOST))
    assert call.machine.deadline is None
    world.run(30)
    call.host.check()


@pytest.mark.parametrize(
    ("role", "state"),
    [(r, s) for r in ROLES for s in (*ROLES[r].STATES, *ENDS) if s not in (State.MAKING, State.JOINING)],
)
def test_what_is_made_too_late_is_closed_again(role: str, state: State) -> None:
    _, call = reach(role, state)
    address = a.LinkAddress(bytes(16), bytes(6), 3, 5, 6)
    assert call.machine.receive(a.LinkMade(7, address), now=call.host.world.now) == [a.CloseLink(7)]
    assert call.machine.receive(a.RmbMade(8, 1, 2, 0), now=call.host.world.now) == [a.CloseRmb(8)]
    assert call.state is state


@pytest.mark.parametrize("role", ROLES)
def test_what_a_state_ignores_changes_nothing(role: str) -> None:
    for state in (*ROLES[role].STATES, *ENDS):
        world, call = reach(role, state)
        deadline = call.machine.deadline
        for what in Input:
            row = ROLES[role].TABLE[state, what]
            if not row.steps and row.to is state:
                call.machine._apply(what, a.Start(), world.now)
                assert (call.state, call.machine.deadline, call.machine._out) == (state, deadline, [])


# -- scenarios: together they go through every row that is particular to a role ---------------------------------------


def lost(*kinds: type[llc.Message], response: bool | None = None) -> Callable[[Sent, int], Fault]:
    """LLC messages of these kinds get lost."""

    def fault(sent: Sent, index: int) -> Fault:
        message = sent.message
        hit = isinstance(message, kinds) and (response is None or getattr(message, "response", None) is response)
        return Fault(lost=hit)

    return fault


def late(kind: type[clc.Message], delay: float) -> Callable[[Sent, int], Fault]:
    """CLC messages of this kind come late, and what is behind them too."""
    return lambda sent, index: Fault(delay=delay if isinstance(sent.message, kind) else 0)


def first_contact_then_joins() -> None:
    world, one, two = pair()
    for _ in range(3):
        calls = connect(one, two)
        world.run(2)
        assert [c.state for c in calls] == [State.OPEN, State.OPEN]
    assert len(one.links) == len(two.links) == 1


def several_at_once_share_a_group() -> None:
    world, one, two = pair()
    calls = [call for _ in range(5) for call in connect(one, two)]
    world.run(2)
    assert {c.state for c in calls} == {State.OPEN}
    assert len(one.links) == len(two.links) == 1


def those_that_wait_for_a_group_that_fails_form_another() -> None:
    world, one, two = pair()
    calls = [call for _ in range(4) for call in connect(one, two)]
    one.failing = lambda action: errno.ENOMEM if isinstance(action, a.NewLink) and not one.links else 0
    while calls[1].state is not State.TCP:
        world.step()
    one.failing = lambda action: 0
    world.run(3)
    assert [c.state for c in calls] == [State.TCP, State.TCP] + 6 * [State.OPEN]
    assert calls[0].end == a.Fallback(clc.DECLINE_MEMORY, by_peer=False, crossing=frozenset({clc.DECLINE}))
    assert calls[1].end == a.Fallback(clc.DECLINE_MEMORY, by_peer=True)


def a_client_that_lost_its_group_is_out_of_sync() -> None:
    world, one, two = pair()
    connect(one, two)
    world.run(2)
    calls = connect(one, two)
    while calls[1].state is not State.WAIT_CONFIRM:
        world.step()
    one.fail_link(min(one.links))
    world.run(5)
    assert [c.state for c in calls] == [State.TCP, State.TCP]
    assert [c.end.reason for c in calls if isinstance(c.end, a.Fallback)] == [clc.DECLINE_SYNC, clc.DECLINE_SYNC]
    assert not two.links


def a_link_that_the_client_lost_is_not_found() -> None:
    world, one, two = pair()
    connect(one, two)
    world.run(2)
    (first,) = two.groups
    first.joinable = False
    connect(one, two)
    world.run(2)
    first.joinable = True
    calls = connect(one, two)
    while calls[1].state is not State.WAIT_CONFIRM:
        world.step()
    one.fail_link(min(one.links))
    world.run(5)
    assert [c.state for c in calls] == [State.TCP, State.TCP]
    assert [c.end.reason for c in calls if isinstance(c.end, a.Fallback)] == 2 * [clc.DECLINE_LINK_NOT_FOUND]


def no_accept_in_time() -> None:
    world, one, two = pair(faults=late(clc.Accept, 8))
    calls = connect(one, two)
    world.run(20)
    assert [c.state for c in calls] == [State.TCP, State.TCP]
    talk(world, *calls)


def no_confirm_in_time() -> None:
    world, one, two = pair(faults=late(clc.Confirm, 8))
    _, call = connect(one, two)
    world.run(20)
    assert isinstance(call.end, a.Fail)
    assert call.end.error.errno == errno.ETIMEDOUT


def no_confirm_link_at_all() -> None:
    world, one, two = pair(faults=lost(llc.ConfirmLink))
    calls = connect(one, two)
    world.run(20)
    assert [c.state for c in calls] == [State.TCP, State.TCP]
    assert len([s for s in world.sent if isinstance(s.message, llc.ConfirmLink)]) == 4
    talk(world, *calls)


def no_confirm_link_and_a_late_decline() -> None:
    world, one, two = pair()
    world.faults = lambda sent, index: Fault(
        lost=isinstance(sent.message, llc.ConfirmLink), delay=4 if isinstance(sent.message, clc.Decline) else 0
    )
    calls = connect(one, two)
    world.run(20)
    assert [c.state for c in calls] == [State.TCP, State.TCP]
    assert [c.end.by_peer for c in calls if isinstance(c.end, a.Fallback)] == [False, False]
    talk(world, *calls)


def no_add_link() -> None:
    world, one, two = pair(faults=lost(llc.AddLink))
    calls = connect(one, two)
    world.run(10)
    assert [c.state for c in calls] == [State.OPEN, State.OPEN]


def eyecatchers_in_buffers() -> None:
    for role in ROLES:
        world, call = reach(role, State.WAIT_CONFIRM_LINK)
        call.feed(a.LinkConfirm(llc.ConfirmLink(mac=bytes(6), gid=bytes(16), qpn=1, number=1, no_eyecatchers=False)))
        world.run(10)
        assert isinstance(call.end, a.Fallback)
        assert call.end.reason == clc.DECLINE_EYECATCHERS


def a_refused_or_unanswered_rkey() -> None:
    for role in ROLES:
        for kind in ("refused", "unanswered", "queued for too long"):
            world, call = reach(role, State.WAIT_RKEY)
            if kind == "refused":
                call.feed(a.RkeyAnswer(accepted=False))
            elif kind == "unanswered":
                world.faults = lost(llc.ConfirmRkey)
                world._due.clear()
                world.run(3)
            else:
                world.now = call.machine.deadline or 0
                call.feed(a.Timeout())
            world.faults = lambda sent, index: Fault()
            world.run(10)
            assert isinstance(call.end, a.Fallback)
            assert call.end.reason == clc.DECLINE_REGISTRATION


def a_client_without_smc_behind_the_option() -> None:
    for what in ("payload", "end", "silence"):
        world, _, two = pair()
        call = Call(two, server.Server(two.groups, two.local), Pipe(world, lambda data: None))
        two.calls.append(call)
        call.feed(a.Start())
        came = {"payload": b"GE", "end": b"\xe2\xd4", "silence": b""}[what]
        if came:
            call.arrive(came)
        if what == "end":
            call.arrive(None)
        world.run(7)
        assert call.state is State.TCP
        assert call.payload == came


def talk(world: World, one: Call, two: Call) -> None:
    """After a fallback not one byte is lost or doubled."""
    for sender, receiver in ((one, two), (two, one)):
        assert sender.out is not None
        sender.out.write(b"\xe2\xd4 payload")
        world.run(20)
        assert receiver.payload == b"\xe2\xd4 payload"


SCENARIOS = [
    first_contact_then_joins,
    several_at_once_share_a_group,
    those_that_wait_for_a_group_that_fails_form_another,
    a_client_that_lost_its_group_is_out_of_sync,
    a_link_that_the_client_lost_is_not_found,
    no_accept_in_time,
    no_confirm_in_time,
    no_confirm_link_at_all,
    no_confirm_link_and_a_late_decline,
    no_add_link,
    eyecatchers_in_buffers,
    a_refused_or_unanswered_rkey,
    a_client_without_smc_behind_the_option,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_scenario(scenario: Callable[[], None]) -> None:
    scenario()


@pytest.mark.parametrize("role", ROLES)
def test_the_scenarios_go_through_every_row_of_a_role(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: set[tuple[State, Input]] = set()
    apply = Handshake._apply

    def noting(machine: Handshake, what: Input, event: a.Event, now: float) -> None:
        if machine.role.value == role:
            gone.add((machine.state, what))
        apply(machine, what, event, now)

    monkeypatch.setattr(Handshake, "_apply", noting)
    for scenario in SCENARIOS:
        scenario()
    assert set(ROLES[role].ROWS) - gone == set()
