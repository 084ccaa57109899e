# SPDX-License-Identifier: MIT OR Apache-2.0
"""Peers that die, stop, or compute; files that shrink under an operation.

The other side is a process of its own.  Whatever happens to it, each operation here ends in one event with the
documented error, the buffers are ours afterwards, a second connection still works, and nothing is left (the
fixtures see to it).
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from ground import DEVICE, HOST, PATHS, VERBS
from otherprocess import Other, pattern
from victim import Victim

from exs import MemoryRegion, esapi

MIB = 1 << 20
BIG = 24 * MIB  # more than all the buffers on the way
WAYS = ("auto",) if VERBS else ("auto", "tcp")
HUGE = (48 if VERBS else 96) * MIB  # long enough to be disturbed on its way
WAITALL = esapi.MSG_WAITALL

Configure = Callable[..., None]


@contextmanager
def dialled_by(v: Victim, code: str, **env: str) -> Iterator[tuple[Other, int]]:
    """A process that connects to us: it, and our socket."""
    with Other("fd = connect()\n" + code, v.address, **env) as other:
        v.serial += 1
        cookie = f"accept other {v.serial}"
        esapi.exs_accept(v.listener, cookie, v.queue)
        v.posted(cookie)
        event = v.expect(cookie)
        yield other, event.exs_evt_union.exs_evt_fd  # type: ignore[union-attr]


@contextmanager
def dialling(v: Victim, code: str, **env: str) -> Iterator[tuple[Other, int]]:
    """A process that we connect to: it, and our socket."""
    with Other("fd = serve_one()\n" + code, **env) as other:
        v.serial += 1
        cookie = f"connect other {v.serial}"
        fd = v.begin_connect((HOST, int(other.hear())), cookie)
        v.expect(cookie)
        yield other, fd


def room(n: int) -> tuple[MemoryRegion, memoryview]:
    """Memory that exs allocated, all zero."""
    region = MemoryRegion.allocate(n)
    return region, region.view


def in_a_direct_write(v: Victim, other: Other, fd: int) -> tuple[bytearray, esapi.MHandle]:
    """The other one's send has begun to arrive in a posted receive: its memory, and the memory's handle."""
    memory = bytearray(HUGE)
    mh = esapi.exs_mregister(memory, esapi.EXS_ACCESS_WRITE)
    v.recv(fd, memory, "recv", WAITALL, mh)
    v.mark(fd)
    v.until(lambda: memory[4096], step=0)
    return memory, mh


# --- kill -9 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_sender_killed_in_a_direct_write(stream: Victim, path: str, mode: str) -> None:
    code = f"""
data = pattern({HUGE})
mh = exs_mregister(data, EXS_ACCESS_READ)
marked()
send(fd, data, mh)
forever()
"""
    with dialled_by(stream, code, EXS_PATH=path, EXS_PROGRESS=mode) as (other, fd):
        memory, mh = in_a_direct_write(stream, other, fd)
        assert not memory[-1], "the transfer was over before it could be disturbed"
        other.kill()
        event = stream.until(lambda: stream.events.get("recv"))
        got = event.exs_evt_union.exs_evt_length  # type: ignore[union-attr]
        # What came in full transfers counts; on soft it is one.
        assert event.exs_evt_errno == (0 if got else errno.ECONNRESET)
        assert got < (HUGE if VERBS else 1)
        untouched(stream, memory)
        esapi.exs_mderegister(mh)
        is_dead(stream, fd)


def untouched(v: Victim, memory: bytearray | memoryview) -> None:
    """The buffer is ours: nobody writes to it any more."""
    memory[:] = b"\xa5" * len(memory)
    for _ in range(5):
        v.drain(0.01)
    assert bytes(memory) == b"\xa5" * len(memory)


def is_dead(v: Victim, fd: int, error: int = errno.ECONNRESET) -> None:
    for post in (v.send, v.recv):
        with pytest.raises(OSError) as refused:
            post(fd, bytearray(10), "never")
        assert refused.value.errno == error


def test_receiver_killed_in_a_direct_write(stream: Victim, path: str) -> None:
    code = f"""
memory = bytearray({HUGE})
mh = exs_mregister(memory, EXS_ACCESS_WRITE)
recv(fd, memory, MSG_WAITALL, mh)
mark()
while not memory[4096]:
    exs_qdequeue(q, 1, 0)
assert not memory[-1]
say("partly")
time.sleep(60)
"""
    with dialled_by(stream, code, EXS_PATH=path) as (other, fd):
        stream.marked(fd)
        stream.send(fd, pattern(HUGE + BIG), "send")  # more than fits, so that it is not over before the kill
        stream.until(other.heard)
        other.hear("partly")
        assert "send" not in stream.events
        other.kill()
        stream.expect("send", errno.ECONNRESET)
        is_dead(stream, fd)


def test_sender_killed_while_its_bytes_lie_in_the_ring(stream: Victim, path: str) -> None:
    """What was received before counts; what was not asked for by then may be lost, as with TCP."""
    code = f"""
