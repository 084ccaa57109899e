# SPDX-License-Identifier: MIT OR Apache-2.0
"""Peers that break the protocol, on every link and in both roles: the documented error, one event each.

The peer is ``rawpeer``, in a thread; exs is driven through ES-API, so that events can be counted.  After each attack
a second connection of the same process still works, and at the end nothing is left (the fixtures see to it).
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import rawpeer as rp
import rawwire as rw
import trio
import trio.testing
from ground import HOST
from rawpeer import Agreed, StreamPeer
from rawwire import Closed, Control, Hello, Terminated, word
from scene import FAULT, FILL, KEYS_END, KEYS_HAVE_BOUNDS, LINKS, Attack, Scene, as_far_as_it_goes, judge, scene, stage
from victim import Victim

import exs
from exs import esapi


def direct_beyond(s: Scene) -> None:
    s.link.write(s.advert.rkey, s.advert.addr, b"x" * 100)
    s.link.send(word(0, s.advert.len + 1))


def direct_twice(s: Scene) -> None:
    s.link.write(s.advert.rkey, s.advert.addr, b"y" * s.advert.len)
    s.link.send(word(0, s.advert.len))
    s.link.send(word(0, 1))


def ring_twice(s: Scene) -> None:
    s.link.send(word(1, s.ring.ring_len))
    s.link.send(word(1, s.ring.ring_len))
    s.link.send(word(1, s.ring.ring_len))


def ring_across_its_end(s: Scene) -> None:
    s.link.send(word(1, s.ring.ring_len - 10))
    s.link.send(word(1, 20))


def write(rkey: Callable[[Scene], int], addr: Callable[[Scene], int], n: int) -> Attack:
    return lambda s: s.link.write(rkey(s), addr(s), b"\xee" * n)


def behind_fin(s: Scene) -> None:
    s.say(rw.FIN, seq=s.peer.sent)
    s.link.send(word(1, 10))


def second_fin(s: Scene) -> None:
    s.say(rw.FIN, seq=s.peer.sent)
    s.say(rw.FIN, seq=s.peer.sent)


ring_key = lambda s: s.ring.ring_rkey  # noqa: E731
ring_at = lambda s: s.ring.ring_addr  # noqa: E731
advert_key = lambda s: s.advert.rkey  # noqa: E731

ATTACKS: dict[str, Attack] = {
    "message of 0 bytes": lambda s: s.link.send(b""),
    "message of 5 bytes": lambda s: s.link.send(b"x" * 5),
    "message of 47 bytes": lambda s: s.link.send(Control(rw.ACK).encode()[:47]),
    "message of 49 bytes": lambda s: s.link.send(Control(rw.ACK).encode() + b"x"),
    "control type 0": lambda s: s.say(0),
    "control type 12": lambda s: s.say(12),
    "control type 255": lambda s: s.say(255),
    "word of kind 2": lambda s: s.link.send(word(2, 10)),
    "word of kind 3": lambda s: s.link.send(word(3, 10)),
    "word that counts 0": lambda s: s.link.send(word(1, 0)),
    "end of message on a stream": lambda s: s.link.send(word(1, 10, end=True)),
    "ADVERT with id 0": lambda s: s.say(rw.ADVERT, addr=4096, rkey=9, len=10, ind=s.peer.iarr),
    "ADVERT of nothing": lambda s: s.say(rw.ADVERT, id=7, addr=4096, rkey=9),
    "ADVERT that wraps": lambda s: s.say(rw.ADVERT, id=7, addr=(1 << 64) - 5, rkey=9, len=10),
    "ADVERT from the future": lambda s: s.say(rw.ADVERT, id=7, addr=4096, rkey=9, len=10, ind=1 << 40),
    "ADVERT behind more than was sent": lambda s: s.say(rw.ADVERT, id=7, addr=4096, rkey=9, len=10, seq=1 << 40),
    "REVOKE with id 0": lambda s: s.say(rw.REVOKE),
    "REVOKED with id 0": lambda s: s.say(rw.REVOKED),
    "credits out of nothing": lambda s: s.say(rw.CREDIT, credits=65535),
    "more freed than sent": lambda s: s.say(rw.ACK, freed=1 << 40),
    "FIN before its data": lambda s: s.say(rw.FIN, seq=s.peer.sent + 1),
    "FIN twice": second_fin,
    "data behind FIN": behind_fin,
    "FIN that was never sent is acknowledged": lambda s: s.say(rw.ACK, flags=rw.FIN_PROCESSED),
    "LENGTH on a stream": lambda s: s.say(rw.LENGTH, seq=10),
    "RING again": lambda s: s.say(rw.RING, addr=4096, rkey=9, len=65536),
    "direct data beyond its advertisement": direct_beyond,
    "direct data for nobody": direct_twice,
    "more ring data than the ring holds": lambda s: s.link.send(word(1, s.ring.ring_len + 1)),
    "ring data that was not freed": ring_twice,
    "ring data across its end": ring_across_its_end,
    "a key that never was": write(lambda s: 0xDEADBEEF, ring_at, 64),
    "key 0": write(lambda s: 0, ring_at, 64),
    "one byte beyond the ring": write(ring_key, lambda s: ring_at(s) + s.ring.ring_len, 1),
    "across the end of the ring": write(ring_key, lambda s: ring_at(s) + s.ring.ring_len - 100, 2000),
    "one byte before the ring": write(ring_key, lambda s: ring_at(s) - 1, 64),
    "address that wraps": write(ring_key, lambda s: (1 << 64) - 16, 64),
    "address 0": write(ring_key, lambda s: 0, 64),
    "one byte beyond the receive": write(advert_key, lambda s: s.advert.addr + s.advert.len, 1),
    "across the end of the receive": write(advert_key, lambda s: s.advert.addr + s.advert.len - 10, 60),
    "one byte before the receive": write(advert_key, lambda s: s.advert.addr - 1, 100),
    "the receive's key, the ring's address": write(advert_key, ring_at, 64),
}

DEVICE_FINDS = {"message of 49 bytes", *list(ATTACKS)[list(ATTACKS).index("a key that never was") :]}
if not KEYS_HAVE_BOUNDS:
    for name in ("one byte beyond the receive", "across the end of the receive", "one byte before the receive"):
        del ATTACKS[name]

# A reset that was asked for is no violation; and what a stopped send ends with is its own errno.
ERRORS = {"RESET": errno.ECONNRESET}
ATTACKS["RESET"] = lambda s: s.say(rw.RESET, len=3)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("active", [False, True], ids=["passive", "active"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_ends_that_connection_only(stream: Victim, attack: str, link: str, active: bool) -> None:
    s = scene(stream, link, active)

    stream.during(lambda: as_far_as_it_goes(ATTACKS[attack], s))
    errors = FAULT if attack in DEVICE_FINDS else (ERRORS.get(attack, errno.EPROTO),)
    judge(s, *errors, fin=attack in ("FIN twice", "data behind FIN"))


def say_often(s: Scene, n: int, type_: int, **fields: int) -> None:
    def act() -> None:
        try:
            for i in range(n):
                s.say(type_, **{"id": 1000 + i} | fields)
        except (Closed, Terminated):
            pass

    s.v.during(act)


@pytest.mark.parametrize("link", LINKS)
def test_more_advertisements_than_agreed(stream: Victim, link: str) -> None:
    fd, agreed = stream.accept(LINKS[link].connect)
    peer = stream.during(lambda: StreamPeer(agreed))

    def act() -> None:
        try:
            for i in range(33):
                peer.link.send(Control(rw.ADVERT, id=1 + i, addr=4096, rkey=9, len=10).encode())
        except (Closed, Terminated):
            pass

    room = bytearray(100)
    stream.recv(fd, room, "recv")
    stream.during(act)
    stream.during(agreed.link.verdict)
    stream.expect("recv", errno.EPROTO)
    peer.close()


@pytest.mark.parametrize("link", LINKS)
def test_credits_overrun(stream: Victim, link: str) -> None:
    """A peer that gives nothing back, and goes on sending when its credits are used up."""
    fd, agreed = stream.accept(lambda to: LINKS[link].connect(to, Hello(credits=8)))
    s = stage(stream, fd, agreed, active=False)
    say_often(s, 700, rw.ACK)
    judge(s, errno.EPROTO)


@pytest.mark.parametrize("link", LINKS)
def test_receive_queue_exhausted(stream: Victim, link: str) -> None:
    """More messages than receives are posted, to a program that does nothing meanwhile: none is lost in silence."""
    fd, agreed = stream.accept(lambda to: LINKS[link].connect(to, Hello(credits=8)))
    s = stage(stream, fd, agreed, active=False)

    def flood(s: Scene) -> None:
        for _ in range(700):
            s.say(rw.ACK)

    with ThreadPoolExecutor(1) as attacker:
        over = attacker.submit(as_far_as_it_goes, flood, s)
        time.sleep(0.3)  # a device makes the attacker wait for receives, or breaks the connection off
        stream.during(over.result)
    judge(s, *FAULT)


@pytest.mark.parametrize("link", LINKS)
def test_revokes_without_end(stream: Victim, link: str) -> None:
    """Eight receives and nothing given back: soon no answer can be sent, and what is owed is bounded."""
    fd, agreed = stream.accept(lambda to: LINKS[link].connect(to, Hello(credits=8)))
    s = stage(stream, fd, agreed, active=False)
    say_often(s, 60, rw.REVOKE)
    judge(s, errno.EPROTO)


if KEYS_END:

    @pytest.mark.parametrize("link", LINKS)
    def test_key_of_another_connection(stream: Victim, link: str) -> None:
        other_fd, other = stream.accept(LINKS[link].connect)
        s = scene(stream, link, False)
        stream.during(lambda: s.link.write(other.theirs.ring_rkey, other.theirs.ring_addr, b"\xee" * 64))
        judge(s, errno.EPROTO)
        peer = stream.during(lambda: StreamPeer(other))
        room = bytearray(64)
        stream.recv(other_fd, room, "other")
        stream.during(lambda: peer.send(b"fine"))
        stream.expect("other")
        assert room[:4] == b"fine"
        other.link.close()

    @pytest.mark.parametrize("link", LINKS)
    def test_key_of_a_receive_that_completed(stream: Victim, link: str) -> None:
        """With the event the buffer is the program's again, and the key has ended."""
        s = scene(stream, link, False)
        stream.during(lambda: s.peer.send_direct(b"z" * s.advert.len))
        stream.expect("recv")
        s.memory[:] = bytes([FILL]) * len(s.memory)
        stream.during(lambda: s.link.write(s.advert.rkey, s.advert.addr - s.advert.len, b"\xee" * 16))
        stream.during(s.link.verdict)
        stream.expect("send", errno.EPROTO)
        assert s.memory == bytes([FILL]) * len(s.memory)
        s.peer.close()
        esapi.exs_mderegister(s.region)


