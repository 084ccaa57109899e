# SPDX-License-Identifier: MIT OR Apache-2.0
"""The targets, as data: what is measured, of whom, against what, and which ratio must and should be reached.

A figure names a peer, a measurement and a field; a bound is a factor of another figure (or of 1, for absolute
ones).  Ratios are taken within a round and their median is judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exs.cli.bench.driver import Measurement, PairSpec

HERE = Path(__file__).resolve().parent
KIB, MIB = 1 << 10, 1 << 20

BULK_DEPTH = 4
RATE = Measurement("throughput", 64, 256)
SMALL = Measurement("throughput", 4 * KIB, 64)
MEDIUM = Measurement("throughput", 64 * KIB, 16)
LARGE = Measurement("throughput", MIB, BULK_DEPTH)
HUGE = Measurement("throughput", 16 * MIB, 4)
TRIP = Measurement("roundtrip", 64, 1)


@dataclass(frozen=True, slots=True)
class Figure:
    """A field of what one peer gave for one measurement; limits and the C core are peers too."""

    peer: str
    what: Measurement | None
    field: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report.

    Attributes:
        name: What it is about.
        figure: What is judged.
        reference: What it is divided by; ``None``: it is absolute.
        must: What to reject below (above, if less is better); ``None``: it is only shown.
        aim: What a good design reaches.
        less: Less is better.
        aim_reference: For an aim that is a ratio to something else.
        unit: Of the figure.
    """

    name: str
    figure: Figure
    reference: Figure | None
    must: float | None
    aim: float | None
    less: bool = False
    aim_reference: Figure | None = None
    unit: str = "MiB/s"


def pair_specs(tcp_pair: str, core: int) -> list[PairSpec]:
    """Every pair of processes; those on one core have it in their label."""
    more = {"module": str(HERE / "peers.py")}
    one = frozenset({core})
    found = [
        PairSpec("C tcp", command=(tcp_pair,)),
        PairSpec("trio tcp", "trio-tcp"),
        PairSpec("trio.socket", "trio-socket", more),
        PairSpec("trio eventfd", "trio-eventfd", more, eventfds=2),
        PairSpec("trio checkpoint", "trio-checkpoint", more),
        PairSpec("exs no spin", "exs", {"spin_us": 0}),
        PairSpec("exs spin", "exs", {"spin_us": 200}),
        PairSpec("trio eventfd, one core", "trio-eventfd", more, cores=one, eventfds=2),
        PairSpec("trio.socket, one core", "trio-socket", more, cores=one),
        PairSpec("trio tcp, one core", "trio-tcp", cores=one),
        PairSpec("exs, one core", "exs", cores=one),
        PairSpec("exs tcp, one core", "exs", {"path": "tcp"}, cores=one),
        PairSpec("smc-r", "smc", {"device": "soft"}),
        PairSpec("smc-r views", "smc", {"device": "soft", "queue": True, "view": True}),
    ]
    for kind in ("stream", "seqpacket"):
        found += [
            PairSpec(f"exs {kind}", "exs", {"type": kind}),
            PairSpec(f"exs {kind} await", "exs", {"type": kind, "calls": "await"}),
            PairSpec(f"exs {kind} allocated", "exs", {"type": kind, "memory": "allocated"}),
            PairSpec(f"exs {kind} tcp", "exs", {"type": kind, "path": "tcp"}),
            PairSpec(f"esapi {kind}", "esapi", {"type": kind, **more}),
            PairSpec(f"esapi {kind} allocated", "esapi", {"type": kind, "memory": "allocated", **more}),
            PairSpec(f"esapi {kind} tcp", "esapi", {"type": kind, "path": "tcp", **more}),
        ]
    return found


def _speed(peer: str, what: Measurement) -> Figure:
    return Figure(peer, what, "mib_per_s")


def _cpu(peer: str, what: Measurement) -> Figure:
    return Figure(peer, what, "cpu_per_gib")


