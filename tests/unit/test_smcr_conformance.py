# SPDX-License-Identifier: MIT OR Apache-2.0
"""The list of points of SMC-R and the tests that name them: what the check finds, and that the project passes it."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "smcr_conformance.py"))


def project(folder: Path, python: str = "", c: str = "") -> Path:
    (folder / "tests" / "native").mkdir(parents=True)
    (folder / "tests" / "test_a.py").write_text(python.replace("@", "@pytest.mark."))
    (folder / "tests" / "native" / "test_smc_a.c").write_text(c)
    return folder


def chapters(**reasons: str) -> list[dict[str, object]]:
    points = [{"number": n, "side": "B", "what": "it works"} for n in range(1, 100)]
    for point in points:
        point["missing"] = reasons.get(f"p{point['number']}", "later")
    return [{"title": "All", "point": points}]


def test_tests_name_their_points(tmp_path: Path) -> None:
    python = "@smcr(1, 2)\ndef test_a(): ...\n\nclass A:\n    @smcr(2)\n    @other\n    async def test_b(self): ...\n"
    tests = SCRIPT["collect"](
        project(tmp_path, python, 'ok(1, "points 3, 99: both"); ok(1, "point 4: one"); /* point 5 */')
    )
    assert {n: [str(t) for t in found] for n, found in tests.items()} == {
        1: ["`tests/test_a.py` test_a"],
        2: ["`tests/test_a.py` test_a", "`tests/test_a.py` test_b"],
        3: ["`tests/native/test_smc_a.c`"],
        4: ["`tests/native/test_smc_a.c`"],
        99: ["`tests/native/test_smc_a.c`"],
    }


def test_a_point_has_a_test_or_a_reason_and_not_both(tmp_path: Path) -> None:
    tests = SCRIPT["collect"](project(tmp_path, "@smcr(1, 2, 100)\ndef test_a(): ...\n"))
    assert SCRIPT["problems"](chapters(p1="", p3=""), tests) == [
        "point 2: has a test (tests/test_a.py) and a reason to have none",
        "point 3: neither a test nor a reason to have none",
        "tests/test_a.py: there is no point 100",
    ]


def test_the_page_says_what_came_out(tmp_path: Path) -> None:
    tests = SCRIPT["collect"](project(tmp_path, "@smcr(1)\ndef test_a(): ...\n"))
    report = tmp_path / "r.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="test_a[1]"/>'
        '<testcase classname="tests.test_a" name="test_a[2]"><skipped message="needs root"/></testcase>'
        "</testsuite></testsuites>"
    )
    page = SCRIPT["page"](chapters(p1=""), tests, SCRIPT["results"]([report]))
    assert "1 of 99 points have a test" in page
    assert "| 1 | both | it works | `tests/test_a.py` test_a: passed, skipped |" in page
    assert "| 2 | both | it works | not covered: later |" in page


def test_the_page_says_what_came_out_of_a_program_in_c(tmp_path: Path) -> None:
    tests = SCRIPT["collect"](project(tmp_path, c='ok(1, "point 1: one");'))
    report = tmp_path / "r.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="exs.native - exs:smc_a" name="1 - point 1: one"/>'
        '<testcase classname="exs.native - exs:smc_a" name="2 - more"><failure/></testcase>'
        "</testsuite></testsuites>"
    )
    page = SCRIPT["page"](chapters(p1=""), tests, SCRIPT["results"]([report]))
    assert "| 1 | both | it works | `tests/native/test_smc_a.c`: failed, passed |" in page


def test_the_page_says_what_a_test_does_not_show(tmp_path: Path) -> None:
    tests = SCRIPT["collect"](project(tmp_path, "@smcr(1)\ndef test_a(): ...\n"))
    points = chapters(p1="")
    points[0]["point"][0]["open"] = "with Linux"
    assert SCRIPT["problems"](points, tests) == []
    assert "`tests/test_a.py` test_a<br>not shown: with Linux |" in SCRIPT["page"](points, tests, {})
    points[0]["point"][1]["open"] = "with Linux"
    assert len(SCRIPT["problems"](points, tests)) == 1


def test_the_project_passes() -> None:
    points = tomllib.loads((ROOT / "tests" / "conformance" / "points.toml").read_text())["chapter"]
    assert SCRIPT["problems"](points, SCRIPT["collect"](ROOT)) == []
