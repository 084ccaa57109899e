# SPDX-License-Identifier: MIT OR Apache-2.0
"""What SMC-R tells of itself: to its own program, to ``exs smc status``, and to nobody else."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import pytest
import trio
from ground import patient

import exs
import exs.smc
from exs.smc import status_socket
from exs.smc.status import Group, Handshakes, Status
from exs.smc.status_socket import Silence, ask, ask_all, listed

pytestmark = pytest.mark.timeout(patient(60))

# A peer that is gone is waited for in the background: for less long than the search for leaks waits.
SMC = exs.Options(
    protocol="smc",
    device="soft",
    smc_option="assume",
    smc_eid=("EXS.TEST",),
    ring_bytes=65536,
    progress="thread",
    close_timeout=2.0,
)
BOUND = patient(20)

# A server that keeps what it accepts, says its port, and does what it is told.
SERVER = """
import os, sys, trio, exs
options = exs.Options(protocol="smc", device="soft", smc_option="assume", smc_eid=("EXS.TEST",), ring_bytes=65536)
kept = []

async def serve(listener):
    async with listener:
        while True:
            kept.append(await listener.accept())

async def main():
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=options)
    print(listener.address[1], flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, listener)
        while (word := (await trio.to_thread.run_sync(sys.stdin.readline)).strip()) not in ("", "end"):
            if word == "fork":
                child = os.fork()
                if not child:
                    os.read(0, 1)  # until the test closes the pipe
                    os._exit(0)
                print(child, flush=True)
        nursery.cancel_scope.cancel()
    for stream in kept:
        await trio.aclose_forcefully(stream)

trio.run(main)
print("over", flush=True)
sys.stdin.readline()
"""


@contextmanager
def server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that serves SMC-R, and its port."""
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], word: str) -> str:
    """Say a word to it; its answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


async def command(*arguments: str) -> tuple[int, str, str]:
    done = await trio.run_process(
        [sys.executable, "-m", "exs", "smc", "status", *arguments],
        capture_stdout=True, capture_stderr=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def names(pid: int) -> list[str]:
    return [name for name, claimed in listed() if claimed == pid]


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(BOUND):
        while not holds():
            await trio.sleep(0.01)


@asynccontextmanager
async def pairs(count: int) -> AsyncGenerator[list[tuple[exs.SocketStream, exs.SocketStream]]]:
    """So many connections of this process to itself: client and server of each."""
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=SMC)
    made: list[tuple[exs.SocketStream, exs.SocketStream]] = []
    accepted: list[exs.SocketStream] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    async with listener:
        for _ in range(count):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                stream = await exs.open_stream("127.0.0.1", listener.address[1], options=SMC)
            made.append((stream, accepted.pop()))
        yield made
    for pair in made:
        for stream in pair:
            await trio.aclose_forcefully(stream)


def group(status: Status, role: str) -> Group:
    """The youngest group of that role."""
    return [g for g in status.groups if g.role == role][-1]


# --- to its own program -------------------------------------------------------------------------------------------


async def test_a_run_without_smc_has_no_groups() -> None:
    status = exs.smc.status()
    assert (status.pid, status.groups, status.under_way) == (os.getpid(), (), 0)


async def test_groups_links_and_connections_are_seen() -> None:
    before = exs.smc.status().handshakes
    async with pairs(2) as ((one, two), _):
        await one.send_all(b"x" * 100)
        async with two.receive_view(40) as view:
            assert len(view) == 40
        status = exs.smc.status()
        client, server = group(status, "client"), group(status, "server")
        for ours, theirs in ((client, server), (server, client)):
            assert (ours.version, ours.state, ours.joinable, ours.room) == (2, "active", True, 253)
            assert (ours.link.state, ours.link.device, ours.link.reason) == ("up", "soft", "")
            assert (ours.link.peer_gid, ours.link.peer_qpn) == (theirs.link.gid, theirs.link.qpn)
            assert ours.link.number == theirs.link.number
            assert (ours.link.buffers, ours.link.buffer_bytes) == (2, 2 * 65536)
            assert [c.token for c in ours.connections] == [c.peer_token for c in theirs.connections]
            assert all(c.established and not c.error for c in ours.connections)
        assert client.link.cdc_sent == server.link.cdc_received == 1
        out, into = client.connections[0].sending, server.connections[0].receiving
        assert (out.buffer_bytes, out.nbytes, out.producer.count, out.waiting) == (65536, 100, 100, 0)
        assert (into.buffer_bytes, into.nbytes, into.producer.count) == (65536, 100, 100)
        assert (into.consumer.count, into.waiting) == (40, 60)
        assert status.handshakes.smc_v2 == before.smc_v2 + 4
    await until(lambda: not any(g.connections for g in exs.smc.status().groups))


async def test_a_full_buffer_is_seen_on_both_sides() -> None:
    async with pairs(1) as ((one, two),), trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, b"x" * 70_000)
        await until(lambda: group(exs.smc.status(), "server").connections[0].receiving.waiting == 65536)
        out = group(exs.smc.status(), "client").connections[0].sending
        into = group(exs.smc.status(), "server").connections[0].receiving
        assert (out.waiting, out.writer_blocked, into.writer_blocked) == (70_000 - 65536, True, True)
        assert (out.producer.wrap, out.producer.count) == (1, 0)
        got = 0
        while got < 70_000:
            got += len(await two.receive_some())


async def test_fallbacks_are_counted_with_their_reason() -> None:
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=replace(SMC, device="verbs"))
    accepted: list[exs.SocketStream] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    def counts() -> dict[tuple[int, bool], int]:
        return {(f.code, f.by_peer): f.count for f in exs.smc.status().handshakes.tcp}

    before = counts()
    async with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            stream = await exs.open_stream("127.0.0.1", listener.address[1], options=SMC)
        async with stream, accepted[0]:
            assert stream.transport == "tcp"
    more = {key: count for key, count in counts().items() if count != before.get(key, 0)}
    assert sorted(by_peer for _, by_peer in more) == [False, True]
    assert all(code and count == before.get((code, by), 0) + 1 for (code, by), count in more.items())


# --- memory -------------------------------------------------------------------------------------------------------


class Mallinfo(ctypes.Structure):
    # arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost
    _fields_ = [(f"n{i}", ctypes.c_size_t) for i in range(10)]


def allocated() -> int:
    """Bytes that malloc has handed out."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = Mallinfo
    info = libc.mallinfo2()
    gc.collect()
    return int(info.n7 + info.n4)


