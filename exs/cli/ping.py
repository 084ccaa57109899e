# SPDX-License-Identifier: MIT OR Apache-2.0
"""``exs ping``: round trips of single messages, and the responder for them."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import TYPE_CHECKING

import trio

import exs
from exs.cli.common import endpoint_text, options_of

if TYPE_CHECKING:
    import argparse

MAX_BYTES = 1 << 20
ANSWER_SECONDS = 10.0


async def _serve(args: argparse.Namespace) -> None:
    listeners = await exs.open_message_listeners(args.port, host=args.host, options=options_of(args))

    async def echo(channel: exs.MessageChannel) -> None:
        with exs.MemoryRegion.allocate(MAX_BYTES) as region:
            async with channel:
                try:
                    while True:
                        length = await channel.receive_into(region)
                        await channel.send(region[:length])
                except (trio.EndOfChannel, trio.BrokenResourceError):
                    pass

    addresses = [endpoint_text(listener.address) for listener in listeners]
    if args.json:
        print(json.dumps({"event": "listening", "addresses": addresses}), flush=True)
    else:
        print(f"answering on {', '.join(addresses)}", file=sys.stderr, flush=True)
    await trio.serve_listeners(echo, listeners)


async def _ping(args: argparse.Namespace) -> dict[str, object]:
    times: list[float] = []
    options = options_of(args)
    async with await exs.open_message_channel(args.address.host, args.address.port, options=options) as channel:
        device = channel.socket.device
        facts: dict[str, object] = {"device": device.name if device else "", "path": channel.socket.path}
        with exs.MemoryRegion.allocate(2 * args.size) as region:
            out, back = region[: args.size], region[args.size :]
            out.view[:] = b"x" * args.size
            for number in range(args.count):
                if number and args.interval:
                    await trio.sleep(args.interval)
                began = time.perf_counter_ns()
                with trio.fail_after(ANSWER_SECONDS):
                    await channel.send(out)
                    length = await channel.receive_into(back)
                times.append((time.perf_counter_ns() - began) / 1e3)
                if length != args.size or back.view != out.view:
                    raise OSError(f"the answer has {length} bytes that differ from the question")
                if not args.json:
                    print(f"{args.size} bytes from {args.address.host}: seq={number} time={times[-1]:.1f} us")
    ordered = sorted(times)
    return facts | {
        "bytes": args.size,
        "count": len(times),
        "min_us": round(ordered[0], 2),
        "median_us": round(statistics.median(ordered), 2),
        "p99_us": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 2),
        "max_us": round(ordered[-1], 2),
    }


def run(args: argparse.Namespace) -> int:
    """``exs ping``."""
    if args.serve == (args.address is not None):
        print("exs ping: give HOST:PORT, or --serve", file=sys.stderr)
        return 2
    if args.size > MAX_BYTES:
        print(f"exs ping: at most {MAX_BYTES} bytes", file=sys.stderr)
        return 2
    try:
        if args.serve:
            trio.run(_serve, args)
            return 0
        found = trio.run(_ping, args)
    except trio.TooSlowError:
        print("exs ping: no answer", file=sys.stderr)
        return 3
    except (OSError, trio.BrokenResourceError) as error:
        print(f"exs ping: {error.__cause__ or error}", file=sys.stderr)
        return 3
    if args.json:
        print(json.dumps(found))
    else:
        print(
            f"{found['device']} {found['path']}: min {found['min_us']}, median {found['median_us']}, "
            f"p99 {found['p99_us']}, max {found['max_us']} us"
        )
    return 0
