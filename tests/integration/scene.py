# SPDX-License-Identifier: MIT OR Apache-2.0
"""An attacked connection, ready to be attacked, and the verdict on it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass

import ground
import pytest
import rawpeer as rp
import rawshm as rs
import verbslink
from rawpeer import Agreed, StreamPeer, TcpLink
from rawshm import ShmLink
from rawwire import Closed, Control, Hello, Terminated
from victim import Victim

from exs import esapi

FILL = 0xA5
BUFFER = 192 * 1024
GUARD = 4096
# What each link's module or object can: connect, listener, accept.
LINKS = {
    "": {"tcp": rp, "shm": rs},
    "soft/tcp": {"tcp": rp},
    "soft/shm": {"shm": rs},
    "verbs/rxe": {"rxe": verbslink.DEVICES["rxe"]},
    "verbs/siw": {"siw": verbslink.DEVICES["siw"]},
}[ground.DEVICE]
# Where a write with a key that has ended, or is another connection's, hits nothing: siw has no memory windows, so a key
# there is its region's and good on every connection, unless keys are strict.
KEYS_END = ground.DEVICE != "verbs/siw"
# Where a key covers no byte beside what was advertised: rxe looks at a window's key but not at its bounds.
KEYS_HAVE_BOUNDS = not ground.VERBS
# What ends a connection on which the device itself found fault: siw does not always say more than that it is over.
FAULT = (errno.EPROTO, errno.ECONNRESET) if ground.DEVICE == "verbs/siw" else (errno.EPROTO,)


@dataclass
class Scene:
    """An attacked connection: one receive is advertised, one send waits for room."""

    v: Victim
    fd: int
    peer: StreamPeer
    memory: bytearray
    advert: rp.Advert
    region: esapi.MHandle

    @property
    def link(self) -> TcpLink | ShmLink:
        return self.peer.link  # type: ignore[return-value]

    @property
    def ring(self) -> Hello:
        return self.peer.theirs

    def say(self, type_: int, **fields: int) -> None:
        self.link.send(Control(type_, **fields).encode())


Attack = Callable[[Scene], None]


def advert_came(peer: StreamPeer) -> bool:
    while not any(a.ind == peer.isent for a in peer.adverts):
        peer.step()
    return True


def scene(v: Victim, link: str, active: bool) -> Scene:
    if active:
        fd, agreed = v.connect(LINKS[link].accept, LINKS[link].listener)
    else:
        fd, agreed = v.accept(LINKS[link].connect)
    return stage(v, fd, agreed, active)


def stage(v: Victim, fd: int, agreed: Agreed, active: bool) -> Scene:
    peer = v.during(lambda: StreamPeer(agreed, active=not active))
    memory = bytearray([FILL]) * (BUFFER + 2 * GUARD)
    mh = esapi.exs_mregister(memory, esapi.EXS_ACCESS_WRITE)
    v.recv(fd, memoryview(memory)[GUARD : GUARD + BUFFER], "recv", esapi.MSG_WAITALL, mh)
    v.during(lambda: advert_came(peer))
    v.send(fd, bytes(4 << 20), "send")
    return Scene(v, fd, peer, memory, peer.adverts[0], mh)


def judge(s: Scene, *errors: int, fin: bool = False) -> Exception:
    """Both operations end with the error, the peer is told, and nothing was written where nothing may be."""
    verdict = s.v.during(s.link.verdict)
    error = s.v.expect("send", *errors).exs_evt_errno
    event = s.v.until(lambda: s.v.events.get("recv"))
    # What arrived before the violation counts, and the end of the stream too.
    arrived = event.exs_evt_union.exs_evt_length > 0 or fin
    assert event.exs_evt_errno == (0 if arrived else error)
    assert s.memory[:GUARD] == bytes([FILL]) * GUARD
    assert s.memory[GUARD + BUFFER :] == bytes([FILL]) * GUARD
    assert b"\xee" not in s.memory, "a refused write has landed"
    with pytest.raises(OSError) as refused:
        s.v.send(s.fd, b"more", "never")
    assert refused.value.errno == error
    s.v.close(s.fd)
    s.peer.close()
    esapi.exs_mderegister(s.region)  # its operation is over: it is not in use
    return verdict


def as_far_as_it_goes(attack: Attack, s: Scene) -> None:
    """It may be noticed before the end of the attack."""
    try:
        attack(s)
    except (Closed, Terminated):
        pass


def end_of(sock: socket.socket) -> bytes:
    """What comes until the other side has closed."""
    data = b""
    try:
        while got := sock.recv(65536):
            data += got
    except ConnectionError:
        pass
    return data
