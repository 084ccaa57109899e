# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a link group does with each LLC message, and with the passing of time.

Owns the two tables, one for each role, and nothing else: the group keeps the state.  CONFIRM_LINK of a first contact is
handed to the handshake; TEST_LINK never comes here, since C answers it.  Invariants: every request gets exactly one
answer, at once, whatever a handshake is doing; nothing is sent before the queue pair may send, nor after the end; the
tables have every pair of state and input.
"""

from __future__ import annotations

import enum
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from exs.smc import llc
from exs.smc.actions import AddLinkCame, GroupLost, LinkConfirm
from exs.smc.link_group import DRAIN, LINGER, GroupState, Role
from exs.smc.rkeys import Flow, FlowKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from exs.smc.actions import Action
    from exs.smc.link_group import LinkGroup

__all__ = ["TABLES", "LlcInput", "Row", "link_down", "out_of_sync", "receive", "timeout"]


class LlcInput(enum.Enum):
    """What can happen to a group."""

    CONFIRM_LINK_REQUEST = "CONFIRM_LINK request"
    CONFIRM_LINK_RESPONSE = "CONFIRM_LINK response"
    ADD_LINK_REQUEST = "ADD_LINK request"
    ADD_LINK_REJECTED = "ADD_LINK response, rejected"
    ADD_LINK_ACCEPTED = "ADD_LINK response, accepted"
    DELETE_LINK_ALL = "DELETE_LINK request, all links"
    DELETE_LINK_OURS = "DELETE_LINK request, our link"
    DELETE_LINK_UNKNOWN = "DELETE_LINK request, unknown link"
    DELETE_LINK_RESPONSE = "DELETE_LINK response"
    REQ_ADD_LINK_REQUEST = "REQ_ADD_LINK request"
    CONFIRM_RKEY_REQUEST = "CONFIRM_RKEY request"
    CONFIRM_RKEY_RESPONSE = "CONFIRM_RKEY response"
    CONFIRM_RKEY_CONT_REQUEST = "CONFIRM_RKEY_CONT request"
    DELETE_RKEY_REQUEST = "DELETE_RKEY request"
    DELETE_RKEY_RESPONSE = "DELETE_RKEY response"
    NOTHING = "any other message"
    RESPONSE_OVERDUE = "no response for 2 s"
    IDLE = "no connection for 600 s (client: 610 s)"
    CLOSE_DUE = "time to close the link"
    OUT_OF_SYNC = "out-of-sync DECLINE"
    LINK_DOWN = "link down"


SHORT = 9
"""Rkeys that fit into 44 bytes: a peer has room for one longer message at a time, and none is needed for an answer."""


class Row(NamedTuple):
    """One entry of a table: the state afterwards, and what is done in it."""

    to: GroupState
    steps: tuple[Callable[[LinkGroup, llc.Message | None, float], None], ...] = ()


def receive(group: LinkGroup, message: llc.Message | llc.Unknown, now: float) -> list[Action]:
    """Serve one LLC message.

    Args:
        group: That of the link on which it came.
        message: As decoded.
        now: Seconds.

    Returns:
        What is to be done, in order.
    """
    if isinstance(message, llc.Unknown):
        return _apply(group, LlcInput.NOTHING, None, now)
    return _apply(group, _classify(group, message), message, now)


def out_of_sync(group: LinkGroup, now: float) -> list[Action]:
    """The client does not know this group: the server gives it up, with all that is on it."""
    return _apply(group, LlcInput.OUT_OF_SYNC, None, now)


def link_down(group: LinkGroup, now: float) -> list[Action]:
    """The queue pair failed, or its peer is silent."""
    return _apply(group, LlcInput.LINK_DOWN, None, now)


def timeout(group: LinkGroup, now: float) -> list[Action]:
    """Do what is due by now, if anything is."""
    actions: list[Action] = []
    if group.flows.deadline is not None and now >= group.flows.deadline:
        actions += _apply(group, LlcInput.RESPONSE_OVERDUE, None, now)
    if group.idle_at is not None and now >= group.idle_at:
        actions += _apply(group, LlcInput.IDLE, None, now)
    if group.closes_at is not None and now >= group.closes_at:
        actions += _apply(group, LlcInput.CLOSE_DUE, None, now)
    return actions


def _apply(group: LinkGroup, what: LlcInput, message: llc.Message | None, now: float) -> list[Action]:
    row = TABLES[group.role][group.state, what]
    group.enter(row.to, what.value)
    for step in row.steps:
        step(group, message, now)
    return group.flush()


# -- what a message means -------------------------------------------------------------------------------------------

_REQUESTS: Mapping[type, LlcInput] = {
    llc.ConfirmLink: LlcInput.CONFIRM_LINK_REQUEST,
    llc.AddLink: LlcInput.ADD_LINK_REQUEST,
    llc.ReqAddLink: LlcInput.REQ_ADD_LINK_REQUEST,
    llc.ConfirmRkey: LlcInput.CONFIRM_RKEY_REQUEST,
    llc.ConfirmRkeyCont: LlcInput.CONFIRM_RKEY_CONT_REQUEST,
    llc.DeleteRkey: LlcInput.DELETE_RKEY_REQUEST,
}
_RESPONSES: Mapping[type, LlcInput] = {
    llc.ConfirmLink: LlcInput.CONFIRM_LINK_RESPONSE,
    llc.DeleteLink: LlcInput.DELETE_LINK_RESPONSE,
    llc.ConfirmRkey: LlcInput.CONFIRM_RKEY_RESPONSE,
    llc.DeleteRkey: LlcInput.DELETE_RKEY_RESPONSE,
}


def _classify(group: LinkGroup, message: llc.Message) -> LlcInput:
    match message:
        case llc.AddLink(response=True):
            return LlcInput.ADD_LINK_REJECTED if message.reject else LlcInput.ADD_LINK_ACCEPTED
        case llc.DeleteLink(response=False):
            if message.all_links:
                return LlcInput.DELETE_LINK_ALL
            return LlcInput.DELETE_LINK_OURS if message.number == group.number else LlcInput.DELETE_LINK_UNKNOWN
        case _:
            kinds = _RESPONSES if message.response else _REQUESTS
            return kinds.get(type(message), LlcInput.NOTHING)


# -- steps: each says what it does, for the page that is made of the tables -----------------------------------------


def ignore(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Count it."""
    group.ignored += 1


