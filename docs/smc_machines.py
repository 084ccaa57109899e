# SPDX-License-Identifier: MIT OR Apache-2.0
"""The tables of docs/explanation/smc-r.md, made from the tables that exs/smc runs on.

What a step does is the first line of its docstring.  A table of the page stands between ``<!-- machine: name -->`` and
``<!-- end -->``.

    python docs/smc_machines.py check   fails if the page says anything else than the code
    python docs/smc_machines.py write   brings the page up to date
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from exs.smc import client, llc_service, server
from exs.smc.handshake import ANYWHERE, Handshake
from exs.smc.link_group import GroupState, Role
from exs.smc.states import Input, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PAGE = Path(__file__).resolve().parent / "explanation" / "smc-r.md"
BLOCK = re.compile(r"(<!-- machine: ([\w ]+) -->\n\n).*?(<!-- end -->)", re.DOTALL)


def words(steps: Iterable[Callable[..., None]]) -> str:
    """What these steps do, one sentence each."""
    lines = [(step.__doc__ or "").splitlines()[0] for step in steps]
    return " ".join(lines) or "Nothing."


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]
    return "\n".join(lines) + "\n"


def handshake(role: type[Handshake], states: Iterable[State]) -> str:
    """The rows of a role that are not those of every state."""
    rows = []
    for state in states:
        for what in Input:
            row = role.table[state, what]
            plain = row == ANYWHERE.get(what) or (what not in ANYWHERE and row.to is state and row.steps in ((), LATE))
            if not plain:
                limit = f"{row.within:g} s" if row.within is not None else ""
                rows.append((state.value, what.value, words(row.steps), row.to.value, limit))
    return table(("State", "What happens", "What is done", "Next state", "Time out"), rows)


LATE = (Handshake.close_late,)


def anywhere() -> str:
    """What holds in every state of both roles."""
    rows = [(what.value, words(row.steps), row.to.value) for what, row in ANYWHERE.items()]
    return table(("What happens", "What is done", "Next state"), rows)


def group(role: Role) -> str:
    """The table of one role's link groups; states in which the same is done share a row."""
    rules = llc_service.TABLES[role]
    rows = []
    for what in llc_service.LlcInput:
        same: Mapping[tuple[str, str], list[str]] = defaultdict(list)
        for state in GroupState:
            row = rules[state, what]
            if row.steps != (llc_service.ignore,):
                same[words(row.steps), "" if row.to is state else row.to.value].append(state.value)
        rows += [(what.value, ", ".join(states), done, to) for (done, to), states in same.items()]
    return table(("What happens", "In state", "What is done", "Next state"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "client": lambda: handshake(client.Client, client.STATES),
    "server": lambda: handshake(server.Server, server.STATES),
    "anywhere": anywhere,
    "client group": lambda: group(Role.CLIENT),
    "server group": lambda: group(Role.SERVER),
}


def made(text: str) -> str:
    """The page with its tables as the code has them."""
    return BLOCK.sub(lambda m: m[1] + TABLES[m[2]]() + "\n" + m[3], text)


def main(what: str) -> int:
    """Check or write the page."""
    text = PAGE.read_text(encoding="utf-8")
    missing = TABLES.keys() - {m[2] for m in BLOCK.finditer(text)}
    if missing:
        print(f"{PAGE.name} has no table for {', '.join(sorted(missing))}", file=sys.stderr)
        return 1
    if what == "write":
        PAGE.write_text(made(text), encoding="utf-8")
    elif made(text) != text:
        print(f"{PAGE.name} is not what exs/smc does; run 'python docs/smc_machines.py write'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
