# SPDX-License-Identifier: MIT OR Apache-2.0
"""A guest's cables, pulled from inside: ``python cable.py eth0 off`` or ``on``; and the same for tests that run there.

QEMU takes the carrier from the network card, as a pulled cable does, and drops what is sent.  The interface stays up,
keeps its addresses, and the other guest's card notices nothing: there is a switch in between.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

PORTS = Path("/sys/class/virtio-ports")
PATIENCE = 20.0


def turn(wire: str, state: str) -> None:
    """Pull (``off``) or plug in (``on``) the cable of an interface, and wait until the guest's kernel knows.

    Raises:
        TimeoutError: It does not get to know.
    """
    port = next(p.parent.name for p in PORTS.glob("*/name") if p.read_text() == "hands\n")
    with open(f"/dev/{port}", "wb", buffering=0) as monitor:
        monitor.write(f"set_link wire{wire.removeprefix('eth')} {state}\n".encode())
    deadline = time.monotonic() + PATIENCE
    while (Path("/sys/class/net") / wire / "carrier").read_text() != ("1\n" if state == "on" else "0\n"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the cable of {wire} is not {state} after {PATIENCE:.0f} s")
        time.sleep(0.05)


if __name__ == "__main__":
    turn(*sys.argv[1:])
