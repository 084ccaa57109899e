# SPDX-License-Identifier: MIT OR Apache-2.0
"""Agreeing on shared memory with somebody who lies: nothing unsafe is mapped, and TCP serves instead."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable

import pytest
import rawshm as rs
import rawwire as rw
from rawpeer import Agreed, StreamPeer, TcpLink
from rawwire import Block, Control, Hello
from scene import end_of
from victim import Victim

from exs import esapi
from exs.errors import NoDeviceError


def lie(**fields: object) -> Callable[[rs.Answer], None]:

    def act(a: rs.Answer) -> None:
        rs.say_hello(a, **fields)

    return act


def files(
    segment: Callable[[], int] | None = None, page: Callable[[], int] | None = None
) -> Callable[[rs.Answer], None]:
    good = rs.Segment.head(64, 8192)

    def act(a: rs.Answer) -> None:
        rs.say_hello(
            a,
            [
                segment() if segment else rs.memfd(rs.Segment.size(64, 8192), rs.SHARED_SEALS, good),
                page() if page else rs.page_memfd(),
            ],
        )

    return act


SIZE = rs.Segment.size(64, 8192)
HEAD = rs.Segment.head(64, 8192)


def no_memfd() -> int:
    return os.open("/dev/zero", os.O_RDWR)


def pipe_end() -> int:
    r, w = os.pipe()
    os.close(w)
    return r


HELLO_LIES: dict[str, Callable[[rs.Answer], None]] = {
    "segment without seals": files(lambda: rs.memfd(SIZE, 0, HEAD)),
    "segment that may shrink": files(lambda: rs.memfd(SIZE, rs.SEAL_GROW, HEAD)),
    "segment that may grow": files(lambda: rs.memfd(SIZE, rs.SEAL_SHRINK, HEAD)),
    "segment too short": files(lambda: rs.memfd(SIZE - 4096, rs.SHARED_SEALS, HEAD)),
    "segment empty": files(lambda: rs.memfd(0, rs.SHARED_SEALS)),
    "segment is a device": files(no_memfd),
    "segment is a pipe": files(pipe_end),
    "segment with another magic": files(
        lambda: rs.memfd(SIZE, rs.SHARED_SEALS, rs.Segment.head(64, 8192, magic=rs.PAGE_MAGIC))
    ),
    "segment of another version": files(lambda: rs.memfd(SIZE, rs.SHARED_SEALS, rs.Segment.head(64, 8192, version=2))),
    "segment with other sizes": files(lambda: rs.memfd(SIZE, rs.SHARED_SEALS, rs.Segment.head(128, 8192))),
    "page without seals": files(None, lambda: rs.page_memfd(seals=0)),
    "page that may shrink": files(None, lambda: rs.page_memfd(seals=rs.SEAL_GROW | rs.SEAL_FUTURE_WRITE)),
    "page too short": files(None, lambda: rs.page_memfd(nbytes=100)),
    "page with another magic": files(None, lambda: rs.page_memfd(magic=rs.MAGIC)),
    "page is a device": files(None, no_memfd),
    "slots: 0": lie(slots=0),
    "slots: 63": lie(slots=63, fds=[]),
    "slots: 2^31": lie(slots=1 << 31, fds=[]),
    "data: 0": lie(data_bytes=0),
    "data: 5000": lie(data_bytes=5000, fds=[]),
    "data: 2^31": lie(data_bytes=1 << 31, fds=[]),
    "no descriptors": lie(fds=[]),
}


@pytest.mark.parametrize("what", HELLO_LIES)
def test_segment_that_may_not_be_mapped_is_refused(stream: Victim, what: str) -> None:
    """Nothing is mapped that could vanish; the connection goes over TCP instead."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = stream.begin_connect(listener.getsockname(), "connect")

        def act() -> tuple[rs.Answer, Hello]:
            a = rs.answer(listener)
            HELLO_LIES[what](a)
            mine = a.reply()
            ack, fds = rs.receive_message(a.unix)
            a.fds += fds
            assert ack.type == rs.ACK
            assert ack.why != 0, "a bad segment was taken"
            return a, mine

        a, mine = stream.during(act)
        stream.expect("connect")
    finish_on_tcp(stream, fd, a, mine)


