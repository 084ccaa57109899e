# SPDX-License-Identifier: MIT OR Apache-2.0
"""Thin typed calls into the core; the only importers of ``exs._exs``.

Owns nothing itself: it gathers what the rest of exs needs of its modules, which are, left never importing right,
``constants operations addresses < buffers process < events < calls``.  They know no sockets' rules, no trio and no
ES-API.

Invariant: whoever posts holds an entry of :data:`ops` from before the post until the event was dequeued.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    from exs._exs import ffi, lib
except ModuleNotFoundError as missing:
    if missing.name != "exs._exs":
        raise
    here = __file__.rsplit("/", 2)[0]
    text = f"{here} is the source of exs, without its extension: start Python elsewhere, or do 'pip install -e' there"
    raise ImportError(text, name="exs._exs") from None
from exs._native.addresses import pack_address, unpack_address
from exs._native.buffers import Pieces, Span, fragile, readable, registered, view, writable
from exs._native.calls import Caller, PollSet
from exs._native.constants import (
    DONTWAIT,
    EV_DIRECT,
    EV_EOF,
    EV_EOR,
    EV_INDIRECT,
    EV_TRUNCATED,
    FRAGILE,
    MR_HUGE,
    MR_READ,
    MR_WRITE,
    NULL,
    OP_RECV,
    OP_SEND,
    POLL_IN,
    POLL_OUT,
    SHUT_WR_AFTER,
    SOCK_LISTENING,
    SOCK_NEW,
    WAITALL,
    WAITS,
)
from exs._native.events import Batch, EventQueue, RawEvent, watchers
from exs._native.operations import ops
from exs._native.process import Context, DeviceInfo, context, error, forked, start_again_after_fork

if TYPE_CHECKING:
    from exs._exs import CData as CData

__all__ = [
    "DONTWAIT",
    "EV_DIRECT",
    "EV_EOF",
    "EV_EOR",
    "EV_INDIRECT",
    "EV_TRUNCATED",
    "FRAGILE",
    "MR_HUGE",
    "MR_READ",
    "MR_WRITE",
    "NULL",
    "OP_RECV",
    "OP_SEND",
    "POLL_IN",
    "POLL_OUT",
    "SHUT_WR_AFTER",
    "SOCK_LISTENING",
    "SOCK_NEW",
    "WAITALL",
    "WAITS",
    "Batch",
    "Caller",
    "Context",
    "DeviceInfo",
    "EventQueue",
    "Pieces",
    "PollSet",
    "RawEvent",
    "Span",
    "context",
    "error",
    "ffi",
    "forked",
    "fragile",
    "lib",
    "ops",
    "pack_address",
    "readable",
    "registered",
    "start_again_after_fork",
    "unpack_address",
    "view",
    "watchers",
    "writable",
]
