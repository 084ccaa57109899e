# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the machines of SMC-R ask for, and what they are told: values only.

Owns the actions (each is one native call, one message on TCP, or the end of a handshake) and the events that
a handshake is fed.  Knows neither sockets nor clocks.  Invariant: actions are performed in the order of their list,
and behind the first one that fails only the releases (:data:`RELEASES`), which cannot fail: what is gone already is
released.  The machine that gave the list is told by :class:`ActionFailed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from exs.errors import Error
    from exs.smc import clc, llc

__all__ = [
    "RELEASES",
    "Action",
    "ActionFailed",
    "ActivateLink",
    "AddLinkCame",
    "ClcBroken",
    "ClcReceived",
    "CloseLink",
    "CloseRmb",
    "DropConnection",
    "Eof",
    "Event",
    "Fail",
    "Fallback",
    "GroupLost",
    "GroupSettled",
    "LinkAddress",
    "LinkConfirm",
    "LinkMade",
    "Listener",
    "NewConnection",
    "NewLink",
    "NewRmb",
    "NotClc",
    "OpenConnection",
    "RkeyAnswer",
    "RmbMade",
    "SendClc",
    "SendLlc",
    "Start",
    "Tell",
    "Timeout",
    "ToRtr",
    "ToRts",
]


class Listener(Protocol):
    """A handshake, as its link group sees it."""

    def receive(self, event: Event, *, now: float) -> list[Action]:
        """Take one event and say what is to be done."""
        ...


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """Where one end of a link is, as CLC and LLC tell it."""

    gid: bytes
    """16 bytes; ``::ffff:a.b.c.d`` for version 2."""
    mac: bytes
    """6 bytes."""
    mtu_code: int
    """1 to 5: 256 to 4096 bytes."""
    qpn: int
    psn: int


# -- native calls: exsi_smc_link_* ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewLink:
    """``link_new`` and ``link_address``; answered by :class:`LinkMade`.  Its LLC service starts with it."""

    gid: bytes
    """The own GID, which PROPOSAL, CLC and the queue pair share."""


@dataclass(frozen=True, slots=True)
class ToRtr:
    """``link_to_rtr``: receives are posted, and the queue pair knows its peer."""

    link: int
    peer: LinkAddress
    """With the smaller of both MTU codes."""


@dataclass(frozen=True, slots=True)
class ToRts:
    """``link_to_rts``: from now on messages may be sent."""

    link: int


@dataclass(frozen=True, slots=True)
class ActivateLink:
    """``link_active``: the link is confirmed, and C watches it by TEST_LINK."""

    link: int
    version: int
    interval_ms: int
    timeout_ms: int


@dataclass(frozen=True, slots=True)
class SendLlc:
    """``llc_send`` of one message."""

    link: int
    message: llc.Message
    big_endian: bool = False
    """The peer writes the lengths of its version 2 messages so, hence we do too."""

    def encode(self) -> bytes:
        """The bytes to send."""
        return self.message.encode(big_endian=self.big_endian)


@dataclass(frozen=True, slots=True)
class CloseLink:
    """``link_close``: the queue pair ends, and each connection that is left on it with ECONNABORTED."""

    link: int


# -- native calls: exsi_smc_rmb_*, exsi_smc_connection_* ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewRmb:
    """``rmb_new``; answered by :class:`RmbMade`."""

    link: int
    size_code: int
    """16 KiB << size_code."""


@dataclass(frozen=True, slots=True)
class CloseRmb:
    """``rmb_close``, once nothing uses it any more."""

    rmb: int


@dataclass(frozen=True, slots=True)
class NewConnection:
    """``connection_new``: before the peer learns the token, since its first CDC may come before we are open."""

    link: int
    rmb: int
    token: int


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """``connection_open``: the handshake is over, and the connection carries data.  Always the last of its list."""

    token: int
    """The own alert token, given with :class:`NewConnection`."""
    peer_rkey: int
    peer_vaddr: int
    """First byte of the peer's element, its index reckoned in."""
    peer_size: int
    """Bytes."""
    peer_token: int


@dataclass(frozen=True, slots=True)
class DropConnection:
    """``socket_close`` of a connection that was never open."""

    token: int


# -- TCP, and the end of a handshake --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SendClc:
    """Write one CLC message to TCP, whole."""

    message: clc.Message


@dataclass(frozen=True, slots=True)
class Fallback:
    """The handshake is over: the TCP connection carries the payload from here.  Always the last of its list."""

    reason: int
    """Diagnosis code of the DECLINE, of ours or of the peer's; 0 where the peer speaks plain TCP."""
    by_peer: bool
    """The peer decided."""
    payload: bytes = b""
    """Read already, and the application's."""
    crossing: frozenset[int] = frozenset()
    """CLC types of which one message each may still come before the payload, for a ``CrossingFilter``."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The handshake is over, and the TCP connection is to be closed.  Always the last of its list."""

    error: Error


@dataclass(frozen=True, slots=True)
class Tell:
    """Feed this event to that handshake, behind what its task is doing."""

    handshake: Listener = field(repr=False)
    event: Event


Action = (
    NewLink
    | ToRtr
    | ToRts
    | ActivateLink
    | SendLlc
    | CloseLink
    | NewRmb
    | CloseRmb
    | NewConnection
    | OpenConnection
    | DropConnection
    | SendClc
    | Fallback
    | Fail
    | Tell
)

RELEASES = (CloseLink, CloseRmb, DropConnection)


# -- events: from whoever does the I/O ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """The TCP connection is there, and both SYNs carried the option."""


@dataclass(frozen=True, slots=True)
class ClcReceived:
    """One CLC message came."""

    message: clc.Message


@dataclass(frozen=True, slots=True)
class NotClc:
    """The first bytes are no CLC message."""

    data: bytes


@dataclass(frozen=True, slots=True)
class ClcBroken:
    """Bytes with an eyecatcher that make no message."""

    error: Error


@dataclass(frozen=True, slots=True)
class Eof:
    """The peer ended or reset the TCP connection."""

    data: bytes = b""
    """What came before that, too little for a message."""


@dataclass(frozen=True, slots=True)
class Timeout:
    """The deadline of the machine has passed."""


@dataclass(frozen=True, slots=True)
class LinkMade:
    """Answer to :class:`NewLink`."""

    link: int
    address: LinkAddress


@dataclass(frozen=True, slots=True)
class RmbMade:
    """Answer to :class:`NewRmb`, or a buffer that the group had in stock."""

    rmb: int
    rkey: int
    vaddr: int
    size_code: int


@dataclass(frozen=True, slots=True)
class ActionFailed:
    """An action failed, and those behind it in its list were not performed."""

    action: Action
    errno: int


# -- events: from the link group ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkConfirm:
    """CONFIRM_LINK came: the request to a client, the response to a server."""

    message: llc.ConfirmLink


@dataclass(frozen=True, slots=True)
class AddLinkCame:
    """ADD_LINK came, and was refused: so the server has seen our CONFIRM_LINK."""


@dataclass(frozen=True, slots=True)
class RkeyAnswer:
    """How our CONFIRM_RKEY ended."""

    accepted: bool


@dataclass(frozen=True, slots=True)
class GroupSettled:
    """The first contact that this handshake waits for is over, well or not."""


@dataclass(frozen=True, slots=True)
class GroupLost:
    """The link group of this handshake has ended."""


Event = (
    Start
    | ClcReceived
    | NotClc
    | ClcBroken
    | Eof
    | Timeout
    | LinkMade
    | RmbMade
    | ActionFailed
    | LinkConfirm
    | AddLinkCame
    | RkeyAnswer
    | GroupSettled
    | GroupLost
)
