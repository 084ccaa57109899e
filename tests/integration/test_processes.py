# SPDX-License-Identifier: MIT OR Apache-2.0
"""Two processes: data, and a peer that is killed, stopped or continued at a bad moment."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from ground import HOST, patient, scaled, shown

import exs
from exs.testing import stream_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MIB = 1 << 20
PARTNER = Path(__file__).with_name("partner.py")


async def is_ready(process: trio.Process) -> None:
    assert process.stdout is not None
    said = b""
    while not said.endswith(b"\n"):
        more = await process.stdout.receive_some(6)
        assert more, "the partner ended"
        said += more
    assert said == b"ready\n"


@asynccontextmanager
async def partner(role: str, options: exs.Options) -> AsyncIterator[tuple[trio.Process, exs.Socket]]:
    """A process in that role, and our end of the connection to it."""
    if role == "mirror":
        (listener,) = await exs.open_message_listeners(0, host=HOST, options=options)
    else:
        (listener,) = await exs.open_listeners(0, host=HOST, options=options)  # type: ignore[assignment]
    command = [sys.executable, str(PARTNER), role, str(options.path), str(listener.address[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, env=environment)
    try:
        async with listener:
            end = await listener.accept()
        await is_ready(process)
        try:
            yield process, end.socket
        finally:
            end.socket.close()
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


async def test_a_gibibyte_is_not_needed_to_see_that_data_is_whole(options: exs.Options) -> None:
    async with partner("digest", options) as (process, sock):
        source = exs.MemoryRegion.allocate(16 * MIB)
        source.view[:] = os.urandom(MIB) * 16
        wanted = hashlib.blake2b()
        rng = random.Random(5)
        async with source:
            async with sock.send_queue(depth=8) as tx:
                for _ in range(scaled(60, 8)):
                    start = rng.randrange(15 * MIB)
                    part = source[start : start + rng.randrange(1, MIB)]
                    wanted.update(part.view)
                    await tx.put(part)
            await sock.send_eof()
            assert await sock.recv(64) == wanted.digest()
        assert sock.path == shown(options.path)
        await sock.aclose()
        assert await process.wait() == 0


async def test_small_and_large_echoes(options: exs.Options) -> None:
    async with partner("echo", options) as (process, sock):
        stream = exs.SocketStream(sock)
        for size in (1, 64, 4096, 100_000, 3 * MIB):
            data = os.urandom(size)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, data)
                room = bytearray(size)
                assert await sock.recv_into(room, waitall=True) == size
            assert room == data
        await stream.aclose()
        assert await process.wait() == 0


async def test_messages(options: exs.Options) -> None:
    async with partner("mirror", options) as (process, sock):
        channel = exs.MessageChannel(sock)
        for size in (0, 1, 64, 4096, 60_000):
            data = os.urandom(size)
            await channel.send(data)
            assert await channel.receive() == data
        await channel.aclose()
        assert await process.wait() == 0


# --- kill -9


async def killed(process: trio.Process) -> None:
    process.kill()
    await process.wait()


PHASES = {
    "idle": "deaf",
    "while it sends": "flood",
    "while it receives": "greedy",
    "with receives posted": "posted",
    "while it closes": "closing",
}


@pytest.mark.parametrize("phase", PHASES)
async def test_a_killed_peer_ends_each_operation_once(options: exs.Options, phase: str) -> None:
    async with partner(PHASES[phase], options) as (process, sock):
        region = exs.MemoryRegion(bytearray(8 * MIB))
        ended: list[int | None] = []

        async def send() -> None:
            try:
                while True:
                    await sock.send(region)
            except exs.Error as error:
                ended.append(error.errno)

        async def receive(view: exs.RegionView) -> None:
            try:
                while await sock.recv_into(view):
                    pass
                ended.append(0)
            except exs.Error as error:
                ended.append(error.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for view in region.split(2 * MIB)[:3]:
                nursery.start_soon(receive, view)
            await trio.sleep(random.random() * 0.05)
            await killed(process)
        assert len(ended) == 4
        allowed = {errno.ECONNRESET, errno.EPIPE} | ({0} if phase == "while it closes" else set())
        assert set(ended) <= allowed
        assert region.in_use == 0
        region.close()
        with pytest.raises(exs.Error):
            await sock.send(b"x")
        await sock.aclose()


async def test_a_peer_killed_while_it_connects(options: exs.Options) -> None:
    """Again and again: the listener stays well and nothing is left behind."""
    (listener,) = await exs.open_listeners(0, host=HOST, options=options)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, str(PARTNER), "dialling", str(options.path), str(listener.address[1])]
    async with listener, trio.open_nursery() as nursery:

        async def accept() -> None:
            while True:
                stream = await listener.accept()
                nursery.start_soon(trio.aclose_forcefully, stream)

        nursery.start_soon(accept)
        for i in range(4):
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE, env=environment)
            await is_ready(process)
            await trio.sleep(0.003 * i)
            await killed(process)
            assert process.stdout is not None
            await process.stdout.aclose()
        nursery.cancel_scope.cancel()
    a, b = await stream_pair(options)
    async with a, b:
        await a.send_all(b"all is well")
        assert await b.receive_some() == b"all is well"


# --- stopped and continued


async def test_a_stopped_sender_cannot_write_into_memory_that_was_given_back(options: exs.Options) -> None:
    """The connection is aborted while the sender is stopped in mid-transfer; then it goes on: not a byte changes."""
    async with partner("once", options) as (process, sock):
        memory = bytearray(8 * MIB)
        region = exs.MemoryRegion(memory)
        with trio.move_on_after(0.05 * random.random()):
            await sock.recv_into(region, waitall=True)
        process.send_signal(signal.SIGSTOP)
        sock.close()
        while region.in_use:
            await trio.sleep(0.001)
        region.close()
        memory[:] = b"2" * len(memory)
        process.send_signal(signal.SIGCONT)
        await trio.sleep(0.1)
        assert memory == b"2" * len(memory)


async def test_a_stopped_receiver_holds_nobody_up_for_longer_than_the_deadline(options: exs.Options) -> None:
    quick = exs.Options(path=options.path, progress=options.progress, close_timeout=0.2, ring_bytes=65536)
    async with partner("posted", quick) as (process, sock):
        process.send_signal(signal.SIGSTOP)
        with exs.MemoryRegion(bytearray(32 * MIB)) as region:
            with trio.move_on_after(0.1) as scope:
                while True:
                    await sock.send(region)
            assert scope.cancelled_caught
        process.send_signal(signal.SIGCONT)


# --- fork


def test_every_object_is_dead_in_a_forked_child(path: str) -> None:
    code = f"""
import os, sys, trio, exs
from exs.testing import stream_pair
async def main():
    a, b = await stream_pair(exs.Options(path={path!r}), host={HOST!r})
    region = exs.MemoryRegion(bytearray(10))
    pid = os.fork()
    if pid == 0:
        refused = 0
        for call in (a.socket.getsockname, lambda: exs.MemoryRegion(bytearray(1)), exs.statistics, exs.socket):
            try:
                call()
            except exs.Error as error:
                refused += error.errno == 22 and "fork" in str(error)
        os._exit(0 if refused == 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    await a.send_all(b"the parent is well")
    assert await b.receive_some() == b"the parent is well"
    region.close()
    await a.aclose()
    await b.aclose()
trio.run(main)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", code], check=True, timeout=patient(20), env=environment)
