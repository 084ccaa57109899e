# SPDX-License-Identifier: MIT OR Apache-2.0
"""The choices that iWARP leaves on path tcp: checksums, and how FPDUs are cut for a peer that is not soft."""

from __future__ import annotations

import os
import socket

import pytest
import rawpeer as rp
import rawwire as rw
from rawpeer import StreamPeer, TcpLink
from victim import Victim

from exs import esapi


@pytest.mark.parametrize("asks", ["peer", "none"])
def test_checksums_on_the_wire(stream: Victim, asks: str) -> None:
    fd, agreed = stream.accept(lambda to: rp.connect(to, crc=asks == "peer"))
    assert isinstance(agreed.link, TcpLink)
    assert agreed.link.crc == (asks == "peer")
    peer = stream.during(lambda: StreamPeer(agreed))
    room = bytearray(5001)
    stream.recv(fd, room, "recv", esapi.MSG_WAITALL)
    data = os.urandom(5001)
    stream.during(lambda: peer.send(data))
    stream.expect("recv")
    assert room == data
    stream.send(fd, data, "send")
    assert stream.during(lambda: peer.receive(5001)) == data
    peer.close()


def test_peer_that_is_not_soft_gets_one_fpdu_per_segment(stream: Victim) -> None:
    fd, agreed = stream.accept(lambda to: rp.connect(to, soft=False))
    assert agreed.block is None, "a block for a peer that sent none"
    link = agreed.link
    assert isinstance(link, TcpLink)
    mss = link.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    peer = stream.during(lambda: StreamPeer(agreed))
    stream.during(lambda: peer.control(rw.PING, seq=7))
    lengths = []

    def watch() -> None:
        got = 0
        while got < 60_000:
            segment = link.segment()
            lengths.append(len(segment.payload))
            if segment.tagged:
                got += len(segment.payload)

    stream.send(fd, bytes(60_000), "send")
    stream.during(watch)
    assert max(lengths) + 20 <= mss
    assert max(lengths) > 400
    peer.close()
