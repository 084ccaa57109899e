# SPDX-License-Identifier: MIT OR Apache-2.0
"""The TCP option of SMC-R on the wire: which segments carry it, and what is left of it in the kernel."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from ground import patient

from exs._native import tcp_option
from exs.smc import option

SYN, ACK = 0x02, 0x10
ETH_P_ALL = 3
HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def program() -> None:
    if why := option.available():
        pytest.skip(f"needs root: {why}")


@contextmanager
def listening(*, marked: bool = True) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.settimeout(patient(10))
        listener.bind((HOST, 0))
        if marked:
            option.mark(listener)
        listener.listen()
        yield listener
        if marked:
            option.forget(listener)


@contextmanager
def connected(listener: socket.socket, *, marked: bool = True) -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.socket() as client:
        client.settimeout(patient(10))
        if marked:
            option.mark(client)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.settimeout(patient(10))
            yield client, server


@dataclass
class Segment:
    """A TCP segment as it was seen on the wire."""

    flags: int
    options: bytes

    @property
    def carries(self) -> bool:
        return option.OPTION in self.options


class Wire:
    """All TCP segments on the loopback interface."""

    def __init__(self) -> None:
        self._raw = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._raw.bind(("lo", ETH_P_ALL))
        self._raw.setblocking(False)

    def seen(self, port: int) -> list[Segment]:
        """Those from and to a port since it was last asked."""
        found: list[Segment] = []
        while True:
            try:
                packet, (_, _, kind, *_) = self._raw.recvfrom(65536)
            except BlockingIOError:
                return found
            at = (packet[0] & 0xF) * 4
            if kind == socket.PACKET_OUTGOING or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
                continue
            if port in struct.unpack_from("!HH", packet, at):
                end = at + (packet[at + 12] >> 4) * 4
                found.append(Segment(packet[at + 13], packet[at + 20 : end]))

    def close(self) -> None:
        self._raw.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()
    yield wire
    wire.close()


def exchange(client: socket.socket, server: socket.socket) -> None:
    """Payload in both directions, then an end."""
    for one, other in ((client, server), (server, client)):
        one.sendall(b"payload" * 3000)
        got = b""
        while len(got) < 21000:
            got += other.recv(65536)
        assert got == b"payload" * 3000
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""


@pytest.mark.smcr(1, 2, 3)
def test_both_syns_carry_it_and_no_other_segment(wire: Wire) -> None:
    with listening() as listener, connected(listener) as (client, server):
        exchange(client, server)
        segments = wire.seen(listener.getsockname()[1])
    assert [s.flags & (SYN | ACK) for s in segments if s.carries] == [SYN, SYN | ACK]
    assert sum(bool(s.flags & SYN) for s in segments) == 2 < len(segments)


@pytest.mark.smcr(2)
def test_a_syn_without_it_is_answered_without_it(wire: Wire) -> None:
    with listening() as listener, connected(listener, marked=False) as (client, server):
        exchange(client, server)
        segments = wire.seen(listener.getsockname()[1])
    assert segments
    assert not any(s.carries for s in segments)


@pytest.mark.smcr(2)
def test_a_listener_that_nobody_marked_answers_without_it(wire: Wire) -> None:
    with listening(), listening(marked=False) as listener, connected(listener) as (client, server):
        exchange(client, server)
        segments = wire.seen(listener.getsockname()[1])
        assert not option.answered(client)
        assert not option.offered(server)
    assert [s.flags & (SYN | ACK) for s in segments if s.carries] == [SYN]


# In a network namespace of its own, where every SYN may be answered with a cookie.
WITH_COOKIES = """
import pathlib, socket, subprocess
from exs.smc import option
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
option.mark(listener)
listener.listen()
for setting in "1", "2":
    pathlib.Path("/proc/sys/net/ipv4/tcp_syncookies").write_text(setting)
    client = socket.socket()
    option.mark(client)
    client.connect(listener.getsockname())
    server, _ = listener.accept()
    print(option.answered(client), option.offered(server))
"""


@pytest.mark.smcr(2)
def test_a_cookie_answers_without_it() -> None:
    """The listener forgets what the client offered; a client that took it for agreed would speak CLC into payload."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("needs root (and unshare) for a network namespace")
    command = ["unshare", "--net", sys.executable, "-c", WITH_COOKIES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patient(20))
    assert done.stdout.splitlines() == ["True True", "False False"], done.stderr


def state_of(cookie: int) -> int:
    program = option._attach()  # what is left in the kernel has no other face
    assert program
    return program.get(cookie)


def test_sockets_that_nobody_asked_about_leave_nothing_in_the_kernel() -> None:
    """Else the map would be full one day, after as many connections that failed or were given up."""
    with socket.socket() as taken, listening() as listener:
        taken.bind((HOST, 0))  # bound, but it does not listen
        for target in (taken, listener):
            with socket.socket() as client:
                option.mark(client)
                cookie = int.from_bytes(client.getsockopt(socket.SOL_SOCKET, option.SO_COOKIE, 8), "little")
                assert state_of(cookie) == tcp_option.WANTED
                assert client.connect_ex(target.getsockname()) == 0 or target is taken
            if target is listener:
                listener.accept()[0].close()
            assert eventually(lambda cookie=cookie: state_of(cookie), 0) == 0


def eventually(ask: object, wanted: int) -> int:
    """What is answered, once it is what is wanted, or after a while."""
    assert callable(ask)
    end = time.monotonic() + patient(10)
    while (now := int(ask())) != wanted and time.monotonic() < end:
        time.sleep(0.01)
    return now


BPF = {"x86_64": 321, "aarch64": 280}[platform.machine()]
PROG_QUERY, SOCK_OPS = 16, 3


def attached() -> int:
    """How many programs of this kind the cgroup of this process has."""
    folder = option.group_folder(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    assert folder
    where = os.open(folder, os.O_RDONLY)
    try:
        query = (ctypes.c_uint32 * 8)(where, SOCK_OPS)
        assert ctypes.CDLL(None).syscall(BPF, PROG_QUERY, query, ctypes.sizeof(query)) == 0
    finally:
        os.close(where)
    return query[6]


OTHER = """
import os, socket, sys
from exs.smc import option
assert not option.available(), option.available()
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
option.mark(listener)
listener.listen()
if sys.argv[1] == "fork" and os.fork() == 0:
    os.read(0, 1)
    os._exit(0)
print(listener.getsockname()[1], flush=True)
os.read(0, 1)
"""


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_process_that_is_killed_leaves_nothing_attached(how: str) -> None:
    """Nor does a child that it forked hold it; that one lives until its input ends."""
    before = attached()
    command = [sys.executable, "-c", OTHER, how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert int(process.stdout.readline()) > 0
            assert attached() == before + 1
            process.send_signal(signal.SIGKILL)
            process.wait(patient(10))
            assert eventually(attached, before) == before
        finally:
            process.kill()


def test_it_is_attached_once() -> None:
    before = attached()
    for _ in range(3):
        with socket.socket() as client:
            option.mark(client)
    assert attached() == before


def test_the_two_capabilities_that_are_documented_are_enough() -> None:
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root (and setpriv) to have more than these two")
    command = ["setpriv", "--bounding-set=-all,+bpf,+net_admin", sys.executable, "-c", OTHER, "alone"]
    done = subprocess.run(command, input="!", capture_output=True, text=True, check=False, timeout=patient(20))
    assert (done.returncode, done.stderr) == (0, "")
