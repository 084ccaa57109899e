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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import agent
import pytest
from otherprocess import Other

pytestmark = [
    pytest.mark.skipif("EXS_LAB_PEER" not in os.environ, reason="needs two guests"),
    pytest.mark.timeout(400),
]

LAB = Path(__file__).resolve().parent
THERE = [sys.executable, str(LAB / "relay.py")]
CABLE = [sys.executable, str(LAB / "cable.py")]


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
    def post(kind):
        try:
            if kind == "send":
                send(fd, data)
            else:
                recv(fd, room, MSG_WAITALL)
        except OSError as refused:  # it broke behind the event that was taken
            errors[kind] = refused.errno
    kinds = {"recv", "send"} if sends else {"recv"}
    for kind in kinds:
        post(kind)
    say("busy")
    while set(errors) != kinds:
        events = exs_qdequeue(q, -1, 100)
        assert events, "an operation that never ends"
        kind, error = events[0].exs_evt_ahandle, events[0].exs_evt_errno
        assert kind not in errors
        # A receive that got some of its bytes ends well, and the next one says why there are no more.
        if error or (kind == "recv" and not events[0].exs_evt_union.exs_evt_length):
            errors[kind] = error
        else:
            post(kind)
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


def ways(*names: str) -> pytest.MarkDecorator:
    """On each of these devices; on all if none is named."""
    cases = [pytest.param(way, id=name) for name, way in WAYS.items() if not names or name in names]
    return pytest.mark.parametrize("way", cases)


@contextmanager
def busy(way: Way, *, swapped: bool = False) -> Iterator[tuple[Other, Other, int]]:
    """A sender here, a receiver there, or the other way round, and the port; bytes flow."""
    env = {**way.env, "EXS_KEEPALIVE": "3", "EXS_CONNECT_TIMEOUT": "90"}
    host = way.host.removesuffix("2") + "1" if swapped else way.host
    with Other(SERVER, (host, 0), prefix=[] if swapped else THERE, **env) as receiver:
        port = int(receiver.hear())
        with Other(CLIENT, (host, port), prefix=THERE if swapped else [], **env) as sender:
            sender.hear("busy")
            receiver.hear("busy")
            yield sender, receiver, port


def errors_of(other: Other) -> set[int]:
    line = other.hear()
    assert line.startswith("ended "), line
    return {int(word) for word in line.split()[1:]}


def on(where: str, command: list[str]) -> None:
    """Run a command in this guest or in the other one."""
    if where == "here":
        subprocess.run(command, check=True, timeout=60)
    else:
        agent.run(command)


def shell(script: str) -> list[str]:
    return ["sh", "-ec", script]


def restore(way: Way, where: str) -> list[str]:
    """The interface up, with the address that going down took from it."""
    number, role = way.wire.removeprefix("eth"), "1" if where == "here" else "2"
    address = f"fd7{7 + int(number)}::{role}/64"
    return shell(f"ip link set {way.wire} up; ip addr replace {address} dev {way.wire} nodad")


def end_both(here: Other, there: Other, known: set[int]) -> None:
    assert errors_of(here) <= known
    assert errors_of(there) <= known


@ways()
@pytest.mark.parametrize("where", ["here", "there"])
def test_cable_pulled(way: Way, where: str) -> None:
    with busy(way) as (here, there, port):
        on(where, [*CABLE, way.wire, "off"])
        try:
            end_both(here, there, GONE)
        finally:
            on(where, [*CABLE, way.wire, "on"])
        here.tell(str(port))
        here.hear("well")
        there.hear("well")


@ways("siw", "tcp")
@pytest.mark.parametrize("where", ["here", "there"])
def test_interface_taken_down(way: Way, where: str) -> None:
    with busy(way) as (here, there, port):
        on(where, ["ip", "link", "set", way.wire, "down"])
        try:
            end_both(here, there, GONE)
        finally:
            on(where, restore(way, where))
        here.tell(str(port))
        here.hear("well")
        there.hear("well")


@pytest.mark.parametrize("swapped", [False, True], ids=["receiver", "sender"])
def test_interface_taken_down_under_soft_roce(swapped: bool) -> None:
    """Of the second guest, which is booted again: soft-RoCE does not get over it.

    Without an interface rxe has no route, which it takes for a failure of the queue pair that sends.  Of the one that
    carries rdma_cm's messages only the sending half is brought back by the kernel, so it never hears anything again;
    it belongs to the link, and the link cannot always be deleted: the kernel then waits for it without end.
    """
    way = WAYS["rxe"]
    with busy(way, swapped=swapped) as (sender, receiver, _):
        agent.run(["ip", "link", "set", way.wire, "down"])
        try:
            # A request that finds no route is an error of its own, before rxe tells that the port is down.
            end_both(sender, receiver, GONE | {errno.EIO})
        finally:
            agent.reboot()
    with busy(way):
        pass


@ways()
def test_peer_killed(way: Way) -> None:
    with busy(way) as (here, there, _):
        there.kill()
        assert errors_of(here) <= GONE
        with Other(SERVER, (way.host, 0), prefix=THERE, **way.env) as again:
            assert again.hear()


def test_guest_of_the_peer_killed() -> None:
    """On all devices at once: a guest takes its time to boot."""
    with ExitStack() as stack:
        pairs = {name: stack.enter_context(busy(way)) for name, way in WAYS.items()}
        agent.reboot()
        for name, (here, there, _) in pairs.items():
            assert errors_of(here) <= GONE, name
            there.kill()
    with ExitStack() as stack:
        for way in WAYS.values():
            stack.enter_context(busy(way))
