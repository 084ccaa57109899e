# SPDX-License-Identifier: MIT OR Apache-2.0
"""Connections of every fate, many times over: descriptors, mappings, threads, names and memory are as before.

A first round makes what a process keeps (pages of the allocator, the group's own files); what later rounds add is
a leak.
"""

from __future__ import annotations

import ctypes
import gc
import os
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ground
import pytest
import rawpeer as rp
import rawshm as rs
from ground import HOST
from otherprocess import Other
from rawwire import Hello
from victim import Victim

from exs import MemoryRegion, esapi

WAITALL = esapi.MSG_WAITALL
N = 100_000


class _Mallinfo(ctypes.Structure):
    # arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost
    _fields_ = [(f"n{i}", ctypes.c_size_t) for i in range(10)]


def allocated() -> int:
    """Bytes that malloc has handed out."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _Mallinfo
    info = libc.mallinfo2()
    return int(info.n7 + info.n4)


@dataclass(frozen=True)
class Held:
    """What this process holds of the system."""

    descriptors: int
    mappings: int
    threads: int
    names: int
    shm_files: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        maps = Path("/proc/self/maps").read_text().splitlines()
        return cls(
            len(os.listdir("/proc/self/fd")),
            sum("memfd:" in line or "/dev/shm" in line for line in maps),
            len(os.listdir("/proc/self/task")),
            len(names(os.getpid())),
            shm_files(),
        )


def names(pid: int) -> set[str]:
    """Abstract UNIX names that a process has."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(fd))
        except OSError:
            continue
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {words[7] for words in lines if len(words) == 8 and f"socket:[{words[6]}]" in inodes}


def shm_files() -> int:
    return sum("exs" in name for name in os.listdir("/dev/shm"))


def configured(v: Victim, path: str, mode: str) -> int:
    fd = v.socket()
    esapi.exs_setsockopt(fd, esapi.SOL_EXS, esapi.EXS_SO_PATH, path.encode())
    esapi.exs_setsockopt(fd, esapi.SOL_EXS, esapi.EXS_SO_PROGRESS, mode == "thread")
    return fd


class Churn:
    """One program that makes and loses connections."""

    def __init__(self, v: Victim, path: str, mode: str) -> None:
        self.v, self.path, self.mode = v, path, mode
        self.n = 0
        self.data = MemoryRegion.allocate(N)
        self.data.view[:] = os.urandom(N)

    def cookie(self, what: str) -> str:
        self.n += 1
        return f"churn: {what} {self.n}"

    def pair(self) -> tuple[int, int]:
        v, accepting, connecting = self.v, self.cookie("accept"), self.cookie("connect")
        esapi.exs_accept(v.listener, accepting, v.queue)
        v.posted(accepting)
        a = configured(v, self.path, self.mode)
        esapi.exs_connect(a, v.address, connecting, v.queue)
        v.posted(connecting)
        v.expect(connecting)
        return a, v.expect(accepting).exs_evt_union.exs_evt_fd  # type: ignore[union-attr]

    def move(self, a: int, b: int) -> None:
        room = bytearray(N)
        flags = WAITALL if self.v.kind == socket.SOCK_STREAM else 0
        receiving, sending = self.cookie("recv"), self.cookie("send")
        self.v.recv(b, room, receiving, flags)
        self.v.send(a, self.data.view if self.n % 2 else bytes(self.data.view), sending)
        self.v.expect(receiving)
        self.v.expect(sending)
        assert room == self.data.view

    # --- fates

    def in_order(self) -> None:
        a, b = self.pair()
        self.move(a, b)
        self.move(b, a)
        self.v.close(a)
        self.v.close(b)

    def aborted(self) -> None:
        a, b = self.pair()
        self.move(a, b)
        self.v.close(a, abort=True)
        self.v.close(b)

    def aborted_in_flight(self) -> None:
        a, b = self.pair()
        for fd in (a, b):
            self.v.recv(fd, bytearray(N), self.cookie("lost recv"))
            self.v.send(fd, bytes(50 * N), self.cookie("lost send"))
        self.v.drain(0.001)
        self.v.close(b, abort=True)
        self.v.close(a, abort=True)

    def closed_with_bytes_unread(self) -> None:
        a, b = self.pair()
        if self.v.kind == socket.SOCK_STREAM:
            self.v.send(a, b"x" * 5000, self.cookie("unread"))
        self.v.close(b)
        self.v.close(a)

    def refused(self) -> None:
        with socket.socket() as nobody:
            nobody.bind((HOST, 0))
            fd = configured(self.v, self.path, self.mode)
            cookie = self.cookie("refused")
            esapi.exs_connect(fd, nobody.getsockname(), cookie, self.v.queue)
            self.v.posted(cookie)
            assert self.v.until(lambda: self.v.events.get(cookie)).exs_evt_errno
            self.v.close(fd)

    def cancelled_connect(self) -> None:
        with ground.silent() as address:
            fd = configured(self.v, self.path, self.mode)
            cookie = self.cookie("cancelled")
            esapi.exs_connect(fd, address, cookie, self.v.queue)
            self.v.posted(cookie)
            self.v.drain(0.001)
            assert esapi.exs_cancel(fd=fd) == 1
            assert self.v.until(lambda: self.v.events.get(cookie)).exs_evt_errno
            self.v.close(fd)

    def noise(self) -> None:
        def act() -> None:
            with rp.dial(self.v.address) as sock:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                try:
                    sock.recv(100)
                except ConnectionError:
                    pass

        self.v.during(act)

    def liar(self) -> None:
        """It breaks the protocol right after set-up."""
        link = rs if self.path.startswith("shm") else rp
        hello = Hello() if self.v.kind == socket.SOCK_STREAM else Hello.for_messages()
        fd, agreed = self.v.accept(lambda to: link.connect(to, hello))
        self.v.recv(fd, bytearray(N), self.cookie("attacked"))
        self.v.during(lambda: agreed.link.send(b"nonsense"))
        self.v.during(agreed.link.verdict)  # type: ignore[attr-defined]
        agreed.link.close()
        self.v.close(fd)

    def gone_in_set_up(self) -> None:
        """What comes of it waits to be accepted when its listener is closed."""
        if self.v.kind != socket.SOCK_STREAM:
            return
        listener = configured(self.v, "auto", self.mode)
        esapi.exs_bind(listener, (HOST, 0))
        esapi.exs_listen(listener)
        host, port, *_ = esapi.exs_getsockname(listener)

        def act() -> None:
            o = rs.offer((str(host), int(port)))
            rs.take_hello(o)
            o.close()

        self.v.during(act)
        self.v.close(listener)

    def round(self) -> None:
        fates: list[Callable[[], None]] = [
            self.in_order, self.aborted, self.aborted_in_flight, self.closed_with_bytes_unread, self.refused,
            self.cancelled_connect,
        ]  # fmt: skip
        if not ground.VERBS:  # there nobody can speak to the listener's port but RDMA
            fates += [self.noise, self.liar, self.gone_in_set_up]
        random.shuffle(fates)
        for fate in fates:
            fate()
        self.v.until(lambda: len(self.v.events) == len(self.v.posts))
        self.v.forget()


