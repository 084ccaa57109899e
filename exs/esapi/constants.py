# SPDX-License-Identifier: MIT OR Apache-2.0
"""Names and numbers of ES-API: the same as in ``exs.h``, as enumerations so that they can be read when printed."""

from __future__ import annotations

import enum

from exs import _native
from exs.events import ExsEvtType
from exs.memory import Access


class MemoryFlag(enum.IntFlag):
    """Flags of ``exs_mregister``."""

    EXS_ACCESS_READ = Access.READ
    """The library reads the memory: sending."""
    EXS_ACCESS_WRITE = Access.WRITE
    """The library and the peer write it: receiving."""
    EXS_MRF_SHARED = 0x100
    """The memory is shared with other processes; has no effect."""


class QueueAttribute(enum.IntEnum):
    """Attributes of a queue, for ``exs_qmodify`` and ``exs_qstatus``."""

    EXS_QATTR_DEPTH = 1
    """Slots."""
    EXS_QATTR_EVENTS = 2
    """Events present; read only."""
    EXS_QATTR_SIGNAL = 3
    """Signal when events come; only ``EXS_SIG_DISABLE``."""
    EXS_QATTR_WAIT = 4
    """How a dequeue waits: ``EXS_WAIT_...``."""


class QueueSignal(enum.IntEnum):
    """Values of ``EXS_QATTR_SIGNAL``."""

    EXS_SIG_DISABLE = 0
    EXS_SIG_ENABLE = 1


class QueueWait(enum.IntEnum):
    """Values of ``EXS_QATTR_WAIT``."""

    EXS_WAIT_ADAPTIVE = 0
    EXS_WAIT_NOTIFY = 1
    EXS_WAIT_BUSY_POLL = 2


class PollFlag(enum.IntFlag):
    """Bits of ``exs_poll``."""

    EXS_POLLIN = _native.POLL_IN
    """Data, the end of data, or a connection to accept."""
    EXS_POLLOUT = _native.POLL_OUT
    """A send would be taken without waiting."""


class TransferFlag(enum.IntFlag):
    """Flags of transfer calls; the ``MSG_`` ones have the values of :mod:`socket`."""

    MSG_DONTWAIT = 0x40
    """Without a queue: take what is there or fail with ``EAGAIN``."""
    MSG_WAITALL = 0x100
    """Receive: only when the buffer is full."""
    MSG_NOSIGNAL = 0x4000
    """Always so."""
    EXS_SHUT_WR = 0x0100_0000
    """Send: the end of data behind it."""


class SocketOption(enum.IntEnum):
    """Options at level ``SOL_SOCKET`` that only ES-API has."""

    SO_ASYNC_RECV_ORDERED = 0x4501
    """Receives complete in the order of posting; always 1."""
    SO_ASYNC_SEND_TIMEOUT = 0x4502
    """Not offered."""
    SO_ASYNC_RECV_TIMEOUT = 0x4503
    """Not offered."""


class ExsSocketOption(enum.IntEnum):
    """Options at level ``SOL_EXS``, set before bind, listen or connect; numbers, but for the first two."""

    EXS_SO_DEVICE = 1
    """Text: ``"auto"``, or the name of a device."""
    EXS_SO_PATH = 2
    """Text: ``"auto"``, ``"tcp"``, ``"shm"``, ``"shm-vm"``, ``"shm-ring"``; asked, the path that was taken."""
    EXS_SO_RING = 3
    """Bytes of the stream's ring."""
    EXS_SO_PROGRESS = 4
    """``EXS_PROGRESS_INLINE``, ``EXS_PROGRESS_THREAD``."""
    EXS_SO_CLOSE_TIMEOUT = 5
    """Milliseconds."""
    EXS_SO_CONNECT_TIMEOUT = 6
    """Milliseconds."""
    EXS_SO_CRC = 7
    """Ask for a checksum on the wire."""
    EXS_SO_STRICT_SIZE = 8
    """``EMSGSIZE`` instead of cutting a message at the receiver."""
    EXS_SO_REASON = 9
    """Text, can only be asked: the last error of the connection."""


class ProgressMode(enum.IntEnum):
    """Values of ``EXS_SO_PROGRESS``."""

    EXS_PROGRESS_INLINE = 0
    EXS_PROGRESS_THREAD = 1


