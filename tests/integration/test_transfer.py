# SPDX-License-Identifier: MIT OR Apache-2.0
"""``exs serve``, ``put`` and ``get`` as processes, on every path: contents, errors on both sides, nothing left."""

from __future__ import annotations

import gc
import json
import os
import pty
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from ground import HOST, HOST6, PATHS, patient, scaled, shown

import exs
from exs.cli import transfer
from exs.cli.common import Address
from exs.cli.transfer import client
from exs.cli.transfer.link import open_link
from exs.cli.transfer.paths import OpenFile, Root
from exs.cli.transfer.progress import Silent
from exs.cli.transfer.server import Server

pytestmark = pytest.mark.timeout(patient(90))

EXS = [sys.executable, "-m", "exs"]
MIB = 1 << 20
LARGE = 9 * MIB + 12345
HUGE = scaled(64 * MIB)
LITTLE = scaled(300, 50)
FILES = LITTLE + 5
"""In the tree of make_tree."""
BOUND = patient(40)


class Serving:
    """A server process, its address, and the events that it wrote."""

    def __init__(self, where: Path, *arguments: str) -> None:
        command = [*EXS, "serve", str(where), "--host", HOST, "--port", "0", "--json", *arguments]
        self.where = where
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read() if self.process.stderr else ""
        self.address = json.loads(line)["addresses"][0]

    def stop(self) -> list[dict]:
        """Ends it in order; what it reported meanwhile."""
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=BOUND)
        assert self.process.returncode == 0, err
        assert err == ""
        return [json.loads(line) for line in out.splitlines()]


