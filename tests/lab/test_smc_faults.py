# SPDX-License-Identifier: MIT OR Apache-2.0
"""What goes wrong on SMC-R over soft-RoCE: programs of exs that are killed, Python that is busy, garbage on the link;
and waits that nobody may have, since they would mean that a message of the protocol was not sent.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import agent
import kernel_smc
import pytest
import smc_peer
import trio
from smc_peer import OPTIONS, ROLES, Role, client_of, in_thread

import exs
from exs import _native
from exs._config import resolve
from exs._native import smc
from exs._pump import SENDING
from exs.smc.service import current_service

pytestmark = [
    pytest.mark.skipif("EXS_LAB_PEER" not in os.environ, reason="needs two guests"),
    pytest.mark.timeout(300),
]

PROGRAM = [sys.executable, str(Path(smc_peer.__file__).with_name("smc_program.py"))]
REQUEST = b"is anybody there?"


@pytest.fixture(scope="module", autouse=True)
def smc_is_ready() -> None:
    """Both kernels are ready for SMC-R."""
    smc_peer.set_up()


@contextmanager
def program_here(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program on exs in this guest; ended with the block."""
    command = [*PROGRAM, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str], start: str) -> str:
    """The rest of the next line, which begins so."""
    assert process.stdout
    line = process.stdout.readline()
    assert line.startswith(start), line
    return line[len(start) :].strip()


async def echoed(stream: exs.SocketStream) -> bytes:
    """Send a request to who echoes it, and take the answer."""
    await stream.send_all(REQUEST)
    got = b""
    while len(got) < len(REQUEST):
        data = await stream.receive_some()
        assert data, "it ended"
        got += data
    return got


# --- who is gone ----------------------------------------------------------------------------------------------------


def hears_of_the_death(kernel: agent.Remote) -> bool:
    """Whether a program on AF_SMC gets an error, in the time that a TEST_LINK takes in an unchanged kernel.

    Linux tells a reader of such a link nothing but the end; who then writes gets the error.
    """
    return "error" in kernel.wait(35.0)[1]


@pytest.mark.smcr(92)
@pytest.mark.parametrize("flood", [(), ("--flood",)], ids=["silent", "sending"])
def test_a_client_is_killed(flood: tuple[str, ...]) -> None:
    with smc_peer.there("drain") as kernel:
        port = kernel.expect("listening")
        with program_here("hold", "--host", smc_peer.THERE, "--port", port, *flood) as program:
            assert said(program, "transport") == "smc-r v2"
            kernel.expect("draining")
            program.kill()
            assert hears_of_the_death(kernel)


@pytest.mark.smcr(92)
@pytest.mark.parametrize("flood", [(), ("--flood",)], ids=["silent", "sending"])
def test_a_server_is_killed(flood: tuple[str, ...]) -> None:
    with program_here("hold", *flood) as program:
        port = said(program, "listening")
        with smc_peer.there("drain", "--host", smc_peer.HERE, "--port", port) as kernel:
            assert said(program, "transport") == "smc-r v2"
            kernel.expect("draining")
            program.kill()
            assert hears_of_the_death(kernel)


@pytest.mark.smcr(53, 54)
async def test_python_is_busy_and_the_kernel_keeps_the_link() -> None:
    async with client_of("echo") as (stream, _):
        assert await echoed(stream) == REQUEST
        (group,) = current_service(resolve(OPTIONS)).groups
        before = smc.link_query(group.link)
        end = time.monotonic() + 10
        while time.monotonic() < end:  # not a sleep: trio's thread holds the interpreter, as a computation does
            sum(range(1000))
        after = smc.link_query(group.link)
        # The kernel asks after 3 s of silence and gives up after 2 more.
        assert after.tests_answered > before.tests_answered
        assert after.up
        assert await echoed(stream) == REQUEST


# --- garbage --------------------------------------------------------------------------------------------------------


@pytest.mark.smcr(66, 79, 97)
async def test_garbage_on_the_link() -> None:
    hostile = await in_thread(lambda: agent.Remote([*PROGRAM, "hostile"]))
    with hostile, trio.fail_after(200):
        port = int(await in_thread(hostile.expect, "listening"))
        first = await exs.open_stream(smc_peer.THERE, port, options=OPTIONS)
        second = await exs.open_stream(smc_peer.THERE, port, options=OPTIONS)
        async with first, second:
            assert {first.transport, second.transport} == {"smc-r v2"}
            hostile.write("garbage\n")
            await in_thread(hostile.expect, "garbage sent")
            assert await echoed(first) == REQUEST
            assert await echoed(second) == REQUEST
            hostile.write("nonsense\n")
            await in_thread(hostile.expect, "nonsense sent")
            with pytest.raises(trio.BrokenResourceError) as broken:
                await first.receive_some()
            assert isinstance(broken.value.__cause__, exs.Error)
            assert broken.value.__cause__.errno == errno.EPROTO
            assert await echoed(second) == REQUEST


