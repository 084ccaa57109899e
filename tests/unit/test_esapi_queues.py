# SPDX-License-Identifier: MIT OR Apache-2.0
"""The literal ES-API: event queues, readiness, cancelling."""

from __future__ import annotations

import errno
import select
import threading
import time

import pytest
from esapi_support import UNREGISTERED, Maker, Pair, collect

import exs
from exs.esapi import *

pytestmark = pytest.mark.usefixtures("es_api")


# --- queues


# ES-API Q1
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


# ES-API 1.6
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
