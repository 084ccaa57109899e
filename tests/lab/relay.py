# SPDX-License-Identifier: MIT OR Apache-2.0
"""``python relay.py CMD...``: runs a program in the second guest as if it ran here: its input, output, exit status."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import agent


def main(command: list[str]) -> int:
    env = {k: v for k, v in os.environ.items() if k.startswith(("EXS_", "PYTHON"))}
    with agent.Remote(command, env) as remote:

        def feed() -> None:
            while data := os.read(0, 65536):
                remote.write(data.decode())

        threading.Thread(target=feed, daemon=True).start()
        while line := remote.readline(600.0):
            sys.stdout.write(line)
            sys.stdout.flush()
        return remote.wait()[0]


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status & 255)  # the reader of our input cannot be woken