send(fd, pattern({BIG}))
while True:
    exs_qdequeue(q, 1, 0.02)
    say("x")
"""
    with dialled_by(stream, code, EXS_PATH=path) as (other, fd):
        got = bytearray(10_000)
        stream.recv(fd, got, "first", WAITALL)
        stream.expect("first")
        assert got == pattern(10_000)
        for _ in range(5):
            other.hear()
            stream.drain(0.01)  # into the ring, until it is full
        other.kill()
        stream.until(lambda: over(stream, fd))


def over(v: Victim, fd: int) -> bool:
    """Receive until the connection is refused."""
    v.serial += 1
    cookie = f"over {v.serial}"
    try:
        v.recv(fd, bytearray(100_000), cookie)
    except OSError as problem:
        return problem.errno == errno.ECONNRESET
    event = v.until(lambda: v.events.get(cookie))
    if event.exs_evt_errno:
        assert event.exs_evt_errno == errno.ECONNRESET
        return True
    assert event.exs_evt_union.exs_evt_length, "a death that looks like an orderly end"  # type: ignore[union-attr]
    return False


def test_receiver_killed_with_a_full_ring(stream: Victim, path: str) -> None:
    with dialled_by(stream, "say('up'); forever()", EXS_PATH=path) as (other, fd):
        other.hear("up")
        stream.send(fd, pattern(BIG), "send")
        for _ in range(20):
            stream.drain(0.01)
        assert "send" not in stream.events
        other.kill()
        event = stream.expect("send", errno.ECONNRESET)
        assert event.exs_evt_union.exs_evt_length < BIG  # type: ignore[union-attr]
        is_dead(stream, fd)


@pytest.mark.parametrize("way", WAYS)
def test_server_killed_in_the_middle_of_a_connect(stream: Victim, way: str, configure: Configure) -> None:
    """It listens and never answers; then it is gone."""
    configure(path=way)
    with Other("serve(); time.sleep(60)") as other:
        stream.begin_connect((HOST, int(other.hear())), "connect")
        for _ in range(5):
            stream.drain(0.01)
        assert "connect" not in stream.events
        other.kill()
        stream.expect("connect", errno.ECONNREFUSED if DEVICE == "verbs/rxe" else errno.ECONNRESET)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_client_killed_in_the_middle_of_a_connect(stream: Victim, way: str, steps: int) -> None:
    """It dies after so many looks at its queue; a connection that was accepted is dead, or none was."""
    code = f"""
fd = exs_socket(socket.AF_INET, KIND)
exs_connect(fd, (host, port), "connect", q)
for _ in range({steps}):
    exs_qdequeue(q, 1, 0)
    say("step"); wait()
"""
    with Other(code, stream.address, EXS_PATH=way) as other:
        esapi.exs_accept(stream.listener, "accept", stream.queue)
        stream.posted("accept")
        for step in range(steps):
            other.hear("step")
            for _ in range(3):
                stream.drain(0.005)
            if step < steps - 1:
                other.tell()
        other.kill()
        for _ in range(5):
            stream.drain(0.01)
    event = stream.events.get("accept")
    if event is not None:
        stream.until(lambda: over(stream, event.exs_evt_union.exs_evt_fd))  # type: ignore[union-attr]


def test_peer_killed_in_the_middle_of_a_close(stream: Victim, path: str) -> None:
    """Our end is sent and closed; the peer never acknowledges it."""
    with dialled_by(stream, "say('up'); time.sleep(60)", EXS_PATH=path) as (other, fd):
        other.hear("up")
        other.stop()
        assert stream.close(fd).exs_evt_errno == 0
        other.kill()


def test_peer_killed_while_a_close_waits_for_its_sends(stream: Victim, path: str) -> None:
    with dialled_by(stream, "say('up'); time.sleep(60)", EXS_PATH=path) as (other, fd):
        other.hear("up")
        stream.send(fd, pattern(BIG), "send")
        stream.open.discard(fd)
        esapi.exs_close(fd, "close", stream.queue)
        stream.posted("close")
        for _ in range(5):
            stream.drain(0.01)
        assert "close" not in stream.events
        other.kill()
        stream.expect("send", errno.ECONNRESET)
        stream.expect("close")


# --- SIGSTOP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "source"), [("inline", "private"), ("inline", "allocated"), ("thread", "private")])
def test_stopped_sender_writes_nothing_after_an_abort(stream: Victim, path: str, mode: str, source: str) -> None:
    """The buffer is used again while the sender sleeps; when it wakes up, not a byte of it changes."""
    code = f"""
