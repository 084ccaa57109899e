# SPDX-License-Identifier: MIT OR Apache-2.0
"""What takes the peer away: a cable, kill -9, the whole machine; on each device between two guests.

One side sends as fast as it can, each side has a receive posted.  Whatever happens, every operation ends with an error
of the documented kind and in bounded time, and a new connection works once the cause is gone.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import agent
import pytest
from otherprocess import Other

pytestmark = [
    pytest.mark.skipif("EXS_LAB_PEER" not in os.environ, reason="needs two guests"),
    pytest.mark.timeout(400),
]

THERE = [sys.executable, str(Path(__file__).resolve().parent / "relay.py")]


@dataclass(frozen=True)
class Way:
    """A device, the second guest's address on its wire, and the wire."""

    env: dict[str, str]
    host: str
    wire: str


WAYS = {
    "rxe": Way({"EXS_DEVICE": "verbs"}, "10.77.0.2", "eth0"),
    "siw": Way({"EXS_DEVICE": "verbs"}, "10.78.0.2", "eth1"),
    "tcp": Way({"EXS_DEVICE": "soft", "EXS_PATH": "tcp"}, "10.77.0.2", "eth0"),
}
GONE = {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE}

COMMON = """
room = bytearray(1 << 20)

def until_it_breaks(fd, sends):
    errors, data = {}, bytearray(1 << 20)
    recv(fd, room, MSG_WAITALL)
    if sends:
        send(fd, data)
    say("busy")
    while set(errors) != ({"recv", "send"} if sends else {"recv"}):
        events = exs_qdequeue(q, -1, 100)
        assert events, "an operation that never ends"
        kind, error = events[0].exs_evt_ahandle, events[0].exs_evt_errno
        length = getattr(events[0].exs_evt_union, "exs_evt_length", 0)
        if error or (kind == "recv" and length < len(room)):
            assert kind not in errors
            errors[kind] = error
        elif kind == "send":
            send(fd, data)
        else:
            recv(fd, room, MSG_WAITALL)
    say("ended", *sorted(set(errors.values())))
    exs_setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exs_close(fd, "close", q)
    take()

def well(fd):
    for _ in range(3):
        send(fd, b"well")
        recv(fd, memoryview(room)[:4], MSG_WAITALL)
        for event in take(2):
            event.raise_for_errno()
    assert room[:4] == b"well"
    say("well")
"""

SERVER = (
    COMMON
    + """
listener = serve()
def accepted():
    exs_accept(listener, "accept", q)
    event = exs_qdequeue(q, -1, 300)[0]
    event.raise_for_errno()
    return event.exs_evt_union.exs_evt_fd
until_it_breaks(accepted(), False)
well(accepted())
wait()
"""
)

CLIENT = (
    COMMON
    + """
until_it_breaks(connect(), True)
port = int(wait())
well(connect())
"""
)


def ways(*sure: str) -> pytest.MarkDecorator:
    """On each device; where the outcome is not settled yet, on request only (``-m stress``).

    Open: soft-RoCE takes no new connection after its interface went down and up, and a program on soft-iWARP whose
    link was cut ended with a traceback once.
    """
    cases = [pytest.param(w, id=n, marks=() if n in sure else pytest.mark.stress) for n, w in WAYS.items()]
    return pytest.mark.parametrize("way", cases)


@contextmanager
def busy(way: Way) -> Iterator[tuple[Other, Other, int]]:
    """A sender here, a receiver there, and the port; bytes flow."""
    env = {**way.env, "EXS_KEEPALIVE": "3", "EXS_CONNECT_TIMEOUT": "90"}
    with Other(SERVER, (way.host, 0), prefix=THERE, **env) as there:
        port = int(there.hear())
        with Other(CLIENT, (way.host, port), **env) as here:
            here.hear("busy")
            there.hear("busy")
            yield here, there, port


def errors_of(other: Other) -> set[int]:
    line = other.hear()
    assert line.startswith("ended "), line
    return {int(word) for word in line.split()[1:]}


def link(wire: str, state: str) -> list[str]:
    return ["ip", "link", "set", wire, state]


@ways("tcp")
@pytest.mark.parametrize("where", ["here", "there"])
def test_cable_pulled(way: Way, where: str) -> None:
    with busy(way) as (here, there, port):
        change = (lambda c: subprocess.run(c, check=True)) if where == "here" else agent.run
        change(link(way.wire, "down"))
        try:
            # rxe fails a request that finds no interface as one of its own, before it tells that the port is down.
            known = GONE | {errno.EIO} if way is WAYS["rxe"] else GONE
            assert errors_of(here) <= known
            assert errors_of(there) <= known
        finally:
            change(link(way.wire, "up"))
        here.tell(str(port))
        here.hear("well")
        there.hear("well")


@ways("tcp")
def test_peer_killed(way: Way) -> None:
    with busy(way) as (here, there, _):
        there.kill()
        assert errors_of(here) <= GONE
        with Other(SERVER, (way.host, 0), prefix=THERE, **way.env) as again:
            assert again.hear()


@ways()
def test_guest_of_the_peer_killed(way: Way) -> None:
    before = agent.run(["cat", "/proc/sys/kernel/random/boot_id"])
    with busy(way) as (here, there, _):
        with agent.Remote(["sh", "-c", "echo b >/proc/sysrq-trigger; sleep 60"]) as last, pytest.raises(OSError):
            last.wait(20)
        assert errors_of(here) <= GONE
        there.kill()
    assert agent.run(["cat", "/proc/sys/kernel/random/boot_id"]) != before
    with busy(way) as (here, there, _):
        there.kill()
        assert errors_of(here) <= GONE
