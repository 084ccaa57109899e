# SPDX-License-Identifier: MIT OR Apache-2.0
"""``make bench``: exs and its peers, interleaved in rounds of one run; every target with its ratio and verdict.

    python tests/bench/run.py [--quick] [--rounds N] [--seconds S] [--only WORD] [--json FILE] [--write-docs]

Builds two small C programs and the core's own bench with the compiler at hand, in build/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import trio
from rows import ABSENT, HERE, ROWS, Figure, Row, needed, pair_specs

from exs.cli.bench.driver import Figures, Measurement, Pair, PairError, open_pairs
from exs.cli.common import table

ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "bench"
DOCS = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- make bench begins -->", "<!-- make bench ends -->"
LIMITS = ("writev", "memcpy", "cacheline")
CORE = "C core"
TRIES = 3

Round = dict[Figure, float]


# --- building ---------------------------------------------------------------------------------------------------


def compiled(source: str, *more: str) -> str:
    """One C file, compiled if it is newer than what is there."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program, file = BUILD / Path(source).stem, HERE / source
    if not program.exists() or program.stat().st_mtime < file.stat().st_mtime or more:
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-std=gnu17", "-O2", "-o", str(program), str(file), *more], check=True)
    return str(program)


def core_program() -> str:
    """The bench of the core alone, against the core as it is released."""
    build = BUILD / "core"
    tools = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    if not (build / "build.ninja").exists():
        command = ["meson", "setup", str(build), str(ROOT), "--buildtype=release"]
        subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", str(build)], check=True, env=env, stdout=subprocess.DEVNULL)
    archives = [str(path) for path in sorted((build / "native").rglob("*.a"))]
    native = ROOT / "native"
    flags = ["-I", str(native), "-I", str(native / "include"), "-D_GNU_SOURCE", "-pthread", "-Wl,--start-group"]
    return compiled("shm_core.c", *flags, *archives, "-Wl,--end-group")


# --- measuring ----------------------------------------------------------------------------------------------------


class Limits:
    """The process that measures what the host allows."""

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, what: str, size: int, seconds: float) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what} {size} {seconds * 1000:.0f}\n")
        self._process.stdin.flush()
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def limits_process() -> Iterator[Limits]:
    limits = Limits(compiled("limits.c"))
    try:
        yield limits
    finally:
        limits.close()


