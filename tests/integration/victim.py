# SPDX-License-Identifier: MIT OR Apache-2.0
"""An ES-API program that is attacked: it counts its events, and has a second connection that must not suffer.

Owns a queue, a listener and two healthy sockets.  Invariant, checked by :meth:`Victim.finish`: every accepted post
has yielded exactly one event, and nothing is left of the attacked connections.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from ground import HOST, patient

from exs import esapi
from exs.events import AcceptPart, ExsEvent
from exs.testing import Leaks

T = TypeVar("T")

TIMEOUT = patient(10.0)
UNREGISTERED = esapi.EXS_MHANDLE_UNREGISTERED


def tcp_listener(host: str) -> socket.socket:
    """A TCP listener on a free port."""
    return socket.create_server((host, 0))


class Victim:
    """See above.

    Args:
        kind: ``SOCK_STREAM`` or ``SOCK_SEQPACKET``.
        healthy: Make the second connection.
        mode: Progress of what it accepts.
    """

    def __init__(self, kind: int = socket.SOCK_STREAM, *, healthy: bool = True, mode: str = "inline") -> None:
        esapi.exs_init()
        self._before = Leaks.now()
        self.kind = kind
        self.queue = esapi.exs_qcreate(256)
        self.posts: Counter[object] = Counter()
        self.events: dict[object, ExsEvent] = {}
        self.open: set[int] = set()
        self.listener = self.socket()
        esapi.exs_setsockopt(self.listener, esapi.SOL_EXS, esapi.EXS_SO_PROGRESS, mode == "thread")
        esapi.exs_bind(self.listener, (HOST, 0))
        esapi.exs_listen(self.listener)
        host, port, *_ = esapi.exs_getsockname(self.listener)
        self.address = (str(host), int(port))
        self.serial = 0
        self._accepts = 0
        self._pings = 0
        self.good: tuple[int, int] | None = self._pair() if healthy else None

    # --- events

    def posted(self, cookie: object) -> None:
        """A post was accepted."""
        assert cookie not in self.posts, f"cookie {cookie} is used twice"
        self.posts[cookie] += 1

    def drain(self, timeout: float = 0.0) -> None:
        """Make progress; take what events there are."""
        for event in esapi.exs_qdequeue(self.queue, 64, timeout):
            cookie = event.exs_evt_ahandle
            assert cookie in self.posts, f"an event that answers no post: {event}"
            assert cookie not in self.events, f"a second event for {cookie}: {self.events[cookie]} and {event}"
            self.events[cookie] = event
            if isinstance(event.exs_evt_union, AcceptPart) and event.exs_evt_errno == 0:
                self.open.add(event.exs_evt_union.exs_evt_fd)

    def until(self, holds: Callable[[], T], timeout: float = TIMEOUT, *, step: float = 0.01) -> T:
        """Make progress until something holds; step 0: look as often as can be."""
        deadline = time.monotonic() + timeout
        while True:
            got = holds()
            if got:
                return got
            assert time.monotonic() < deadline, "it never came true"
            self.drain(step)

    def expect(self, cookie: object, *errors: int, timeout: float = TIMEOUT) -> ExsEvent:
        """The event of a post, which must have this errno, or one of these."""
        event = self.until(lambda: self.events.get(cookie), timeout)
        wanted = errors or (0,)
        assert event.exs_evt_errno in wanted, f"{cookie}: errno {event.exs_evt_errno}, not {wanted}: {event}"
        return event

    def during(self, act: Callable[[], T], timeout: float = 3 * TIMEOUT) -> T:
        """Make progress while a thread acts; what it returned or raised."""
        results: list[T] = []
        problems: list[BaseException] = []

        def run() -> None:
            try:
                results.append(act())
            except BaseException as problem:
                problems.append(problem)

        thread = threading.Thread(target=run, name="raw peer", daemon=True)
        thread.start()
        deadline = time.monotonic() + timeout
        while thread.is_alive():
            assert time.monotonic() < deadline, "the raw peer never ends"
            self.drain(0.001)
        thread.join()
        if problems:
            raise problems[0]
        return results[0]

    # --- posts

    def socket(self) -> int:
        fd = esapi.exs_socket(socket.AF_INET, self.kind)
        self.open.add(fd)
        return fd

    def accept(self, connect: Callable[[tuple[str, int]], T]) -> tuple[int, T]:
        """Accept what a thread connects: our socket, and what it returned."""
        self._accepts += 1
        cookie = f"accept {self._accepts}"
        esapi.exs_accept(self.listener, cookie, self.queue)
        self.posted(cookie)
        got = self.during(lambda: connect(self.address))
        fd = self.expect(cookie).exs_evt_union.exs_evt_fd  # type: ignore[union-attr]
        return fd, got

    def connect(
        self, accept: Callable[[Any], T], listen: Callable[[str], Any] = tcp_listener
    ) -> tuple[int, T]:  # Any: each link has its own kind of listener
        """Connect to a thread that accepts: our socket, and what it returned."""
        with listen(HOST) as listener:
            fd = self.begin_connect(listener.getsockname(), cookie := f"connect {self._accepts}")
            self._accepts += 1
            got = self.during(lambda: accept(listener))
            self.expect(cookie)
        return fd, got

    def begin_connect(self, address: tuple[str, int], cookie: object) -> int:
        fd = self.socket()
        esapi.exs_connect(fd, address, cookie, self.queue)
        self.posted(cookie)
        return fd

    def recv(self, fd: int, buffer: object, cookie: object, flags: int = 0, mh: esapi.MHandle = UNREGISTERED) -> None:
        esapi.exs_recv(fd, buffer, None, flags, mh, cookie, self.queue)  # type: ignore[arg-type]
        self.posted(cookie)

    def send(self, fd: int, buffer: object, cookie: object, flags: int = 0, mh: esapi.MHandle = UNREGISTERED) -> None:
        esapi.exs_send(fd, buffer, None, flags, mh, cookie, self.queue)  # type: ignore[arg-type]
        self.posted(cookie)

    def mark(self, fd: int) -> None:
        """Send a byte: whoever has it has every advertisement of ours, since messages keep their order."""
        self.send(fd, b"m", cookie := f"mark {len(self.posts)}")
        self.expect(cookie)

    def marked(self, fd: int) -> None:
        """Receive such a byte."""
        self.recv(fd, bytearray(1), cookie := f"marked {len(self.posts)}", esapi.MSG_WAITALL)
        self.expect(cookie)

    def close(self, fd: int, *, abort: bool = False) -> ExsEvent:
        """Close and wait for the event."""
        if abort:
            esapi.exs_setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.open.discard(fd)
        cookie = f"close {fd} {len(self.posts)}"
        esapi.exs_close(fd, cookie, self.queue)
        self.posted(cookie)
        return self.until(lambda: self.events.get(cookie))

    # --- the connection that must not suffer

    def _pair(self) -> tuple[int, int]:
        esapi.exs_accept(self.listener, "good accept", self.queue)
        self.posted("good accept")
        a = self.begin_connect(self.address, "good connect")
        self.expect("good connect")
        b = self.expect("good accept").exs_evt_union.exs_evt_fd  # type: ignore[union-attr]
        return a, b

    def healthy(self) -> None:
        """The second connection works in both directions."""
        assert self.good is not None
        for a, b in (self.good, self.good[::-1]):
            self._pings += 1
            n = self._pings
            data = f"{n:06}".encode() * 500
            room = bytearray(len(data))
            self.recv(b, room, f"ping recv {n}", esapi.MSG_WAITALL if self.kind == socket.SOCK_STREAM else 0)
            self.send(a, data, f"ping send {n}")
            self.expect(f"ping recv {n}")
            self.expect(f"ping send {n}")
            assert room == data

    # --- the end

    def forget(self) -> None:
        """The books of operations that are over are closed."""
        assert len(self.events) == len(self.posts)
        self.posts.clear()
        self.events.clear()

    def abandon(self) -> None:
        """The test has failed: only do not stand in the way of the next one."""
        for fd in sorted(self.open):
            esapi.exs_setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            esapi.exs_close(fd, None, self.queue)
        esapi.exs_qdequeue(self.queue, 64, 0.05)

    def finish(self) -> None:
        """Everything ends; each post had its event, and nothing is left."""
        for fd in sorted(self.open):
            self.close(fd)
        self.until(lambda: len(self.events) == len(self.posts))
        self.drain(0.0)
        esapi.exs_qdelete(self.queue)
        self.settle()

    def settle(self) -> None:
        """Nothing is left; connections that linger have until the bound."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            queue = esapi.exs_qcreate(8)
            esapi.exs_qdequeue(queue, 1, 0.01)  # makes progress
            esapi.exs_qdelete(queue)
            left = leaks_since(self._before)
            if not left:
                return
            assert time.monotonic() < deadline, f"left behind: {left}"


def leaks_since(before: Leaks) -> list[str]:
    """What the process holds now and did not hold before."""
    after = Leaks.now()
    left = [f"{after.mappings - before.mappings} mappings"] if after.mappings > before.mappings else []
    if len(after.descriptors) > len(before.descriptors):
        left += sorted(after.descriptors - before.descriptors)
    if len(after.threads) > len(before.threads):
        left += [f"thread {t}" for t in after.threads - before.threads]
    return left
