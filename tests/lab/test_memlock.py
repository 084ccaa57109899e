# SPDX-License-Identifier: MIT OR Apache-2.0
"""The limit of locked memory at 64 KiB: what needs more says so by name, and what needs less works."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ground import patient

HOSTS = {"rxe": "10.77.0.1", "siw": "10.78.0.1"}

PROGRAM = """
import errno, sys, trio, exs
from exs.testing import stream_pair

host = sys.argv[1]

def leaves(error):
    for inner in error.exceptions if isinstance(error, BaseExceptionGroup) else [error.__cause__]:
        if inner is None:
            yield error
        else:
            yield from leaves(inner)

async def main():
    try:
        exs.MemoryRegion(bytearray(8 << 20)).close()
    except exs.Error as error:
        print("region", errno.errorcode[error.errno], error)
    try:
        a, b = await stream_pair(exs.Options(device="verbs"), host=host)
    except Exception as error:
        for leaf in leaves(error):
            print("verbs", errno.errorcode[leaf.errno], leaf)
    else:
        print("verbs connected")
    a, b = await stream_pair(exs.Options(device="soft"), host="127.0.0.1")
    await a.send_all(b"soft needs none")
    print((await b.receive_some()).decode())
    await a.aclose()
    await b.aclose()

trio.run(main)
"""


@pytest.mark.parametrize("device", HOSTS)
def test_a_limit_of_64_kib_is_told_by_name_and_soft_works(device: str) -> None:
    limited = ["prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
    done = subprocess.run(
        [*limited, sys.executable, "-W", "ignore", "-c", PROGRAM, HOSTS[device]],
        capture_output=True,
        text=True,
        timeout=patient(30),
        check=False,
    )
    lines = done.stdout.splitlines()
    told = [line for line in lines if line.startswith(("region", "verbs"))]
    assert told, done.stdout + done.stderr
    for line in told:
        assert "ENOMEM" in line, line
        assert "memlock" in line.lower(), line
        assert "65536" in line, line
    assert lines[-1] == "soft needs none", done.stdout + done.stderr
