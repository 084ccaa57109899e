# SPDX-License-Identifier: MIT OR Apache-2.0
"""Run a ring of checks and say what ran: ``python tests/run.py test|lint [--only STEP]``.

Owns the order of the steps and the rule that an empty run is a failure: every suite must have executed at least
the tests that it had when this was written, and a skip must carry a reason that is listed below.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
BIN = Path(sys.executable).parent

# A skip for any other reason is a failure: it would hide a suite that does not run.
ALLOWED_SKIPS = (
    r"needs root",
    r"needs tshark",
    r"hard limit of open files",
    r"needs Python 3\.\d+",
    r"no huge pages",
    r"verbs",
)

SANITIZERS = {
    "native": [],
    "native-asan": ["-Db_sanitize=address,undefined", "-Db_lundef=false"],
    "native-tsan": ["-Db_sanitize=thread", "-Db_lundef=false"],
}


@dataclass
class Report:
    """What the steps did, for the closing table."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    lines: list[str] = field(default_factory=list)

    def add(self, name: str, passed: int, failed: int, skipped: int, seconds: float) -> None:
        self.passed += passed
        self.failed += failed
        self.skipped += skipped
        self.lines.append(f"  {name:<16} {passed:>5} passed {failed:>4} failed {skipped:>4} skipped {seconds:>7.1f} s")


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def call(*command: str | Path, **env: str) -> int:
    """Run one program from the root of the project, with this environment's programs first."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    done = subprocess.run([str(c) for c in command], cwd=ROOT, env={**os.environ, "PATH": path, **env}, check=False)
    return done.returncode


def checked(report: Report, name: str, *command: str | Path, **env: str) -> None:
    """A step that passes or fails as a whole."""
    say(f"{name}: {' '.join(map(str, command))}")
    start = time.monotonic()
    code = call(*command, **env)
    report.add(name, int(code == 0), int(code != 0), 0, time.monotonic() - start)


def junit(report: Report, name: str, file: Path, code: int, seconds: float, least: int) -> None:
    """Count a suite from its own report, and hold it to its least number of tests and its allowed skips."""
    if not file.exists():
        print(f"{name}: no report was written (exit status {code})", flush=True)
        report.add(name, 0, 1, 0, seconds)
        return
    cases = list(ET.parse(file).getroot().iter("testcase"))
    skips = [s.get("message") or s.text or "" for c in cases for s in c.iter("skipped")]
    log = file.with_name("testlog.txt")
    if log.exists():  # of meson, whose report leaves the reasons out
        said = re.findall(r"^(?:ok \d+|1\.\.0).*# SKIP (.*)$", log.read_text(errors="replace"), re.MULTILINE)
        skips = said + ["no reason"] * (len(skips) - len(said))
    failed = sum(1 for c in cases if c.find("failure") is not None or c.find("error") is not None)
    passed = len(cases) - failed - len(skips)
    strange = sorted({s for s in skips if not any(re.search(a, s) for a in ALLOWED_SKIPS)})
    for reason in strange:
        print(f"{name}: skipped for a reason that is not allowed: {reason}", flush=True)
    if passed < least:
        print(f"{name}: {passed} tests passed, fewer than the {least} it is known to have", flush=True)
    bad = failed + len(strange) + int(passed < least) + int(code != 0 and not failed)
    report.add(name, passed, bad, len(skips), seconds)


def native(report: Report, name: str) -> None:
    """Build and run the TAP programs, plain or under sanitizers."""
    say(f"{name}: meson test")
    start = time.monotonic()
    where = BUILD / name
    file = where / "meson-logs" / "testlog.junit.xml"
    file.unlink(missing_ok=True)
    again = ["--reconfigure"] if (where / "build.ninja").exists() else []
    code = call("meson", "setup", *again, where, "-Dwerror=true", *SANITIZERS[name])
    if code == 0:
        env = {
            "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            "TSAN_OPTIONS": f"halt_on_error=1:suppressions={ROOT}/tests/native/tsan.supp",
        }
        scale = [] if name == "native" else ["--timeout-multiplier", "4"]
        code = call("meson", "test", "-C", where, "--print-errorlogs", *scale, **env)
    junit(report, name, file, code, time.monotonic() - start, least=2000)


def install(report: Report) -> None:
    """The package as a user gets it, into this environment."""
    checked(
        report, "install", BIN / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ".[cli]"
    )


def python(report: Report) -> None:
    """Every pytest suite, against the installed package."""
    say("pytest")
    start = time.monotonic()
    file = BUILD / "pytest.xml"
    file.unlink(missing_ok=True)
    # The folder exs here has no extension: the installed package is meant, also in the processes that tests start.
    code = call(BIN / "pytest", "-ra", "-q", "--junitxml", file, "tests", PYTHONSAFEPATH="1")
    junit(report, "pytest", file, code, time.monotonic() - start, least=2000)


def typing(report: Report) -> None:
    """What users' type checkers see."""
    checked(report, "verifytypes", BIN / "pyright", "--ignoreexternal", "--verifytypes", "exs")
    checked(report, "mypy", BIN / "mypy", "--strict", "exs", "tests/typing")
    checked(report, "pyright", BIN / "pyright")


def format_c(report: Report) -> None:
    files = [str(p.relative_to(ROOT)) for d in ("native", "tests", "examples") for p in (ROOT / d).rglob("*.[ch]")]
    files = [f for f in files if "cdef" not in f]
    checked(report, "clang-format", BIN / "clang-format", "--dry-run", "-Werror", *files)


def compilers(report: Report) -> None:
    """Both compilers, warnings as errors, no build of the Python module."""
    for cc in ("gcc", "clang"):
        if not shutil.which(cc):
            print(f"{cc} is not installed: its warnings are not checked here (CI has it)", flush=True)
            if os.environ.get("CI"):
                report.add(cc, 0, 1, 0, 0.0)
            continue
        where = BUILD / f"lint-{cc}"
        again = ["--reconfigure"] if (where / "build.ninja").exists() else []
        say(f"{cc}: warnings are errors")
        start = time.monotonic()
        code = call("meson", "setup", *again, where, "-Dwerror=true", CC=cc)
        code = code or call("ninja", "-C", where, "all", "meson-test-prereq")
        report.add(cc, int(code == 0), int(code != 0), 0, time.monotonic() - start)


def lint_python(report: Report) -> None:
    checked(report, "ruff", BIN / "ruff", "check", ".")
    checked(report, "ruff format", BIN / "ruff", "format", "--check", ".")
    checked(report, "import-linter", BIN / "lint-imports", "--no-cache")
    checked(report, "conformance", BIN / "python", "docs/conformance.py", "check")
    checked(report, "smcr conformance", BIN / "python", "docs/smcr_conformance.py", "check")


STEPS: dict[str, list[Callable[[Report], None]]] = {
    "test": [
        install,
        python,
        lambda r: native(r, "native"),
        lambda r: native(r, "native-asan"),
        lambda r: native(r, "native-tsan"),
        typing,
    ],
    "lint": [lint_python, format_c, compilers],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("ring", choices=STEPS)
    ring = parser.parse_args().ring
    BUILD.mkdir(exist_ok=True)
    report = Report()
    for step in STEPS[ring]:
        step(report)
    say(f"make {ring}")
    print("\n".join(report.lines))
    print(f"{report.passed} passed, {report.failed} failed, {report.skipped} skipped", flush=True)
    return 1 if report.failed or not report.passed else 0


if __name__ == "__main__":
    sys.exit(main())
