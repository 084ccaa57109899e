# SPDX-License-Identifier: MIT OR Apache-2.0
"""The lab itself: two guests, real RDMA between them, and a second guest that comes back after it was killed."""

from __future__ import annotations

import os
import subprocess
import time

import agent
import pytest

DEVICES = {"rxe": "10.77.0.2", "siw": "10.78.0.2", "rxe-6": "fd77::2"}


def test_both_guests_are_there_and_are_two() -> None:
    assert os.uname().nodename == "exs-lab-1"
    assert agent.run(["hostname"]) == "exs-lab-2\n"


@pytest.mark.parametrize("device", DEVICES)
def test_rdma_between_them(device: str) -> None:
    address = DEVICES[device]
    with agent.Remote(["rping", "-s", "-a", address, "-C", "5", "-v"]) as server:
        deadline = time.monotonic() + 60
        while "LISTEN" not in agent.run(["rdma", "resource", "show", "cm_id"]):
            assert time.monotonic() < deadline, "the server does not listen"
        ping = ["rping", "-c", "-a", address, "-C", "5", "-v"]
        done = subprocess.run(ping, capture_output=True, text=True, timeout=60, check=False)
        _, said = server.wait()
    assert done.stdout.count("ping data") == 5, done.stdout + done.stderr
    assert said.count("ping data") == 5, said


def test_a_guest_that_is_killed_comes_back() -> None:
    agent.reboot()
    assert agent.run(["hostname"]) == "exs-lab-2\n"
