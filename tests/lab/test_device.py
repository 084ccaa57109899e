# SPDX-License-Identifier: MIT OR Apache-2.0
"""The verbs device when something of it is missing, is taken away, or must not be used: words, ends of connections.

Each state of the machine is made for one process, in a mount namespace of its own or as another user; what is done
to the guest's devices is undone.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import agent
import cable
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


# --- what the kernel holds back --------------------------------------------------------------------------------

SILENT = """
import functools, socket, sys, trio, exs
host, options = sys.argv[1], exs.Options(device="verbs")
silent = socket.create_server((host, 0))

async def give_up():
    async with trio.open_nursery() as nursery:
        port = silent.getsockname()[1]
        nursery.start_soon(functools.partial(exs.open_stream, host, port, options=options))
        connection, _ = await trio.to_thread.run_sync(silent.accept)
        nursery.cancel_scope.cancel()
    return connection

async def connect():
    listeners = await exs.open_listeners(0, host=host, options=options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listeners[0].accept)
        await exs.open_stream(host, listeners[0].address[1], options=options)
        nursery.cancel_scope.cancel()

connection = trio.run(give_up)
connection.setblocking(False)
try:
    while connection.recv(4096):
        pass
    print("the kernel gave up before we did")
except BlockingIOError:
    print("over")
trio.run(connect)
print("connected")
"""


def test_a_run_that_ends_does_not_wait_for_the_answer_to_its_connect() -> None:
    # soft-iWARP's kernel waits 10 s for MPA's answer, and ends the TCP connection only then.
    assert run([sys.executable, "-c", SILENT, "10.78.0.1"]) == "over\nconnected\n"


# --- what happens to a device -------------------------------------------------------------------------------------


HOLD = """
import logging, os, sys, time, trio, exs
sys.path.append(os.environ["LAB"])
import cable
logging.basicConfig(level="INFO", stream=sys.stdout, format="%(levelname)s %(message)s")
options, host, found = exs.Options(device="verbs"), sys.argv[1], []

async def wait(stream):
    try:
        while await stream.receive_some(1 << 20):
            pass
        found.append("end of stream")
    except trio.BrokenResourceError as error:
        found.append(error.__cause__.errno)
    try:
        await stream.send_all(b"no more")
        found.append("could send")
    except (trio.BrokenResourceError, trio.BusyResourceError):  # broken, or pour is about to find that out
        pass

async def pour(stream):
    try:
        while True:
            await stream.send_all(bytes(1 << 20))
    except trio.BrokenResourceError:
        pass