async def test_the_kernel_ignores_what_it_does_not_know() -> None:
    async with client_of("echo") as (stream, _):
        (group,) = current_service(resolve(OPTIONS)).groups
        for kind in (0x0A, 0x2A, 0x7F):
            smc.llc_send(group.link, bytes([kind, 44]) + bytes(42))
        assert await echoed(stream) == REQUEST


# --- ends, and waits that nobody may have ---------------------------------------------------------------------------


@ROLES
@pytest.mark.smcr(85)
async def test_exs_closes_first(role: Role) -> None:
    async with role("sink") as (stream, other):
        await stream.send_all(kernel_smc.pattern(5000, 2))
        await stream.aclose()
        assert (await in_thread(other.wait))[1] == smc_peer.received(5000)


@ROLES
@pytest.mark.smcr(88)
async def test_both_close_at_once(role: Role) -> None:
    async with role("first", "--bytes", 0) as (stream, _):
        await stream.aclose()
    with trio.fail_after(60):
        while (await in_thread(smc_peer.kernel_there))["sockets"]:
            await trio.sleep(0.3)


@pytest.mark.smcr(82)
async def test_an_urgent_byte_keeps_its_place() -> None:
    async with client_of("urgent") as (stream, other):
        got = b""
        async for data in stream:
            got += data
        assert got == b"before!after"
        await stream.aclose()
        assert (await in_thread(other.wait))[0] == 0


async def send_urgent(stream: exs.SocketStream, byte: bytes) -> None:
    """Send a byte out of band: what the core can, and no call of Python's asks for."""
    sock = stream.socket
    span = _native.readable(byte)
    flags = _native.lib.EXSI_OPF_URGENT
    event = await sock._pump.operate(sock._caller.send, sock._handle, span, flags, keep=span, direction=SENDING)
    assert not event[3]


@pytest.mark.smcr(83)
async def test_an_urgent_byte_of_exs_is_out_of_band_in_linux() -> None:
    async with client_of("out-of-band") as (stream, other):
        await stream.send_all(b"before")
        await send_urgent(stream, b"!")
        await stream.send_all(b"after")
        assert await in_thread(other.expect, "urgent") == "b'!'"
        assert await in_thread(other.expect, "in band") == "b'before'"
        assert await in_thread(other.expect, "in band") == "b'after'"


@ROLES
@pytest.mark.smcr(87)
async def test_exs_closes_with_unread_data(role: Role) -> None:
    """Linux takes that for an end when it receives, and refuses to send."""
    async with role("late", "--bytes", 5000) as (stream, other):
        await in_thread(other.expect, "holding")
        assert len(await stream.receive_some(100)) == 100
        await stream.aclose()
        other.write("go on\n")
        assert (await in_thread(other.wait))[1] == f"read 0\nerror {errno.EPIPE}\n"


LEAST_WAIT = 1.8
"""Seconds: what the kernel waits for in vain takes 2 s at least.  A guest may be slow, so the best of three tries is
looked at: what waits does so every time."""


async def kernel_client() -> tuple[float, float]:
    """How long its connect() and close() take, in a first contact: each trio run is a peer of its own."""
    async with smc_peer.server_of("timed") as (stream, other):
        assert await stream.receive_some() == b""
        await stream.aclose()
        connected, closed = (await in_thread(other.wait))[1].split()
        return float(connected), float(closed)


async def kernel_server() -> float:
    """How long it takes until it answers, so its accept() has returned."""
    with await in_thread(lambda: smc_peer.there("echo")) as server:
        port = int(await in_thread(server.expect, "listening"))
        start = time.monotonic()
        async with await exs.open_stream(smc_peer.THERE, port, options=OPTIONS) as stream:
            assert stream.transport == "smc-r v2", stream.transport_reason
            assert await echoed(stream) == REQUEST
            return time.monotonic() - start


@pytest.mark.smcr(48, 60)
def test_a_kernel_client_never_waits_for_us() -> None:
    taken = [trio.run(kernel_client) for _ in range(3)]
    assert min(connected for connected, _ in taken) < LEAST_WAIT
    assert min(closed for _, closed in taken) < LEAST_WAIT


@pytest.mark.smcr(49)
def test_a_kernel_server_never_waits_for_us() -> None:
    assert min(trio.run(kernel_server) for _ in range(3)) < LEAST_WAIT
