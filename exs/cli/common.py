# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the commands have in common: addresses, options, tables."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import exs

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PORT = 7471
PATHS = ("auto", "tcp", "shm", "shm-vm", "shm-ring")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is."""

    host: str
    port: int


def parse_address(text: str) -> Address:
    """Reads ``HOST``, ``HOST:PORT``, ``[IPV6]:PORT`` or a bare IPv6 address.

    Raises:
        argparse.ArgumentTypeError: It is none of these.
    """
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise argparse.ArgumentTypeError(f"{text!r} is no address: [IPV6]:PORT")
        port = rest[1:] if rest else port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host:
        raise argparse.ArgumentTypeError(f"{text!r} names no host")
    return Address(host, parse_port(port))


def parse_port(text: str) -> int:
    """Reads a port number; 0 asks for a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port number")
    return int(text)


def positive(text: str) -> int:
    """Reads a whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def size(text: str) -> int:
    """Reads a number of bytes: ``4096``, ``64K``, ``1M``, ``1G``."""
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
    body = text.lower().removesuffix("ib").removesuffix("b")
    factor = units.get(body[-1:], 1)
    number = body[:-1] if factor > 1 else body
    if not number.isdecimal() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: 4096, 64K, 1M")
    return int(number) * factor


def endpoint_text(address: Sequence[Any]) -> str:  # Any: socket addresses are tuples of mixed kinds
    """``HOST:PORT`` for people, with brackets around IPv6."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def add_way(parser: argparse.ArgumentParser) -> None:
    """The arguments that choose a device and a path."""
    parser.add_argument("--device", help="device to use, as 'exs devices' names it (default: the best)")
    parser.add_argument(
        "--path", choices=PATHS, help="how the soft device moves bytes; without fallback (default: the best)"
    )


def options_of(args: argparse.Namespace) -> exs.Options:
    """The options that ``add_way`` collected."""
    return exs.Options(device=args.device, path=args.path)


def innermost(error: BaseException) -> BaseException:
    """The first error in a group of groups, which is how nurseries and races of addresses report; else itself."""
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns; all but the first are aligned to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: by rich on a terminal where it is installed, else as :func:`table` makes it."""
    if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
        print(table(head, rows))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Cells are texts, not markup, and as wide as they are: a number that is cut is another number.
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(head):
        shown.add_column(Text(name), justify="right" if place else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    width = sum(max(len(row[i]) for row in [head, *rows]) + 3 for i in range(len(head)))
    Console(width=width).print(shown)