async def pair():
    accepted = []
    async def accept():
        accepted.append(await listeners[0].accept())
    listeners = await exs.open_listeners(0, host=host, options=options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        client = await exs.open_stream(host, listeners[0].address[1], options=options)
    await use(client, accepted[0])
    return client, accepted[0]

async def use(client, server):
    for one, other in ((client, server), (server, client)):
        await one.send_all(b"here")
        assert await other.receive_some() == b"here"

async def ended_by(command, busy=False):
    client, server = await pair()
    with trio.fail_after(60):
        async with client, server, trio.open_nursery() as nursery:
            nursery.start_soon(wait, client)
            nursery.start_soon(wait, server)
            if busy:
                nursery.start_soon(pour, client)
            await trio.sleep(0.5)
            await trio.to_thread.run_sync(os.system, command)
    print("ended", *found)
"""
ENDED = HOLD + "trio.run(ended_by, sys.argv[2], sys.argv[3:] == ['busy'])"


def held(program: str, *arguments: str, there: bool = False) -> tuple[list[str], str]:
    """The words that such a program ends with, and everything that it logs and prints.

    In a process of its own: a soft device can only be taken out of the kernel when nobody has it open.
    """
    command = [sys.executable, "-c", program, *arguments]
    env = {"LAB": str(Path(__file__).resolve().parent), "EXS_LOG_LEVEL": "info"}
    text = agent.run(command, timeout=100, **env) if there else run(command, **env)
    ends = [line.split()[1:] for line in text.splitlines() if line.startswith("ended ")]
    assert len(ends) == 1, text
    return ends[0], text


def errno_names(*numbers: int) -> set[str]:
    return {str(number) for number in numbers}


@pytest.fixture
def second_guest() -> Iterator[None]:
    """Booted again afterwards: rxe's link cannot always be deleted once rdma_cm had to send without a way to the peer,
    and the kernel waits for it without end."""
    yield
    agent.reboot()


@pytest.mark.usefixtures("second_guest")
def test_an_address_that_goes_ends_its_connections() -> None:
    found, text = held(ENDED, "10.77.0.2", "ip addr del 10.77.0.2/24 dev eth0", there=True)
    assert found == 2 * [str(errno.EADDRNOTAVAIL)], text
    assert "INFO verbs: rxe0: GID table change, port 1\n" in text
    assert text.count("INFO connection lost: the address of this end is gone from rxe0\n") == 2


@pytest.mark.usefixtures("second_guest")
@pytest.mark.parametrize(("device", "host"), [("rxe0", "10.77.0.2"), ("siw0", "10.78.0.2")])
def test_a_device_that_is_removed_ends_its_connections(device: str, host: str) -> None:
    found, text = held(ENDED, host, f"rdma link delete {device} >/dev/null 2>&1 &", there=True)
    # Both ends are on it, and one may hear of the other's end first.
    assert len(found) == 2, text
    assert set(found) <= errno_names(errno.ENODEV, errno.ECONNRESET), text
    assert str(errno.ENODEV) in found, text
    assert re.search(r"INFO connection lost: \S+.* was removed", text), text


def test_a_port_that_stays_down_ends_its_connections() -> None:
    try:
        found, text = held(ENDED, "10.77.0.1", f"{sys.executable} $LAB/cable.py eth0 off")
    finally:
        cable.turn("eth0", "on")
    assert found == 2 * [str(errno.ENETDOWN)], text
    assert "WARNING verbs: rxe0: port error, port 1\n" in text
    assert text.count("INFO connection lost: port 1 of rxe0 is down\n") == 2
    assert run([sys.executable, "-c", CONNECT, "10.77.0.1"], EXS_DEVICE="verbs") == "connected verbs\n"


FLAP = (
    HOLD
    + """
def active():
    with open("/sys/class/infiniband/rxe0/ports/1/state") as state:
        return "ACTIVE" in state.read()

def flap():
    start = time.monotonic()
    cable.turn("eth0", "off")
    # The device hears of its interface a moment later, and of a shorter cut it would hear nothing.
    while active() and time.monotonic() < start + 5:
        time.sleep(0.01)
    cable.turn("eth0", "on")
    return time.monotonic() - start

async def main():
    # On a machine that stands still for longer than a port may be down it proves nothing: then once more.
    for _ in range(5):
        client, server = await pair()
        async with client, server:
            took = await trio.to_thread.run_sync(flap)
            await trio.sleep(3)
            if took < 1:
                await use(client, server)
                print("ended well")
                return
    print("ended too slow")
trio.run(main)
"""
)


def test_a_port_that_comes_back_ends_nothing() -> None:
    found, text = held(FLAP, "10.77.0.1")
    assert found == ["well"], text
    assert "WARNING verbs: rxe0: port error, port 1\n" in text
    assert "WARNING verbs: rxe0: port active, port 1\n" in text


def test_on_iwarp_a_link_that_goes_down_ends_its_connections() -> None:
    try:
        found, text = held(ENDED, "10.78.0.1", "ip link set eth1 down")
    finally:
        script = "ip link set eth1 up; ip addr replace fd78::1/64 dev eth1 nodad"
        subprocess.run(["sh", "-c", script], check=True)
    assert len(found) == 2, text
    assert set(found) <= errno_names(errno.ECONNRESET, errno.ENETDOWN, errno.ETIMEDOUT), text
    assert "WARNING verbs: siw0: port error, port 1\n" in text


def test_a_queue_pair_whose_transport_breaks_ends_its_connection() -> None:
    # The kernel's TCP connection below siw is taken away, in the middle of a WRITE.  Whether siw calls the queue pair
    # failed depends on what it was doing; what follows from that is in test_verbs.c.
    found, text = held(ENDED, "10.78.0.1", "ss -K src 10.78.0.1", "busy")
    assert found == 2 * [str(errno.ECONNRESET)], text
    assert run([sys.executable, "-c", CONNECT, "10.78.0.1"], EXS_DEVICE="verbs") == "connected verbs\n"