@pytest.mark.parametrize("link", LINKS)
def test_peer_that_leaves_without_a_word(stream: Victim, link: str) -> None:
    s = scene(stream, link, False)
    s.peer.close()
    stream.expect("send", errno.ECONNRESET)
    stream.expect("recv", errno.ECONNRESET)
    stream.close(s.fd)
    esapi.exs_mderegister(s.region)


# --- the same in message mode ---------------------------------------------------------------------------------

MESSAGE_ATTACKS: dict[str, Callable[[rp.MessagePeer, rp.Advert], None]] = {
    "indirect": lambda p, a: p.link.send(word(1, 10)),
    "beyond its advertisement": lambda p, a: p.link.send(word(0, a.len + 1, end=True)),
    "ADVERT with a position": lambda p, a: p.link.send(Control(rw.ADVERT, id=3, addr=1, rkey=1, len=9, ind=1).encode()),
    "RING": lambda p, a: p.link.send(Control(rw.RING, addr=4096, rkey=9, len=65536).encode()),
    "LENGTH of 0": lambda p, a: p.link.send(Control(rw.LENGTH).encode()),
    "LENGTH twice": lambda p, a: [p.link.send(Control(rw.LENGTH, seq=9).encode()) for _ in range(2)],  # type: ignore[func-returns-value]
    "LENGTH of a message that was not cut": lambda p, a: (
        p.link.send(Control(rw.LENGTH, seq=9).encode()),
        p.link.send(word(0, 5, end=True)),
    )[0],
    "LENGTH inside a message": lambda p, a: (
        p.link.send(word(0, 5)),
        p.link.send(Control(rw.LENGTH, seq=9).encode()),
    )[0],
    "FIN inside a message": lambda p, a: (p.link.send(word(0, 5)), p.link.send(Control(rw.FIN, seq=0).encode()))[0],
    "FIN that counts wrongly": lambda p, a: p.link.send(Control(rw.FIN, seq=3).encode()),
    "message for nobody": lambda p, a: [p.link.send(word(0, 0, end=True)) for _ in range(3)],  # type: ignore[func-returns-value]
    "write beyond": lambda p, a: p.link.write(a.rkey, a.addr + a.len - 4, b"\xee" * 8),
}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("attack", MESSAGE_ATTACKS)
def test_attack_on_messages(messages: Victim, attack: str, link: str) -> None:
    fd, agreed = messages.accept(lambda to: LINKS[link].connect(to, Hello.for_messages()))
    peer = messages.during(lambda: rp.MessagePeer(agreed))
    memory = bytearray([FILL]) * 1000
    messages.recv(fd, memory, "recv")
    messages.send(fd, b"unheard", "send")

    def wait() -> None:
        while not peer.adverts:
            peer.step()

    messages.during(wait)

    def act() -> None:
        try:
            MESSAGE_ATTACKS[attack](peer, peer.adverts[0])
        except (Closed, Terminated):
            pass

    messages.during(act)
    messages.during(agreed.link.verdict)  # type: ignore[attr-defined]
    messages.expect("send", *(FAULT if attack == "write beyond" else (errno.EPROTO,)))
    if attack == "message for nobody":
        messages.expect("recv")
    else:
        event = messages.until(lambda: messages.events.get("recv"))
        assert event.exs_evt_errno in ((0,) if event.exs_evt_union.exs_evt_length else FAULT)
        assert b"\xee" not in memory
    peer.close()


