# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which test shows which point of SMC-R: from tests/conformance/points.toml and the tests themselves.

A test in Python names its points by ``@pytest.mark.smcr(7)``, anywhere below tests/; a check in C, in tests/native, by
the beginning of its words, ``"point 7: ..."`` or ``"points 7, 8: ..."``.

    python docs/smcr_conformance.py check           fails for a point with neither a test nor a reason, or with both
    python docs/smcr_conformance.py write [XML...]  the same, and makes the page docs/reference/smc-r-conformance.md,
                                                    which says what came out, by JUnit reports of pytest and meson;
                                                    where none is named, by those that ``make test`` has left
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
POINTS = ROOT / "tests" / "conformance" / "points.toml"
PAGE = ROOT / "docs" / "reference" / "smc-r-conformance.md"
LEFT = (ROOT / "build" / "pytest.xml", ROOT / "build" / "native" / "meson-logs" / "testlog.junit.xml")
"""Reports of the last ``make test``."""

IN_C = re.compile(r'"points? (\d+(?:, \d+)*): ')
PROGRAM = re.compile(r"exs:(\w+)$")
"""How meson names a program in C: by its suite, the project and itself."""
SIDES = {"S": "server", "C": "client", "B": "both"}


@dataclass(frozen=True, slots=True)
class Test:
    """A test, or a file of tests in C."""

    path: str
    name: str = ""

    def __str__(self) -> str:
        return f"`{self.path}`" + (f" {self.name}" if self.name else "")


Tests = dict[int, list[Test]]


def marked(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Name and point of each function with the marker."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.smcr":
                for argument in decorator.args:
                    yield node.name, ast.literal_eval(argument)


def collect(root: Path) -> Tests:
    """The tests of each point, in the order of their files."""
    found: Tests = defaultdict(list)
    for path in sorted((root / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "mark.smcr" in text:
            for name, number in marked(ast.parse(text)):
                found[number].append(Test(path.relative_to(root).as_posix(), name))
    for path in sorted((root / "tests" / "native").glob("test_*.c")):
        numbers = {int(n) for said in IN_C.findall(path.read_text(encoding="utf-8")) for n in said.split(", ")}
        for number in numbers:
            found[number].append(Test(path.relative_to(root).as_posix()))
    return found


def problems(chapters: list[dict[str, object]], tests: Tests) -> list[str]:
    """What is wrong, one sentence each."""
    points = [point for chapter in chapters for point in chapter["point"]]  # type: ignore[attr-defined]
    numbers = [point["number"] for point in points]
    wrong: list[str] = []
    if numbers != list(range(1, 100)):
        wrong.append("the points are not 1 to 99 in their order")
    for point in points:
        number = point["number"]
        if point["side"] not in SIDES:
            wrong.append(f"point {number}: side is one of {', '.join(SIDES)}")
        if tests.get(number) and point.get("missing"):
            wrong.append(f"point {number}: has a test ({tests[number][0].path}) and a reason to have none")
        if point.get("missing") and point.get("open"):
            wrong.append(f"point {number}: what has no test has nothing that its test leaves open")
        if not tests.get(number) and not point.get("missing"):
            wrong.append(f"point {number}: neither a test nor a reason to have none")
    wrong += [f"{tests[n][0].path}: there is no point {n}" for n in sorted(set(tests) - set(numbers))]
    return wrong


def named(case: ET.Element) -> tuple[str, str]:
    """File and function of a case in a report; of a program in C the file alone."""
    where = case.get("classname", "")
    if program := PROGRAM.search(where):
        return f"tests/native/test_{program[1]}.c", ""
    return where.replace(".", "/") + ".py", case.get("name", "").split("[")[0]


def results(reports: list[Path]) -> dict[tuple[str, str], set[str]]:
    """What came out, by file and function: ``passed``, ``failed``, ``skipped``; several for one with parameters."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for report in reports:
        for case in ET.parse(report).getroot().iter("testcase"):
            outcome = "passed"
            for kind in ("failure", "error", "skipped"):
                if case.find(kind) is not None:
                    outcome = "skipped" if kind == "skipped" else "failed"
            found[named(case)].add(outcome)
    return found


def cell(tests: list[Test], outcomes: dict[tuple[str, str], set[str]]) -> str:
    """Tests for a cell of the table, and what came out where it is known."""
    said: list[str] = []
    for test in tests:
        outcome = ", ".join(sorted(outcomes.get((test.path, test.name), ())))
        said.append(f"{test}: {outcome}" if outcome else str(test))
    return "<br>".join(said)


def page(chapters: list[dict[str, object]], tests: Tests, outcomes: dict[tuple[str, str], set[str]]) -> str:
    """The page, as MyST Markdown."""
    points = [point for chapter in chapters for point in chapter["point"]]  # type: ignore[attr-defined]
    covered = sum(1 for point in points if tests.get(point["number"]))
    lines = [
        "<!-- SPDX-License-Identifier: MIT OR Apache-2.0 -->",
        "<!-- Made by docs/smcr_conformance.py. -->",
        "# Conformance with SMC-R",
        "",
        f"{covered} of {len(points)} points have a test; each other one has the reason why not. "
        + ("What came out is behind each test. " if outcomes else "")
        + "The bytes are in [](../wire/smc-r.md).",
    ]
    for chapter in chapters:
        lines += [
            "",
            f"## {chapter['title']}",
            "",
            "| Point | Side | What it asks | Tests |",
            "| --- | --- | --- | --- |",
        ]
        for point in chapter["point"]:  # type: ignore[attr-defined]
            where = cell(tests[point["number"]], outcomes) if tests.get(point["number"]) else ""
            for key, words in (("missing", "not covered"), ("open", "not shown")):
                if point.get(key):
                    where += f"{'<br>' if where else ''}{words}: {point[key]}"
            lines.append(f"| {point['number']} | {SIDES[point['side']]} | {point['what']} | {where} |")
    return "\n".join(lines) + "\n"


def main(what: str, reports: list[str] | None = None) -> int:
    """Check, and for ``write`` make the page; 0 if nothing is wrong."""
    chapters = tomllib.loads(POINTS.read_text(encoding="utf-8"))["chapter"]
    tests = collect(ROOT)
    wrong = problems(chapters, tests)
    for line in wrong:
        print(f"smcr_conformance: {line}", file=sys.stderr)
    if not wrong and what == "write":
        found = [Path(r) for r in reports] if reports else [report for report in LEFT if report.exists()]
        PAGE.write_text(page(chapters, tests, results(found)), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("check", "write") or (sys.argv[1] == "check" and len(sys.argv) > 2):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
