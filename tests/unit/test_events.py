# SPDX-License-Identifier: MIT OR Apache-2.0
from __future__ import annotations

import errno

import pytest

import exs
from exs.events import ExsEvent, ExsEvtType, XferFlags, XferPart

SENT = ExsEvent(ExsEvtType.EXS_EVT_SEND, 0, 5, "cookie", XferPart(10))


def test_an_event_is_an_immutable_value_without_a_dict() -> None:
    assert ExsEvent(ExsEvtType.EXS_EVT_SEND, 0, 5, "cookie", XferPart(10)) == SENT
    with pytest.raises(AttributeError):
        SENT.exs_evt_errno = 1  # type: ignore[misc]
    assert not hasattr(SENT, "__dict__")
    assert not hasattr(SENT.exs_evt_union, "__dict__")


def test_the_cookie_is_the_very_object() -> None:
    cookie = object()
    assert ExsEvent(ExsEvtType.EXS_EVT_CLOSE, 0, 5, cookie, None).exs_evt_ahandle is cookie


def test_success_raises_nothing() -> None:
    SENT.raise_for_errno()


def test_an_error_is_raised_with_what_was_done_before_it() -> None:
    event = ExsEvent(ExsEvtType.EXS_EVT_SEND, errno.ECONNRESET, 5, None, XferPart(3))
    with pytest.raises(ConnectionResetError) as caught:
        event.raise_for_errno()
    assert isinstance(caught.value, exs.Error)
    assert caught.value.transferred == 3


@pytest.mark.parametrize(
    ("kind", "number", "error"),
    [
        (ExsEvtType.EXS_EVT_RECV, errno.ECANCELED, exs.OperationCancelled),
        (ExsEvtType.EXS_EVT_CONNECT, errno.EOPNOTSUPP, exs.NoDeviceError),
        (ExsEvtType.EXS_EVT_CONNECT, errno.ECONNREFUSED, ConnectionRefusedError),
    ],
)
def test_the_class_fits_the_errno(kind: ExsEvtType, number: int, error: type[OSError]) -> None:
    with pytest.raises(error):
        ExsEvent(kind, number, 5, None, None).raise_for_errno()


def test_flags_have_the_values_of_the_socket_api() -> None:
    import socket

    assert XferFlags.MSG_TRUNC == socket.MSG_TRUNC
    assert XferFlags.MSG_EOR == socket.MSG_EOR
