# SPDX-License-Identifier: MIT OR Apache-2.0
"""How the end of one thing ends another in SMC-R: TCP and the link, processes and their connections."""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from ground import patient
from smc_sides import EID, SMC, pair, receive_all

import exs
import exs.smc
from exs._native import ops
from exs.smc import link_group
from exs.smc import stream as smc_stream
from exs.smc.service import Link
from exs.smc.stream import SmcStream

PARTNER = Path(__file__).with_name("smc_partner.py")
SHORT = 0.3
KIB = 1024


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smc_stream, "GRACE_S", SHORT)


@pytest.fixture
def long_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smc_stream, "GRACE_S", patient(20))


def tcp_of(stream: exs.SocketStream) -> trio.socket.SocketType:
    """The TCP connection behind a stream."""
    assert isinstance(stream, SmcStream)
    return stream._tcp


async def reset(stream: exs.SocketStream) -> int | None:
    """Wait until a stream breaks; why it did."""
    with trio.fail_after(patient(40)), pytest.raises(trio.BrokenResourceError) as broken:
        await stream.receive_some()
    assert isinstance(broken.value.__cause__, exs.Error)
    return broken.value.__cause__.errno


# --- TCP and the link


@pytest.mark.smcr(89)
@pytest.mark.usefixtures("long_grace")
async def test_a_fin_ahead_of_what_is_said_on_the_link_ends_nothing() -> None:
    async with pair() as (one, two):
        tcp_of(one).shutdown(socket.SHUT_WR)
        await trio.sleep(SHORT)  # it is there
        await one.send_all(b"a" * 100 * KIB)
        await two.send_all(b"the other direction")
        assert await one.receive_some() == b"the other direction"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.aclose)
            assert await receive_all(two) == b"a" * 100 * KIB


@pytest.mark.smcr(90)
@pytest.mark.usefixtures("short_grace")
async def test_a_fin_with_a_half_close_leaves_the_other_direction() -> None:
    async with pair() as (one, two):
        await one.send_all(b"all that there is")
        await one.send_eof()
        assert await receive_all(two) == b"all that there is"
        await trio.sleep(3 * SHORT)
        await two.send_all(b"b" * 100 * KIB)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.aclose)
            assert await receive_all(one) == b"b" * 100 * KIB


@pytest.mark.smcr(91)
@pytest.mark.usefixtures("short_grace")
@pytest.mark.parametrize("how", ["FIN", "RST"])
async def test_tcp_that_ends_without_a_word_on_the_link_is_an_abort_after_a_while(how: str) -> None:
    async with pair() as (one, two):
        before = trio.current_time()
        if how == "FIN":
            tcp_of(one).shutdown(socket.SHUT_WR)
        else:
            tcp_of(one).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            tcp_of(one).close()
        assert await reset(two) == errno.ECONNRESET
        assert trio.current_time() - before >= SHORT
        # The link is well, and so the other side is told.
        assert await reset(one) == errno.ECONNRESET


# --- processes


@contextmanager
def partner_process(end: str, port: int) -> Generator[subprocess.Popen[bytes]]:
    """A process that connects, and ends so once it has got a byte."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-W", "ignore", str(PARTNER), end, str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def partner(
    end: str, options: exs.Options = SMC
) -> AsyncGenerator[tuple[subprocess.Popen[bytes], exs.SocketStream]]:
    """Such a process, and our end of the connection to it."""
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=options)
    with partner_process(end, listener.address[1]) as process:
        async with listener, await listener.accept() as stream:
            assert stream.transport == "smc-r v2"
            assert await stream.receive_some() == b"there"
            yield process, stream


@pytest.mark.smcr(92)
async def test_the_peer_of_a_process_that_is_killed_sees_an_error() -> None:
    async with partner("never") as (process, stream):
        process.send_signal(signal.SIGKILL)
        assert await reset(stream) == errno.ECONNABORTED
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"anybody?")


def kept_links() -> int:
    """Links that something keeps alive."""
    return sum(isinstance(owner, Link) for owner in ops.owners())


async def test_a_link_that_was_lost_is_forgotten_in_the_end() -> None:
    before = kept_links()
    async with partner("never") as (process, stream):
        assert kept_links() == before + 1
        process.send_signal(signal.SIGKILL)
        await reset(stream)
    with trio.fail_after(patient(20)):
        while kept_links() > before:
            await trio.sleep(0.01)


def test_a_run_that_ends_before_it_hears_of_a_lost_link_leaves_nothing() -> None:
    """Its last message cannot be sent any more: what stands behind that in the list of actions is done all the same."""

    options = replace(SMC, progress="thread")  # its links outlive the run, if nobody closes them

    async def main() -> None:
        (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=options)
        with partner_process("never", listener.address[1]) as process:
            async with listener, await listener.accept() as stream:
                assert await stream.receive_some() == b"there"
                await trio.aclose_forcefully(stream)
            process.kill()
            deadline = time.monotonic() + patient(20)
            while exs.smc.status().groups[0].link.state == "up":  # without a pass of trio's loop from here on
                assert time.monotonic() < deadline

    before = kept_links()
    trio.run(main)
    assert kept_links() == before


@pytest.mark.smcr(92)
async def test_the_peer_of_a_process_that_is_only_silent_sees_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing tells that a queue pair is gone, as on soft-RoCE; here nothing does while TCP stands."""
    monkeypatch.setattr(link_group, "TEST_INTERVAL", SHORT)
    async with partner("never") as (process, stream):
        process.send_signal(signal.SIGSTOP)
        assert await reset(stream) == errno.ECONNABORTED


@pytest.mark.smcr(93)
@pytest.mark.parametrize("end", ["return", "raise", "exit", "interrupt"])
@pytest.mark.parametrize("progress", ["thread", "inline"])
async def test_a_process_that_ends_with_its_stream_open_says_abort(end: str, progress: str) -> None:
    """A link that was only lost would be ECONNABORTED."""
    options = exs.Options(protocol="smc", device="soft", smc_option="assume", smc_eid=EID, progress=progress)  # type: ignore[arg-type]
    async with partner(end, options) as (process, stream):
        if end == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            await stream.send_all(b"!")
        assert await reset(stream) == errno.ECONNRESET
        assert (
            await trio.to_thread.run_sync(process.wait)
            == {"return": 0, "raise": 1, "exit": 3, "interrupt": -signal.SIGINT}[end]
        )
