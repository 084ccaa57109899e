# SPDX-License-Identifier: MIT OR Apache-2.0
"""``exs devices --verbose``: what pyverbs says is shown, and what it cannot say has a reason in words."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest

from exs.cli import main, rdma

LINK_LOCAL = "fe80:0000:0000:0000:5054:00ff:fe12:3456"
MAPPED = "0000:0000:0000:0000:0000:ffff:0a00:0002"


class PyverbsRDMAError(Exception):
    """pyverbs' own class, as far as exs sees it."""


def gid(index: int, text: str, kind: int, interface: int = 1, port: int = 1) -> SimpleNamespace:
    return SimpleNamespace(gid_index=index, gid_str=lambda: text, gid_type=kind, ndev_ifindex=interface, port_num=port)


class Context:
    """A device of two ports, the second of them down; or one that nobody may open."""

    opened = 0

    def __init__(self, *, name: str) -> None:
        if name == "locked0":
            raise PyverbsRDMAError("Failed to open device. Errno: 13, Permission denied")
        self.name = name
        Context.opened += 1

    def query_device(self) -> SimpleNamespace:
        limits = dict.fromkeys(rdma._LIMITS, 1000) | {"max_mr_size": 1 << 40}
        return SimpleNamespace(
            fw_version="16.35.4030", vendor_id=0x2C9, vendor_part_id=4119, phys_port_cnt=2,
            device_cap_flags=1 << 17 | 1 << 24, **limits,
        )  # fmt: skip

    def query_port(self, port_num: int) -> SimpleNamespace:
        return SimpleNamespace(
            state=4 if port_num == 1 else 1, active_mtu=5 if port_num == 1 else 0, max_mtu=5, link_layer=2,
            max_msg_sz=1 << 30, gid_tbl_len=16,
        )  # fmt: skip

    def query_gid_table(self, max_entries: int) -> list[SimpleNamespace]:
        assert max_entries == 32
        return [gid(0, LINK_LOCAL, 1), gid(1, LINK_LOCAL, 2), gid(3, MAPPED, 2), gid(0, MAPPED, 0, 0x7FFFFFFF, port=2)]

    def close(self) -> None:
        Context.opened -= 1


def device(name: str, transport: int = 0) -> SimpleNamespace:
    return SimpleNamespace(name=name.encode(), transport_type=transport)


@pytest.fixture
def pyverbs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    module = ModuleType("pyverbs.device")
    module.Context = Context  # type: ignore[attr-defined]
    module.get_device_list = lambda: [device("mlx5_0")]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyverbs", ModuleType("pyverbs"))
    monkeypatch.setitem(sys.modules, "pyverbs.device", module)
    yield module
    assert Context.opened == 0, "a device was left open"


def test_ports_gids_limits_and_firmware_are_shown(pyverbs: ModuleType) -> None:
    found = rdma.inventory()
    assert not found.reason
    (seen,) = found.devices
    assert (seen.name, seen.firmware, seen.vendor, seen.windows) == ("mlx5_0", "16.35.4030", 0x2C9, "1 and 2B")
    assert seen.limits is not None
    assert seen.limits["max_mr_size"] == 1 << 40
    assert seen.ports is not None
    first, second = seen.ports
    assert (first.state, first.mtu, first.max_mtu, first.link, first.max_message) == (
        "active", 4096, 4096, "Ethernet", 1 << 30,
    )  # fmt: skip
    assert [(g.index, g.type, g.interface) for g in first.gids] == [
        (0, "RoCE v1", "lo"), (1, "RoCE v2", "lo"), (3, "RoCE v2", "lo"),
    ]  # fmt: skip
    assert (second.state, second.mtu) == ("down", 0)
    assert [(g.gid, g.interface) for g in second.gids] == [(MAPPED, "interface 2147483647")], "a GID of port 2"


def test_text_names_every_fact(pyverbs: ModuleType) -> None:
    text = "\n".join(rdma.lines(rdma.inventory()))
    for fact in ("mlx5_0", "16.35.4030", "port 1 active", "mtu 4096 of 4096", MAPPED, "RoCE v2", "max_qp_wr 1000"):
        assert fact in text


def test_gids_of_iwarp_are_no_roce(pyverbs: ModuleType) -> None:
    pyverbs.get_device_list = lambda: [device("siw0", transport=1)]  # type: ignore[attr-defined]
    (seen,) = rdma.inventory().devices
    assert seen.transport == "iWARP"
    assert seen.ports is not None
    assert {g.type for g in seen.ports[0].gids} == {"iWARP"}


def test_device_that_cannot_be_opened_does_not_hide_the_others(pyverbs: ModuleType) -> None:
    pyverbs.get_device_list = lambda: [device("locked0"), device("mlx5_0")]  # type: ignore[attr-defined]
    locked, seen = rdma.inventory().devices
    assert "Permission denied" in locked.reason
    assert locked.ports is None
    assert seen.ports
    assert "Permission denied" in "\n".join(rdma.lines(rdma.Inventory([locked])))


def test_kernel_without_rdma_is_a_reason(pyverbs: ModuleType) -> None:
    def refuse() -> list[SimpleNamespace]:
        raise PyverbsRDMAError("Failed to get devices list")

    pyverbs.get_device_list = refuse  # type: ignore[attr-defined]
    assert "kernel has no RDMA devices" in rdma.inventory().reason
    pyverbs.get_device_list = list  # type: ignore[attr-defined]
    assert rdma.inventory().reason == "there is no RDMA device"


def test_missing_pyverbs_is_one_line_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyverbs", None)  # an import of it fails
    monkeypatch.setitem(sys.modules, "pyverbs.device", None)
    assert main(["devices", "--verbose"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "pyverbs" in line]
    assert len(said) == 1
    assert "python3-pyverbs" in said[0]
    assert "exs[pyverbs]" in said[0]


def test_pyverbs_of_another_rdma_core_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pyverbs.device":
                raise ImportError("libibverbs.so.1: version `IBVERBS_PRIVATE_59' not found")

    package = ModuleType("pyverbs")
    package.__path__ = []  # a package
    monkeypatch.setitem(sys.modules, "pyverbs", package)
    monkeypatch.delitem(sys.modules, "pyverbs.device", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    assert "IBVERBS_PRIVATE_59" in rdma.inventory().reason


def test_json_has_the_inventory_only_when_asked(pyverbs: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json", "--verbose"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rdma"]["devices"][0]["ports"][0]["gids"][1]["type"] == "RoCE v2"
    assert main(["devices", "--json"]) == 0
    assert "rdma" not in json.loads(capsys.readouterr().out)
