# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every test here that takes ``options`` runs on each path and in each progress mode; all waits are bounded."""

from __future__ import annotations

import pytest

import exs

PATHS = ("shm-vm", "shm-ring", "tcp")
MODES = ("inline", "thread")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "options" in metafunc.fixturenames:
        cases = [(path, mode) for path in PATHS for mode in MODES]
        metafunc.parametrize("options", cases, ids=[f"{p}-{m}" for p, m in cases], indirect=True)
    elif "path" in metafunc.fixturenames:
        metafunc.parametrize("path", PATHS)


@pytest.fixture
def options(request: pytest.FixtureRequest) -> exs.Options:
    path, mode = request.param
    return exs.Options(path=path, progress=mode, close_timeout=2.0)
