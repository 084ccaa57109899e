# SPDX-License-Identifier: MIT OR Apache-2.0
"""Link groups under any order of joins, ends, answers, losses and peer's requests, against a plain model.

The model knows: who is in which group, which token and buffer each has, what the peer was told of buffers, and which
request waits for an answer.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exs.smc import actions as a
from exs.smc import llc
from exs.smc.groups import LinkGroups, make_peer_id
from exs.smc.link_group import CONNECTIONS_MAX, GroupState, LinkGroup, PeerKey, Role, Slot
from exs.smc.rkeys import Rmb

PEER = PeerKey(bytes(8), bytes(10) + b"\xff\xff" + bytes([10, 9, 0, 2]), bytes([2, 0, 0, 0, 0, 2]))
OWN = a.LinkAddress(bytes(10) + b"\xff\xff" + bytes([10, 9, 0, 1]), bytes([2, 0, 0, 0, 0, 1]), 3, 7, 9)
REQUESTS = (llc.ConfirmRkey, llc.DeleteRkey, llc.AddLink)


@dataclass(eq=False)
class Member:
    """One connection as the model sees it, and its handshake as the group sees it."""

    group: LinkGroup
    slot: Slot
    waits: bool = False
    told: list[a.Event] = field(default_factory=list)

    def receive(self, event: a.Event, *, now: float) -> list[a.Action]:
        self.told.append(event)
        return []


class Groups(RuleBasedStateMachine):
    """Both roles at once; the peer is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        counter = itertools.count()
        # Gives each number twice, and begins with 0: both are to be stepped over.
        self.groups = LinkGroups(peer_id=make_peer_id(b"\1\2", OWN.mac), tokens=lambda: next(counter) // 2)
        self.handles = itertools.count(1)
        self.members: dict[Member, None] = {}
        self.open_request: dict[int, llc.Message] = {}
        self.links: dict[int, LinkGroup] = {}
        self.rmbs: set[int] = set()
        self.used: dict[int, int] = {}
        """Buffers that belong to a connection, and the link that they are on."""
        self.known: dict[int, dict[int, int]] = {}
        """What the groups have to remember of the peer's buffers."""

    # -- what the actions do to the model -----------------------------------------------------------------------------

    def do(self, actions: list[a.Action]) -> list[llc.Message]:
        """Perform; returns what was sent that is an answer."""
        answers = []
        for action in actions:
            match action:
                case a.SendLlc(link, message):
                    assert link in self.links, "a message on a closed link"
                    if message.response:
                        answers.append(message)
                    elif isinstance(message, REQUESTS):
                        assert link not in self.open_request, "a second request before the first was answered"
                        self.open_request[link] = message
                    elif isinstance(message, llc.DeleteLink):
                        answers.append(message)
                case a.CloseLink(link):
                    del self.links[link]
                    self.open_request.pop(link, None)
                case a.CloseRmb(rmb):
                    self.rmbs.remove(rmb)
                    assert self.used.pop(rmb, None) not in self.links, "a buffer in use was closed"
                case a.Tell(listener, event):
                    listener.receive(event, now=self.now)
        return answers

    def leave(self, member: Member) -> Slot:
        del self.members[member]
        assert member.slot.rmb is not None
        self.used.pop(member.slot.rmb.handle, None)
        return member.slot

    def living(self, state: GroupState = GroupState.ACTIVE) -> list[Member]:
        return [m for m in self.members if m.group.state is state]

    def active(self) -> list[LinkGroup]:
        return [g for g in self.links.values() if g.state is GroupState.ACTIVE]

    def hear(self, group: LinkGroup, message: llc.Message) -> list[llc.Message]:
        return self.do(self.groups.receive(group.link, message.encode(), now=self.now))

    # -- rules --------------------------------------------------------------------------------------------------------

    @rule(role=st.sampled_from(Role))
    def first_contact(self, role: Role) -> None:
        link = next(self.handles)
        group = self.groups.form(role=role, version=2, peer=PEER, link=link, address=OWN)
        self.links[link] = group
        self.known[link] = {}
        member = self.enter(group)
        assert not group.room
        answers = self.do(group.activate(self.now))
        assert [type(m) for m in answers] == ([llc.ConfirmLink] if role is Role.CLIENT else [])
        group.established(member.slot)

    def enter(self, group: LinkGroup) -> Member:
        slot = self.groups.take(group, member := Member(group, None))  # type: ignore[arg-type]  # set below
        member.slot = slot
        self.members[member] = None
        rmb = group.stock.take(0)
        if rmb is None:
            rmb = Rmb(next(self.handles), next(self.handles), 0x10000 * slot.token, 0)
            self.rmbs.add(rmb.handle)
        assert not rmb.announced
        assert rmb.handle not in self.used
        self.used[rmb.handle] = group.link
        group.give_rmb(slot, rmb)
        slot.made = True
        return member

    @rule(times=st.sampled_from([1, 1, 1, 3, 254]))
    def join(self, times: int) -> None:
        for _ in range(times):
            group = self.groups.for_proposal(2, PEER)
            if group is None:
                full = [g for g in self.active() if g.role is Role.SERVER and g.joinable]
                assert all(len(g.slots) == CONNECTIONS_MAX or g.rtokens.full for g in full)
                return
            member = self.enter(group)
            member.waits = True
            assert self.do(group.ask_confirm_rkey(member.slot, self.now)) == []

    @precondition(lambda self: self.open_request)
    @rule(data=st.data(), accepted=st.booleans())
    def peer_answers(self, data: st.DataObject, accepted: bool) -> None:
        link = data.draw(st.sampled_from(sorted(self.open_request)))
        request = self.open_request.pop(link)
        group = self.links[link]
        match request:
            case llc.ConfirmRkey():
                answer: llc.Message = replace(request, response=True, negative=not accepted)
            case llc.DeleteRkey():
                answer = replace(request, response=True, negative=not accepted)
            case llc.AddLink():
                answer = replace(request, response=True, reject=True)
        assert self.hear(group, answer) == []
        self.hear_again(group, answer)

    def hear_again(self, group: LinkGroup, answer: llc.Message) -> None:
        """A response that comes twice ends no second request, unless it could be the answer to that one too."""
        following = self.open_request.get(group.link)
        if following is None or type(following) is not type(answer):
            before = dict(self.open_request)
            assert self.hear(group, answer) == []
            assert self.open_request == before

    @precondition(lambda self: any(m.waits for m in self.members))
    @rule(data=st.data())
    def handshake_ends(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from([m for m in self.members if m.waits]))
        member.waits = False
        if any(isinstance(e, a.RkeyAnswer) and e.accepted for e in member.told) and member.group in self.active():
            member.group.established(member.slot)
        else:
            self.do(self.groups.release(member.group, self.leave(member), self.now, founder=False))

    @precondition(lambda self: any(not m.waits for m in self.living()))
    @rule(data=st.data(), times=st.sampled_from([1, 1, 300]))
    def connections_end(self, data: st.DataObject, times: int) -> None:
        candidates = [m for m in self.living() if not m.waits]
        some = candidates[:times] if times > 1 else [data.draw(st.sampled_from(candidates))]
        for member in some:
            self.do(self.groups.connection_done(member.group.link, self.leave(member).token, now=self.now))

    @precondition(lambda self: self.links)
    @rule(data=st.data(), rkey=st.integers(1, 300), many=st.booleans())
    def peer_announces(self, data: st.DataObject, rkey: int, many: bool) -> None:
        group = data.draw(st.sampled_from(list(self.links.values())))
        for key in range(rkey, rkey + (200 if many else 1)):
            known = self.known[group.link]
            room = group.state is GroupState.ACTIVE and (key in known or len(known) < 255)
            (answer,) = self.hear(group, llc.ConfirmRkey(version=2, rkey=key, vaddr=key << 16))
            assert isinstance(answer, llc.ConfirmRkey)
            assert answer.response
            assert answer.rkey == key
            assert answer.negative is not room
            if room:
                known[key] = key << 16

    @precondition(lambda self: self.links)
    @rule(data=st.data(), rkey=st.integers(1, 300))
    def peer_withdraws(self, data: st.DataObject, rkey: int) -> None:
        group = data.draw(st.sampled_from(list(self.links.values())))
        (answer,) = self.hear(group, llc.DeleteRkey(version=2, rkeys=(rkey,)))
        assert isinstance(answer, llc.DeleteRkey)
        assert answer.negative is (self.known[group.link].pop(rkey, None) is None)

    @precondition(lambda self: self.links)
    @rule(data=st.data())
    def peer_offers_or_asks_for_a_link(self, data: st.DataObject) -> None:
        group = data.draw(st.sampled_from(list(self.links.values())))
        (answer,) = self.hear(group, llc.AddLink(version=2, mac=PEER.mac, gid=PEER.gid, qpn=5, number=3, mtu_code=3))
        assert isinstance(answer, llc.AddLink)
        assert answer.reject
        (answer,) = self.hear(group, llc.ReqAddLink(gids=(PEER.gid,)))
        assert isinstance(answer, llc.ReqAddLink)
        (answer,) = self.hear(group, llc.DeleteLink(version=2, number=9, reason=0x00010000))
        assert isinstance(answer, llc.DeleteLink)
        assert answer.reason == 0x00100000

    @precondition(lambda self: self.links)
    @rule(data=st.data(), how=st.sampled_from(["delete all", "delete one", "down", "out of sync"]))
    def group_ends(self, data: st.DataObject, how: str) -> None:
        group = data.draw(st.sampled_from(list(self.links.values())))
        active = group.state is GroupState.ACTIVE
        waiting = [m for m in self.members if m.group is group and m.waits]
        match how:
            case "delete all":
                answers = self.hear(group, llc.DeleteLink(version=2, all_links=True, reason=0x00030000))
                assert len(answers) == active
            case "delete one":
                (answer,) = self.hear(group, llc.DeleteLink(version=2, number=1, reason=0x00010000))
                assert answer.response is (group.role is Role.CLIENT)
            case "down":
                self.do(self.groups.link_down(group.link, now=self.now))
            case "out of sync":
                self.do(self.groups.out_of_sync(group, self.now))
        assert not group.room
        if active:
            assert all(m.told[-1:] == [a.GroupLost()] for m in waiting)

    @rule(seconds=st.sampled_from([0.1, 0.6, 2.0, 3.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.groups.deadline) is not None and due <= until:
            self.now = max(self.now, due)
            for link in list(self.open_request):
                if self.links[link].flows.deadline is not None and self.links[link].flows.deadline <= self.now:
                    del self.open_request[link]
            self.do(self.groups.timeout(now=self.now))
            assert self.groups.deadline is None or self.groups.deadline > self.now
        self.now = until

    @rule()
    def wind_down(self) -> None:
        self.do(self.groups.wind_down(now=self.now))

    # -- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def tokens_are_unique_and_not_zero(self) -> None:
        tokens = [token for g in self.groups for token in g.slots]
        assert len(tokens) == len(set(tokens))
        assert 0 not in tokens

    @invariant()
    def no_group_is_overfull(self) -> None:
        assert all(len(g.slots) <= CONNECTIONS_MAX for g in self.groups)
        assert all(len(g.rtokens) == len(self.known[g.link]) for g in self.groups)

    @invariant()
    def the_groups_are_those_of_the_model(self) -> None:
        assert {g.link for g in self.groups} == set(self.links)
        for group in self.active():
            assert {m.slot.token for m in self.members if m.group is group} == set(group.slots)
            assert group.flows.current is not None or not len(group.flows)

    @invariant()
    def every_buffer_is_somewhere(self) -> None:
        assert {rmb.handle for g in self.groups for rmb in g.rmbs} == self.rmbs

    @invariant()
    def a_handshake_is_told_once(self) -> None:
        for member in self.members:
            assert len([e for e in member.told if isinstance(e, a.RkeyAnswer)]) <= 1

    def teardown(self) -> None:
        for member in list(self.members):
            slot = self.leave(member)
            if member.waits:
                self.do(self.groups.release(member.group, slot, self.now, founder=False))
            else:
                self.do(self.groups.connection_done(member.group.link, slot.token, now=self.now))
        self.open_request.clear()  # nobody answers any more
        while (due := self.groups.deadline) is not None:
            self.now = max(due, self.now)
            self.open_request.clear()
            self.do(self.groups.timeout(now=self.now))
        assert not self.links
        assert not self.rmbs
        assert len(self.groups) == 0


TestGroups = Groups.TestCase
TestGroups.settings = settings(max_examples=25, stateful_step_count=30)
