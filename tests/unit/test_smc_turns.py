# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whose turn it is to begin a handshake, and that what has come is looked at before the time is up."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from exs._config import Options, resolve
from exs.smc import actions as a
from exs.smc import turns
from exs.smc.connect import Call
from exs.smc.service import current_service
from exs.smc.stream import FallbackStream
from exs.smc.turns import PATIENCE_S, PLACES, Turns

HERE, THERE = ("10.0.0.1", 1), ("10.0.0.2", 1)


def run(test: Callable[[Turns], Awaitable[None]]) -> None:
    """Run it with a clock that jumps."""

    async def main() -> None:
        line = Turns()
        await test(line)
        assert len(line) == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def stay(line: Turns, seconds: float) -> None:
    async with line.one(HERE):
        await trio.sleep(seconds)


def test_so_many_begin_at_once_and_then_the_others() -> None:
    begun: list[float] = []

    async def use(line: Turns) -> None:
        async with line.one(HERE):
            begun.append(trio.current_time())
            await trio.sleep(1)

    async def crowd(line: Turns) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3 * PLACES):
                nursery.start_soon(use, line)

    run(crowd)
    assert [round(at - begun[0]) for at in begun] == [0] * PLACES + [1] * PLACES + [2] * PLACES


def test_one_server_keeps_nobody_from_another() -> None:
    async def test(line: Turns) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(PLACES):
                nursery.start_soon(stay, line, 100)
            await trio.testing.wait_all_tasks_blocked()
            before = trio.current_time()
            async with line.one(THERE):
                assert trio.current_time() == before
            nursery.cancel_scope.cancel()

    run(test)


def test_a_turn_that_does_not_come_is_not_waited_for_for_ever() -> None:
    async def test(line: Turns) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(PLACES):
                nursery.start_soon(stay, line, 100)
            await trio.testing.wait_all_tasks_blocked()
            before = trio.current_time()
            async with line.one(HERE):
                assert trio.current_time() - before == pytest.approx(PATIENCE_S)

    run(test)


def test_a_place_comes_back_whatever_ended_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PLACES", 1)

    async def test(line: Turns) -> None:
        for _ in range(2):
            with pytest.raises(KeyError):
                async with line.one(HERE):
                    with trio.move_on_after(1) as waiting:
                        await stay(line, 0)
                    assert waiting.cancelled_caught
                    raise KeyError

    run(test)


class Late:
    """A machine whose time is up already, and which goes on in TCP with what it is given."""

    state = None
    deadline = float("-inf")

    def __init__(self) -> None:
        self.events: list[a.Event] = []

    def receive(self, event: a.Event, *, now: float) -> list[a.Action]:
        self.events.append(event)
        if isinstance(event, a.NotClc):
            return [a.Fallback(0, by_peer=True, payload=event.data)]
        return [a.Fail(TimeoutError())] if isinstance(event, a.Timeout) else []  # type: ignore[arg-type]


async def test_what_came_in_time_counts_also_if_it_is_seen_late() -> None:
    settings = resolve(Options(protocol="smc", device="soft"))
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b"GET /")
        ours.setblocking(False)
        machine = Late()
        stream = await Call(current_service(settings), machine, ours, settings).run()  # type: ignore[arg-type]
        assert isinstance(stream, FallbackStream)
        assert [type(event) for event in machine.events] == [a.Start, a.NotClc]
        assert await stream.receive_some() == b"GET /"
        stream.abandon()
