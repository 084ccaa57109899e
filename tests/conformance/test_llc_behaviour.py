# SPDX-License-Identifier: MIT OR Apache-2.0
"""Points 44 to 67 and 98 of SMC-R about what is said on a link, as the link groups without I/O show them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import smc_messages as make
from hypothesis import given, settings
from hypothesis import strategies as st
from smc_pair import Call, Fault, Host, World, connect, pair

from exs.smc import actions as a
from exs.smc import clc, llc
from exs.smc.link_group import GroupState, LinkGroup
from exs.smc.rkeys import Rmb
from exs.smc.states import State

BYTE = st.integers(0, 255)


def linked(joins: int = 0, **local: object) -> tuple[World, Host, Host, list[Call]]:
    """Two hosts with a link group, and some connections in it."""
    world = World()
    one, two = Host(world, 1, **local), Host(world, 2, **local)
    calls = [call for _ in range(joins + 1) for call in connect(one, two)]
    world.run(2)
    assert {c.state for c in calls} == {State.OPEN}
    world.sent.clear()
    return world, one, two, calls


V1 = {"gid": None, "gid_v1": bytes(15) + b"\1"}


def hear(host: Host, data: bytes) -> list[bytes]:
    """An LLC message comes on the host's only link; returns what is said to it on the link."""
    (link,) = host.links.values()
    before = len(host.world.sent)
    host.notice(link, data)
    return [sent.encode() for sent in host.world.sent[before:] if isinstance(sent, a.SendLlc)]


def only(host: Host) -> LinkGroup:
    (group,) = host.groups
    return group


def llc_sent(world: World, kind: type[llc.Message]) -> list[llc.Message]:
    return [sent.message for sent in world.sent if isinstance(sent.message, kind)]


@pytest.mark.smcr(44)
@pytest.mark.parametrize("local", [{}, V1], ids=["v2", "v1"])
def test_044_confirm_link_and_its_answer(local: dict[str, object]) -> None:
    world = World()
    one, two = Host(world, 1, **local), Host(world, 2, **local)
    connect(one, two)
    world.run(2)
    request, response = (sent.encode() for sent in world.sent if isinstance(sent.message, llc.ConfirmLink))
    assert (request[3], response[3]) == (0x03, 0x83)
    assert request[29] == response[29] != 0
    assert request[0] == response[0] == (0x01 if local else 0x21)
    assert (request[4:10], response[4:10]) == (two.local.mac, one.local.mac)


@pytest.mark.smcr(54)
@pytest.mark.parametrize("local", [{}, V1], ids=["v2", "v1"])
def test_054_both_sides_watch_their_link_for_30_s_and_2_s(local: dict[str, object]) -> None:
    """What is done with these is C's, and shown there."""
    *_, calls = linked(**local)
    version = 1 if local else 2
    for call in calls:
        (watch,) = [action for action in call.log if isinstance(action, a.ActivateLink)]
        assert (watch.version, watch.interval_ms, watch.timeout_ms) == (version, 30_000, 2_000)


@pytest.mark.smcr(46)
def test_046_confirm_link_is_sent_again_and_a_second_answer_does_no_harm() -> None:
    world, one, two = pair()
    dropped = []

    def fault(sent: a.SendClc | a.SendLlc, index: int) -> Fault:
        first = isinstance(sent.message, llc.ConfirmLink) and not dropped
        if first:
            dropped.append(world.now)
        return Fault(lost=first, doubled=isinstance(sent.message, llc.ConfirmLink))

    world.faults = fault
    calls = connect(one, two)
    while calls[1].state is not State.OPEN:
        assert world.step()
    assert 0.5 <= world.now - dropped[0] <= 1
    world.run(2)
    assert {c.state for c in calls} == {State.OPEN}
    assert only(one).state is only(two).state is GroupState.ACTIVE


