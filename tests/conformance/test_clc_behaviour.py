# SPDX-License-Identifier: MIT OR Apache-2.0
"""Points 5, 6 and 20 to 50 of SMC-R about what is said on TCP, as the handshakes without I/O show them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import smc_messages as make
from hypothesis import given
from hypothesis import strategies as st
from smc_pair import EID, Call, Fault, Host, World, alone, connect, pair

from exs.smc import actions as a
from exs.smc import clc, llc
from exs.smc.groups import make_peer_id
from exs.smc.reading import CrossingFilter
from exs.smc.states import ENDS, State

if TYPE_CHECKING:
    from collections.abc import Callable

V1 = clc.Decline(version=1, peer_id=bytes(8), diagnosis=clc.DECLINE_NO_DEVICE)
V2 = replace(V1, version=2, os_type=clc.OS_LINUX)
PAYLOAD = b"\xe2 payload"


def proposal() -> bytes:
    """Of a client like Linux 6.1, with our EID."""
    return make.message("clc-proposal-v2only-linux61")


def exchange(world: World, one: Call, two: Call) -> None:
    """In TCP both sides get exactly what the other one sends."""
    for sender, receiver in ((one, two), (two, one)):
        assert sender.out is not None
        sender.out.write(PAYLOAD)
        world.run(10)
        assert receiver.payload == PAYLOAD


def said(call: Call) -> list[clc.Message]:
    """The CLC messages that a side has sent."""
    return [action.message for action in call.log if isinstance(action, a.SendClc)]


@pytest.mark.smcr(5)
def test_005_payload_in_place_of_a_proposal_is_delivered() -> None:
    for first in (b"G", b"\xe2\xd4\xc3G", b"GET / HTTP/1.0\r\n\r\n", bytes(100)):
        world, call, written = alone("server")
        call.arrive(first)
        call.arrive(b" and more")
        world.run(1)
        assert (call.state, call.payload, written) == (State.TCP, first + b" and more", b"")


@pytest.mark.smcr(5)
def test_005_silence_for_6_s_becomes_plain_tcp() -> None:
    world, call, written = alone("server")
    world.run(5.8)
    assert call.state is State.WAIT_PROPOSAL
    world.run(0.3)
    call.arrive(PAYLOAD)
    assert (call.state, call.payload, written) == (State.TCP, PAYLOAD, b"")


@pytest.mark.smcr(6)
@pytest.mark.parametrize("decline", [V1, V2])
def test_006_a_decline_that_comes_first_leads_to_tcp(decline: clc.Decline) -> None:
    world, call, written = alone("server")
    call.arrive(decline.encode() + PAYLOAD)
    world.run(10)
    assert (call.state, call.payload, written) == (State.TCP, PAYLOAD, b"")


@pytest.mark.smcr(20, 21)
def test_020_proposal_confirm_and_queue_pair_have_one_gid_and_the_mac_is_there() -> None:
    world, one, two = pair()
    call, _ = connect(one, two)
    world.run(2)
    offer, confirm = said(call)
    assert isinstance(offer, clc.Proposal)
    assert isinstance(confirm, clc.Confirm)
    assert offer.v2 is not None
    (made,) = [action for action in call.log if isinstance(action, a.NewLink)]
    assert offer.v2.gid == confirm.gid == confirm.gids[0] == made.gid == one.local.gid
    assert offer.peer_id == confirm.peer_id == one.groups.peer_id
    assert offer.mac == confirm.mac == one.local.mac


@pytest.mark.smcr(22)
def test_022_two_processes_of_a_host_have_different_peer_ids_and_groups() -> None:
    mac = bytes([2, 0, 0, 0, 0, 7])
    assert make_peer_id(b"\1\2", mac) != make_peer_id(b"\1\3", mac)
    with pytest.raises(ValueError, match="not zero"):
        make_peer_id(bytes(2), mac)
    world, one, two = pair()
    other = Host(world, 3, gid=one.local.gid, mac=one.local.mac)  # another process behind the same port
    for client in (one, other, one, other):
        calls = connect(client, two)
        world.run(2)
        assert [c.state for c in calls] == [State.OPEN, State.OPEN]
    assert [len(g.slots) for g in two.groups] == [2, 2]


@pytest.mark.smcr(24, 96)
@pytest.mark.parametrize(
    ("client", "server", "code"),
    [
        ({}, {"eids": ("OTHER",)}, clc.DECLINE_NO_UEID),
        ({}, {"eids": ()}, clc.DECLINE_NO_DEVICE),
        ({}, {"unable": clc.DECLINE_NO_DEVICE}, clc.DECLINE_NO_DEVICE),
        ({"unable": clc.DECLINE_NO_SMCR_DEVICE}, {}, clc.DECLINE_NO_SMCR_DEVICE),
        ({"eids": ()}, {}, clc.DECLINE_NO_DEVICE),
        ({"gid": None}, {}, clc.DECLINE_NO_DEVICE),
        ({"direct": True}, {"direct": False}, clc.DECLINE_INDIRECT),
        ({}, {"gid": None, "gid_v1": bytes(16)}, clc.DECLINE_VERSION),
        (
            {"gid": None, "gid_v1": bytes(16), "subnet": (bytes([10, 9, 0, 0]), 24)},
            {"gid_v1": bytes(16), "subnet": (bytes([10, 8, 0, 0]), 24)},
            clc.DECLINE_PREFIX,
        ),
    ],
)
def test_024_peers_that_cannot_end_in_tcp(client: dict[str, object], server: dict[str, object], code: int) -> None:
    world = World()
    calls = connect(Host(world, 1, **client), Host(world, 2, **server))
    world.run(10)
    assert [c.state for c in calls] == [State.TCP, State.TCP]
    assert [c.end.reason for c in calls if isinstance(c.end, a.Fallback)] == [code, code]
    exchange(world, *calls)


@pytest.mark.smcr(26)
@pytest.mark.parametrize("decline", [V1, V2])
def test_026_payload_behind_a_decline_in_the_same_segment_arrives(decline: clc.Decline) -> None:
    world, call, _ = alone("client")
    call.arrive(decline.encode() + PAYLOAD)
    world.run(10)
    assert (call.state, call.payload) == (State.TCP, PAYLOAD)


def waiting(role: str) -> list[Callable[[], tuple[World, Call, Call]]]:
    """Ways into each state of a side in which it awaits something of its peer."""

    def way(state: State, join: bool) -> Callable[[], tuple[World, Call, Call]]:
        def go() -> tuple[World, Call, Call]:
            world, one, two = pair()
            if join:
                connect(one, two)
                world.run(2)
            calls = connect(one, two)
            call, peer = calls if role == "client" else calls[::-1]
            while call.state is not state:
                assert world.step()
            return world, call, peer

        return go

    if role == "client":
        first = [State.WAIT_ACCEPT, State.WAIT_CONFIRM_LINK, State.WAIT_ADD_LINK]
        return [way(s, join=False) for s in first] + [way(State.WAIT_RKEY, join=True)]
    first = [State.WAIT_PROPOSAL, State.WAIT_CONFIRM, State.WAIT_CONFIRM_LINK]
    return [way(s, join=False) for s in first] + [way(s, join=True) for s in (State.WAIT_RKEY, State.WAIT_CONFIRM)]


@pytest.mark.smcr(27, 28, 29)
@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("decline", [V1, V2])
def test_027_a_decline_is_taken_in_every_waiting_state_and_never_answered(role: str, decline: clc.Decline) -> None:
    for go in waiting(role):
        _, call, _ = go()
        before = len(said(call))
        call.inbox.clear()
        call.arrive(decline.encode())
        assert isinstance(call.end, a.Fallback)
        assert (call.state, call.end.by_peer, call.end.reason) == (State.TCP, True, decline.diagnosis)
        assert len(said(call)) == before
        call.host.check()


@pytest.mark.smcr(29)
def test_029_a_decline_has_the_version_of_the_proposal() -> None:
    for data, version in ((proposal(), 2), (make.message("clc-proposal-v1-rfc"), 1)):
        world, call, written = alone("server", eids=("OTHER",))
        call.arrive(data)
        world.run(1)
        answer = clc.decode(bytes(written))
        assert isinstance(answer, clc.Decline)
        assert answer.version == version
    _, call, written = alone("client", unable=clc.DECLINE_NO_DEVICE)
    assert clc.decode(bytes(written)) == clc.Decline(
        version=1, peer_id=call.host.groups.peer_id, diagnosis=clc.DECLINE_NO_DEVICE
    )


@pytest.mark.smcr(30)
def test_030_a_client_without_accept_declines_after_6_s_and_drops_a_late_accept() -> None:
    world, call, written = alone("client")
    del written[:]
    world.run(5.8)
    assert call.end is None
    world.run(0.3)
    assert isinstance(clc.decode(bytes(written)), clc.Decline)
    call.arrive(make.message("clc-accept-v2-first") + PAYLOAD)
    assert (call.state, call.payload) == (State.TCP, PAYLOAD)


@pytest.mark.smcr(30)
def test_030_a_server_answers_in_less_than_5_s_whatever_its_group_does() -> None:
    world, one, two = pair()
    connect(one, two)
    world.run(2)
    world.faults = lambda sent, index: Fault(lost=isinstance(sent.message, llc.ConfirmRkey))
    begin = world.now
    calls = [call for _ in range(4) for call in connect(one, two)]
    while not all(said(server) for server in calls[1::2]):
        assert world.step()
    assert world.now - begin < 5


def accepted(call: Call, **changes: object) -> None:
    """An ACCEPT comes, as the captured server says it."""
    accept = clc.decode(make.message("clc-accept-v2-first"))
    assert isinstance(accept, clc.Accept)
    values = {"eid": EID} | changes
    call.arrive(replace(accept, **values).encode())  # type: ignore[arg-type]  # names and types are the test's


@pytest.mark.smcr(32)
def test_032_first_contact_makes_a_new_group_even_if_there_is_one() -> None:
    world, one, two = pair()
    connect(one, two)
    world.run(2)
    (known,) = two.groups
    known.joinable = False
    calls = connect(one, two)
    world.run(2)
    assert [c.state for c in calls] == [State.OPEN, State.OPEN]
    assert [len(one.groups), len(two.groups)] == [2, 2]


@pytest.mark.smcr(33)
def test_033_no_first_contact_and_no_group_is_out_of_sync() -> None:
    world, call, written = alone("client")
    del written[:]
    accepted(call, first_contact=False, first_contact_extension=None)
    world.run(1)
    answer = clc.decode(bytes(written))
    assert isinstance(answer, clc.Decline)
    assert (answer.version, answer.diagnosis, answer.out_of_sync) == (2, 0x04000000, True)
    assert written[7] & 0x08


@pytest.mark.smcr(34)
def test_034_a_known_group_with_another_queue_pair_is_declined() -> None:
    world, one, two = pair()
    connect(one, two)
    world.run(2)
    (group,) = one.groups
    call, server = connect(one, two)
    server.machine = type(server.machine)(two.groups, two.local)  # the real server takes no part
    address = group.peer_address
    assert address is not None
    accept = clc.decode(make.message("clc-accept-v2-subsequent"))
    assert isinstance(accept, clc.Accept)
    call.arrive(
        replace(
            accept, eid=EID, peer_id=group.peer.peer_id, gid=group.peer.gid, mac=group.peer.mac, qpn=address.qpn + 1
        ).encode()
    )
    answer = said(call)[-1]
    assert isinstance(answer, clc.Decline)
    assert (answer.diagnosis, answer.out_of_sync) == (0x030B0000, False)


@pytest.mark.smcr(35)
@pytest.mark.parametrize("decline", [V1, V2])
def test_035_declines_that_cross_do_not_reach_the_program(decline: clc.Decline) -> None:
    for size in range(1, 10):
        found = bytearray()
        sift = CrossingFilter(frozenset({clc.DECLINE}))
        stream = decline.encode() + PAYLOAD + decline.encode()
        for at in range(0, len(stream), size):
            found += sift.feed(stream[at : at + size])
        assert found == PAYLOAD + decline.encode()


@pytest.mark.smcr(35)
@given(data=st.binary(max_size=60), cut=st.integers(0, 60))
def test_035_what_is_no_crossing_message_is_payload(data: bytes, cut: int) -> None:
    for start in (b"", b"\xe2", b"\xe2\xd4\xc3\xd9", V1.encode()[:-1], V2.encode()[:-4]):
        stream = start + b"\x00" + data
        sift = CrossingFilter(frozenset({clc.DECLINE}))
        assert sift.feed(stream[:cut]) + sift.feed(stream[cut:]) + sift.end() == stream


@pytest.mark.smcr(36)
def test_036_a_decline_out_of_sync_ends_the_group() -> None:
    world, one, two = pair()
    others = [connect(one, two) for _ in range(3)]
    world.run(2)
    _, call = connect(one, two)
    while call.state is not State.WAIT_CONFIRM:
        assert world.step()
    call.inbox.clear()
    call.arrive(replace(V2, diagnosis=clc.DECLINE_SYNC, out_of_sync=True).encode())
    (group,) = two.groups
    assert not group.room
    world.run(3)
    assert not list(two.groups)
    assert not two.links
    assert not [c for c in others if c[1].end.token in two.connections]


@pytest.mark.smcr(37)
@pytest.mark.parametrize("cut", range(1, 180))
def test_037_messages_cut_at_any_byte_are_put_together(cut: int) -> None:
    world, one, two = pair(faults=lambda sent, index: Fault(cut=cut))
    for _ in range(2):
        calls = connect(one, two)
        world.run(2)
        assert {c.state for c in calls} == {State.OPEN}


@pytest.mark.smcr(38)
def test_038_the_path_mtu_is_the_smaller_of_both() -> None:
    for mine, theirs in itertools.product(range(1, 6), repeat=2):
        world, one, two = pair()
        one.mtu_code, two.mtu_code = mine, theirs
        calls = connect(one, two)
        world.run(2)
        for call in calls:
            (rtr,) = [action for action in call.log if isinstance(action, a.ToRtr)]
            assert rtr.peer.mtu_code == min(mine, theirs)
        accept, confirm = said(calls[1])[0], said(calls[0])[1]
        assert isinstance(accept, clc.Accept)
        assert isinstance(confirm, clc.Confirm)
        assert (accept.mtu_code, confirm.mtu_code) == (theirs, min(mine, theirs))


@pytest.mark.smcr(40, 41)
def test_040_ready_to_receive_before_confirm_and_to_send_after_confirm_link() -> None:
    world, one, two = pair()
    call, _ = connect(one, two)
    world.run(2)
    kinds = [type(action) for action in call.log]
    order = [
        a.NewLink,
        a.ToRtr,
        a.NewRmb,
        a.NewConnection,
        a.SendClc,
        a.ToRts,
        a.ActivateLink,
        a.SendLlc,
        a.OpenConnection,
    ]
    assert kinds == [a.SendClc, *order]
    assert isinstance(call.log[8], a.SendLlc)
    assert isinstance(call.log[8].message, llc.ConfirmLink)


@pytest.mark.smcr(45)
@pytest.mark.parametrize("role", ["client", "server"])
def test_045_a_peer_with_eyecatchers_in_its_buffers_is_declined(role: str) -> None:
    world, one, two = pair()
    calls = connect(one, two)
    call = calls[role == "server"]
    while call.state is not State.WAIT_CONFIRM_LINK:
        assert world.step()
    world._due.clear()
    name = "llc-confirm-link-v2-req" if role == "client" else "llc-confirm-link-v2-resp"
    data = bytearray(make.message(name))
    data[3] &= 0x80
    call.host.notice(call.host.links[call.link], bytes(data))
    world.run(10)
    assert [c.state for c in calls] == [State.TCP, State.TCP]
    answer = said(call)[-1]
    assert isinstance(answer, clc.Decline)
    assert answer.diagnosis == 0x03050000
    exchange(world, *calls)


@pytest.mark.smcr(50, 95)
@pytest.mark.parametrize("lost", ["requests", "responses", "all"])
def test_050_confirm_link_without_an_answer_ends_in_tcp(lost: str) -> None:
    gone = {"requests": (False,), "responses": (True,), "all": (False, True)}[lost]
    world, one, two = pair(
        faults=lambda sent, index: Fault(
            lost=isinstance(sent.message, llc.ConfirmLink) and sent.message.response in gone
        )
    )
    calls = connect(one, two)
    world.run(20)
    assert [c.state for c in calls] == [State.TCP, State.TCP]
    assert {c.end.reason for c in calls if isinstance(c.end, a.Fallback)} == {0x02010000}
    exchange(world, *calls)


@pytest.mark.smcr(95)
@pytest.mark.parametrize("seconds", [0.1, 0.5, 2.0, 2.9])
def test_095_a_decline_seconds_after_confirm_leads_to_tcp(seconds: float) -> None:
    world, one, two = pair(faults=lambda sent, index: Fault(lost=isinstance(sent.message, llc.ConfirmLink)))
    calls = connect(one, two)
    while calls[0].state is not State.WAIT_CONFIRM_LINK:
        assert world.step()
    world.run(seconds)
    calls[1].machine.deadline = world.now  # the server's patience ends here
    calls[1].machine._patience = world.now
    world.run(20)
    assert [c.state for c in calls] == [State.TCP, State.TCP]
    exchange(world, *calls)


@pytest.mark.smcr(97)
@pytest.mark.parametrize("role", ["client", "server"])
@given(st.data())
def test_097_noise_on_tcp_ends_a_handshake_and_nothing_else(role: str, data: st.DataObject) -> None:
    names = ["clc-proposal-v2only-linux61", "clc-accept-v2-first", "clc-confirm-v2-first-1gid", "clc-decline-v2-nodev"]
    world, call, _ = alone(role)
    for _ in range(data.draw(st.integers(1, 3))):
        noise = bytearray(make.message(data.draw(st.sampled_from(names))))
        for _ in range(data.draw(st.integers(0, 4))):
            noise[data.draw(st.integers(0, len(noise) - 1))] = data.draw(st.integers(0, 255))
        call.arrive(bytes(noise))
    call.arrive(None)
    world.run(30)
    assert call.state in ENDS
    call.host.check()
