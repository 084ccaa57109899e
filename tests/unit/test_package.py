# SPDX-License-Identifier: MIT OR Apache-2.0
"""The package as such: what an import does not do, what is public, what is installed."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import exs

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "exs"
INSTALLED = Path(exs.__file__).parent


def test_an_import_opens_nothing_and_starts_nothing(run_python) -> None:
    done = run_python(
        """
import os, signal, sys, threading, trio
def state():
    return (sorted(os.listdir("/proc/self/fd")), os.listdir("/proc/self/task"), threading.active_count(),
            [signal.getsignal(s) for s in signal.Signals], len(open("/proc/self/environ").read()))
before = state()
import atexit, logging
handlers = list(logging.getLogger().handlers)
exits = atexit._ncallbacks()
import exs, exs.esapi
assert state() == before, (before, state())
assert atexit._ncallbacks() == exits
assert logging.getLogger().handlers == handlers
assert exs._native.process._current is None
maps = open("/proc/self/maps").read()
assert "ibverbs" not in maps and "rdmacm" not in maps
for name in ("rich", "xxhash", "argparse", "numpy", "exs.cli", "exs.testing"):
    assert name not in sys.modules, name
"""
    )
    assert done.returncode == 0, done.stderr


def test_the_folder_of_the_source_says_what_it_is() -> None:
    """A newcomer who starts Python there finds the source before what was installed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import exs"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {SOURCE} is the source of exs")


def test_what_an_import_adds_is_small(run_python) -> None:
    """The number of modules stands for the time, which a loaded machine does not measure."""
    done = run_python(
        """
import sys, trio
before = set(sys.modules)
import exs
print(*sorted(m for m in set(sys.modules) - before if not m.startswith("exs")))
"""
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) <= 10, done.stdout


def test_the_version_stands_in_one_place() -> None:
    (version,) = re.findall(r"^\s*version: '([^']+)'", (ROOT / "meson.build").read_text(), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    if INSTALLED != SOURCE:
        assert importlib.metadata.version("exs") == version


def test_all_is_what_is_imported_and_sorted() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    imported = {a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert set(exs.__all__) == imported - {"annotations"}
    for name in exs.__all__:
        assert not name.startswith("_")
        assert getattr(exs, name) is not None


def test_the_modules_hold_the_names_that_the_package_shows() -> None:
    for module in ("devices", "errors", "memory", "api", "queues", "streams", "messages"):
        for name in importlib.import_module(f"exs.{module}").__all__:
            if not name.startswith("_") and name in exs.__all__:
                assert getattr(exs, name) is getattr(importlib.import_module(f"exs.{module}"), name)


def test_every_source_file_is_installed() -> None:
    listed: set[str] = set()
    for build in SOURCE.rglob("meson.build"):
        for files, folder in re.findall(r"install_sources\(([^)]*?)subdir: '(exs[^']*)'", build.read_text()):
            here = ROOT / folder
            listed |= {
                (here / name.split("/")[-1]).relative_to(ROOT).as_posix() for name in re.findall(r"'([^']+)'", files)
            }
    sources = [f for f in SOURCE.rglob("*") if f.suffix in (".py", ".pyi", ".typed") or f.name == "py.typed"]
    assert len(sources) > 30
    for file in sources:
        name = file.relative_to(ROOT).as_posix()
        assert name in listed, f"{name} is in no meson.build"
        assert (INSTALLED.parent / name).exists(), f"{name} is not installed"


@pytest.mark.skipif(INSTALLED == SOURCE, reason="needs the installed package")
def test_header_and_library_are_in_the_package() -> None:
    assert (INSTALLED / "include" / "exs.h").read_text() == (ROOT / "native/include/exs.h").read_text()
    assert (INSTALLED / "lib" / "libexs.a").read_bytes()[:8] == b"!<arch>\n"
    (extension,) = INSTALLED.glob("_exs*.so")
    assert extension.name == "_exs.abi3.so"


def test_every_file_begins_with_its_licence() -> None:
    for file in [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.pyi"), *(ROOT / "tests").rglob("*.py")]:
        assert file.read_text().startswith("# SPDX-License-Identifier: MIT OR Apache-2.0\n"), file
    for file in [*(ROOT / "native").rglob("*.[ch]"), *(ROOT / "tests").rglob("*.[ch]")]:
        assert "SPDX-License-Identifier: MIT OR Apache-2.0" in file.read_text().split("\n", 1)[0], file


def test_modules_begin_with_what_they_own() -> None:
    for file in SOURCE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), file
