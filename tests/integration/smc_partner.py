# SPDX-License-Identifier: MIT OR Apache-2.0
"""The other process of a test of SMC-R on the embedded device: ``python smc_partner.py END PORT``.

Connects, says that it is there, waits for a byte, and then ends as it was told to, its stream still open.
"""

from __future__ import annotations

import sys

import trio
from smc_sides import SMC

import exs


async def main(end: str, port: int) -> None:
    stream = await exs.open_stream("127.0.0.1", port, options=SMC)
    await stream.send_all(b"there")
    await stream.receive_some()
    match end:
        case "return":
            return
        case "raise":
            raise ZeroDivisionError("as the test wants it")
        case "exit":
            sys.exit(3)
    await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
