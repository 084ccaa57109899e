# SPDX-License-Identifier: MIT OR Apache-2.0
"""The numbered programs of examples/ that use the trio layer do what their heads say."""

from __future__ import annotations

import hashlib
import os
import random
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from ground import HOST, patient, scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
BOUND_S = patient(25)
MESSAGES = scaled(20_500)


def command(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def run(name: str, *arguments: object) -> str:
    done = subprocess.run(
        command(name, *arguments),
        check=True,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        env=environment(),
    )
    assert not done.stderr
    return done.stdout


@contextmanager
def server(name: str, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that says its port, and the port."""
    process = subprocess.Popen(
        command(name, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout is not None
        said = re.fullmatch(r"listening on port (\d+)\n", process.stdout.readline())
        assert said
        yield process, said[1]
    finally:
        process.kill()
        process.communicate()


def test_stream_echo() -> None:
    with server("03_stream_echo.py", "serve", 0, HOST) as (_, port):
        for words in (["hello"], ["and", "again"]):
            assert run("03_stream_echo.py", HOST, port, *words).startswith(" ".join(words) + "\nover ")


def test_messages() -> None:
    with server("04_messages.py", "serve", 0, HOST) as (_, port):
        sums = [sum(range(0, 10_000 * step, step)) for step in (1, 2, 3)]
        assert run("04_messages.py", HOST, port) == "".join(f"{s}\n" for s in sums)


def test_queues() -> None:
    assert run("05_queues.py", MESSAGES, HOST).startswith(f"{MESSAGES} messages of 64 bytes in ")


@pytest.mark.parametrize("nbytes", [0, 1, 5_000_001])
def test_send_mmap(tmp_path: Path, nbytes: int) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random.Random(1).randbytes(nbytes))
    with server("08_send_mmap.py", "receive", target, 0, HOST) as (receiver, port):
        run("08_send_mmap.py", "send", source, HOST, port)
        said, errors = receiver.communicate(timeout=BOUND_S)
        assert said.startswith(f"{nbytes} bytes; ")
        assert not errors
        assert receiver.returncode == 0
    assert target.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("nbytes", [1, 300_000])
def test_smc_stream(nbytes: int) -> None:
    with server("09_smc_stream.py", "serve", 0) as (process, port):
        said = run("09_smc_stream.py", "127.0.0.1", port, nbytes)
        assert said == f"connected by smc-r v2\n{nbytes} bytes, the same on both sides\n"
        assert process.stdout is not None
        assert process.stdout.readline() == f"received {nbytes} bytes by smc-r v2\n"


def test_smc_stream_to_a_plain_peer() -> None:
    with server("09_smc_stream.py", "serve", 0) as (process, port):
        with socket.create_connection(("127.0.0.1", int(port)), timeout=BOUND_S) as plain:
            plain.sendall(b"hello")
            plain.shutdown(socket.SHUT_WR)
            assert plain.makefile("rb").read() == hashlib.sha256(b"hello").digest()
        assert process.stdout is not None
        assert process.stdout.readline() == "received 5 bytes by tcp: the peer speaks plain TCP\n"


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("0*.py")), ids=lambda p: p.name)
def test_the_head_of_an_example_is_its_usage(example: Path) -> None:
    head = example.read_text().split('"""')[1]
    assert f"python examples/{example.name}" in head
