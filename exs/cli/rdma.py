# SPDX-License-Identifier: MIT OR Apache-2.0
"""The RDMA devices of this host as pyverbs shows them: ports, GIDs, limits, firmware.

Owns the values that ``exs devices --verbose`` prints, and the only import of pyverbs, made when they are asked for:
exs itself needs none.  pyverbs has no types, so what is used of it is written down here as protocols.  Nothing
raises: what cannot be read is a reason in words, for the whole or for the one device.
"""

from __future__ import annotations

import importlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

INSTALL = (
    "pyverbs is not installed: apt install python3-pyverbs (for the system's Python), or pip install 'exs[pyverbs]'"
)

# Numbers of the verbs interface, which is older than any of its headers that could be asked.
_TRANSPORTS = {0: "InfiniBand or RoCE", 1: "iWARP", 2: "usNIC", 3: "usNIC over UDP"}
_STATES = {0: "unknown", 1: "down", 2: "initializing", 3: "armed", 4: "active", 5: "active, deferred"}
_LINKS = {1: "InfiniBand", 2: "Ethernet"}
_GID_TYPES = {0: "InfiniBand", 1: "RoCE v1", 2: "RoCE v2"}
_IWARP = 1
_WINDOWS = {1 << 17: "1", 1 << 23: "2A", 1 << 24: "2B"}
_LIMITS = ("max_qp", "max_qp_wr", "max_sge", "max_cq", "max_cqe", "max_mr", "max_mr_size", "max_mw", "max_pd")


class _Device(Protocol):
    name: bytes
    transport_type: int


class _Gid(Protocol):
    gid_index: int
    gid_type: int
    ndev_ifindex: int

    def gid_str(self) -> str: ...


class _Port(Protocol):
    state: int
    active_mtu: int
    max_mtu: int
    link_layer: int
    max_msg_sz: int
    gid_tbl_len: int


class _Attributes(Protocol):
    fw_version: str | bytes
    vendor_id: int
    vendor_part_id: int
    phys_port_cnt: int
    device_cap_flags: int


class _Context(Protocol):
    def query_device(self) -> _Attributes: ...
    def query_port(self, port_num: int) -> _Port: ...
    def query_gid_table(self, max_entries: int) -> Sequence[_Gid]: ...
    def close(self) -> None: ...


class _Module(Protocol):
    def get_device_list(self) -> Sequence[_Device]: ...
    def Context(self, *, name: str) -> _Context: ...  # noqa: N802  # it is a class there


@dataclass(frozen=True, slots=True)
class Gid:
    """An address of a port."""

    index: int
    gid: str
    type: str
    interface: str


@dataclass(frozen=True, slots=True)
class Port:
    """A port of a device; sizes in bytes."""

    number: int
    state: str
    mtu: int
    max_mtu: int
    link: str
    max_message: int
    gids: list[Gid]


@dataclass(frozen=True, slots=True)
class RdmaDevice:
    """A device; ``reason`` says why the rest is empty, if it could not be read."""

    name: str
    transport: str
    firmware: str = ""
    vendor: int = 0
    part: int = 0
    windows: str = ""
    limits: dict[str, int] | None = None
    ports: list[Port] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Inventory:
    """All devices; ``reason`` says why there are none."""

    devices: list[RdmaDevice]
    reason: str = ""


def inventory() -> Inventory:
    """Asks pyverbs for every RDMA device of this host."""
    try:
        pyverbs = cast("_Module", importlib.import_module("pyverbs.device"))  # it has no types of its own
    except ModuleNotFoundError:
        return Inventory([], INSTALL)
    except ImportError as error:
        return Inventory([], f"pyverbs cannot be loaded (its version must be that of the installed rdma-core): {error}")
    try:
        found = pyverbs.get_device_list()
    except Exception as error:  # pyverbs' own class, which does not exist here for a checker
        return Inventory([], f"the kernel has no RDMA devices, or does not show them here: {error}")
    if not found:
        return Inventory([], "there is no RDMA device")
    return Inventory([_device(pyverbs, device) for device in found])


def _device(pyverbs: _Module, device: _Device) -> RdmaDevice:
    name, transport = device.name.decode(), _TRANSPORTS.get(device.transport_type, "unknown")
    try:
        context = pyverbs.Context(name=name)
        try:
            return _facts(context, name, transport, iwarp=device.transport_type == _IWARP)
        finally:
            context.close()
    except Exception as error:  # as above; one broken device does not hide the others
        return RdmaDevice(name, transport, reason=f"{type(error).__name__}: {error}")


def _facts(context: _Context, name: str, transport: str, *, iwarp: bool) -> RdmaDevice:
    attributes = context.query_device()
    firmware = attributes.fw_version
    ports = {number: context.query_port(number) for number in range(1, attributes.phys_port_cnt + 1)}
    table = context.query_gid_table(sum(port.gid_tbl_len for port in ports.values()))
    return RdmaDevice(
        name,
        transport,
        firmware.decode() if isinstance(firmware, bytes) else firmware,
        attributes.vendor_id,
        attributes.vendor_part_id,
        " and ".join(kind for bit, kind in _WINDOWS.items() if attributes.device_cap_flags & bit) or "none",
        {limit: int(getattr(attributes, limit)) for limit in _LIMITS},
        [_port(number, port, table, iwarp=iwarp) for number, port in ports.items()],
    )


def _port(number: int, port: _Port, table: Sequence[_Gid], *, iwarp: bool) -> Port:
    return Port(
        number,
        _STATES.get(port.state, str(port.state)),
        _mtu(port.active_mtu),
        _mtu(port.max_mtu),
        _LINKS.get(port.link_layer, "unspecified"),
        port.max_msg_sz,
        [_gid(gid, iwarp=iwarp) for gid in table if getattr(gid, "port_num", number) == number],
    )


def _gid(gid: _Gid, *, iwarp: bool) -> Gid:
    try:
        interface = socket.if_indextoname(gid.ndev_ifindex) if gid.ndev_ifindex else ""
    except OSError:  # of another network namespace
        interface = f"interface {gid.ndev_ifindex}"
    kind = "iWARP" if iwarp else _GID_TYPES.get(gid.gid_type, str(gid.gid_type))
    return Gid(gid.gid_index, gid.gid_str(), kind, interface)


def _mtu(code: int) -> int:
    return 128 << code if 1 <= code <= 5 else 0  # the codes 1 to 5 stand for 256 to 4096


def lines(found: Inventory) -> list[str]:
    """The inventory for people."""
    if found.reason:
        return [f"rdma     {found.reason}"]
    text: list[str] = []
    for device in found.devices:
        text.append(f"rdma     {device.name}: {device.transport}" + (f": {device.reason}" if device.reason else ""))
        if device.limits is not None:
            facts = [f"firmware {device.firmware}"] if device.firmware else []
            facts += [f"vendor {device.vendor:#x} part {device.part}", f"memory windows {device.windows}"]
            text.append(f"{'':8} " + ", ".join(facts))
            text.append(f"{'':8} " + ", ".join(f"{name} {value}" for name, value in device.limits.items()))
        for port in device.ports or []:
            size = f"mtu {port.mtu} of {port.max_mtu}, largest message {port.max_message}"
            text.append(f"{'':8} port {port.number} {port.state}, {port.link}, {size}")
            gids = (f"gid {gid.index:<3} {gid.gid}  {gid.type}  {gid.interface}" for gid in port.gids)
            text += [f"{'':8}   {gid}".rstrip() for gid in gids]
    return text
