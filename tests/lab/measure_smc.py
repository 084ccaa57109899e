# SPDX-License-Identifier: MIT OR Apache-2.0
"""Inside the first of two guests: SMC-R from here to the second one, by exs and by the kernel, and TCP, as JSON.

Owns which two programs make a pair, and that SMC-R really carries it.  The second guest listens and receives, this
one connects and sends.  All pairs live through all rounds and are measured one behind the other; CPU time is that of
both guests, since rxe and the kernel's SMC work in threads that no process is charged for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import agent
import kernel_smc
import smc_peer
import trio
from measure import DEPTHS, Figures, busy_seconds

import exs
from exs.cli.bench.driver import Measurement, Pair, PairError, PairSpec, Side

TICK = os.sysconf("SC_CLK_TCK")
BUFFER = 512 << 10
"""Of a receive buffer and a send buffer; the largest that both can have."""
START_SECONDS, OPERATION_SECONDS = 150.0, 90.0
SECONDS = 0.8
"""Of one run."""
TRIPS = {64: 80, 4096: 60, 65536: 24, 1 << 20: 5}
REDIS_PORT, REDIS_COUNT, REDIS_BYTES = 6379, 200, 64
OPTIONS = {"device": "verbs", "smc_option": "bpf", "smc_eid": [kernel_smc.EID], "host": smc_peer.THERE}
PACKAGE = str(Path(exs.__file__).resolve().parents[1])


class RemoteSide(Side):
    """One process of a pair in the second guest."""

    def __init__(self, command: list[str]) -> None:
        self._remote = agent.Remote(command, {"PYTHONSAFEPATH": "1", "PYTHONPATH": PACKAGE})

    def read(self, seconds: float) -> dict[str, Any]:
        """The next JSON line; what else it says is kept for its last words."""
        said: list[str] = []
        try:
            while line := self._remote.readline(seconds):
                if line.startswith("{"):
                    return json.loads(line)
                said.append(line.strip())
        except (OSError, ValueError) as error:
            raise PairError(f"no answer of the second guest: {error}") from error
        raise PairError(said[-1] if said else f"ended with status {self._remote.status}")

    def last_words(self) -> str:
        """What it says last, if it ends soon."""
        try:
            return f"still runs: {self.read(2.0)}"
        except PairError as words:
            return str(words)

    def write(self, line: str) -> None:
        """Gives it a command."""
        self._remote.write(line + "\n")

    def close(self) -> None:
        """Ends it."""
        self._remote.close()

    def end(self) -> None:
        """It has ended."""


class BothGuests:
    """The CPU time of both; a shell in the second one reads there without starting anything."""

    def __init__(self) -> None:
        script = "while read -r _; do read -r line </proc/stat; echo $line; done"
        self._remote = agent.Remote(["sh", "-c", script])

    def busy(self) -> float:
        """Seconds so far."""
        self._remote.write("\n")
        words = [int(word) for word in self._remote.readline().split()[1:9]]
        there = (sum(words) - words[3] - words[4]) / TICK
        return busy_seconds() + there

    def close(self) -> None:
        """Ends the shell."""
        self._remote.close()


# --- pairs --------------------------------------------------------------------------------------------------------


def program(kind: str, tcp_pair: str, role: str) -> list[str]:
    """What one side runs: ``kernel`` and ``tcp`` in C; ``exs``, ``queue`` and ``views`` in Python."""
    if kind in ("kernel", "tcp"):
        return [tcp_pair, "smc" if kind == "kernel" else "tcp", smc_peer.THERE, role]
    config = json.dumps({**OPTIONS, "queue": kind == "queue", "view": kind == "views"})
    return [sys.executable, "-m", "exs.cli.bench.side", role, "smc", config]


KINDS = {
    "kernel to kernel": ("kernel", "kernel"),
    "exs to kernel": ("exs", "kernel"),
    "exs queue to kernel": ("queue", "kernel"),
    "kernel to exs": ("kernel", "exs"),
    "kernel to views": ("kernel", "views"),
    "exs to exs": ("exs", "exs"),
    "exs queue to views": ("queue", "views"),
    "TCP": ("tcp", "tcp"),
}
"""Who sends, in this guest, and who receives, in the other."""


def open_pair(label: str, tcp_pair: str) -> Pair:
    """Both sides, connected by what they are to be connected by.

    Raises:
        PairError: One did not come up, or SMC-R was not possible.
    """
    sends, receives = KINDS[label]
    listener = RemoteSide(program(receives, tcp_pair, "listen"))
    connector: Side | None = None
    try:
        port = listener.read(START_SECONDS)["address"]
        connector = Side([*program(sends, tcp_pair, "connect"), str(port)], None, ())
        facts = connector.read(START_SECONDS)
        other = listener.read(START_SECONDS)
        check(label, int(port), facts, other)
        return Pair(PairSpec(label), listener, connector, {**other, **facts})
    except BaseException:
        for side in (connector, listener):
            if side is not None:
                side.close()
                side.end()
        raise


def check(label: str, port: int, facts: dict[str, Any], other: dict[str, Any]) -> None:
    """A connection that fell back to TCP works as well, so both sides are asked.

    Raises:
        PairError: It is plain TCP.
    """
    sends, receives = KINDS[label]
    for said in (facts, other):
        if said.get("transport", "smc-r v2") != "smc-r v2":
            raise PairError(f"it is {said['transport']}")
    rows: list[dict[str, Any]] = []
    if sends == "kernel":
        rows += [asdict(row) for row in kernel_smc.sockets() if row.remote == port]
    if receives == "kernel":
        there: Any = smc_peer.kernel_there()["sockets"]
        rows += [row for row in there if row["local"] == port and row["remote"]]
    modes = {row["mode"] for row in rows}
    if "kernel" in (sends, receives) and modes != {"SMC-R"}:
        raise PairError(f"the kernel's sockets are {modes or 'gone'}: {rows}")


def count_for(pair: Pair, size: int) -> int:
    """Messages that take about a second: the kernel sends many times as many small ones as who waits for each."""
    what = Measurement("throughput", size, DEPTHS[size])
    pair.run(what, 4)  # memory is touched
    rate = pair.run(what, 16 if size < 1 << 20 else 4).per_s
    if rate * SECONDS > 64:
        rate = pair.run(what, int(min(rate, 4000) * SECONDS / 4)).per_s
    return max(4, int(rate * SECONDS))


def bulk_of(pair: Pair, size: int, count: int, guests: BothGuests) -> Figures:
    """Throughput, and the CPU of both guests."""
    busy = guests.busy()
    figures = pair.run(Measurement("throughput", size, DEPTHS[size]), count)
    cpu = guests.busy() - busy
    return {"mib_per_s": figures.mib_per_s, "cpu_per_gib": cpu / (size * count / 2**30)}


def latency_of(pair: Pair, size: int) -> Figures:
    """Half of a round trip."""
    return {"half_us": pair.run(Measurement("roundtrip", size, 1), TRIPS[size]).p50 / 2}


# --- redis ----------------------------------------------------------------------------------------------------------


async def smc_stream() -> trio.abc.Stream:
    """A stream on the kernel's AF_SMC."""
    sock = kernel_smc.smc_socket()
    sock.connect((smc_peer.THERE, REDIS_PORT))
    sock.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


