# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whole transfers, client to server, over streams in memory."""

from __future__ import annotations

import errno
import os
import random
import stat
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from exs.cli.transfer import client, protocol
from exs.cli.transfer.link import StreamLink
from exs.cli.transfer.paths import OpenFile, Root
from exs.cli.transfer.progress import Silent, make_progress
from exs.cli.transfer.protocol import (
    Attribute,
    Decoder,
    DigestKind,
    Entry,
    Frame,
    FrameType,
    Hello,
    Kind,
    TransferError,
)
from exs.cli.transfer.server import Server

BLAKE = DigestKind.BLAKE2B_128


def test_groups_keep_large_files_alone_and_small_ones_together():
    sizes = [10, 20, 1 << 20, 30, 200 << 10]
    items = [client.Wanted(b"f", (b"f",), size=size) for size in sizes]
    groups = [[item.size for item in group] for group in client.group_items(items)]
    assert groups == [[1 << 20], [200 << 10], [10, 20, 30]]


def test_what_a_lying_server_lists_is_checked():
    summary = client.Summary("get")
    listed = [Entry(0, Kind.FILE, b"d/ok", 1), Entry(0, Kind.FILE, b"d/../../x"), Entry(0, Kind.FILE, b"other")]
    files, directories = client.plan_local([b"d"], [listed], summary)
    assert [item.local for item in files] == [(b"d", b"ok")]
    assert directories == []
    assert len(summary.failed) == 2


class World:
    """A server and a way to connect to it, in memory."""

    def __init__(self, where, **options):
        (where / "served").mkdir(exist_ok=True)
        self.where = where
        self.reports: list[dict] = []
        self.root = Root(str(where / "served"))
        self.server = Server(self.root, report=self.reports.append, **options)
        self.nursery: trio.Nursery | None = None
        self.broken_after: int | None = None

    @asynccontextmanager
    async def connect(self):
        ours, theirs = trio.testing.memory_stream_pair()

        async def serve():
            async with theirs:
                await self.server.handle(StreamLink(theirs), "memory")

        assert self.nursery is not None
        self.nursery.start_soon(serve)
        async with ours:
            yield StreamLink(ours)


@asynccontextmanager
async def world(where, **options):
    made = World(where, **options)
    try:
        async with trio.open_nursery() as nursery:
            made.nursery = nursery
            yield made
    finally:
        made.root.close()


def make_tree(base) -> None:
    rng = random.Random(1)
    for path, size in {"a/1": 10, "a/b/2": 0, "a/b/3": 70_000, "big": 3_000_000, "mid": 140_000}.items():
        target = base / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(rng.randbytes(size))
    (base / "a" / "void").mkdir()
    (base / "a" / "b").chmod(0o700)
    (base / "mid").chmod(0o4755)


def contents(base) -> dict[str, bytes | None]:
    return {str(p.relative_to(base)): p.read_bytes() if p.is_file() else None for p in sorted(base.rglob("*"))}


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_tree_goes_there_and_back(tmp_path, workers):
    make_tree(tmp_path / "src")
    (tmp_path / "src" / "link").symlink_to("big")
    async with world(tmp_path) as made:
        summary = await client.put(made.connect, [str(tmp_path / "src")], workers=workers, progress=Silent())
        assert summary.exit_code == 0
        assert (summary.files, summary.directories) == (5, 4)
        assert [path for path, _ in summary.skipped] == [b"src/link"]
        (tmp_path / "src" / "link").unlink()
        assert contents(tmp_path / "served" / "src") == contents(tmp_path / "src")
        assert stat.S_IMODE((tmp_path / "served/src/mid").stat().st_mode) == 0o755
        assert stat.S_IMODE((tmp_path / "served/src/a/b").stat().st_mode) == 0o700
        (tmp_path / "back").mkdir()
        back = Root(str(tmp_path / "back"))
        summary = await client.get(made.connect, [b"src/a", b"src/big"], back, workers=workers, progress=Silent())
        back.close()
        assert summary.exit_code == 0
        assert contents(tmp_path / "back" / "a") == contents(tmp_path / "src" / "a")
        assert (tmp_path / "back" / "big").read_bytes() == (tmp_path / "src" / "big").read_bytes()
        assert stat.S_IMODE((tmp_path / "back/a/b").stat().st_mode) == 0o700


async def test_all_of_the_served_directory_is_a_dot(tmp_path):
    make_tree(tmp_path / "served")
    (tmp_path / "back").mkdir()
    back = Root(str(tmp_path / "back"))
    async with world(tmp_path) as made:
        summary = await client.get(made.connect, [b"."], back, progress=Silent())
    back.close()
    assert summary.exit_code == 0
    assert contents(tmp_path / "back") == contents(tmp_path / "served")


