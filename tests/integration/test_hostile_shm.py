# SPDX-License-Identifier: MIT OR Apache-2.0
"""Peers in shared memory that lie: rings, slots, regions, descriptors of every kind."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable

import pytest
import rawshm as rs
import rawwire as rw
from rawpeer import StreamPeer
from rawshm import ShmLink
from rawwire import Control, word
from scene import BUFFER, FILL, GUARD, Attack, Scene, as_far_as_it_goes, judge, scene
from victim import Victim

from exs import MemoryRegion, esapi


def slot(kind: int, flags: int, length: int = 0, **fields: int) -> Attack:
    def act(s: Scene) -> None:
        assert isinstance(s.link, ShmLink)
        s.link.slot(kind, flags, length, **fields)  # type: ignore[arg-type]

    return act


def in_ring(flags: int, length: int | None) -> Attack:
    """Out of the ring of bytes, with a good key; no length: twice what that ring holds."""

    def act(s: Scene) -> None:
        assert isinstance(s.link, ShmLink)
        n = 2 * s.link.segment.data_bytes if length is None else length
        s.link.slot(rs.IN_RING, flags, n, rkey=s.ring.ring_rkey, raddr=s.ring.ring_addr)

    return act


def unix(data: bytes, fds: int = 0) -> Attack:
    def act(s: Scene) -> None:
        assert isinstance(s.link, ShmLink)
        given = [os.memfd_create("x") for _ in range(fds)]
        try:
            rs.send_message(s.link.unix, data, given)
        finally:
            for fd in given:
                os.close(fd)

    return act


def region(
    seals: int = rs.PRIVATE_SEALS, size: int = 8192, says: int = 8192, *, holes: bool = False, **slot_: int
) -> Attack:
    """Pass a memory file and write from it into the advertised receive."""

    def act(s: Scene) -> None:
        assert isinstance(s.link, ShmLink)
        fd = rs.memfd(0 if holes else size, 0 if holes else seals)
        if holes:
            os.ftruncate(fd, size)
            rs.fcntl.fcntl(fd, rs.F_ADD_SEALS, seals)
        s.link.owned.append(fd)
        rs.send_message(s.link.unix, rs.Message(rs.REGION, id=5, len=says), [fd])
        given = {"src": 0, "length": 4096, "region": 5} | slot_
        length = given.pop("length")
        s.link.slot(rs.MAPPED, rs.LAST, length, rkey=s.advert.rkey, raddr=s.advert.addr, **given)  # type: ignore[arg-type]

    return act


def consumed(value: Callable[[ShmLink], int]) -> Attack:
    """Wrong news of how far we read; exs looks when it needs room."""

    def act(s: Scene) -> None:
        link = s.link
        assert isinstance(link, ShmLink)
        for _ in range(2 * link.segment.slots):
            ping(s)
        link.segment.set_consumed(value(link))
        link.done = lambda: setattr(link, "taken", link.taken + 1)  # type: ignore[method-assign]
        for _ in range(2 * link.segment.slots):
            ping(s)

    return act


def ping(s: Scene) -> None:
    s.peer.control(rw.PING, seq=1)
    s.peer.step()


def behind_shut(s: Scene) -> None:
    assert isinstance(s.link, ShmLink)
    s.link.slot(rs.SHUT, 0)
    s.link.slot(rs.INLINE, rs.LAST | rs.UNTAGGED, 4, body=word(1, 4))


def send_inside_write(s: Scene) -> None:
    assert isinstance(s.link, ShmLink)
    s.link.slot(rs.INLINE, 0, 4, rkey=s.ring.ring_rkey, raddr=s.ring.ring_addr, body=b"\xee" * 4)
    s.link.send(Control(rw.ACK).encode())


def twice_the_region(s: Scene) -> None:
    region()(s)
    region()(s)


REGION_MESSAGE = rs.Message(rs.REGION, id=5, len=4096).encode()

SHM: dict[str, Attack] = {
    "kind 0": slot(0, rs.LAST),
    "kind 8": slot(8, rs.LAST),
    "kind 255": slot(255, 255),
    "53 bytes in a slot": slot(rs.INLINE, rs.LAST | rs.UNTAGGED, 53),
    "37 bytes in a slot": slot(rs.INLINE, rs.LAST, 37),
    "37 bytes in a slot, where they may go": lambda s: s.link.slot(  # type: ignore[union-attr]
        rs.INLINE, rs.LAST, 37, rkey=s.ring.ring_rkey, raddr=s.ring.ring_addr
    ),
    "twice the ring, where it may go": in_ring(rs.LAST, None),
    "4 GiB in a slot": slot(rs.INLINE, rs.LAST, 0xFFFFFFFF),
    "4 GiB in the ring": in_ring(rs.LAST, 0xFFFFFFFF),
    "more than the ring": in_ring(rs.LAST, 1 << 24),
    "a SEND out of the ring that is too long": in_ring(rs.LAST | rs.UNTAGGED, 500),
    "pull that was not agreed": slot(rs.PULL, rs.LAST, 64, src=0x1000),
    "pull of nothing": slot(rs.PULL, rs.LAST, 0, src=0x1000),
    "region that never came": slot(rs.MAPPED, rs.LAST, 64, src=0, region=77),
    "region 0": slot(rs.MAPPED, rs.LAST, 64, src=0, region=0),
    "filled, not lent": slot(rs.FILLED, rs.LAST, 64, rkey=0xDEAD, raddr=4096),
    "filled SEND": slot(rs.FILLED, rs.LAST | rs.UNTAGGED, 4),
    "SEND inside of a WRITE": send_inside_write,
    "consumed more than was sent": consumed(lambda link: link.taken + 100_000),
    "consumed less than before": consumed(lambda link: 1),
    "short message": unix(b"hello"),
    "empty message with a descriptor": unix(b"", 1),
    "long message": unix(rs.Message(rs.WAKE).encode() + b"x"),
    "wrong magic": unix(rs.Message(rs.WAKE, magic=1).encode()),
    "wrong version": unix(rs.Message(rs.WAKE, version=2).encode()),
    "HELLO again": unix(rs.Message(rs.HELLO).encode()),
    "ACK again": unix(rs.Message(rs.ACK).encode()),
    "type 99": unix(rs.Message(99).encode()),
    "WAKE with a descriptor": unix(rs.Message(rs.WAKE).encode(), 1),
    "ten descriptors": unix(REGION_MESSAGE, 10),
    "REGION without a descriptor": unix(REGION_MESSAGE),
    "LEND without a descriptor": unix(rs.Message(rs.LEND, rkey=1, addr=4096, len=4096).encode()),
    "region twice": twice_the_region,
    "region: no seals": region(0),
    "region: may shrink": region(rs.SEAL_GROW | rs.SEAL_FUTURE_WRITE),
    "region: may be written": region(rs.SHARED_SEALS),
    "region: shorter than said": region(size=4096, says=8192),
    "region: empty": region(size=0, says=4096),
    "region: says 0": region(says=0),
    "region: says everything": region(says=(1 << 64) - 4096),
    "region: has holes": region(holes=True),
    "region: slot outside": region(length=8192, src=4096),
    "region: slot wraps": region(src=(1 << 64) - 16, length=64),
}


@pytest.mark.parametrize("active", [False, True], ids=["passive", "active"])
@pytest.mark.parametrize("attack", SHM)
def test_attack_through_shared_memory(stream: Victim, attack: str, active: bool) -> None:
    s = scene(stream, "shm", active)
    stream.during(lambda: as_far_as_it_goes(SHM[attack], s))
    judge(s, errno.EPROTO)


@pytest.mark.parametrize("more", [False, True])
def test_end_of_sending_without_fin(stream: Victim, more: bool) -> None:
    """The peer says that no message follows, and FIN never came: no orderly end."""
    s = scene(stream, "shm", False)
    stream.during(lambda: as_far_as_it_goes(behind_shut if more else slot(rs.SHUT, 0), s))
    error = stream.until(lambda: stream.events.get("send")).exs_evt_errno
    assert error == errno.ECONNRESET or (more and error == errno.EPROTO)
    judge(s, error)


def test_region_that_is_as_it_must_be(stream: Victim) -> None:
    """The counterpart of the attacks above: this one is taken."""
    s = scene(stream, "shm", False)
    content = os.urandom(8192)
    fd = rs.memfd(8192, rs.PRIVATE_SEALS, content)
    link = s.link
    assert isinstance(link, ShmLink)
    link.owned.append(fd)

    def act() -> None:
        rs.send_message(link.unix, rs.Message(rs.REGION, id=5, len=8192), [fd])
        link.slot(rs.MAPPED, rs.LAST, 8000, rkey=s.advert.rkey, raddr=s.advert.addr, src=100, region=5)
        link.send(word(0, 8000))

    stream.during(act)
    stream.until(lambda: s.memory[GUARD : GUARD + 8000] == content[100:8100])
    s.peer.close()
    event = stream.until(lambda: stream.events.get("recv"))
    assert (event.exs_evt_errno, event.exs_evt_union.exs_evt_length) == (0, 8000)
    esapi.exs_mderegister(s.region)


@pytest.mark.parametrize("state", [rs.WITHDRAWN, rs.TERMINATED, 0xFFFFFFFF, 0x01000002])
def test_peer_that_ends_with_any_word(stream: Victim, state: int) -> None:
    s = scene(stream, "shm", False)
    link = s.link
    assert isinstance(link, ShmLink)
    link.segment.set_state(state)
    s.peer.close()
    event = stream.until(lambda: stream.events.get("send"))
    assert event.exs_evt_errno in (errno.ECONNRESET, errno.EPROTO, errno.EFAULT)
    stream.expect("recv", event.exs_evt_errno)
    esapi.exs_mderegister(s.region)


def test_source_that_was_withdrawn_is_not_taken(stream: Victim) -> None:
    s = scene(stream, "shm", False)
    link = s.link
    assert isinstance(link, ShmLink)
    link.segment.set_state(rs.WITHDRAWN)
    stream.during(lambda: region()(s))
    stream.expect("send", errno.ECONNRESET)
    stream.expect("recv", errno.ECONNRESET)
    assert s.memory == bytes([FILL]) * len(s.memory)
    s.peer.close()
    esapi.exs_mderegister(s.region)


# --- memory that the peer lends ------------------------------------------------------------------------------

RING = 65536

LENT: dict[str, tuple[int, int, int]] = {  # seals, bytes of the file, offset
    "as it must be": (rs.SHARED_SEALS, RING, 0),
    "in the middle of a file": (rs.SHARED_SEALS, RING + 8192, 8192),
    "no seals": (0, RING, 0),
    "may shrink": (rs.SEAL_GROW, RING, 0),
    "too short": (rs.SHARED_SEALS, RING - 4096, 0),
    "empty": (rs.SHARED_SEALS, 0, 0),
    "offset behind the end": (rs.SHARED_SEALS, RING, 1 << 30),
    "offset that wraps": (rs.SHARED_SEALS, RING, (1 << 64) - 4096),
    "may not be written": (rs.SHARED_SEALS | rs.SEAL_WRITE, RING, 0),
}


@pytest.mark.parametrize("what", LENT)
def test_memory_that_is_lent(stream: Victim, what: str) -> None:
    """We fill it if it is safe to; if not, the bytes go another way, and nothing is touched that could vanish."""
    fd, agreed = stream.accept(rs.connect)
    link = agreed.link
    assert isinstance(link, ShmLink)
    seals, size, offset = LENT[what]
    good = seals == rs.SHARED_SEALS and offset + RING <= size
    file = rs.memfd(size, seals)
    link.owned.append(file)
    link.lend(file, agreed.mine.ring_rkey, agreed.mine.ring_addr, RING, offset=offset, keep=good)
    peer = stream.during(lambda: StreamPeer(agreed))
    if good:
        base, memory = link.lent[agreed.mine.ring_rkey]
        link.memory.regions[agreed.mine.ring_rkey].data = memory  # type: ignore[assignment]
        assert base == agreed.mine.ring_addr
    stream.drain(0.01)
    data = os.urandom(150_000)
    stream.send(fd, data, "send")
    assert stream.during(lambda: peer.receive(len(data))) == data
    stream.expect("send")
    stream.during(lambda: peer.send(data[:1000]))
    room = bytearray(1000)
    stream.recv(fd, room, "recv", esapi.MSG_WAITALL)
    stream.expect("recv")
    assert room == data[:1000]
    peer.close()


@pytest.mark.parametrize("n", [5, 100])
def test_more_lent_than_is_remembered(stream: Victim, n: int) -> None:
    fd, agreed = stream.accept(rs.connect)
    link = agreed.link
    assert isinstance(link, ShmLink)
    file = rs.memfd(8192, rs.SHARED_SEALS)
    link.owned.append(file)

    def act() -> None:
        for i in range(n):
            link.lend(file, 1000 + i, 1 << 40, 8192, keep=False)

    stream.during(act)
    peer = stream.during(lambda: StreamPeer(agreed))
    stream.send(fd, b"fine", "send")
    assert stream.during(lambda: peer.receive(4)) == b"fine"
    stream.expect("send")
    peer.close()


def test_what_we_pass_cannot_be_changed_by_the_peer(stream: Victim) -> None:
    """Our segment, page and regions keep their size, and what is ours alone cannot be written."""
    fd, agreed = stream.accept(rs.connect)
    link = agreed.link
    assert isinstance(link, ShmLink)
    segment, page = link.owned[0], link.owned[1]
    for file in (segment, page):
        for size in (0, 1 << 30):
            with pytest.raises(PermissionError):
                os.ftruncate(file, size)
    with pytest.raises(OSError):
        os.pwrite(page, b"x", 0)
    with pytest.raises(OSError):
        rs.mmap.mmap(page, 4096)
    peer = stream.during(lambda: StreamPeer(agreed))
    with MemoryRegion.allocate(100_000) as region:
        region.view[:] = b"r" * 100_000
        mh = esapi.exs_mregister(region, esapi.EXS_ACCESS_READ)
        stream.during(lambda: peer.post(100_000))
        stream.drain(0.02)
        stream.send(fd, region, "send", 0, mh)
        assert stream.during(peer.receive_direct) == b"r" * 100_000  # the link looks at the seals of what it maps
        stream.expect("send")
        esapi.exs_mderegister(mh)
    peer.close()


# --- anything at all ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_random_slots(stream: Victim, seed: int) -> None:
    """Slots and messages of random content, near to the truth: an error or none, but always one event each."""
    rng = random.Random(seed)
    s = scene(stream, "shm", seed % 2 == 1)
    link = s.link
    assert isinstance(link, ShmLink)
    addresses = [s.ring.ring_addr, s.advert.addr, s.advert.addr + s.advert.len, 0, (1 << 64) - 8]
    keys = [s.ring.ring_rkey, s.advert.rkey, 0, rng.getrandbits(32)]
    lengths = [0, 4, 36, 48, 52, 64, 1000, 8192, rng.getrandbits(32)]

    def act() -> None:
        for _ in range(rng.randrange(1, 12)):
            if rng.random() < 0.1:
                rs.send_message(link.unix, rs.Message(rng.randrange(7), id=rng.randrange(3), len=4096))
            link.slot(
                rng.choice([1, 1, 2, 2, 3, 4, 5, 6, 7, 8]), rng.randrange(16), rng.choice(lengths),
                rkey=rng.choice(keys), raddr=(rng.choice(addresses) + rng.choice([0, 0, 1, 4096])) % (1 << 64),
                word=rng.choice([1 << 30 | 10, 10, rng.getrandbits(32)]), body=rng.randbytes(28),
            )  # fmt: skip

    stream.during(lambda: as_far_as_it_goes(lambda _: act(), s))
    s.peer.close()
    stream.until(lambda: stream.events.get("send"))
    stream.until(lambda: stream.events.get("recv"))
    assert s.memory[:GUARD] == bytes([FILL]) * GUARD
    assert s.memory[GUARD + BUFFER :] == bytes([FILL]) * GUARD
    stream.close(s.fd)
    esapi.exs_mderegister(s.region)
