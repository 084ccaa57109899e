# SPDX-License-Identifier: MIT OR Apache-2.0
"""Two SMC-R machines with a bad connection between them: each message in turn is cut, late, doubled, or lost.

Whatever happens, both sides end, agree on what carries the payload, and lose not one byte of it.
"""

from __future__ import annotations

import errno
import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from smc_pair import Fault, World, connect, pair

from exs.smc import actions as a
from exs.smc.states import ENDS, State

if TYPE_CHECKING:
    from smc_pair import Call, Host

    Sent = a.SendClc | a.SendLlc

NATIVE = (a.NewLink, a.ToRtr, a.ToRts, a.ActivateLink, a.NewRmb, a.NewConnection, a.OpenConnection, a.SendLlc)
PAYLOAD = b"\xe2\xd4\xc3\xd9 is no CLC message, and must come whole"


def agreed(world: World, hosts: tuple[Host, Host], one: Call, two: Call, *, tcp_lives: bool = True) -> None:
    """What holds after every handshake."""
    world.run(40)
    assert one.end is not None
    assert two.end is not None
    states = {one.state, two.state}
    assert not {State.OPEN, State.TCP} <= states, f"{one.end} and {two.end}"
    if tcp_lives:
        assert states in ({State.OPEN}, {State.TCP}), f"{one.end} and {two.end}"
    if states == {State.TCP} and tcp_lives:
        for sender, receiver in ((one, two), (two, one)):
            assert sender.out is not None
            sender.out.write(PAYLOAD)
            world.run(40)
            assert receiver.payload == PAYLOAD
    if isinstance(one.end, a.OpenConnection) and isinstance(two.end, a.OpenConnection):
        assert (one.end.peer_token, two.end.peer_token) == (two.end.token, one.end.token)
    for call in (one, two):
        if isinstance(call.end, a.OpenConnection):
            call.host.finish(call)
    for host in hosts:
        host.check()
    world.run(1000)
    for host in hosts:
        host.check()
        assert not host.links, "an idle group was not given up"
        assert not host.rmbs


def count(join: bool) -> int:
    world, one, two = pair()
    if join:
        connect(one, two)
        world.run(5)
    before = len(world.sent)
    connect(one, two)
    world.run(5)
    return len(world.sent) - before


FIRST, JOIN = count(join=False), count(join=True)


def prepared(fault: Fault, which: int, join: bool) -> tuple[World, Host, Host, Call, Call]:
    world, one, two = pair()
    if join:
        calls = connect(one, two)
        world.run(5)
        for call in calls:
            call.host.finish(call)
        world.run(5)
    begin = len(world.sent)
    world.faults = lambda sent, index: fault if index == begin + which else Fault()
    return world, one, two, *connect(one, two)


CASES = [(which, join) for join, most in ((False, FIRST), (True, JOIN)) for which in range(most)]


def test_the_messages_are_those_of_the_figures() -> None:
    assert FIRST == 7  # PROPOSAL, ACCEPT, CONFIRM, CONFIRM_LINK and ADD_LINK with their answers
    assert JOIN == 7  # PROPOSAL, ACCEPT, CONFIRM, CONFIRM_RKEY in both directions with their answers


@pytest.mark.parametrize(("which", "join"), CASES)
@pytest.mark.parametrize("delay", [0.4, 0.8, 1.5, 2.5, 3.2, 4.5, 5.5, 7.0, 9.0])
def test_any_message_may_be_late(which: int, join: bool, delay: float) -> None:
    world, one, two, *calls = prepared(Fault(delay=delay), which, join)
    # A server does not wait for ever for CONFIRM, and a client that has sent it in a group that exists is open.
    confirm = which in (2, 6) and delay > 6
    agreed(world, (one, two), *calls, tcp_lives=not confirm)


@pytest.mark.parametrize(("which", "join"), CASES)
def test_any_llc_message_may_come_twice(which: int, join: bool) -> None:
    world, one, two, *calls = prepared(Fault(doubled=True), which, join)
    agreed(world, (one, two), *calls)
    assert {c.state for c in calls} == {State.OPEN}


@pytest.mark.parametrize(("which", "join"), CASES)
def test_any_message_may_be_lost(which: int, join: bool) -> None:
    world, one, two, *calls = prepared(Fault(lost=True), which, join)
    world.run(40)
    (hit,) = [world.sent[index] for index in range(len(world.sent)) if world.faults(world.sent[index], index).lost]
    agreed(world, (one, two), *calls, tcp_lives=isinstance(hit, a.SendLlc))


@pytest.mark.parametrize("join", [False, True])
def test_clc_messages_may_be_cut_at_every_byte(join: bool) -> None:
    for cut in range(1, 180):
        world, one, two = pair()
        if join:
            connect(one, two)
            world.run(5)
        world.faults = lambda sent, index, cut=cut: Fault(cut=cut)
        calls = connect(one, two)
        world.run(5)
        assert {c.state for c in calls} == {State.OPEN}


@pytest.mark.smcr(95)
@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EHOSTUNREACH, errno.EIO])
def test_any_native_call_may_fail(join: bool, side: int, number: int) -> None:
    for which in itertools.count():
        world, one, two = pair()
        if join:
            connect(one, two)
            world.run(5)
        made = itertools.count()
        failed: list[a.Action] = []

        def failing(action: a.Action, which: int = which, made: itertools.count[int] = made) -> int:
            if isinstance(action, NATIVE) and next(made) == which:
                failed.append(action)  # noqa: B023 - called within this turn
                return number
            return 0

        (one, two)[side].failing = failing
        calls = connect(one, two)
        world.run(40)
        if not failed:
            assert which >= (3 if join else 7)
            return
        assert all(c.end is not None for c in calls)
        states = {c.state for c in calls}
        # After the peer was told of the success there is no way back; before, both go on in TCP.  A link that dies
        # under the very last message leaves an open side too, whose connection dies with it.
        dead = isinstance(failed[0], a.SendLlc)
        assert dead or not {State.OPEN, State.TCP} <= states, failed
        if State.FAILED in states:
            assert isinstance(failed[0], a.OpenConnection | a.ActivateLink | a.SendLlc)


@given(st.data())
@settings(max_examples=60)
def test_any_messages_may_be_late_or_doubled(data: st.DataObject) -> None:
    fault = st.builds(
        Fault, delay=st.sampled_from([0, 0, 0.01, 0.3, 1.0]), doubled=st.booleans(), cut=st.integers(0, 9)
    )
    world, one, two = pair(faults=lambda sent, index: data.draw(fault))
    calls = [call for _ in range(data.draw(st.integers(1, 4))) for call in connect(one, two)]
    calls += connect(two, one)  # roles the other way round, at the same time
    world.run(60)
    assert all(c.state in ENDS for c in calls)
    for first, second in zip(calls[::2], calls[1::2], strict=True):
        assert not {State.OPEN, State.TCP} <= {first.state, second.state}
    one.check()
    two.check()
