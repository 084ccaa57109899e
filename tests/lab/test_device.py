# SPDX-License-Identifier: MIT OR Apache-2.0
"""The verbs device when something of it is missing, is taken away, or must not be used: words, ends of connections.

Each state of the machine is made for one process, in a mount namespace of its own or as another user; what is done
to the guest's devices is undone.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
CONNECT = """
import sys, trio, exs
async def main():
    listeners = await exs.open_listeners(0, host=sys.argv[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listeners[0].accept)
        stream = await exs.open_stream(sys.argv[1], listeners[0].address[1])
        print("connected", stream.socket.device.name)
        nursery.cancel_scope.cancel()
def first(error):
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error.__cause__, BaseExceptionGroup):
            error = error.__cause__.exceptions[0]
        else:
            return error
try:
    trio.run(main)
except Exception as error:
    error = first(error)
    print(type(error).__name__, error)
"""


def run(command: list[str], **env: str) -> str:
    return subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=100, env={**os.environ, **env}, check=False
    ).stdout


def reason(*before: str, shell: str = "", **env: str) -> str:
    """What a process that was started so says of the verbs device."""
    ask = [*before, sys.executable, "-m", "exs", "devices", "--json"]
    if shell:
        script = f'{shell} && exec "$@"'
        ask = ["unshare", "--mount", "sh", "-c", script, "sh", *ask]
    text = run(ask, **env)
    devices = json.loads(text)
    found = devices["devices"] if isinstance(devices, dict) else devices
    verbs = next(d for d in found if d["name"] == "verbs")
    return "present" if verbs["present"] else str(verbs["reason"])


@pytest.fixture
def open_nodes() -> Iterator[None]:
    """Every user may use the devices."""
    nodes = list(Path("/dev/infiniband").iterdir())
    modes = {n: n.stat().st_mode & 0o777 for n in nodes}
    for n in nodes:
        n.chmod(0o666)
    yield
    for n, mode in modes.items():
        n.chmod(mode)


# --- six reasons ------------------------------------------------------------------------------------------------


def test_it_is_there() -> None:
    assert reason() == "present"


def test_no_library(tmp_path: Path) -> None:
    (tmp_path / "libibverbs.so.1").touch()
    assert "libibverbs.so.1 is not there: install rdma-core" in reason(LD_LIBRARY_PATH=str(tmp_path))


def test_no_support_in_the_kernel() -> None:
    assert "this kernel has no RDMA support" in reason(shell="mount -t tmpfs none /sys/class")


def test_no_device() -> None:
    assert "no RDMA device" in reason(shell="mount -t tmpfs none /sys/class/infiniband_verbs")


def test_no_permission() -> None:
    assert "permission denied on /dev/infiniband/uverbs" in reason(*NOBODY, shell="chmod 600 /dev/infiniband/*")


def test_no_node() -> None:
    assert "a container must be given it" in reason(shell="mount -t tmpfs none /dev/infiniband")


@pytest.mark.usefixtures("open_nodes")
def test_no_locked_memory_at_all() -> None:
    text = reason("prlimit", "--memlock=0", *NOBODY)
    assert "RLIMIT_MEMLOCK" in text
    assert "ulimit -l" in text


# --- what a connect makes of it ------------------------------------------------------------------------------


def test_asked_for_by_name_it_is_an_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "libibverbs.so.1").touch()
    text = run([sys.executable, "-c", CONNECT, "10.77.0.1"], LD_LIBRARY_PATH=str(tmp_path), EXS_DEVICE="verbs")
    assert text.startswith("NoDeviceError [Errno 95]")
    assert "install rdma-core" in text


def test_left_open_it_is_soft(tmp_path: Path) -> None:
    (tmp_path / "libibverbs.so.1").touch()
    text = run([sys.executable, "-c", CONNECT, "10.77.0.1"], LD_LIBRARY_PATH=str(tmp_path))
    assert text == "connected soft\n"


def test_left_open_it_is_verbs_where_both_have_it() -> None:
    assert run([sys.executable, "-c", CONNECT, "10.77.0.1"]) == "connected verbs\n"


def test_left_open_it_is_soft_where_no_rdma_leads() -> None:
    assert run([sys.executable, "-c", CONNECT, "10.79.0.1"]) == "connected soft\n"
    assert run([sys.executable, "-c", CONNECT, "127.0.0.1"]) == "connected soft\n"


@pytest.mark.usefixtures("open_nodes")
def test_left_open_64_kib_of_locked_memory_mean_soft() -> None:
    limited = ["prlimit", "--memlock=65536", *NOBODY, sys.executable, "-c", CONNECT, "10.77.0.1"]
    assert run(limited) == "connected soft\n"


# --- many connections of one process ---------------------------------------------------------------------------

MANY = """
import sys, trio, exs
COUNT = 40
async def main():
    options = exs.Options(device="verbs", ring_bytes=65536)
    listeners = await exs.open_listeners(0, host=sys.argv[1], options=options)
    accepted, dialled = [], []
    async with trio.open_nursery() as nursery:
        async def accept():
            for _ in range(COUNT):
                accepted.append(await listeners[0].accept())
        nursery.start_soon(accept)
        for _ in range(COUNT):
            dialled.append(await exs.open_stream(sys.argv[1], listeners[0].address[1], options=options))
    for number, stream in enumerate(dialled):
        await stream.send_all(bytes([number]) * 100)
    print(sorted([(await stream.receive_some(100))[0] for stream in accepted]) == list(range(COUNT)))
