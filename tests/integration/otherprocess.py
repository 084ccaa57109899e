# SPDX-License-Identifier: MIT OR Apache-2.0
"""A peer in a process of its own, which can be stopped and killed.

The process runs a few lines of ES-API given by the test, after the prelude below, and talks to the test by lines:
``say(...)`` there, :meth:`Other.hear` here; :meth:`Other.tell` here, ``wait()`` there.  Every wait is bounded.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

from ground import HOST, patient

TIMEOUT = patient(20.0)

PRELUDE = (
    f"TIMEOUT = {TIMEOUT}\n"
    + """
import ctypes, errno, gc, mmap, os, select, signal, socket, struct, sys, time
from exs.esapi import *
import exs

U = EXS_MHANDLE_UNREGISTERED
KIND = socket.SOCK_STREAM
host, port = sys.argv[1], int(sys.argv[2])
exs_init()
q = exs_qcreate(64)

def say(*words):
    print(*words, flush=True)

def wait():
    if not select.select([0], [], [], TIMEOUT)[0]:
        sys.exit("the test says nothing")
    return os.read(0, 100).decode().strip()

def take(count=1):
    events = exs_qdequeue(q, -count, TIMEOUT)
    assert len(events) == count, events
    return events if count > 1 else events[0]

def connect():
    fd = exs_socket(socket.AF_INET, KIND)
    exs_connect(fd, (host, port), "connect", q)
    take().raise_for_errno()
    return fd

def serve():
    listener = exs_socket(socket.AF_INET, KIND)
    exs_bind(listener, (host, 0))
    exs_listen(listener)
    say(exs_getsockname(listener)[1])
    return listener

def serve_one():
    listener = serve()
    exs_accept(listener, "accept", q)
    event = take()
    event.raise_for_errno()
    return event.exs_evt_union.exs_evt_fd

def pattern(n):
    return (bytes(range(1, 252)) * (n // 251 + 1))[:n]

def send(fd, data, mh=U):
    exs_send(fd, data, None, 0, mh, "send", q)

def recv(fd, room, flags=0, mh=U, ah="recv"):
    exs_recv(fd, room, None, flags, mh, ah, q)

def mark():
    # Whoever has this byte has every advertisement of ours.
    send(fd, b"m")
    take().raise_for_errno()

def marked():
    recv(fd, bytearray(1), MSG_WAITALL)
    take().raise_for_errno()

def forever():
    while True:
        exs_qdequeue(q, 8, 0.1)
"""
)


def pattern(n: int) -> bytes:
    """As in the other process: no byte of it is zero."""
    return (bytes(range(1, 252)) * (n // 251 + 1))[:n]


class Other:
    """See above.

    Args:
        code: What it runs.
        address: What ``connect()`` dials.
        env: Environment variables to set.
        prefix: Command to run it under.
        args: Arguments behind the address.
    """

    def __init__(
        self,
        code: str,
        address: tuple[str, int] = (HOST, 0),
        *,
        prefix: list[str] | None = None,
        args: list[str] | None = None,
        **env: str,
    ) -> None:
        self.process = subprocess.Popen(
            [
                *(prefix or []),
                sys.executable,
                "-W",
                "error",
                "-c",
                PRELUDE + code,
                address[0],
                str(address[1]),
                *(args or []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **env},
        )
        self._lines = b""

    def hear(self, want: str | None = None) -> str:
        """Its next line; which must be this one."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + TIMEOUT
        while b"\n" not in self._lines:
            left = deadline - time.monotonic()
            assert left > 0, "the other process says nothing"
            if select.select([self.process.stdout], [], [], left)[0]:
                got = os.read(self.process.stdout.fileno(), 65536)
                assert got, f"the other process has ended: {self.process.wait(5)}"
                self._lines += got
        line, _, self._lines = self._lines.partition(b"\n")
        text = line.decode()
        assert want is None or text == want, text
        return text

    def heard(self) -> bool:
        """Whether a line has come."""
        assert self.process.stdout is not None
        return b"\n" in self._lines or bool(select.select([self.process.stdout], [], [], 0)[0])

    def tell(self, word: str = "go") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word.encode() + b"\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait(TIMEOUT)

    def stop(self) -> None:
        """SIGSTOP, and wait until no thread of it runs."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """It must end by itself, and well."""
        assert self.process.wait(TIMEOUT) == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except OSError:
                pass
