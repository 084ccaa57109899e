# SPDX-License-Identifier: MIT OR Apache-2.0
"""A process that is a fork of a preloaded one (preloaded.py) is in nothing else different from one that was started."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import preloaded
import pytest

ENVIRONMENT = {"PATH": os.environ["PATH"], "PYTHONSAFEPATH": "1", "EXS_X": "ö", "LC_ALL": "C.UTF-8"}
TELL = """
import os, resource, signal, sys, warnings
print(__name__, sys.argv[1:], sys.argv[0] in ("-c", sys.argv[0]), sorted(os.environ), os.environ["EXS_X"], os.getcwd())
print(sorted(os.listdir("/proc/self/fd")), sys.path[0], sys.warnoptions, warnings.filters[0][0], sys.orig_argv)
print(os.getppid(), os.getsid(0) == os.getpid(), resource.getrlimit(resource.RLIMIT_NOFILE), sys.stdin.read())
print(signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGPIPE), sys.stdout.encoding, sys.stderr.errors)
print("err", file=sys.stderr)
import atexit, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: time.sleep(0.01) or print("thread")).start()
sys.exit(7)
"""


@pytest.fixture(scope="module")
def forks() -> Iterator[None]:
    with preloaded.processes():
        yield


@contextlib.contextmanager
def ordinarily() -> Iterator[None]:
    """Popen as it is."""
    ours = subprocess.Popen._execute_child  # type: ignore[attr-defined]
    subprocess.Popen._execute_child = ORDINARY  # type: ignore[attr-defined]
    try:
        yield
    finally:
        subprocess.Popen._execute_child = ours  # type: ignore[attr-defined]


ORDINARY = subprocess.Popen._execute_child  # type: ignore[attr-defined]


def is_fork(pid: int) -> bool:
    return b"preloaded.py" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.parametrize("how", ["code", "file", "module"])
@pytest.mark.parametrize("session", [False, True])
def test_it_finds_what_a_started_process_finds(forks: None, tmp_path: Path, how: str, session: bool) -> None:
    (tmp_path / "telling.py").write_text(TELL)
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    what = {"code": ["-c", TELL], "file": [str(tmp_path / "telling.py")], "module": ["-m", "telling"]}[how]
    command = [sys.executable, "-W", "error", *what, "an argument", "-c"]

    def done() -> tuple[int, str, str]:
        one = subprocess.run(
            command,
            input="in",
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            start_new_session=session,
            timeout=20,
            check=False,
        )
        return one.returncode, one.stdout, one.stderr

    forked = done()
    with ordinarily():
        started = done()
    for one, other in zip(started[1].splitlines(), forked[1].splitlines(), strict=True):
        assert one == other
    assert started == forked
    assert forked[0] == 7
    assert "thread\nat exit" in forked[1]


def test_it_is_forked_at_all_and_is_ours_to_stop_kill_and_wait_for(forks: None) -> None:
    code = "import exs, sys, trio; print(len(sys.modules), flush=True); trio.run(trio.sleep_forever)"
    with subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline()
        assert is_fork(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
    killed = subprocess.Popen([sys.executable, "-c", "input()"], env=ENVIRONMENT, stdin=subprocess.PIPE)
    with killed:
        killed.kill()
        assert killed.wait(20) == -signal.SIGKILL


def test_it_uses_exs_and_limits_as_any_process(forks: None) -> None:
    code = "import exs, resource as r; exs.MemoryRegion.allocate(1).close(); print(r.getrlimit(r.RLIMIT_NOFILE)[0])"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        said = subprocess.run(
            [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, check=True, timeout=20
        ).stdout
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said == b"%d\n" % (soft - 1)


@pytest.mark.parametrize(
    "command",
    [["true"], [sys.executable, "-I", "-c", ""], [sys.executable], [sys.executable, "-Werror", "-c", ""], []],
)
def test_what_is_not_understood_is_not_forked(command: list[str]) -> None:
    assert preloaded.program(command) is None


def test_an_environment_that_python_or_the_loader_obeys_is_not_forked() -> None:
    assert preloaded.plain(ENVIRONMENT)
    for name in ("LD_LIBRARY_PATH", "PYTHONHASHSEED", "MALLOC_CHECK_"):
        assert not preloaded.plain(ENVIRONMENT | {name: "1"})
    assert not preloaded.plain({"PATH": "/bin"})
