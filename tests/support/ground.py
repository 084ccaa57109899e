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

_BYTES, _SHARED, _PROGRAM = "bytes on a TCP connection", "shared memory of two processes", "a program of soft's own"
# Tests of the soft device itself, by file or name, and what of it they are about.  The rest runs on every device.
ABOUT_SOFT = {
    "test_hostile_iwarp": _BYTES,
    "test_hostile_setup": _BYTES,
    "test_wire_iwarp": _BYTES,
    "test_tshark": _BYTES,
    "test_proxy": _BYTES,
    "test_a_connection_that_waits_is_taken_when_there_are_descriptors": _BYTES,
    "test_hostile_rendezvous": _SHARED,
    "test_hostile_shm": _SHARED,
    "test_a_forced_path_that_is_not_available_is_refused": _SHARED,
    "test_mapped_file_truncated": "a file under it may be cut, and pinned pages stay",
    "test_hosts": "network namespaces, which RDMA devices are not in",
    "test_readme": _PROGRAM,
    "test_bench": _PROGRAM,
    "test_the_demo_in_small": _PROGRAM,
    # Programs in C take no device from the environment.
    "test_c_program": _PROGRAM,
    "test_send_and_receive[python-c]": _PROGRAM,
    "test_send_and_receive[c-python]": _PROGRAM,
    "test_send_and_receive[c-c]": _PROGRAM,
}
ABOUT_SOFT_SKIP = "about soft: "
"""How the reason of a skip begins; the lab's verdict knows it."""


def about_soft(test: str) -> str | None:
    """What of the soft device a test of that name is about; None if it runs on every device."""
    found = (what for name, what in ABOUT_SOFT.items() if f"/{name}" in test or f"::{name}" in test)
    return next(found, None)


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
