# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the README and the tutorial show runs as it stands there."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[str]:
    return BLOCK.findall((ROOT / page).read_text())


def run(program: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=cwd, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def test_readme_example_echoes(tmp_path: Path) -> None:
    (program,) = blocks("README.md")
    out = run(program, tmp_path)
    assert "zero copies" in out
    assert "soft" in out


def test_readme_example_is_short() -> None:
    (program,) = blocks("README.md")
    assert len([line for line in program.splitlines() if line.strip()]) <= 16


def test_tutorial_server_and_client_talk(tmp_path: Path) -> None:
    server, client, into, send, ahead = blocks("docs/tutorials/first-transfer.md")
    port = str(free_port())
    head, main = server.split("async def handler", 1)[0], server.split("if __name__", 1)[1]
    for handler in (server.split(head, 1)[1].split("if __name__", 1)[0], into, ahead):
        program = f"{head}\n{handler}\nif __name__{main}".replace("7471", port)
        for sender in (client, send):
            source = client.split("async def main", 1)[0] + sender if sender is send else client
            if sender is send:
                source += '\n\nif __name__ == "__main__":\n    trio.run(main)\n'
            served = subprocess.Popen(
                [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            try:
                wait_for(int(port))
                run(source.replace("7471", port), tmp_path)
            finally:
                served.terminate()
                _, errors = served.communicate(timeout=10)
            assert "Traceback" not in errors or "KeyboardInterrupt" in errors, errors


def test_tutorial_on_smc_speaks_plain_tcp_where_there_is_no_af_smc(tmp_path: Path) -> None:
    """Its two programs as they stand, but for the address, the family of the server's socket, and the wait."""
    server, client = blocks("docs/tutorials/smc-r.md")
    port = str(free_port())
    for old, new in (("10.0.0.2", "127.0.0.1"), ("7000", port), ("AF_SMC = 43", "AF_SMC = socket.AF_INET")):
        server, client = server.replace(old, new), client.replace(old, new)
    served = subprocess.Popen([sys.executable, "-c", server], cwd=tmp_path)
    try:
        wait_for(int(port))
        said = run(client.replace("sleep(10)", "sleep(0)"), tmp_path).splitlines()
    finally:
        served.kill()
        served.wait(10)
    assert said[0].startswith("carried by tcp ")
    assert said[1] == "came back: hello from exs"


def wait_for(port: int) -> None:
    """Until somebody listens; the listener sees a connection that says nothing, and must not mind."""
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
        except OSError:
            import time

            time.sleep(0.05)
        else:
            return
    raise AssertionError("the server never listened")