def core_figures(program: str, seconds: float) -> dict[str, float]:
    command = [program, "--path", "shm-vm", "--type", "seqpacket", "--rounds", "1", "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def busy_seconds() -> float:
    """CPU time of the whole host since it started."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(value) for value in file.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


class Bench:
    """All that lives through the rounds."""

    def __init__(self, rows: list[Row], pairs: list[Pair], limits: Limits, core: str, seconds: float) -> None:
        self.broken: dict[str, str] = {}
        self._limits = limits
        self._core = core
        self._seconds = seconds
        wanted = needed(rows)
        self._pairs = {pair.spec.label: pair for pair in pairs}
        self._plan: dict[Measurement | None, list[str]] = {}
        for figure in sorted(wanted, key=lambda f: (str(f.what), f.peer)):
            peers = self._plan.setdefault(figure.what, [])
            if figure.peer not in peers:
                peers.append(figure.peer)

    def round(self) -> Round:
        """Everything once; what belongs together one behind the other."""
        found: Round = {Figure("", None, "one"): 1.0}
        for what, peers in self._plan.items():
            for peer in peers:
                if peer not in self.broken:
                    try:
                        self._measure(peer, what, found)
                    except (PairError, subprocess.SubprocessError, OSError) as error:
                        self.broken[peer] = f"{what.operation} {what.size}: {error}" if what else str(error)
        return found

    def _measure(self, peer: str, what: Measurement | None, found: Round) -> None:
        values: dict[str, float] = {}
        if peer in LIMITS:
            values = self._limits.measure(peer, what.size if what else 0, self._seconds / 2)
        elif peer == CORE:
            values = core_figures(self._core, self._seconds / 2)
        elif peer in self._pairs and what is not None:
            figures = self._pairs[peer].measure(what, self._seconds)
            values = {name: getattr(figures, name) for name in Figures.__slots__}
        for name, value in values.items():
            if isinstance(value, (int, float)):
                found[Figure(peer, what, name)] = value


# --- judging --------------------------------------------------------------------------------------------------------


def ratios(rounds: list[Round], figure: Figure, reference: Figure | None) -> list[float]:
    """The ratio of each round that has both."""
    found = []
    for taken in rounds:
        below = taken.get(reference) if reference else 1.0
        if figure in taken and below:
            found.append(taken[figure] / below)
    return found


def judge(row: Row, rounds: list[Round]) -> dict[str, Any]:
    """One row of the report."""
    found = ratios(rounds, row.figure, row.reference)
    result: dict[str, Any] = {"name": row.name, "unit": row.unit, "must": row.must, "aim": row.aim, "less": row.less}
    if not found:
        return result | {"verdict": "not measured"}
    ratio = statistics.median(found)
    result |= {"value": statistics.median(ratios(rounds, row.figure, None)), "ratio": ratio}
    if row.reference is not None:
        result["reference"] = statistics.median(ratios(rounds, row.reference, None))
    result |= {"low": min(found), "high": max(found)}
    if row.must is None:
        return result | {"verdict": "-"}
    reached = ratio <= row.must if row.less else ratio >= row.must
    verdict = "must" if reached else "MISSED"
    if row.aim is not None:
        to_aim = ratio
        if row.aim_reference is not None:
            others = ratios(rounds, row.figure, row.aim_reference)
            to_aim = statistics.median(others) if others else float("nan")
        # Above 1 is beyond the aim, whichever direction is the better one.
        result["of_aim"] = row.aim / to_aim if row.less else to_aim / row.aim
        if reached and result["of_aim"] >= 1:
            verdict = "aim"
    return result | {"verdict": verdict}


def number(value: float, unit: str) -> str:
    if unit == "/s":
        return f"{value / 1e3:,.0f} k/s"
    return f"{value:,.2f} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def report_rows(results: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = ["what", "exs", "peer", "ratio", "range", "must", "of aim", "verdict"]
    rows = []
    for found in results:
        sign = "<=" if found["less"] else ">="
        must = "-"
        if found["must"] is not None:
            must = f"{sign} {found['must']:g}" if found["must"] < 1e5 else f"{sign} {found['must'] / 1e6:g} M"
        if "ratio" not in found:
            rows.append([found["name"], "-", "-", "-", "-", must, "-", found["verdict"]])
            continue
        absolute = "reference" not in found
        rows.append(
            [
                found["name"],
                number(found["value"], found["unit"]),
                "-" if absolute else number(found["reference"], found["unit"]),
                "-" if absolute else f"{found['ratio']:.2f}",
                f"{number(found['low'], found['unit'])} to {number(found['high'], found['unit'])}"
                if absolute
                else f"{found['low']:.2f} to {found['high']:.2f}",
                must,
                f"{found['of_aim']:.2f}" if "of_aim" in found else "-",
                found["verdict"],
            ]
        )
    return head, rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def host_facts() -> dict[str, Any]:
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "trio": trio.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def write_docs(text: str) -> None:
    """Puts a report between the markers of docs/benchmarks.md."""
    page = DOCS.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCS.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def summary_line(results: list[dict[str, Any]]) -> str:
    counts = {verdict: sum(r["verdict"] == verdict for r in results) for verdict in ("aim", "must", "MISSED")}
    judged = sum(r["must"] is not None for r in results)
    absent = judged - sum(counts.values())
    return (
        f"{counts['aim'] + counts['must']} of {judged} targets reached ({counts['aim']} of them with the aim), "
        f"{counts['MISSED']} missed, {absent} not measured"
    )


def gate(results: list[dict[str, Any]]) -> list[str]:
    """The coarse ratios that survive a noisy host: what an automatic test may insist on."""
    by_name = {found["name"]: found for found in results}

    def ratio(name: str) -> float | None:
        value = by_name.get(name, {}).get("ratio")
        return float(value) if value is not None else None

    cpu, batch = ratio("stream: CPU per GiB, 1 MiB / C tcp"), ratio("seqpacket: 64 B messages, batches / C tcp")
    problems = []
    if cpu is not None and cpu > 0.6:
        problems.append(f"CPU per GiB at 1 MiB is {cpu:.2f} of C tcp's (0.6 at most)")
    if batch is not None and batch < 0.5:
        problems.append(f"64 B messages in batches come at {batch:.2f} of C tcp's rate")
    return problems


# --- the program ------------------------------------------------------------------------------------------------------


def run_rounds(rows: list[Row], rounds: int, seconds: float) -> tuple[list[Round], dict[str, str], list[float]]:
    figures = needed(rows)
    labels = {figure.peer for figure in figures}
    specs = [s for s in pair_specs(compiled("tcp_pair.c"), min(os.sched_getaffinity(0))) if s.label in labels]
    core = core_program() if CORE in labels else ""
    taken, others = [], []
    with ExitStack() as stack:
        limits = stack.enter_context(limits_process())
        pairs, missing = stack.enter_context(open_pairs(specs))
        bench = Bench(rows, pairs, limits, core, seconds)
        bench.broken.update(missing)
        bench.round()  # warm-up: counts are found, memory is touched
        for index in range(rounds):
            start, busy = time.monotonic(), busy_seconds()
            taken.append(bench.round())
            others.append((busy_seconds() - busy) / (time.monotonic() - start))
            print(f"round {index + 1} of {rounds}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
        return taken, bench.broken, others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.15, help="length of one measurement")
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    parser.add_argument("--only", help="rows whose name contains this")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/benchmarks.md")
    parser.add_argument("--gate", action="store_true", help="fail if a coarse ratio is missed")
    args = parser.parse_args()
    rounds, seconds = (2, 0.08) if args.quick else (args.rounds, args.seconds)
    rows = [row for row in ROWS if args.only is None or args.only in row.name]
    taken, broken, _busy = run_rounds(rows, rounds, seconds)
    results = [judge(row, taken) for row in rows]
    head, cells = report_rows(results)
    print(table(head, cells))
    print(f"\n{summary_line(results)}")
    for label, reason in broken.items():
        print(f"not measured: {label}: {reason}")
    for name, package in ABSENT.items():
        print(f"not measured: {name}: {package} is not installed")
    facts = host_facts()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    command = f"make bench ARGS='--rounds {rounds} --seconds {seconds}'"
    raw = [[{"peer": f.peer, "what": str(f.what), "field": f.field, "value": v} for f, v in r.items()] for r in taken]
    args.json.write_text(
        json.dumps({"host": facts, "command": command, "rows": results, "broken": broken, "rounds": raw}, indent=1)
    )
    if args.write_docs:
        about = (
            f"`{command}` on {facts['date']}: {facts['cores']} cores of {facts['cpu']}, Linux {facts['kernel']}, "
            f"Python {facts['python']}, trio {facts['trio']}; device soft. {summary_line(results)}."
        )
        write_docs(f"{about}\n\n{markdown(head, cells)}")
    problems = gate(results) if args.gate else []
    for problem in problems:
        print(f"GATE: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
