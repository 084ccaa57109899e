# SPDX-License-Identifier: MIT OR Apache-2.0
"""``exs smc status``: what SMC-R is doing in the running processes of this user.

Owns the words.  What is shown came from other processes, which for root are those of all users: text of theirs is
printed without anything that a terminal would obey.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from exs.cli.common import show_table
from exs.smc.status_socket import Silence, ask_all

if TYPE_CHECKING:
    import argparse

    from exs.smc.status import Connection, Direction, Group, Handshakes, Status

HEAD = ("token", "peer's", "way", "buffer", "producer", "consumer", "bytes", "waiting", "said")


def clean(text: str) -> str:
    """Text of another process, harmless for a terminal, and not long."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def program(pid: int) -> str:
    """Name of a process's program; empty if it has gone."""
    try:
        return clean(Path(f"/proc/{pid}/comm").read_text(errors="replace").strip())
    except OSError:
        return ""


def size(nbytes: int) -> str:
    """``64 KiB``; 0, which stands for not known yet, is ``-``."""
    return f"{nbytes >> 10} KiB" if nbytes else "-"


def handshake_lines(found: Handshakes, under_way: int) -> list[str]:
    """How they ended."""
    tcp = sum(fallback.count for fallback in found.tcp)
    ends = f"{found.smc_v2} SMC-R v2, {found.smc_v1} SMC-R v1, {tcp} plain TCP, {found.failed} failed"
    lines = [f"  handshakes  {ends}, {under_way} under way"]
    for fallback in found.tcp:
        code = f" ({fallback.code:08x})" if fallback.code else ""
        said = ", says the peer" if fallback.by_peer and fallback.code else ""
        lines.append(f"  plain TCP   {fallback.count}: {clean(fallback.reason)}{code}{said}")
    return lines


def group_lines(group: Group) -> list[str]:
    """A group and its link."""
    link = group.link
    room = f"room for {group.room}" if group.joinable else "nobody may join"
    down = f" ({clean(link.reason)})" if link.reason else ""
    return [
        f"group {group.serial}: {clean(group.role)}, SMC-R v{group.version}, {clean(group.state)}, {room}",
        f"  peer        {clean(group.peer_id)}",
        f"  link {link.number:<6} {clean(link.device)}, {clean(link.state)}{down}, MTU {link.mtu}, "
        f"last heard of {link.idle_s:.1f} s ago",
        f"  ours        {clean(link.gid)}, QPN {link.qpn}",
        f"  peer's      {clean(link.peer_gid)}, QPN {link.peer_qpn or '-'}",
        f"  CDC         {link.cdc_sent} sent, {link.cdc_received} received, {link.cdc_unknown} of them for nobody",
        f"  LLC         {link.llc_sent} sent, {link.llc_received} received, {group.ignored} of them ignored",
        f"  TEST_LINK   {link.tests_sent} sent, {link.tests_answered} answered",
        f"  buffers     {link.buffers}, {size(link.buffer_bytes)} in all",
    ]


def said(way: Direction) -> str:
    """The writer's flags in words."""
    words = {
        "blocked": way.writer_blocked,
        "urgent": way.urgent_present or way.urgent_pending,
        "done": way.done,
        "closed": way.closed,
        "aborted": way.aborted,
    }
    return " ".join(word for word, holds in words.items() if holds) or "-"


def connection_rows(one: Connection) -> list[tuple[str, ...]]:
    """A line for each direction."""

    def row(first: str, peer: str, name: str, way: Direction, more: str = "") -> tuple[str, ...]:
        places = [f"{place.wrap}:{place.count}" for place in (way.producer, way.consumer)]
        return first, peer, name, size(way.buffer_bytes), *places, str(way.nbytes), str(way.waiting), said(way) + more

    state = "" if one.established else " (in its handshake)"
    state += f" ({clean(one.error)})" if one.error else ""
    peer = f"{one.peer_token:08x}" if one.peer_token else "-"
    return [row(f"{one.token:08x}", peer, "out", one.sending, state), row("", "", "in", one.receiving)]


def show(status: Status) -> None:
    """Print what one trio run of a process is doing."""
    name = program(status.pid)
    print(f"process {status.pid}" + (f" ({name})" if name else ""))
    print(*handshake_lines(status.handshakes, status.under_way), sep="\n")
    if not status.groups:
        print("no link group")
    for group in status.groups:
        print(*group_lines(group), sep="\n")
        if group.connections:
            show_table(HEAD, [row for one in group.connections for row in connection_rows(one)])
        if group.connections_left_off:
            print(f"and {group.connections_left_off} more connections")
        elif not group.connections:
            print("no connection")
    if status.groups_left_off:
        print(f"and {status.groups_left_off} more groups")


def run_status(args: argparse.Namespace) -> int:
    """``exs smc status``."""
    answers = trio.run(ask_all, args.pid)
    silent = [answer for answer in answers if isinstance(answer, Silence)]
    found = [answer for answer in answers if not isinstance(answer, Silence)]
    if args.json:
        print(json.dumps({"processes": [asdict(s) for s in found], "silent": [asdict(s) for s in silent]}))
    else:
        for place, status in enumerate(found):
            print(end="\n" if place else "")
            show(status)
        if not answers:
            whose = "no process of this user" if args.pid is None else f"process {args.pid} is none that"
            print(f"{whose} uses SMC-R")
    for silence in silent:
        print(f"exs: process {silence.pid} does not say what it does: {clean(silence.reason)}", file=sys.stderr)
    if args.pid is not None and not answers:
        return 3
    return 1 if silent else 0
