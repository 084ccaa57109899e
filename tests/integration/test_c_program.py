# SPDX-License-Identifier: MIT OR Apache-2.0
"""A C program is built against the header and the library inside the installed package, and runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ground import HOST, patient

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "c"


def flags() -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "exs", "--cflags", "--libs"],
        capture_output=True,
        text=True,
        check=True,
        timeout=patient(20),
    )
    return done.stdout.split()


def build(name: str, where: Path) -> Path:
    program = where / name
    compiler = os.environ.get("CC", "cc")
    command = [compiler, "-Wall", "-Wextra", "-Werror", str(EXAMPLES / f"{name}.c"), "-o", str(program), *flags()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), check=False)
    assert done.returncode == 0, done.stderr
    return program


def test_the_example_of_the_slide_sends_and_prints_length_and_errno(tmp_path: Path) -> None:
    receive, send = build("receive", tmp_path), build("send", tmp_path)
    with subprocess.Popen([receive, "0"], stdout=subprocess.PIPE, text=True) as receiver:
        try:
            assert receiver.stdout is not None
            port = receiver.stdout.readline().split()[-1]
            done = subprocess.run(
                [send, HOST, port, "hello from C"], capture_output=True, text=True, timeout=patient(20), check=False
            )
            assert done.stdout == "sent: length 12, errno 0\n", done.stderr
            received, _ = receiver.communicate(timeout=patient(20))
            assert "received: length 12: hello from C" in received
        finally:
            receiver.kill()
