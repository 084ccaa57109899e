# SPDX-License-Identifier: MIT OR Apache-2.0
"""The command ``exs``: each command is in a module of its own, imported when it is called.

Exit codes: 0 all is well; 1 some of it failed; 2 the command line is wrong; 3 no connection; 130 Ctrl-C.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def version() -> str:
    """The version of the installed package."""
    from importlib import metadata

    try:
        return metadata.version("exs")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def compiler_flags(*, cflags: bool, libs: bool) -> list[str]:
    """What a C program needs that uses the ES-API: arguments for the compiler, for the linker, or both."""
    package = Path(__file__).resolve().parent.parent
    flags = [f"-I{package / 'include'}"] if cflags else []
    return flags + ([str(package / "lib" / "libexs.a"), "-pthread"] if libs else [])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments; those of the process by default.

    Returns:
        The exit code.
    """
    from exs.cli.arguments import make_parser

    parser = make_parser()
    try:
        args = parser.parse_args(argv)
        if args.version:
            print(f"exs {version()}")
            return 0
        if args.cflags or args.libs:
            print(*compiler_flags(cflags=args.cflags, libs=args.libs))
            return 0
        if args.command is None:
            parser.print_help()
            return 2
        run = getattr(importlib.import_module(f"exs.cli.{args.module}"), args.function)
        return int(run(args))
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        return 130
    except ValueError as error:
        print(f"exs: {error}", file=sys.stderr)
        return 2