def _limit(what: str, size: int, field: str = "mib_per_s") -> Figure:
    return Figure(what, Measurement("throughput", size, 0), field)


def _trip(peer: str, field: str = "p50") -> Figure:
    return Figure(peer, TRIP, field)


def _rate(peer: str) -> Figure:
    return Figure(peer, RATE, "per_s")


def _trio_rows(kind: str) -> list[Row]:
    peer = f"exs {kind}"
    return [
        Row(f"{kind}: 1 MiB / process_vm_writev", _speed(peer, LARGE), _limit("writev", MIB), 0.65, 0.85),
        Row(f"{kind}: 16 MiB / process_vm_writev", _speed(peer, HUGE), _limit("writev", 16 * MIB), 0.80, 0.95),
        Row(f"{kind}: 64 KiB / process_vm_writev", _speed(peer, MEDIUM), _limit("writev", 64 * KIB), 0.30, 0.50),
        Row(f"{kind}: 4 KiB, pipelined / C tcp", _speed(peer, SMALL), _speed("C tcp", SMALL), 1.0, 2.0),
        Row(
            f"{kind}: CPU per GiB, 1 MiB / C tcp",
            _cpu(peer, LARGE),
            _cpu("C tcp", LARGE),
            0.45,
            1.25,
            less=True,
            aim_reference=_limit("writev", MIB, "cpu_per_gib"),
            unit="s/GiB",
        ),
        Row(
            f"{kind}: CPU per GiB, 64 KiB / C tcp",
            _cpu(peer, MEDIUM),
            _cpu("C tcp", MEDIUM),
            0.75,
            0.45,
            less=True,
            unit="s/GiB",
        ),
        Row(
            f"{kind}: 64 B messages, one await each / trio tcp",
            _rate(f"{peer} await"),
            _rate("trio tcp"),
            2.0,
            0.6,
            aim_reference=_rate("trio checkpoint"),
            unit="/s",
        ),
        Row(f"{kind}: 64 B messages, batches / C tcp", _rate(peer), _rate("C tcp"), 1.0, 590e3 / 349e3, unit="/s"),
        Row(
            f"{kind}: 1 MiB, allocated by exs / memcpy",
            _speed(f"{peer} allocated", LARGE),
            _limit("memcpy", MIB),
            0.65,
            0.85,
        ),
        *_tcp_rows(kind),
    ]


def _tcp_rows(kind: str) -> list[Row]:
    peer, rows = f"exs {kind} tcp", []
    for size, what in (("64 KiB", MEDIUM), ("1 MiB", LARGE)):
        rows += [
            Row(f"{kind} over tcp: {size} / C tcp", _speed(peer, what), _speed("C tcp", what), 0.80, 0.95),
            Row(
                f"{kind} over tcp: CPU per GiB, {size} / C tcp",
                _cpu(peer, what),
                _cpu("C tcp", what),
                1.3,
                1.1,
                less=True,
                unit="s/GiB",
            ),
            Row(f"{kind} over tcp: {size} / trio tcp", _speed(peer, what), _speed("trio tcp", what), 1.3, None),
        ]
    return rows


def _esapi_rows(kind: str) -> list[Row]:
    peer = f"esapi {kind}"
    return [
        Row(f"ES-API {kind}: 1 MiB / process_vm_writev", _speed(peer, LARGE), _limit("writev", MIB), 0.75, None),
        Row(f"ES-API {kind}: 64 KiB / process_vm_writev", _speed(peer, MEDIUM), _limit("writev", 64 * KIB), 0.40, None),
        Row(
            f"ES-API {kind}: 1 MiB, allocated by exs / memcpy",
            _speed(f"{peer} allocated", LARGE),
            _limit("memcpy", MIB),
            0.65,
            None,
        ),
        Row(
            f"ES-API {kind} over tcp: 64 KiB / C tcp",
            _speed(f"{peer} tcp", MEDIUM),
            _speed("C tcp", MEDIUM),
            0.90,
            None,
        ),
        Row(f"ES-API {kind} over tcp: 1 MiB / C tcp", _speed(f"{peer} tcp", LARGE), _speed("C tcp", LARGE), 0.90, None),
    ]


