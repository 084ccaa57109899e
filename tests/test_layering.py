# SPDX-License-Identifier: MIT OR Apache-2.0
"""Arrows point one way: each folder of the core includes only folders to its left, and exs imports likewise.

The Python half is an import-linter contract in pyproject.toml, run here so that `make test` sees it too.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"

# Left may not include right.  A name is a folder below native/, or a file of its own.
ORDER = ["include", "base", "wire", "device", "core", "engine", "sock", "api", "esapi"]
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def layer_of(path: str) -> str:
    top = path.split("/", 1)[0]
    return {"exs.h": "include", "exs.csrc.c": "esapi"}.get(top, top)


def sources() -> list[Path]:
    return sorted(p for p in NATIVE.rglob("*.[ch]") if p.name != "exs.cdef.h")


@pytest.mark.parametrize("source", sources(), ids=lambda p: str(p.relative_to(NATIVE)))
def test_a_file_includes_only_folders_to_its_left(source: Path) -> None:
    here = source.relative_to(NATIVE).as_posix()
    for name in INCLUDE.findall(source.read_text()):
        target = (
            name if "/" in name or name in ORDER or name == "exs.h" else f"{source.parent.relative_to(NATIVE)}/{name}"
        )
        assert layer_of(target) in ORDER, f"{here} includes {name}, which is in no layer"
        assert ORDER.index(layer_of(target)) <= ORDER.index(layer_of(here)), f"{here} includes {name} to its right"


@pytest.mark.parametrize("source", sources(), ids=lambda p: str(p.relative_to(NATIVE)))
def test_a_device_is_known_only_to_the_registry(source: Path) -> None:
    here = source.relative_to(NATIVE).as_posix()
    for name in INCLUDE.findall(source.read_text()):
        if name.startswith(("device/soft/", "device/verbs/")):
            folder = name.rsplit("/", 1)[0]
            assert here.startswith(folder) or here == "device/registry.c", f"{here} includes {name}"
        if here.startswith("device/"):
            assert layer_of(name) in ("base", "wire", "device"), f"{here} includes {name}"


@pytest.mark.parametrize("source", sorted((NATIVE / "engine").glob("*.[ch]")), ids=lambda p: p.name)
def test_engines_do_not_know_each_other_or_a_device(source: Path) -> None:
    family = source.stem.split("_")[0]
    for name in INCLUDE.findall(source.read_text()):
        if name.startswith("engine/"):
            other = Path(name).stem
            assert other in ("engine", "flow") or other.split("_")[0] == family, f"{source.name} includes {name}"
        assert not name.startswith("device/soft"), f"{source.name} includes {name}"


@pytest.mark.parametrize("source", sources(), ids=lambda p: str(p.relative_to(NATIVE)))
def test_files_stay_readable_in_an_evening(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= 600


def test_python_imports_point_left() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_native_imports_the_extension() -> None:
    users = [p for p in (ROOT / "exs").rglob("*.py") if re.search(r"\b_exs\b", p.read_text())]
    assert {p.parent for p in users} == {ROOT / "exs/_native"}
