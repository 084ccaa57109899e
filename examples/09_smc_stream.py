# SPDX-License-Identifier: MIT OR Apache-2.0
"""A stream over SMC-R, or over TCP where that is not possible: each side says which, and why.

python examples/09_smc_stream.py serve [PORT [HOST]]    answers with the checksum of what it gets; says its port
python examples/09_smc_stream.py HOST PORT [BYTES]      sends so many bytes, 1 MiB if not said, and compares

Both sides are exs here and know it, so none of what the kernel's SMC-R needs is needed: "assume" takes the peer for one
that speaks SMC-R, and the embedded device carries it, on any laptop.  For a peer on AF_SMC of Linux:

    SMC = exs.Options(protocol="smc", smc_eid=("MY.CLUSTER",))

on two hosts with a RoCE device each, with the capabilities CAP_BPF and CAP_NET_ADMIN, and with that EID in the kernel
of the other host: docs/tutorials/smc-r.md.
"""

from __future__ import annotations

import hashlib
import sys

import trio

import exs

SMC = exs.Options(protocol="smc", device="soft", smc_option="assume", smc_eid=("EXAMPLE",))


def carried(stream: exs.SocketStream) -> str:
    """What carries a stream, and why it is not SMC-R if it is not."""
    if stream.transport == "tcp":
        return f"tcp: {stream.transport_reason}"
    return stream.transport


async def check(stream: exs.SocketStream) -> None:
    digest, total = hashlib.sha256(), 0
    while True:
        async with stream.receive_view() as view:  # the very buffer that the peer writes into: no byte was copied
            if not len(view):
                break
            digest.update(view)
            total += len(view)
    await stream.send_all(digest.digest())
    print("received", total, "bytes by", carried(stream), flush=True)


async def serve(port: int = 0, host: str = "127.0.0.1") -> None:
    async with trio.open_nursery() as nursery:
        listeners = await exs.open_listeners(port, host=host, options=SMC)
        print("listening on port", listeners[0].address[1], flush=True)
        nursery.start_soon(trio.serve_listeners, check, listeners)


async def send(host: str, port: int, nbytes: int = 1 << 20) -> None:
    async with exs.MemoryRegion.allocate(max(nbytes, 1)) as region:
        region.view[::7] = b"x" * len(region.view[::7])
        async with await exs.open_stream(host, port, options=SMC) as stream:
            print("connected by", carried(stream))
            await stream.send_all(region[:nbytes])
            await stream.send_eof()
            answer = b"".join([chunk async for chunk in stream])
        same = answer == hashlib.sha256(region.view[:nbytes]).digest()
        print(nbytes, "bytes,", "the same on both sides" if same else "spoilt on the way")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        trio.run(serve, *map(int, sys.argv[2:3]), *sys.argv[3:4])
    elif len(sys.argv) in (3, 4):
        trio.run(send, sys.argv[1], *map(int, sys.argv[2:]))
    else:
        sys.exit(__doc__)
