# SPDX-License-Identifier: MIT OR Apache-2.0
"""``exs devices --verbose`` shows the guest's RDMA devices, by the pyverbs of the system."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PYVERBS = Path("/usr/lib/python3/dist-packages/pyverbs")  # of the system's Python, which is 3.11 as ours


@pytest.fixture
def devices(tmp_path: Path) -> Callable[..., str]:
    (tmp_path / "pyverbs").symlink_to(PYVERBS)  # and nothing else of the system's packages

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "exs", "devices", *arguments]
        env = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120).stdout

    return run


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="needs Python 3.11")
def test_ports_gids_and_limits_of_both_devices_are_shown(devices: Callable[..., str]) -> None:
    found = {d["name"]: d for d in json.loads(devices("--verbose", "--json"))["rdma"]["devices"]}
    rxe, siw = found["rxe0"], found["siw0"]
    (port,) = rxe["ports"]
    assert (port["state"], port["mtu"], port["link"]) == ("active", 4096, "Ethernet")
    mapped = [g for g in port["gids"] if g["gid"].startswith("0000:0000:0000:0000:0000:ffff:0a4d:")]
    assert [(g["type"], g["interface"]) for g in mapped] == [("RoCE v2", "eth0")]
    assert "2B" in rxe["windows"]
    assert rxe["limits"]["max_cqe"] == 32767
    assert siw["transport"] == "iWARP"
    assert siw["windows"] == "none"
    assert {g["type"] for g in siw["ports"][0]["gids"]} == {"iWARP"}
    text = devices("--verbose")
    assert "rxe0" in text
    assert "port 1 active" in text
