# SPDX-License-Identifier: MIT OR Apache-2.0
from __future__ import annotations

import errno
import os

import pytest

import exs
from exs.errors import from_errno


@pytest.mark.parametrize(
    ("number", "kind", "builtin"),
    [
        (errno.EBUSY, exs.BusyError, OSError),
        (errno.EAGAIN, exs.QueueFullError, BlockingIOError),
        (errno.EPROTO, exs.ProtocolError, OSError),
        (errno.EMSGSIZE, exs.TruncatedError, OSError),
        (errno.ECANCELED, exs.OperationCancelled, OSError),
        (errno.ECONNREFUSED, exs.Error, ConnectionRefusedError),
        (errno.ECONNRESET, exs.Error, ConnectionResetError),
        (errno.ECONNABORTED, exs.Error, ConnectionAbortedError),
        (errno.EPIPE, exs.Error, BrokenPipeError),
        (errno.ETIMEDOUT, exs.Error, TimeoutError),
        (errno.EACCES, exs.Error, PermissionError),
        (errno.EINTR, exs.Error, InterruptedError),
        (errno.EIO, exs.Error, OSError),
    ],
)
def test_an_errno_becomes_exs_own_class_and_pythons(number: int, kind: type[exs.Error], builtin: type[OSError]) -> None:
    for given in (number, -number):
        error = from_errno(given)
        assert isinstance(error, kind)
        assert isinstance(error, builtin)
        assert isinstance(error, exs.Error)
        assert error.errno == number
        assert error.strerror == os.strerror(number)
        assert error.transferred == 0
        assert error.provider_status is None


def test_no_device_is_meant_only_at_set_up() -> None:
    assert type(from_errno(errno.EOPNOTSUPP, "why", setup=True)) is exs.NoDeviceError
    assert type(from_errno(errno.EOPNOTSUPP)) is exs.Error


def test_words_and_bytes_travel_with_the_error() -> None:
    error = from_errno(errno.ECONNRESET, "the peer died", transferred=17)
    assert str(error) == f"[Errno {errno.ECONNRESET}] the peer died"
    assert error.transferred == 17


def test_every_class_is_public_and_in_one_tree() -> None:
    for name in exs.errors.__all__:
        thing = getattr(exs.errors, name)
        if isinstance(thing, type):
            assert issubclass(thing, exs.Error)
            assert getattr(exs, name) is thing
