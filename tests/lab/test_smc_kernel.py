# SPDX-License-Identifier: MIT OR Apache-2.0
"""The ground that the tests of SMC-R stand on: two kernels speak it with each other, and so do unmodified programs."""

from __future__ import annotations

import hashlib
import os
import subprocess

import agent
import kernel_smc
import pytest
import smc_peer

pytestmark = [
    pytest.mark.skipif("EXS_LAB_PEER" not in os.environ, reason="needs two guests"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module", autouse=True)
def smc() -> None:
    """Both kernels are ready for SMC-R."""
    kernel_smc.set_up()
    agent.run([*smc_peer.PROGRAM, "set-up"])


def digest(length: int, seed: int) -> str:
    return f"received {length} {hashlib.sha256(kernel_smc.pattern(length, seed)).hexdigest()}\n"


def test_two_kernels_exchange_data() -> None:
    before = kernel_smc.sent_packets()
    with smc_peer.there("exchange", "--bytes", 300_000) as server:
        port = server.expect("listening")
        to = ("--host", smc_peer.THERE, "--port", port)
        with smc_peer.here("exchange", *to, "--bytes", 1 << 20, "--seed", 2) as client:
            assert client.communicate(timeout=120)[0] == digest(300_000, 1)
        assert server.wait()[1] == digest(1 << 20, 2)
    assert kernel_smc.sent_packets() - before > (1 << 20) / 4096
    smc_peer.wait_until(lambda: not kernel_smc.sockets(), "a socket was left over")


def test_a_connection_shows_that_it_is_smc_r() -> None:
    with smc_peer.there("hold") as server:
        port = server.expect("listening")
        with smc_peer.here("hold", "--host", smc_peer.THERE, "--port", port) as client:
            server.expect("holding")
            assert [row.mode for row in kernel_smc.sockets() if row.remote == int(port)] == ["SMC-R"]
            server.kill()
            assert client.communicate("go on\n", timeout=60)[0].splitlines() == ["holding", "read 0"]


def test_unmodified_programs() -> None:
    command = smc_peer.redis_server(smc_peer.THERE, 6379)
    ask = smc_peer.on_smc("/usr/bin/redis-cli", "-h", smc_peer.THERE, "-p", 6379)
    with agent.Remote(command) as server:
        while "Ready to accept connections" not in (line := server.readline()):
            assert line, server.wait()
        for words, answer in ((["SET", "key", "value"], "OK"), (["GET", "key"], "value")):
            done = subprocess.run([*ask, *words], capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout.strip() == answer
        listening = [row for row in smc_peer.kernel_there()["sockets"] if row["local"] == 6379]  # type: ignore[attr-defined]
        assert {row["mode"] for row in listening} == {"SMC-R"}