def finish_on_tcp(v: Victim, fd: int, a: rs.Answer, mine: Hello) -> None:
    """The connection stayed on TCP and works."""
    link = TcpLink(a.tcp)
    link.memory.add(mine.ring_len, mine.ring_addr, mine.ring_rkey)
    agreed = Agreed(link, mine, Hello.decode(a.request.private[:56]), a.block, a.request)
    peer = v.during(lambda: StreamPeer(agreed, active=False))
    v.send(fd, b"over tcp", "over tcp")
    assert v.during(lambda: peer.receive(8)) == b"over tcp"
    v.expect("over tcp")
    a.close()


@pytest.mark.parametrize(
    "what", ["noise", "wrong token", "wrong magic", "second descriptor missing", "closed at once", "never comes"]
)
def test_hello_that_is_none(stream: Victim, what: str) -> None:
    """Who does not know the token is nobody; the real peer may still say that it stays on TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = stream.begin_connect(listener.getsockname(), "connect")

        def act() -> tuple[rs.Answer, Hello]:
            a = rs.answer(listener)
            if what == "noise":
                rs.send_message(a.unix, b"GET / HTTP/1.1")
            elif what == "wrong token":
                rs.say_hello(a, token=os.urandom(16))
            elif what == "wrong magic":
                rs.say_hello(a, magic=7)
            elif what == "second descriptor missing":
                rs.say_hello(a, [rs.memfd(SIZE, rs.SHARED_SEALS, HEAD)])
            elif what == "closed at once":
                a.unix.close()
            mine = a.reply(flags=0)
            return a, mine

        a, mine = stream.during(act)
        stream.expect("connect")
    finish_on_tcp(stream, fd, a, mine)


def test_reply_promises_shared_memory_and_nobody_comes(stream: Victim) -> None:
    """The wait for a HELLO is bounded, and ends on TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = stream.begin_connect(listener.getsockname(), "connect")

        def act() -> tuple[rs.Answer, Hello]:
            a = rs.answer(listener)
            return a, a.reply()

        a, mine = stream.during(act)
        stream.expect("connect")
    finish_on_tcp(stream, fd, a, mine)


@pytest.mark.parametrize("what", ["segment without seals", "page too short", "no descriptors"])
def test_forced_path_says_why_not(stream: Victim, configure: Callable[..., None], what: str) -> None:
    configure(path="shm")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream.begin_connect(listener.getsockname(), "connect")

        def act() -> None:
            a = rs.answer(listener)
            HELLO_LIES[what](a)
            a.reply()
            end_of(a.tcp)
            a.close()

        stream.during(act)
        event = stream.expect("connect", errno.EOPNOTSUPP)
        with pytest.raises(NoDeviceError):
            event.raise_for_errno()


ACK_LIES: dict[str, Callable[[rs.Offer], None]] = {
    "no": lambda o: rs.send_message(unix_of(o), rs.Message(rs.ACK, why=3, token=token_of(o))),
    "no, with a number nobody knows": lambda o: rs.send_message(
        unix_of(o), rs.Message(rs.ACK, why=999, token=token_of(o))
    ),
    "closed": lambda o: unix_of(o).close(),
}


def unix_of(o: rs.Offer) -> socket.socket:
    assert o.unix is not None
    return o.unix


def token_of(o: rs.Offer) -> bytes:
    assert o.hello is not None
    return o.hello.peer_token


