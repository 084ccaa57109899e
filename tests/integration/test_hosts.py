# SPDX-License-Identifier: MIT OR Apache-2.0
"""Two hosts: two network namespaces and a cable between them, which can be pulled.

Abstract UNIX names end at a namespace, as they do at a host, so here everything goes over TCP.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from otherprocess import Other

MIB = 1 << 20


@dataclass
class Hosts:
    """Two namespaces; the interface is called ``cable`` in both."""

    a: str
    b: str
    a4, b4 = "192.0.2.1", "192.0.2.2"
    a6, b6 = "2001:db8::1", "2001:db8::2"
    nobody = "192.0.2.77"

    def at(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", name]

    def pull(self) -> None:
        """The cable is out: nothing arrives, and nobody is told (the other end of it stays up)."""
        run(*self.at(self.b), "ip", "link", "set", "cable", "down")


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr}")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root (and ip) for network namespaces")
    h = Hosts(f"exs-a-{os.getpid()}", f"exs-b-{os.getpid()}")
    try:
        try:
            run("ip", "netns", "add", h.a)
            run("ip", "netns", "add", h.b)
            run("ip", "-n", h.a, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", h.b)
        except OSError as problem:
            pytest.skip(f"needs root that may make network namespaces: {problem}")
        for name, v4, v6 in ((h.a, h.a4, h.a6), (h.b, h.b4, h.b6)):
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "addr", "add", f"{v4}/24", "dev", "cable")
            run("ip", "-n", name, "addr", "add", f"{v6}/64", "dev", "cable", "nodad")
            run("ip", "-n", name, "link", "set", "cable", "up")
        yield h
    finally:
        for name in (h.a, h.b):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20, check=False)


MOVE = """
FAMILY = socket.AF_INET6 if ":" in host else socket.AF_INET
KIND = socket.SOCK_SEQPACKET if sys.argv[3:] == ["messages"] else KIND
N = 3 << 20

def exchange(fd):
    assert exs_getsockopt(fd, SOL_EXS, EXS_SO_PATH) in (b"tcp", "tcp"), exs_getsockopt(fd, SOL_EXS, EXS_SO_PATH)
    there, back = pattern(N), bytearray(N)
    recv(fd, back, MSG_WAITALL if KIND == socket.SOCK_STREAM else 0)
    send(fd, there)
    for event in take(2):
        event.raise_for_errno()
        assert event.exs_evt_union.exs_evt_length == N
    assert back == there
    exs_close(fd, "close", q)
    take().raise_for_errno()
    exs_qdequeue(q, 1, 0.2)
    say("good")
"""

SERVER = (
    MOVE
    + """
listener = exs_socket(FAMILY, KIND)
exs_bind(listener, (host, 0))
exs_listen(listener)
say(exs_getsockname(listener)[1])
exs_accept(listener, "accept", q)
event = take()
event.raise_for_errno()
exchange(event.exs_evt_union.exs_evt_fd)
"""
)

CLIENT = (
    MOVE
    + """
fd = exs_socket(FAMILY, KIND)
exs_connect(fd, (host, port), "connect", q)
take().raise_for_errno()
exchange(fd)
"""
)


@pytest.mark.parametrize("what", ["stream", "messages"])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("crc", ["no", "yes"])
def test_two_hosts_exchange_data(hosts: Hosts, what: str, version: int, crc: str) -> None:
    address = hosts.b4 if version == 4 else hosts.b6
    if crc == "yes":
        run("ip", "-n", hosts.a, "link", "set", "cable", "mtu", "1300")  # and segments of another length on the way
    with Other(SERVER, (address, 0), prefix=hosts.at(hosts.b), args=[what], EXS_CRC=crc) as server:
        port = int(server.hear())
        with Other(CLIENT, (address, port), prefix=hosts.at(hosts.a), args=[what], EXS_CRC="no") as client:
            client.hear("good")
            server.hear("good")
            client.end()
            server.end()


def test_shared_memory_between_hosts_is_refused_with_the_reason(hosts: Hosts) -> None:
    code = """
