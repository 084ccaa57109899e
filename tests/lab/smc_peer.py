# SPDX-License-Identifier: MIT OR Apache-2.0
"""Peers on the kernel's SMC-R in either guest, for the tests of the suite ``smc``, and exs connected with them.

A connection that fell back to TCP works as well, so both sides are asked what carries it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import agent
import kernel_smc
import pytest
import trio
from kernel import ROOT

import exs

HERE, THERE = "10.77.0.1", "10.77.0.2"
OPTIONS = exs.Options(protocol="smc", device="verbs", smc_eid=(kernel_smc.EID,))
LISTEN = 10
"""The state of a socket that listens, as the kernel's diagnostics number them."""
in_thread = trio.to_thread.run_sync
PRELOAD = str(ROOT / "build" / "native-lab" / "tests" / "native" / "af_smc.so")
PROGRAM = [sys.executable, str(Path(kernel_smc.__file__).resolve())]


def there(action: str, *options: object) -> agent.Remote:
    """A program on AF_SMC in the second guest; see :func:`kernel_smc.peer`."""
    return agent.Remote([*PROGRAM, "peer", action, *map(str, options)])


@contextmanager
def here(action: str, *options: object) -> Iterator[subprocess.Popen[str]]:
    """The same in this guest; ended with the block."""
    command = [*PROGRAM, "peer", action, *map(str, options)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def kernel_there() -> dict[str, object]:
    """What the second guest's kernel says of its SMC."""
    return json.loads(agent.run([*PROGRAM, "status"]))


def wait_until(what: Callable[[], object], why: str, patience: float = 60.0) -> None:
    """Wait for something to become true.

    Raises:
        AssertionError: It did not in time.
    """
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline, why
        time.sleep(0.1)


def on_smc(program: str, *arguments: object, name: str | None = None, preload: str = PRELOAD) -> list[str]:
    """The command of an unmodified program whose TCP sockets are AF_SMC; ``name`` is what it is told to be."""
    script = 'exec -a "$0" "$@"'
    words = ["bash", "-c", script, name or program, program, *map(str, arguments)]
    return ["env", f"LD_PRELOAD={preload}", *words]


def redis_server(host: str, port: int, preload: str = PRELOAD) -> list[str]:
    """redis-server on AF_SMC: Debian's redis-check-rdb is the same program, and does what its name says."""
    quiet = ["--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", os.environ.get("TMPDIR", "/tmp")]
    return on_smc(
        "/usr/bin/redis-check-rdb", "--bind", host, "--port", port, *quiet, name="redis-server", preload=preload
    )


# --- exs at one end, the kernel at the other ------------------------------------------------------------------------


def set_up() -> None:
    """Make both kernels ready for SMC-R."""
    kernel_smc.set_up()
    agent.run([*PROGRAM, "set-up"])


def received(size: int) -> str:
    """What a peer says that has received so much of the second pattern."""
    return f"received {size} {hashlib.sha256(kernel_smc.pattern(size, 2)).hexdigest()}\n"


def carried(port: int, action: str) -> bool:
    """Whether the second kernel carries its end of a connection by SMC-R; one that closed at once may be gone."""
    modes = modes_there(port)
    return modes == {"SMC-R"} or (action == "first" and not modes)


def modes_there(port: int) -> set[str]:
    """How the second kernel carries what it has to do with a port."""
    rows = kernel_there()["sockets"]
    assert isinstance(rows, list)
    return {row["mode"] for row in rows if port in (row["local"], row["remote"]) and row["state"] != LISTEN}


@asynccontextmanager
async def client_of(
    action: str, *options: object, use: exs.Options = OPTIONS
) -> AsyncGenerator[tuple[exs.SocketStream, agent.Remote]]:
    """exs connects to a server on AF_SMC."""
    server = await in_thread(lambda: there(action, *options))
    with server:
        port = int(await in_thread(server.expect, "listening"))
        with trio.fail_after(200):
            async with await exs.open_stream(THERE, port, options=use) as stream:
                assert stream.transport == "smc-r v2", stream.transport_reason
                assert await in_thread(carried, port, action)
                yield stream, server


@asynccontextmanager
async def server_of(
    action: str, *options: object, use: exs.Options = OPTIONS
) -> AsyncGenerator[tuple[exs.SocketStream, agent.Remote]]:
    """A client on AF_SMC connects to exs."""
    (listener,) = await exs.open_listeners(0, host=HERE, options=use)
    port = listener.address[1]
    client = await in_thread(lambda: there(action, "--host", HERE, "--port", port, *options))
    with client, trio.fail_after(200):
        async with listener, await listener.accept() as stream:
            assert stream.transport == "smc-r v2", stream.transport_reason
            assert await in_thread(carried, port, action)
            yield stream, client


Role = Callable[..., AbstractAsyncContextManager[tuple[exs.SocketStream, agent.Remote]]]
ROLES = pytest.mark.parametrize("role", [client_of, server_of], ids=["client", "server"])
