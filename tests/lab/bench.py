# SPDX-License-Identifier: MIT OR Apache-2.0
"""``make bench-lab``: exs over soft-RoCE and its peers on the same device, in one guest; JSON and a table.

Owns the targets and the report; what is measured, and how, is measure.py's, which runs in the guest.  Only ratios
within a guest mean anything: everything in there is ten to thirty times slower than on a machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import guest
import kernel
import packages
import pair

HERE = Path(__file__).resolve().parent
DOCS = kernel.ROOT / "docs" / "benchmarks.md"
BULK = ("64", "4096", "65536", "1048576")
SIZES = {"64": "64 B", "4096": "4 KiB", "65536": "64 KiB", "1048576": "1 MiB"}
KINDS = ("stream", "seqpacket")
WAYS = {"C": "C", "ES-API": "Python"}
"""ES-API from which language, by the end of the peers' names."""


@dataclass(frozen=True)
class Target:
    """A ratio that is to be reached, or to be seen.

    Args:
        name: What it says.
        peer: Whose figure.
        reference: Divided by whose.
        size: Bytes of a message.
        field: Which figure.
        bound: What is to be reached; ``None``: only shown.
        less: Less is better.
    """

    name: str
    peer: str
    reference: str
    size: str
    field: str
    bound: float | None
    less: bool = False


def targets() -> list[Target]:
    """All of them."""
    found: list[Target] = []
    for kind in KINDS:
        for size in ("65536", "1048576"):
            for way in ("C", "ES-API"):
                peer, text = f"exs {kind}, {way}", f"{kind}, {SIZES[size]}, {WAYS[way]}"
                found += [
                    Target(f"{text} / ib_write_bw", peer, "ib_write_bw", size, "mib_per_s", 0.9),
                    Target(f"{text} / rstream", peer, "rstream", size, "mib_per_s", 1.0),
                    Target(f"{text}, CPU per GiB / rstream", peer, "rstream", size, "cpu_per_gib", 1.0, less=True),
                ]
            peer, text = f"exs {kind}, trio", f"{kind}, {SIZES[size]}, trio"
            found.append(Target(f"{text} / ib_write_bw", peer, "ib_write_bw", size, "mib_per_s", None))
    return found + latency_targets() + mode_targets()


def latency_targets() -> list[Target]:
    """Half round trips of ES-API with a busy queue."""
    found: list[Target] = []
    for way in ("C", "ES-API"):
        for size in ("64", "4096"):
            peer, text = f"exs seqpacket, {way}, busy", f"seqpacket, {SIZES[size]}, half round trip, {WAYS[way]}, busy"
            bound = 1.3 if size == "64" else None
            found.append(Target(f"{text} / ib_write_lat", peer, "ib_write_lat", size, "half_us", bound, less=True))
            found += [
                Target(f"{text} / {other}", peer, other, size, "half_us", None, less=True)
                for other in ("ib_send_lat", "rstream")
            ]
    for size in ("64", "4096"):
        text = f"stream, {SIZES[size]}, half round trip, C, busy / ib_write_lat"
        found.append(Target(text, "exs stream, C, busy", "ib_write_lat", size, "half_us", None, less=True))
    return found


def mode_targets() -> list[Target]:
    """What message mode costs beside stream mode."""
    found: list[Target] = []
    for way in ("C", "ES-API"):
        message, stream = f"exs seqpacket, {way}", f"exs stream, {way}"
        for size in BULK:
            text = f"message mode / stream mode, {SIZES[size]}, {WAYS[way]}, CPU per GiB"
            found.append(Target(text, message, stream, size, "cpu_per_gib", 1.0, less=True))
    return found


def values(rounds: list[Any], peer: str, size: str, field: str) -> list[float]:
    """A figure in every round that has it."""
    return [r[peer][size][field] for r in rounds if field in r.get(peer, {}).get(size, {})]


def verdict(target: Target, rounds: list[Any]) -> list[str]:
    """One line of the report."""
    bound = "-" if target.bound is None else f"{'<=' if target.less else '>='} {target.bound:g}"
    pairs = [
        (r[target.peer][target.size][target.field], r[target.reference][target.size][target.field])
        for r in rounds
        if all(target.field in r.get(p, {}).get(target.size, {}) for p in (target.peer, target.reference))
    ]
    ratios = [a / b for a, b in pairs if b]
    if not ratios:
        return [target.name, "-", "-", bound, "not measured"]
    ratio = statistics.median(ratios)
    if target.bound is None:
        said = "-"
    else:
        said = "reached" if (ratio <= target.bound if target.less else ratio >= target.bound) else "MISSED"
    digits = 2 if ratio >= 0.1 else 4
    low, high = (f"{r:.{digits}f}" for r in (min(ratios), max(ratios)))
    return [target.name, f"{ratio:.{digits}f}", f"{low} to {high}", bound, said]


