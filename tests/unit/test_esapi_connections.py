# SPDX-License-Identifier: MIT OR Apache-2.0
"""The literal ES-API: connections, in one process and in two."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from esapi_support import LOOPBACK, SEQPACKET, STREAM, UNREGISTERED, Maker, Pair, collect, noise

import exs
from exs.esapi import *

pytestmark = pytest.mark.usefixtures("es_api")


# --- connections


# ES-API 1.8
def test_armed_accepts_are_filled_in_order(queue: QHandle) -> None:
    listener = exs_socket(socket.AF_INET, STREAM)
    exs_bind(listener, LOOPBACK)
    exs_listen(listener)
    for cookie in ("first", "second"):
        exs_accept(listener, cookie, queue)
    clients, served = [], []
    for cookie in ("first", "second"):
        clients.append(exs_socket(socket.AF_INET, STREAM))
        exs_connect(clients[-1], exs_getsockname(listener), "connect", queue)
        events = {e.exs_evt_ahandle: e for e in exs_qdequeue(queue, -2, 10)}
        part = events[cookie].exs_evt_union
        assert part.exs_evt_address == exs_getsockname(clients[-1])
        assert exs_getpeername(part.exs_evt_fd) == part.exs_evt_address
        served.append(part.exs_evt_fd)
    for fd in (*clients, *served, listener):
        exs_close(fd)


def test_a_refused_connection_is_an_event(queue: QHandle) -> None:
    with socket.socket() as reserved:
        reserved.bind(LOOPBACK)
        fd = exs_socket(socket.AF_INET, STREAM)
        exs_connect(fd, reserved.getsockname(), "connect", queue)
        (event,) = collect(queue, "connect")
    assert (event.exs_evt_type, event.exs_evt_errno) == (EXS_EVT_CONNECT, errno.ECONNREFUSED)
    exs_close(fd)


def test_closing_in_order_delivers_everything_first(pairs: Maker, queue: QHandle, path: bytes) -> None:
    pair = pairs(path=path)
    data = noise(300_000)
    exs_send(pair.a, data, None, 0, UNREGISTERED, "send", queue)
    exs_close(pair.a, "close", queue)
    room = bytearray(len(data))
    exs_recv(pair.b, room, None, MSG_WAITALL, UNREGISTERED, "recv", queue)
    sent, closed, _ = collect(queue, "send", "close", "recv")
    assert (sent.exs_evt_errno, closed.exs_evt_errno) == (0, 0)
    assert room == data
    assert exs_recv(pair.b, room, None, 0, UNREGISTERED, None, None) == 0
    with pytest.raises(exs.Error) as caught:
        exs_send(pair.a, b"x", None, 0, UNREGISTERED, None, queue)
    assert caught.value.errno == errno.EBADF


def test_a_closed_number_is_not_used_again_before_its_last_event(pair: Pair, queue: QHandle) -> None:
    exs_recv(pair.b, bytearray(5), None, 0, UNREGISTERED, "recv", queue)
    number = pair.b
    exs_close(pair.b, "close", queue)
    os.fstat(number)
    received, closed = collect(queue, "recv", "close")
    assert received.exs_evt_errno == errno.ECANCELED
    assert closed.exs_evt_socket == number
    del received, closed
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)


def test_linger_zero_aborts(pair: Pair, queue: QHandle) -> None:
    exs_recv(pair.a, bytearray(5), None, 0, UNREGISTERED, "mine", queue)
    exs_recv(pair.b, bytearray(5), None, 0, UNREGISTERED, "peer", queue)
    exs_setsockopt(pair.a, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exs_close(pair.a, "close", queue)
    mine, peer, closed = collect(queue, "mine", "peer", "close")
    assert (mine.exs_evt_errno, closed.exs_evt_errno) == (errno.ECONNABORTED, 0)
    assert peer.exs_evt_errno == errno.ECONNRESET


def test_a_close_succeeds_although_the_peer_has_reset_the_connection(pair: Pair, queue: QHandle) -> None:
    big = bytearray(32 << 20)
    exs_send(pair.a, big, None, 0, UNREGISTERED, "send", queue)
    exs_setsockopt(pair.b, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exs_close(pair.b, "abort", queue)
    exs_close(pair.a, "close", queue)
    send, abort, closed = collect(queue, "send", "abort", "close")
    assert send.exs_evt_errno == errno.ECONNRESET
    assert (abort.exs_evt_errno, closed.exs_evt_errno) == (0, 0)


def test_a_close_that_waits_does_not_raise_for_a_reset_connection(pair: Pair) -> None:
    exs_setsockopt(pair.b, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exs_close(pair.b, None, None)
    exs_close(pair.a, None, None)


def test_shutdown_of_each_direction(pair: Pair, queue: QHandle) -> None:
    exs_send(pair.a, b"last", None, 0, UNREGISTERED, "send", queue)
    exs_shutdown(pair.a, socket.SHUT_WR, "shutdown", queue)
    collect(queue, "send", "shutdown")
    with pytest.raises(BrokenPipeError):
        exs_send(pair.a, b"x", None, 0, UNREGISTERED, None, queue)
    room = bytearray(10)
    assert exs_recv(pair.b, room, None, 0, UNREGISTERED, None, None) == 4
    assert exs_recv(pair.b, room, None, 0, UNREGISTERED, None, None) == 0
    exs_recv(pair.a, room, None, 0, UNREGISTERED, "recv", queue)
    exs_shutdown(pair.a, socket.SHUT_RD, "shutdown", queue)
    received, _ = collect(queue, "recv", "shutdown")
    assert (received.exs_evt_errno, received.exs_evt_union.exs_evt_length) == (0, 0)
    exs_shutdown(pair.b, socket.SHUT_RDWR, "both", queue)
    collect(queue, "both")


# --- two processes


SERVER = """
import socket, sys, exs
from exs.esapi import *
U = EXS_MHANDLE_UNREGISTERED
exs_init()
listener = exs_socket(socket.AF_INET, socket.SOCK_STREAM)
exs_bind(listener, ("127.0.0.1", 0))
exs_listen(listener)
print(exs_getsockname(listener)[1], flush=True)
fd = exs_accept(listener, None, None)
room = bytearray(1 << 20)
while count := exs_recv(fd, room, None, 0, U, None, None):
    exs_send(fd, room, count, 0, U, None, None)