fd = exs_socket(socket.AF_INET, KIND)
exs_connect(fd, (host, port), "connect", q)
event = take()
assert event.exs_evt_errno == errno.EOPNOTSUPP, event
try:
    event.raise_for_errno()
except exs.NoDeviceError:
    pass
reason = exs_getsockopt(fd, SOL_EXS, EXS_SO_REASON)
assert "namespace" in str(reason), reason
say("good")
"""
    with Other("serve(); forever()", (hosts.b4, 0), prefix=hosts.at(hosts.b)) as server:
        port = int(server.hear())
        with Other(code, (hosts.b4, port), prefix=hosts.at(hosts.a), EXS_PATH="shm") as client:
            client.hear("good")
            client.end()


def test_half_open_connections_are_noticed(hosts: Hosts) -> None:
    """The other host is gone without a word: one connection is idle, one sends, one closes; all learn of it."""
    server_code = """
listener = serve()
for i in range(3):
    exs_accept(listener, i, q)
take(3)
say("up")
time.sleep(60)
"""
    code = """
idle, busy, closing = connect(), connect(), connect()
recv(idle, bytearray(100), ah="idle")
recv(busy, bytearray(100), ah="busy recv")
say("up"); wait()
send(busy, pattern(8 << 20))
send(closing, pattern(8 << 20))
exs_close(closing, "close", q)
events = {}
while len(events) < 5:
    for e in exs_qdequeue(q, 8, 20):
        key = e.exs_evt_ahandle, e.exs_evt_socket
        assert key not in events
        events[key] = e.exs_evt_errno
# What was lost is told by the operations under way; the close has nothing left to wait for.
assert {number for (what, _), number in events.items() if what != "close"} == {errno.ETIMEDOUT}, events
assert {number for (what, _), number in events.items() if what == "close"} == {0}, events
for fd in (idle, busy):
    try:
        send(fd, b"x")
    except OSError as problem:
        assert problem.errno == errno.ETIMEDOUT, problem
    else:
        raise AssertionError("a dead connection takes data")
say("good")
"""
    with Other(server_code, (hosts.b4, 0), prefix=hosts.at(hosts.b)) as server:
        port = int(server.hear())
        keep = {"EXS_KEEPALIVE": "1", "EXS_CLOSE_TIMEOUT": "4"}
        with Other(code, (hosts.b4, port), prefix=hosts.at(hosts.a), **keep) as client:
            server.hear("up")
            client.hear("up")
            hosts.pull()
            client.tell()
            client.hear("good")
            client.end()


def test_hosts_that_cannot_be_reached(hosts: Hosts) -> None:
    code = f"""
def fails(address, *errors):
    fd = exs_socket(socket.AF_INET, KIND)
    try:
        exs_connect(fd, (address, 7471), "connect", q)
    except OSError as problem:
        got = problem.errno
    else:
        got = take().exs_evt_errno
    assert got in errors, (address, got)

fails("198.51.100.1", errno.ENETUNREACH)
fails({hosts.b4!r}, errno.ECONNREFUSED)
fails({hosts.nobody!r}, errno.ETIMEDOUT)
say("good")
"""
    with Other(code, prefix=hosts.at(hosts.a), EXS_CONNECT_TIMEOUT="0.4") as client:
        client.hear("good")
        client.end()


def test_host_that_nobody_has_is_unreachable(hosts: Hosts) -> None:
    """The kernel says so after its own time, here 3 s, unless the program's limit is shorter (above)."""
    code = f"""
fd = exs_socket(socket.AF_INET, KIND)
exs_connect(fd, ({hosts.nobody!r}, 7471), "connect", q)
event = take()
assert event.exs_evt_errno == errno.EHOSTUNREACH, event
say("good")
"""
    with Other(code, prefix=hosts.at(hosts.a)) as client:
        client.hear("good")
        client.end()
