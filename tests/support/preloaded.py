# SPDX-License-Identifier: MIT OR Apache-2.0
"""Python processes that start at once, where starting Python with trio and exs takes some ten seconds.

Within :func:`processes` every ``subprocess.Popen`` of this interpreter is a fork of one that has imported them and
opened nothing.  It is a process like any other: a child of ours with a pid of its own, which can be stopped, killed and
waited for, and with the arguments, environment, folder and descriptors that it would have had.  What is asked beyond
that, and every other program, starts the ordinary way.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import inspect
import json
import os
import resource
import runpy
import socket
import subprocess
import sys
import threading
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

MODULES = (
    "trio",
    "exs",
    "exs.esapi",
    "exs.testing",
    "exs.cli.arguments",
    "exs.cli.transfer",
    "json",
    "hashlib",
    "mmap",
)
FOLLOWED = ("PYTHONPATH", "PYTHONWARNINGS", "PYTHONSAFEPATH")
"""Python's own variables that are obeyed; others, and the loader's, call for the ordinary way."""
LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_AS)
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Program:
    """What a process runs: ``how`` is -c, -m or empty, and ``what`` code, module or file."""

    how: str
    what: str
    arguments: list[str]
    warnings: list[str]
    command: list[str]

    def run(self) -> None:
        """Run it as the main program of this process."""
        sys.orig_argv = self.command
        if self.how == "-m":
            sys.argv = [self.what, *self.arguments]
            runpy.run_module(self.what, run_name="__main__", alter_sys=True)
            return
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        sys.argv = [self.how or self.what, *self.arguments]
        code = self.what
        if not self.how:
            main.__file__ = self.what
            with open(self.what, encoding="utf-8") as file:
                code = file.read()
        exec(compile(code, self.what if not self.how else "<string>", "exec"), main.__dict__)


def program(command: Sequence[object], interpreter: str = sys.executable) -> Program | None:
    """What a command line of this interpreter runs; None if it is another program's, or has options unknown here."""
    words = [os.fsdecode(word) for word in command]  # type: ignore[call-overload]  # whatever Popen takes
    if not words or words[0] != interpreter:
        return None
    asked: list[str] = []
    rest = words[1:]
    while rest and rest[0] in ("-W", "-P"):
        if rest.pop(0) == "-W":
            asked += rest[:1]
            del rest[:1]
    if rest[:1] in (["-c"], ["-m"]) and len(rest) > 1:
        return Program(rest[0], rest[1], rest[2:], asked, words)
    if rest and not rest[0].startswith("-"):
        return Program("", rest[0], rest[1:], asked, words)
    return None


def plain(environment: Mapping[str, str]) -> bool:
    """Whether Python and the loader find nothing in an environment that a fork would not obey."""
    theirs = [name for name in environment if name.startswith(("PYTHON", "LD_", "MALLOC_", "GLIBC_"))]
    # Without a safe path Python looks for modules beside the program too.
    return "PYTHONSAFEPATH" in theirs and set(theirs) <= set(FOLLOWED)


# --- in the process that forks -----------------------------------------------------------------------------------


