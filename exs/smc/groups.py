# SPDX-License-Identifier: MIT OR Apache-2.0
"""All link groups of a process: which one a connection joins, and which link a message came on.

Owns the table of groups and the alert tokens.  Knows neither the clock nor randomness: both are given.  Invariants: a
token is never 0 and belongs to at most one connection of the process; a group is in the table from the making of its
link to its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exs.errors import RemoteProtocolError
from exs.smc import llc, llc_service
from exs.smc.link_group import GroupState, LinkGroup, PeerKey, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from exs.smc.actions import Action, LinkAddress, Listener
    from exs.smc.link_group import Slot

__all__ = ["Found", "LinkGroups", "make_peer_id"]

_REQ_ADD_LINK = 0x20 | llc.ReqAddLink.KIND
"""First byte of the request; the fourth is 0 in it."""


def make_peer_id(instance: bytes, mac: bytes) -> bytes:
    """The peer id of one process.

    Two processes of one host need different ones: a Linux server keys its groups on peer id and GID, so it would take
    a connection of the second one into a group of the first, and name a queue pair that the second does not own.

    Args:
        instance: 2 random bytes, not both zero; the kernel's own stack has its own.
        mac: Of a RoCE port.

    Raises:
        ValueError: A length is wrong, or ``instance`` is zero.
    """
    if len(instance) != 2 or len(mac) != 6 or instance == bytes(2):
        raise ValueError("a peer id is made of 2 random bytes that are not zero, and a MAC address of 6")
    return instance + mac


@dataclass(frozen=True, slots=True)
class Found:
    """What a client knows of the group that an ACCEPT names."""

    group: LinkGroup | None
    known: bool
    """There is a group with that server, though not necessarily with that link."""


class LinkGroups:
    """The groups of a process, in both roles.

    Every method that takes ``now`` returns the actions that follow, in order.

    Args:
        peer_id: Our own, from :func:`make_peer_id`.
        tokens: Gives 32 random bits with each call.
    """

    def __init__(self, *, peer_id: bytes, tokens: Callable[[], int]) -> None:
        self.peer_id = peer_id
        self._tokens = tokens
        self._by_link: dict[int, LinkGroup] = {}
        self._by_peer: dict[tuple[Role, int, bytes], list[LinkGroup]] = {}
        self._serial = 0
        self._handshakes = 0

    def __len__(self) -> int:
        return len(self._by_link)

    def __iter__(self) -> Iterator[LinkGroup]:
        return iter(list(self._by_link.values()))

    # -- for handshakes ---------------------------------------------------------------------------------------------

    def number_handshake(self) -> int:
        """A number for a handshake that begins, for logs."""
        self._handshakes += 1
        return self._handshakes

    def form(self, *, role: Role, version: int, peer: PeerKey, link: int, address: LinkAddress) -> LinkGroup:
        """A first contact begins: the group that its link makes."""
        self._serial += 1
        group = LinkGroup(serial=self._serial, role=role, version=version, peer=peer, link=link, address=address)
        self._by_link[link] = group
        self._by_peer.setdefault((role, version, peer.peer_id), []).append(group)
        return group

    def take(self, group: LinkGroup, listener: Listener) -> Slot:
        """A place in a group, under a token that no other connection of the process has."""
        token = 0
        while token == 0 or any(token in g.slots for g in self._by_link.values()):
            token = self._tokens() & 0xFFFFFFFF
        return group.take(token, listener)

    def release(self, group: LinkGroup, slot: Slot, now: float, *, founder: bool) -> list[Action]:
        """A handshake ended without a connection; see :meth:`LinkGroup.release`."""
        return self._swept(group, group.release(slot, now, founder=founder))

    def out_of_sync(self, group: LinkGroup, now: float) -> list[Action]:
        """A client does not know this group."""
        return self._swept(group, llc_service.out_of_sync(group, now))

    def for_proposal(self, version: int, peer: PeerKey) -> LinkGroup | None:
        """The group that a client's connection joins at the server, if one has room."""
        return next((g for g in self._of(Role.SERVER, version, peer) if g.room), None)

    def forming(self, version: int, peer: PeerKey) -> LinkGroup | None:
        """A first contact with this client that is under way at the server."""
        return next((g for g in self._of(Role.SERVER, version, peer) if g.state is GroupState.FORMING), None)

    def for_accept(self, version: int, peer: PeerKey, qpn: int) -> Found:
        """The group and link that a server's ACCEPT without first contact names."""
        known = [g for g in self._by_peer.get((Role.CLIENT, version, peer.peer_id), ()) if g.state is GroupState.ACTIVE]
        for group in known:
            address = group.peer_address
            if address is not None and address.qpn == qpn and group.peer.matches(peer, version):
                return Found(group, known=True)
        return Found(None, known=bool(known))

    # -- for whoever does the I/O -----------------------------------------------------------------------------------

    @property
    def deadline(self) -> float | None:
        """When :meth:`timeout` is to be called, in the seconds of ``now``."""
        return min((d for g in self._by_link.values() if (d := g.deadline) is not None), default=None)

    def receive(self, link: int, data: bytes, *, now: float) -> list[Action]:
        """Serve one LLC message; what is none is counted and ignored.

        Args:
            link: Handle of the link that it came on.
            data: The message as received.
            now: Seconds, from a clock that never goes back.
        """
        group = self._by_link.get(link)
        if group is None:
            return []
        order = llc.is_big_endian(data)
        if order is not None:
            group.big_endian = order
        try:
            message = llc.decode(data)
        except RemoteProtocolError:
            if data[0] != _REQ_ADD_LINK or data[3]:
                group.ignored += 1
                return []
            message = llc.ReqAddLink()  # its GIDs do not matter, but its sender waits until it is answered
        return self._swept(group, llc_service.receive(group, message, now))

    def connection_done(self, link: int, token: int, *, now: float, clean: bool = True) -> list[Action]:
        """A connection has ended on both sides (a notice of C)."""
        group = self._by_link.get(link)
        return [] if group is None else group.connection_done(token, now, clean=clean)

    def link_down(self, link: int, *, now: float) -> list[Action]:
        """A link has failed (a notice of C), or an action on it did."""
        group = self._by_link.get(link)
        return [] if group is None else self._swept(group, llc_service.link_down(group, now))

    def timeout(self, *, now: float) -> list[Action]:
        """Do what is due."""
        return [action for group in self for action in self._swept(group, llc_service.timeout(group, now))]

    def wind_down(self, *, now: float) -> list[Action]:
        """The process is about to end: no group takes new connections, and each ends soon after its last one."""
        return [action for group in self for action in group.wind_down(now)]

    # -- private ----------------------------------------------------------------------------------------------------

    def _of(self, role: Role, version: int, peer: PeerKey) -> list[LinkGroup]:
        groups = self._by_peer.get((role, version, peer.peer_id), ())
        return [g for g in groups if g.peer.matches(peer, version)]

    def _swept(self, group: LinkGroup, actions: list[Action]) -> list[Action]:
        """Forget the group if it has ended."""
        if group.state is GroupState.ENDED and self._by_link.pop(group.link, None) is not None:
            key = (group.role, group.version, group.peer.peer_id)
            self._by_peer[key].remove(group)
            if not self._by_peer[key]:
                del self._by_peer[key]
        return actions
