# SPDX-License-Identifier: MIT OR Apache-2.0
"""Peers on the kernel's SMC-R in either guest, for the tests of the suite ``smc``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import agent
import kernel_smc
from kernel import ROOT

HERE, THERE = "10.77.0.1", "10.77.0.2"
PRELOAD = str(ROOT / "build" / "native-lab" / "tests" / "native" / "af_smc.so")
PROGRAM = [sys.executable, str(Path(kernel_smc.__file__).resolve())]


def there(action: str, *options: object) -> agent.Remote:
    """A program on AF_SMC in the second guest; see :func:`kernel_smc.peer`."""
    return agent.Remote([*PROGRAM, "peer", action, *map(str, options)])


@contextmanager
def here(action: str, *options: object) -> Iterator[subprocess.Popen[str]]:
    """The same in this guest; ended with the block."""
    command = [*PROGRAM, "peer", action, *map(str, options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def kernel_there() -> dict[str, object]:
    """What the second guest's kernel says of its SMC."""
    return json.loads(agent.run([*PROGRAM, "status"]))


def wait_until(what: Callable[[], object], why: str, patience: float = 60.0) -> None:
    """Wait for something to become true.

    Raises:
        AssertionError: It did not in time.
    """
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.1)


def on_smc(program: str, *arguments: object, name: str | None = None) -> list[str]:
    """The command of an unmodified program whose TCP sockets are AF_SMC; ``name`` is what it is told to be."""
    script = 'exec -a "$0" "$@"'
    words = ["bash", "-c", script, name or program, program, *map(str, arguments)]
    return ["env", f"LD_PRELOAD={PRELOAD}", *words]


def redis_server(host: str, port: int) -> list[str]:
    """redis-server on AF_SMC: Debian's redis-check-rdb is the same program, and does what its name says."""
    quiet = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", os.environ.get("TMPDIR", "/tmp")]
    return on_smc("/usr/bin/redis-check-rdb", "--bind", host, "--port", port, *quiet, name="redis-server")
