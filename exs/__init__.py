# SPDX-License-Identifier: MIT OR Apache-2.0
"""Asynchronous zero-copy sockets: ES-API, trio, RDMA where there is any.

Public names only; the code is in the modules that they are imported from.
"""

from exs._config import Options
from exs._statistics import Statistics, statistics
from exs._stream_openers import open_listeners, open_stream, serve
from exs.api import (
    SOCK_SEQPACKET,
    SOCK_STREAM,
    accept,
    connect,
    recv,
    recv_into,
    send,
    socket,
)
from exs.devices import Capabilities, Device, list_devices
from exs.errors import (
    BusyError,
    Error,
    NoDeviceError,
    OperationCancelled,
    ProtocolError,
    QueueFullError,
    RemoteProtocolError,
    TruncatedError,
)
from exs.events import ExsEvent
from exs.memory import Access, MemoryRegion, RegionView, register
from exs.messages import (
    MessageChannel,
    MessageListener,
    open_message_channel,
    open_message_listeners,
)
from exs.pools import BufferPool
from exs.queues import ReceiveQueue, SendQueue
from exs.sockets import Socket
from exs.streams import SocketListener, SocketStream

__all__ = [
    "SOCK_SEQPACKET",
    "SOCK_STREAM",
    "Access",
    "BufferPool",
    "BusyError",
    "Capabilities",
    "Device",
    "Error",
    "ExsEvent",
    "MemoryRegion",
    "MessageChannel",
    "MessageListener",
    "NoDeviceError",
    "OperationCancelled",
    "Options",
    "ProtocolError",
    "QueueFullError",
    "ReceiveQueue",
    "RegionView",
    "RemoteProtocolError",
    "SendQueue",
    "Socket",
    "SocketListener",
    "SocketStream",
    "Statistics",
    "TruncatedError",
    "accept",
    "connect",
    "list_devices",
    "open_listeners",
    "open_message_channel",
    "open_message_listeners",
    "open_stream",
    "recv",
    "recv_into",
    "register",
    "send",
    "serve",
    "socket",
    "statistics",
]
