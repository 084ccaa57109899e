# SPDX-License-Identifier: MIT OR Apache-2.0
"""Completions as values: :class:`ExsEvent` and its parts, with the field names of ES-API.

Owns the shapes only; who fills them is :mod:`exs.esapi`.  Invariant: an event is immutable and holds the
very cookie object that was given with the post.  Named tuples, since one is made for every operation: a frozen
dataclass takes four times as long to make.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from exs.errors import from_errno

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AcceptPart",
    "ExsEvent",
    "ExsEvtType",
    "FilePart",
    "PollPart",
    "XferFilePart",
    "XferFlags",
    "XferMsgPart",
    "XferPart",
]


class ExsEvtType(enum.IntEnum):
    """What kind of call an event answers (``EXS_EVT_...``).  *Source:* ES-API, by name."""

    EXS_EVT_SEND = 1
    EXS_EVT_RECV = 2
    EXS_EVT_CONNECT = 3
    EXS_EVT_ACCEPT = 4
    EXS_EVT_SHUTDOWN = 5
    EXS_EVT_CLOSE = 6
    EXS_EVT_POLL = 7
    EXS_EVT_SENDMSG = 8
    EXS_EVT_RECVMSG = 9
    EXS_EVT_SENDFILE = 10
    EXS_EVT_SENDTIMEOUT = 11
    """Never delivered: timers are not offered."""
    EXS_EVT_RECVTIMEOUT = 12
    """Never delivered."""


class XferFlags(enum.IntFlag):
    """Facts about a transfer, in ``exs_evt_flags``; the ``MSG_`` bits have the values of the socket API."""

    EXS_XF_NONE = 0
    MSG_TRUNC = 0x20
    """The message was longer than the buffer; the rest is lost."""
    MSG_EOR = 0x80
    """The buffer holds the end of a message."""
    EXS_XF_DIRECT = 0x1000
    """At least one byte came straight into the buffer."""
    EXS_XF_INDIRECT = 0x2000
    """At least one byte came through the stream's ring."""


@dataclass(frozen=True, slots=True)
class FilePart:
    """A piece of a file for ``exs_sendfile``."""

    file: int
    """Descriptor of the file, open for reading; its offset is not moved."""
    offset: int = 0
    """First byte to send."""
    length: int | None = None
    """Bytes to send; ``None``: to the end of the file."""


class XferPart(NamedTuple):
    """Of ``EXS_EVT_SEND`` and ``EXS_EVT_RECV``."""

    exs_evt_length: int
    """Bytes taken or placed; on error, the leading bytes that were handed over."""
    exs_evt_flags: XferFlags = XferFlags.EXS_XF_NONE
    exs_evt_full_length: int = 0
    """Length of the whole message, where it was cut (``MSG_TRUNC``)."""


class XferMsgPart(NamedTuple):
    """Of ``EXS_EVT_SENDMSG`` and ``EXS_EVT_RECVMSG``."""

    exs_evt_length: int
    """Bytes taken or placed, over all buffers."""
    exs_evt_flags: XferFlags = XferFlags.EXS_XF_NONE
    exs_evt_full_length: int = 0
    """Length of the whole message, where it was cut (``MSG_TRUNC``)."""


class XferFilePart(NamedTuple):
    """Of ``EXS_EVT_SENDFILE``."""

    exs_evt_length: int
    """Bytes taken, over all parts."""


class AcceptPart(NamedTuple):
    """Of ``EXS_EVT_ACCEPT``."""

    exs_evt_fd: int
    """The new socket, or -1 on error."""
    exs_evt_address: tuple[object, ...] = ()
    """Address of the peer, as :mod:`socket` writes it."""


class PollPart(NamedTuple):
    """Of ``EXS_EVT_POLL``."""

    exs_evt_fds: Sequence[tuple[int, int]] = ()
    """The descriptors that are ready, each with the bits that hold."""


class ExsEvent(NamedTuple):
    """One completion: every accepted post yields exactly one.  *Source:* ES-API, ``exs_event_t``."""

    exs_evt_type: ExsEvtType
    """What it answers."""
    exs_evt_errno: int
    """0 on success, else the errno of the operation; never raised by ``exs_qdequeue``."""
    exs_evt_socket: int
    """The descriptor that the call was made on."""
    exs_evt_ahandle: object
    """The very object that was passed in."""
    exs_evt_union: XferPart | XferMsgPart | XferFilePart | AcceptPart | PollPart | None
    """What is particular to the type; ``None`` for connect, shutdown and close."""

    def raise_for_errno(self) -> None:
        """Raise what ``exs_evt_errno`` says; nothing if it is 0.

        Raises:
            exs.Error: The operation failed (``OperationCancelled`` if it was cancelled).
        """
        if self.exs_evt_errno:
            part = self.exs_evt_union
            done = part.exs_evt_length if isinstance(part, XferPart | XferMsgPart | XferFilePart) else 0
            setup = self.exs_evt_type is ExsEvtType.EXS_EVT_CONNECT
            raise from_errno(self.exs_evt_errno, setup=setup, transferred=done)