async def test_get_reports_what_is_missing_and_fetches_the_rest(tmp_path):
    make_tree(tmp_path / "served")
    (tmp_path / "served" / "link").symlink_to("/etc")
    (tmp_path / "back").mkdir()
    back = Root(str(tmp_path / "back"))
    async with world(tmp_path) as made:
        asked = [b"none", b"../served/big", b"link", b"link/passwd", b"mid", b"a/../mid"]
        summary = await client.get(made.connect, asked, back, progress=Silent())
    back.close()
    assert summary.exit_code == 1
    assert {path: error.errno for path, error in summary.failed} == {
        b"none": errno.ENOENT,
        b"../served/big": errno.EINVAL,
        b"a/../mid": errno.EINVAL,
        b"link": errno.ELOOP,
        b"link/passwd": errno.ENOTDIR,
    }
    assert os.listdir(tmp_path / "back") == ["mid"]


async def test_a_file_that_cannot_be_read_fails_alone(tmp_path, monkeypatch):
    make_tree(tmp_path / "src")
    opened = Root.open

    def refuse(self, parts):
        if parts[-1] in (b"3", b"big"):
            raise TransferError(errno.EACCES, "no")
        return opened(self, parts)

    monkeypatch.setattr(Root, "open", refuse)
    async with world(tmp_path) as made:
        summary = await client.put(made.connect, [str(tmp_path / "src")], progress=Silent())
        assert sorted(path for path, _ in summary.failed) == [b"src/a/b/3", b"src/big"]
        assert summary.files == 3
        back = Root(str(tmp_path))
        (tmp_path / "served" / "src" / "big").write_bytes(bytes(1 << 20))
        summary = await client.get(made.connect, [b"src/big", b"src/mid"], back, progress=Silent())
        back.close()
        assert [(path, error.errno) for path, error in summary.failed] == [(b"src/big", errno.EACCES)]
        assert summary.files == 1


@pytest.mark.parametrize("direction", ["put", "get"])
async def test_a_file_that_changes_while_it_is_sent_fails_alone(tmp_path, monkeypatch, direction):
    where = tmp_path / ("src" if direction == "put" else "served/src")
    make_tree(where)
    (where / "big").write_bytes(bytes(9 << 20))
    check = OpenFile.check_unchanged

    def cut_first(self) -> None:
        if self.size == 9 << 20:
            os.truncate(where / "big", 5 << 20)
        check(self)

    monkeypatch.setattr(OpenFile, "check_unchanged", cut_first)
    async with world(tmp_path) as made:
        if direction == "put":
            summary = await client.put(made.connect, [str(where)], progress=Silent())
            target = tmp_path / "served" / "src"
        else:
            (tmp_path / "back").mkdir()
            back = Root(str(tmp_path / "back"))
            summary = await client.get(made.connect, [b"src"], back, progress=Silent())
            back.close()
            target = tmp_path / "back" / "src"
    assert [(path, error.errno) for path, error in summary.failed] == [(b"src/big", errno.ESTALE)]
    assert summary.files == 4
    assert not (target / "big").exists()
    assert not list(target.rglob(".exs-*"))


async def test_a_read_only_server_says_so_for_each_file(tmp_path):
    make_tree(tmp_path / "src")
    async with world(tmp_path, read_only=True) as made:
        summary = await client.put(made.connect, [str(tmp_path / "src")], progress=Silent())
    assert {error.errno for _, error in summary.failed} == {errno.EROFS}
    assert summary.exit_code == 1
    assert os.listdir(tmp_path / "served") == []


async def test_a_client_that_ignores_read_only_is_refused_per_file(tmp_path):
    async with world(tmp_path, read_only=True) as made, made.connect() as link:
        await link.send(protocol.encode_hello(Hello()))
        await link.receive()
        body = protocol.encode_batch_item(Entry(1, Kind.FILE, b"f", 1), bytes(16)) + b"x"
        await link.send(protocol.encode_header(FrameType.BATCH, len(body)), body)
        (view,) = await link.receive()
    results = protocol.decode_results(view[16:])
    assert [result.code for result in results] == [errno.EROFS]


async def test_a_lost_connection_is_tried_once_more(tmp_path):
    make_tree(tmp_path / "src")
    async with world(tmp_path) as made:
        tries = 0

        @asynccontextmanager
        async def connect():
            nonlocal tries
            tries += 1
            async with made.connect() as link:
                if tries == 1:
                    link.send = partial(_break_after, link.send, [4])
                yield link

        summary = await client.put(connect, [str(tmp_path / "src")], workers=1, progress=Silent())
    assert tries >= 2
    assert summary.exit_code == 0, summary.failed
    assert contents(tmp_path / "served" / "src") == contents(tmp_path / "src")
    assert not list((tmp_path / "served").rglob(".exs-*"))


