# SPDX-License-Identifier: MIT OR Apache-2.0
"""Each machine of SMC-R logs every change of its state once, with all that it takes to follow it."""

from __future__ import annotations

import errno
import itertools
import logging
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from smc_pair import Fault, connect, pair

from exs.smc import actions as a
from exs.smc import clc, llc
from exs.smc.link_group import GroupState
from exs.smc.states import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from smc_pair import Host, World

    Scenario = Callable[[World, Host, Host], None]


def transitions(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if hasattr(record, "exs_smc_kind")]


def shown(record: logging.LogRecord) -> tuple[str, str, str]:
    return record.exs_smc_old, record.exs_smc_new, record.exs_smc_input  # type: ignore[attr-defined]


def used_then_idle(world: World, one: Host, two: Host) -> None:
    for _ in range(2):
        calls = connect(one, two)
        world.run(5)
        for call in calls:
            call.host.finish(call)
    world.run(700)


def link_lost(world: World, one: Host, two: Host) -> None:
    connect(one, two)
    world.run(5)
    one.fail_link(min(one.links))
    two.fail_link(min(two.links))


def no_buffer(world: World, one: Host, two: Host) -> None:
    two.failing = lambda action: errno.ENOMEM if isinstance(action, a.NewRmb) else 0
    connect(one, two)
    world.run(30)


def tcp_lost(world: World, one: Host, two: Host) -> None:
    world.faults = lambda message, index: Fault(lost=isinstance(message, a.SendClc) and index == 2)
    connect(one, two)
    world.run(30)


def end_of_the_run(world: World, one: Host, two: Host) -> None:
    connect(one, two)
    world.run(5)
    for host in (one, two):
        for group in host.groups:
            host.perform(group.leave(), None)


SCENARIOS: list[Scenario] = [used_then_idle, link_lost, no_buffer, tcp_lost, end_of_the_run]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)
def test_the_lines_of_a_machine_are_its_whole_life(scenario: Scenario, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "exs.smc")
    world, one, two = pair()
    scenario(world, one, two)
    lives: dict[tuple[str, str, int], list[tuple[str, str, str]]] = defaultdict(list)
    for record in transitions(caplog):
        key = (record.exs_smc_role, record.exs_smc_kind, record.exs_smc_serial)  # type: ignore[attr-defined]
        lives[key].append(shown(record))
    assert {kind for _, kind, _ in lives} == {"handshake", "group"}
    for (_, kind, _), life in lives.items():
        assert life[0][0] == ("new" if kind == "group" else State.START.value)
        for (_, new, _), (old, _, _) in itertools.pairwise(life):
            assert new == old
        assert all(old != new for old, new, _ in life)
        if kind == "group":
            assert life[-1][1] == GroupState.ENDED.value
    for host in (one, two):
        for call in host.calls:
            assert lives[call.machine.role.value, "handshake", call.machine.serial][-1][1] == call.state.value


def test_a_line_says_who_came_from_where_to_where_and_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "exs.smc")
    world, one, two = pair()
    connect(one, two)
    world.run(5)
    (group,) = one.groups
    (token,) = group.slots
    lines = [record.getMessage() for record in transitions(caplog) if record.exs_smc_role == "client"]  # type: ignore[attr-defined]
    where = f"group 1, link {group.link:#x}, token {token:08x}"
    assert lines == [
        "smc client handshake 1: start -> wait for ACCEPT (start)",
        "smc client handshake 1: wait for ACCEPT -> making a link (ACCEPT, first contact)",
        f"smc client group 1, link {group.link:#x}: new -> forming (link made)",
        f"smc client handshake 1, {where}: making a link -> wait for CONFIRM_LINK (buffer made)",
        f"smc client handshake 1, {where}: wait for CONFIRM_LINK -> wait for ADD_LINK (CONFIRM_LINK)",
        f"smc client group 1, link {group.link:#x}: forming -> active (CONFIRM_LINK)",
        f"smc client handshake 1, {where}: wait for ADD_LINK -> open (ADD_LINK)",
    ]


def test_a_failure_says_its_code_in_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "exs.smc")
    world, one, two = pair()
    no_buffer(world, one, two)
    inputs = [record.exs_smc_input for record in transitions(caplog)]  # type: ignore[attr-defined]
    assert f"SMC-R impossible: {clc.reason_text(clc.DECLINE_MEMORY)}" in inputs


def test_a_message_that_changes_no_state_makes_no_line(caplog: pytest.LogCaptureFixture) -> None:
    world, one, two = pair()
    connect(one, two)
    world.run(5)
    caplog.set_level(logging.DEBUG, "exs.smc")
    (group,) = two.groups
    two.perform(two.groups.receive(group.link, llc.ReqAddLink(gids=(bytes(16),)).encode(), now=world.now), None)
    assert not transitions(caplog)


def test_nothing_is_made_for_a_level_that_nobody_hears(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "exs.smc")
    world, one, two = pair()
    connect(one, two)
    world.run(5)
    assert not transitions(caplog)
