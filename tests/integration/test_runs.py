# SPDX-License-Identifier: MIT OR Apache-2.0
"""The pump: one for each trio run, nothing left after it, whatever the program did."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from ground import HOST, patient, scaled, silent

import exs
from exs.testing import message_pair, no_leaks, stream_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

MIB = 1 << 20


async def move(options: exs.Options, nbytes: int, seed: int) -> None:
    """Some data, both ways."""
    a, b = await stream_pair(options)
    data = bytes([seed]) * nbytes

    async def receive(stream: exs.SocketStream) -> None:
        got = 0
        room = bytearray(65536)
        while got < nbytes:
            count = await stream.receive_into(room)
            assert room[:count] == data[:count]
            got += count

    async with a, b, trio.open_nursery() as nursery:
        for sender, receiver in ((a, b), (b, a)):
            nursery.start_soon(sender.send_all, data)
            nursery.start_soon(receive, receiver)


def test_runs_in_threads_have_a_pump_each(options: exs.Options) -> None:
    errors: list[BaseException] = []

    def run(seed: int) -> None:
        try:
            for _ in range(3):
                trio.run(move, options, scaled(3 * MIB), seed)
        except BaseException as error:
            errors.append(error)

    with no_leaks():
        threads = [threading.Thread(target=run, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
    assert not errors, errors


async def test_both_progress_modes_side_by_side(path: str) -> None:
    async with trio.open_nursery() as nursery:
        for seed in range(3):
            for mode in ("inline", "thread"):
                options = exs.Options(path=path, progress=mode)  # type: ignore[arg-type]
                nursery.start_soon(move, options, scaled(2 * MIB), seed)


async def test_a_thread_socket_and_an_inline_socket_talk(path: str) -> None:
    inline, threaded = (exs.Options(path=path, progress=mode) for mode in ("inline", "thread"))  # type: ignore[arg-type]
    (listener,) = await exs.open_listeners(0, host=HOST, options=inline)
    async with listener, trio.open_nursery() as nursery:

        async def serve() -> None:
            async with await listener.accept() as stream:
                async for data in stream:
                    await stream.send_all(data)

        nursery.start_soon(serve)
        async with await exs.open_stream(HOST, listener.address[1], options=threaded) as stream:
            for i in range(50):
                await stream.send_all(b"%d" % i)
                assert await stream.receive_some() == b"%d" % i


def test_nothing_is_left_after_runs(options: exs.Options) -> None:
    trio.run(move, options, 1000, 1)
    with no_leaks():
        for _ in range(10):
            trio.run(move, options, 100_000, 1)


def test_import_and_an_unused_run_open_nothing() -> None:
    code = (
        "import os, threading; before = len(os.listdir('/proc/self/fd'))\n"
        "import trio, exs\n"
        "async def main(): await trio.sleep(0)\n"
        "trio.run(main)\n"
        "assert len(os.listdir('/proc/self/fd')) == before\n"
        "assert threading.active_count() == 1 and len(os.listdir('/proc/self/task')) == 1\n"
        "assert 'rich' not in __import__('sys').modules\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-P", "-c", code], check=True, timeout=patient(20), env=environment)


# --- the end of a run


def test_what_is_still_open_at_the_end_is_ended_with_a_warning_each(options: exs.Options) -> None:
    kept: list[object] = []

    async def main() -> None:
        kept.extend(await stream_pair(options))
        kept.extend(await message_pair(options))

    with no_leaks():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trio.run(main)
        assert [w.category for w in caught] == [ResourceWarning] * 4
        kept.clear()


def test_a_warning_made_an_error_does_not_kill_the_run(options: exs.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    kept: list[object] = []

    async def main() -> str:
        kept.extend(await stream_pair(options))
        return "well"

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trio.run(main) == "well"
    assert len(seen) == 2


async def test_a_forgotten_socket_warns_and_ends(options: exs.Options) -> None:
    a, b = await stream_pair(options)
    with pytest.warns(ResourceWarning, match="never closed"):
        del a
        gc.collect()
    with pytest.raises(trio.BrokenResourceError):
        await b.receive_some()
    await b.aclose()


def test_an_async_generator_finalised_after_the_pump(options: exs.Options) -> None:
    ended: list[str] = []
    kept: list[object] = []

    async def lines() -> AsyncIterator[bytes]:
        a, b = await stream_pair(options)
        try:
            yield b"first"
        finally:
            with trio.CancelScope(shield=True):  # such code runs cancelled
                with pytest.raises(trio.ClosedResourceError):
                    await a.send_all(b"x")
                await a.aclose()
                await b.aclose()
            ended.append("closed")

    async def main() -> None:
        generator = lines()
        kept.append(generator)
        assert await anext(generator) == b"first"

    with no_leaks(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        trio.run(main)
    assert ended == ["closed"]


def test_what_was_closed_in_order_arrives_though_the_run_ends_at_once(path: str) -> None:
    """The receiver is another run, which starts to read when the sender's is over."""
    options = exs.Options(path=path)  # type: ignore[arg-type]
    data = os.urandom(200_000)
    port: list[int] = []
    listening, sent = threading.Event(), threading.Event()
    got = bytearray()

    async def receive() -> None:
        (listener,) = await exs.open_listeners(0, host=HOST, options=options)
        port.append(listener.address[1])
        listening.set()
        async with listener, await listener.accept() as stream:
            await trio.to_thread.run_sync(sent.wait, 10)
            async for part in stream:
                got.extend(part)

    async def send() -> None:
        async with await exs.open_stream(HOST, port[0], options=options) as stream:
            await stream.send_all(data)

    thread = threading.Thread(target=trio.run, args=(receive,))
    thread.start()
    assert listening.wait(10)
    trio.run(send)
    sent.set()
    thread.join(20)
    assert got == data