async def _break_after(send, left, *pieces) -> None:
    if not left[0]:
        raise trio.BrokenResourceError
    left[0] -= 1
    await send(*pieces)


async def test_a_file_that_breaks_every_connection_fails_alone(tmp_path):
    make_tree(tmp_path / "src")
    async with world(tmp_path) as made:

        @asynccontextmanager
        async def connect():
            async with made.connect() as link:
                send = link.send

                async def poisoned(*pieces):
                    if any(len(memoryview(p)) > 2_000_000 for p in pieces):
                        raise trio.BrokenResourceError("poison")
                    await send(*pieces)

                link.send = poisoned
                yield link

        summary = await client.put(connect, [str(tmp_path / "src")], workers=2, progress=Silent())
    assert [path for path, _ in summary.failed] == [b"src/big"]
    assert summary.files == 4
    assert summary.exit_code == 1
    assert not list((tmp_path / "served").rglob(".exs-*"))


@pytest.mark.parametrize("what", ["put", "get"])
async def test_no_server_is_a_connection_error(tmp_path, what):
    make_tree(tmp_path / "src")

    @asynccontextmanager
    async def connect():
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
        yield

    if what == "put":
        summary = await client.put(connect, [str(tmp_path / "src")], progress=Silent())
        assert len(summary.failed) == 5 + 4
    else:
        root = Root(str(tmp_path))
        summary = await client.get(connect, [b"x"], root, progress=Silent())
        root.close()
    assert summary.exit_code == 3
    assert summary.record()["connection_error"]["code"] == "ECONNREFUSED"


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(64), protocol.encode_hello(Hello(2, 3)), b""]
)
async def test_the_server_survives_whatever_greets_it(tmp_path, garbage):
    async with world(tmp_path) as made:
        async with made.connect() as link:
            if garbage:
                await link.send(garbage)
                views = await link.receive()
                (frame,) = Decoder().feed(views[0])
                assert isinstance(frame, Frame)
                assert frame.type == FrameType.REFUSE
        summary = await client.put(made.connect, [__file__], progress=Silent())
    assert summary.exit_code == 0
    assert made.reports[0]["error"]


async def test_more_connections_than_the_server_takes_are_refused_and_the_others_do_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("exs.cli.transfer.server.MAX_CONNECTIONS", 1)
    make_tree(tmp_path / "src")
    async with world(tmp_path) as made:
        summary = await client.put(made.connect, [str(tmp_path / "src")], workers=4, progress=Silent())
    assert summary.exit_code == 0, summary.failed
    assert contents(tmp_path / "served" / "src") == contents(tmp_path / "src")


@pytest.mark.parametrize("said", [b"", protocol.encode_header(FrameType.DATA, 100, 1)[:5]])
async def test_a_client_that_does_nothing_is_given_up(tmp_path, monkeypatch, said):
    monkeypatch.setattr("exs.cli.transfer.server.PATIENCE", 0.05)
    async with world(tmp_path) as made, made.connect() as link:
        await link.send(protocol.encode_hello(Hello()))
        await link.receive()
        if said:
            await link.send(said)
        with trio.fail_after(5):
            while await link.receive():
                pass
    assert made.reports[0]["error"]["code"] == "ETIMEDOUT"


async def test_two_sources_of_one_name_do_not_overwrite_each_other(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text(name)
    async with world(tmp_path) as made:
        names = [str(tmp_path / "a/f"), str(tmp_path / "b/f")]
        summary = await client.put(made.connect, names, progress=Silent())
    assert [error.errno for _, error in summary.failed] == [errno.EEXIST]
    assert (tmp_path / "served" / "f").read_text() == "a"


async def test_without_xxhash_both_sides_agree_on_blake2b(tmp_path):
    make_tree(tmp_path / "src")
    async with world(tmp_path) as made:
        summary = await client.put(made.connect, [str(tmp_path / "src")], progress=Silent(), digests=BLAKE)
    assert summary.digest == "blake2b_128"
    assert summary.exit_code == 0


def test_no_bar_where_there_is_no_terminal():
    assert isinstance(make_progress("put", wanted=True), Silent)
    assert isinstance(make_progress("put", wanted=False), Silent)


def test_attributes_of_the_server_travel():
    answer = protocol.answer_hello(Hello(), BLAKE, Attribute.READ_ONLY)
    body = memoryview(protocol.encode_hello(answer))[16:]
    assert protocol.decode_hello(body).attributes == Attribute.READ_ONLY