exs_close(fd)
exs_close(listener)
"""


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(**env: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-W", "error", "-c", SERVER],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env={**os.environ, **env},
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_processes_exchange_bytes(echo, path: bytes) -> None:
    server = echo(EXS_PATH=path.decode())
    client = exs_socket(socket.AF_INET, STREAM)
    exs_setsockopt(client, SOL_EXS, EXS_SO_PATH, path)
    exs_connect(client, ("127.0.0.1", int(server.stdout.readline())), None, None)
    qh = exs_qcreate(10)
    data, room = noise(5 << 20), bytearray(5 << 20)
    exs_recv(client, room, None, MSG_WAITALL, UNREGISTERED, "recv", qh)
    exs_send(client, data, None, EXS_SHUT_WR, UNREGISTERED, "send", qh)
    collect(qh, "send", "recv", timeout=20)
    assert room == data
    assert exs_recv(client, room, None, 0, UNREGISTERED, None, None) == 0
    exs_close(client)
    exs_qdelete(qh)
    _, err = server.communicate(timeout=10)
    assert server.returncode == 0, err


def test_a_killed_peer_ends_every_operation_once(echo, path: bytes) -> None:
    server = echo(EXS_PATH=path.decode())
    client = exs_socket(socket.AF_INET, STREAM)
    exs_connect(client, ("127.0.0.1", int(server.stdout.readline())), None, None)
    qh = exs_qcreate(10)
    rooms = [bytearray(1000) for _ in range(3)]
    for i, room in enumerate(rooms):
        exs_recv(client, room, None, 0, UNREGISTERED, i, qh)
    exs_qdequeue(qh, 1, 0.05)
    server.kill()
    events = exs_qdequeue(qh, -3, 10)
    assert sorted(e.exs_evt_ahandle for e in events) == [0, 1, 2]
    assert {e.exs_evt_errno for e in events} <= {errno.ECONNRESET, errno.ETIMEDOUT}
    assert exs_qdequeue(qh, 1, 0.05) == []
    for room in rooms:
        room.append(0)
    exs_close(client)
    exs_qdelete(qh)


def test_ctrl_c_stops_a_program_that_waits(echo) -> None:
    server = echo()
    assert server.stdout.readline(), server.stderr.read()
    time.sleep(0.3)
    server.send_signal(signal.SIGINT)
    _, err = server.communicate(timeout=10)
    assert "KeyboardInterrupt" in err


# --- nothing is left


def test_connections_leave_no_descriptor_and_no_mapping_behind(pairs: Maker) -> None:
    def state() -> tuple[int, int]:
        gc.collect()
        maps = sum("memfd" in line for line in Path("/proc/self/maps").read_text().splitlines())
        return len(os.listdir("/proc/self/fd")), maps

    def cycle() -> None:
        for kind in (STREAM, SEQPACKET):
            pair = Pair(kind)
            qh = exs_qcreate(4)
            exs_send(pair.a, b"x" * 5000, None, 0, UNREGISTERED, 1, qh)
            exs_recv(pair.b, bytearray(5000), None, 0, UNREGISTERED, 2, qh)
            assert len(exs_qdequeue(qh, -2, 10)) == 2
            pair.close()
            exs_qdelete(qh)

    def settled() -> tuple[int, int]:
        deadline = time.monotonic() + 8
        before = state()
        while time.monotonic() < deadline:  # closed connections linger until the peer answered
            qh = exs_qcreate(1)
            exs_qdequeue(qh, 1, 0.1)
            exs_qdelete(qh)
            now = state()
            if now == before:
                break
            before = now
        return before

    cycle()
    before = settled()
    for _ in range(5):
        cycle()
    assert settled() == before