if {source == "allocated"}:
    data = exs.MemoryRegion.allocate({HUGE})
    data.view[:] = pattern({HUGE})
    mh = exs_mregister(data, EXS_ACCESS_READ)
else:
    data = pattern({HUGE})
    mh = exs_mregister(data, EXS_ACCESS_READ)
marked()
send(fd, data, mh)
event = take()
say(event.exs_evt_errno)
"""
    with dialled_by(stream, code, EXS_PATH=path, EXS_PROGRESS=mode) as (other, fd):
        memory, mh = in_a_direct_write(stream, other, fd)
        other.stop()
        stream.close(fd, abort=True)
        stream.expect("recv", errno.ECONNABORTED)
        esapi.exs_mderegister(mh)
        memory[:] = b"\xa5" * HUGE
        other.go_on()
        assert int(other.hear()) == errno.ECONNRESET
        other.end()
        for _ in range(5):
            stream.drain(0.01)
        assert memory == b"\xa5" * HUGE


@pytest.mark.parametrize("source", ["private", "allocated"])
def test_stopped_receiver_takes_nothing_after_an_abort(stream: Victim, path: str, source: str) -> None:
    """The source is used again after an abort: what the receiver completes holds the old bytes, never the new."""
    code = f"""
rooms = [bytearray({MIB}) for _ in range(32)]
for i, r in enumerate(rooms):
    recv(fd, r, MSG_WAITALL, U, i)
mark()
events = exs_qdequeue(q, 1, 20)
say("partly")
while len(events) < len(rooms):
    more = exs_qdequeue(q, 64, 20)
    assert more, len(events)
    events += more
want = pattern({MIB})
good = 0
for e in events:
    n = e.exs_evt_union.exs_evt_length
    assert e.exs_evt_errno == 0 or n == 0, e
    assert rooms[e.exs_evt_ahandle][:n] == want[:n], "new bytes were taken"
    good += n
    assert e.exs_evt_errno in (0, errno.ECONNRESET), e
assert good
say("good")
"""
    with dialled_by(stream, code, EXS_PATH=path) as (other, fd):
        region, view = room(MIB)
        if source == "allocated":
            view[:] = pattern(MIB)
            memory: memoryview | bytearray = view
            mh = esapi.exs_mregister(region, esapi.EXS_ACCESS_READ)
        else:
            memory = bytearray(pattern(MIB))
            mh = esapi.exs_mregister(memory, esapi.EXS_ACCESS_READ)
        stream.marked(fd)
        for i in range(32):
            stream.send(fd, region if source == "allocated" else memory, f"send {i}", 0, mh)
        stream.until(other.heard)
        other.stop()
        stream.drain(0.01)
        stream.close(fd, abort=True)
        for i in range(32):
            assert stream.until(lambda i=i: stream.events.get(f"send {i}"))  # type: ignore[misc]
        esapi.exs_mderegister(mh)
        memory[:] = bytes(MIB)
        other.go_on()
        other.hear("partly")
        other.hear("good")
        other.end()
        view.release()
        region.close()


# --- a peer that computes, and keep-alive ------------------------------------------------------------------------


def test_peer_that_computes_is_not_dead(stream: Victim, configure: Configure) -> None:
    """It looks at no queue for three times the keep-alive; its kernel answers, and that is enough."""
    code = f"""
memory = bytearray({BIG})
say("up"); wait()
time.sleep(3.2)
recv(fd, memory, MSG_WAITALL)
send(fd, b"done computing")
take(2)
assert memory == pattern({BIG})
say("good")
"""
    configure(keepalive="1", connect_timeout="5")
    with ExitStack() as stack:
        others = []
        for p in PATHS:
            configure(path=p)
            others.append(stack.enter_context(dialling(stream, code, EXS_KEEPALIVE="1", EXS_PATH=p)))
        rooms = [bytearray(14) for _ in PATHS]
        for i, (other, fd) in enumerate(others):
            other.hear("up")
            other.tell()
            stream.recv(fd, rooms[i], f"recv {i}", WAITALL)
            stream.send(fd, pattern(BIG), f"send {i}")
        for i, (other, _) in enumerate(others):
            stream.expect(f"recv {i}")
            assert rooms[i] == b"done computing"
            stream.expect(f"send {i}")
            stream.until(other.heard)
            other.hear("good")
            other.end()


# --- memory that changes in flight --------------------------------------------------------------------------------


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "plain"])
def test_mapped_file_truncated_while_it_is_sent(stream: Victim, path: str, registered: bool, tmp_path: Path) -> None:
    """EFAULT and the end of this connection; no SIGBUS on either side."""
    code = f"""
