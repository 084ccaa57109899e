# SPDX-License-Identifier: MIT OR Apache-2.0
"""exs and the kernel's AF_SMC, each as client and as server: SMC-R v2 over soft-RoCE, and the data of both."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import AsyncExitStack

import kernel_smc
import pytest
import smc_peer
import trio
from smc_peer import OPTIONS, ROLES, Role, in_thread

import exs

pytestmark = [
    pytest.mark.skipif("EXS_LAB_PEER" not in os.environ, reason="needs two guests"),
    pytest.mark.timeout(300),
]

KIB, MIB = 1024, 1024 * 1024


@pytest.fixture(scope="module", autouse=True)
def smc() -> None:
    """Both kernels are ready for SMC-R."""
    smc_peer.set_up()


async def send(stream: exs.SocketStream, data: bytes, chunk: int) -> None:
    for at in range(0, len(data), chunk):
        await stream.send_all(data[at : at + chunk])
    await stream.send_eof()


async def receive(stream: exs.SocketStream, chunk: int) -> tuple[int, str]:
    total, digest = 0, hashlib.sha256()
    while data := await stream.receive_some(chunk):
        total += len(data)
        digest.update(data)
    return total, digest.hexdigest()


async def exchange(stream: exs.SocketStream, size: int, chunk: int) -> None:
    """Both directions at once, and what came is what the other side's pattern is."""
    found: list[tuple[int, str]] = []

    async def keep() -> None:
        found.append(await receive(stream, chunk))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, stream, kernel_smc.pattern(size, 2), chunk)
        nursery.start_soon(keep)
    assert found == [(size, hashlib.sha256(kernel_smc.pattern(size, 1)).hexdigest())]


@ROLES
@pytest.mark.parametrize(("size", "chunk"), [(1, 1), (3000, 100), (300 * KIB, 7000), (4 * MIB, 64 * KIB)])
async def test_both_directions_at_once(role: Role, size: int, chunk: int) -> None:
    before = kernel_smc.sent_packets()
    async with role("exchange", "--bytes", size, "--chunk", chunk) as (stream, other):
        await exchange(stream, size, chunk)
        status, text = await in_thread(other.wait)
    assert (status, text) == (0, smc_peer.received(size))
    assert kernel_smc.sent_packets() > before


@ROLES
async def test_64_mib(role: Role) -> None:
    async with role("exchange", "--bytes", 64 * MIB, "--chunk", 256 * KIB) as (stream, other):
        await exchange(stream, 64 * MIB, 256 * KIB)
        assert (await in_thread(other.wait, 120.0))[1] == smc_peer.received(64 * MIB)


@ROLES
@pytest.mark.smcr(74, 75, 77)
@pytest.mark.parametrize("kib", [16, 32, 64, 128, 256, 512])
async def test_buffers_of_every_size(role: Role, kib: int) -> None:
    use = exs.Options(protocol="smc", device="verbs", smc_eid=(kernel_smc.EID,), ring_bytes=max(kib, 64) * KIB)
    sizes = ("--rcvbuf", kib * KIB, "--sndbuf", kib * KIB)
    async with role("exchange", "--bytes", MIB, "--chunk", 50_000, *sizes, use=use) as (stream, other):
        await exchange(stream, MIB, 50_000)
        assert (await in_thread(other.wait))[1] == smc_peer.received(MIB)


@ROLES
async def test_a_view_of_the_buffer(role: Role) -> None:
    async with role("exchange", "--bytes", 200_000) as (stream, other):
        digest, total = hashlib.sha256(), 0
        await send(stream, kernel_smc.pattern(10, 2), 10)
        while True:
            async with stream.receive_view() as view:
                if not len(view):
                    break
                digest.update(view)
                total += len(view)
        assert (total, digest.digest()) == (200_000, hashlib.sha256(kernel_smc.pattern(200_000, 1)).digest())
        assert (await in_thread(other.wait))[1] == smc_peer.received(10)


def link_groups_there() -> int:
    count = smc_peer.kernel_there()["link_groups"]
    assert isinstance(count, int)
    return count


async def test_several_connections_in_one_link_group() -> None:
    server = await in_thread(lambda: smc_peer.there("echo", "--connections", 5))
    with server:
        port = int(await in_thread(server.expect, "listening"))
        before = await in_thread(link_groups_there)  # those of the tests before may end at any moment
        async with AsyncExitStack() as stack:
            streams = [
                await stack.enter_async_context(await exs.open_stream(smc_peer.THERE, port, options=OPTIONS))
                for _ in range(5)
            ]
            assert {s.transport for s in streams} == {"smc-r v2"}
            assert await in_thread(link_groups_there) <= before + 1
            for number, stream in enumerate(streams):
                await stream.send_all(b"%d" % number * 1000)
            for number, stream in enumerate(streams):
                got = b""
                while len(got) < 1000:
                    got += await stream.receive_some()
                assert got == b"%d" % number * 1000
        assert (await in_thread(server.wait))[0] == 0


@ROLES
@pytest.mark.smcr(85)
async def test_the_kernel_closes_first(role: Role) -> None:
    async with role("first", "--bytes", 5000) as (stream, _):
        assert (await receive(stream, 700))[0] == 5000


@ROLES
@pytest.mark.smcr(86)
async def test_half_close(role: Role) -> None:
    async with role("echo") as (stream, other):
        await stream.send_all(b"before the end")
        await stream.send_eof()
        assert (await receive(stream, 700))[0] == len(b"before the end")
        assert (await in_thread(other.wait))[0] == 0


@ROLES
@pytest.mark.smcr(87)
async def test_the_kernel_closes_with_unread_data(role: Role) -> None:
    async with role("unread") as (stream, other):
        await in_thread(other.expect, "unread")
        await stream.send_all(b"never read")
        await trio.sleep(1)
        other.write("go on\n")
        with pytest.raises(trio.BrokenResourceError) as broken:
            await stream.receive_some()
        assert isinstance(broken.value.__cause__, exs.Error)
        assert broken.value.__cause__.errno == errno.ECONNRESET


@ROLES
async def test_the_kernels_program_is_killed(role: Role) -> None:
    async with role("hold") as (stream, other):
        await in_thread(other.expect, "holding")
        other.kill()
        with trio.fail_after(60):
            # Its kernel closes for it: in order, since nothing was unread.
            assert await stream.receive_some() == b""


async def test_nothing_is_left_over() -> None:
    async def gone() -> bool:
        rows = (await in_thread(smc_peer.kernel_there))["sockets"]
        return not rows

    with trio.fail_after(60):
        while not await gone():
            await trio.sleep(0.5)
