# SPDX-License-Identifier: MIT OR Apache-2.0
"""The raw peer on an RDMA device, from a test's side: rawverbs.py does the work, in processes of the system's Python.

A link here is what ``TcpLink`` and ``ShmLink`` are, so every test and attack that speaks through a link runs on real
queue pairs too.  Only the lab has the devices; their addresses are those of tests/lab/guest.sh.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self  # what the peer answers is of the kind that was asked for

from rawpeer import Agreed, Memory, Region
from rawwire import STREAM, Closed, Frame, Hello, Rejected

HERE = Path(__file__).resolve().parent
IN_LAB = os.environ.get("EXS_LAB") == "1"
PYTHONS = (sys.executable, "/usr/bin/python3")
IMMEDIATE = 4


class Lost(Closed):
    """The queue pair failed: why, as the peer's device has it."""

    def __init__(self, status: str) -> None:
        super().__init__(reset=True)
        self.status = status


class Service:
    """The process that has pyverbs; one for all tests."""

    _it: Service | None = None

    def __init__(self) -> None:
        python = next(p for p in PYTHONS if _has_pyverbs(p))
        self.folder = tempfile.TemporaryDirectory()
        self.path = f"{self.folder.name}/peer"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen(16)
            self.process = subprocess.Popen(
                [python, str(HERE / "rawverbs.py"), "serve", str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                env={**os.environ, "PYTHONPATH": str(HERE)},
            )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n", "rawverbs.py did not start"

    @classmethod
    def get(cls) -> Service:
        if cls._it is None:
            cls._it = cls()
        return cls._it

    @classmethod
    def stop(cls) -> None:
        if cls._it is not None:
            process = cls._it.process
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait(timeout=10)
            process.stdout.close()
            cls._it.folder.cleanup()
            cls._it = None

    def connection(self) -> Commands:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        return Commands(Connection(sock.detach()))


def _has_pyverbs(python: str) -> bool:
    probe = [python, "-c", "import pyverbs.cmid"]
    return subprocess.run(probe, capture_output=True, check=False, timeout=60).returncode == 0


class Commands:
    """A connection's process: calls go there, results and the raw peer's exceptions come back."""

    TIMEOUT = 60.0

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def __call__(self, name: str, *arguments: object) -> Any:
        try:
            self._pipe.send((name, arguments))
            if not self._pipe.poll(self.TIMEOUT):
                raise AssertionError(f"{name}: the raw peer does not answer")
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise AssertionError(f"{name}: the raw peer is gone") from None
        if kind == "closed":
            reset, status = value
            raise Lost(status) if status else Closed(reset)
        if kind == "rejected":
            raise Rejected(value)
        assert kind == "ok", value
        return value

    def close(self) -> None:
        self._pipe.close()


class RemoteRegion(Region):
    """Registered memory of the peer; what lies in it is fetched when it is looked at."""

    def __init__(self, call: Commands, addr: int, rkey: int, length: int) -> None:
        self._call, self._length = call, length
        self.addr, self.rkey, self.written = addr, rkey, 0

    @property
    def data(self) -> RemoteBytes:  # type: ignore[override]  # read like a bytearray
        return RemoteBytes(self._call, self.rkey, self._length)


class RemoteBytes:
    """Bytes that are fetched when they are needed, and then as they are at that moment."""

    def __init__(self, call: Commands, rkey: int, length: int) -> None:
        self._call, self._rkey, self._length = call, rkey, length

    def __len__(self) -> int:
        return self._length

    def __bytes__(self) -> bytes:
        return bytes(self._call("read", self._rkey))

    def __getitem__(self, where: slice) -> bytes:
        return bytes(self)[where]


class RemoteMemory(Memory):
    def __init__(self, call: Commands) -> None:
        super().__init__()
        self._call = call

    def add(self, nbytes: int, addr: int | None = None, rkey: int | None = None) -> Region:
        """Registers memory; address and key are the device's choice."""
        addr, rkey = self._call("add", nbytes)
        return self.keep(addr, rkey, nbytes)

    def keep(self, addr: int, rkey: int, nbytes: int) -> Region:
        region = RemoteRegion(self._call, addr, rkey, nbytes)
        self.regions[rkey] = region
        return region


class RemoteLink:
    """A queue pair in another process."""

    def __init__(self, call: Commands) -> None:
        self._call = call
        self.memory: Memory = RemoteMemory(call)

    def write(self, rkey: int, addr: int, data: bytes) -> None:
        self._call("write", rkey, addr, bytes(data))

    def send(self, data: bytes) -> None:
        self._call("send", bytes(data))

    def next_message(self) -> bytes:
        return bytes(self._call("next_message"))

    def verdict(self) -> Exception:
        """Read to the end, and say how it ended."""
        status = self._call("verdict")
        return Lost(status) if status else Closed()

    def close(self) -> None:
        self._call("close")
        self._call.close()

    def kill(self) -> None:
        """The process is gone without a word."""
        self._call.close()


@dataclass
class RemoteListener:
    """A listener of the raw peer; the connection it takes is its only one."""

    call: Commands
    address: tuple[str, int]

    def getsockname(self) -> tuple[str, int]:
        return self.address

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self.call.close()


@dataclass(frozen=True)
class Verbs:
    """The links of one RDMA device: what rawpeer is for TCP.

    Args:
        host: Its address.
        immediate: Say that we can do WRITE with immediate data.
    """

    host: str
    immediate: bool

    def _hello(self, mine: Hello | None) -> Hello:
        mine = mine or Hello()
        return replace(mine, flags=mine.flags | (IMMEDIATE if self.immediate else 0))

    def connect(self, address: tuple[str, int], mine: Hello | None = None, *, private: bytes | None = None) -> Agreed:
        """Be the active side; private goes instead of the hello."""
        call = Service.get().connection()
        try:
            return _agreed(call, call("connect", address, self._hello(mine), private))
        except BaseException:
            call.close()
            raise

    def listener(self, host: str) -> RemoteListener:
        call = Service.get().connection()
        return RemoteListener(call, call("listen", host))

    def accept(self, listener: RemoteListener, mine: Hello | None = None, *, private: bytes | None = None) -> Agreed:
        """Be the passive side."""
        return _agreed(listener.call, listener.call("accept", self._hello(mine), private))


def _agreed(call: Commands, answer: tuple[Hello, Hello, bool]) -> Agreed:
    mine, theirs, _ = answer
    link = RemoteLink(call)
    if mine.flags & STREAM:
        assert isinstance(link.memory, RemoteMemory)
        link.memory.keep(mine.ring_addr, mine.ring_rkey, mine.ring_len)
    return Agreed(link, mine, theirs, None, Frame(private=theirs.encode()))


DEVICES = {"rxe": Verbs("10.77.0.1", immediate=True), "siw": Verbs("10.78.0.1", immediate=False)}