@pytest.mark.smcr(47)
@pytest.mark.parametrize(
    ("local", "request_name", "reject"),
    [({}, "llc-add-link-v2-req-88", "llc-add-link-v2-reject"), (V1, None, "llc-add-link-v1-reject")],
)
def test_047_add_link_is_rejected_at_any_time(local: dict[str, object], request_name: str | None, reject: str) -> None:
    world, one, _, _ = linked(**local)
    answer = llc.decode(make.message(reject))
    assert isinstance(answer, llc.AddLink)
    request = replace(answer, response=False, reject=False, reason=0).encode()
    if request_name is not None:
        request = make.message(request_name)
        assert len(request) == 88
    for _ in range(3):
        (said,) = hear(one, request)
        assert said == make.message(reject)
        world.run(100)
    assert only(one).state is GroupState.ACTIVE


@pytest.mark.smcr(47)
def test_047_add_link_is_rejected_at_first_contact() -> None:
    world, one, two = pair()
    call, server = connect(one, two)
    while call.state is not State.WAIT_ADD_LINK:
        assert world.step()
    (said,) = hear(one, make.message("llc-add-link-v2-req-88"))
    assert said[3] == 0xC0
    world.run(1)
    assert call.state is server.state is State.OPEN


@pytest.mark.smcr(48)
def test_048_a_client_is_not_kept_waiting_for_add_link() -> None:
    world, one, two = pair()
    begin = world.now
    call, _ = connect(one, two)
    while call.state is not State.OPEN:
        assert world.step()
    assert world.now - begin < 0.1
    (request, response) = (sent for sent in world.sent if isinstance(sent.message, llc.AddLink))
    assert request.encode() == make.message("llc-add-link-v2-mtu0-probe").replace(
        bytes.fromhex("ffff0a090002"), two.local.gid[10:]
    )
    assert response.encode()[3] == 0xC0


@pytest.mark.smcr(55)
def test_055_confirm_rkey_is_answered_whatever_a_handshake_awaits() -> None:
    for state in (State.WAIT_ACCEPT, State.WAIT_RKEY):
        world, one, two, _ = linked()
        call, _ = connect(one, two)
        while call.state is not state:
            assert world.step()
        assert hear(one, make.message("llc-confirm-rkey-v2-req")) == [make.message("llc-confirm-rkey-v2-resp")]
    for state in (State.WAIT_PROPOSAL, State.WAIT_RKEY, State.WAIT_CONFIRM):
        world, one, two, _ = linked()
        _, call = connect(one, two)
        while call.state is not state:
            assert world.step()
        assert hear(two, make.message("llc-confirm-rkey-v2-req")) == [make.message("llc-confirm-rkey-v2-resp")]


@pytest.mark.smcr(56)
def test_056_in_a_group_that_exists_the_buffer_is_announced_before_accept_and_confirm() -> None:
    world, one, two, _ = linked()
    connect(one, two)
    world.run(2)
    order = [(type(sent.message).__name__, getattr(sent.message, "response", None)) for sent in world.sent]
    assert order == [
        ("Proposal", None),
        ("ConfirmRkey", False),
        ("ConfirmRkey", True),
        ("Accept", None),
        ("ConfirmRkey", False),
        ("ConfirmRkey", True),
        ("Confirm", None),
    ]
    accept, announced = world.sent[3].message, world.sent[1].message
    assert isinstance(accept, clc.Accept)
    assert isinstance(announced, llc.ConfirmRkey)
    assert (accept.rkey, accept.vaddr) == (announced.rkey, announced.vaddr)


@pytest.mark.smcr(56)
@pytest.mark.parametrize("refuser", ["client", "server"])
def test_056_a_buffer_that_is_refused_is_declined(refuser: str) -> None:
    world, one, two, _ = linked()
    call, server = connect(one, two)
    asking, host = (server, two) if refuser == "client" else (call, one)
    while asking.state is not State.WAIT_RKEY:
        assert world.step()
    request = llc_sent(world, llc.ConfirmRkey)[-1]
    assert isinstance(request, llc.ConfirmRkey)
    hear(host, replace(request, response=True, negative=True, retry=True).encode())
    world.run(5)
    assert call.state is server.state is State.TCP
    declines = [sent.message for sent in world.sent if isinstance(sent.message, clc.Decline)]
    assert [d.diagnosis for d in declines if isinstance(d, clc.Decline)] == [0x09990003]