say("up"); wait()
memory = bytearray({BIG})
recv(fd, memory, MSG_WAITALL)
event = take()
assert event.exs_evt_errno == errno.ECONNRESET or 0 < event.exs_evt_union.exs_evt_length < {BIG}, event
say("good")
"""
    file = tmp_path / "file"
    file.write_bytes(pattern(BIG))
    with dialled_by(stream, code, EXS_PATH=path) as (other, fd), file.open("r+b") as f:
        other.hear("up")
        with mmap.mmap(f.fileno(), BIG) as mapped:
            mh = esapi.exs_mregister(mapped, esapi.EXS_ACCESS_READ) if registered else esapi.EXS_MHANDLE_UNREGISTERED
            stream.send(fd, mapped, "send", 0, mh)
            stream.drain(0.02)
            f.truncate(8192)
            other.tell()
            event = stream.expect("send", errno.EFAULT)
            assert event.exs_evt_union.exs_evt_length < BIG  # type: ignore[union-attr]
            if registered:
                esapi.exs_mderegister(mh)
        other.hear("good")
        other.end()


def test_mapped_file_truncated_while_it_receives_directly(stream: Victim, path: str, tmp_path: Path) -> None:
    """The device finds no memory: EFAULT here, the end of the connection there."""
    code = f"""
marked()
say("here"); wait()
send(fd, pattern({BIG}))
event = take()
assert event.exs_evt_errno == errno.ECONNRESET, event
say("good")
"""
    with dialled_by(stream, code, EXS_PATH=path) as (other, fd), shrinking(tmp_path) as (f, mapped):
        mh = esapi.exs_mregister(mapped, esapi.EXS_ACCESS_WRITE)
        stream.recv(fd, mapped, "recv", WAITALL, mh)
        stream.mark(fd)
        other.hear("here")
        f.truncate(8192)
        other.tell()
        stream.expect("recv", errno.EFAULT)
        esapi.exs_mderegister(mh)
        stream.until(other.heard)
        other.hear("good")
        other.end()
        is_dead(stream, fd, errno.EFAULT)


def test_mapped_file_truncated_while_it_receives_from_the_ring(stream: Victim, path: str, tmp_path: Path) -> None:
    """That receive ends with what fitted; the bytes behind it are not lost."""
    code = f"""
send(fd, pattern({BIG}))
say("up")
take().raise_for_errno()
say("good"); wait()
"""
    with dialled_by(stream, code, EXS_PATH=path) as (other, fd), shrinking(tmp_path) as (f, mapped):
        other.hear("up")
        stream.drain(0.02)
        f.truncate(8192)
        stream.recv(fd, mapped, "recv", WAITALL)
        event = stream.until(lambda: stream.events.get("recv"))
        got = event.exs_evt_union.exs_evt_length  # type: ignore[union-attr]
        assert event.exs_evt_errno == (0 if got else errno.EFAULT)
        assert got <= 8192
        rest = bytearray(BIG - got)
        stream.recv(fd, rest, "rest", WAITALL)
        stream.expect("rest")
        assert mapped[:got] + rest == pattern(BIG)
        stream.until(other.heard)
        other.hear("good")
        other.tell()


@contextmanager
def shrinking(where: Path) -> Iterator[tuple[BinaryIO, mmap.mmap]]:
    """A file, and all of it mapped."""
    file = where / "file"
    file.write_bytes(bytes(BIG))
    with file.open("r+b") as f, mmap.mmap(f.fileno(), BIG) as mapped:
        yield f, mapped


def test_buffer_in_flight_cannot_be_resized_and_is_not_collected(stream: Victim, path: str) -> None:
    code = f"""
say("up"); wait()
memory = bytearray({4 * MIB})
recv(fd, memory, MSG_WAITALL)
take().raise_for_errno()
assert memory == pattern({4 * MIB})
send(fd, memory)
take()
say("good"); wait()
"""
    with dialled_by(stream, code, EXS_PATH=path) as (other, fd):
        other.hear("up")
        source = bytearray(pattern(4 * MIB))
        stream.send(fd, source, "send")
        with pytest.raises(BufferError):
            source.append(1)
        with pytest.raises(BufferError):
            source.clear()
        with pytest.raises(BufferError):
            del source[:10]
        before = id(source)
        del source  # only the operation holds it now
        others = [bytearray(4 * MIB) for _ in range(4)]
        assert before not in map(id, others)
        other.tell()
        stream.expect("send")
        back = bytearray(4 * MIB)
        stream.recv(fd, back, "recv", WAITALL)
        with pytest.raises(BufferError):
            back.extend(b"x")
        stream.expect("recv")
        back.extend(b"x")
        assert back[:-1] == pattern(4 * MIB)
        stream.until(other.heard)
        other.hear("good")
        other.tell()
