# SPDX-License-Identifier: MIT OR Apache-2.0
"""An independent judge: what path tcp sends is iWARP in the eyes of tshark, to the last byte."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import rawpeer as rp
import rawwire as rw
from judge import (
    NOT_IN_RFC_5044,
    READ_REQUEST,
    READ_RESPONSE,
    REPLY,
    REQUEST,
    SEND,
    SEND_SE,
    TERMINATE,
    WRITE,
    Capture,
    Verdict,
    find_tshark,
    judge,
)
from otherprocess import Other
from rawpeer import TcpLink
from rawwire import Terminated
from victim import Victim

# Around the ends of an FPDU (65,521 bytes of a WRITE), of the padding, and of what is sent inline.
SIZES = [0, 1, 2, 3, 4, 5, 64, 100, 8192, 65520, 65521, 65522, 131042, 300_001, 3 << 20]
NOTICE = 4  # bytes of the SEND that follows each WRITE

PLAN = f"""
KIND = socket.SOCK_STREAM if sys.argv[3] == "stream" else socket.SOCK_SEQPACKET
STREAM = KIND == socket.SOCK_STREAM
SIZES = [n for n in {SIZES} if n or not STREAM]

def give(fd, n):
    send(fd, pattern(n))
    take().raise_for_errno()

def get(fd, n):
    room = bytearray(n)
    recv(fd, room, MSG_WAITALL if STREAM else 0)
    event = take()
    event.raise_for_errno()
    assert event.exs_evt_union.exs_evt_length == n, event
    assert room == pattern(n)

def end(fd):
    assert exs_getsockopt(fd, SOL_EXS, EXS_SO_PATH) in (b"tcp", "tcp")
    exs_close(fd, "close", q)
    take().raise_for_errno()
    say("good")
"""

SERVER = (
    PLAN
    + """
fd = serve_one()
for n in SIZES:
    get(fd, n)
    give(fd, n)
end(fd)
"""
)

CLIENT = (
    PLAN
    + """
fd = connect()
for n in SIZES:
    give(fd, n)
    get(fd, n)
