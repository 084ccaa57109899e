# SPDX-License-Identifier: MIT OR Apache-2.0
"""The second guest's servant: runs programs there for a test that runs in the first.

One TCP connection on the control wire is one process, and dies with it.  Both ways JSON, one object a line:
``{"run": [..], "env": {..}, "cwd": ..}`` first, then ``{"input": text}``, ``{"signal": n}``; back come
``{"output": text}`` and at last ``{"status": n}``.  Also the client of that, :class:`Remote`, for the tests.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

PORT = 7
"""Nobody else has it in a guest."""
BOOT_ID = ("cat", "/proc/sys/kernel/random/boot_id")


def serve(address: str) -> None:
    """Serve until the machine is switched off."""
    with socket.create_server((address, PORT)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve_one, args=(connection,), daemon=True).start()


def _serve_one(connection: socket.socket) -> None:
    with connection, connection.makefile("r") as requests:
        first = json.loads(requests.readline())
        process = subprocess.Popen(
            first["run"],
            env={**os.environ, **first["env"]},
            cwd=first["cwd"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
        threading.Thread(target=_obey, args=(requests, process), daemon=True).start()
        assert process.stdout
        try:
            while data := os.read(process.stdout.fileno(), 65536):
                _say(connection, output=data.decode(errors="replace"))
            _say(connection, status=process.wait())
        except OSError:  # nobody listens any more
            _signal(process, signal.SIGKILL)


def _say(connection: socket.socket, **what: object) -> None:
    connection.sendall(json.dumps(what).encode() + b"\n")


def _obey(requests: object, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    try:
        for line in requests:  # type: ignore[attr-defined]  # a text file
            request = json.loads(line)
            if "signal" in request:
                _signal(process, request["signal"])
            else:
                process.stdin.write(request["input"].encode())
    except (OSError, ValueError):
        pass
    _signal(process, signal.SIGKILL)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


class Remote:
    """A process in the other guest.

    Args:
        command: Program and arguments; the path leads as here.
        env: Added to the guest's environment.
        cwd: Where it starts; as here if not given.
        patience: Seconds to wait for the guest, which may be booting.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        patience: float = 150.0,
    ) -> None:
        deadline = time.monotonic() + patience
        while True:
            try:
                self._socket = socket.create_connection((os.environ["EXS_LAB_PEER"], PORT), 5.0)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        self._lines = self._socket.makefile("r")
        self._text = ""
        self.status: int | None = None
        _say(self._socket, run=list(command), env=dict(env or {}), cwd=cwd or os.getcwd())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _step(self, timeout: float) -> bool:
        """Take one answer; False when there will be none."""
        if self.status is not None:
            return False
        self._socket.settimeout(timeout)
        line = self._lines.readline()
        if not line:
            raise ConnectionError("the other guest is gone")
        answer = json.loads(line)
        if "status" in answer:
            self.status = answer["status"]
            return False
        self._text += answer["output"]
        return True

    def readline(self, timeout: float = 60.0) -> str:
        """One line of its output with the newline; empty at the end.

        Raises:
            TimeoutError: None came; another read is not possible then.
            ConnectionError: The guest is gone.
        """
        while "\n" not in self._text and self._step(timeout):
            pass
        line, newline, self._text = self._text.partition("\n")
        return line + newline

    def expect(self, start: str, timeout: float = 60.0) -> str:
        """The rest of the first line that starts so.

        Raises:
            AssertionError: It ended without; says what it printed.
        """
        seen: list[str] = []
        while line := self.readline(timeout):
            if line.startswith(start):
                return line[len(start) :].strip()
            seen.append(line)
        raise AssertionError(f"no line {start!r}, status {self.status}:\n{''.join(seen)}")

    def write(self, text: str) -> None:
        """Give it input."""
        _say(self._socket, input=text)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it and its children a signal."""
        _say(self._socket, signal=int(number))

    def wait(self, timeout: float = 60.0) -> tuple[int, str]:
        """Its exit status, and all output that was not read."""
        while self._step(timeout):
            pass
        assert self.status is not None
        text, self._text = self._text, ""
        return self.status, text

    def close(self) -> None:
        """End it, if it still runs."""
        self._lines.close()
        self._socket.close()


def run(command: Sequence[str], timeout: float = 60.0, **env: str) -> str:
    """Run a program in the other guest to its end.

    Returns:
        What it printed.

    Raises:
        AssertionError: It failed; says what it printed.
    """
    with Remote(command, env) as remote:
        status, text = remote.wait(timeout)
    assert status == 0, f"{command}: status {status}\n{text}"
    return text


def reboot() -> None:
    """Switch the other guest off, at once, and wait for the next: what a test broke in its kernel is whole again."""
    before = run(BOOT_ID)
    with suppress(OSError), Remote(["sh", "-c", "echo b >/proc/sysrq-trigger; sleep 60"]) as last:
        last.wait(20)
    assert run(BOOT_ID) != before


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))
    import preloaded

    with preloaded.processes():
        serve(sys.argv[1])
