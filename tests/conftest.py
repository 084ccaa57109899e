# SPDX-License-Identifier: MIT OR Apache-2.0
"""What all suites share: the environment of options, processes that tests start, and what must not be left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import ground
import preloaded
import pytest
from hypothesis import HealthCheck, settings

from exs import _config

ROOT = Path(__file__).resolve().parent.parent

# How fast an example is made or runs is no property of ours, and this machine may be busy.
settings.register_profile("exs", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("exs")

Setenv = Callable[..., None]


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test depends on the EXS_ variables of who runs it."""
    for name in _config.variables():
        monkeypatch.delenv(name, raising=False)
    if ground.VERBS:
        monkeypatch.setenv("EXS_DEVICE", "verbs")
    _config.environment.cache_clear()
    yield
    _config.environment.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _processes() -> Iterator[None]:
    """On an emulated machine, most of a test with a process would be the start of Python."""
    with preloaded.processes() if ground.SMALL else contextlib.nullcontext():
        yield


@pytest.fixture(scope="session", autouse=True)
def _thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _freeze(_thaw: None) -> None:
    """Each look for leaks collects garbage: that of its test, without a walk through all that pytest has made."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def setenv(monkeypatch: pytest.MonkeyPatch) -> Setenv:
    """Set EXS_ variables for this test: ``setenv(EXS_PATH="tcp")``."""

    def change(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        _config.environment.cache_clear()

    return change


def open_fds() -> dict[int, str]:
    """The open descriptors of this process, and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Fail the test if it leaves a descriptor or a thread behind.  Warm up what stays open for good before using it."""
    gc.collect()
    before, threads = open_fds(), set(threading.enumerate())
    yield
    gc.collect()
    after = open_fds()
    assert {fd: what for fd, what in after.items() if fd not in before} == {}
    assert set(threading.enumerate()) <= threads


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code in a process of its own, warnings as errors, in an empty folder."""

    def run(code: str, *args: str, timeout: float = 20, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *args],
            cwd=tmp_path,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