end(fd)
"""
)


def run(*command: str) -> None:
    subprocess.run(command, capture_output=True, timeout=20, check=True)


@pytest.fixture
def namespace() -> Iterator[str]:
    find_tshark()
    name = f"exs-tshark-{os.getpid()}"
    try:
        run("ip", "netns", "add", name)
    except subprocess.CalledProcessError as problem:
        pytest.skip(f"needs root that may make network namespaces: {problem.stderr}")
    try:
        run("ip", "-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20, check=False)


def captured(namespace: str, file: Path, what: str, **env: str) -> Verdict:
    prefix = ["ip", "netns", "exec", namespace]
    env |= {"EXS_PATH": "tcp"}
    with Capture(file, namespace):
        with Other(SERVER, prefix=prefix, args=[what], **env) as server:
            port = int(server.hear())
            with Other(CLIENT, ("127.0.0.1", port), prefix=prefix, args=[what], **env) as client:
                for side in (client, server):
                    side.hear("good")
                    side.end()
    return judge(file, port)


@pytest.mark.parametrize("mtu", [1500, 65536])
@pytest.mark.parametrize("crc", ["yes", "no"])
@pytest.mark.parametrize("what", ["stream", "messages"])
def test_all_that_is_sent_is_iwarp(namespace: str, tmp_path: Path, what: str, crc: str, mtu: int) -> None:
    run("ip", "-n", namespace, "link", "set", "lo", "mtu", str(mtu))
    v = captured(namespace, tmp_path / "iwarp.pcapng", what, EXS_CRC=crc)
    assert v.complaints <= NOT_IN_RFC_5044
    sizes = [n for n in SIZES if n or what == "messages"]
    for way, frame in ((v.to_server, REQUEST), (v.to_client, REPLY)):
        assert way.set_up == [frame]
        assert (way.revision, way.markers, way.crc) == (2, False, crc == "yes")
        assert way.bad_length == 0
        assert way.decoded_bytes == way.tcp_bytes
        assert way.count(WRITE, SEND, SEND_SE) == len(way.fpdus)
        # Each byte is written once, in as few segments as the length field allows unless the ring was in the way,
        # and each message is announced by one SEND, also where there is nothing to write.
        assert way.payload(WRITE) == sum(sizes)
        notices = [f for f in way.fpdus if f.opcode == SEND and f.payload == NOTICE]
        if what == "messages":
            assert way.messages(WRITE) == sum(1 for n in sizes if n)
            assert way.count(WRITE) == sum(-(-n // 65521) for n in sizes)
            assert len(notices) == len(sizes)
        else:
            assert way.messages(WRITE) == len(notices) >= len(sizes)
        assert way.messages(SEND) == way.count(SEND)
        assert way.crcs_seen == (len(way.fpdus) if crc == "yes" else 0)
    fpdus = len(v.to_server.fpdus) + len(v.to_client.fpdus)
    assert (v.good_crcs, v.bad_crcs) == (fpdus if crc == "yes" else 0, 0)


def read(link: TcpLink, msn: int, nbytes: int) -> bytes:
    """A read request, into a place that tshark should print again."""
    wanted = struct.pack(">IQIIQ", 0x1234_5678, 0x1000, nbytes, 0, 0)
    return link.untagged(msn, wanted, qn=1, opcode=rw.READ_REQUEST)


@dataclass(frozen=True)
class Breach:
    """Something forbidden, and the layer, type and code of the Terminate for it."""

    act: Callable[[TcpLink], bytes]
    answer: tuple[int, int, int]
    crc: bool = False


BREACHES = {
    "a key of nobody": Breach(lambda link: link.tagged(0x77, 0, b"x" * 50), (1, 1, 0)),
    "a message number too high": Breach(lambda link: link.untagged(link.msn + 1, b"x" * 48), (1, 2, 3)),
    "a message longer than the receive": Breach(lambda link: link.untagged(link.msn, b"x" * 2000), (1, 2, 5)),
    "a read of bytes": Breach(lambda link: read(link, 1, 100), (0, 2, 6)),
    "a read with a number too high": Breach(lambda link: read(link, 2, 0), (1, 2, 3)),
    "a CRC that is wrong": Breach(lambda link: link.tagged(0, 0, b""), (2, 0, 2), crc=True),
    "a CRC that is wrong behind a message": Breach(lambda link: link.untagged(link.msn, b"x" * 9), (2, 0, 2), crc=True),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES)
def test_the_terminate_for_a_breach_is_one(stream: Victim, tmp_path: Path, breach: Breach) -> None:
    find_tshark()
    port = stream.address[1]
    with Capture(tmp_path / "iwarp.pcapng", only=f"tcp port {port}") as capture:
        fd, agreed = stream.accept(lambda address: rp.connect(address, crc=breach.crc))
        link = agreed.link
        assert isinstance(link, TcpLink)

        def breaks() -> Exception:
            link.raw(link.fpdu(breach.act(link), crc=1 if breach.crc else None))
            try:
                return link.verdict()
            finally:
                link.close()

        verdict = stream.during(breaks)
        assert isinstance(verdict, Terminated)
        stream.close(fd)
    v = judge(capture.file, port)
    assert v.complaints <= NOT_IN_RFC_5044
    assert v.to_client.terminates == [(verdict.layer, verdict.etype, verdict.code)] == [breach.answer]
    assert v.to_client.fpdus[-1].opcode == TERMINATE
    assert v.to_client.decoded_bytes == v.to_client.tcp_bytes
    assert v.bad_crcs == (1 if breach.crc else 0)  # the judge does not take everything for good


def test_the_answer_to_an_empty_read_is_one(stream: Victim, tmp_path: Path) -> None:
    find_tshark()
    port = stream.address[1]
    with Capture(tmp_path / "iwarp.pcapng", only=f"tcp port {port}") as capture:
        fd, agreed = stream.accept(rp.connect)
        link = agreed.link
        assert isinstance(link, TcpLink)

        def asks() -> None:
            for msn in (1, 2):
                link.raw(link.fpdu(read(link, msn, 0)))
                while (answer := link.segment()).opcode != rw.READ_RESPONSE:
                    pass
                assert (answer.stag, answer.to, answer.payload) == (0x1234_5678, 0x1000, b"")
            link.close()

        stream.during(asks)
        stream.close(fd)
    v = judge(capture.file, port)
    assert v.complaints <= NOT_IN_RFC_5044
    assert v.to_server.count(READ_REQUEST) == v.to_client.messages(READ_RESPONSE) == 2
    assert v.to_client.decoded_bytes == v.to_client.tcp_bytes
