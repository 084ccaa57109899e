# SPDX-License-Identifier: MIT OR Apache-2.0
"""The words in which the tables of the handshakes are written: states, inputs, and what a side brings along.

Owns these, and the diagnosis code of each native call that can fail.  Invariant: nothing here decides what is done;
the tables do.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass

from exs.smc import actions as a
from exs.smc import clc

__all__ = ["ENDS", "Input", "Local", "Refusal", "State", "code_for"]


class State(enum.Enum):
    """Where a handshake is."""

    START = "start"
    WAIT_PROPOSAL = "wait for PROPOSAL"
    WAIT_GROUP = "wait for a first contact"
    """Server: another connection of the same client forms the group that this one will join."""
    WAIT_ACCEPT = "wait for ACCEPT"
    MAKING = "making a link"
    """First contact: the link and the buffer are being made."""
    JOINING = "joining a group"
    """Subsequent contact: the buffer is being made."""
    WAIT_RKEY = "wait for CONFIRM_RKEY response"
    WAIT_CONFIRM = "wait for CONFIRM"
    WAIT_CONFIRM_LINK = "wait for CONFIRM_LINK"
    """The request at a client, the response at a server."""
    WAIT_ADD_LINK = "wait for ADD_LINK"
    """Client: what shows that the server has our CONFIRM_LINK response, hence will not decline any more."""
    OPEN = "open"
    TCP = "plain TCP"
    FAILED = "failed"


ENDS = (State.OPEN, State.TCP, State.FAILED)


class Input(enum.Enum):
    """What an event means to a handshake, after one look at its contents and at the link groups."""

    START = "start"
    PROPOSAL_FIRST = "PROPOSAL, no group"
    PROPOSAL_JOIN = "PROPOSAL, group with room"
    PROPOSAL_WAIT = "PROPOSAL, group forming"
    ACCEPT_FIRST = "ACCEPT, first contact"
    ACCEPT_JOIN = "ACCEPT, group and link known"
    ACCEPT_UNKNOWN_GROUP = "ACCEPT, group unknown"
    ACCEPT_UNKNOWN_LINK = "ACCEPT, link unknown"
    CONFIRM_FIRST = "CONFIRM, first contact"
    CONFIRM_JOIN = "CONFIRM, in a group"
    DECLINE = "DECLINE"
    DECLINE_OUT_OF_SYNC = "DECLINE, out of sync"
    UNABLE = "SMC-R impossible"
    """A message that cannot be gone along with, or a native call that failed; the code says which."""
    WRONG_CLC = "wrong CLC message"
    NOT_CLC = "payload"
    EOF = "TCP ended"
    SEND_FAILED = "TCP write failed"
    LINK_MADE = "link made"
    RMB_MADE = "buffer made"
    LINK_CONFIRMED = "CONFIRM_LINK"
    EYECATCHERS = "CONFIRM_LINK, eyecatchers in buffers"
    ADD_LINK = "ADD_LINK"
    RKEY_ACCEPTED = "CONFIRM_RKEY response"
    RKEY_REFUSED = "CONFIRM_RKEY refused or unanswered"
    GROUP_SETTLED = "first contact over"
    GROUP_LOST = "group lost"
    REPEAT = "no answer yet"
    """Server: time to send CONFIRM_LINK again."""
    TIMEOUT = "time out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What this side brings to a handshake, found out before it starts."""

    unable: int = 0
    """Diagnosis code of why there is no SMC-R on this connection at all; 0 if there is."""
    eids: tuple[str, ...] = ()
    """UEIDs in order of preference, without padding; none: no version 2."""
    gid: bytes | None = None
    """RoCEv2 GID on the interface of the TCP connection; ``None``: no version 2."""
    gid_v1: bytes | None = None
    """RoCEv1 GID there; ``None``: no version 1."""
    mac: bytes = bytes(6)
    """Of the port that has these GIDs."""
    subnet: tuple[bytes, int] = (bytes(4), 0)
    """IPv4 network address and prefix length there, for version 1."""
    prefixes: tuple[clc.Prefix, ...] = ()
    """IPv6 prefixes there, for version 1."""
    size_code: int = 2
    """Size of the receive buffer: 16 KiB << size_code."""
    direct: bool = True
    """The peer is on the same subnet."""
    host: str = ""
    """Name of this host, at most 32 characters of ASCII."""

    @property
    def versions(self) -> frozenset[int]:
        """Versions of SMC-R that can be offered."""
        if self.unable:
            return frozenset()
        two = self.gid is not None and bool(self.eids)
        return frozenset({1} if self.gid_v1 is not None else ()) | frozenset({2} if two else ())


class Refusal(Exception):
    """SMC-R is impossible on this connection.

    Args:
        code: For the DECLINE.
    """

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def code_for(action: a.Action, number: int) -> int:
    """The diagnosis code for an action that failed with this errno."""
    if abs(number) == errno.ENOMEM:
        return clc.DECLINE_MEMORY
    match action:
        case a.NewLink() | a.ToRtr() if abs(number) in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return clc.DECLINE_NO_ROUTE
        case a.NewLink() if abs(number) in (errno.EOPNOTSUPP, errno.ENODEV):
            return clc.DECLINE_NO_SMCR_DEVICE
        case a.NewLink() | a.ToRtr() | a.ToRts() | a.ActivateLink():
            return clc.DECLINE_QP
        case a.NewRmb():
            return clc.DECLINE_REGISTRATION
        case a.SendLlc():
            return clc.DECLINE_NO_LINK
        case _:
            return clc.DECLINE_INTERNAL
