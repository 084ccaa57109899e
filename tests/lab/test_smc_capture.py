# SPDX-License-Identifier: MIT OR Apache-2.0
"""What Linux puts on the wire, read by ``exs decode``: the codecs judged by an implementation that is not ours."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import captures
import kernel_smc
import pytest
import smc_peer
from smc_peer import in_thread

pytestmark = [
    pytest.mark.skipif("EXS_LAB_PEER" not in os.environ, reason="needs two guests"),
    pytest.mark.timeout(240),
]

ETHERNET, ALL_PROTOCOLS, ROOM = 1, 0x0003, 16 << 20
CONNECTION = {"PROPOSAL", "ACCEPT", "CONFIRM", "CDC"}


@pytest.fixture(scope="module", autouse=True)
def smc() -> None:
    """Both kernels are ready for SMC-R."""
    smc_peer.set_up()


@contextmanager
def captured(file: Path) -> Iterator[None]:
    """Everything that passes the wire of RDMA meanwhile, as a capture file."""
    packets: list[bytes] = []
    over = threading.Event()

    def take(sniffer: socket.socket) -> None:
        while True:
            try:
                packets.append(sniffer.recv(65535))
            except TimeoutError:
                if over.is_set():
                    return

    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS)) as sniffer:
        sniffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, ROOM)
        sniffer.bind((kernel_smc.NETDEV, 0))
        sniffer.settimeout(0.5)
        thread = threading.Thread(target=take, args=(sniffer,))
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
    file.write_bytes(captures.pcap(packets, link=ETHERNET))


def decoded(file: Path) -> list[dict[str, object]]:
    """The messages of SMC in a capture; none of them is broken."""
    command = [sys.executable, "-m", "exs", "decode", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return json.loads(done.stdout)["messages"]


def check(found: list[dict[str, object]]) -> None:
    """A handshake and data are in it, and nothing that we cannot read."""
    count = Counter(str(message["name"]) for message in found)
    assert set(count) >= CONNECTION, count
    assert count["CDC"] >= 2, count
    assert not [message for message in found if message.get("error")], found


def test_two_kernels(tmp_path: Path) -> None:
    file = tmp_path / "kernels.pcap"
    with captured(file), smc_peer.there("exchange", "--bytes", 1000) as server:
        port = server.expect("listening")
        with smc_peer.here("exchange", "--host", smc_peer.THERE, "--port", port, "--bytes", 1000) as client:
            client.communicate(timeout=60)
        server.wait()
    check(decoded(file))


@smc_peer.ROLES
async def test_exs_and_a_kernel(role: smc_peer.Role, tmp_path: Path) -> None:
    file = tmp_path / "exs.pcap"
    with captured(file):
        async with role("echo") as (stream, other):
            await stream.send_all(b"there")
            assert await stream.receive_some() == b"there"
            await stream.aclose()
            await in_thread(other.wait)
    found = decoded(file)
    check(found)
    # A run is a peer that nobody has met, so this was a first contact: a question and its answer.
    assert sum(message["name"] == "CONFIRM_LINK" for message in found) >= 2
