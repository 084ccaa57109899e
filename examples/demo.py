# SPDX-License-Identifier: MIT OR Apache-2.0
"""A server and a client process move a file of 1 GiB and a tree of 2,000 small files in three ways:

over exs between two processes of one host (shm), over exs and TCP (iWARP in user space), and over trio's own TCP
streams with the very same transfer protocol.  Every file is verified by checksum.  A table closes it.

    python examples/demo.py [--mib 1024] [--files 2000] [--dir DIR] [--json]

Needs about three times the size in DIR (default: the temporary directory).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import exs
from exs.cli import transfer
from exs.cli.common import Address, table
from exs.cli.transfer import client, server
from exs.cli.transfer.link import StreamLink, open_link
from exs.cli.transfer.paths import Root
from exs.cli.transfer.progress import make_progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from exs.cli.transfer.summary import Summary

WAYS = {"exs shm": "shm", "exs tcp": "tcp", "trio TCP": ""}
HOST = "127.0.0.1"
MIB = 1 << 20


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# --- the server process: python demo.py --serve PATH DIR ---------------------------------------------------------


async def serve(path: str, directory: str) -> None:
    """Serves a directory; tells CPU time and copies for each line on its standard input, and ends with it."""
    served = server.Server(Root(directory), report=lambda event: None)

    async def with_exs(stream: exs.SocketStream) -> None:
        async with open_link(stream) as link:
            await served.handle(link, "demo")

    async def with_trio(stream: trio.SocketStream) -> None:
        async with stream:
            await served.handle(StreamLink(stream), "demo")

    async def figures(scope: trio.CancelScope) -> None:
        async for _ in trio.lowlevel.FdStream(os.dup(0)):
            copied = exs.statistics().bytes_copied if path else 0
            print(json.dumps({"cpu": cpu_seconds(), "copied": copied}), flush=True)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(figures, nursery.cancel_scope)
        if path:
            options = transfer.transfer_options(exs.Options(path=path))  # type: ignore[arg-type]
            listeners = await exs.open_listeners(0, host=HOST, options=options)
            print(json.dumps({"port": listeners[0].address[1]}), flush=True)
            nursery.start_soon(trio.serve_listeners, with_exs, listeners)
        else:
            plain = await trio.open_tcp_listeners(0, host=HOST)
            print(json.dumps({"port": plain[0].socket.getsockname()[1]}), flush=True)
            nursery.start_soon(trio.serve_listeners, with_trio, plain)


class ServerProcess:
    """The other process, and what it says of itself."""

    def __init__(self, path: str, directory: Path) -> None:
        command = [sys.executable, os.path.abspath(__file__), "--serve", path, str(directory)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._read()["port"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def figures(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# --- the client process -----------------------------------------------------------------------------------------


def connector(path: str, port: int) -> client.Connect:
    if path:
        return transfer.connector(Address(HOST, port), exs.Options(path=path))  # type: ignore[arg-type]

    @asynccontextmanager
    async def connect() -> AsyncIterator[StreamLink]:
        async with await trio.open_tcp_stream(HOST, port) as stream:
            yield StreamLink(stream)

    return connect


def move(label: str, path: str, source: Path, target: Path, show: bool) -> dict[str, Any]:
    """Puts one file or tree into an empty directory of a new server process."""
    target.mkdir()
    other = ServerProcess(path, target)
    try:
        before, copied = other.figures(), exs.statistics().bytes_copied
        cpu = cpu_seconds()

        async def work() -> Summary:
            with make_progress(f"{label:10}", wanted=show) as progress:
                return await client.put(connector(path, other.port), [str(source)], progress=progress)

        summary = trio.run(work)
        cpu = cpu_seconds() - cpu
        after = other.figures()
    finally:
        other.end()
    if summary.exit_code:
        raise SystemExit("\n".join(summary.lines()))
    cpu += after["cpu"] - before["cpu"]
    if path:
        copied = exs.statistics().bytes_copied - copied + after["copied"] - before["copied"]
    result = {
        "way": label,
        "path": summary.path,
        "what": source.name,
        "files": summary.files,
        "bytes": summary.nbytes,
        "seconds": summary.seconds,
        "cpu_seconds": cpu,
        "bytes_copied": copied if path else None,
        "digest": summary.digest,
    }
    compare(source, target / source.name)
    shutil.rmtree(target)
    return result


def compare(source: Path, target: Path) -> None:
    """What arrived is what was sent (the checksums said so already; this looks again, at the names)."""
    if source.is_dir():
        there = {p.relative_to(target): p.stat().st_size for p in target.rglob("*") if p.is_file()}
        here = {p.relative_to(source): p.stat().st_size for p in source.rglob("*") if p.is_file()}
        assert there == here
    else:
        assert target.stat().st_size == source.stat().st_size


def make_sources(where: Path, mib: int, files: int) -> tuple[Path, Path]:
    big, tree = where / "one-large-file", where / f"{files}-small-files"
    with open(big, "wb") as out:
        for _ in range(mib):
            out.write(os.urandom(MIB))
    block = os.urandom(64 << 10)
    for number in range(files):
        folder = tree / f"{number % 20:02}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05}").write_bytes(block[: 200 + number * 7919 % 40_000])
    return big, tree


def rotated(labels: list[str], by: int) -> list[str]:
    by %= len(labels)
    return labels[by:] + labels[:by]


def medians(label: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One result for several runs: the memory of a virtual machine is slow when it is touched for the first time."""
    middle = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "cpu_seconds")}
    return runs[-1] | middle | {"way": label}


