# SPDX-License-Identifier: MIT OR Apache-2.0
"""Inside a guest: exs over rxe and its peers on the same device, interleaved, as JSON.

Owns how each peer is called and how its output is read.  CPU time is the whole guest's, from ``/proc/stat``: rxe works
in the kernel's own threads, which no process is charged for.  What is measured by starting a program is measured
twice with different counts, and the difference is taken, so that starting it costs nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from exs.cli.bench.driver import Measurement, Pair, PairError, PairSpec, open_pairs

HOST = "10.77.0.1"
DEVICE = "rxe0"
SECONDS = 90.0
PORT = 18515
BENCH = Path(__file__).resolve().parent.parent / "bench" / "peers.py"
TICK = os.sysconf("SC_CLK_TCK")

DEPTHS = {64: 256, 4096: 64, 65536: 16, 1 << 20: 4}
TOTALS = {64: 96 << 10, 4096: 4 << 20, 65536: 24 << 20, 1 << 20: 32 << 20}
"""Bytes of one run: about a second of it in the guest."""
LATENCY_SIZES = (64, 4096)
LATENCY_COUNT = 300

Figures = dict[str, float]


def busy_seconds() -> float:
    """CPU time of the whole guest so far."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICK


# --- programs that are started for each run -------------------------------------------------------------------------


def wait_for_port(port: int, server: subprocess.Popen[str]) -> None:
    """Until a server listens with TCP, or is gone."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        if re.search(rf":{port:04X} \S+ 0A ", Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()):
            return
        time.sleep(0.05)


def run_two(server: list[str], client: list[str], *, port: int | None) -> str:
    """Both sides of a peer; what the client said.

    Raises:
        RuntimeError: One of them failed; the text is the end of what it said.
    """
    pipe, text = subprocess.PIPE, True
    with subprocess.Popen(server, stdout=pipe, stderr=subprocess.STDOUT, text=text) as first:
        try:
            if port is None:
                time.sleep(1.0)  # rdma_cm's listeners are in no table
            else:
                wait_for_port(port, first)
            done = subprocess.run(
                client, stdout=pipe, stderr=subprocess.STDOUT, text=text, timeout=SECONDS, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{client[0]}: {done.stdout.strip()[-300:]}")
            first.wait(10)
            return done.stdout
        except subprocess.TimeoutExpired as late:
            raise RuntimeError(f"{client[0]} did not end within {SECONDS:.0f} s") from late
        finally:
            first.kill()


def last_numbers(text: str) -> list[float]:
    """The numbers of the last line that starts with one."""
    lines = [line.split() for line in text.splitlines() if re.match(r"\s*\d", line)]
    if not lines:
        raise RuntimeError(f"no figures in: {text.strip()[-300:]}")
    return [float(word) for word in lines[-1] if re.fullmatch(r"[\d.]+", word)]


def differ(run: Callable[[int], None], size: int, count: int) -> Figures:
    """Throughput and CPU of a program that moves ``count`` messages of ``size``, without its start."""
    times: list[tuple[float, float]] = []
    for n in (count, 4 * count):
        began, busy = time.monotonic(), busy_seconds()
        run(n)
        times.append((time.monotonic() - began, busy_seconds() - busy))
    gib = size * 3 * count / 2**30
    (wall_a, cpu_a), (wall_b, cpu_b) = times
    return {"mib_per_s": gib * 1024 / max(wall_b - wall_a, 1e-6), "cpu_per_gib": max(cpu_b - cpu_a, 0.0) / gib}


def perftest(program: str, *arguments: str) -> str:
    """ib_write_bw or ib_write_lat on rxe."""
    command = [program, "-d", DEVICE, "-F", "-p", str(PORT), *arguments]
    return run_two(command, [*command, HOST], port=PORT)


def write_bw(size: int) -> Figures:
    """The limit: RDMA WRITE without end; its own figure for throughput."""
    shown: list[float] = []

    def run(count: int) -> None:
        depth = min(128, count)
        text = perftest("ib_write_bw", "-s", str(size), "-n", str(count), "-t", str(depth))
        shown.append(last_numbers(text)[3])

    figures = differ(run, size, max(16, TOTALS[size] // size))
    return figures | {"mib_per_s": shown[-1]}


def perftest_lat(program: str) -> Callable[[int], Figures]:
    """Half of a round trip, both sides spinning: ib_write_lat on the memory, ib_send_lat on its completion queue."""
    return lambda size: {"half_us": last_numbers(perftest(program, "-s", str(size), "-n", str(LATENCY_COUNT)))[4]}


def rsockets(program: str, size: int, transfers: int, iterations: int) -> float:
    """Microseconds for a transfer of rstream or riostream: an iteration sends so many one way, then as many back."""
    command = [program, "-p", str(PORT), "-S", str(size), "-I", str(iterations), "-C", str(transfers)]
    text = run_two(command, [*command, "-s", HOST], port=None)
    return last_numbers(re.sub(r"(?m)^custom .*[ \t]", "0 ", text))[-1]


def rstream_bw(program: str) -> Callable[[int], Figures]:
    """Throughput over rsockets."""

    def measure(size: int) -> Figures:
        shown: list[float] = []

        def run(count: int) -> None:
            shown.append(rsockets(program, size, max(count // 2, 1), 1))

        count = max(16, TOTALS[size] // size // 2)
        return differ(run, size, count) | {"mib_per_s": size / 2**20 / (shown[-1] * 1e-6)}

    return measure


def rstream_lat(program: str) -> Callable[[int], Figures]:
    """Half of a round trip over rsockets."""
    return lambda size: {"half_us": rsockets(program, size, 1, LATENCY_COUNT)}


# --- pairs of processes that live on ----------------------------------------------------------------------------------


def pair_specs(tcp_pair: str, esapi_pair: str) -> list[PairSpec]:
    """exs over rxe, from Python and from C, and the kernel's TCP."""
    found = [PairSpec("TCP", command=(tcp_pair,))]
    for kind in ("stream", "seqpacket"):
        base = {"type": kind, "device": "verbs", "host": HOST}
        more = {**base, "module": str(BENCH)}
        found += [
            PairSpec(f"exs {kind}, trio", "exs", base),
            PairSpec(f"exs {kind}, ES-API", "esapi", more),
            PairSpec(f"exs {kind}, ES-API, busy", "esapi", {**more, "wait": "busy"}),
            PairSpec(f"exs {kind}, C", command=(esapi_pair, kind, "verbs", HOST, "adaptive")),
            PairSpec(f"exs {kind}, C, busy", command=(esapi_pair, kind, "verbs", HOST, "busy")),
        ]
    return found


