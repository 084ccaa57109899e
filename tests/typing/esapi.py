# SPDX-License-Identifier: MIT OR Apache-2.0
"""What type checkers see of the literal ES-API; never run."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import assert_type

import exs
from exs import esapi


def calls() -> None:
    esapi.exs_init()
    fd = esapi.exs_socket(socket.AF_INET, socket.SOCK_STREAM)
    assert_type(fd, int)
    qh = esapi.exs_qcreate(10)
    assert_type(qh, esapi.QHandle)
    mh = esapi.exs_mregister(bytearray(5), esapi.EXS_ACCESS_READ)
    assert_type(mh, esapi.MHandle)
    esapi.exs_connect(fd, ("127.0.0.1", 7471), object(), qh)
    assert_type(esapi.exs_accept(fd, None, None), int | None)
    assert_type(esapi.exs_send(fd, b"x", None, 0, mh, "any object", qh), int | None)
    assert_type(esapi.exs_recv(fd, bytearray(5), 5, esapi.MSG_WAITALL, mh, 7, None), int | None)
    esapi.exs_send(fd, exs.MemoryRegion(bytearray(5))[1:3], None, 0, mh, None, qh)
    esapi.exs_sendmsg(fd, [(b"x", mh), (memoryview(b"y"), esapi.EXS_MHANDLE_UNREGISTERED)], 0, None, qh)
    esapi.exs_sendfile(fd, [b"head", esapi.FilePart(3), esapi.FilePart(3, 10, 20)], esapi.EXS_SHUT_WR, None, qh)
    assert_type(esapi.exs_poll([(fd, esapi.EXS_POLLIN)], None, None), Sequence[tuple[int, int]] | None)
    assert_type(esapi.exs_cancel(fd=fd, ah=None), int)
    assert_type(esapi.exs_getsockopt(fd, socket.SOL_SOCKET, socket.SO_TYPE), int | bytes)
    esapi.exs_setsockopt(fd, esapi.SOL_EXS, esapi.EXS_SO_PATH, b"tcp")
    esapi.exs_close(fd)


def swapped_arguments_do_not_pass(fd: int, qh: esapi.QHandle, mh: esapi.MHandle) -> None:
    esapi.exs_send(fd, b"x", None, 0, qh, None, mh)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    esapi.exs_mregister(5, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def events(qh: esapi.QHandle) -> None:
    for event in esapi.exs_qdequeue(qh, -5, 0.5):
        assert_type(event, esapi.ExsEvent)
        assert_type(event.exs_evt_errno, int)
        assert_type(event.exs_evt_ahandle, object)
        match event.exs_evt_union:
            case esapi.XferPart(exs_evt_length=length):
                assert_type(length, int)
            case esapi.AcceptPart(exs_evt_fd=fd):
                assert_type(fd, int)
            case _:
                pass
        event.exs_evt_errno = 1  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