trio.run(main)
"""


@pytest.mark.parametrize("host", ["10.77.0.1", "10.78.0.1"])
def test_many_connections_need_several_completion_queues(host: str) -> None:
    # And on soft-iWARP they pass the one mapping offset that its library takes for none.
    assert run([sys.executable, "-c", MANY, host]) == "True\n"


# --- what happens to a device -------------------------------------------------------------------------------------


HOLD = """
import os, sys, trio, exs
async def main():
    options, host, found = exs.Options(device="verbs"), sys.argv[1], []
    async def wait(stream):
        try:
            await stream.receive_some()
            found.append("end of stream")
        except trio.BrokenResourceError as error:
            found.append(error.__cause__.errno)
        try:
            await stream.send_all(b"no more")
            found.append("could send")
        except trio.BrokenResourceError:
            pass
    accepted = []
    async def accept():
        accepted.append(await listeners[0].accept())
    listeners = await exs.open_listeners(0, host=host, options=options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        client = await exs.open_stream(host, listeners[0].address[1], options=options)
    await client.send_all(b"here")
    assert await accepted[0].receive_some() == b"here"
    with trio.fail_after(40):
        async with client, accepted[0], trio.open_nursery() as nursery:
            nursery.start_soon(wait, client)
            nursery.start_soon(wait, accepted[0])
            await trio.sleep(0.5)
            os.system(sys.argv[2])
    print(*found)
trio.run(main)
"""


def ends(host: str, command: str) -> list[str]:
    """What both ends of an idle connection end with after the command.

    In a process of its own: a soft device can only be taken out of the kernel when nobody has it open.
    """
    return run([sys.executable, "-c", HOLD, host, command]).split()


@pytest.fixture
def rxe() -> Iterator[None]:
    """soft-RoCE as new afterwards.

    Its link is never taken down here: a message of rdma_cm that is sent then stops its management queue pair for
    good, and whoever ends a connection waits for it in the kernel.
    """
    yield
    script = """
        rdma link delete rxe0
        ip link set eth0 up
        ip addr replace 10.77.0.1/24 dev eth0
        ip addr replace fd77::1/64 dev eth0 nodad
        rdma link add rxe0 type rxe netdev eth0
    """
    subprocess.run(["sh", "-c", script], check=True, timeout=60)
    time.sleep(1)


@pytest.mark.usefixtures("rxe")
def test_an_address_that_goes_ends_its_connections() -> None:
    assert ends("10.77.0.1", "ip addr del 10.77.0.1/24 dev eth0") == 2 * [str(errno.EADDRNOTAVAIL)]


@pytest.mark.usefixtures("rxe")
def test_a_device_that_is_removed_ends_its_connections() -> None:
    found = ends("10.77.0.1", "rdma link delete rxe0 &")
    # Both ends are on it, and one may hear of the other's end first.
    assert set(found) <= {str(errno.ENODEV), str(errno.ECONNRESET)}
    assert str(errno.ENODEV) in found


def test_on_iwarp_a_link_that_goes_down_ends_its_connections() -> None:
    try:
        found = ends("10.78.0.1", "ip link set eth1 down")
    finally:
        script = "ip link set eth1 up; ip addr replace fd78::1/64 dev eth1 nodad"
        subprocess.run(["sh", "-c", script], check=True)
    assert len(found) == 2
    assert set(found) <= {str(errno.ECONNRESET), str(errno.ENETDOWN), str(errno.ETIMEDOUT)}