def report(results: list[dict[str, Any]]) -> str:
    head = ["", "way", "MiB/s", "files/s", "CPU s per GiB", "copied by exs"]
    rows = []
    for found in results:
        gib = found["bytes"] / 2**30
        copied = "-" if found["bytes_copied"] is None else f"{found['bytes_copied'] / found['bytes']:.1%}"
        rows.append(
            [
                f"{found['what']}: {found['way']}",
                found["path"],
                f"{found['bytes'] / found['seconds'] / MIB:,.0f}",
                f"{found['files'] / found['seconds']:,.0f}",
                f"{found['cpu_seconds'] / gib:.2f}",
                copied,
            ]
        )
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the large file")
    parser.add_argument("--files", type=int, default=2000, help="how many small ones")
    parser.add_argument("--rounds", type=int, default=3, help="medians of so many")
    parser.add_argument("--dir", type=Path, help="where to put it all")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    parser.add_argument("--serve", nargs=2, metavar=("PATH", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        with contextlib.suppress(KeyboardInterrupt):
            trio.run(serve, *args.serve)
        return
    began = time.perf_counter()
    results = []
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="exs-demo-") as name:
        where = Path(name)
        if not args.json:
            print(f"making a file of {args.mib} MiB and {args.files} small ones in {where}", flush=True)
        sources = make_sources(where, args.mib, args.files)
        for source in sources:
            runs: dict[str, list[dict[str, Any]]] = {label: [] for label in WAYS}
            for number in range(args.rounds):
                # Another one is first in each round: the first writes to memory that nobody has touched yet.
                for label in rotated(list(WAYS), number):
                    path = WAYS[label]
                    runs[label].append(move(f"{label} {number + 1}", path, source, where / "served", not args.json))
                    if not args.json:
                        print(f"{source.name}, {label}: {runs[label][-1]['seconds']:.2f} s", flush=True)
            results += [medians(label, found) for label, found in runs.items()]
    if args.json:
        print(json.dumps(results))
        return
    print(f"\n{report(results)}")
    digest = results[0]["digest"].replace("_", "-")
    print(f"\nTwo processes on this host; CPU of both; medians of {args.rounds}; every file verified by {digest}")
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