# --- other callers of the same engines --------------------------------------------------------------------------


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("attack", ["control type 0", "a key that never was", "ring data that was not freed"])
@pytest.mark.usefixtures("_warm_esapi")
def test_attack_on_a_threaded_program(attack: str, link: str) -> None:
    """The native thread meets the liar; the program hears of it by events alone."""
    v = Victim(mode="thread")
    s = scene(v, link, False)
    v.during(lambda: as_far_as_it_goes(ATTACKS[attack], s))
    judge(s, *(FAULT if attack in DEVICE_FINDS else (errno.EPROTO,)))
    v.healthy()
    v.finish()


@pytest.mark.parametrize("link", LINKS)
async def test_trio_program_is_told(link: str) -> None:
    (listener,) = await exs.open_listeners(0, host=HOST)
    async with listener, trio.open_nursery() as nursery:
        agreed: list[Agreed] = []

        async def attack() -> None:
            agreed.append(await trio.to_thread.run_sync(LINKS[link].connect, listener.address))
            agreed[0].link.send(Control(rw.CREDIT).encode())
            await trio.testing.wait_all_tasks_blocked(0.01)
            agreed[0].link.send(b"nonsense")

        nursery.start_soon(attack)
        async with await listener.accept() as stream:
            with pytest.raises(trio.BrokenResourceError) as broken:
                await stream.receive_some()
            assert isinstance(broken.value.__cause__, exs.ProtocolError)
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"more")
            with pytest.raises(exs.ProtocolError, match="48 bytes"):
                await stream.socket.recv(10)
    agreed[0].link.close()
