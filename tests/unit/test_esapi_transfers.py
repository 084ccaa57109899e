# SPDX-License-Identifier: MIT OR Apache-2.0
"""The literal ES-API: transfers, files, and whose the memory is."""

from __future__ import annotations

import errno
import gc
import os
import sys
import time
from pathlib import Path

import pytest
from esapi_support import SEQPACKET, UNREGISTERED, Maker, Pair, collect, noise

import exs
from exs import esapi
from exs.esapi import *

pytestmark = pytest.mark.usefixtures("es_api")


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


# ES-API 1.12
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


# ES-API 2.4
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
