# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the command line may say: :func:`make_parser`.

Each command names the module below :mod:`exs.cli` and the function there that run it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from exs.cli.common import add_way, parse_address, parse_port, positive, size

Add = Callable[[str, str, str, str], argparse.ArgumentParser]
"""Adds a command: its name, module, function and purpose."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="exs",
        description="Zero-copy sockets: tools.",
        epilog="Exit codes: 0 all is well, 1 some of it failed, 2 wrong usage, 3 no connection.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    parser.add_argument("--cflags", action="store_true", help="print what a C compiler needs for exs.h")
    parser.add_argument("--libs", action="store_true", help="print what a linker needs for libexs.a")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, module: str, function: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(module=module, function=function)
        sub.add_argument("--json", action="store_true", help="print JSON on standard output, and no progress")
        return sub

    about = "Show which devices there are, what they can do, and why one is missing."
    devices = add("devices", "devices", "run", about)
    devices.add_argument("-v", "--verbose", action="store_true", help="RDMA ports, GIDs and limits too, by pyverbs")
    _add_ping(add)
    _add_bench(add)
    _add_serve(add)
    _add_put_and_get(add)
    decode = add("decode", "decode", "run", "Show messages of SMC-R (CLC, LLC, CDC) and of exs in words.")
    _add_smc(commands)
    source = "hexadecimal digits, or a file of them (a message a line) or a pcap or pcapng file; '-': standard input"
    decode.add_argument("input", nargs="*", metavar="HEX|FILE", help=source)
    return parser


def _add_smc(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    about = "Look after SMC-R."
    what = commands.add_parser("smc", help=about, description=about).add_subparsers(required=True, metavar="WHAT")
    about = "Show link groups and connections of the running processes of this user; for root, of all users."
    status = what.add_parser(
        "status",
        help=about,
        description=about,
        epilog="Exit codes: 0 all was shown, also that there is none, 1 a process did not answer, 3 --pid has none.",
    )
    status.set_defaults(module="smc", function="run_status")
    status.add_argument("--pid", type=positive, help="this process alone")
    status.add_argument("--json", action="store_true", help="print JSON on standard output")


def _add_ping(add: Add) -> None:
    ping = add("ping", "ping", "run", "Measure round trips to 'exs ping --serve'.")
    ping.add_argument("address", nargs="?", type=parse_address, metavar="HOST:PORT", help="who answers")
    ping.add_argument("--serve", action="store_true", help="answer, until interrupted")
    ping.add_argument("--host", help="with --serve: address to listen on (default: all)")
    ping.add_argument("--port", type=parse_port, default=7473, help="with --serve: port (default 7473; 0: any)")
    ping.add_argument("-c", "--count", type=positive, default=10, help="round trips (default 10)")
    ping.add_argument("-s", "--size", type=size, default=64, help="bytes of a message (default 64)")
    ping.add_argument("-i", "--interval", type=float, default=0.2, help="seconds between two (default 0.2)")
    add_way(ping)


def _add_bench(add: Add) -> None:
    bench = add("bench", "bench", "run", "Measure exs beside Python and trio TCP sockets, between two processes.")
    bench.add_argument("--sizes", default="4K,64K,1M", help="message sizes for throughput (default 4K,64K,1M)")
    bench.add_argument("--depth", type=positive, default=16, help="operations in flight (default 16)")
    bench.add_argument("--rounds", type=positive, default=3, help="interleaved rounds; medians are shown (default 3)")
    bench.add_argument("--seconds", type=float, default=0.3, help="length of one measurement (default 0.3)")
    bench.add_argument("--quick", action="store_true", help="one short round")
    bench.add_argument("--only", help="peers whose name contains one of these words, comma-separated")
    bench.add_argument("--one-core", action="store_true", help="both processes on one core")


def _add_serve(add: Add) -> None:
    serve = add("serve", "transfer", "run_serve", "Serve a directory to 'exs put' and 'exs get'.")
    serve.add_argument("directory", metavar="DIR")
    serve.add_argument("--host", help="address to listen on (default: all)")
    serve.add_argument("--port", type=parse_port, default=7471, help="default 7471; 0 takes a free one")
    serve.add_argument("--read-only", action="store_true", help="refuse put")
    add_way(serve)


def _add_put_and_get(add: Add) -> None:
    put = add("put", "transfer", "run_put", "Send files and directories to a server.")
    put.add_argument("files", nargs="+", metavar="FILE", help="files and directories")
    put.add_argument("address", type=parse_address, metavar="HOST:PORT")
    put.add_argument("--to", help="directory at the server to put them in (default: the served one)")

    get = add("get", "transfer", "run_get", "Fetch files and directories from a server.")
    get.add_argument("address", type=parse_address, metavar="HOST:PORT")
    get.add_argument("paths", nargs="+", metavar="PATH", help="relative to the served directory; '.' for all of it")
    get.add_argument("-o", "--output", default=".", metavar="DIR", help="where to (default: here); made if missing")
    for sub in (put, get):
        sub.add_argument("-j", "--jobs", type=positive, default=4, help="connections at the same time (default 4)")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
        add_way(sub)
