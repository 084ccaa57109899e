# SPDX-License-Identifier: MIT OR Apache-2.0
"""The list of clauses and the anchors in the source: what the check finds, and that the project passes it."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "conformance.py"
CLAUSES = """
[[standard]]
name = "RFC 1111"
title = "MPA"
clause = [
    { id = "§4.4", what = "CRC" },
    { id = "§7.1.2", what = "start" },
    { id = "§6", what = "gaps", exception = "none" },
]

[[standard]]
name = "ES-API"
title = "the interface"
clause = [{ id = "exs_send", what = "send" }, { id = "I2", what = "no loss" }]
"""
GOOD = """
/* The CRC.  RFC 1111 §4.4,
 * §7.1.2; RFC 9999 §1 is none of ours, RFC 1111 §7.1 is said in passing. */
/* @ I2 */
EXS_API long exs_send(int fd);
""".replace("@", "ES-API")  # no anchors of this file


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run the check over a project of one C file; its result and the page."""
    script: dict[str, Any] = runpy.run_path(str(SCRIPT))

    def run(code: str, tests: str = "") -> tuple[int, str]:
        for folder, text in (("native", code), ("tests", tests)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "a.c").write_text(text)
        names = script["main"].__globals__
        names.update(ROOT=tmp_path, CLAUSES=tmp_path / "clauses.toml", PAGE=tmp_path / "page.md")
        (tmp_path / "clauses.toml").write_text(CLAUSES)
        (tmp_path / "page.md").write_text("")
        return script["main"]("write"), (tmp_path / "page.md").read_text()

    return run


def test_every_clause_with_code_or_a_reason_is_on_the_page(check) -> None:
    result, page = check(GOOD, "/* RFC 1111 §4.4 */ exs_send(1);")
    assert result == 0
    assert "| §4.4 | CRC | `native/a.c` | `tests/a.c` |" in page
    assert "| §7.1.2 | start | `native/a.c` | - |" in page
    assert "| §6 | gaps | not done: none | - |" in page
    assert "| exs_send | send | `native/a.c` | `tests/a.c` |" in page


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (GOOD.replace("§4.4", "§7.1.2"), "RFC 1111 §4.4: neither code nor a reason to have none"),
        (GOOD.replace("I2", "the second"), "I2: neither code nor a reason"),
        (GOOD.replace("exs_send", "exs_sent"), "ES-API exs_send: neither code nor a reason"),
        (GOOD + "/* RFC 1111 §4.5 */", "RFC 1111 §4.5: native/a.c: an anchor of no listed clause"),
        (GOOD + "/* @ I20 */".replace("@", "ES-API"), "I20: native/a.c: an anchor of no listed clause"),
        (GOOD + "/* RFC 1111 §6 */", "RFC 1111 §6: has code (native/a.c) and a reason to have none"),
    ],
)
def test_what_is_wrong_is_said_and_no_page_is_made(
    check, capsys: pytest.CaptureFixture[str], code: str, said: str
) -> None:
    result, page = check(code)
    assert (result, page) == (1, "")
    assert said in capsys.readouterr().err


def test_a_test_alone_is_no_code(check, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(GOOD.replace("§4.4", "§7.1.2"), "/* RFC 1111 §4.4 */")[0] == 1
    assert "RFC 1111 §4.4" in capsys.readouterr().err


def test_this_project_passes() -> None:
    assert runpy.run_path(str(SCRIPT))["main"]("check") == 0