def tell_confirm_link(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Tell the handshake."""
    assert isinstance(message, llc.ConfirmLink)
    group.tell(LinkConfirm(message))


def repeat_confirm_link(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send the CONFIRM_LINK response once more."""
    group.send(group.confirm_link(response=True))


def reject_add_link(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send an ADD_LINK response, rejected; tell the handshake."""
    assert isinstance(message, llc.AddLink)
    group.send(message.rejected(llc.REJECT_NO_PATH if message.mtu_code else llc.REJECT_MTU))
    group.tell(AddLinkCame())


def end_add_link(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """End our ADD_LINK; send our next request."""
    group.end_request(FlowKind.ADD_LINK)
    group.send_next(now)


def undo_add_link(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """End our ADD_LINK; send a DELETE_LINK request for that link, which does not exist."""
    assert isinstance(message, llc.AddLink)
    flow = group.end_request(FlowKind.ADD_LINK)
    if flow is not None:
        request = llc.DeleteLink(version=group.version, number=message.number, reason=llc.DELETE_LOST_PATH)
        group.flows.add(Flow(FlowKind.DELETE_LINK, request))
    group.send_next(now)


def end_delete_link(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """End our DELETE_LINK; send our next request."""
    group.end_request(FlowKind.DELETE_LINK)
    group.send_next(now)


def answer_req_add_link(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send a REQ_ADD_LINK response without a link."""
    assert isinstance(message, llc.ReqAddLink)
    group.send(llc.ReqAddLink(response=True))


def store_rtoken(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Note the buffer; send a CONFIRM_RKEY response, negative if there is no room."""
    assert isinstance(message, llc.ConfirmRkey)
    stored = group.rtokens.add(message.rkey, message.vaddr)
    group.send(replace(message, response=True, negative=not stored, retry=not stored))


def refuse_rtoken(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send a negative CONFIRM_RKEY response."""
    assert isinstance(message, llc.ConfirmRkey)
    group.send(replace(message, response=True, negative=True, retry=True))


def answer_rkey_cont(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send a CONFIRM_RKEY_CONT response; its entries are for links that we have not."""
    assert isinstance(message, llc.ConfirmRkeyCont)
    group.send(replace(message, response=True))


def end_confirm_rkey(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """End our CONFIRM_RKEY, if it is for that rkey; tell the handshake; send our next request."""
    assert isinstance(message, llc.ConfirmRkey)
    current = group.flows.current
    if current is not None and current.rmb is not None and current.rmb.rkey != message.rkey:
        group.ignored += 1
        return
    flow = group.end_request(FlowKind.CONFIRM_RKEY)
    if flow is not None:
        group.finish(flow, accepted=not message.negative)
    group.send_next(now)


def forget_rtokens(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Forget the buffers; send a DELETE_RKEY response, negative if one was unknown."""
    assert isinstance(message, llc.DeleteRkey)
    answer = message.answered(group.rtokens.remove(message.rkeys))
    group.send(replace(answer, rkeys=answer.rkeys[:SHORT]))


def end_delete_rkey(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """End our DELETE_RKEY, whatever the answer; keep or close the buffer; send our next request."""
    flow = group.end_request(FlowKind.DELETE_RKEY)
    if flow is not None:
        group.finish(flow, accepted=True)
    group.send_next(now)


def give_up_request(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """End our request as refused, and let nobody else join if it was CONFIRM_RKEY; send our next one."""
    flow = group.flows.end()
    group.finish(flow, accepted=False)
    if flow.kind is FlowKind.CONFIRM_RKEY and group.role is Role.SERVER:
        # A client that started anew looks the same, and has no such link: TEST_LINK finds that out, but not soon.
        group.joinable = False
    group.send_next(now)


def answer_delete_link(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send a DELETE_LINK response, reason 0."""
    assert isinstance(message, llc.DeleteLink)
    group.send(replace(message, response=True, reason=0))


def answer_unknown_link(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send a DELETE_LINK response, reason 00100000."""
    assert isinstance(message, llc.DeleteLink)
    group.send(replace(message, response=True, reason=llc.DELETE_UNKNOWN_LINK))


def request_it_back(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send the same DELETE_LINK request back, and await its response for 2 s."""
    assert isinstance(message, llc.DeleteLink)
    group.send(message)
    group.closes_at = now + LINGER


def delete_all(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send DELETE_LINK for all links, orderly."""
    group.delete_all(llc.DELETE_PROGRAM, orderly=True)


def delete_all_lost(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Send DELETE_LINK for all links."""
    group.delete_all(llc.DELETE_LOST_PATH, orderly=False)


def linger(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Await the peer's for 2 s."""
    group.closes_at = now + LINGER


def drain(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Close the link 0.5 s later."""
    due = now + DRAIN
    group.closes_at = due if group.closes_at is None else min(group.closes_at, due)


def lose(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Tell all handshakes that the group is lost."""
    group.tell(GroupLost())
    group.settle()
    group.idle_at = None


def close(group: LinkGroup, message: llc.Message | None, now: float) -> None:
    """Close the link and its buffers."""
    group.close()


# -- the tables -----------------------------------------------------------------------------------------------------

FORMING, ACTIVE, ENDING, ENDED = GroupState
"""In the order of a group's life."""


def _serving(state: GroupState) -> dict[tuple[GroupState, LlcInput], Row]:
    """What every group does that may send, in either role."""
    serve = {
        LlcInput.ADD_LINK_REQUEST: Row(state, (reject_add_link,)),
        LlcInput.ADD_LINK_REJECTED: Row(state, (end_add_link,)),
        LlcInput.ADD_LINK_ACCEPTED: Row(state, (undo_add_link,)),
        LlcInput.REQ_ADD_LINK_REQUEST: Row(state, (answer_req_add_link,)),
        LlcInput.CONFIRM_RKEY_REQUEST: Row(state, (refuse_rtoken if state is ENDING else store_rtoken,)),
        LlcInput.CONFIRM_RKEY_RESPONSE: Row(state, (end_confirm_rkey,)),
        LlcInput.CONFIRM_RKEY_CONT_REQUEST: Row(state, (answer_rkey_cont,)),
        LlcInput.DELETE_RKEY_REQUEST: Row(state, (forget_rtokens,)),
        LlcInput.DELETE_RKEY_RESPONSE: Row(state, (end_delete_rkey,)),
        LlcInput.DELETE_LINK_RESPONSE: Row(state, (end_delete_link,)),
        LlcInput.RESPONSE_OVERDUE: Row(state, (give_up_request,)),
        LlcInput.DELETE_LINK_UNKNOWN: Row(state, (answer_unknown_link,)),
        LlcInput.DELETE_LINK_ALL: Row(ENDING, (drain,) if state is ENDING else (lose, delete_all, drain)),
        LlcInput.OUT_OF_SYNC: Row(ENDING, (drain,) if state is ENDING else (lose, delete_all_lost, drain)),
    }
    return {(state, what): row for what, row in serve.items()}


def _table(role: Role) -> dict[tuple[GroupState, LlcInput], Row]:
    rows = {(state, what): Row(state, (ignore,)) for state in GroupState for what in LlcInput}
    for state in (ACTIVE, ENDING):
        rows.update(_serving(state))
    for state in (FORMING, ACTIVE, ENDING):
        rows[state, LlcInput.LINK_DOWN] = Row(ENDED, (close,) if state is ENDING else (lose, close))
    rows[ACTIVE, LlcInput.IDLE] = Row(ENDING, (lose, delete_all, linger))
    rows[ENDING, LlcInput.CLOSE_DUE] = Row(ENDED, (close,))
    if role is Role.SERVER:
        # A server that is asked has sent CONFIRM_LINK, so it may send, and its client may be a little ahead.
        rows.update(_serving(FORMING))
        rows[FORMING, LlcInput.CONFIRM_LINK_RESPONSE] = Row(FORMING, (tell_confirm_link,))
        for state in (FORMING, ACTIVE):
            rows[state, LlcInput.DELETE_LINK_OURS] = Row(ENDING, (lose, request_it_back))
        rows[ENDING, LlcInput.DELETE_LINK_OURS] = Row(ENDING, (request_it_back,))
        rows[ENDING, LlcInput.DELETE_LINK_RESPONSE] = Row(ENDED, (close,))
    else:
        # A client that is forming may not send before CONFIRM_LINK, and no server asks for anything else before.
        rows[FORMING, LlcInput.CONFIRM_LINK_REQUEST] = Row(FORMING, (tell_confirm_link,))
        rows[ACTIVE, LlcInput.CONFIRM_LINK_REQUEST] = Row(ACTIVE, (repeat_confirm_link,))
        for what in (LlcInput.DELETE_LINK_ALL, LlcInput.DELETE_LINK_OURS):
            rows[FORMING, what] = Row(ENDED, (lose, close))
        rows[ACTIVE, LlcInput.DELETE_LINK_OURS] = Row(ENDING, (lose, answer_delete_link, drain))
        rows[ENDING, LlcInput.DELETE_LINK_OURS] = Row(ENDING, (answer_delete_link, drain))
    rows[FORMING, LlcInput.OUT_OF_SYNC] = Row(ENDED, (lose, close))
    return rows


TABLES: Mapping[Role, Mapping[tuple[GroupState, LlcInput], Row]] = {role: _table(role) for role in Role}
