# SPDX-License-Identifier: MIT OR Apache-2.0
"""Peers that break iWARP itself, on path tcp: what they are told, and random damage to good traffic."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct

import pytest
import rawpeer as rp
import rawwire as rw
from rawpeer import StreamPeer, TcpLink
from rawwire import Control, Frame, Hello, Terminated, word
from scene import BUFFER, FILL, GUARD, Attack, Scene, judge, scene, stage
from victim import Victim

from exs import esapi


def hdr(**fields: object) -> Attack:
    """A SEND whose header says something else."""

    def act(s: Scene) -> None:
        assert isinstance(s.link, TcpLink)
        given = {"msn": s.link.msn, "data": Control(rw.ACK).encode()} | fields
        s.link.raw(s.link.fpdu(s.link.untagged(**given)))  # type: ignore[arg-type]

    return act


def tagged(**fields: object) -> Attack:
    def act(s: Scene) -> None:
        assert isinstance(s.link, TcpLink)
        given: dict[str, object] = {"stag": s.ring.ring_rkey, "to": s.ring.ring_addr, "data": b"\xee" * 64} | fields
        s.link.raw(s.link.fpdu(s.link.tagged(**given)))  # type: ignore[arg-type]

    return act


def raw(data: bytes) -> Attack:
    return lambda s: s.link.raw(data)  # type: ignore[union-attr]


MPA, DDP, RDMAP = 2, 1, 0
# What the peer must read in the Terminate: layer, type, code (RFC 5040 §4.8, RFC 5041 §7, RFC 5044 §8).
IWARP: dict[str, tuple[Attack, tuple[int, int, int] | None]] = {
    "DDP version 0": (hdr(ddp=0), (DDP, 2, 6)),
    "DDP version 2, tagged": (tagged(ddp=2), (DDP, 1, 4)),
    "RDMAP version 0": (hdr(rdmap=0), (RDMAP, 2, 5)),
    "opcode 9": (hdr(opcode=9), (RDMAP, 2, 6)),
    "read request": (
        hdr(opcode=rw.READ_REQUEST, qn=1, msn=1, data=struct.pack(">IQIIQ", 9, 0, 16, 9, 0)),
        (RDMAP, 2, 6),
    ),
    "read response": (tagged(opcode=rw.READ_RESPONSE), (RDMAP, 2, 6)),
    "tagged SEND": (tagged(opcode=rw.SEND), (RDMAP, 2, 6)),
    "untagged WRITE": (hdr(opcode=rw.WRITE), (RDMAP, 2, 6)),
    "SEND that invalidates": (hdr(opcode=rw.SEND_INVALIDATE, stag=9), (RDMAP, 2, 9)),
    "SEND to queue 5": (hdr(qn=5), (DDP, 2, 1)),
    "SEND to the queue of Terminates": (hdr(qn=2), (DDP, 2, 1)),
    "message number skipped": (hdr(msn=77), (DDP, 2, 3)),
    "message offset out of order": (hdr(mo=8), (DDP, 2, 4)),
    "SEND that is too long": (hdr(data=bytes(400)), (DDP, 2, 5)),
    "invalid key": (tagged(stag=0xDEAD0000), (DDP, 1, 0)),
    "out of bounds": (tagged(to=5), (DDP, 1, 1)),
    "offset wraps": (tagged(to=(1 << 64) - 8), (DDP, 1, 3)),
    "FPDU shorter than its header": (raw(struct.pack(">HBB", 5, 0x41, 0x43) + bytes(40)), (MPA, 0, 3)),
    "zeros": (raw(bytes(4096)), None),
    "ones": (raw(b"\xff" * 4096), None),
    "http": (raw(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" + b"x" * 100), None),
    "set-up again": (raw(Frame(private=Hello().encode()).encode()), None),
}


@pytest.mark.parametrize("attack", IWARP)
def test_iwarp_violation_is_told_by_terminate(stream: Victim, attack: str) -> None:
    s = scene(stream, "tcp", False)
    act, code = IWARP[attack]
    stream.during(lambda: act(s))
    verdict = judge(s, errno.EPROTO)
    assert isinstance(verdict, Terminated), verdict
    if code is not None:
        assert (verdict.layer, verdict.etype, verdict.code) == code


@pytest.mark.parametrize("bad", ["send", "write"])
def test_checksum_that_is_wrong(stream: Victim, bad: str) -> None:
    """No completion before the checksum was right."""
    fd, agreed = stream.accept(lambda to: rp.connect(to, crc=True))
    s = stage(stream, fd, agreed, active=False)
    link = s.link
    assert isinstance(link, TcpLink)
    if bad == "send":
        stream.during(lambda: link.raw(link.fpdu(link.untagged(link.msn, word(1, 10)), crc=1)))
    else:
        stream.during(lambda: link.raw(link.fpdu(link.tagged(s.advert.rkey, s.advert.addr, b"q" * 1000), crc=1)))
    verdict = judge(s, errno.EPROTO)
    assert isinstance(verdict, Terminated)
    assert (verdict.layer, verdict.code) == (MPA, 2)
    assert stream.events["recv"].exs_evt_union.exs_evt_length == 0


@pytest.mark.parametrize("code", [(RDMAP, 1, 0), (RDMAP, 0, 0), (DDP, 1, 1), (MPA, 0, 2), (15, 15, 255)])
def test_terminate_from_the_peer(stream: Victim, code: tuple[int, int, int]) -> None:
    s = scene(stream, "tcp", False)
    link = s.link
    assert isinstance(link, TcpLink)
    payload = struct.pack(">BBH", code[0] << 4 | code[1], code[2], 0)
    stream.during(lambda: link.raw(link.fpdu(link.untagged(1, payload, qn=2, opcode=rw.TERMINATE))))
    judge(s, errno.ECONNRESET if code[1] == 0 and code[0] != MPA else errno.EPROTO)


@pytest.mark.parametrize("cut", [1, 2, 15, 17, 60])
def test_peer_that_closes_inside_of_an_fpdu(stream: Victim, cut: int) -> None:
    s = scene(stream, "tcp", False)
    link = s.link
    assert isinstance(link, TcpLink)
    whole = link.fpdu(link.untagged(link.msn, Control(rw.ACK).encode()))

    def act() -> None:
        link.raw(whole[:cut])
        link.sock.shutdown(socket.SHUT_WR)

    stream.during(act)
    judge(s, errno.ECONNRESET)


def test_slow_peer_byte_by_byte(stream: Victim) -> None:
    """Every split of headers, payload and trailer is the same stream."""
    fd, agreed = stream.accept(rp.connect)
    link = agreed.link
    assert isinstance(link, TcpLink)
    peer = stream.during(lambda: StreamPeer(agreed))
    room = bytearray(100)
    stream.recv(fd, room, "recv", esapi.MSG_WAITALL)
    data = os.urandom(100)
    fpdus = link.fpdu(link.tagged(peer.theirs.ring_rkey, peer.theirs.ring_addr, data[:37]))
    fpdus += link.fpdu(link.tagged(peer.theirs.ring_rkey, peer.theirs.ring_addr + 37, data[37:]))
    fpdus += link.fpdu(link.untagged(link.msn, word(1, 100)))

    def act() -> None:
        for i in range(len(fpdus)):
            link.raw(fpdus[i : i + 1])

    stream.during(act)
    stream.expect("recv")
    assert room == data
    link.close()


# --- anything at all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_random_damage(stream: Victim, seed: int) -> None:
    """A good stream of FPDUs in which some bytes were changed, or pieces cut out: always one event each."""
    rng = random.Random(seed)
    fd, agreed = stream.accept(lambda to: rp.connect(to, crc=seed % 3 == 0))
    s = stage(stream, fd, agreed, active=False)
    link = s.link
    assert isinstance(link, TcpLink)
    out = bytearray()
    link.raw = out.__iadd__  # type: ignore[method-assign, assignment]
    for i in range(6):
        n = rng.choice([1, 36, 200, 5000])
        link.write(s.advert.rkey, s.advert.addr + 100 * i, b"d" * n)
        link.send(word(0, n))
        link.send(Control(rng.choice([rw.ACK, rw.CREDIT, rw.PING, rw.REVOKE]), id=7).encode())
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(out))
        if rng.random() < 0.7:
            out[at] ^= 1 << rng.randrange(8)
        else:
            del out[at : at + rng.randrange(1, 40)]

    def act() -> None:
        try:
            link.sock.sendall(out)
            link.sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        link.verdict()

    stream.during(act)
    assert stream.until(lambda: stream.events.get("send")).exs_evt_errno in (errno.EPROTO, errno.ECONNRESET)
    stream.until(lambda: stream.events.get("recv"))
    assert s.memory[:GUARD] == bytes([FILL]) * GUARD
    assert s.memory[GUARD + BUFFER :] == bytes([FILL]) * GUARD
    s.peer.close()
    stream.close(fd)
    esapi.exs_mderegister(s.region)