@pytest.mark.smcr(57)
def test_057_confirm_rkey_in_both_directions_at_once() -> None:
    world, one, two, _ = linked()
    link_up, link_down = (next(iter(h.links.values())) for h in (one, two))
    calls = connect(one, two)
    while calls[1].state is not State.WAIT_RKEY:
        assert world.step()
    # The client asks too while the server's request is under way to it.
    listener = next(iter(one.calls)).machine
    slot = one.groups.take(only(one), listener)
    one.rmbs[99] = link_up.handle
    only(one).give_rmb(slot, Rmb(99, 0x99, 0x9900, 0))
    one.perform(only(one).ask_confirm_rkey(slot, world.now), None)
    world.run(2)
    assert link_down.state == "rts"
    assert {c.state for c in calls} == {State.OPEN}
    answers = [m for m in llc_sent(world, llc.ConfirmRkey) if m.response]
    assert len(answers) == 3
    assert not any(m.negative for m in answers if isinstance(m, llc.ConfirmRkey))


@pytest.mark.smcr(60)
def test_060_delete_rkey_is_answered_after_the_own_close() -> None:
    world, one, two, calls = linked()
    for call in calls:
        call.host.finish(call)
    world.run(60)
    for host in (one, two):
        answer = hear(host, make.message("llc-delete-rkey-v2-req"))
        assert [(m[0], m[3], len(m)) for m in answer] == [(0x29, 0xA0, 44)]
        hear(host, make.message("llc-confirm-rkey-v2-req"))
        rkey = make.message("llc-confirm-rkey-v2-req")[5:9]
        request = make.message("llc-delete-rkey-v2-req")
        answer = hear(host, request[:8] + rkey + request[12:])
        assert [(m[0], m[3], m[5], len(m)) for m in answer] == [(0x29, 0x80, 0, 44)]


@pytest.mark.smcr(61)
def test_061_an_rkey_is_withdrawn_before_its_memory_is_deregistered() -> None:
    world, one, two, calls = linked(joins=9)
    closed: list[tuple[float, int]] = []
    withdrawn: dict[int, float] = {}
    for host in (one, two):
        do = host.do

        def noting(action: a.Action, call: Call | None, do: object = do) -> None:
            if isinstance(action, a.CloseRmb):
                closed.append((world.now, 0x1000 + action.rmb))
            do(action, call)  # type: ignore[operator]

        host.do = noting  # type: ignore[method-assign]
    world.faults = lambda sent, index: Fault(delay=0.01)
    for call in calls:
        call.host.finish(call)
    while only(one).flows.current or only(two).flows.current:
        assert world.step()
        for message in llc_sent(world, llc.DeleteRkey):
            assert isinstance(message, llc.DeleteRkey)
            if message.response:
                withdrawn.setdefault(message.rkeys[0], world.now)
    assert len(withdrawn) == 20
    assert len(closed) == 12  # the rest is in stock, for the next connections
    assert all(withdrawn[rkey] <= when for when, rkey in closed)


@pytest.mark.smcr(62)
def test_062_req_add_link_is_answered_even_if_cut() -> None:
    _, _, two, _ = linked()
    request = make.message("llc-req-add-link-v2")
    for data in (request, request[:44]):
        assert hear(two, data) == [make.message("llc-req-add-link-v2-resp")]
    assert only(two).state is GroupState.ACTIVE


@pytest.mark.smcr(63)
def test_063_an_invitation_of_a_version_1_client_does_no_harm() -> None:
    world, one, two, _ = linked(**V1)
    invitation = llc.AddLink(version=1, mac=one.local.mac, gid=bytes(15) + b"\7", qpn=99, number=2).encode()
    (said,) = hear(two, invitation)
    assert (said[0], said[3]) == (0x02, 0xC0)
    calls = connect(one, two)
    world.run(2)
    assert {c.state for c in calls} == {State.OPEN}
    assert len(two.links) == 1


@pytest.mark.smcr(64)
@pytest.mark.parametrize("side", [0, 1])
def test_064_delete_link_for_all_ends_the_group(side: int) -> None:
    world, one, two, _ = linked(joins=2)
    host = (one, two)[side]
    (answer,) = hear(host, make.message("llc-delete-link-all-v2"))
    assert (answer[0], answer[3] & 0x40) == (0x24, 0x40)
    assert not only(host).room
    assert hear(host, make.message("llc-delete-link-all-v2")) == []
    world.run(3)
    assert not one.links
    assert not two.links
    assert not one.connections
    assert not two.connections
    again = connect(one, two)
    world.run(2)
    assert {c.state for c in again} == {State.OPEN}
    assert [c.machine.first_contact for c in again] == [True, True]