def _become(request: dict[str, Any], descriptors: Sequence[int]) -> Program:  # Any: JSON
    """Be the process that was asked for, but for its program."""
    os.chdir(request["cwd"])
    if request["session"]:
        os.setsid()
    for name, limit in zip(LIMITS, request["limits"], strict=True):
        resource.setrlimit(name, tuple(limit))
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p]
    found = Program(**request["program"])
    sys.warnoptions[:] = [w for w in os.environ.get("PYTHONWARNINGS", "").split(",") if w] + found.warnings
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]  # as Python does when it starts
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    for name, number, lines, errors in (("stdout", 1, os.isatty(1), "strict"), ("stderr", 2, True, "backslashreplace")):
        stream = open(number, "w", 1 if lines else -1, "utf-8", errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return found


def _grandchild() -> int:
    """Fork a process that is the child of whoever takes orphans: 0 in it, its pid here."""
    (told, telling), (freed, freeing) = os.pipe(), os.pipe()
    if between := os.fork():
        pid = int(os.read(told, 20))
        os.waitpid(between, 0)
        os.write(freeing, b"x")
        for end in (told, telling, freed, freeing):
            os.close(end)
        return pid
    if pid := os.fork():
        os.write(telling, b"%d" % pid)
        os._exit(0)
    os.read(freed, 1)
    return 0


def _serve(orders: socket.socket) -> Program | None:
    """Fork as often as asked; returns in every fork with what it shall run, and in the end with nothing."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(orders, 8, 3)
        if not data:
            return None
        length = int.from_bytes(data)
        text = b""
        while len(text) < length:
            text += orders.recv(length - len(text))
        pid = _grandchild()
        if not pid:
            orders.detach()
            return _become(json.loads(text), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        orders.sendall(b"%20d" % pid)


def main() -> None:
    """The process that forks: its socket of orders is the argument."""
    for name in MODULES:
        with suppress(ImportError):  # a program that needs it will say so
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    found = _serve(socket.socket(fileno=int(sys.argv[1])))
    if found is not None:
        found.run()


# --- in the process that asks --------------------------------------------------------------------------------------


class Nursery:
    """Asks a process for forks of it."""

    def __init__(self) -> None:
        # Else the forks would be children of process 1, and not ours to wait for.
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no subreaper")
        self._orders, theirs = socket.socketpair()
        self._lock = threading.Lock()
        clean = {k: v for k, v in os.environ.items() if k not in FOLLOWED or k == "PYTHONSAFEPATH"}
        command = [sys.executable, os.path.abspath(__file__), str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=clean, stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()

    def fork(
        self, what: Program, environment: Mapping[str, str], cwd: str, descriptors: Sequence[int], session: bool
    ) -> int:
        """Start a process; returns its pid."""
        request = {
            "program": asdict(what),
            "environment": dict(environment),
            "cwd": cwd,
            "session": session,
            "limits": [resource.getrlimit(limit) for limit in LIMITS],
        }
        text = json.dumps(request).encode()
        with self._lock:
            socket.send_fds(self._orders, [len(text).to_bytes(8)], list(descriptors))
            self._orders.sendall(text)
            said = b""
            while len(said) < 20:
                more = self._orders.recv(20 - len(said))
                if not more:
                    raise OSError("the process that forks is gone")
                said += more
        return int(said)

    def close(self) -> None:
        """End it; its forks live on."""
        self._orders.close()
        self._process.wait()


@contextmanager
def processes() -> Iterator[None]:
    """As long as this lasts, processes of this interpreter start as forks."""
    nursery = Nursery()
    ordinary: Any = subprocess.Popen._execute_child  # type: ignore[attr-defined]  # Any: nothing public lies there
    names = inspect.signature(ordinary)

    def execute(self: Any, *arguments: Any) -> None:  # Any: as above
        asked = names.bind(self, *arguments).arguments
        args, env, cwd, mask, group = (asked[n] for n in ("args", "env", "cwd", "umask", "process_group"))
        environment = dict(os.environ if env is None else env)
        found = program(args) if isinstance(args, list) and asked["executable"] in (None, args[0]) else None
        unusual = any(asked[n] for n in ("preexec_fn", "pass_fds", "shell")) or not asked["close_fds"]
        unusual = unusual or mask >= 0 or group >= 0 or any(asked[n] is not None for n in ("gid", "gids", "uid"))
        if found is None or unusual or not plain(environment):
            ordinary(self, *arguments)
            return
        ends = [asked[n] for n in ("p2cread", "c2pwrite", "errwrite")]
        ends = [end if end >= 0 else number for number, end in enumerate(ends)]
        try:
            where = os.getcwd() if cwd is None else os.fspath(cwd)
            self.pid = nursery.fork(found, environment, where, ends, asked["start_new_session"])
            self._child_created = True
        finally:
            self._close_pipe_fds(*(asked[n] for n in PIPES))

    subprocess.Popen._execute_child = execute  # type: ignore[attr-defined]
    try:
        yield
    finally:
        subprocess.Popen._execute_child = ordinary  # type: ignore[attr-defined]
        nursery.close()


if __name__ == "__main__":
    main()
