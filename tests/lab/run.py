# SPDX-License-Identifier: MIT OR Apache-2.0
"""The lab's command line: ``python tests/lab/run.py exec -- CMD...``, ``shell``, ``setup``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import guest
import kernel
import packages
import pair


def default_venv() -> Path:
    """The environment that this program runs in, or the project's."""
    project = kernel.ROOT / ".venv"
    return Path(sys.prefix) if sys.prefix != sys.base_prefix or not project.exists() else project


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="tests/lab/run.py", description="virtual machines with soft-RoCE and soft-iWARP")
    verbs = top.add_subparsers(dest="verb", required=True)
    verbs.add_parser("setup", help="packages, kernel and modules; boots nothing")
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


def main() -> int:
    options = parser().parse_args()
    try:
        packages.ensure()
        if options.verb == "setup":
            print(f"lab: kernel {kernel.ensure().release} in {kernel.CACHE}")
            return 0
        return one_job(options)
    except (packages.Missing, guest.Failed) as problem:
        print(f"lab: {problem}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
