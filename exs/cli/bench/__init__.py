# SPDX-License-Identifier: MIT OR Apache-2.0
"""``exs bench``: exs beside Python's and trio's TCP sockets, each between two processes of this host.

Throughput, round trip and message rate, of STREAM, SEQPACKET and SMC-R, on every path that works here.  The rounds
interleave the peers and medians are shown; only ratios within one run mean anything.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from exs.cli.bench.driver import Figures, Measurement, PairError, PairSpec, median_of, open_pairs
from exs.cli.common import size as parse_size
from exs.cli.common import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from exs.cli.bench.driver import Pair

ROUNDTRIP_BYTES = 64
RATE_BYTES = 64
RATE_DEPTH = 256
QUICK_SECONDS = 0.1
PATHS = ("shm-vm", "shm-ring", "tcp")


def peer_specs(cores: frozenset[int]) -> list[PairSpec]:
    """Everything that is measured."""
    specs = [
        PairSpec(f"exs {kind} {path}", "exs", {"type": kind, "path": path}, cores=cores)
        for path in PATHS
        for kind in ("stream", "seqpacket")
    ]
    specs.append(PairSpec("exs smc-r stream", "smc", {"device": "soft"}, cores=cores))
    specs.append(
        PairSpec("exs smc-r queue, views", "smc", {"device": "soft", "queue": True, "view": True}, cores=cores)
    )
    specs.append(PairSpec("python tcp", "python-tcp", cores=cores))
    specs.append(PairSpec("trio tcp", "trio-tcp", cores=cores))
    return specs


def plan(sizes: Sequence[int], depth: int) -> list[Measurement]:
    """What is measured of each."""
    found = [Measurement("throughput", size, depth) for size in sizes]
    found.append(Measurement("roundtrip", ROUNDTRIP_BYTES, 1))
    found.append(Measurement("throughput", RATE_BYTES, RATE_DEPTH))
    return found


def measure(
    pairs: Sequence[Pair], measurements: Sequence[Measurement], rounds: int, seconds: float
) -> tuple[dict[str, dict[Measurement, Figures]], dict[str, str]]:
    """Interleaved rounds.

    Returns:
        Medians by label and measurement, and for pairs that broke down the reason.
    """
    runs: dict[str, dict[Measurement, list[Figures]]] = {pair.spec.label: {} for pair in pairs}
    broken: dict[str, str] = {}
    for _ in range(rounds):
        for what in measurements:
            for pair in pairs:
                label = pair.spec.label
                if label in broken:
                    continue
                try:
                    runs[label].setdefault(what, []).append(pair.measure(what, seconds))
                except PairError as error:
                    broken[label] = f"{what.operation} of {what.size} bytes: {error}"
    return {label: {w: median_of(f) for w, f in found.items() if f} for label, found in runs.items()}, broken


def size_name(count: int) -> str:
    """``64 KiB``."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor and count % factor == 0:
            return f"{count // factor} {unit}"
    return f"{count} B"


def _print(medians: dict[str, dict[Measurement, Figures]], measurements: Sequence[Measurement]) -> None:
    sized = [what for what in measurements if what.operation == "throughput" and what.size != RATE_BYTES]
    head = ["", *(f"{size_name(w.size)} MiB/s" for w in sized), *(f"CPU s/GiB {size_name(w.size)}" for w in sized)]
    head += ["64 B us", "p99", "64 B k msg/s"]
    rows: list[list[str]] = []
    for label, figures in medians.items():
        cells = [f"{figures[w].mib_per_s:,.0f}" if w in figures else "-" for w in sized]
        cells += [f"{figures[w].cpu_per_gib:.2f}" if w in figures else "-" for w in sized]
        trip = figures.get(measurements[-2])
        rate = figures.get(measurements[-1])
        cells += [f"{trip.p50:.1f}", f"{trip.p99:.1f}"] if trip else ["-", "-"]
        cells.append(f"{rate.per_s / 1e3:,.0f}" if rate else "-")
        rows.append([label, *cells])
    print(table(head, rows))


def run(args: argparse.Namespace) -> int:
    """``exs bench``."""
    sizes = [parse_size(text) for text in args.sizes.split(",")]
    cores: frozenset[int] = frozenset({min(os.sched_getaffinity(0))}) if args.one_core else frozenset()
    specs = peer_specs(cores)
    if args.only:
        words = args.only.split(",")
        specs = [spec for spec in specs if any(word in spec.label for word in words)]
    rounds, seconds = (1, QUICK_SECONDS) if args.quick else (args.rounds, args.seconds)
    measurements = plan(sizes, args.depth)
    with open_pairs(specs) as (pairs, missing):
        medians, broken = measure(pairs, measurements, rounds, seconds)
        facts = {pair.spec.label: pair.facts for pair in pairs}
    if args.json:
        results = [
            {"peer": label, **facts[label], **asdict(what), **asdict(figures)}
            for label, found in medians.items()
            for what, figures in found.items()
        ]
        host = {"cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
        print(json.dumps({"host": host, "rounds": rounds, "results": results, "missing": missing, "broken": broken}))
    else:
        _print(medians, measurements)
        where = "both processes on one core" if args.one_core else "two processes, not pinned"
        print(f"\n{where}; depth {args.depth}; medians of {rounds} interleaved rounds; CPU of both processes")
        for label, reason in [*missing.items(), *broken.items()]:
            print(f"{label}: {reason}", file=sys.stderr)
    return 1 if broken else 0
