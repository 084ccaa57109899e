# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which clause of which standard stands where: from docs/clauses.toml and the anchors in code and tests.

An anchor is ``RFC nnnn §x.y`` or ``ES-API x.y`` in a comment above the code that follows the clause; several clauses
of one standard are set off by commas.  Functions of the ES-API need none: their definition is their anchor.

    python docs/conformance.py check   fails for a clause with neither code nor a reason, and for an anchor of no clause
    python docs/conformance.py write   the same, and makes the page docs/reference/conformance.md
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLAUSES = ROOT / "docs" / "clauses.toml"
PAGE = ROOT / "docs" / "reference" / "conformance.md"

RFC = re.compile(r"(RFC \d{4}) (§\d+(?:\.\d+)*(?:, §\d+(?:\.\d+)*)*)")
NUMBER = r"(?:\d+(?:\.\d+)+|[IRSQ]\d+|SETTLE)"
ES_API = re.compile(rf"(ES-API) ({NUMBER}(?:, {NUMBER})*)(?![\w.]*\w)")
FUNCTION = re.compile(r"^(?:EXS_API .*?\b|def )(exs_\w+)\(", re.MULTILINE)
CALL = re.compile(r"\b(exs_\w+)\(")

Places = dict[str, set[str]]


def sources(*folders: str) -> list[Path]:
    """Every C and Python file in these folders of the project."""
    return sorted(p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".c", ".h", ".py") and p.is_file())


def anchors(text: str) -> set[str]:
    """The clauses that a file names."""
    text = re.sub(r",\n[ *#]+", ", ", text)  # a list may go on in the next line of its comment
    found = RFC.findall(text) + ES_API.findall(text)
    return {f"{standard} {number}" for standard, numbers in found for number in numbers.split(", ")}


def collect(standards: set[str]) -> tuple[Places, Places]:
    """Where each clause is named: in code, and in tests.  Standards that are not listed are left alone."""
    code: Places = defaultdict(set)
    tests: Places = defaultdict(set)
    for places, folders in ((code, ("native", "exs")), (tests, ("tests",))):
        for path in sources(*folders):
            text = path.read_text(encoding="utf-8")
            names = {a for a in anchors(text) if a.rsplit(" ", 1)[0] in standards}
            functions = CALL.findall(text) if places is tests else FUNCTION.findall(text)
            for name in names | {f"ES-API {f}" for f in functions}:
                places[name].add(path.relative_to(ROOT).as_posix())
    return code, tests


def problems(standards: list[dict[str, object]], code: Places, tests: Places) -> list[str]:
    """What is wrong, one sentence each."""
    known: set[str] = set()
    wrong: list[str] = []
    for standard in standards:
        for clause in standard["clause"]:  # type: ignore[attr-defined]
            name = f"{standard['name']} {clause['id']}"
            if name in known:
                wrong.append(f"{name}: listed twice")
            known.add(name)
            if clause.get("exception") and code.get(name):
                wrong.append(f"{name}: has code ({', '.join(sorted(code[name]))}) and a reason to have none")
            if not clause.get("exception") and not code.get(name):
                wrong.append(f"{name}: neither code nor a reason to have none")
    for name in sorted((set(code) | set(tests)) - known):
        chapter = any(k.startswith(name + ".") for k in known)  # of clauses: said in passing, counts for none of them
        if not chapter and not name.startswith("ES-API exs_"):
            wrong.append(f"{name}: {', '.join(sorted(code[name] | tests[name]))}: an anchor of no listed clause")
    return wrong


def cell(paths: set[str]) -> str:
    """File names for a cell of the table."""
    return ", ".join(f"`{p}`" for p in sorted(paths)) or "-"


def page(standards: list[dict[str, object]], code: Places, tests: Places) -> str:
    """The page, as MyST Markdown."""
    lines = [
        "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->",
        "<!-- Made by docs/conformance.py. -->",
        "# Conformance",
        "",
        "Which clause stands where, from the anchors in the source. What is left out has its reason.",
    ]
    for standard in standards:
        lines += ["", f"## {standard['name']}: {standard['title']}", ""]
        lines += ["| Clause | What it asks | Code | Tests |", "| --- | --- | --- | --- |"]
        for clause in standard["clause"]:  # type: ignore[attr-defined]
            name = f"{standard['name']} {clause['id']}"
            where = f"not done: {clause['exception']}" if clause.get("exception") else cell(code[name])
            lines.append(f"| {clause['id']} | {clause['what']} | {where} | {cell(tests[name])} |")
    return "\n".join(lines) + "\n"


def main(what: str) -> int:
    """Check, and for ``write`` make the page; 0 if nothing is wrong."""
    standards = tomllib.loads(CLAUSES.read_text(encoding="utf-8"))["standard"]
    code, tests = collect({s["name"] for s in standards})
    wrong = problems(standards, code, tests)
    for line in wrong:
        print(f"conformance: {line}", file=sys.stderr)
    if not wrong and what == "write":
        PAGE.write_text(page(standards, code, tests), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    if sys.argv[1:] not in (["check"], ["write"]):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