@pytest.mark.smcr(65)
def test_065_delete_link_for_one_link_at_a_client() -> None:
    world, one, _, _ = linked()
    number = only(one).number
    request = llc.DeleteLink(number=7, reason=llc.DELETE_LOST_PATH, orderly=True)
    assert hear(one, request.encode()) == [make.message("llc-delete-link-v2-resp-unknown")]
    assert only(one).state is GroupState.ACTIVE
    (answer,) = hear(one, replace(request, number=number).encode())
    assert answer == replace(request, number=number, response=True, reason=0).encode()
    world.run(1)
    assert not one.links


@pytest.mark.smcr(65)
def test_065_a_server_sends_the_request_back() -> None:
    _, _, two, _ = linked()
    request = llc.DeleteLink(number=only(two).number, reason=llc.DELETE_LOST_PATH).encode()
    assert hear(two, request) == [request]
    assert two.links
    assert hear(two, llc.DeleteLink(number=1, response=True).encode()) == []
    assert not two.links


@pytest.mark.smcr(66)
@given(
    st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 90), st.binary(max_size=90)), max_size=12
    )
)
@settings(max_examples=40)
def test_066_noise_on_a_link_is_ignored_or_answered(noise: list[tuple[int, int, int, bytes]]) -> None:
    world, one, two, _ = linked()
    for kind, flags, length, rest in noise:
        for host in (one, two):
            if host.links:
                data = bytes([kind, 44, 0, flags]) + rest.ljust(90, b"\0")
                answers = hear(host, data[:length])
                assert len(answers) <= 2  # one answer, and our next request if a response came
                assert all(len(m) <= 44 for m in answers)
    world.run(700)
    for host in (one, two):
        host.check()


@pytest.mark.smcr(66)
def test_066_stray_responses_are_ignored() -> None:
    _, one, two, _ = linked()
    names = [
        "llc-confirm-link-v2-resp",
        "llc-add-link-v2-reject",
        "llc-confirm-rkey-v2-resp",
        "llc-confirm-rkey-v2-neg",
    ]
    names += ["llc-delete-rkey-v2-resp", "llc-delete-link-v2-resp-unknown", "llc-req-add-link-v2-resp"]
    for host in (one, two):
        for name in names:
            before = only(host).ignored
            assert hear(host, make.message(name)) == []
            assert only(host).ignored == before + 1
        assert only(host).state is GroupState.ACTIVE


@pytest.mark.smcr(67)
def test_067_nothing_longer_than_44_bytes_is_sent() -> None:
    world, one, two, calls = linked(joins=20)
    for call in calls:
        call.host.finish(call)
    long = llc.DeleteRkey(rkeys=tuple(range(255))).encode()
    assert len(long) > 44
    hear(one, long)
    hear(two, long)
    hear(two, make.message("llc-req-add-link-v2"))
    hear(one, make.message("llc-add-link-v2-req-88"))
    world.run(700)
    sent = [s.encode() for s in world.sent if isinstance(s, a.SendLlc)]
    assert sent
    assert {len(data) for data in sent} == {44}


@pytest.mark.smcr(98)
@pytest.mark.parametrize("local", [{}, V1], ids=["v2", "v1"])
def test_098_255_connections_share_a_group_and_the_256th_opens_another(local: dict[str, object]) -> None:
    world = World()
    one, two = Host(world, 1, **local), Host(world, 2, **local)
    calls = [call for _ in range(255) for call in connect(one, two)]
    world.run(30)
    calls += connect(one, two)
    world.run(5)
    assert {c.state for c in calls} == {State.OPEN}
    for host in (one, two):
        assert sorted(len(g.slots) for g in host.groups) == [1, 255]
        tokens = [token for g in host.groups for token in g.slots]
        assert len(set(tokens)) == 256
    for call in calls[:2]:
        call.host.finish(call)
    world.run(5)
    again = connect(one, two)
    world.run(5)
    assert {c.state for c in again} == {State.OPEN}
    assert [c.machine.first_contact for c in again] == [False, False]
