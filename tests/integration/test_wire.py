# SPDX-License-Identifier: MIT OR Apache-2.0
"""The wire is as documented: an independent implementation and ours understand each other, on every link."""

from __future__ import annotations

import os

import pytest
import rawpeer as rp
from rawpeer import StreamPeer
from rawwire import Hello
from scene import LINKS, advert_came
from victim import Victim

from exs import esapi


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("active", [False, True], ids=["passive", "active"])
def test_second_implementation_talks_to_ours(stream: Victim, link: str, active: bool) -> None:
    if active:
        fd, agreed = stream.connect(LINKS[link].accept, LINKS[link].listener)
    else:
        fd, agreed = stream.accept(LINKS[link].connect)
    peer = stream.during(lambda: StreamPeer(agreed, active=not active))
    there, back = os.urandom(150_000), os.urandom(100_000)
    room = bytearray(len(there))
    stream.recv(fd, room, "ring", esapi.MSG_WAITALL)
    stream.during(lambda: peer.send(there))
    stream.expect("ring")
    assert room == there
    stream.send(fd, back, "send")
    assert stream.during(lambda: peer.receive(len(back))) == back
    stream.expect("send")
    # Now directly, both ways.
    stream.during(lambda: peer.post(len(back)))
    stream.during(lambda: peer.send(b"m"))
    stream.marked(fd)  # the advertisement came before it
    stream.send(fd, back, "direct send")
    assert stream.during(peer.receive_direct) == back
    room[:] = bytes(len(room))
    stream.recv(fd, room, "direct", esapi.MSG_WAITALL)
    stream.until(lambda: stream.during(lambda: advert_came(peer)))
    stream.during(lambda: peer.send(there))
    event = stream.expect("direct")
    assert event.exs_evt_union.exs_evt_flags & event.exs_evt_union.exs_evt_flags.EXS_XF_DIRECT
    assert room == there
    stream.during(lambda: peer.fin(peer.sent))
    stream.close(fd)
    stream.during(peer.await_fin_ack)
    peer.close()


@pytest.mark.parametrize("link", LINKS)
def test_second_implementation_exchanges_messages(messages: Victim, link: str) -> None:
    fd, agreed = messages.accept(lambda to: LINKS[link].connect(to, Hello.for_messages()))
    peer = messages.during(lambda: rp.MessagePeer(agreed))
    rooms = [bytearray(3000) for _ in range(3)]
    for i, room in enumerate(rooms):
        messages.recv(fd, room, f"recv {i}")
    messages.during(lambda: (peer.send(b"a" * 3000), peer.send(b""), peer.send(b"b" * 5000)))
    assert messages.expect("recv 0").exs_evt_union.exs_evt_length == 3000
    assert messages.expect("recv 1").exs_evt_union.exs_evt_length == 0
    cut = messages.expect("recv 2").exs_evt_union
    assert cut.exs_evt_flags & cut.exs_evt_flags.MSG_TRUNC
    assert (cut.exs_evt_length, cut.exs_evt_full_length) == (3000, 5000)
    messages.during(lambda: peer.post(100))
    messages.send(fd, b"c" * 70, "send")
    assert messages.during(peer.receive) == b"c" * 70
    messages.expect("send")
    messages.during(lambda: peer.fin(peer.sent))
    messages.close(fd)
    peer.close()
