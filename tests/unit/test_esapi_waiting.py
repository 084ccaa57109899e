# SPDX-License-Identifier: MIT OR Apache-2.0
"""The literal ES-API: calls without a queue, signals."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import threading
import time

import pytest
from esapi_support import LOOPBACK, SEQPACKET, STREAM, UNREGISTERED, Maker, Pair, collect

import exs
from exs import esapi
from exs.esapi import *

pytestmark = pytest.mark.usefixtures("es_api")


# --- without a queue


def test_calls_without_a_queue_wait_and_return_their_result() -> None:
    listener = exs_socket(socket.AF_INET, STREAM)
    exs_bind(listener, LOOPBACK)
    exs_listen(listener)
    address = exs_getsockname(listener)
    got: list[bytes] = []

    def serve() -> None:
        fd = exs_accept(listener, None, None)
        assert fd is not None
        room = bytearray(100)
        while count := exs_recv(fd, room, None, 0, UNREGISTERED, None, None):
            got.append(bytes(room[:count]))
            assert exs_send(fd, room, count, 0, UNREGISTERED, None, None) == count
        exs_close(fd)

    thread = threading.Thread(target=serve)
    thread.start()
    client = exs_socket(socket.AF_INET, STREAM)
    assert exs_connect(client, address, None, None) is None
    room = bytearray(5)
    for word in (b"hello", b"world"):
        assert exs_send(client, word, None, 0, UNREGISTERED, None, None) == 5
        assert exs_recv(client, room, None, MSG_WAITALL, UNREGISTERED, None, None) == 5
        assert room == word
    exs_shutdown(client, socket.SHUT_WR, None, None)
    thread.join(10)
    assert not thread.is_alive()
    assert exs_recv(client, room, None, 0, UNREGISTERED, None, None) == 0
    exs_close(client)
    exs_close(listener)
    assert b"".join(got) == b"helloworld"


def test_a_failed_call_without_a_queue_raises() -> None:
    with socket.socket() as reserved:
        reserved.bind(LOOPBACK)
        fd = exs_socket(socket.AF_INET, STREAM)
        with pytest.raises(ConnectionRefusedError) as caught:
            exs_connect(fd, reserved.getsockname(), None, None)
        assert isinstance(caught.value, exs.Error)
        exs_close(fd)


def test_a_message_cut_without_a_queue_raises(pairs: Maker) -> None:
    pair = pairs(SEQPACKET)
    qh = exs_qcreate(1)
    exs_send(pair.a, b"x" * 1000, None, 0, UNREGISTERED, None, qh)
    with pytest.raises(exs.TruncatedError) as caught:
        exs_recv(pair.b, bytearray(100), None, 0, UNREGISTERED, None, None)
    assert (caught.value.length, caught.value.placed) == (1000, 100)
    exs_qdequeue(qh, 1, 10)
    exs_qdelete(qh)


def test_dont_wait_takes_what_is_there_or_fails(pair: Pair) -> None:
    room = bytearray(10)
    with pytest.raises(BlockingIOError):
        exs_recv(pair.b, room, None, MSG_DONTWAIT, UNREGISTERED, None, None)
    exs_fcntl(pair.b, fcntl.F_SETFL, os.O_NONBLOCK)
    assert exs_fcntl(pair.b, fcntl.F_GETFL) & os.O_NONBLOCK
    with pytest.raises(BlockingIOError):
        exs_recv(pair.b, room, None, 0, UNREGISTERED, None, None)
    exs_send(pair.a, b"hello", None, 0, UNREGISTERED, None, None)
    assert exs_poll([(pair.b, EXS_POLLIN)], None, None) == ((pair.b, EXS_POLLIN),)
    assert exs_recv(pair.b, room, None, 0, UNREGISTERED, None, None) == 5
    assert room[:5] == b"hello"


def test_a_non_blocking_connect_and_accept() -> None:
    listener = exs_socket(socket.AF_INET, STREAM)
    exs_bind(listener, LOOPBACK)
    exs_listen(listener)
    exs_fcntl(listener, fcntl.F_SETFL, os.O_NONBLOCK)
    with pytest.raises(BlockingIOError):
        exs_accept(listener, None, None)
    client = exs_socket(socket.AF_INET, STREAM | socket.SOCK_NONBLOCK)
    with pytest.raises(exs.Error) as caught:
        exs_connect(client, exs_getsockname(listener), None, None)
    assert caught.value.errno == errno.EINPROGRESS
    assert exs_poll([(client, EXS_POLLOUT)], None, None)
    assert exs_getsockopt(client, socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert exs_poll([(listener, EXS_POLLIN)], None, None)
    served = exs_accept(listener, None, None)
    for fd in (client, served, listener):
        assert fd is not None
        exs_close(fd)


def interrupt_soon(delay: float = 0.2) -> threading.Timer:
    timer = threading.Timer(delay, signal.raise_signal, [signal.SIGINT])
    timer.start()
    return timer


@pytest.mark.parametrize("wait", [EXS_WAIT_ADAPTIVE, EXS_WAIT_NOTIFY, EXS_WAIT_BUSY_POLL])
def test_ctrl_c_interrupts_a_dequeue_and_loses_nothing(pair: Pair, queue: QHandle, wait: int) -> None:
    exs_qmodify(queue, EXS_QATTR_WAIT, wait)
    exs_send(pair.a, b"one", None, 0, UNREGISTERED, "one", queue)
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        exs_qdequeue(queue, -2, 10)
    timer.join()
    assert exs_qstatus(queue, EXS_QATTR_EVENTS) == 1
    assert select.select([queue], [], [], 1)[0]
    exs_send(pair.a, b"two", None, 0, UNREGISTERED, "two", queue)
    collect(queue, "one", "two")
    exs_qmodify(queue, EXS_QATTR_WAIT, EXS_WAIT_ADAPTIVE)


def test_ctrl_c_in_a_waiting_call_keeps_the_buffer_until_the_end(pair: Pair) -> None:
    room = bytearray(1 << 16)
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        exs_recv(pair.b, room, None, 0, UNREGISTERED, None, None)
    timer.join()
    # Either it was withdrawn, and the data is for the next receive, or it takes effect in a buffer that is still held.
    exs_send(pair.a, b"hello", None, 0, UNREGISTERED, None, None)
    esapi.descriptors.process().tidy()
    assert exs_recv(pair.b, room, None, 0, UNREGISTERED, None, None) == 5
    room.append(1)


def test_ctrl_c_in_an_accept_leaves_no_connection_behind(pair: Pair, no_leaks) -> None:
    listener = exs_socket(socket.AF_INET, STREAM)
    exs_bind(listener, LOOPBACK)
    exs_listen(listener)
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        exs_accept(listener, None, None)
    timer.join()
    exs_close(listener)
    esapi.descriptors.process().tidy()


def test_a_handled_signal_does_not_end_a_wait(queue: QHandle) -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGUSR1])
    try:
        timer.start()
        start = time.monotonic()
        assert exs_qdequeue(queue, 1, 0.4) == []
        assert time.monotonic() - start >= 0.39
        assert seen == [signal.SIGUSR1]
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