def _smc_rows() -> list[Row]:
    """SMC-R between two processes of exs, against the loopback TCP that a program would have without it."""
    rows: list[Row] = []
    sizes = (("64 B", RATE), ("4 KiB", SMALL), ("64 KiB", MEDIUM), ("1 MiB", LARGE))
    for name, peer in (("SMC-R stream", "smc-r"), ("SMC-R queue, views", "smc-r views")):
        for size, what in sizes:
            for reference in ("trio tcp", "C tcp"):
                must = 1.0 if reference == "trio tcp" else None
                rows.append(
                    Row(f"{name}: {size} / {reference}", _speed(peer, what), _speed(reference, what), must, None)
                )
        for size, what in sizes[2:]:
            rows.append(
                Row(
                    f"{name}: CPU per GiB, {size} / trio tcp",
                    _cpu(peer, what),
                    _cpu("trio tcp", what),
                    1.0,
                    None,
                    less=True,
                    unit="s/GiB",
                )
            )
    for reference in ("trio tcp", "C tcp"):
        must = 1.0 if reference == "trio tcp" else None
        name = f"SMC-R stream: 64 B round trip / {reference}"
        rows.append(Row(name, _trip("smc-r"), _trip(reference), must, None, less=True, unit="us"))
    return rows


_LATENCY = [
    Row(
        "64 B round trip, one core / trio eventfd",
        _trip("exs, one core"),
        _trip("trio eventfd, one core"),
        4.0,
        2.5,
        less=True,
        unit="us",
    ),
    Row(
        "64 B round trip, two cores, no spin / trio eventfd",
        _trip("exs no spin"),
        _trip("trio eventfd"),
        1.2,
        1.0,
        less=True,
        unit="us",
    ),
    Row(
        "64 B round trip, two cores, spin / trio eventfd",
        _trip("exs spin"),
        _trip("trio eventfd"),
        0.3,
        15.0,
        less=True,
        aim_reference=Figure("", None, "one"),
        unit="us",
    ),
    Row(
        "p99 of a round trip / trio tcp",
        _trip("exs no spin", "p99"),
        _trip("trio tcp", "p99"),
        1.5,
        1.0,
        less=True,
        unit="us",
    ),
    Row(
        "over tcp: 64 B round trip, one core / trio.socket",
        _trip("exs tcp, one core"),
        _trip("trio.socket, one core"),
        1.2,
        0.8,
        less=True,
        unit="us",
    ),
]

_CORE = [
    Row(
        "C core: 64 B round trip / a cache line",
        Figure("C core", None, "rtt_64_us"),
        Figure("cacheline", None, "us"),
        8.0,
        3.0,
        less=True,
        unit="us",
    ),
    Row("C core: 64 B round trip", Figure("C core", None, "rtt_64_us"), None, 2.2, 0.8, less=True, unit="us"),
    Row("C core: 64 B messages", Figure("C core", None, "rate_64_batch_per_s"), None, 3e6, 8e6, unit="/s"),
]

ROWS = [
    *_trio_rows("stream"),
    *_trio_rows("seqpacket"),
    *_LATENCY,
    *_CORE,
    *_esapi_rows("stream"),
    *_esapi_rows("seqpacket"),
    *_smc_rows(),
]

ABSENT = {
    "1 MiB write / nixl shm+cma (must 1.5, aim 2)": "nixl",
    "over tcp: 1 MiB write / mooncake tcp (must 1.5, aim 2.5)": "mooncake",
}
"""Rows whose peers are measured only where they are installed, which they are not in this environment."""


def needed(rows: list[Row]) -> set[Figure]:
    """Every figure that the rows use."""
    return {figure for row in rows for figure in (row.figure, row.reference, row.aim_reference) if figure is not None}
