# SPDX-License-Identifier: MIT OR Apache-2.0
from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import exs
from exs import _native

NATIVE = Path(__file__).resolve().parents[2] / "native"


def test_python_and_the_core_count_the_same_things() -> None:
    names = [f.name for f in fields(exs.Statistics)]
    assert sorted(_native.context().statistics()) == sorted(names)
    declared = re.findall(r"^\s*X\((\w+)\)", (NATIVE / "base/stats.h").read_text(), re.MULTILINE)
    assert declared == names


def test_a_snapshot_is_whole_numbers_that_never_fall() -> None:
    first, second = exs.statistics(), exs.statistics()
    for field in fields(exs.Statistics):
        before, after = getattr(first, field.name), getattr(second, field.name)
        assert isinstance(before, int)
        assert 0 <= before <= after