@contextmanager
def serving(where: Path, *arguments: str):
    server = Serving(where, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def run(*arguments: str, expect: int = 0) -> dict:
    """Runs a command with ``--json``; checks its exit code."""
    done = subprocess.run([*EXS, *arguments, "--json"], capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == expect, (done.stdout, done.stderr)
    record: dict = json.loads(done.stdout)
    assert record["exit_code"] == expect
    return record


def make_tree(base: Path) -> None:
    rng = random.Random(7)
    sizes = {f"small/{n % 5}/{n}": rng.randrange(3000) for n in range(LITTLE)}
    sizes |= {"large": LARGE, "empty": 0, "edge": 128 << 10, "above": (128 << 10) + 1, "sp ace/ünï\tcode": 5}
    for name, size in sizes.items():
        target = base / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(rng.randbytes(size))
    (base / "void" / "inner").mkdir(parents=True)
    (base / "large").chmod(0o751)


def contents(base: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(base)): p.read_bytes() if p.is_file() else None for p in sorted(base.rglob("*"))}


def left_over(base: Path) -> list[Path]:
    return [*base.rglob(".exs-*")]


def test_a_tree_goes_there_and_back(tmp_path, path):
    source, served, back = tmp_path / "source", tmp_path / "served", tmp_path / "back"
    make_tree(source)
    (source / "link").symlink_to("large")
    served.mkdir()
    with serving(served) as server:
        put = run("put", str(source), server.address, "--path", path)
        get = run("get", server.address, "source", "-o", str(back), "--path", path)
        events = server.stop()
    (source / "link").unlink()
    assert contents(served / "source") == contents(source) == contents(back / "source")
    assert (served / "source" / "large").stat().st_mode & 0o7777 == 0o751
    assert put["files"] == get["files"] == FILES
    assert put["path"] == get["path"] == shown(path)
    assert [item["path"] for item in put["skipped"]] == ["source/link"]
    assert get["skipped"] == []
    assert sum(event["files_received"] for event in events) == FILES
    assert sum(event["files_sent"] for event in events) == FILES
    assert all(event["error"] is None for event in events)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("direct_path", [way for way in PATHS if way != "shm-ring"])
def test_a_large_file_is_not_copied_by_the_sender(tmp_path, direct_path):
    (tmp_path / "f").write_bytes(os.urandom(HUGE))
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        put = run("put", str(tmp_path / "f"), server.address, "--path", direct_path)
    assert put["statistics"]["bytes_sent"] >= HUGE
    assert put["statistics"]["bytes_copied"] < 64 << 10


def test_a_name_on_ipv6(tmp_path):
    (tmp_path / "f").write_bytes(b"six")
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served", "--host", HOST6) as server:
        assert server.address.startswith(f"[{HOST6}]:")
        run("put", str(tmp_path / "f"), server.address)
    assert (tmp_path / "served" / "f").read_bytes() == b"six"


def test_put_into_a_directory_and_over_an_old_file(tmp_path):
    (tmp_path / "f").write_bytes(b"new")
    (tmp_path / "served" / "a").mkdir(parents=True)
    (tmp_path / "served" / "a" / "f").write_bytes(b"old and longer")
    with serving(tmp_path / "served") as server:
        run("put", str(tmp_path / "f"), server.address, "--to", "a/")
        record = run("put", str(tmp_path / "f"), server.address, "--to", "../up", expect=1)
    assert record["failed"][0]["code"] == "EINVAL"
    assert (tmp_path / "served" / "a" / "f").read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["f", "served"]


def test_what_fails_is_named_and_the_rest_arrives(tmp_path):
    served, back = tmp_path / "served", tmp_path / "back"
    make_tree(served)
    (served / "out").symlink_to("/etc")
    (tmp_path / "fine").write_bytes(b"fine")
    (served / "fine").mkdir()
    with serving(served) as server:
        put = run(
            "put", str(tmp_path / "none"), str(tmp_path / "fine"), str(served / "large"), server.address, expect=1
        )
        asked = ["empty", "none", "../x", "/etc/passwd", "out", "out/passwd", "edge"]
        get = run("get", server.address, *asked, "-o", str(back), expect=1)
        events = server.stop()
    assert {os.path.basename(f["path"]): f["code"] for f in put["failed"]} == {"none": "ENOENT", "fine": "EISDIR"}
    assert [failed["code"] for event in events for failed in event["failed"]] == ["EISDIR"]
    codes = {f["path"]: f["code"] for f in get["failed"]}
    assert codes == {
        "none": "ENOENT",
        "../x": "EINVAL",
        "/etc/passwd": "EINVAL",
        "out": "ELOOP",
        "out/passwd": "ENOTDIR",
    }
    assert sorted(os.listdir(back)) == ["edge", "empty"]


def test_a_read_only_server_refuses_put_and_allows_get(tmp_path):
    make_tree(tmp_path / "served")
    before = contents(tmp_path / "served")
    with serving(tmp_path / "served", "--read-only") as server:
        put = run("put", __file__, server.address, expect=1)
        run("get", server.address, "large", "-o", str(tmp_path / "back"))
    assert [failed["code"] for failed in put["failed"]] == ["EROFS"]
    assert contents(tmp_path / "served") == before


def test_no_server_is_exit_code_3(tmp_path):
    put = run("put", __file__, f"{HOST}:1", expect=3)
    assert put["connection_error"]["code"] == "ECONNREFUSED"
    run("get", f"{HOST}:1", "x", "-o", str(tmp_path), expect=3)
    run("put", __file__, "no.such.host.invalid:1", expect=3)


def test_wrong_arguments_are_exit_code_2():
    for arguments in (["put"], ["put", "f"], ["get", "h:99999", "x"], ["serve"], ["put", "f", "[::1"], ["nonsense"]):
        done = subprocess.run([*EXS, *arguments], capture_output=True, timeout=BOUND, check=False)
        assert done.returncode == 2, arguments


def test_a_directory_that_is_not_there_cannot_be_served(tmp_path):
    done = subprocess.run([*EXS, "serve", str(tmp_path / "none")], capture_output=True, timeout=BOUND, check=False)
    assert done.returncode == 1
    assert b"No such file" in done.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A file system with 3 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(where)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs root")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk_is_reported_on_both_sides_and_cleaned_up(tmp_path, small_disk):
    make_tree(tmp_path / "source")
    (small_disk / "served").mkdir()
    with serving(small_disk / "served") as server:
        put = run("put", str(tmp_path / "source"), server.address, expect=1)
        assert {failed["code"] for failed in put["failed"]} == {"ENOSPC"}
        assert "source/large" in [failed["path"] for failed in put["failed"]]
        get = run("get", server.address, "source", "-o", str(tmp_path / "back"))
        assert get["files"] == put["files"] > LITTLE * 2 // 3
        events = server.stop()
    assert {failed["code"] for event in events for failed in event["failed"]} == {"ENOSPC"}
    assert left_over(small_disk) == []
    (tmp_path / "source" / "large").write_bytes(os.urandom(3 * MIB))
    with serving(tmp_path / "source") as server:
        get = run("get", server.address, "large", "small", "-o", str(small_disk / "back"), expect=1)
        assert {failed["code"] for failed in get["failed"]} == {"ENOSPC"}
        events = server.stop()
    assert {failed["code"] for event in events for failed in event["failed"]} == {"ENOSPC"}
    assert left_over(small_disk) == []


def test_a_target_on_a_read_only_file_system(tmp_path, small_disk):
    (small_disk / "served").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    (tmp_path / "large").write_bytes(os.urandom(MIB))
    with serving(small_disk / "served") as server:
        put = run("put", __file__, str(tmp_path / "large"), server.address, expect=1)
    assert [failed["code"] for failed in put["failed"]] == ["EROFS", "EROFS"]


def wait_for(condition, seconds: float = patient(20)) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


@pytest.fixture
def endless(tmp_path):
    """A source that takes long to send: sparse, so it takes no space here; the server wants to see room for it."""
    source = tmp_path / "endless"
    with open(source, "wb") as file:
        file.truncate(min(64 << 30, shutil.disk_usage(tmp_path).free * 3 // 4))
    return source


@contextmanager
def putting_endless(tmp_path: Path, endless: Path, path: str) -> Iterator[tuple[Path, Serving, subprocess.Popen[str]]]:
    """A client in the middle of a file: what is served, the server, the client."""
    served = tmp_path / "served"
    served.mkdir()
    with serving(served) as server:
        command = [*EXS, "put", str(endless), server.address, "--path", path, "--json"]
        putting = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: any(part.stat().st_size > MIB for part in left_over(served)))
        yield served, server, putting


def test_a_client_that_is_killed_leaves_nothing_at_the_server(tmp_path, path, endless):
    with putting_endless(tmp_path, endless, path) as (served, server, putting):
        putting.kill()
        putting.communicate()
        wait_for(lambda: left_over(served) == [])
        run("put", __file__, server.address)
        events = server.stop()
    broken = [event for event in events if event["error"]]
    assert len(broken) == 1
    assert broken[0]["failed"][0]["path"] == "endless"
    assert os.listdir(served) == [os.path.basename(__file__)]


def test_what_a_killed_server_left_is_removed_by_the_next_one(tmp_path, path, endless):
    with putting_endless(tmp_path, endless, path) as (served, server, putting):
        (served / "sub").mkdir()
        (served / "sub" / ".exs-notes.part").write_text("the user's own")
        server.process.kill()
        server.process.communicate()
        putting.communicate(timeout=BOUND)
        (left,) = (p for p in left_over(served) if p.parent == served)
    with serving(served) as second:
        wait_for(lambda: not left.exists())
        run("put", __file__, second.address)
        events = second.stop()
    (cleared,) = (e for e in events if e["event"] == "cleared")
    assert cleared["path"] == left.name
    assert cleared["bytes"] > MIB
    assert (served / "sub" / ".exs-notes.part").read_text() == "the user's own"


def test_a_second_server_leaves_alone_what_the_first_one_receives(tmp_path, path, endless):
    with putting_endless(tmp_path, endless, path) as (served, server, putting):
        with serving(served) as second:
            run("put", __file__, second.address, "--to", "second")
            assert [e for e in second.stop() if e["event"] == "cleared"] == []
        (part,) = left_over(served)
        size = part.stat().st_size
        wait_for(lambda: part.stat().st_size > size)
        putting.kill()
        putting.communicate()
        wait_for(lambda: left_over(served) == [])
        server.stop()


def test_a_server_that_is_killed_ends_the_client(tmp_path, path, endless):
    with putting_endless(tmp_path, endless, path) as (_, server, putting):
        server.process.kill()
        out, err = putting.communicate(timeout=BOUND)
    record = json.loads(out)
    assert putting.returncode == record["exit_code"] == 3, err
    assert record["failed"][0]["path"] == "endless"


def test_ctrl_c_ends_a_client_and_leaves_nothing(tmp_path, endless):
    with putting_endless(tmp_path, endless, "auto") as (served, _, putting):
        putting.send_signal(signal.SIGINT)
        _, err = putting.communicate(timeout=BOUND)
        assert putting.returncode == 130, err
        wait_for(lambda: left_over(served) == [])


def test_without_the_extra_everything_works(tmp_path):
    make_tree(tmp_path / "source")
    (tmp_path / "served").mkdir()
    plain = "import sys; sys.modules['xxhash'] = sys.modules['rich'] = None; from exs.cli import main; sys.exit(main())"
    with serving(tmp_path / "served") as server:
        command = [sys.executable, "-c", plain, "put", str(tmp_path / "source"), server.address, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["digest"] == "blake2b_128"
    assert contents(tmp_path / "served" / "source") == contents(tmp_path / "source")


def put_on_a_terminal(source: Path, address: str, **env: str) -> bytes:
    """What ``exs put`` shows on a terminal."""
    ours, theirs = pty.openpty()
    command = [*EXS, "put", str(source), address]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150", **env},
    )
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + BOUND
    while select.select([ours], [], [], deadline - time.monotonic())[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:
            break
    assert process.wait(BOUND) == 0
    os.close(ours)
    return shown


def test_progress_is_shown_on_a_terminal_only_and_without_colour_if_so_wished(tmp_path):
    make_tree(tmp_path / "source")
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:
        shown = put_on_a_terminal(tmp_path / "source", server.address, NO_COLOR="")
        plain = put_on_a_terminal(tmp_path / "source", server.address, NO_COLOR="1")
        quiet = subprocess.run(
            [*EXS, "put", str(tmp_path / "source"), server.address],
            capture_output=True,
            timeout=BOUND,
            check=True,
        )
    assert b"%d/%d files" % (FILES, FILES) in shown
    assert b"\x1b[3" in shown or b"\x1b[38" in shown
    assert b"%d/%d files" % (FILES, FILES) in plain
    assert b"\x1b[3" not in plain
    assert b"\x1b" not in quiet.stderr
    assert quiet.stderr.splitlines()[-1].startswith(b"%d files" % FILES)


# --- in this process, where things can be made to happen between two steps ------------------------------------


@contextmanager
def served_here(where: Path):
    where.mkdir(exist_ok=True)
    root = Root(str(where))
    yield Server(root, report=lambda event: None)
    root.close()


async def test_a_file_that_is_cut_under_the_device_fails_alone(tmp_path, path, monkeypatch):
    make_tree(tmp_path / "source")
    victim = tmp_path / "source" / "large"
    check = OpenFile.check_unchanged
    cut = False

    def check_then_cut(self) -> None:
        nonlocal cut
        check(self)
        if self.size == LARGE and not cut:
            cut = True
            os.truncate(victim, MIB)

    monkeypatch.setattr(OpenFile, "check_unchanged", check_then_cut)
    options = transfer.transfer_options(exs.Options(path=path))
    with served_here(tmp_path / "served") as server:

        async def handle(stream: exs.SocketStream) -> None:
            try:
                async with open_link(stream) as link:
                    await server.handle(link, "here")
            except (OSError, trio.BrokenResourceError):
                pass

        async with trio.open_nursery() as nursery:
            listeners = await exs.open_listeners(0, host=HOST, options=options)
            nursery.start_soon(trio.serve_listeners, handle, listeners)
            connect = transfer.connector(Address(HOST, listeners[0].address[1]), options)
            summary = await client.put(connect, [str(tmp_path / "source")], progress=Silent())
            nursery.cancel_scope.cancel()
    assert cut
    assert [(failed, error.errno) for failed, error in summary.failed] == [(b"source/large", 116)]
    assert summary.files == FILES - 1
    assert left_over(tmp_path / "served") == []
    gc.collect()  # the mapping of the lost file goes with the exception that ended it
