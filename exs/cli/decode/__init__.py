# SPDX-License-Identifier: MIT OR Apache-2.0
"""``exs decode``: messages of SMC-R and of exs for people, from hexadecimal digits or from a capture file."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, BinaryIO

from exs.cli.decode import capture, flows, frames

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

__all__ = ["run"]

MOST_TEXT = 16 << 20
"""Bytes of hexadecimal text from one file."""


def run(args: argparse.Namespace) -> int:
    """``exs decode``."""
    found: list[dict[str, object]] = []
    seen, broken = 0, 0
    try:
        for source in args.input or ["-"]:
            for frame in _frames(source):
                seen += 1
                broken += bool(frame.error)
                if args.json:
                    found.append({name: value for name, value in asdict(frame).items() if value or name == "fields"})
                else:
                    print("\n".join(_lines(frame)))
    except capture.CaptureError as error:
        print(f"exs: {error}", file=sys.stderr)
        broken += 1
    except OSError as error:
        print(f"exs: {error.filename}: {error.strerror}, and no hexadecimal digits either", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps({"messages": found}))
    elif not seen:
        print("exs: no message was found", file=sys.stderr)
    return 1 if broken or not seen else 0


def _frames(source: str) -> Iterator[frames.Frame]:
    """The messages of a source: ``-``, a file, or digits."""
    if source == "-":
        yield from _of_file(sys.stdin.buffer, "standard input")
    elif _is_hex(source):  # a file of such a name is meant by ./name
        yield from frames.frames_of(_unhex(source, "argument"))
    else:
        with open(source, "rb") as file:
            yield from _of_file(file, source)


def _of_file(file: BinaryIO, name: str) -> Iterator[frames.Frame]:
    start = file.read(4)
    if start in capture.MAGICS:
        table = flows.Flows()
        for packet in capture.packets(start, file):
            segment = capture.segment(packet)
            if segment is not None:
                yield from table.take(segment)
        return
    text = start + file.read(MOST_TEXT)
    if len(text) > MOST_TEXT:
        raise ValueError(f"{name}: more than {MOST_TEXT >> 20} MiB of text")
    for number, line in enumerate(text.decode("ascii", "replace").splitlines(), 1):
        digits = line.partition("#")[0].strip()
        if digits:
            yield from frames.frames_of(_unhex(digits, f"{name}, line {number}"))


def _digits(text: str) -> str:
    return "".join(part.removeprefix("0x") for part in text.replace(":", " ").split())


def _is_hex(text: str) -> bool:
    return all(c in "0123456789abcdefABCDEF" for c in _digits(text))


def _unhex(text: str, where: str) -> bytes:
    try:
        return bytes.fromhex(_digits(text))
    except ValueError:
        raise ValueError(f"{where}: neither pairs of hexadecimal digits nor a capture file") from None


def _lines(frame: frames.Frame) -> Iterable[str]:
    place = dict(frame.place)
    head = f"{frame.layer} {frame.name}".strip() if frame.name != frame.layer else frame.name
    if place:
        way = f"{place.pop('source')} > {place.pop('destination')}"
        pair = f"  queue pair {place['queue_pair']}" if "queue_pair" in place else ""
        yield f"{place['packet']}  {place['time']}  {way}{pair}"
    yield f"{head}, {frame.size} bytes" + (f": {frame.error}" if frame.error else "")
    yield from _field_lines(frame.fields, "  ")


def _field_lines(shown: dict[str, frames.Value], indent: str) -> Iterator[str]:
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        parts = value if isinstance(value, list) and any(isinstance(part, dict) for part in value) else [value]
        for part in parts:
            if isinstance(part, dict):
                yield f"{indent}{name}"
                yield from _field_lines(part, indent + "  ")
            else:
                yield f"{indent}{name:<{width}}  {_text(part)}".rstrip()


def _text(value: frames.Value) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return text if text.isprintable() else ascii(text)[1:-1]  # what a peer sent is not for the terminal to obey