async def test_an_idle_connection_costs_one_buffer_and_no_more_than_it_may() -> None:
    count, ring = 50, 65536
    async with pairs(2):
        before = allocated(), [group(exs.smc.status(), role).link for role in ("client", "server")]
        async with pairs(count):
            links = [group(exs.smc.status(), role).link for role in ("client", "server")]
            for had, has in zip(before[1], links, strict=True):
                assert has.buffers - had.buffers == count
                assert has.buffer_bytes - had.buffer_bytes == count * ring
            # The buffer itself is a memory file, of which malloc knows nothing.
            assert ring + (allocated() - before[0]) / (2 * count) <= 2 * ring + 65536


# --- to the command -----------------------------------------------------------------------------------------------


async def test_two_processes_are_shown_as_they_see_each_other() -> None:
    with server() as (process, port):
        streams = [await exs.open_stream("127.0.0.1", port, options=SMC) for _ in range(2)]
        try:
            assert streams[0].transport == "smc-r v2"
            await streams[0].send_all(b"x" * 10)
            code, text, errors = await command("--json")
            assert (code, errors) == (0, "")
            found = {status["pid"]: status for status in json.loads(text)["processes"]}
            ours = [g for g in found[os.getpid()]["groups"] if g["connections"]]
            (theirs,) = found[process.pid]["groups"]
            assert len(ours) == 1
            assert (ours[0]["role"], theirs["role"]) == ("client", "server")
            assert [c["token"] for c in ours[0]["connections"]] == [c["peer_token"] for c in theirs["connections"]]
            assert theirs["connections"][0]["receiving"]["waiting"] == 10
            assert found[process.pid]["handshakes"]["smc_v2"] == 2
            code, text, errors = await command("--pid", str(process.pid))
            assert (code, errors) == (0, "")
            assert text.startswith(f"process {process.pid} (")
            assert f"{theirs['connections'][1]['token']:08x}" in text
            assert str(os.getpid()) not in text.split("group")[0]
        finally:
            for stream in streams:
                await trio.aclose_forcefully(stream)


async def test_a_process_that_does_not_answer_is_named() -> None:
    with server() as (process, port):
        async with await exs.open_stream("127.0.0.1", port, options=SMC):
            os.kill(process.pid, signal.SIGSTOP)
            try:
                assert await ask_all(process.pid, 0.2) == [Silence(process.pid, "no answer within 0.2 s")]
                code, text, errors = await command("--pid", str(process.pid))
            finally:
                os.kill(process.pid, signal.SIGCONT)
            assert (code, text) == (1, "")
            assert f"process {process.pid} does not say what it does: no answer within 3 s" in errors


