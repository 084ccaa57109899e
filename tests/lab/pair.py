# SPDX-License-Identifier: MIT OR Apache-2.0
"""Two guests on common wires: the job runs in the first, the second serves it (agent.py).

The second guest is booted again whenever it dies: a test may kill it.  The wires are pairs of connected sockets that
belong to us, so nothing is taken on the machine that another lab could want.
"""

from __future__ import annotations

import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path

from guest import Failed, Guest, Job, Shape
from kernel import Kernel

AGENT = Path(__file__).resolve().parent / "agent.py"
WIRES = 3


class Pair:
    """The two machines.

    Args:
        kernel: What they boot.
        job: What the first does; the second has its environment.
        shape: What each is made of.
    """

    def __init__(self, kernel: Kernel, job: Job, shape: Shape | None = None) -> None:
        self._kernel, self._job, self._shape = kernel, job, shape
        self._ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(WIRES)]
        for end in (e for pair in self._ends for e in pair):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        self._over = threading.Event()
        self._second = self._boot_second()
        first = replace(job, env={**job.env, "EXS_LAB_PEER": "10.79.0.2"})
        self.first = Guest(kernel, first, role=1, shape=shape, wires=[a.fileno() for a, _ in self._ends])
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def _boot_second(self) -> Guest:
        job = replace(self._job, command=[sys.executable, str(AGENT), "0.0.0.0"], timeout=86400.0)
        wires = [b.fileno() for _, b in self._ends]
        return Guest(self._kernel, job, role=2, shape=self._shape, wires=wires, echo=False)

    def _keep(self) -> None:
        """Boot the second guest again as often as it dies, unless it never came up."""
        while not self._over.is_set():
            if self._second.ended(0.2):
                if not self._second.up:
                    print("lab: the second guest does not boot", file=sys.stderr, flush=True)
                    return
                self._second.discard()
                self._second = self._boot_second()

    @property
    def folder(self) -> Path:
        """The first guest's."""
        return self.first.folder

    def wait(self) -> int:
        """As of the first guest."""
        try:
            return self.first.wait()
        except Failed as problem:
            raise Failed(f"{problem}\nthe second guest's console:\n{self._second.console_tail()}") from None

    def kill(self) -> None:
        """Switch both off."""
        self._over.set()
        self._keeper.join()
        for machine in (self.first, self._second):
            machine.kill()
        for pair in self._ends:
            for end in pair:
                end.close()

    def discard(self) -> None:
        """Their folders are not needed any more."""
        self.first.discard()
        self._second.discard()
