# SPDX-License-Identifier: MIT OR Apache-2.0
"""The status of SMC-R as values, as a document, and in words."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict, replace

import pytest
import trio

import exs.smc
from exs.cli import common, main
from exs.cli import smc as command
from exs.smc import outcomes, status_socket
from exs.smc.outcomes import Outcomes, Reason
from exs.smc.snapshot import direction
from exs.smc.status import Connection, Cursor, Direction, Fallback, Group, Handshakes, Link, Status
from exs.smc.status_socket import Silence, decode, encode, listed

WAY = Direction(
    buffer_bytes=65536, producer=Cursor(wrap=1, count=100), consumer=Cursor(wrap=0, count=65000), nbytes=65636,
    waiting=636, writer_blocked=True, urgent_pending=False, urgent_present=False,
    done=True, closed=False, aborted=False,
)  # fmt: skip
ONE = Connection(token=0x1234, peer_token=0xABCD, established=True, error="", sending=WAY, receiving=WAY)
LINK = Link(
    device="soft", number=1, state="up", reason="", gid="fd45::1", peer_gid="fd45::2", qpn=17, peer_qpn=18, mtu=4096,
    idle_s=0.25, cdc_sent=1, cdc_received=2, cdc_unknown=3, llc_sent=4, llc_received=5, tests_sent=6, tests_answered=7,
    buffers=2, buffer_bytes=131072,
)  # fmt: skip
GROUP = Group(
    serial=1, role="client", version=2, peer_id="0102030405060708", state="active", joinable=True, room=254, ignored=0,
    link=LINK, connections=(ONE,),
)  # fmt: skip
ENDS = Handshakes(
    smc_v2=3, smc_v1=1, failed=1,
    tcp=(Fallback(code=0x03030008, reason="no enterprise id in common", by_peer=True, count=2),),
)  # fmt: skip
STATUS = Status(pid=4711, under_way=1, groups=(GROUP,), handshakes=ENDS)


# --- the document -------------------------------------------------------------------------------------------------


def test_a_document_is_read_as_it_was_written() -> None:
    assert decode(encode(STATUS)) == STATUS
    assert json.loads(encode(STATUS))["version"] == status_socket.VERSION


def test_members_of_a_later_release_are_ignored() -> None:
    document = json.loads(encode(STATUS))
    document["more"] = document["groups"][0]["link"]["more"] = [1]
    assert decode(json.dumps(document).encode()) == STATUS


def changed(*path: str | int, to: object) -> bytes:
    document = json.loads(encode(STATUS))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\xff\xfe", "no JSON"),
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no status"),
        (b"{}", "version None"),
        (changed("version", to=2), "version 2"),
        (changed("version", to="x" * 1000), "version 'xxx"),
        (changed("pid", to="1"), "Status.pid is no int"),
        (changed("pid", to=True), "Status.pid is no int"),
        (changed("groups", to={}), "Status.groups is no list"),
        (changed("groups", 0, to=5), "no Group"),
        (changed("groups", 0, "link", "reason", to=None), "Link.reason is no str"),
        (changed("groups", 0, "connections", 0, "sending", "producer", to={"wrap": 1}), "Cursor.count is missing"),
    ],
)
def test_an_answer_is_checked_in_each_member(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match="answer") as refused:
        decode(data)
    assert words in str(refused.value)
    assert len(str(refused.value)) < 200


def test_names_are_those_of_listening_sockets_of_ours() -> None:
    digits = "0123456789abcdef01234567"
    lines = [
        "Num       RefCount Protocol Flags    Type St Inode Path",
        f"0000: 00000002 00000000 00010000 0001 01 1001 @exs-smc-200-{digits}",
        f"0000: 00000003 00000000 00000000 0001 03 1002 @exs-smc-200-{digits}",
        f"0000: 00000002 00000000 00010000 0001 01 1003 @exs-smc-31-{digits}",
        f"0000: 00000003 00000000 00000000 0001 03 1004 @exs-smc-40-{digits}",
        f"0000: 00000002 00000000 00010000 0005 01 1005 @exs-{digits}",
        "0000: 00000002 00000000 00010000 0001 01 1006 /run/exs-smc-1-x",
        f"0000: 00000002 00000000 00010000 0001 01 1007 @exs-smc-0-{digits}",
        "0000: 00000002 00000000 00010000 0001 01 1008",
    ]
    assert listed(lines) == [(f"\0exs-smc-31-{digits}", 31), (f"\0exs-smc-200-{digits}", 200)]


# --- counting -----------------------------------------------------------------------------------------------------


def test_a_peer_cannot_make_the_table_of_reasons_grow() -> None:
    counts = Outcomes()
    for code in range(1000):
        counts.add_fallback(Reason(code, f"reason {code:08x}", by_peer=True))
    counts.add_fallback(Reason(0, "reason 00000000", by_peer=True))
    assert len(counts.tcp) == outcomes.REASONS_MAX + 1
    assert counts.tcp[Reason(0, "reason 00000000", by_peer=True)] == 2
    assert counts.tcp[outcomes.OTHER] == 1000 - outcomes.REASONS_MAX


def test_reasons_are_sorted_by_how_often_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes, "_counts", Outcomes())
    outcomes.count_fallback("rare", by_peer=False)
    for _ in range(3):
        outcomes.count_fallback("often", 5, by_peer=True)
    outcomes.count_smc(1)
    outcomes.count_smc(2)
    outcomes.count_failure()

    async def look() -> Status:
        return exs.smc.status()

    found = trio.run(look)
    assert found.groups == ()
    assert found.handshakes == Handshakes(
        smc_v2=1,
        smc_v1=1,
        failed=1,
        tcp=(
            Fallback(code=5, reason="often", by_peer=True, count=3),
            Fallback(code=0, reason="rare", by_peer=False, count=1),
        ),
    )


def test_there_is_no_status_outside_of_a_run() -> None:
    with pytest.raises(RuntimeError):
        exs.smc.status()


# RFC 7609 A.4
@pytest.mark.parametrize(
    ("flags", "ends", "names"),
    [
        (0x80, 0, {"writer_blocked"}),
        (0x40, 0, {"urgent_pending"}),
        (0x60, 0, {"urgent_pending", "urgent_present"}),
        (0x1F, 0x1F, set()),
        (0, 0x80, {"done"}),
        (0, 0xC0, {"done", "closed"}),
        (0, 0x20, {"aborted"}),
    ],
)
def test_flags_are_those_of_cdc(flags: int, ends: int, names: set[str]) -> None:
    from exs._native.smc import CursorInfo

    way = direction(16384, CursorInfo(1, 2), CursorInfo(0, 3), (16386, 4), flags, ends)
    assert {name for name, value in asdict(way).items() if value is True} == names
    assert (way.producer, way.consumer) == (Cursor(wrap=1, count=2), Cursor(wrap=0, count=3))


# --- in words -----------------------------------------------------------------------------------------------------


def answered(monkeypatch: pytest.MonkeyPatch, *answers: Status | Silence) -> None:
    async def ask_all(pid: int | None) -> list[Status | Silence]:
        return list(answers)

    monkeypatch.setattr(command, "ask_all", ask_all)
    monkeypatch.setattr(command, "program", lambda pid: "server")


def test_a_process_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answered(monkeypatch, STATUS)
    assert main(["smc", "status"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "process 4711 (server)",
        "  handshakes  3 SMC-R v2, 1 SMC-R v1, 2 plain TCP, 1 failed, 1 under way",
        "  plain TCP   2: no enterprise id in common (03030008), says the peer",
        "group 1: client, SMC-R v2, active, room for 254",
        "  peer        0102030405060708",
        "  link 1      soft, up, MTU 4096, last heard of 0.2 s ago",
        "  ours        fd45::1, QPN 17",
        "  peer's      fd45::2, QPN 18",
        "  CDC         1 sent, 2 received, 3 of them for nobody",
        "  LLC         4 sent, 5 received, 0 of them ignored",
        "  TEST_LINK   6 sent, 7 answered",
        "  buffers     2, 128 KiB in all",
        "token       peer's  way  buffer  producer  consumer  bytes  waiting          said",
        "--------  --------  ---  ------  --------  --------  -----  -------  ------------",
        "00001234  0000abcd  out  64 KiB     1:100   0:65000  65636      636  blocked done",
        "                     in  64 KiB     1:100   0:65000  65636      636  blocked done",
    ]


def test_what_was_left_off_and_what_is_down_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    group = replace(
        GROUP, joinable=False, room=0, connections=(replace(ONE, established=False, peer_token=0),),
        connections_left_off=7, link=replace(LINK, state="down", reason="\x1b[2Jno answer\n"),
    )  # fmt: skip
    empty = replace(GROUP, serial=2, connections=())
    answered(monkeypatch, replace(STATUS, groups=(group, empty), groups_left_off=3))
    assert main(["smc", "status"]) == 0
    text = capsys.readouterr().out
    assert "link 1      soft, down (?[2Jno answer?), MTU" in text
    assert "nobody may join" in text
    assert "(in its handshake)" in text
    assert "and 7 more connections" in text
    assert "no connection\n" in text
    assert "and 3 more groups" in text
    assert "\x1b" not in text


def test_that_there_is_none_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answered(monkeypatch)
    assert main(["smc", "status"]) == 0
    assert capsys.readouterr().out == "no process of this user uses SMC-R\n"
    assert main(["smc", "status", "--pid", "77"]) == 3
    assert capsys.readouterr().out == "process 77 is none that uses SMC-R\n"


@pytest.mark.parametrize("json_too", [False, True])
def test_who_does_not_answer_is_named(
    json_too: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answered(monkeypatch, STATUS, Silence(4712, "no answer within 3 s"))
    assert main(["smc", "status", *(["--json"] if json_too else [])]) == 1
    out, err = capsys.readouterr()
    assert err == "exs: process 4712 does not say what it does: no answer within 3 s\n"
    if json_too:
        found = json.loads(out)
        assert found["silent"] == [{"pid": 4712, "reason": "no answer within 3 s"}]
        assert found["processes"] == [json.loads(json.dumps(asdict(STATUS)))]


@pytest.mark.parametrize("arguments", [["smc"], ["smc", "state"], ["smc", "status", "--pid", "x"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_rich_shows_whole_cells_and_obeys_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="needs rich")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    common.show_table(["name", "value"], [["[bold]x[/bold]", "1" * 60]])
    assert "[bold]x[/bold]" in screen.getvalue()
    assert "1" * 60 in screen.getvalue()
