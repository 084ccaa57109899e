# SPDX-License-Identifier: MIT OR Apache-2.0
"""The literal ES-API: names, beginning, refusals and options."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import inspect
import os
import re
import socket
import struct
from pathlib import Path

import pytest
from esapi_support import LOOPBACK, STREAM, UNREGISTERED, Maker, Pair, collect

import exs
from exs import esapi
from exs.esapi import *

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("es_api")


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


# ES-API 1.11
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
    assert b"the other side does not offer shared memory" in exs_getsockopt(client, SOL_EXS, EXS_SO_REASON)
    exs_close(client)
    if "accept" not in seen:
        assert exs_cancel(fd=listener) == 1
        (seen["accept"],) = collect(queue, "accept")
    if not seen["accept"].exs_evt_errno:
        with contextlib.suppress(ConnectionResetError):  # how far the refusal has come is the scheduler's
            exs_close(seen["accept"].exs_evt_union.exs_evt_fd)
    exs_close(listener)
