# SPDX-License-Identifier: MIT OR Apache-2.0
"""iWARP in a process against iWARP in a kernel: path tcp of soft on one side, siw under verbs on the other.

The side that listens runs in the second guest, if there is one.  siw takes its port from the kernel's TCP, so the two
must not want the same one on one machine: each listener asks for any.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import agent
import pytest
from otherprocess import Other

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
# Around the ends of FPDUs: what siw puts into one (a segment of TCP), and all that fits into one.
SIZES = [0, 1, 3, 4, 64, 1447, 1448, 1449, 8933, 65521, 65522, 300_001, 4 * MIB, 64 * MIB]
LATE = 20_000  # bytes that TCP keeps while their receiver does nothing

SOFT = {"EXS_DEVICE": "soft", "EXS_PATH": "tcp"}
SIW = {"EXS_DEVICE": "verbs"}

PEER = "EXS_LAB_PEER" in os.environ
THERE = [sys.executable, str(HERE / "relay.py")] if PEER else []
ADDRESS = "10.78.0.2" if PEER else "10.78.0.1"

# A process that does what it is told, one connection after the other: ACT KIND CRC [PORT]; a port means to dial.
PROGRAM = f"""
ALL, LATE = {SIZES}, {LATE}

def finish():
    event = take()
    if event.exs_evt_errno:
        sys.stderr.write(repr(exs_getsockopt(event.exs_evt_socket, SOL_EXS, EXS_SO_REASON)) + "\\n")
    event.raise_for_errno()
    return event.exs_evt_union

def give(fd, n):
    data = bytearray(pattern(n))
    send(fd, data)
    finish()
    data[:] = bytes(n)  # it is ours again, whatever the device still has to do with what was sent

def get(fd, n):
    room = bytearray(n)
    recv(fd, room, waitall)
    assert finish().exs_evt_length == n
    assert room == pattern(n), n

def exchange(fd, first):
    for n in ALL if kind == socket.SOCK_SEQPACKET else ALL[1:]:
        for act in (give, get) if first else (get, give):
            act(fd, n)

def late(fd, first):
    if first:
        wait()
        for i in range(3):
            data = bytearray([i + 1]) * LATE
            send(fd, data)
            assert finish().exs_evt_length == LATE
            data[:] = b"\\xee" * LATE
        say("overwritten")
        wait()
        return
    rooms = [bytearray(LATE) for _ in range(3)]
    for i, room in enumerate(rooms):
        recv(fd, room, waitall, ah=i)
    exs_qdequeue(q, 1, 0.5)  # the side that dialled speaks first: until it has, nothing of ours is out
    say("posted")
    wait()  # and take nothing out of TCP
    for event in take(3):
        event.raise_for_errno()
    for i, room in enumerate(rooms):
        assert room == bytes([i + 1]) * LATE, (i, room.find(0xEE))

def busy(fd, first):
    if first:
        room = bytearray(10)
        recv(fd, room, waitall)
        event = take()
        say(event.exs_evt_errno)
        assert event.exs_evt_errno or room == pattern(10)
        return
    exs_qdequeue(q, 1, 0.5)
    say("busy")
    wait()  # our program answers nothing, our host does
    send(fd, pattern(10))
    finish()

def make(crc):
    fd = exs_socket(socket.AF_INET, kind)
    exs_setsockopt(fd, SOL_EXS, EXS_SO_CRC, crc == "crc")
    return fd

def dial(crc, port):
    fd = make(crc)
    exs_connect(fd, (host, port), "connect", q)
    finish()
    return fd

def answer(crc):
    listener = make(crc)
    exs_bind(listener, (host, 0))
    exs_listen(listener)
    say(exs_getsockname(listener)[1])
    exs_accept(listener, "accept", q)
    fd = finish().exs_evt_fd
    exs_close(listener, "close", q)
    finish()
    return fd

# Not wait(): a process has nothing to do for as long as the other couple is at work.
while (words := os.read(0, 100).decode().split()):
    act, name, crc, *port = words
    kind = socket.SOCK_STREAM if name == "stream" else socket.SOCK_SEQPACKET
    waitall = MSG_WAITALL if name == "stream" else 0
    fd = dial(crc, int(port[0])) if port else answer(crc)
    device = exs_getsockopt(fd, SOL_EXS, EXS_SO_DEVICE).decode()
    globals()[act](fd, bool(port))
    exs_close(fd, "close", q)
    finish()
    say(device)