@pytest.mark.parametrize("what", ACK_LIES)
def test_offer_that_is_turned_down_goes_over_tcp(stream: Victim, what: str) -> None:
    def act(address: tuple[str, int]) -> tuple[rs.Offer, Agreed]:
        o = rs.offer(address)
        rs.take_hello(o)
        ACK_LIES[what](o)
        assert o.reply is not None
        link = TcpLink(o.tcp)
        link.memory.add(o.mine.ring_len, o.mine.ring_addr, o.mine.ring_rkey)
        agreed = Agreed(link, o.mine, Hello.decode(o.reply.private[:56]), None, o.reply)
        # Only now may the passive side say that it is up: our first message tells.
        agreed.link.send(Control(rw.CREDIT).encode())
        return o, agreed

    fd, (o, agreed) = stream.accept(act)
    stream.send(fd, b"over tcp", "send")

    def read() -> bytes:
        got = b""
        while not got:
            data = agreed.link.next_message()
            if len(data) == 4:
                n = struct.unpack(">I", data)[0] & 0xFFFF
                got = bytes(agreed.link.memory.regions[o.mine.ring_rkey].data[:n])
        return got

    assert stream.during(read) == b"over tcp"
    o.close()


OFFER_LIES: dict[str, dict[str, object]] = {
    "name of nobody": {"name": b"nobody-" + os.urandom(8).hex().encode()},
    "no name": {"name": b""},
    "name too long": {"name_len": 33},
    "probe at 0": {"probe_addr": 0},
    "probe at the end of all addresses": {"probe_addr": (1 << 64) - 8},
}


@pytest.mark.parametrize("what", OFFER_LIES)
def test_offer_with_a_block_that_lies(stream: Victim, what: str) -> None:
    """A name that leads nowhere, a probe that cannot be read: tcp, or the rung that needs neither."""

    def act(address: tuple[str, int]) -> rs.Offer:
        o = rs.offer(address, **OFFER_LIES[what])
        o.reply = rw.read_frame(o.tcp, reply=True)
        block = Block.decode(o.reply.private)
        if block is not None and block.flags & Block.SHM:
            o.unix, _ = o.unix_listener.accept()
            o.unix.close()
        TcpLink(o.tcp).send(Control(rw.CREDIT).encode())
        return o

    fd, o = stream.accept(act)
    stream.close(fd, abort=True)
    o.close()


ACK_NONSENSE: dict[str, Callable[[rs.Offer], None]] = {
    "noise": lambda o: rs.send_message(unix_of(o), b"yes!"),
    "wrong token": lambda o: ack_with(o, token=os.urandom(16)),
    "no page": lambda o: rs.send_message(unix_of(o), rs.Message(rs.ACK, token=token_of(o))),
    "page without seals": lambda o: ack_with(o, page=rs.page_memfd(seals=0)),
    "page too short": lambda o: ack_with(o, page=rs.page_memfd(nbytes=64)),
    "page with another magic": lambda o: ack_with(o, page=rs.page_memfd(magic=5)),
    "HELLO instead": lambda o: rs.send_message(unix_of(o), rs.Message(rs.HELLO, token=token_of(o))),
}


def ack_with(o: rs.Offer, *, token: bytes | None = None, page: int | None = None) -> None:
    page = rs.page_memfd() if page is None else page
    o.fds.append(page)
    rs.send_message(unix_of(o), rs.Message(rs.ACK, token=token or token_of(o)), [page])


@pytest.mark.parametrize("what", ACK_NONSENSE)
def test_yes_that_is_none(stream: Victim, what: str) -> None:
    """Whatever the passive side makes of it, it ends: the peer that lied gets no shared memory."""

    def act() -> None:
        o = rs.offer(stream.address)
        rs.take_hello(o)
        ACK_NONSENSE[what](o)
        unix_of(o).settimeout(rw.TIMEOUT)
        try:
            assert unix_of(o).recv(100) == b""
        except ConnectionError:
            pass
        o.close()

    esapi.exs_accept(stream.listener, "maybe", stream.queue)
    stream.posted("maybe")
    stream.during(act)