def figures_table(rounds: list[Any], trips: tuple[str, ...] = ("64", "4096")) -> list[list[str]]:
    """Medians of every peer that has sizes of messages; of half round trips those of the sizes in ``trips``."""
    names = list(dict.fromkeys(name for r in rounds for name in r if set(r[name]) & set(BULK)))
    lines = []
    for name in names:
        cells = [name]
        for field, form in (("mib_per_s", "{:.2f}"), ("cpu_per_gib", "{:.0f}")):
            for size in BULK:
                found = values(rounds, name, size, field)
                cells.append(form.format(statistics.median(found)) if found else "-")
        for size in trips:
            found = values(rounds, name, size, "half_us")
            cells.append(f"{statistics.median(found):.0f}" if found else "-")
        lines.append(cells)
    return lines


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def report(result: Any, command: str) -> str:
    """Both tables, and where they come from."""
    rounds, facts = result["rounds"], result["facts"]
    about = (
        f"`{command}` on {time.strftime('%Y-%m-%d')}: one guest (QEMU TCG, 2 CPUs), Linux {facts['kernel']}, "
        f"device verbs on rxe (MTU of the wire {facts['mtu']}), {len(rounds)} round(s); CPU is the whole guest's."
    )
    head = ["ratio", "median", "range", "wanted", ""]
    judged = markdown(head, [verdict(target, rounds) for target in targets()])
    columns = [f"{SIZES[s]} MiB/s" for s in BULK] + [f"{SIZES[s]} CPU s/GiB" for s in BULK]
    columns += ["64 B half round trip us", "4 KiB"]
    broken = "".join(f"\n\nNot measured: {name}: {why}" for name, why in result["broken"].items())
    return f"{about}\n\n{judged}\n\n{markdown(['peer', *columns], figures_table(rounds))}{broken}"


@dataclass(frozen=True)
class Page:
    """Where a result goes.

    Args:
        flags: Of the command that made it, beside the rounds.
        json: The file's name.
        report: Makes the tables of the result and of the command.
        begin: The line of docs/benchmarks.md before them.
        end: The line behind them.
    """

    flags: str
    json: str
    report: Callable[[Any, str], str]
    begin: str
    end: str


def write_docs(text: str, page: Page) -> None:
    """Puts a report between its lines of docs/benchmarks.md."""
    before, _, rest = DOCS.read_text(encoding="utf-8").partition(page.begin)
    _, _, after = rest.partition(page.end)
    DOCS.write_text(f"{before}{page.begin}\n\n{text}\n\n{page.end}{after}", encoding="utf-8")


def compiled(name: str, *flags: str, folder: str = "bench") -> str:
    """A C peer of ``make bench``'s folder, or another one."""
    target = guest.BUILD / name
    target.parent.mkdir(parents=True, exist_ok=True)
    source = kernel.ROOT / "tests" / folder / f"{name}.c"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O2", "-std=gnu17", str(source), "-o", str(target), *flags], check=True)
    return str(target)


def package_flags(venv: Path) -> list[str]:
    """What a C program needs of the installed package."""
    command = [str(venv / "bin" / "python"), "-P", "-m", "exs", "--cflags", "--libs"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()


def measuring(program: str, options: argparse.Namespace, *arguments: str, seconds: float) -> guest.Job:
    """A program of this folder in a guest, which leaves in the job's folder what it measured."""
    measure = ["python", str(HERE / program), *arguments, "--json", "/var/tmp/bench.json"]
    measure += ["--rounds", str(options.rounds), "--sizes", options.sizes]
    shell = '"$@"; status=$?; cp /var/tmp/bench.json "$EXS_LAB_JOB/"; exit $status'
    return guest.Job(
        command=["sh", "-c", shell, "measure", *measure],
        env={"PYTHONPATH": str(HERE)},  # a program's own folder is not searched there
        venv=options.venv.absolute(),
        timeout=seconds,
    )


def conclude(machine: guest.Guest | pair.Pair, options: argparse.Namespace, page: Page) -> int:
    """Wait for what a machine measures, and report it; returns the exit status."""
    try:
        status = machine.wait()
        made = machine.folder / "bench.json"
        result = json.loads(made.read_text()) if made.exists() else None
    except guest.Failed as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return 125
    finally:
        machine.kill()
    machine.discard()
    if result is None:
        print("lab: nothing was measured", file=sys.stderr)
        return status or 1
    command = f"make bench-lab ARGS='{page.flags}--rounds {options.rounds}'"
    options.json.with_name(page.json).write_text(json.dumps(result | {"command": command}, indent=1))
    text = page.report(result, command)
    print(text)
    if options.write_docs:
        write_docs(text, page)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-lab", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default=",".join(BULK), help="bytes, with commas")
    parser.add_argument("--venv", type=Path, default=Path(sys.prefix))
    parser.add_argument("--json", type=Path, default=kernel.ROOT / "build" / "bench-lab.json")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--smc", action="store_true", help="SMC-R of exs and of the kernel instead, in two guests")
    options = parser.parse_args()
    if options.smc:
        import bench_smc  # which imports this module

        return bench_smc.run(options)
    packages.ensure()
    esapi = compiled("esapi_pair", *package_flags(options.venv.absolute()))
    peers = ["--tcp-pair", compiled("tcp_pair"), "--esapi-pair", esapi]
    job = measuring("measure.py", options, *peers, seconds=3000.0)
    page = Page("", options.json.name, report, "<!-- make bench-lab begins -->", "<!-- make bench-lab ends -->")
    return conclude(guest.Guest(kernel.ensure(), job), options, page)


if __name__ == "__main__":
    sys.exit(main())