async def exs_stream() -> trio.abc.Stream:
    """A stream of exs over SMC-R.

    Raises:
        PairError: It is plain TCP.
    """
    options = exs.Options(protocol="smc", device="verbs", smc_eid=(kernel_smc.EID,))
    stream = await exs.open_stream(smc_peer.THERE, REDIS_PORT, options=options)
    if stream.transport != "smc-r v2":
        raise PairError(f"redis: it is {stream.transport}: {stream.transport_reason}")
    return stream


async def tcp_stream() -> trio.abc.Stream:
    """A stream over TCP."""
    return await trio.open_tcp_stream(smc_peer.THERE, REDIS_PORT)


CLIENTS = {"redis: AF_SMC": smc_stream, "redis: exs": exs_stream, "redis: TCP": tcp_stream}
"""One client in Python, over other streams."""


async def redis_rates(label: str) -> dict[str, Figures]:
    """Requests a second of one client that waits for each answer."""
    value = b"v" * REDIS_BYTES
    requests = {
        "SET": (b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$%d\r\n%s\r\n" % (len(value), value), b"+OK\r\n"),
        "GET": (b"*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n", b"$%d\r\n%s\r\n" % (len(value), value)),
    }
    found: dict[str, Figures] = {}
    with trio.fail_after(OPERATION_SECONDS):
        async with await CLIENTS[label]() as stream:
            for command, (request, expected) in requests.items():
                for count in (20, REDIS_COUNT):  # the first ones only warm up
                    began = time.monotonic()
                    for _ in range(count):
                        await stream.send_all(request)
                        answer = b""
                        while len(answer) < len(expected):
                            answer += await stream.receive_some()
                        if answer != expected:
                            raise PairError(f"redis answered {answer!r}")
                    found[command] = {"per_s": count / (time.monotonic() - began)}
    return found


# --- the program ------------------------------------------------------------------------------------------------------


class Round:
    """One turn of everything."""

    def __init__(
        self, pairs: dict[str, Pair], counts: dict[tuple[str, int], int], broken: dict[str, str], guests: BothGuests
    ) -> None:
        self._pairs, self._counts, self._broken, self._guests = pairs, counts, broken, guests
        self.taken: dict[str, dict[str, Figures]] = {}

    def _try(self, name: str, what: str, measure: Callable[[], dict[str, Figures]]) -> None:
        if name in self._broken:
            return
        try:
            for key, figures in measure().items():
                self.taken.setdefault(name, {}).setdefault(key, {}).update(figures)
        except (PairError, OSError, ValueError, trio.TooSlowError, trio.BrokenResourceError) as error:
            self._broken[name] = f"{what}: {error!r}"
            print(f"{name}: {what}: {error!r}", flush=True)

    def run(self, sizes: list[int], *, redis: bool) -> None:
        """Every pair at every size, one behind the other; then redis."""
        for size in sizes:
            key = str(size)
            for label, pair in self._pairs.items():
                count = self._counts[label, size]
                self._try(label, key, lambda p=pair, s=size, n=count: {str(s): bulk_of(p, s, n, self._guests)})
            for label, pair in self._pairs.items():
                if "queue" in label or "views" in label:
                    continue  # they have no part in a round trip
                self._try(label, key, lambda p=pair, s=size: {str(s): latency_of(p, s)})
        for label in CLIENTS if redis else ():
            self._try(label, "redis", lambda label=label: trio.run(redis_rates, label))


def set_up() -> None:
    """Both kernels are ready for SMC-R, with buffers as those of exs."""
    kernel_smc.set_up()
    agent.run([*smc_peer.PROGRAM, "set-up"])
    for name in ("rmem", "wmem"):
        path = Path("/proc/sys/net/smc") / name
        path.write_text(str(BUFFER))
        agent.run(["sh", "-c", f"echo {BUFFER} >{path}"])


def facts() -> dict[str, Any]:
    """What the run depends on."""
    mtu = Path("/sys/class/net/eth0/mtu").read_text().strip()
    return {"kernel": os.uname().release, "mtu": mtu, "buffer": BUFFER, "python": sys.version.split()[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tcp-pair", required=True)
    parser.add_argument("--preload", required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=lambda text: [int(s) for s in text.split(",")], default=list(DEPTHS))
    options = parser.parse_args()
    began = time.monotonic()
    set_up()
    rounds: list[dict[str, dict[str, Figures]]] = []
    broken: dict[str, str] = {}
    pairs: dict[str, Pair] = {}
    counts: dict[tuple[str, int], int] = {}
    with ExitStack() as stack:
        guests = BothGuests()
        stack.callback(guests.close)
        server = agent.Remote(smc_peer.redis_server(smc_peer.THERE, REDIS_PORT, options.preload))
        stack.callback(server.close)
        for label in KINDS:
            try:
                pair = open_pair(label, options.tcp_pair)
                stack.callback(pair.close)
                counts.update({(label, size): count_for(pair, size) for size in options.sizes})
                pairs[label] = pair
            except (PairError, OSError, AssertionError) as error:
                broken[label] = str(error)
            print(f"{time.monotonic() - began:.0f} s: {label}: {broken.get(label, 'up')}", flush=True)
        for index in range(options.rounds):
            turn = Round(pairs, counts, broken, guests)
            turn.run(options.sizes, redis=True)
            rounds.append(turn.taken)
            print(f"{time.monotonic() - began:.0f} s: round {index + 1} of {options.rounds}", flush=True)
            # After each: a run that is cut short leaves what it has.
            options.json.write_text(json.dumps({"facts": facts(), "rounds": rounds, "broken": broken}, indent=1))
    return 0 if rounds and rounds[0] else 1


if __name__ == "__main__":
    sys.exit(main())
