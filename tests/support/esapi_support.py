# SPDX-License-Identifier: MIT OR Apache-2.0
"""A connected pair of the literal ES-API, and how its events are looked at."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

from ground import HOST, HOST6

from exs import esapi
from exs.esapi import *

UNREGISTERED = esapi.EXS_MHANDLE_UNREGISTERED
STREAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_SEQPACKET
LOOPBACK = (HOST, 0)


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
        exs_bind(listener, LOOPBACK if family == socket.AF_INET else (HOST6, 0))
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


def collect(qh: QHandle, *cookies: object, timeout: float = 10) -> list[ExsEvent]:
    """The events with these cookies, in this order; there must be no others."""
    events = exs_qdequeue(qh, -len(cookies), timeout)
    by_cookie = {id(e.exs_evt_ahandle): e for e in events}
    assert {id(c) for c in cookies} == set(by_cookie), events
    return [by_cookie[id(c)] for c in cookies]


def noise(nbytes: int) -> bytearray:
    return bytearray(random.randbytes(nbytes))
