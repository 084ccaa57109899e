# SPDX-License-Identifier: MIT OR Apache-2.0
"""The two programs of docs/tutorials/smc-r.md, as they stand there, in two guests.

The client has the rights that the tutorial gives to a user, and no others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import agent
import kernel_smc
import pytest
import smc_peer
from kernel import ROOT

pytestmark = [
    pytest.mark.skipif("EXS_LAB_PEER" not in os.environ, reason="needs two guests"),
    pytest.mark.timeout(200),
]

TUTORIAL = ROOT / "docs" / "tutorials" / "smc-r.md"
PORT = 7000


def programs() -> tuple[str, str]:
    """The server and the client that the tutorial says to save; with this lab's address and enterprise id."""
    text = TUTORIAL.read_text().replace("10.0.0.2", smc_peer.THERE).replace("MY.CLUSTER", kernel_smc.EID)
    server, client = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return server, client


def with_no_more_rights(command: list[str]) -> list[str]:
    """A command with the capabilities that the tutorial gives to a user, and with no other."""
    (rights,) = re.findall(r"--ambient-caps=(\S+)", TUTORIAL.read_text())
    return ["setpriv", f"--bounding-set=-all,{rights}", *command]


def listens() -> bool:
    rows = smc_peer.kernel_there()["sockets"]
    assert isinstance(rows, list)
    return any(row["local"] == PORT and row["state"] == smc_peer.LISTEN for row in rows)


def test_the_tutorial() -> None:
    smc_peer.set_up()
    server, client = programs()
    with agent.Remote([sys.executable, "-c", server]):
        smc_peer.wait_until(listens, "the server does not listen")
        command = with_no_more_rights([sys.executable, "-c", client])
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            smc_peer.wait_until(lambda: smc_peer.modes_there(PORT) == {"SMC-R"}, "B does not carry it by SMC-R")
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        # Behind the transport stands the reason, and there is nothing to explain.
        assert [line.rstrip() for line in said.splitlines()] == ["carried by smc-r v2", "came back: hello from exs"]
