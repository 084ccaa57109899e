# SPDX-License-Identifier: MIT OR Apache-2.0
"""The slide's example in Python and in C, each with either as its peer."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ground import HOST, patient

import exs

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path(exs.__file__).parent

Command = list[str]
HOST_OF = {"python": [HOST], "c": []}  # the program in C has no choice


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C programs, built as a user builds them: against the header and library inside the package."""
    if not (INSTALLED / "lib" / "libexs.a").exists():
        pytest.skip("needs the installed package")
    compiler = shutil.which("cc")
    assert compiler
    folder = tmp_path_factory.mktemp("c")
    for name in ("send", "receive"):
        source, library = ROOT / f"examples/c/{name}.c", INSTALLED / "lib/libexs.a"
        subprocess.run(
            [
                compiler,
                "-Wall",
                "-Wextra",
                "-Werror",
                f"-I{INSTALLED / 'include'}",
                "-o",
                folder / name,
                source,
                library,
                "-pthread",
            ],
            check=True,
        )
    return folder


def command(language: str, which: str, request: pytest.FixtureRequest) -> Command:
    if language == "c":
        folder: Path = request.getfixturevalue("compiled")
        return [str(folder / which)]
    number = {"send": "01", "receive": "02"}[which]
    return [sys.executable, "-W", "error", str(ROOT / f"examples/{number}_esapi_{which}.py")]


@pytest.fixture
def children() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for child in started:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("receiver", ["python", "c"])
@pytest.mark.parametrize("sender", ["python", "c"])
def test_send_and_receive(
    sender: str, receiver: str, request: pytest.FixtureRequest, children: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    server = subprocess.Popen(
        [*command(receiver, "receive", request), "0", *HOST_OF[receiver]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    children.append(server)
    assert server.stdout
    (port,) = re.findall(r"listening on port (\d+)", server.stdout.readline())
    client = subprocess.run(
        [*command(sender, "send", request), HOST, port, "hello, world"],
        capture_output=True,
        text=True,
        timeout=patient(20),
        cwd=tmp_path,
        check=False,
    )
    assert client.stdout == "sent: length 12, errno 0\n", client.stderr
    out, err = server.communicate(timeout=patient(20))
    assert out == "received: length 12: hello, world\nend of data\n", err
    assert server.returncode == client.returncode == 0
