# SPDX-License-Identifier: MIT OR Apache-2.0
"""The ground that the suites stand on: which device, which addresses, how large and how patient.

``EXS_TEST_DEVICE`` is ``soft/shm``, ``soft/tcp``, ``verbs/rxe`` or ``verbs/siw``; without it, every path of soft.
``EXS_TEST_SCALE=small`` makes counts and sizes small and waits long, for machines that are emulated.  The lab sets
both.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

DEVICE = os.environ.get("EXS_TEST_DEVICE", "")
VERBS = DEVICE.startswith("verbs/")
SMALL = os.environ.get("EXS_TEST_SCALE", "full") == "small"

# Forced paths of soft; "auto" where the device has no paths to choose from.
PATHS = {
    "": ("shm-vm", "shm-ring", "tcp"),
    "soft/shm": ("shm-vm", "shm-ring"),
    "soft/tcp": ("tcp",),
    "verbs/rxe": ("auto",),
    "verbs/siw": ("auto",),
}[DEVICE]
MODES = ("inline", "thread")
DEVICE_NAME = "verbs" if VERBS else "soft"

# An RDMA device has no loopback address: its guest's own address leads back to it.
HOST, HOST6 = {
    "verbs/rxe": ("10.77.0.1", "fd77::1"),
    "verbs/siw": ("10.78.0.1", "fd78::1"),
}.get(DEVICE, ("127.0.0.1", "::1"))

if VERBS:
    os.environ["EXS_DEVICE"] = "verbs"  # also of the processes that tests start

# Tests of the soft device itself: its wire, its shared memory, its sockets.  The rest runs on every device.
ABOUT_SOFT = (
    "test_hostile_iwarp",
    "test_hostile_rendezvous",
    "test_hostile_setup",
    "test_hostile_shm",
    "test_wire_iwarp",
    "test_tshark",
    "test_proxy",
    "test_hosts",
    "test_limits",
    "test_memory_budget",
    "test_readme",
    "test_c_program",
    "test_send_and_receive",  # programs in C take no device from the environment
    "test_a_forced_path_that_is_not_available_is_refused",
    "test_mapped_file_truncated",  # pinned pages stay
)


def is_about_soft(test: str) -> bool:
    """Whether a test of that name can run on soft only."""
    return any(f"/{name}" in test or f"::{name}" in test for name in ABOUT_SOFT)


@contextmanager
def silent() -> Iterator[tuple[str, int]]:
    """An address where a connection is neither taken nor refused."""
    if DEVICE == "verbs/rxe":
        yield "10.77.0.99", 1  # nobody has it; any port of ours that has no listener refuses
        return
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(1)
        yield listener.getsockname()


def name_of(path: str) -> str:
    """What a test on that path is called."""
    return DEVICE.replace("/", "-") if VERBS else path


def shown(path: str | None) -> str:
    """What ``sock.path`` says on that path."""
    return "" if VERBS else str(path)


def scaled(count: int, least: int = 1) -> int:
    """A number of rounds or bytes, a sixteenth of it if the scale is small."""
    return max(least, count // 16) if SMALL else count


def patient(seconds: float) -> float:
    """How long to wait for something that happens at once on a real machine."""
    return seconds * 6 if SMALL else seconds
