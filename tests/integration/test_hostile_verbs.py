# SPDX-License-Identifier: MIT OR Apache-2.0
"""A peer on an RDMA device that lies at set-up, or uses a key that is not its own: only its connection suffers."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator

import ground
import pytest
from rawpeer import StreamPeer
from rawwire import Hello, Rejected
from scene import FAULT, FILL, KEYS_END, LINKS
from verbslink import Lost, RemoteLink
from victim import Victim

from exs import esapi

(LINK,) = LINKS.values() if ground.VERBS else (None,)
PRIVATE = Hello().encode()

# What is sent instead of a hello, and the field that the refusal must name.  InfiniBand's private data arrives padded
# with zeros, so nothing can be too short there.
HELLOS = {
    "noise": (bytes(range(7, 63)), "magic"),
    "other magic": (Hello(magic=0x45585332).encode(), "magic"),
    "newer only": (Hello(version=9, min_version=2).encode(), "version"),
    "empty range": (Hello(version=1, min_version=2).encode(), "version"),
    "no type": (Hello(flags=0).encode(), "flags"),
    "both types": (Hello(flags=3).encode(), "flags"),
    "seven credits": (Hello(credits=7).encode(), "credits"),
    "no advertisements": (Hello(max_adverts=0).encode(), "max_adverts"),
    "no transfer": (Hello(max_transfer=0).encode(), "max_transfer"),
    "no ring": (Hello(ring_len=0).encode(), "ring length"),
    "ring wraps": (Hello(ring_addr=(1 << 64) - 100).encode(), "ring"),
}


@pytest.mark.parametrize("hello", HELLOS)
def test_request_that_lies_is_refused_and_the_field_named(
    stream: Victim, hello: str, caplog: pytest.LogCaptureFixture
) -> None:
    private, field = HELLOS[hello]

    def act() -> Rejected:
        with pytest.raises(Rejected) as refusal:
            LINK.connect(stream.address, private=private)
        return refusal.value

    with caplog.at_level(logging.INFO, "exs"):
        code, text = stream.during(act).reason()
    assert code == 1
    assert field in text


def test_message_peer_at_a_stream_listener_is_told_so(stream: Victim) -> None:
    def act() -> Rejected:
        with pytest.raises(Rejected) as refusal:
            LINK.connect(stream.address, Hello.for_messages())
        return refusal.value

    code, text = stream.during(act).reason()
    assert code == 2
    assert "type" in text


@pytest.mark.parametrize("hello", HELLOS)
def test_reply_that_lies_ends_the_connect(stream: Victim, hello: str) -> None:
    private, field = HELLOS[hello]
    with LINK.listener(ground.HOST) as listener:
        fd = stream.begin_connect(listener.getsockname(), "connect")
        try:
            stream.during(lambda: LINK.accept(listener, private=private))
        except AssertionError:
            pass  # it may be gone before the raw peer hears that it is up
        stream.expect("connect", errno.EPROTO)
        reason = str(esapi.exs_getsockopt(fd, esapi.SOL_EXS, esapi.EXS_SO_REASON))
        assert field in reason
        listener.call.close()


@pytest.fixture(params=["strict", "plain"] if KEYS_END else ["strict"])
def guarded(request: pytest.FixtureRequest, configure: Callable[..., None], _warm_esapi: None) -> Iterator[Victim]:
    """A program whose keys are good on one connection only."""
    configure(strict_keys=str(int(request.param == "strict")))
    v = Victim()
    yield v
    v.healthy()
    v.finish()


def test_key_of_another_connection_hits_nothing(guarded: Victim) -> None:
    """By windows, or by a protection domain for each connection."""
    fd, mine = guarded.accept(LINK.connect)
    other_fd, other = guarded.accept(LINK.connect)
    liar = guarded.during(lambda: StreamPeer(mine))
    honest = guarded.during(lambda: StreamPeer(other))

    def ring_of(peer: StreamPeer) -> tuple[int, int]:
        while not peer.theirs.ring_rkey:
            peer.step()
        return peer.theirs.ring_rkey, peer.theirs.ring_addr

    rkey, addr = guarded.during(lambda: ring_of(honest))
    guarded.recv(fd, bytearray(10), "recv")

    def attack() -> Exception:
        try:
            liar.link.write(rkey, addr, b"\xee" * 64)
        except Lost:
            pass
        assert isinstance(liar.link, RemoteLink)
        return liar.link.verdict()

    assert isinstance(guarded.during(attack), Lost)
    guarded.expect("recv", *FAULT)
    room = bytearray([FILL]) * 64
    guarded.recv(other_fd, room, "other")
    guarded.during(lambda: honest.send(b"fine"))
    guarded.expect("other")
    assert room == b"fine" + bytes([FILL]) * 60
    liar.close()
    honest.close()
    guarded.close(fd)
    guarded.close(other_fd)
