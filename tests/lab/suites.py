# SPDX-License-Identifier: MIT OR Apache-2.0
"""What ``make lab`` runs: which tests, on which device, in how many guests; and the verdict on their reports.

An empty run is a failure: a suite that selects no test fails unless somebody asked for a part of it by ``-k``.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# A skip for any other reason would hide tests that do not run.
ALLOWED_SKIPS = (r"hard limit of open files", r"needs Python 3\.\d+", r"no huge pages", r"needs root", r"^about soft: ")
NO_TESTS = 5
"""The exit status of pytest when it has selected none."""


@dataclass(frozen=True)
class Suite:
    """One run of pytest in a guest."""

    name: str
    device: str
    tests: Sequence[str]
    least: int
    """It has at least so many tests."""
    guests: int = 1
    minutes: float = 12.0
    smc: bool = False
    """With the kernel's SMC-R."""


EVERY_TEST = ("tests/integration", "tests/lab")
ON_SOFT = {"hostile_iwarp", "hostile_rendezvous", "hostile_shm", "tshark", "wire_iwarp"}
SMC = {"smc_agreement", "smc_ends", "smc_option", "smc_status", "smc_streams"}
"""SMC-R on a device other than soft is looked at with the kernel as the peer."""


def _files(names: Iterable[str]) -> list[str]:
    return [f"tests/integration/test_{name}.py" for name in names]


SMOKE = _files(("sockets", "streams", "zero_copy"))
VERBS = SMOKE + _files(
    ["queues", "runs", "faults", "wire", "hostile", "hostile_verbs", "endings", "many", "stream_contract"]
)
FILES = _files(("transfer",))
REST = ["tests/integration", *(f"--ignore={file}" for file in VERBS + FILES + _files(sorted(ON_SOFT | SMC)))]
"""A quarter of an hour more than a day allows: ``--only rxe-rest --only siw-rest``."""

PAIR = ("pair", "inventory", "memlock", "native", "iwarp", "disasters", "device")
"""In this order: the last ones take links and devices away, and a guest does not always get over that."""

WITH_KERNEL = ("kernel", "capture", "exs", "programs", "tutorial", "faults")

SUITES = (
    Suite("rxe", "verbs/rxe", VERBS, 320, minutes=30),
    Suite("siw", "verbs/siw", VERBS, 310, minutes=30),
    Suite("shm", "soft/shm", SMOKE, 80),
    Suite("tcp", "soft/tcp", SMOKE, 40),
    Suite("pair", "", [f"tests/lab/test_{name}.py" for name in PAIR], 60, guests=2, minutes=25),
    Suite("smc", "", [f"tests/lab/test_smc_{n}.py" for n in WITH_KERNEL], 62, guests=2, smc=True, minutes=25),
)
ON_REQUEST = (
    Suite("rxe-rest", "verbs/rxe", REST, 120, minutes=30),
    Suite("siw-rest", "verbs/siw", REST, 120, minutes=30),
    Suite("rxe-files", "verbs/rxe", FILES, 19, minutes=25),
    Suite("siw-files", "verbs/siw", FILES, 19, minutes=25),
)
"""Each of these tests starts up to eight programs of the command line: too long for every day, ``--only rxe-files``."""


def pytest_command(suite: Suite, report: Path, arguments: Sequence[str]) -> list[str]:
    """How pytest is called in the guest."""
    return [
        *("pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--timeout=240", "--tb=short", "--color=no"),
        f"--junitxml={report}",
        f"--override-ini=junit_suite_name={suite.name}",
        *suite.tests,
        *arguments,
    ]


def environment(suite: Suite) -> dict[str, str]:
    """What tells the tests where they are."""
    device = {"EXS_TEST_DEVICE": suite.device} if suite.device else {}
    return {**device, "EXS_TEST_SCALE": "small"}


@dataclass
class Verdict:
    """What a suite did."""

    name: str
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.failed and not self.problems

    def __str__(self) -> str:
        counts = f"{self.passed:>5} passed {self.failed:>4} failed {self.skipped:>4} skipped"
        return f"  {self.name:<8} {counts} {self.seconds:>7.1f} s" + "".join(f"\n    {p}" for p in self.problems)


def judge(suite: Suite, status: int, report: str | None, seconds: float, *, partly: bool) -> Verdict:
    """The verdict on a run.

    Args:
        suite: What was run.
        status: pytest's exit status.
        report: The text of its report, if it wrote one.
        seconds: How long it took.
        partly: Whether somebody asked for a part of the tests only.
    """
    verdict = Verdict(suite.name, seconds)
    if report is None:
        verdict.problems.append(f"no report was written (exit status {status})")
        return verdict
    cases = list(ET.fromstring(report).iter("testcase"))
    skips = [s.get("message") or s.text or "" for c in cases for s in c.iter("skipped")]
    verdict.failed = sum(1 for c in cases if c.find("failure") is not None or c.find("error") is not None)
    verdict.skipped = len(skips)
    verdict.passed = len(cases) - verdict.failed - verdict.skipped
    strange = sorted({s for s in skips if not any(re.search(a, s) for a in ALLOWED_SKIPS)})
    verdict.problems += [f"skipped for a reason that is not allowed: {reason}" for reason in strange]
    if partly:
        if status not in (0, NO_TESTS) and not verdict.failed:
            verdict.problems.append(f"pytest ended with status {status}")
        return verdict
    if verdict.passed < suite.least:
        verdict.problems.append(f"{verdict.passed} tests passed, fewer than the {suite.least} it is known to have")
    if status and not verdict.failed:
        verdict.problems.append(f"pytest ended with status {status}")
    return verdict
