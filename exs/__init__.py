# SPDX-License-Identifier: MIT OR Apache-2.0
"""Asynchronous zero-copy sockets: ES-API, trio, RDMA where there is any.

Public names only; the code is in the modules that they are imported from.
"""

from exs._config import Options
from exs._statistics import Statistics, statistics
from exs.devices import Capabilities, Device, list_devices
from exs.errors import (
    BusyError,
    Error,
    NoDeviceError,
    OperationCancelled,
    ProtocolError,
    QueueFullError,
    TruncatedError,
)
from exs.events import ExsEvent
from exs.memory import Access, BufferPool, MemoryRegion, RegionView, register

__all__ = [
    "Access",
    "BufferPool",
    "BusyError",
    "Capabilities",
    "Device",
    "Error",
    "ExsEvent",
    "MemoryRegion",
    "NoDeviceError",
    "OperationCancelled",
    "Options",
    "ProtocolError",
    "QueueFullError",
    "RegionView",
    "Statistics",
    "TruncatedError",
    "list_devices",
    "register",
    "statistics",
]
