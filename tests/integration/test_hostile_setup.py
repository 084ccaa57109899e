# SPDX-License-Identifier: MIT OR Apache-2.0
"""Before and during set-up: noise, other protocols, hellos that lie; in both roles."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest
import rawpeer as rp
import rawwire as rw
from rawpeer import TcpLink
from rawwire import Block, Closed, Frame, Hello, Rejected, Terminated
from scene import end_of
from victim import Victim

GOOD = Frame(private=Hello().encode())
PRIVATE = Hello().encode()

NOISE = {
    "http": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)),
    "zeros": bytes(100),
    "random": bytes((i * 167 + 13) & 255 for i in range(700)),
    "key of a reply": Frame(reply=True).encode(),
    "half a key": rw.REQUEST_KEY[:9],
    "half a key and something else": rw.REQUEST_KEY[:9] + b"X" * 40,
    "half a request": GOOD.encode()[:40],
    "revision 0": replace(GOOD, revision=0).encode(),
    "revision 3": replace(GOOD, revision=3).encode(),
    "reject in a request": replace(GOOD, flags=rw.F_REJECT).encode(),
    "too much private data": replace(GOOD, length=0xFFFF).encode() + bytes(70_000),
    "513 bytes of private data": replace(GOOD, private=PRIVATE + bytes(513)).encode(),
    "no room for the depths": replace(GOOD, private=b"", length=3).encode(),
    "markers": replace(GOOD, flags=rw.F_ENHANCED | rw.F_MARKERS).encode(),
}

HELLOS = {
    "none": b"",
    "55 bytes": PRIVATE[:55],
    "wrong magic": Hello(magic=0x45585332).encode(),
    "newer only": Hello(version=9, min_version=2).encode(),
    "empty range": Hello(version=1, min_version=2).encode(),
    "version 0": Hello(version=0, min_version=0).encode(),
    "no type": Hello(flags=0).encode(),
    "both types": Hello(flags=3).encode(),
    "seven credits": Hello(credits=7).encode(),
    "no advertisements": Hello(max_adverts=0).encode(),
    "no transfer": Hello(max_transfer=0).encode(),
    "no ring": Hello(ring_len=0).encode(),
    "ring wraps": Hello(ring_addr=(1 << 64) - 100).encode(),
    "only a block": Block().encode(),
}


@pytest.mark.parametrize("noise", NOISE)
def test_noise_instead_of_a_request(stream: Victim, noise: str) -> None:
    def act() -> bytes:
        with rp.dial(stream.address) as sock:
            try:
                sock.sendall(NOISE[noise])
            except ConnectionError:
                pass  # it has seen enough
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            return end_of(sock)

    said = stream.during(act)
    assert not said or said.startswith(rw.REPLY_KEY), said
    if said:
        assert said[16] & rw.F_REJECT, "noise was accepted"


def test_noise_behind_a_good_request(stream: Victim) -> None:
    """Seen before the reply or after it: it is no FPDU either way."""

    def act() -> None:
        with rp.dial(stream.address) as sock:
            sock.sendall(GOOD.encode() + b"\xff" * 64)
            try:
                rw.read_frame(sock, reply=True)
            except Closed:
                return
            with pytest.raises((Terminated, Closed)):
                TcpLink(sock).next_message()

    stream.during(act)


# ES-API 2.2
@pytest.mark.parametrize("hello", HELLOS)
def test_request_without_our_hello_is_rejected_with_a_reason(stream: Victim, hello: str) -> None:
    def act() -> Rejected:
        with rp.dial(stream.address) as sock:
            sock.sendall(Frame(private=HELLOS[hello]).encode())
            with pytest.raises(Rejected) as refusal:
                rw.read_frame(sock, reply=True)
            assert end_of(sock) == b""
            return refusal.value

    code, text = stream.during(act).reason()
    assert code == 1
    assert text


def test_message_peer_at_a_stream_listener_is_told_so(stream: Victim) -> None:
    def act() -> Rejected:
        with pytest.raises(Rejected) as refusal:
            rp.connect(stream.address, Hello.for_messages())
        return refusal.value

    code, text = stream.during(act).reason()
    assert code == 2
    assert "type" in text


def test_strangers_who_say_nothing_keep_nobody_out(stream: Victim) -> None:
    silent = [rp.dial(stream.address) for _ in range(40)]
    half = [rp.dial(stream.address) for _ in range(20)]
    for sock in half:
        sock.sendall(rw.REQUEST_KEY[:10])
    fd, agreed = stream.accept(rp.connect)
    for sock in silent + half:
        sock.close()
    agreed.link.close()
    stream.close(fd)


ANSWERS = {
    "http": (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", errno.EPROTO),
    "zeros": (bytes(64), errno.EPROTO),
    "key of a request": (GOOD.encode(), errno.EPROTO),
    "revision 9": (replace(GOOD, reply=True, revision=9).encode(), errno.EPROTO),
    "too much private data": (replace(GOOD, reply=True, length=60_000).encode() + bytes(60_000), errno.EPROTO),
    "markers": (replace(GOOD, reply=True, flags=rw.F_ENHANCED | rw.F_MARKERS).encode(), errno.EPROTO),
    "half a reply": (replace(GOOD, reply=True).encode()[:30], errno.ECONNRESET),
    "nothing": (b"", errno.ECONNRESET),
    "reject without words": (Frame(reply=True, flags=rw.F_ENHANCED | rw.F_REJECT).encode(), errno.ECONNREFUSED),
    "reject: protocol": (
        Frame(reply=True, flags=rw.F_ENHANCED | rw.F_REJECT, private=rw.reject_block(1, "no")).encode(),
        errno.EPROTO,
    ),
    "reject: busy": (
        Frame(reply=True, flags=rw.F_ENHANCED | rw.F_REJECT, private=rw.reject_block(3, "no")).encode(),
        errno.ECONNREFUSED,
    ),
    "reject: code 99": (
        Frame(reply=True, flags=rw.F_ENHANCED | rw.F_REJECT, private=rw.reject_block(99, "no")).encode(),
        errno.ECONNREFUSED,
    ),
}
ANSWERS |= {f"hello: {name}": (Frame(reply=True, private=h).encode(), errno.EPROTO) for name, h in HELLOS.items()}
ANSWERS["hello: version 2 chosen"] = (Frame(reply=True, private=Hello(version=2).encode()).encode(), errno.EPROTO)
ANSWERS["hello: message peer"] = (
    Frame(reply=True, private=Hello.for_messages().encode()).encode(),
    errno.EPROTO,
)


@pytest.mark.parametrize("answer", ANSWERS)
def test_connecting_to_something_else(stream: Victim, answer: str) -> None:
    said, error = ANSWERS[answer]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd = stream.begin_connect(listener.getsockname(), "connect")

        def act() -> None:
            sock, request = rp.greet(listener)
            with sock:
                assert Hello.decode(request.private[:56]).magic == rw.HELLO_MAGIC
                try:
                    sock.sendall(said)
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
                end_of(sock)

        stream.during(act)
        stream.expect("connect", error)
    with pytest.raises(OSError):
        stream.send(fd, b"x", "never")


def test_nobody_listens(stream: Victim) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # taken, so that nobody else will listen there
        stream.begin_connect(sock.getsockname(), "connect")
        stream.expect("connect", errno.ECONNREFUSED)


def test_server_that_never_answers(stream: Victim, configure: Callable[..., None]) -> None:
    configure(connect_timeout="0.3")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream.begin_connect(listener.getsockname(), "connect")
        stream.expect("connect", errno.ETIMEDOUT)


@pytest.mark.parametrize("noise", ["http", "zeros", "random"])
def test_noise_behind_a_good_reply(stream: Victim, noise: str) -> None:
    """The connection came up, and breaks with the first FPDU."""

    def act(listener: socket.socket) -> socket.socket:
        sock, request = rp.greet(listener)
        private = Hello(cookie=Hello.decode(request.private[:56]).cookie).encode()
        sock.sendall(Frame(reply=True, private=private).encode() + NOISE[noise])
        return sock

    fd, sock = stream.connect(act)
    with sock:
        stream.until(lambda: refused(stream, fd))


def refused(v: Victim, fd: int) -> bool:
    """A send is refused, for what the peer did."""
    try:
        v.serial += 1
        v.send(fd, b"x", f"probe {v.serial}")
    except OSError as problem:
        return problem.errno == errno.EPROTO
    return False
