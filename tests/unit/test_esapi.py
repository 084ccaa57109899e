# SPDX-License-Identifier: MIT OR Apache-2.0
"""The literal ES-API in one process: both ends of a connection in the same thread, or one in another."""

from __future__ import annotations

import errno
import fcntl
import gc
import inspect
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import exs
from exs import _native, esapi
from exs.esapi import *  # noqa: F403  the module is made to be read without its name

ROOT = Path(__file__).resolve().parents[2]
UNREGISTERED = esapi.EXS_MHANDLE_UNREGISTERED
STREAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_SEQPACKET
LOOPBACK = ("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def _init() -> Iterator[None]:
    exs_init()
    yield
    process = esapi.descriptors.process()
    left = dict(process.table)
    for fd in left:  # what a failed test left open must not disturb the next
        exs_setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        exs_close(fd)
    assert not left
    process.tidy()
    gc.collect()
    assert [p for p in _native.ops.owners() if isinstance(p, esapi.descriptors.Post)] == []


@pytest.fixture
def queue() -> Iterator[QHandle]:
    qh = exs_qcreate(64)
    yield qh
    exs_qdelete(qh)


class Pair:
    """A connected pair: ``a`` connected, ``b`` was accepted."""

    def __init__(self, kind: int = STREAM, family: int = socket.AF_INET, **options: object) -> None:
        def make() -> int:
            fd = exs_socket(family, kind)
            for name, value in options.items():
                exs_setsockopt(fd, SOL_EXS, getattr(esapi, f"EXS_SO_{name.upper()}"), value)
            return fd

        qh = exs_qcreate(4)
        listener = make()
        exs_bind(listener, LOOPBACK if family == socket.AF_INET else ("::1", 0))
        exs_listen(listener)
        self.a = make()
        exs_accept(listener, "accept", qh)
        exs_connect(self.a, exs_getsockname(listener), "connect", qh)
        events = {e.exs_evt_ahandle: e for e in exs_qdequeue(qh, -2, 10)}
        for event in events.values():
            event.raise_for_errno()
        self.b = events["accept"].exs_evt_union.exs_evt_fd
        exs_close(listener)
        exs_qdelete(qh)

    def close(self) -> None:
        qh = exs_qcreate(2)
        closing = [fd for fd in (self.a, self.b) if fd in esapi.descriptors.process().table]
        for fd in closing:
            exs_close(fd, fd, qh)
        if closing:
            assert len(exs_qdequeue(qh, -len(closing), 10)) == len(closing)
        exs_qdelete(qh)


Maker = Callable[..., Pair]


@pytest.fixture
def pairs() -> Iterator[Maker]:
    made: list[Pair] = []

    def make(*args: object, **options: object) -> Pair:
        made.append(Pair(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.fixture(params=["tcp", "shm-vm", "shm-ring"])
def path(request: pytest.FixtureRequest) -> bytes:
    return request.param.encode()


@pytest.fixture(params=[EXS_PROGRESS_INLINE, EXS_PROGRESS_THREAD], ids=["inline", "thread"])
def progress(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def pair(pairs: Maker) -> Pair:
    return pairs()


def collect(qh: QHandle, *cookies: object, timeout: float = 10) -> list[ExsEvent]:
    """The events with these cookies, in this order; there must be no others."""
    events = exs_qdequeue(qh, -len(cookies), timeout)
    by_cookie = {id(e.exs_evt_ahandle): e for e in events}
    assert {id(c) for c in cookies} == set(by_cookie), events
    return [by_cookie[id(c)] for c in cookies]


def noise(nbytes: int) -> bytearray:
    return bytearray(random.randbytes(nbytes))


# --- names and numbers


def test_the_constants_are_those_of_the_header() -> None:
    header = (ROOT / "native/include/exs.h").read_text()
    defined = dict(re.findall(r"#define ((?:EXS|SO_ASYNC|SOL)_\w+)\s+(0x[0-9a-fA-F]+|\d+)\b", header))
    defined |= dict(re.findall(r"^    (EXS_EVT_\w+) = (\d+),", header, re.MULTILINE))
    only_in_c = {"EXS_IOVEC", "EXS_FDVEC", "EXS_CAF_FILDES", "EXS_CAF_AHANDLE", "EXS_XF_DIRECT", "EXS_XF_INDIRECT"}
    assert len(defined) > 40
    for name, value in defined.items():
        if name not in only_in_c:
            assert getattr(esapi, name) == int(value, 0), name
    assert int(defined["EXS_XF_DIRECT"], 0) == esapi.XferFlags.EXS_XF_DIRECT
    assert int(defined["EXS_XF_INDIRECT"], 0) == esapi.XferFlags.EXS_XF_INDIRECT


def test_every_function_of_the_header_is_there() -> None:
    header = (ROOT / "native/include/exs.h").read_text()
    functions = set(re.findall(r"^EXS_API [\w ]+?[ *](exs_\w+)\(", header, re.MULTILINE))
    assert len(functions) >= 27
    assert functions == {n for n in esapi.__all__ if n.startswith("exs_")}


def test_constants_print_their_names() -> None:
    assert repr(EXS_EVT_SEND) == "<ExsEvtType.EXS_EVT_SEND: 1>"
    assert repr(EXS_ACCESS_READ | EXS_ACCESS_WRITE) == "<MemoryFlag.EXS_ACCESS_READ|EXS_ACCESS_WRITE: 3>"


# --- beginning


def test_another_version_is_refused() -> None:
    with pytest.raises(exs.Error) as caught:
        exs_init(EXS_VERSION + 1)
    assert caught.value.errno == errno.EINVAL
    exs_init()
    exs_init(EXS_VERSION1)


def test_nothing_works_before_init(run_python) -> None:
    done = run_python(
        """
import errno, socket, exs
from exs import esapi
for call in (lambda: esapi.exs_socket(socket.AF_INET, socket.SOCK_STREAM), lambda: esapi.exs_qcreate(5),
             lambda: esapi.exs_mregister(bytearray(5), 1), lambda: esapi.exs_close(3)):
    try:
        call()
    except exs.Error as e:
        assert e.errno == errno.EINVAL and "exs_init" in str(e), e
    else:
        raise SystemExit("accepted")
"""
    )
    assert done.returncode == 0, done.stderr


# --- the slide's example


def test_the_slides_example(pair: Pair) -> None:
    data = bytearray(b"hello, world")
    mh = exs_mregister(data, EXS_ACCESS_READ)
    qh = exs_qcreate(10)
    exs_send(pair.a, data, len(data), 0, mh, 0, qh)
    (event,) = exs_qdequeue(qh, 1, None)
    assert (event.exs_evt_errno, event.exs_evt_union.exs_evt_length) == (0, len(data))
    assert (event.exs_evt_type, event.exs_evt_socket, event.exs_evt_ahandle) == (EXS_EVT_SEND, pair.a, 0)
    exs_mderegister(mh)
    exs_qdelete(qh)


# --- transfers, on every path and in both modes


@pytest.mark.parametrize("nbytes", [1, 4096, 65536, 1 << 20, (3 << 20) + 17])
def test_stream_bytes_arrive_as_they_were(
    pairs: Maker, queue: QHandle, path: bytes, progress: int, nbytes: int
) -> None:
    pair = pairs(path=path, progress=progress)
    assert exs_getsockopt(pair.a, SOL_EXS, EXS_SO_PATH) == path
    data, room = noise(nbytes), bytearray(nbytes)
    send_mh, recv_mh = exs_mregister(data, EXS_ACCESS_READ), exs_mregister(room, EXS_ACCESS_WRITE)
    exs_recv(pair.b, room, None, MSG_WAITALL, recv_mh, "recv", queue)
    exs_send(pair.a, data, None, 0, send_mh, "send", queue)
    sent, received = collect(queue, "send", "recv")
    assert (sent.exs_evt_errno, sent.exs_evt_union.exs_evt_length) == (0, nbytes)
    assert (received.exs_evt_errno, received.exs_evt_union.exs_evt_length) == (0, nbytes)
    assert received.exs_evt_type is EXS_EVT_RECV
    assert room == data
    exs_mderegister(send_mh)
    exs_mderegister(recv_mh)


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 1 << 20])
def test_messages_keep_their_borders(pairs: Maker, queue: QHandle, path: bytes, progress: int, nbytes: int) -> None:
    pair = pairs(SEQPACKET, path=path, progress=progress)
    rooms = [bytearray(nbytes + 10) for _ in range(3)]
    datas = [noise(nbytes) for _ in range(3)]
    for i, room in enumerate(rooms):
        exs_recv(pair.b, room, None, 0, UNREGISTERED, i, queue)
    cookies = ["s0", "s1", "s2"]
    for cookie, data in zip(cookies, datas, strict=True):
        exs_send(pair.a, data, None, 0, UNREGISTERED, cookie, queue)
    events = {e.exs_evt_ahandle: e for e in exs_qdequeue(queue, -6, 10)}
    for i, (room, data) in enumerate(zip(rooms, datas, strict=True)):
        assert events[i].exs_evt_errno == 0
        assert events[i].exs_evt_union.exs_evt_length == nbytes
        assert events[i].exs_evt_union.exs_evt_flags & esapi.XferFlags.MSG_EOR
        assert room[:nbytes] == data


def test_a_receive_posted_ahead_is_not_copied(pairs: Maker, queue: QHandle, path: bytes) -> None:
    pair = pairs(path=path)
    data, room = noise(1 << 20), bytearray(1 << 20)
    send_mh, recv_mh = exs_mregister(data, EXS_ACCESS_READ), exs_mregister(room, EXS_ACCESS_WRITE)
    exs_recv(pair.b, room, None, MSG_WAITALL, recv_mh, "recv", queue)
    before = exs.statistics()
    deadline = time.monotonic() + 0.05
    while time.monotonic() < deadline:  # the advertisement travels
        assert exs_qdequeue(queue, 1, 0) == []
    exs_send(pair.a, data, None, 0, send_mh, "send", queue)
    _, received = collect(queue, "send", "recv")
    after = exs.statistics()
    assert received.exs_evt_union.exs_evt_flags == esapi.XferFlags.EXS_XF_DIRECT
    assert after.bytes_direct - before.bytes_direct == 1 << 20
    # The ring is the last rung: there private memory takes a copy on each side, and both are counted.
    assert after.bytes_copied - before.bytes_copied == (2 << 20 if path == b"shm-ring" else 0)
    assert room == data
    exs_mderegister(send_mh)
    exs_mderegister(recv_mh)


def test_allocated_memory_is_sent_through_a_mapping(pairs: Maker, queue: QHandle) -> None:
    pair = pairs(path=b"shm")
    with exs.MemoryRegion.allocate(1 << 20) as region, exs.MemoryRegion.allocate(1 << 20) as room:
        region.view[:] = noise(1 << 20)
        send_mh, recv_mh = exs_mregister(region, EXS_ACCESS_READ), exs_mregister(room, EXS_ACCESS_WRITE)
        before = exs.statistics()
        exs_recv(pair.b, room, None, MSG_WAITALL, recv_mh, "recv", queue)
        exs_qdequeue(queue, 1, 0)
        exs_send(pair.a, region, None, 0, send_mh, "send", queue)
        collect(queue, "send", "recv")
        assert room.view == region.view
        assert exs.statistics().bytes_mapped - before.bytes_mapped == 1 << 20


def test_many_transfers_in_both_directions_keep_their_order(pairs: Maker, path: bytes, progress: int) -> None:
    pair = pairs(path=path, progress=progress)
    qh = exs_qcreate(64)
    count, size = 40, 30_000
    streams = {pair.a: noise(count * size), pair.b: noise(count * size)}
    peers = {pair.a: pair.b, pair.b: pair.a}
    got = {fd: bytearray(count * size) for fd in streams}
    sent, placed = dict.fromkeys(streams, 0), dict.fromkeys(streams, 0)
    in_flight: dict[tuple[str, int], int] = {("s", fd): 0 for fd in streams} | {("r", fd): 0 for fd in streams}
    posted = dict.fromkeys(streams, 0)
    while any(n < count * size for n in placed.values()):
        for fd in streams:
            while in_flight["s", fd] < 8 and sent[fd] < count:
                piece = memoryview(streams[fd])[sent[fd] * size : (sent[fd] + 1) * size]
                exs_send(fd, piece, None, 0, UNREGISTERED, ("s", fd), qh)
                sent[fd] += 1
                in_flight["s", fd] += 1
            while in_flight["r", fd] < 4 and posted[fd] < count:
                piece = memoryview(got[fd])[posted[fd] * size : (posted[fd] + 1) * size]
                exs_recv(fd, piece, None, MSG_WAITALL, UNREGISTERED, ("r", fd), qh)
                posted[fd] += 1
                in_flight["r", fd] += 1
        events = exs_qdequeue(qh, 16, 10)
        assert events
        for event in events:
            event.raise_for_errno()
            in_flight[event.exs_evt_ahandle] -= 1
            if event.exs_evt_ahandle[0] == "r":
                placed[event.exs_evt_socket] += event.exs_evt_union.exs_evt_length
    while any(in_flight.values()):
        for event in exs_qdequeue(qh, 16, 10):
            in_flight[event.exs_evt_ahandle] -= 1
    for fd, peer in peers.items():
        assert got[peer] == streams[fd]
    exs_qdelete(qh)


def test_pieces_are_sent_and_received_as_one(pair: Pair, queue: QHandle) -> None:
    parts = [noise(n) for n in (10, 70_000, 0, 333)]
    rooms = [bytearray(n) for n in (50_000, 1, 20_342)]
    mh = exs_mregister(parts[1], EXS_ACCESS_READ)
    exs_recvmsg(pair.b, [(r, UNREGISTERED) for r in rooms], MSG_WAITALL, "recv", queue)
    handles = [UNREGISTERED, mh, UNREGISTERED, UNREGISTERED]
    exs_sendmsg(pair.a, list(zip(parts, handles, strict=True)), 0, "send", queue)
    sent, received = collect(queue, "send", "recv")
    assert (sent.exs_evt_type, received.exs_evt_type) == (EXS_EVT_SENDMSG, EXS_EVT_RECVMSG)
    assert sent.exs_evt_union.exs_evt_length == received.exs_evt_union.exs_evt_length == 70_343
    assert b"".join(rooms) == b"".join(parts)
    exs_mderegister(mh)


def test_a_message_that_is_too_long_is_cut_and_says_so(pairs: Maker, queue: QHandle, path: bytes) -> None:
    pair = pairs(SEQPACKET, path=path)
    room = bytearray(100)
    exs_recv(pair.b, room, None, 0, UNREGISTERED, "recv", queue)
    exs_send(pair.a, b"x" * 1000, None, 0, UNREGISTERED, "send", queue)
    sent, received = collect(queue, "send", "recv")
    assert (sent.exs_evt_errno, sent.exs_evt_union.exs_evt_length) == (0, 1000)
    assert received.exs_evt_union.exs_evt_length == 100
    assert received.exs_evt_union.exs_evt_full_length == 1000
    assert received.exs_evt_union.exs_evt_flags & esapi.XferFlags.MSG_TRUNC


def test_with_strict_size_a_long_message_stays_with_its_sender(pairs: Maker, queue: QHandle) -> None:
    pair = pairs(SEQPACKET, strict_size=1)
    room = bytearray(100)
    exs_recv(pair.b, room, None, 0, UNREGISTERED, "recv", queue)
    exs_send(pair.a, b"x" * 1000, None, 0, UNREGISTERED, "long", queue)
    exs_send(pair.a, b"fits", None, 0, UNREGISTERED, "short", queue)
    long, short, received = collect(queue, "long", "short", "recv")
    assert long.exs_evt_errno == errno.EMSGSIZE
    assert (short.exs_evt_errno, received.exs_evt_union.exs_evt_length) == (0, 4)
    assert room[:4] == b"fits"


# --- files


def test_a_file_is_sent_without_moving_its_offset(pair: Pair, queue: QHandle, tmp_path: Path) -> None:
    content = noise(700_001)
    file = tmp_path / "file"
    file.write_bytes(content)
    room = bytearray(5 + 600_000 + 3 + 100 + 1)
    exs_recv(pair.b, room, None, MSG_WAITALL, UNREGISTERED, "recv", queue)
    with file.open("rb") as f:
        f.seek(33)
        parts = [b"head:", FilePart(f.fileno(), 100_000, 600_000), b"..." , FilePart(f.fileno(), 1, 100),
                 FilePart(f.fileno(), 700_000), FilePart(f.fileno(), 800_000, 10)]  # fmt: skip
        exs_sendfile(pair.a, parts, EXS_SHUT_WR, "send", queue)
        sent, received = collect(queue, "send", "recv")
        assert f.tell() == os.lseek(f.fileno(), 0, os.SEEK_CUR) == 33
    assert sent.exs_evt_type is EXS_EVT_SENDFILE
    assert sent.exs_evt_union.exs_evt_length == received.exs_evt_union.exs_evt_length == len(room)
    assert room == b"head:" + content[100_000:700_000] + b"..." + content[1:101] + content[700_000:]
    assert exs_recv(pair.b, bytearray(10), None, 0, UNREGISTERED, None, None) == 0


def test_an_empty_file_is_nothing(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("rb") as f:
        assert exs_sendfile(pair.a, [FilePart(f.fileno())], 0, None, None) == 0


def test_a_file_that_cannot_be_read_is_refused(pair: Pair, queue: QHandle, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with (tmp_path / "file").open("wb") as f:
        f.write(bytes(100_000))
        f.flush()
        for part, number in [
            (FilePart(reader, 0, 10), errno.ESPIPE),
            (FilePart(reader), errno.EINVAL),
            (FilePart(f.fileno()), errno.EACCES),
            (FilePart(f.fileno(), 0, 10), errno.EBADF),
            (FilePart(10_000), errno.EBADF),
            (FilePart(f.fileno(), -1), errno.EINVAL),
        ]:
            with pytest.raises(exs.Error) as caught:
                exs_sendfile(pair.a, [part], 0, None, queue)
            assert caught.value.errno == number
    os.close(reader)
    os.close(writer)


def test_a_mapped_file_cut_while_it_is_sent_is_an_error_not_a_crash(pair: Pair, tmp_path: Path, path: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(16 << 20))
    qh = exs_qcreate(4)
    with file.open("rb") as f:
        exs_sendfile(pair.a, [FilePart(f.fileno())], 0, "send", qh)  # more than the ring: it waits for a receive
        os.truncate(file, 5)
        room = bytearray(16 << 20)
        exs_recv(pair.b, room, None, MSG_WAITALL, UNREGISTERED, "recv", qh)
        sent, received = collect(qh, "send", "recv")
    assert sent.exs_evt_errno
    assert received.exs_evt_errno or received.exs_evt_union.exs_evt_length < len(room)
    exs_qdelete(qh)


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


def test_ctrl_c_in_an_accept_leaves_no_connection_behind(no_leaks) -> None:
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


# --- queues


def test_a_queue_of_depth_n_takes_n_posts(pair: Pair) -> None:
    qh = exs_qcreate(3)
    for i in range(3):
        exs_send(pair.a, b"x", None, 0, UNREGISTERED, i, qh)
    for _ in range(2):
        with pytest.raises(exs.QueueFullError) as caught:
            exs_send(pair.a, b"x", None, 0, UNREGISTERED, None, qh)
        assert isinstance(caught.value, BlockingIOError)
    assert len(exs_qdequeue(qh, 1, 10)) == 1
    exs_send(pair.a, b"x", None, 0, UNREGISTERED, None, qh)
    assert len(exs_qdequeue(qh, -3, 10)) == 3
    assert exs_qdequeue(qh, 1, 0) == []
    exs_qdelete(qh)


def test_attributes_of_a_queue(pair: Pair) -> None:
    qh = exs_qcreate(5)
    assert exs_qstatus(qh, EXS_QATTR_DEPTH) == 5
    exs_qmodify(qh, EXS_QATTR_DEPTH, 2)
    assert exs_qstatus(qh, EXS_QATTR_DEPTH) == 2
    assert exs_qstatus(qh, EXS_QATTR_EVENTS) == 0
    assert exs_qstatus(qh, EXS_QATTR_SIGNAL) == EXS_SIG_DISABLE
    for wait in (EXS_WAIT_NOTIFY, EXS_WAIT_BUSY_POLL, EXS_WAIT_ADAPTIVE):
        exs_qmodify(qh, EXS_QATTR_WAIT, wait)
        assert exs_qstatus(qh, EXS_QATTR_WAIT) == wait
    exs_qmodify(qh, EXS_QATTR_SIGNAL, EXS_SIG_DISABLE)
    for attr, value, number in [
        (EXS_QATTR_SIGNAL, EXS_SIG_ENABLE, errno.EOPNOTSUPP),
        (EXS_QATTR_EVENTS, 1, errno.EINVAL),
        (EXS_QATTR_DEPTH, 0, errno.EINVAL),
        (EXS_QATTR_WAIT, 7, errno.EINVAL),
        (99, 1, errno.EINVAL),
    ]:
        with pytest.raises(exs.Error) as caught:
            exs_qmodify(qh, attr, value)
        assert caught.value.errno == number
    exs_send(pair.a, b"x", None, 0, UNREGISTERED, 1, qh)
    exs_send(pair.a, b"x", None, 0, UNREGISTERED, 2, qh)
    with pytest.raises(exs.Error, match="Invalid"):
        exs_qmodify(qh, EXS_QATTR_DEPTH, 1)
    assert len(exs_qdequeue(qh, -2, 10)) == 2
    exs_qdelete(qh)


@pytest.mark.parametrize("count", [0, EXS_EVTVEC_MAX + 1, -65])
def test_impossible_counts_are_refused(queue: QHandle, count: int) -> None:
    with pytest.raises(exs.Error) as caught:
        exs_qdequeue(queue, count, 0)
    assert caught.value.errno == errno.EINVAL


def test_a_threshold_waits_and_a_timeout_gives_what_is_there(pair: Pair, queue: QHandle) -> None:
    exs_send(pair.a, b"x", None, 0, UNREGISTERED, "x", queue)
    start = time.monotonic()
    assert len(exs_qdequeue(queue, -2, 0.2)) == 1
    assert time.monotonic() - start >= 0.19
    assert exs_qdequeue(queue, 5, 0.05) == []


def test_the_descriptor_of_a_queue_says_when_to_dequeue(pair: Pair) -> None:
    qh = exs_qcreate(5)
    assert qh.fileno() == exs_qfd(qh)
    room = bytearray(5)
    exs_recv(pair.b, room, None, MSG_WAITALL, UNREGISTERED, "recv", qh)
    while exs_qdequeue(qh, 1, 0):
        pass

    def later() -> None:
        time.sleep(0.1)
        exs_send(pair.a, b"hello", None, 0, UNREGISTERED, None, None)

    thread = threading.Thread(target=later)
    thread.start()
    deadline = time.monotonic() + 10
    events: list[ExsEvent] = []
    while not events and time.monotonic() < deadline:
        assert select.select([qh], [], [], 10)[0]
        events = exs_qdequeue(qh, 1, 0)
    thread.join()
    assert events[0].exs_evt_ahandle == "recv"
    exs_qdelete(qh)


def test_a_queue_with_operations_in_flight_cannot_be_deleted(pair: Pair) -> None:
    qh = exs_qcreate(5)
    exs_recv(pair.b, bytearray(5), None, 0, UNREGISTERED, "recv", qh)
    exs_send(pair.a, b"", None, 0, UNREGISTERED, "nothing", qh)
    with pytest.raises(exs.BusyError):
        exs_qdelete(qh)
    exs_send(pair.a, b"hello", None, 0, UNREGISTERED, "send", qh)
    collect(qh, "recv", "send", "nothing")
    exs_qdelete(qh)
    for call in (lambda: exs_qdelete(qh), lambda: exs_qdequeue(qh, 1, 0)):
        with pytest.raises(exs.Error) as caught:
            call()
        assert caught.value.errno == errno.EBADF


def test_deleting_a_queue_discards_its_events_and_frees_their_buffers(pair: Pair) -> None:
    qh = exs_qcreate(5)
    data = bytearray(b"hello")
    exs_send(pair.a, data, None, 0, UNREGISTERED, "send", qh)
    with pytest.raises(BufferError):
        data.append(1)
    deadline = time.monotonic() + 5
    while exs_qstatus(qh, EXS_QATTR_EVENTS) == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    exs_qdelete(qh)
    data.append(1)


def test_deleting_a_queue_wakes_who_waits_on_it() -> None:
    qh = exs_qcreate(5)
    caught: list[OSError] = []

    def wait() -> None:
        try:
            exs_qdequeue(qh, 1, None)
        except OSError as problem:
            caught.append(problem)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.1)
    exs_qdelete(qh)
    thread.join(5)
    assert not thread.is_alive()
    assert caught[0].errno == errno.EBADF


def test_each_event_goes_to_exactly_one_of_several_threads(pair: Pair) -> None:
    qh = exs_qcreate(256)
    seen: list[object] = []
    total = 200

    def take() -> None:
        while len(seen) < total:
            for event in exs_qdequeue(qh, 8, 0.05):
                seen.append(event.exs_evt_ahandle)

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(total):
        exs_send(pair.a, b"x", None, 0, UNREGISTERED, i, qh)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert sorted(seen) == list(range(total))
    exs_qdelete(qh)


# --- ownership


def test_the_cookie_is_the_very_object_and_is_let_go(pair: Pair, queue: QHandle) -> None:
    cookie = object()
    exs_send(pair.a, b"x", None, 0, UNREGISTERED, cookie, queue)
    (event,) = exs_qdequeue(queue, 1, 10)
    assert event.exs_evt_ahandle is cookie
    del event
    assert sys.getrefcount(cookie) == 2


def test_a_buffer_nobody_refers_to_lives_until_its_event(pair: Pair, queue: QHandle) -> None:
    wanted = bytes(range(256)) * 1024
    exs_send(pair.a, bytearray(wanted), None, 0, UNREGISTERED, "send", queue)
    gc.collect()
    junk = [bytearray(len(wanted)) for _ in range(10)]
    room = bytearray(len(wanted))
    exs_recv(pair.b, room, None, MSG_WAITALL, UNREGISTERED, "recv", queue)
    collect(queue, "send", "recv")
    assert room == wanted
    del junk


def test_a_region_in_use_cannot_be_deregistered(pair: Pair, queue: QHandle) -> None:
    room = bytearray(100)
    mh = exs_mregister(room, EXS_ACCESS_WRITE)
    exs_recv(pair.b, room, None, 0, mh, "recv", queue)
    with pytest.raises(exs.BusyError, match="1 operation"):
        exs_mderegister(mh)
    exs_send(pair.a, b"x", None, 0, UNREGISTERED, "send", queue)
    collect(queue, "recv", "send")
    exs_mderegister(mh)
    for handle in (mh, UNREGISTERED):
        with pytest.raises(exs.Error) as caught:
            exs_mderegister(handle)
        assert caught.value.errno == errno.EINVAL
    with pytest.raises(exs.Error):
        exs_recv(pair.b, room, None, 0, mh, "recv", queue)


# --- refusals


def test_ranges_and_rights_are_checked(pair: Pair, queue: QHandle) -> None:
    buffer, other = bytearray(100), bytearray(100)
    read, write = exs_mregister(buffer, EXS_ACCESS_READ), exs_mregister(buffer, EXS_ACCESS_WRITE)
    for call, number in [
        (lambda: exs_send(pair.a, other, None, 0, read, None, queue), errno.EFAULT),
        (lambda: exs_send(pair.a, buffer, 101, 0, read, None, queue), errno.EFAULT),
        (lambda: exs_send(pair.a, buffer, -1, 0, read, None, queue), errno.EFAULT),
        (lambda: exs_send(pair.a, buffer, None, 0, write, None, queue), errno.EACCES),
        (lambda: exs_recv(pair.a, buffer, None, 0, read, None, queue), errno.EACCES),
        (lambda: exs_send(pair.a, buffer, None, 1 << 30, read, None, queue), errno.EINVAL),
        (lambda: exs_send(pair.a, buffer, None, socket.MSG_OOB, read, None, queue), errno.EOPNOTSUPP),
        (lambda: exs_recv(pair.a, buffer, None, socket.MSG_PEEK, write, None, queue), errno.EOPNOTSUPP),
        (lambda: exs_recv(pair.a, buffer, None, EXS_SHUT_WR, write, None, queue), errno.EINVAL),
        (lambda: exs_mregister(bytearray(1), 0), errno.EINVAL),
        (lambda: exs_mregister(bytearray(1), 8), errno.EINVAL),
        (lambda: exs_qcreate(0), errno.EINVAL),
        (lambda: exs_poll([], None, queue), errno.EINVAL),
        (lambda: exs_poll([(pair.a, 1)], None, queue), errno.EINVAL),
        (lambda: exs_cancel(), errno.EINVAL),
        (lambda: exs_shutdown(pair.a, 7, None, queue), errno.EINVAL),
        (lambda: exs_connect(pair.a, ("127.0.0.1", 1), None, queue), errno.EISCONN),
    ]:
        with pytest.raises(exs.Error) as caught:
            call()
        assert caught.value.errno == number, inspect.getsource(call)
    exs_send(pair.a, buffer, None, MSG_NOSIGNAL | MSG_DONTWAIT, read, "send", queue)
    collect(queue, "send")
    with pytest.raises(ValueError, match="read-only"):
        exs_recv(pair.a, b"bytes", None, 0, UNREGISTERED, None, queue)
    with pytest.raises(BufferError):
        exs_send(pair.a, memoryview(bytearray(10))[::2], None, 0, UNREGISTERED, None, queue)
    exs_mderegister(read)
    exs_mderegister(write)
    assert exs_qdequeue(queue, 1, 0) == []


def test_descriptors_that_are_none() -> None:
    with socket.socket() as foreign:
        for fd, number in [(foreign.fileno(), errno.ENOTSOCK), (99_999, errno.EBADF), (-1, errno.EBADF)]:
            for call in (
                exs_getsockname,
                exs_close,
                exs_listen,
                lambda fd: exs_send(fd, b"", 0, 0, UNREGISTERED, 0, None),
            ):
                with pytest.raises(exs.Error) as caught:
                    call(fd)
                assert caught.value.errno == number


@pytest.mark.parametrize(
    ("args", "number"),
    [
        ((socket.AF_UNIX, STREAM), errno.EAFNOSUPPORT),
        ((socket.AF_INET, socket.SOCK_DGRAM), errno.ESOCKTNOSUPPORT),
        ((socket.AF_INET, STREAM, 17), errno.EPROTONOSUPPORT),
    ],
)
def test_sockets_that_are_not_offered(args: tuple[int, ...], number: int) -> None:
    with pytest.raises(exs.Error) as caught:
        exs_socket(*args)
    assert caught.value.errno == number


def test_an_unconnected_socket(queue: QHandle) -> None:
    fd = exs_socket(socket.AF_INET, STREAM)
    for call in (
        lambda: exs_send(fd, b"x", None, 0, UNREGISTERED, None, queue),
        lambda: exs_recv(fd, bytearray(1), None, 0, UNREGISTERED, None, queue),
        lambda: exs_getpeername(fd),
        lambda: exs_shutdown(fd, socket.SHUT_WR, None, queue),
    ):
        with pytest.raises(exs.Error) as caught:
            call()
        assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(exs.Error) as caught:
        exs_accept(fd, None, queue)
    assert caught.value.errno == errno.EINVAL
    exs_close(fd)


def test_a_socket_number_collides_with_nothing() -> None:
    fds = [exs_socket(socket.AF_INET, STREAM) for _ in range(5)]
    with socket.socket() as other:
        assert other.fileno() not in fds
    for fd in fds:
        os.fstat(fd)
        exs_close(fd)
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)


# --- options


def test_options_of_sockets(pair: Pair) -> None:
    assert exs_getsockopt(pair.a, socket.SOL_SOCKET, socket.SO_TYPE) == STREAM
    assert exs_getsockopt(pair.a, socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
    assert exs_getsockopt(pair.a, socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert exs_getsockopt(pair.a, socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
    assert exs_getsockopt(pair.a, socket.SOL_SOCKET, socket.SO_RCVBUF) == 1 << 20
    assert exs_getsockopt(pair.a, socket.SOL_SOCKET, SO_ASYNC_RECV_ORDERED) == 1
    assert exs_getsockopt(pair.a, socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert exs_getsockopt(pair.a, SOL_EXS, EXS_SO_REASON) == b""
    fd = exs_socket(socket.AF_INET, STREAM)
    for level, option, value in [
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 0),
        (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
        (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 7)),
        (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0)),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (SOL_EXS, EXS_SO_DEVICE, b"soft"),
        (SOL_EXS, EXS_SO_PATH, b"tcp"),
        (SOL_EXS, EXS_SO_RING, 65536),
        (SOL_EXS, EXS_SO_PROGRESS, EXS_PROGRESS_THREAD),
        (SOL_EXS, EXS_SO_CLOSE_TIMEOUT, 1500),
        (SOL_EXS, EXS_SO_CONNECT_TIMEOUT, 2500),
        (SOL_EXS, EXS_SO_CRC, 1),
        (SOL_EXS, EXS_SO_STRICT_SIZE, 1),
    ]:
        exs_setsockopt(fd, level, option, value)
        assert exs_getsockopt(fd, level, option) == value
    for level, option, value, number in [
        (SOL_EXS, EXS_SO_PATH, b"pigeon", errno.EINVAL),
        (SOL_EXS, EXS_SO_PATH, 3, errno.EINVAL),
        (SOL_EXS, EXS_SO_RING, 10, errno.EINVAL),
        (SOL_EXS, EXS_SO_PROGRESS, 5, errno.EINVAL),
        (SOL_EXS, EXS_SO_REASON, b"", errno.ENOPROTOOPT),
        (socket.SOL_SOCKET, SO_ASYNC_RECV_ORDERED, 0, errno.EINVAL),
        (socket.SOL_SOCKET, SO_ASYNC_SEND_TIMEOUT, 1, errno.EOPNOTSUPP),
        (socket.SOL_SOCKET, socket.SO_LINGER, b"1", errno.EINVAL),
        (socket.SOL_SOCKET, 999, 1, errno.ENOPROTOOPT),
    ]:
        with pytest.raises(exs.Error) as caught:
            exs_setsockopt(fd, level, option, value)
        assert caught.value.errno == number
    exs_bind(fd, LOOPBACK)
    exs_listen(fd)
    assert exs_getsockopt(fd, socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    with pytest.raises(exs.Error, match="before bind"):
        exs_setsockopt(fd, SOL_EXS, EXS_SO_RING, 1 << 20)
    with pytest.raises(exs.Error) as caught:
        exs_fcntl(fd, fcntl.F_GETFD)
    assert caught.value.errno == errno.EINVAL
    exs_close(fd)


def test_ipv6_and_names(pairs: Maker, queue: QHandle) -> None:
    pair = pairs(STREAM, socket.AF_INET6)
    assert exs_getpeername(pair.a)[0] == "::1"
    assert exs_getpeername(pair.a) == exs_getsockname(pair.b)
    listener = exs_socket(socket.AF_INET, STREAM)
    exs_bind(listener, ("localhost", 0))
    assert exs_getsockname(listener)[0] == "127.0.0.1"
    with pytest.raises(OverflowError):
        exs_connect(listener, ("127.0.0.1", 65536), None, queue)
    with pytest.raises(TypeError):
        exs_connect(listener, ("127.0.0.1",), None, queue)
    with pytest.raises(socket.gaierror):
        exs_connect(listener, ("no.such.host.invalid", 1), None, queue)
    exs_close(listener)


def test_a_path_that_is_not_there_says_why(queue: QHandle) -> None:
    listener = exs_socket(socket.AF_INET, STREAM)
    exs_setsockopt(listener, SOL_EXS, EXS_SO_PATH, b"tcp")
    exs_bind(listener, LOOPBACK)
    exs_listen(listener)
    client = exs_socket(socket.AF_INET, STREAM)
    exs_setsockopt(client, SOL_EXS, EXS_SO_PATH, b"shm")
    exs_accept(listener, "accept", queue)
    exs_connect(client, exs_getsockname(listener), "connect", queue)
    exs_setsockopt(client, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    seen: dict[object, ExsEvent] = {}
    while "connect" not in seen:  # the listener may have taken it for a connection, until the client refused
        seen |= {e.exs_evt_ahandle: e for e in exs_qdequeue(queue, 2, 10)}
    with pytest.raises(exs.NoDeviceError):
        seen["connect"].raise_for_errno()
    assert exs_getsockopt(client, SOL_EXS, EXS_SO_REASON)
    exs_close(client)
    if "accept" not in seen:
        assert exs_cancel(fd=listener) == 1
        (seen["accept"],) = collect(queue, "accept")
    if not seen["accept"].exs_evt_errno:
        exs_close(seen["accept"].exs_evt_union.exs_evt_fd)
    exs_close(listener)


# --- connections


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


# --- readiness and cancelling


def test_poll_answers_with_one_event_for_several_sockets(pairs: Maker, queue: QHandle) -> None:
    first, second = pairs(), pairs()
    exs_poll([(first.b, EXS_POLLIN), (second.b, EXS_POLLIN)], "poll", queue)
    assert exs_qdequeue(queue, 1, 0) == []
    exs_send(second.a, b"x", None, 0, UNREGISTERED, None, None)
    (event,) = collect(queue, "poll")
    assert (event.exs_evt_type, event.exs_evt_errno) == (EXS_EVT_POLL, 0)
    assert event.exs_evt_union.exs_evt_fds == ((second.b, EXS_POLLIN),)
    exs_send(first.a, b"x", None, 0, UNREGISTERED, None, None)
    assert exs_qdequeue(queue, 1, 0.05) == []
    assert dict(exs_poll([(first.b, EXS_POLLIN), (second.b, EXS_POLLIN)], None, None) or ()) == {
        first.b: EXS_POLLIN,
        second.b: EXS_POLLIN,
    }
    assert exs_poll([(first.b, EXS_POLLIN | EXS_POLLOUT)], None, None) == ((first.b, EXS_POLLIN | EXS_POLLOUT),)


def test_cancel_by_socket_and_by_cookie(pairs: Maker, queue: QHandle) -> None:
    pair = pairs()
    mine, other = object(), object()
    rooms = [bytearray(10) for _ in range(4)]
    for room, cookie in zip(rooms, (mine, mine, other, other), strict=True):
        exs_recv(pair.b, room, None, 0, UNREGISTERED, cookie, queue)
    assert exs_cancel(ah=object()) == 0
    assert exs_cancel(fd=pair.a) == 0
    assert exs_cancel(fd=pair.b, ah=mine) == 2
    events = exs_qdequeue(queue, -2, 10)
    assert {(e.exs_evt_errno, e.exs_evt_ahandle) for e in events} == {(errno.ECANCELED, mine)}
    assert exs_cancel(fd=pair.b) == 2
    events = exs_qdequeue(queue, -2, 10)
    assert {(e.exs_evt_errno, e.exs_evt_ahandle) for e in events} == {(errno.ECANCELED, other)}
    with pytest.raises(exs.OperationCancelled):
        events[0].raise_for_errno()
    exs_poll([(pair.b, EXS_POLLIN), (pair.a, EXS_POLLIN)], mine, queue)
    assert exs_cancel(fd=pair.a) == 1
    (event,) = collect(queue, mine)
    assert event.exs_evt_errno == errno.ECANCELED
    assert event.exs_evt_union.exs_evt_fds == ()


def test_a_cancelled_receive_loses_no_data(pair: Pair, queue: QHandle) -> None:
    for _ in range(20):
        room = bytearray(10)
        exs_recv(pair.b, room, None, 0, UNREGISTERED, "recv", queue)
        exs_send(pair.a, b"0123456789", None, 0, UNREGISTERED, "send", queue)
        exs_cancel(fd=pair.b)
        received, _ = collect(queue, "recv", "send")
        if received.exs_evt_errno == errno.ECANCELED:
            assert exs_recv(pair.b, room, None, MSG_WAITALL, UNREGISTERED, None, None) == 10
        assert room == b"0123456789"


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
    server.stdout.readline()
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