"""


@dataclass
class Couple:
    """The process that listens, and the one that dials."""

    server: Other
    client: Other

    def connect(self, act: str, what: str, crc: str) -> None:
        self.server.tell(f"{act} {what} {crc}")
        port = self.server.hear()
        self.client.tell(f"{act} {what} {crc} {port}")


@pytest.fixture(scope="session")
def couples() -> Iterator[dict[str, Couple]]:
    """By the device that listens; they last, since nothing takes as long here as to start Python."""
    found = {}
    with ExitStack() as stack:
        for name, server, client in (("soft", SOFT, SIW), ("siw", SIW, SOFT)):
            mode = {"EXS_PROGRESS": "inline"}
            found[name] = Couple(
                stack.enter_context(Other(PROGRAM, (ADDRESS, 0), prefix=THERE, **server, **mode)),
                stack.enter_context(Other(PROGRAM, (ADDRESS, 0), **client, **mode)),
            )
        yield found


@pytest.mark.parametrize("crc", ["crc", "none"])
@pytest.mark.parametrize("what", ["stream", "messages"])
@pytest.mark.parametrize("listens", ["soft", "siw"])
def test_soft_and_siw_exchange_all_sizes(couples: dict[str, Couple], listens: str, what: str, crc: str) -> None:
    c = couples[listens]
    c.connect("exchange", what, crc)
    c.client.hear("verbs" if listens == "soft" else "soft")
    c.server.hear("soft" if listens == "soft" else "verbs")


@pytest.mark.parametrize("crc", ["crc", "none"])
@pytest.mark.parametrize("what", ["stream", "messages"])
@pytest.mark.parametrize("sends", ["soft", "siw"])
def test_what_was_sent_may_be_overwritten_while_it_lies_in_tcp(
    couples: dict[str, Couple], sends: str, what: str, crc: str
) -> None:
    c = couples["siw" if sends == "soft" else "soft"]
    c.connect("late", what, crc)
    c.server.hear("posted")
    c.client.tell()
    c.client.hear("overwritten")
    c.server.tell()
    c.client.tell()
    c.client.hear("soft" if sends == "soft" else "verbs")
    c.server.hear("verbs" if sends == "soft" else "soft")


@pytest.fixture
def watchful() -> Iterator[Couple]:
    """siw dials soft, and asks every second whether its host is still there."""
    with (
        Other(PROGRAM, (ADDRESS, 0), prefix=THERE, EXS_PROGRESS="inline", **SOFT) as server,
        Other(PROGRAM, (ADDRESS, 0), EXS_PROGRESS="inline", EXS_KEEPALIVE="1", **SIW) as client,
    ):
        yield Couple(server, client)


def test_a_program_that_computes_is_not_taken_for_dead(watchful: Couple) -> None:
    watchful.connect("busy", "messages", "none")
    watchful.server.hear("busy")
    time.sleep(6)
    watchful.server.tell()
    watchful.client.hear("0")
    watchful.client.hear("verbs")
    watchful.server.hear("soft")


@pytest.mark.skipif(not PEER, reason="verbs: needs the second guest")
def test_but_its_host_is_when_it_is_gone(watchful: Couple) -> None:
    watchful.connect("busy", "messages", "none")
    watchful.server.hear("busy")
    time.sleep(3)
    try:
        agent.run(["ip", "link", "set", "eth1", "down"])
        watchful.client.hear(str(errno.ETIMEDOUT))
    finally:
        agent.run(["ip", "link", "set", "eth1", "up"])
        agent.run(["ip", "-6", "addr", "replace", "fd78::2/64", "dev", "eth1", "nodad"])


def test_soft_below_its_table_against_siw() -> None:
    """tests/native/test_siw.c: all sizes again, and what each makes of the other's violations."""
    program = HERE.parents[1] / "build/native-lab/tests/native/test_siw"
    assert program.exists(), "build it outside, as make lab does"
    done = subprocess.run([program, "10.78.0.1"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") > 200
