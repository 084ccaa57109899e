# SPDX-License-Identifier: MIT OR Apache-2.0
"""The lab's command line: ``python tests/lab/run.py test|exec|shell|setup``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import guest
import kernel
import packages
import pair
import suites


def default_venv() -> Path:
    """The environment that this program runs in, or the project's."""
    project = kernel.ROOT / ".venv"
    return Path(sys.prefix) if sys.prefix != sys.base_prefix or not project.exists() else project


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tests/lab/run.py", description="virtual machines with soft-RoCE and soft-iWARP")
    verbs = top.add_subparsers(dest="verb", required=True)
    verbs.add_parser("setup", help="packages, kernel and modules; boots nothing")
    everything = suites.SUITES + suites.ON_REQUEST
    test = verbs.add_parser("test", help="pytest in guests; further arguments are pytest's")
    test.add_argument("--venv", type=Path, default=default_venv(), help="whose pytest and exs (%(default)s)")
    test.add_argument("--only", action="append", choices=[s.name for s in everything], help="this suite")
    for name, what in (("exec", "run one command in a guest"), ("shell", "a shell in a guest")):
        one = verbs.add_parser(name, help=what)
        one.add_argument("--venv", type=Path, default=default_venv(), help="whose programs come first (%(default)s)")
        one.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
        one.add_argument("--timeout", type=float, default=600.0, help="seconds until the guest is switched off")
        one.add_argument("--cpus", type=int, default=2)
        one.add_argument("--memory", type=int, default=2560, metavar="MIB")
        one.add_argument("--smc", action="store_true", help="load the kernel's SMC-R too")
        if name == "exec":
            one.add_argument("--pair", action="store_true", help="two guests: the command runs in the first (agent.py)")
            one.add_argument("command", nargs="+")
    return top


def settings(given: list[str]) -> dict[str, str]:
    """The guest's environment: what exs reads from ours, and what was given."""
    ours = {k: v for k, v in os.environ.items() if k.startswith("EXS_") and k != "EXS_LAB_CACHE"}
    return {**ours, **dict(g.split("=", 1) for g in given)}


def one_job(options: argparse.Namespace) -> int:
    shell = options.verb == "shell"
    job = guest.Job(
        command=["/bin/bash", "-i"] if shell else options.command,
        env={"TERM": os.environ.get("TERM", "dumb"), **settings(options.env)},
        venv=options.venv.absolute(),
        cwd=Path.cwd(),
        timeout=86400.0 if shell else options.timeout,
    )
    shape = guest.Shape(options.cpus, options.memory, options.smc)
    machine: guest.Guest | pair.Pair
    if not shell and options.pair:
        machine = pair.Pair(kernel.ensure(), job, shape)
    else:
        machine = guest.Guest(kernel.ensure(), job, shape=shape, interactive=shell)
    try:
        status = machine.wait()
    finally:
        machine.kill()
        if shell and sys.stdin.isatty():
            subprocess.run(["stty", "sane"], check=False)
    machine.discard()
    return status


def one_suite(suite: suites.Suite, venv: Path, arguments: list[str], *, echo: bool = True) -> suites.Verdict:
    """Boot what it takes, run it, look at its report; without ``echo`` its output is shown when it is over."""
    title = f"\n=== lab: {suite.name} on {suite.device or 'every device'}, {suite.guests} guest(s)"
    if echo:
        print(title, flush=True)
    report = guest.BUILD / f"{suite.name}.xml"
    report.unlink(missing_ok=True)
    command = suites.pytest_command(suite, Path("/var/tmp/junit.xml"), arguments)
    # A shell around it: the report is made in the guest's memory, and brought out whole.
    shell = '"$@"; status=$?; cp /var/tmp/junit.xml "$EXS_LAB_JOB/"; exit $status'
    job = guest.Job(
        command=["sh", "-c", shell, "pytest", *command],
        env=suites.environment(suite),
        venv=venv,
        timeout=60 * suite.minutes,
    )
    start = time.monotonic()
    found = kernel.ensure()
    shape = guest.Shape(smc=suite.smc)
    machine = pair.Pair(found, job, shape) if suite.guests == 2 else guest.Guest(found, job, shape=shape, echo=echo)
    try:
        status = machine.wait()
        made = machine.folder / "junit.xml"
        if made.exists():
            report.write_bytes(made.read_bytes())
    except guest.Failed as problem:
        print(f"lab: {problem}", flush=True)
        return suites.Verdict(suite.name, time.monotonic() - start, problems=[str(problem).partition(";")[0]])
    finally:
        machine.kill()
        said = machine.folder / "output"
        if not echo and said.exists():
            print(title + "\n" + said.read_text(errors="replace"), flush=True)
    machine.discard()
    text = report.read_text() if report.exists() else None
    return suites.judge(suite, status, text, time.monotonic() - start, partly=bool(arguments))


def compile_tests(venv: Path) -> None:
    """Leave the tests' bytecode beside them: a guest, which can keep none, would take a minute at each boot."""
    drop = ("PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
    env = {k: v for k, v in os.environ.items() if k not in drop}
    env |= {"EXS_LAB": "1", "EXS_TEST_DEVICE": "verbs/rxe", "PYTHONSAFEPATH": "1"}
    command = [venv / "bin" / "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", *suites.EVERY_TEST]
    # Whatever is wrong with them, a guest will say.
    subprocess.run(command, cwd=kernel.ROOT, env=env, stdout=subprocess.DEVNULL, check=False)


def test(options: argparse.Namespace, arguments: list[str]) -> int:
    """Every suite, single guests two at a time, and a table."""
    everything = suites.SUITES + suites.ON_REQUEST
    chosen = [s for s in everything if s.name in options.only] if options.only else list(suites.SUITES)
    venv = options.venv.absolute()
    compile_tests(venv)
    singles = [s for s in chosen if s.guests == 1]
    verdicts: list[suites.Verdict] = []
    if len(singles) > 1:
        # A guest keeps little more than one core busy: two at a time.
        kernel.ensure()
        print(
            f"\n=== lab: {', '.join(s.name for s in singles)}, two guests at a time; each is shown at its end",
            flush=True,
        )
        with ThreadPoolExecutor(2) as two:
            verdicts += two.map(lambda s: one_suite(s, venv, arguments, echo=False), singles)
        chosen = [s for s in chosen if s.guests != 1]
    verdicts += [one_suite(suite, venv, arguments) for suite in chosen]
    print("\n=== lab")
    for verdict in verdicts:
        print(verdict)
    passed = sum(v.passed for v in verdicts)
    failed = sum(v.failed + len(v.problems) for v in verdicts)
    print(f"{passed} passed, {failed} failed, {sum(v.skipped for v in verdicts)} skipped", flush=True)
    return 0 if passed and not failed else 1


def main() -> int:
    options, rest = parser().parse_known_args()
    if rest and options.verb != "test":
        parser().error(f"unknown: {' '.join(rest)}")
    try:
        packages.ensure()
        if options.verb == "setup":
            print(f"lab: kernel {kernel.ensure().release} in {kernel.CACHE}")
            return 0
        if options.verb == "test":
            return test(options, rest)
        return one_job(options)
    except (packages.Missing, guest.Failed) as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
