# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whose turn it is, of many handshakes with one server.

A link group announces one buffer after the other, and the peer's clocks run from the first message of a connection: if
hundreds began at once, the last ones would be too late on a busy host.  So they begin a few at a time, which takes
little longer in all.

Owns the lines, one for each server while somebody stands in it.  Invariant: nobody waits for longer than
:data:`PATIENCE_S`; a place is given back whatever ends its use.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["PATIENCE_S", "PLACES", "Turns", "current_turns"]

PLACES = 32
"""Handshakes with one server at a time: enough for both sides to have always something to do."""

PATIENCE_S = 10.0
"""After so long one begins out of turn: a server that does not answer must not keep others from trying."""

Server = tuple[str | bytes, int]


@dataclass(eq=False, slots=True)
class _Line:
    places: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(PLACES))
    users: int = 0
    """In their turn, and waiting for it."""


class Turns:
    """The lines of one trio run."""

    def __init__(self) -> None:
        self._lines: dict[Server, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    @asynccontextmanager
    async def one(self, server: Server) -> AsyncGenerator[None]:
        """Wait for a turn, and have it."""
        line = self._lines.setdefault(server, _Line())
        line.users += 1
        placed = False
        try:
            with trio.move_on_after(PATIENCE_S):
                await line.places.acquire()
                placed = True
            yield
        finally:
            if placed:
                line.places.release()
            line.users -= 1
            if not line.users:
                del self._lines[server]


_runvar: trio.lowlevel.RunVar[Turns] = trio.lowlevel.RunVar("exs smc turns")


def current_turns() -> Turns:
    """Those of this trio run, made if this is the first use."""
    try:
        turns = _runvar.get()
    except LookupError:
        turns = Turns()
        _runvar.set(turns)
    return turns