def bulk_of(pair: Pair, size: int) -> Figures:
    """Throughput and CPU of a pair that runs."""
    what = Measurement("throughput", size, DEPTHS[size])
    count = max(8, TOTALS[size] // size * 2)
    busy = busy_seconds()
    figures = pair.run(what, count)
    cpu = busy_seconds() - busy
    return {"mib_per_s": figures.mib_per_s, "cpu_per_gib": cpu / (size * count / 2**30)}


def latency_of(pair: Pair, size: int) -> Figures:
    """Half of a round trip of a pair that runs."""
    return {"half_us": pair.run(Measurement("roundtrip", size, 1), LATENCY_COUNT).p50 / 2}


class Round:
    """One turn of everything."""

    def __init__(self, pairs: list[Pair], broken: dict[str, str]) -> None:
        self._pairs = pairs
        self._broken = broken
        self.taken: dict[str, dict[str, Figures]] = {}

    def _try(self, name: str, what: str, measure: Callable[[], Figures]) -> None:
        if name in self._broken:
            return
        try:
            self.taken.setdefault(name, {}).setdefault(what, {}).update(measure())
        except (RuntimeError, PairError, OSError, ValueError, IndexError) as error:
            self._broken[name] = f"{what}: {error}"

    def run(self, sizes: list[int]) -> None:
        """Every peer at every size, one behind the other."""
        programs = {"ib_write_bw": write_bw, "rstream": rstream_bw("rstream"), "riostream": rstream_bw("riostream")}
        for size in sizes:
            for name, bulk in programs.items():
                self._try(name, str(size), lambda bulk=bulk, size=size: bulk(size))
            for pair in self._pairs:
                if "busy" not in pair.spec.label:
                    self._try(pair.spec.label, str(size), lambda pair=pair, size=size: bulk_of(pair, size))
            if size not in LATENCY_SIZES:
                continue
            for name in ("ib_write_lat", "ib_send_lat"):
                self._try(name, str(size), lambda name=name, size=size: perftest_lat(name)(size))
            self._try("rstream", str(size), lambda size=size: rstream_lat("rstream")(size))
            for pair in self._pairs:
                self._try(pair.spec.label, str(size), lambda pair=pair, size=size: latency_of(pair, size))


@contextlib.contextmanager
def patient_driver() -> Generator[None]:
    """A guest takes its time to start an interpreter."""
    from exs.cli.bench import driver

    driver.START_SECONDS = 120.0
    yield


def facts() -> dict[str, Any]:
    """What the run depends on."""
    rxe = Path("/sys/class/infiniband") / DEVICE
    return {
        "kernel": os.uname().release,
        "device": DEVICE,
        "mtu": Path("/sys/class/net/eth0/mtu").read_text().strip(),
        "state": (rxe / "ports/1/state").read_text().strip(),
        "python": sys.version.split()[0],
        "host": socket.gethostname(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tcp-pair", required=True)
    parser.add_argument("--esapi-pair", required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=lambda text: [int(s) for s in text.split(",")], default=list(DEPTHS))
    options = parser.parse_args()
    rounds: list[dict[str, dict[str, Figures]]] = []
    with patient_driver(), open_pairs(pair_specs(options.tcp_pair, options.esapi_pair)) as (pairs, broken):
        for pair in pairs:
            print(f"{pair.spec.label}: {pair.facts}", flush=True)
            for size in options.sizes:
                pair.run(Measurement("throughput", size, DEPTHS[size]), DEPTHS[size])  # memory is touched
        for index in range(options.rounds):
            began = time.monotonic()
            turn = Round(pairs, broken)
            turn.run(options.sizes)
            rounds.append(turn.taken)
            print(f"round {index + 1} of {options.rounds}: {time.monotonic() - began:.0f} s", flush=True)
    options.json.write_text(json.dumps({"facts": facts(), "rounds": rounds, "broken": broken}, indent=1))
    for name, reason in broken.items():
        print(f"not measured: {name}: {reason}", flush=True)
    return 0 if rounds and rounds[0] else 1


if __name__ == "__main__":
    sys.exit(main())
