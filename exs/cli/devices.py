# SPDX-License-Identifier: MIT OR Apache-2.0
"""``exs devices``: what there is, what it can do, and why something is missing.

The rungs of the soft device's shared memory cannot be known without a peer, so each is tried: a connection of
this process to itself over loopback, with that path and no other.  What is below the verbs device is pyverbs' to tell.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import trio

import exs
from exs.cli import rdma
from exs.cli.common import innermost

if TYPE_CHECKING:
    import argparse

RUNGS = {
    "shm-vm": "same host: the receiver reads the sender's memory, one copy",
    "shm-ring": "same host: through shared memory, two copies; for what exs allocated, one",
    "tcp": "iWARP from user space over a TCP socket",
}
_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Rung:
    """A way for bytes, and whether it works here."""

    name: str
    summary: str
    works: bool
    reason: str


async def try_path(name: str) -> str:
    """Makes a connection over one path; empty if it worked, else why not."""
    options = exs.Options(device="soft", path=name)  # type: ignore[arg-type]  # the keys of RUNGS are paths
    try:
        with trio.fail_after(_SECONDS):
            listeners = await exs.open_listeners(0, host="127.0.0.1", options=options)
            async with listeners[0], trio.open_nursery() as nursery:

                async def answer() -> None:
                    async with await listeners[0].accept() as stream:
                        await stream.send_all(await stream.receive_some(1))

                nursery.start_soon(answer)
                async with await exs.open_stream("127.0.0.1", listeners[0].address[1], options=options) as stream:
                    await stream.send_all(b"?")
                    if await stream.receive_some(1) != b"?":
                        return "a byte was lost"
    except trio.TooSlowError:
        return f"no answer within {_SECONDS:.0f} s"
    except (OSError, trio.BrokenResourceError, BaseExceptionGroup) as error:
        return _words(error)
    return ""


def _words(error: BaseException) -> str:
    error = innermost(error)
    if error.__cause__ is not None and not isinstance(error, exs.Error):
        return _words(error.__cause__)
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__


async def try_paths() -> list[Rung]:
    """Every rung of the soft device, tried."""
    found: list[Rung] = []
    for name, summary in RUNGS.items():
        reason = await try_path(name)
        found.append(Rung(name, summary, not reason, reason))
    return found


def run(args: argparse.Namespace) -> int:
    """``exs devices``."""
    devices = exs.list_devices()
    soft = any(device.name == "soft" and device.present for device in devices)
    rungs = trio.run(try_paths) if soft else []
    found = rdma.inventory() if args.verbose else None
    if args.json:
        facts: dict[str, object] = {"devices": [asdict(d) for d in devices], "paths": [asdict(r) for r in rungs]}
        if found is not None:
            facts["rdma"] = asdict(found)
        print(json.dumps(facts))
        return 0
    for device in devices:
        print(f"{device.name:8} {'present' if device.present else 'missing'}  {device.summary}")
        if device.reason:
            print(f"{'':8} {device.reason}")
        if device.capabilities is not None:
            can = asdict(device.capabilities)
            print(f"{'':8} " + ", ".join(f"{name} {value}" for name, value in can.items()))
        if device.name == "soft":
            for rung in rungs:
                state = "works" if rung.works else f"not here: {rung.reason}"
                print(f"{'':8} path {rung.name:8} {state}  ({rung.summary})")
    if found is not None:
        print(*rdma.lines(found), sep="\n")
    return 0
