# SPDX-License-Identifier: MIT OR Apache-2.0
"""The transfer tools and the file system: paths that lead out, and what is left when receiving goes wrong."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from types import SimpleNamespace

import pytest
from digests import BLAKE, digest_of

from exs.cli.transfer import leftovers, paths, protocol
from exs.cli.transfer.link import ExsLink
from exs.cli.transfer.paths import Root, printable, split_path
from exs.cli.transfer.protocol import (
    Entry,
    FrameType,
    Kind,
    TransferError,
    ViolationError,
)
from exs.cli.transfer.receiver import Receiver

# --- paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (b"/etc/passwd", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/../b", errno.EINVAL),
        (b"a//b", errno.EINVAL),
        (b"a/./b", errno.EINVAL),
        (b"a/", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"x/" * 2049, errno.ENAMETOOLONG),
        (b"x/" * 200 + b"x", errno.ENAMETOOLONG),
    ],
)
def test_paths_that_could_lead_out_are_refused(path, code):
    with pytest.raises(TransferError) as caught:
        split_path(path)
    assert caught.value.errno == code


def test_ordinary_paths_are_split():
    assert split_path(b"a/b\\c/..d/\xff") == (b"a", b"b\\c", b"..d", b"\xff")
    assert split_path(b".") == split_path(b"") == ()


def test_control_characters_in_names_cannot_reach_a_terminal():
    assert printable(b"a\x1b[2Jb\n\xff") == "a\\x1b[2Jb\\n\\xff"


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret").write_bytes(b"secret")
    with_link = tmp_path / "in"
    (with_link / "dirlink").symlink_to(tmp_path / "out")
    (with_link / "filelink").symlink_to(tmp_path / "out" / "secret")
    (with_link / "dangling").symlink_to(tmp_path / "out" / "new")
    os.mkfifo(with_link / "fifo")
    root = Root(str(with_link))
    yield root, tmp_path
    root.close()


@pytest.mark.parametrize("path", [b"dirlink/secret", b"filelink", b"fifo", b"dirlink", b"", b"none", b"none/none"])
def test_reading_never_leaves_the_root(tree, path):
    root, _ = tree
    with pytest.raises(TransferError):
        root.open(split_path(path))


def test_writing_through_a_link_to_a_directory_is_refused(tree):
    root, where = tree
    for parts in [(b"dirlink", b"new"), (b"dirlink", b"sub", b"new")]:
        with pytest.raises(TransferError) as caught:
            root.create(parts, 0o644)
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
        with pytest.raises(TransferError):
            root.make_directory(parts, 0o755)
    assert os.listdir(where / "out") == ["secret"]


@pytest.mark.parametrize("name", [b"filelink", b"dangling", b"fifo"])
def test_writing_to_a_name_that_is_a_link_replaces_the_link_only(tree, name):
    root, where = tree
    temporary = root.create((name,), 0o644)
    os.write(temporary.fd, b"new")
    temporary.commit()
    target = where / "in" / os.fsdecode(name)
    assert stat.S_ISREG(target.lstat().st_mode)
    assert target.read_bytes() == b"new"
    assert (where / "out" / "secret").read_bytes() == b"secret"
    assert os.listdir(where / "out") == ["secret"]


def test_a_listing_names_what_it_leaves_out(tree):
    root, where = tree
    (where / "in" / "d").mkdir()
    (where / "in" / "d" / "f").write_bytes(b"12")
    (where / "in" / ".exs-0123456789abcdef.part").write_bytes(b"")
    found = {entry.path: entry for entry in root.list(())}
    assert {path for path, entry in found.items() if entry.kind == Kind.SKIPPED} == {
        b"dirlink", b"filelink", b"dangling", b"fifo",
    }  # fmt: skip
    assert found[b"d/f"].size == 2
    assert found[b"d"].kind == Kind.DIRECTORY
    assert b".exs-0123456789abcdef.part" not in found
    for refused in (b"filelink", b"dirlink/secret", b"fifo", b"nothing"):
        with pytest.raises(TransferError):
            list(root.list(split_path(refused)))


def test_a_discarded_file_leaves_nothing(tree):
    root, where = tree
    before = sorted(os.listdir(where / "in"))
    root.create((b"x",), 0o644).discard()
    assert sorted(os.listdir(where / "in")) == before


def test_leftovers_are_removed_and_nothing_else(tree, tmp_path):
    root, where = tree[0], tree[1] / "in"
    live = root.create((b"deep", b"live"), 0o644)
    names = ["deep/.exs-0123456789abcdef.part", ".exs-fedcba9876543210.part"]
    for name in names:
        (where / name).write_bytes(b"abc")
    others = [".exs-0123.part", ".exs-0123456789abcdeg.part", "x.exs-0123456789abcdef.part"]
    for name in others:
        (where / name).write_bytes(b"mine")
    (where / ".exs-1111111111111111.part").mkdir()
    (where / ".exs-2222222222222222.part").symlink_to(tmp_path / "elsewhere")
    outside = tmp_path / "outside-tree"
    outside.mkdir()
    (outside / names[1]).write_bytes(b"abc")
    (where / "link").symlink_to(outside)
    found = [leftover for step in leftovers.clear(root) for leftover in step]
    assert len(found) == 2
    assert set(found) == {leftovers.Leftover(os.fsencode(name), 3) for name in names}
    assert all((where / name).exists() for name in others)
    assert (where / ".exs-1111111111111111.part").is_dir()
    assert (where / ".exs-2222222222222222.part").is_symlink()
    assert (outside / names[1]).exists()
    live.commit()
    assert (where / "deep" / "live").exists()


def test_a_file_taken_for_a_leftover_while_it_is_made_is_made_again(tree, monkeypatch):
    root, where = tree[0], tree[1] / "in"
    real, calls = paths.lock, []

    def cleared_in_between(fd: int) -> bool | None:
        calls.append(fd)
        if len(calls) == 1:
            assert [s for step in leftovers.clear(root) for s in step]
        if len(calls) == 2:
            with open(f"/proc/self/fd/{fd}") as other:
                assert real(other.fileno())
                return real(fd)
        return real(fd)

    monkeypatch.setattr(paths, "lock", cleared_in_between)
    temporary = root.create((b"made",), 0o600)
    os.write(temporary.fd, b"whole")
    temporary.commit()
    assert (where / "made").read_bytes() == b"whole"
    assert len(calls) == 3


def test_no_descriptor_is_left_by_refusals(tree):
    root, _ = tree
    before = len(os.listdir("/proc/self/fd"))
    for parts in [(b"dirlink", b"x"), (b"none", b"x"), (b"filelink",), (b"fifo",)]:
        with pytest.raises(TransferError):
            root.open(parts)
    assert len(os.listdir("/proc/self/fd")) == before


# --- the receiver -------------------------------------------------------------------------------------------


def batch(*items: tuple[Entry, bytes], digest: bytes | None = None) -> bytes:
    body = b"".join(protocol.encode_batch_item(e, digest or digest_of(data)) + data for e, data in items)
    return protocol.encode_header(FrameType.BATCH, len(body)) + body


def large(id_: int, path: bytes, pieces: list[bytes], *, size: int | None = None, end: bool = True) -> bytes:
    whole = b"".join(pieces)
    entry = Entry(id_, Kind.FILE, path, len(whole) if size is None else size, 0o640)
    out = protocol.encode_frame(FrameType.FILE, protocol.encode_entry(entry), id_)
    for piece in pieces:
        out += protocol.encode_header(FrameType.DATA, len(piece), id_) + piece
    return out + protocol.encode_frame(FrameType.END, digest_of(whole), id_) if end else out


@pytest.fixture
def receiving(tmp_path):
    root = Root(str(tmp_path))
    yield Receiver(root, BLAKE), tmp_path
    root.close()


def feed(receiver: Receiver, *streams: bytes):
    return receiver.feed([memoryview(stream) for stream in streams])


def outcome_codes(fed) -> list[tuple[int, int]]:
    return [(outcome.id, outcome.result.code) for outcome in fed.outcomes]


def test_a_batch_arrives_with_contents_modes_and_empty_things(receiving):
    receiver, where = receiving
    fed = feed(
        receiver,
        batch(
            (Entry(1, Kind.FILE, b"a/b/one", 3, 0o750), b"one"),
            (Entry(2, Kind.FILE, b"empty", 0, 0o600), b""),
            (Entry(3, Kind.DIRECTORY, b"void", 0, 0o711), b""),
        ),
    )
    assert outcome_codes(fed) == [(1, 0), (2, 0), (3, 0)]
    assert (where / "a/b/one").read_bytes() == b"one"
    assert stat.S_IMODE((where / "a/b/one").stat().st_mode) == 0o750
    assert (where / "empty").stat().st_size == 0
    assert stat.S_IMODE((where / "void").stat().st_mode) == 0o711


def test_one_bad_entry_of_a_batch_does_not_hurt_the_others(receiving):
    receiver, where = receiving
    (where / "is_dir").mkdir()
    (where / "is_file").write_bytes(b"")
    items = [b"../up", b"/abs", b"is_dir", b"is_file/x", b"fine"]
    fed = feed(receiver, batch(*((Entry(i, Kind.FILE, p, 1), b"x") for i, p in enumerate(items))))
    codes = dict(outcome_codes(fed))
    assert codes == {0: errno.EINVAL, 1: errno.EINVAL, 2: errno.EISDIR, 3: errno.ENOTDIR, 4: 0}
    assert sorted(os.listdir(where)) == ["fine", "is_dir", "is_file"]


def test_a_wrong_checksum_leaves_nothing(receiving):
    receiver, where = receiving
    fed = feed(receiver, batch((Entry(1, Kind.FILE, b"f", 1), b"x"), digest=bytes(16)))
    assert outcome_codes(fed) == [(1, errno.EBADMSG)]
    stream = large(2, b"g", [b"abc"])
    fed = feed(receiver, stream[:-1] + bytes([stream[-1] ^ 1]))
    assert outcome_codes(fed) == [(2, errno.EBADMSG)]
    assert os.listdir(where) == []


def test_a_large_file_appears_only_when_it_is_whole(receiving):
    receiver, where = receiving
    (where / "f").write_bytes(b"old")
    stream = large(5, b"f", [b"x" * 1000, b"y" * 10])
    for at in range(0, len(stream) - 1, 97):
        assert feed(receiver, stream[at : min(at + 97, len(stream) - 1)]).outcomes == []
        assert (where / "f").read_bytes() == b"old"
    assert outcome_codes(feed(receiver, stream[-1:])) == [(5, 0)]
    assert (where / "f").read_bytes() == b"x" * 1000 + b"y" * 10
    assert receiver.at_boundary


def test_an_aborted_or_cut_off_file_leaves_nothing(receiving):
    receiver, where = receiving
    stream = large(5, b"f", [b"x" * 1000], end=False)
    abort = protocol.encode_error(FrameType.ABORT, TransferError(errno.ESTALE, "changed"), 5)
    assert outcome_codes(feed(receiver, stream, abort)) == [(5, errno.ESTALE)]
    feed(receiver, stream)
    assert not receiver.at_boundary
    outcome = receiver.close(TransferError(errno.ECONNRESET, "gone"))
    assert outcome is not None
    assert outcome.result.code == errno.ECONNRESET
    assert receiver.close(TransferError(0, "")) is None
    assert os.listdir(where) == []


def test_a_refused_file_is_dropped_and_the_next_one_arrives(receiving):
    receiver, where = receiving
    fed = feed(receiver, large(1, b"../up", [b"x" * 100]), large(2, b"fine", [b"y"]))
    assert outcome_codes(fed) == [(1, errno.EINVAL), (2, 0)]
    assert os.listdir(where) == ["fine"]


def test_a_file_larger_than_the_disk_is_refused_at_once(receiving):
    receiver, where = receiving
    fed = feed(receiver, large(1, b"f", [b"x"], size=1 << 60, end=False))
    assert outcome_codes(fed) == [(1, errno.ENOSPC)]
    assert os.listdir(where) == []


def test_a_full_disk_is_reported_once_and_cleaned_up(receiving, monkeypatch):
    receiver, where = receiving

    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("exs.cli.transfer.receiver.write_all", full)
    fed = feed(receiver, large(1, b"f", [b"x" * 10, b"y" * 10]), batch((Entry(2, Kind.FILE, b"g", 1), b"x")))
    assert outcome_codes(fed) == [(1, errno.ENOSPC), (2, errno.ENOSPC)]
    assert os.listdir(where) == []


def test_a_read_only_server_refuses_everything():
    receiver = Receiver(None, BLAKE)
    fed = feed(receiver, batch((Entry(1, Kind.FILE, b"f", 1), b"x")), large(2, b"g", [b"y"]))
    assert outcome_codes(fed) == [(1, errno.EROFS), (2, errno.EROFS)]


@pytest.mark.parametrize(
    "stream",
    [
        protocol.encode_header(FrameType.DATA, 1, 5) + b"x",
        protocol.encode_frame(FrameType.END, bytes(16), 5),
        large(1, b"f", [b"x"], end=False) + large(2, b"g", [b"x"]),
        large(1, b"f", [b"x"], end=False) + batch((Entry(2, Kind.FILE, b"g", 1), b"x")),
        large(1, b"f", [b"xx"], size=1),
        large(1, b"f", [b"x"], size=2),
    ],
)
def test_frames_out_of_order_are_violations_and_leave_nothing(receiving, stream):
    receiver, where = receiving
    with pytest.raises(ViolationError):
        feed(receiver, stream)
    receiver.close(TransferError(errno.EPROTO, "violation"))
    assert os.listdir(where) == []


# --- parts of a file to send ------------------------------------------------------------------------------------


class Carrier:
    """As much of a socket as says which device it is on."""

    path = ""

    def __init__(self, device):
        self.device = SimpleNamespace(name=device)


@pytest.mark.parametrize("device", ["soft", "verbs"])
async def test_a_file_is_sent_from_its_mapping_only_where_that_need_not_be_pinned(tmp_path, device):
    (tmp_path / "f").write_bytes(bytes(range(200)))
    with open(tmp_path / "f", "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        async with ExsLink(Carrier(device), None, None).window(file.fileno(), mapping) as window:
            part = await window.part(50, 150)
            seen = part.view if device == "soft" else part
            assert seen == bytes(range(50, 150))
            file.write(b"!" * 200)
            file.flush()
            assert (seen == b"!" * 100) == (device == "soft")
            del part, seen
            if device == "verbs":
                file.truncate(100)
                with pytest.raises(TransferError) as refused:
                    await window.part(50, 150)
                assert refused.value.errno == errno.ESTALE
        mapping.close()