@pytest.mark.usefixtures("_warm_esapi")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET], ids=["stream", "messages"])
@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_nothing_grows_with_the_number_of_connections(path: str, mode: str, kind: socket.SocketKind) -> None:
    v = Victim(kind, healthy=False, mode=mode)
    churn = Churn(v, path, mode)
    for _ in range(3):
        churn.round()
    v.until(lambda: Held.now() == Held.now())
    before, memory = Held.now(), allocated()
    rounds = 8
    for _ in range(rounds):
        churn.round()
    v.until(lambda: not grown(before, Held.now()))
    # Less than the smallest thing that a connection owns, per connection.
    assert allocated() - memory < rounds * 6 * 1024, "memory grows"
    churn.data.close()
    v.finish()


def grown(before: Held, after: Held) -> list[str]:
    pairs = zip(vars(before).items(), vars(after).values(), strict=True)
    return [f"{name}: {old} -> {new}" for (name, old), new in pairs if new > old]


@pytest.mark.parametrize("how", ["exit", "kill", "crash", "end"])
def test_a_process_takes_everything_with_it(stream: Victim, path: str, how: str) -> None:
    """However a process ends, no name and no file of its remains."""
    code = """
fd = connect()
recv(fd, bytearray(100))
send(fd, exs.MemoryRegion.allocate(1 << 20))
say("up")
how = wait()
if how == "exit": os._exit(3)
if how == "crash": os.abort()
if how == "kill": time.sleep(60)
import warnings; warnings.simplefilter("ignore")
"""
    files = shm_files()
    with Other(code, stream.address, EXS_PATH=path, EXS_PROGRESS="thread", PYTHONWARNINGS="ignore") as other:
        esapi.exs_accept(stream.listener, "accept", stream.queue)
        stream.posted("accept")
        fd = stream.expect("accept").exs_evt_union.exs_evt_fd  # type: ignore[union-attr]
        stream.recv(fd, bytearray(10 << 20), "recv", WAITALL)
        other.hear("up")
        had = {name for name in names(other.process.pid) if name.startswith("@exs-")}
        assert bool(had) == path.startswith("shm")
        other.tell(how)
        if how == "kill":
            other.kill()
        other.process.wait(20)
        event = stream.until(lambda: stream.events.get("recv"))
        assert event.exs_evt_errno or event.exs_evt_union.exs_evt_length  # type: ignore[union-attr]
        left = Path("/proc/net/unix").read_text()
        assert not any(name in left for name in had)
        assert shm_files() == files