async def test_a_name_goes_with_its_run_and_with_its_process() -> None:
    for end in ("run", "process"):
        with server() as (process, port):
            async with await exs.open_stream("127.0.0.1", port, options=SMC) as stream:
                assert len(names(process.pid)) == 1
                if end == "run":
                    assert await trio.to_thread.run_sync(tell, process, "end") == "over"
                    assert process.poll() is None
                else:
                    process.kill()
                    process.wait(BOUND)
                assert not names(process.pid)
                await trio.aclose_forcefully(stream)
            code, text, _ = await command("--pid", str(process.pid))
            assert (code, text) == (3, f"process {process.pid} is none that uses SMC-R\n")


async def test_a_fork_does_not_answer_for_its_parent() -> None:
    with server() as (process, port):
        async with await exs.open_stream("127.0.0.1", port, options=SMC) as stream:
            child = int(await trio.to_thread.run_sync(tell, process, "fork"))
            assert not names(child)
            (answer,) = await ask_all(process.pid)  # the parent has not noticed anything
            assert isinstance(answer, Status)
            assert answer.groups[0].connections
            process.kill()
            process.wait(BOUND)
            os.kill(child, 0)
            assert not names(process.pid)
            await trio.aclose_forcefully(stream)


# --- to nobody else -----------------------------------------------------------------------------------------------

BIG = Status(pid=1, under_way=0, groups=(), handshakes=Handshakes(smc_v2=0, smc_v1=0, failed=0, tcp=()))


@asynccontextmanager
async def answering(look: Callable[[], Status]) -> AsyncGenerator[str]:
    """A socket of this process that answers with this; its name."""
    listener = status_socket.open_listener()
    name = listener.getsockname().decode()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(status_socket.serve, listener, look)
        yield name
        nursery.cancel_scope.cancel()
    assert name not in [known for known, _ in listed()]


async def test_a_client_that_does_not_read_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_socket, "SEND_S", 0.2)
    encode = status_socket.encode
    monkeypatch.setattr(status_socket, "encode", lambda status: encode(status) + b" " * (2 << 20))
    async with answering(lambda: BIG) as name:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as idle:
            idle.connect(name)
            assert await ask(name, os.getpid(), BOUND) == replace(BIG, pid=os.getpid())


async def test_a_failure_to_look_ends_one_answer_and_not_the_run() -> None:
    looks: list[int] = []

    def look() -> Status:
        looks.append(1)
        if len(looks) == 1:
            raise ZeroDivisionError
        return BIG

    async with answering(look) as name:
        assert await ask(name, os.getpid()) == Silence(os.getpid(), "it refused to answer")
        assert await ask(name, os.getpid()) == replace(BIG, pid=os.getpid())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_another_user_is_told_nothing() -> None:
    code = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as ask:
    ask.settimeout(float(sys.argv[2]))
    ask.connect("\\0" + sys.argv[1])
    try:
        print(len(ask.recv(1000)))
    except ConnectionResetError:
        print(0)
"""
    looks: list[int] = []

    def look() -> Status:
        looks.append(1)
        return BIG

    async with answering(look) as name:
        done = await trio.run_process([sys.executable, "-c", code, name[1:], str(BOUND)], capture_stdout=True)
        assert done.stdout == b"0\n"
        assert not looks
        assert isinstance(await ask(name, os.getpid()), Status)


@pytest.mark.parametrize(
    ("answer", "words"),
    [(b"garbage", "no JSON"), (b'{"version":9}', "version 9"), (b" " * (5 << 20), "longer than"), (None, "no answer")],
)
async def test_a_strange_answer_is_named_and_bounded(answer: bytes | None, words: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(f"\0exs-smc-{os.getpid()}-{'ab' * 12}")
        listener.listen()
        tcp = trio.socket.from_stdlib_socket(listener)
        listener.setblocking(False)

        async def reply() -> None:
            client, _ = await tcp.accept()
            with client:
                if answer is None:
                    await trio.sleep_forever()
                try:
                    await trio.SocketStream(client).send_all(answer or b"")
                except trio.BrokenResourceError:
                    pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reply)
            seconds = 0.2 if answer is None else BOUND
            (name,) = [name for name in names(os.getpid()) if name.endswith("ab" * 12)]
            found = await ask(name, os.getpid(), seconds)
            nursery.cancel_scope.cancel()
    assert isinstance(found, Silence)
    assert words in found.reason
