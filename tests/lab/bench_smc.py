# SPDX-License-Identifier: MIT OR Apache-2.0
"""``make bench-lab ARGS="--smc"``: SMC-R of exs and of the kernel, against each other and themselves, in two guests.

Owns the targets and the report, as bench.py does for the native protocol; what is measured, and how, is
measure_smc.py's.  A figure of one direction is that of the bytes from the first named to the second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import guest
import kernel
import packages
import pair
from bench import BULK, SIZES, Page, Target, compiled, conclude, figures_table, markdown, measuring, values, verdict

KERNEL, TCP = "kernel to kernel", "TCP"
MIXED = ("exs to kernel", "exs queue to kernel", "kernel to exs", "kernel to views", "exs to exs", "exs queue to views")
ROUND_TRIPS = ("exs to kernel", "kernel to exs", "exs to exs")
"""Queues and views have no part in a round trip."""
ZERO_COPY = ("65536", "1048576")
REDIS = ("SET", "GET")
MINUTES, MINUTES_A_ROUND = 8.0, 4.0


def targets() -> list[Target]:
    """Not below kernel to kernel in any row; what is beside TCP is only shown."""
    found: list[Target] = []
    for peer in MIXED:
        for size in BULK:
            found.append(Target(f"{peer}, {SIZES[size]} / {KERNEL}", peer, KERNEL, size, "mib_per_s", 1.0))
            if size in ZERO_COPY:
                name = f"{peer}, {SIZES[size]}, CPU per GiB / {KERNEL}"
                found.append(Target(name, peer, KERNEL, size, "cpu_per_gib", 1.0, less=True))
    for peer in ROUND_TRIPS:
        for size in BULK:
            name = f"{peer}, {SIZES[size]}, half round trip / {KERNEL}"
            found.append(Target(name, peer, KERNEL, size, "half_us", 1.0, less=True))
    for size in BULK:
        found.append(Target(f"{MIXED[-1]}, {SIZES[size]} / {TCP}", MIXED[-1], TCP, size, "mib_per_s", None))
        found.append(Target(f"{KERNEL}, {SIZES[size]} / {TCP}", KERNEL, TCP, size, "mib_per_s", None))
    for command in REDIS:
        found.append(Target(f"redis {command}, exs / AF_SMC", "redis: exs", "redis: AF_SMC", command, "per_s", 1.0))
        found.append(Target(f"redis {command}, exs / TCP", "redis: exs", "redis: TCP", command, "per_s", None))
    return found


def redis_table(rounds: list[Any]) -> list[list[str]]:
    """Medians of requests a second."""
    names = list(dict.fromkeys(name for r in rounds for name in r if set(r[name]) & set(REDIS)))
    lines = []
    for name in names:
        cells = [values(rounds, name, command, "per_s") for command in REDIS]
        lines.append([name, *(f"{statistics.median(c):.0f}" if c else "-" for c in cells)])
    return lines


def report(result: Any, command: str) -> str:
    """The tables, and where they come from."""
    rounds, facts = result["rounds"], result["facts"]
    about = (
        f"`{command}` on {time.strftime('%Y-%m-%d')}: two guests (QEMU TCG, 2 CPUs each), Linux {facts['kernel']}, "
        f"SMC-R v2 over rxe (MTU of the wire {facts['mtu']}), receive buffers of {facts['buffer'] >> 10} KiB "
        f"on all sides, {len(rounds)} round(s); CPU is that of both guests."
    )
    judged = markdown(["ratio", "median", "range", "wanted", ""], [verdict(t, rounds) for t in targets()])
    columns = [f"{SIZES[s]} MiB/s" for s in BULK] + [f"{SIZES[s]} CPU s/GiB" for s in BULK]
    columns += [f"{SIZES[s]} half round trip us" for s in BULK]
    figures = markdown(["from, to", *columns], figures_table(rounds, BULK))
    redis = markdown(["one client", "SET/s", "GET/s"], redis_table(rounds))
    broken = "".join(f"\n\nNot measured: {name}: {why}" for name, why in result["broken"].items())
    return f"{about}\n\n{judged}\n\n{figures}\n\n{redis}{broken}"


PAGE = Page(
    "--smc ",
    "bench-lab-smc.json",
    report,
    "<!-- make bench-lab --smc begins -->",
    "<!-- make bench-lab --smc ends -->",
)


def run(options: argparse.Namespace) -> int:
    """Boot the two, measure, report."""
    packages.ensure()
    preload = compiled("af_smc", "-shared", "-fPIC", "-D_GNU_SOURCE", "-ldl", folder="lab")
    seconds = 60 * (MINUTES + MINUTES_A_ROUND * options.rounds)
    peers = ["--tcp-pair", compiled("tcp_pair"), "--preload", preload]
    job = measuring("measure_smc.py", options, *peers, seconds=seconds)
    return conclude(pair.Pair(kernel.ensure(), job, guest.Shape(smc=True)), options, PAGE)