def test_a_crash_of_the_program_ends_all(options: exs.Options) -> None:
    async def main() -> None:
        a, b = await stream_pair(options)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.receive_some)
            nursery.start_soon(b.socket.recv, 100)
            await trio.testing.wait_all_tasks_blocked()
            raise KeyError

    with no_leaks(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with pytest.raises(ExceptionGroup):
            trio.run(main)
        gc.collect()


def test_guest_mode(options: exs.Options) -> None:
    """Trio as the guest of a loop that only runs what it is given."""
    import queue

    todo: queue.Queue[Callable[[], object]] = queue.Queue()
    done: list[object] = []
    trio.lowlevel.start_guest_run(
        move,
        options,
        500_000,
        1,
        run_sync_soon_threadsafe=todo.put,
        done_callback=done.append,
    )
    while not done:
        todo.get(timeout=patient(20))()
    done[0].unwrap()  # type: ignore[attr-defined]


async def test_a_busy_loop_still_serves_sockets(options: exs.Options) -> None:
    """A task that is always runnable: the loop never sleeps, so nothing wakes it by a descriptor."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def spin() -> None:
                while True:
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(spin)
            await move(options, MIB, 1)
            scope.cancel()


async def test_waiting_costs_no_cpu(options: exs.Options) -> None:
    import time

    a, b = await stream_pair(options)
    async with a, b, trio.open_nursery() as nursery:
        nursery.start_soon(b.receive_some)
        await trio.sleep(0.05)
        before = time.process_time()
        await trio.sleep(0.5)
        assert time.process_time() - before < 0.25
        await a.send_all(b"x")


def test_busy_waiting_is_an_option(path: str) -> None:
    async def main() -> None:
        with trio.fail_after(patient(20)):
            await move(exs.Options(path=path, wait="busy"), MIB, 3)  # type: ignore[arg-type]

    with no_leaks():
        trio.run(main)


# --- Ctrl-C


CALLS: dict[str, Callable[[exs.Socket, exs.Socket, exs.BufferPool], Awaitable[object]]] = {
    "send": lambda a, b, _: a.send(bytes(5_000_000)),
    "recv": lambda a, b, _: a.recv(100),
    "recv_into": lambda a, b, _: a.recv_into(bytearray(1_000_000), waitall=True),
    "receive_some": lambda a, b, _: exs.SocketStream(a).receive_some(),
    "accept": lambda a, b, _: _accept(),
    "connect": lambda a, b, _: _connect(),
    "put": lambda a, b, _: _put(a),
    "get_many": lambda a, b, pool: _get(a, pool),
    "aclose of a region": lambda a, b, _: _region(a),
}


async def _accept() -> None:
    async with exs.socket() as sock:
        sock.bind((HOST, 0))
        sock.listen()
        await sock.accept()


async def _connect() -> None:
    with silent() as address:
        async with exs.socket() as sock:
            await sock.connect(address)


async def _put(sock: exs.Socket) -> None:
    async with sock.send_queue(2) as tx:
        while True:
            await tx.put(bytes(1_000_000))


async def _get(sock: exs.Socket, pool: exs.BufferPool) -> None:
    async with sock.receive_queue(pool) as rx:
        await rx.get_many(1)


async def _region(sock: exs.Socket) -> None:
    async with exs.MemoryRegion(bytearray(1000)) as region, trio.open_nursery() as nursery:
        nursery.start_soon(sock.recv_into, region)
        for _ in range(3):  # until the receive is posted
            await trio.sleep(0)
        await region.aclose()


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("later", [False, True], ids=["parking", "parked"])
def test_ctrl_c_ends_each_await(options: exs.Options, name: str, later: bool) -> None:
    """The signal comes while the task goes to sleep, or sleeps; the buffers are ours when KeyboardInterrupt is out."""

    async def main() -> None:
        with trio.fail_after(patient(20)):
            a, b = await stream_pair(options)
            with exs.BufferPool(100, 8) as pool:
                try:
                    async with trio.open_nursery() as nursery:
                        if later:

                            async def press() -> None:
                                await trio.testing.wait_all_tasks_blocked(0.01)
                                signal.raise_signal(signal.SIGINT)

                            nursery.start_soon(press)
                        else:
                            trio.lowlevel.current_trio_token().run_sync_soon(signal.raise_signal, signal.SIGINT)
                        await CALLS[name](a.socket, b.socket, pool)
                finally:
                    assert pool.available == 8
                    await trio.aclose_forcefully(a)
                    await trio.aclose_forcefully(b)

    with no_leaks(threads=2), pytest.raises((KeyboardInterrupt, BaseExceptionGroup)) as caught:
        trio.run(main)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = next((e for e in error.exceptions if not isinstance(e, trio.Cancelled)), error.exceptions[0])
    assert isinstance(error, KeyboardInterrupt)


def test_ctrl_c_at_every_step_of_a_transfer_loses_no_byte(path: str) -> None:
    """A line of Python after the other of send and receive is interrupted; what was said to be sent, arrives."""
    options = exs.Options(path=path)  # type: ignore[arg-type]
    interrupted = 0

    async def one(step: int) -> bool:
        """Send a message; Ctrl-C strikes at the step-th line of our code. Whether it was interrupted."""
        nonlocal interrupted
        a, b = await stream_pair(options)
        count = 0
        here = os.path.dirname(exs.__file__)

        def trace(frame: object, event: str, arg: object) -> object:
            nonlocal count
            if frame.f_code.co_filename.startswith(here) and "testing" not in frame.f_code.co_filename:  # type: ignore[attr-defined]
                if event == "line":
                    count += 1
                    if count == step:
                        signal.raise_signal(signal.SIGINT)
                return trace
            return None

        try:
            async with a, b:
                try:
                    sys.settrace(trace)  # type: ignore[arg-type]
                    await a.send_all(b"0123456789")
                    got = await b.receive_some(100)
                finally:
                    sys.settrace(None)
                assert got == b"0123456789"
        except KeyboardInterrupt:
            interrupted += 1
        assert a.socket.closed
        assert b.socket.closed
        return count < step

    step = 1
    while True:
        try:
            if trio.run(partial(one, step)):
                break
        except KeyboardInterrupt:
            interrupted += 1
        step += 1
    assert step > 20
    assert interrupted > 10