EXS_VERSION1 = 1
EXS_VERSION = EXS_VERSION1
EXS_EVTVEC_MAX = 1024
EXS_TIMEOUT_ONCE = 1

EXS_ACCESS_READ = MemoryFlag.EXS_ACCESS_READ
EXS_ACCESS_WRITE = MemoryFlag.EXS_ACCESS_WRITE
EXS_MRF_SHARED = MemoryFlag.EXS_MRF_SHARED
EXS_QATTR_DEPTH = QueueAttribute.EXS_QATTR_DEPTH
EXS_QATTR_EVENTS = QueueAttribute.EXS_QATTR_EVENTS
EXS_QATTR_SIGNAL = QueueAttribute.EXS_QATTR_SIGNAL
EXS_QATTR_WAIT = QueueAttribute.EXS_QATTR_WAIT
EXS_SIG_DISABLE = QueueSignal.EXS_SIG_DISABLE
EXS_SIG_ENABLE = QueueSignal.EXS_SIG_ENABLE
EXS_WAIT_ADAPTIVE = QueueWait.EXS_WAIT_ADAPTIVE
EXS_WAIT_NOTIFY = QueueWait.EXS_WAIT_NOTIFY
EXS_WAIT_BUSY_POLL = QueueWait.EXS_WAIT_BUSY_POLL
EXS_POLLIN = PollFlag.EXS_POLLIN
EXS_POLLOUT = PollFlag.EXS_POLLOUT
MSG_DONTWAIT = TransferFlag.MSG_DONTWAIT
MSG_WAITALL = TransferFlag.MSG_WAITALL
MSG_NOSIGNAL = TransferFlag.MSG_NOSIGNAL
EXS_SHUT_WR = TransferFlag.EXS_SHUT_WR
SOL_EXS = 0x4558
EXS_SO_DEVICE = ExsSocketOption.EXS_SO_DEVICE
EXS_SO_PATH = ExsSocketOption.EXS_SO_PATH
EXS_SO_RING = ExsSocketOption.EXS_SO_RING
EXS_SO_PROGRESS = ExsSocketOption.EXS_SO_PROGRESS
EXS_SO_CLOSE_TIMEOUT = ExsSocketOption.EXS_SO_CLOSE_TIMEOUT
EXS_SO_CONNECT_TIMEOUT = ExsSocketOption.EXS_SO_CONNECT_TIMEOUT
EXS_SO_CRC = ExsSocketOption.EXS_SO_CRC
EXS_SO_STRICT_SIZE = ExsSocketOption.EXS_SO_STRICT_SIZE
EXS_SO_REASON = ExsSocketOption.EXS_SO_REASON
EXS_PROGRESS_INLINE = ProgressMode.EXS_PROGRESS_INLINE
EXS_PROGRESS_THREAD = ProgressMode.EXS_PROGRESS_THREAD
SO_ASYNC_RECV_ORDERED = SocketOption.SO_ASYNC_RECV_ORDERED
SO_ASYNC_SEND_TIMEOUT = SocketOption.SO_ASYNC_SEND_TIMEOUT
SO_ASYNC_RECV_TIMEOUT = SocketOption.SO_ASYNC_RECV_TIMEOUT
EXS_EVT_SEND = ExsEvtType.EXS_EVT_SEND
EXS_EVT_RECV = ExsEvtType.EXS_EVT_RECV
EXS_EVT_CONNECT = ExsEvtType.EXS_EVT_CONNECT
EXS_EVT_ACCEPT = ExsEvtType.EXS_EVT_ACCEPT
EXS_EVT_SHUTDOWN = ExsEvtType.EXS_EVT_SHUTDOWN
EXS_EVT_CLOSE = ExsEvtType.EXS_EVT_CLOSE
EXS_EVT_POLL = ExsEvtType.EXS_EVT_POLL
EXS_EVT_SENDMSG = ExsEvtType.EXS_EVT_SENDMSG
EXS_EVT_RECVMSG = ExsEvtType.EXS_EVT_RECVMSG
EXS_EVT_SENDFILE = ExsEvtType.EXS_EVT_SENDFILE
EXS_EVT_SENDTIMEOUT = ExsEvtType.EXS_EVT_SENDTIMEOUT
EXS_EVT_RECVTIMEOUT = ExsEvtType.EXS_EVT_RECVTIMEOUT
