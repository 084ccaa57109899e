# SPDX-License-Identifier: MIT OR Apache-2.0
"""Fixtures of the ES-API tests; they start only with a module that asks for them."""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import Iterator

import pytest
from esapi_support import Maker, Pair

from exs import _native, esapi
from exs.esapi import *


@pytest.fixture
def es_api() -> Iterator[None]:
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
