# SPDX-License-Identifier: MIT OR Apache-2.0
"""tests/native/test_verbs_pair.c: the verbs device against the contract of its table, on each kind of adapter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "build/native-lab/tests/native/test_verbs_pair"


@pytest.mark.parametrize("host", ["10.77.0.1", "10.78.0.1"], ids=["rxe", "siw"])
def test_the_verbs_device_keeps_its_contract(host: str) -> None:
    assert PROGRAM.exists(), "build it outside, as make lab does"
    done = subprocess.run([PROGRAM, host], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") > 50
