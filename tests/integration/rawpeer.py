# SPDX-License-Identifier: MIT OR Apache-2.0
"""A peer in plain Python that speaks our wire: a second implementation, and one that can lie.

Written from docs/wire/ and the RFCs (5044 and 6581 MPA, 5041 DDP, 5040 RDMAP); it calls nothing of exs.  A link
carries SENDs and WRITEs as bytes (:class:`TcpLink` here, ``ShmLink`` in rawshm.py), :class:`StreamPeer` speaks the
protocol over either, and everything that goes out may be replaced by something wrong.  What comes in is checked as
strictly as exs should: an exs that breaks the protocol fails the test by an AssertionError here.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Protocol

from rawwire import (
    ACK,
    ADVERT,
    CREDIT,
    DIRECT,
    F_CRC,
    F_ENHANCED,
    FIN,
    FIN_PROCESSED,
    INDIRECT,
    LENGTH,
    PING,
    PONG,
    REVOKE,
    REVOKED,
    RING,
    SEND,
    SEND_SE,
    TERMINATE,
    TIMEOUT,
    WAITALL,
    WRITE,
    Block,
    Closed,
    Control,
    Frame,
    Hello,
    Terminated,
    crc32c,
    read_exactly,
    read_frame,
    word,
)

# --- memory that the other side may write --------------------------------------------------------------------


@dataclass
class Region:
    """A range that was advertised, at an address of our choice."""

    addr: int
    rkey: int
    data: bytearray
    written: int = 0


class Memory:
    """All that may be written; anything else is an error of the other side."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}
        self._next = 0x2000_0001

    def add(self, nbytes: int, addr: int | None = None, rkey: int | None = None) -> Region:
        if rkey is None:
            rkey, self._next = self._next, self._next + 1
        region = Region(addr or rkey << 32, rkey, bytearray(nbytes))
        self.regions[rkey] = region
        return region

    def place(self, rkey: int, addr: int, data: bytes) -> None:
        region = self.regions.get(rkey)
        assert region is not None, f"a write with a key that is not valid: {rkey:#x}"
        at = addr - region.addr
        assert 0 <= at <= at + len(data) <= len(region.data), f"a write outside of its range: {at}+{len(data)}"
        region.data[at : at + len(data)] = data
        region.written += len(data)


class Link(Protocol):
    """Ordered SENDs and WRITEs, whatever carries them."""

    memory: Memory

    def write(self, rkey: int, addr: int, data: bytes) -> None: ...
    def send(self, data: bytes) -> None: ...
    def next_message(self) -> bytes: ...
    def close(self) -> None: ...


class Judged:
    """What links share that learn by reading how they ended."""

    def verdict(self: Link) -> Exception:
        """Read to the end: Terminated or Closed, whichever says how it ended."""
        try:
            while True:
                self.next_message()
        except (Closed, Terminated) as why:
            return why


# --- iWARP over TCP ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """A DDP segment that came."""

    tagged: bool
    last: bool
    opcode: int
    stag: int
    to: int
    qn: int
    msn: int
    mo: int
    payload: bytes


@dataclass
class TcpLink(Judged):
    """FPDUs over a connected TCP socket, set-up done."""

    sock: socket.socket
    crc: bool = False
    memory: Memory = field(default_factory=Memory)
    msn: int = 1  # of our next SEND
    peer_msn: int = 1

    MAX = 65535

    # -- out: every header field may be given
    def raw(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except ConnectionError:
            raise Closed(reset=True) from None

    def fpdu(self, ulpdu: bytes, *, length: int | None = None, crc: int | None = None) -> bytes:
        body = struct.pack(">H", len(ulpdu) if length is None else length) + ulpdu
        body += bytes(-len(body) % 4)
        if crc is None:
            crc = crc32c(body) if self.crc else 0
        return body + struct.pack("<I", crc)

    @staticmethod
    def tagged(
        stag: int, to: int, data: bytes, *, last: bool = True, opcode: int = WRITE, ddp: int = 1, rdmap: int = 1
    ) -> bytes:
        return struct.pack(">BBIQ", 0x80 | last << 6 | ddp, rdmap << 6 | opcode, stag, to) + data

    @staticmethod
    def untagged(
        msn: int, data: bytes, *, mo: int = 0, qn: int = 0, last: bool = True, opcode: int = SEND, stag: int = 0,
        ddp: int = 1, rdmap: int = 1,
    ) -> bytes:  # fmt: skip
        return struct.pack(">BBIIII", last << 6 | ddp, rdmap << 6 | opcode, stag, qn, msn, mo) + data

    def write(self, rkey: int, addr: int, data: bytes) -> None:
        most = self.MAX - 14
        pieces = [data[i : i + most] for i in range(0, len(data), most)] or [b""]
        for i, piece in enumerate(pieces):
            last = i == len(pieces) - 1
            self.raw(self.fpdu(self.tagged(rkey, addr + i * most, piece, last=last)))

    def send(self, data: bytes) -> None:
        self.raw(self.fpdu(self.untagged(self.msn, data)))
        self.msn += 1

    # -- in
    def segment(self) -> Segment:
        head = read_exactly(self.sock, 2)
        (length,) = struct.unpack(">H", head)
        rest = read_exactly(self.sock, length + -(length + 2) % 4)
        trailer = read_exactly(self.sock, 4)
        if self.crc:
            assert struct.unpack("<I", trailer) == (crc32c(head + rest),), "CRC of an FPDU is wrong"
        ulpdu = rest[:length]
        ddp, rdmap = ulpdu[0], ulpdu[1]
        assert ddp & 0x3F == 1, "DDP version or reserved bits"
        assert rdmap >> 4 == 4, "RDMAP version or reserved bits"
        tagged, last, opcode = bool(ddp & 0x80), bool(ddp & 0x40), rdmap & 15
        if tagged:
            stag, to = struct.unpack(">IQ", ulpdu[2:14])
            return Segment(True, last, opcode, stag, to, 0, 0, 0, ulpdu[14:])
        stag, qn, msn, mo = struct.unpack(">IIII", ulpdu[2:18])
        return Segment(False, last, opcode, stag, 0, qn, msn, mo, ulpdu[18:])

    def next_message(self) -> bytes:
        """The next SEND; WRITEs before it are placed."""
        data = bytearray()
        while True:
            s = self.segment()
            if s.tagged:
                assert s.opcode == WRITE
                self.memory.place(s.stag, s.to, s.payload)
                continue
            if s.opcode == TERMINATE:
                assert s.qn == 2
                raise Terminated(s.payload[0] >> 4, s.payload[0] & 15, s.payload[1])
            assert s.opcode in (SEND, SEND_SE)
            assert (s.qn, s.msn, s.mo) == (0, self.peer_msn, len(data)), s
            data += s.payload
            if s.last:
                self.peer_msn += 1
                return bytes(data)

    def close(self) -> None:
        self.sock.close()


def dial(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address, timeout=TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@dataclass
class Agreed:
    """What a set-up came to."""

    link: Link
    mine: Hello
    theirs: Hello
    block: Block | None
    frame: Frame


def connect(address: tuple[str, int], mine: Hello | None = None, *, crc: bool = False, soft: bool = True) -> Agreed:
    """Be the active side on TCP; soft: say that we take FPDUs of any length."""
    mine = mine or Hello()
    sock = dial(address)
    try:
        private = mine.encode() + (Block().encode() if soft else b"")
        sock.sendall(Frame(private=private, flags=F_ENHANCED | (F_CRC if crc else 0)).encode())
        reply = read_frame(sock, reply=True)
    except BaseException:
        sock.close()
        raise
    return _agreed(sock, mine, reply, crc or bool(reply.flags & F_CRC))


def accept(listener: socket.socket, mine: Hello | None = None, *, crc: bool = False, soft: bool = True) -> Agreed:
    """Be the passive side on TCP."""
    mine = mine or Hello()
    sock, request = greet(listener)
    on = crc or bool(request.flags & F_CRC)
    mine = replace(mine, cookie=Hello.decode(request.private).cookie)
    private = mine.encode() + (Block(why=1).encode() if soft else b"")
    sock.sendall(Frame(reply=True, private=private, flags=F_ENHANCED | (F_CRC if on else 0)).encode())
    return _agreed(sock, mine, request, on)


def greet(listener: socket.socket) -> tuple[socket.socket, Frame]:
    """Take a connection and read its request."""
    listener.settimeout(TIMEOUT)
    sock, _ = listener.accept()
    sock.settimeout(TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock, read_frame(sock, reply=False)


def _agreed(sock: socket.socket, mine: Hello, frame: Frame, crc: bool) -> Agreed:
    link = TcpLink(sock, crc)
    if mine.ring_len:
        link.memory.add(mine.ring_len, mine.ring_addr, mine.ring_rkey)
    return Agreed(link, mine, Hello.decode(frame.private), Block.decode(frame.private), frame)


def listener(host: str) -> socket.socket:
    """A TCP listener on a free port of that address."""
    return socket.create_server((host, 0))


# --- the protocol, played fair -------------------------------------------------------------------------------


@dataclass
class Advert:
    id: int
    addr: int
    rkey: int
    len: int
    ind: int
    waitall: bool


class Peer:
    """Credits and control messages; what data means is the subclass's."""

    def __init__(self, agreed: Agreed, *, active: bool) -> None:
        self.link, self.mine, self.theirs = agreed.link, agreed.mine, agreed.theirs
        self.credit = self.theirs.credits
        self.owed = 0  # receives to give back
        self.freed = 0
        self.adverts: deque[Advert] = deque()
        self.void = 0
        self.fin_seen = self.fin_acked = self.fin_sent = False
        self.deadline = time.monotonic() + 3 * TIMEOUT
        self.ids = 0
        if active:
            self.control(CREDIT)

    # -- out
    def control(self, type_: int, **fields: int) -> None:
        """A true control message, but for what fields says."""
        self.spend()
        given: dict[str, int] = {"credits": self.owed, "freed": self.freed, **fields}
        if self.fin_seen:
            given["flags"] = given.get("flags", 0) | FIN_PROCESSED
        self.owed -= min(self.owed, given["credits"])
        self.link.send(Control(type_, **given).encode())

    def spend(self) -> None:
        self.credit -= 1

    def need_credit(self) -> None:
        while self.credit <= 2:
            self.step()

    def fin(self, total: int) -> None:
        self.need_credit()
        self.control(FIN, seq=total)
        self.fin_sent = True

    def await_fin_ack(self) -> None:
        while not self.fin_acked:
            self.step()

    # -- in
    def step(self) -> None:
        """Take one message."""
        assert time.monotonic() < self.deadline, "the other side does nothing"
        data = self.link.next_message()
        self.owed += 1
        assert self.owed <= self.mine.credits, "more messages than we gave credits"
        if len(data) == 4:
            self.on_word(struct.unpack(">I", data)[0])
        else:
            assert len(data) == 48, data
            self.on_control(Control.decode(data))
        if self.owed >= self.mine.credits // 2 and self.credit > 0:
            self.control(CREDIT)

    def on_control(self, c: Control) -> None:
        self.credit += c.credits
        assert self.credit <= self.theirs.credits, "more credits came back than there were"
        if c.flags & FIN_PROCESSED:
            assert self.fin_sent
            self.fin_acked = True
        if c.type == ADVERT:
            self.adverts.append(Advert(c.id, c.addr, c.rkey, c.len, c.ind, bool(c.flags & WAITALL)))
            assert len(self.adverts) <= self.mine.max_adverts
        elif c.type == REVOKE:
            self.adverts = deque(a for a in self.adverts if a.id != c.id)
            self.control(REVOKED, id=c.id)
        elif c.type == FIN:
            self.on_fin(c)
            self.fin_seen = True
            self.control(ACK)
        elif c.type == PING:
            self.control(PONG, seq=c.seq)
        else:
            self.on_other(c)

    def on_fin(self, c: Control) -> None: ...

    def on_other(self, c: Control) -> None:
        assert c.type in (ACK, CREDIT, PONG), c

    def on_word(self, value: int) -> None:
        raise NotImplementedError

    # -- our advertisements
    def advertise(self, nbytes: int, *, ind: int = 0, seq: int = 0, flags: int = 0) -> Region:
        region = self.link.memory.add(nbytes)
        self.ids += 1
        self.need_credit()
        self.control(ADVERT, id=self.ids, addr=region.addr, rkey=region.rkey, len=nbytes, ind=ind, seq=seq, flags=flags)
        return region

    def close(self) -> None:
        self.link.close()


class StreamPeer(Peer):
    """STREAM: sends directly when it can, receives through its ring or a buffer that it advertises."""

    def __init__(self, agreed: Agreed, *, active: bool = True) -> None:
        self.ring = agreed.link.memory.regions[agreed.mine.ring_rkey]
        self.sent = self.isent = self.ifreed = 0
        self.arrived = self.iarr = 0
        self.got = bytearray()  # taken out of our ring
        self.target: Region | None = None
        self.filled = 0
        super().__init__(agreed, active=active)

    def send(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            self.need_credit()
            while self.adverts and self.adverts[0].ind != self.isent:
                assert self.adverts.popleft().ind < self.isent, "an advertisement from the future"
                self.void += 1
            left = len(data) - at
            if self.adverts:
                at += self.send_direct(data[at : at + left])
            elif not self.theirs.ring_rkey:
                self.step()  # it follows in a RING message
            elif self.isent - self.ifreed < self.theirs.ring_len:
                at += self.send_indirect(data[at : at + left])
            else:
                self.step()

    def send_direct(self, data: bytes) -> int:
        a = self.adverts[0]
        k = min(len(data), a.len)
        self.link.write(a.rkey, a.addr, data[:k])
        self.notice(DIRECT, k)
        a.addr, a.len = a.addr + k, a.len - k
        if not a.waitall or not a.len:
            self.adverts.popleft()
        return k

    def send_indirect(self, data: bytes) -> int:
        size, at = self.theirs.ring_len, self.isent % self.theirs.ring_len
        k = min(len(data), size - (self.isent - self.ifreed), size - at)
        self.link.write(self.theirs.ring_rkey, self.theirs.ring_addr + at, data[:k])
        self.notice(INDIRECT, k)
        self.isent += k
        return k

    def notice(self, kind: int, k: int) -> None:
        self.spend()
        self.link.send(word(kind, k))
        self.sent += k

    def on_control(self, c: Control) -> None:
        assert self.ifreed <= max(self.ifreed, c.freed) <= self.isent
        self.ifreed = max(self.ifreed, c.freed)
        super().on_control(c)

    def on_other(self, c: Control) -> None:
        if c.type != RING:
            super().on_other(c)
            return
        assert not self.theirs.ring_rkey, "a RING that was not announced"
        assert c.rkey
        assert c.len == self.theirs.ring_len
        self.theirs = replace(self.theirs, ring_addr=c.addr, ring_rkey=c.rkey)

    def on_fin(self, c: Control) -> None:
        assert c.seq == self.arrived, "FIN does not stand behind all data"

    def on_word(self, value: int) -> None:
        kind, end, k = value >> 30, value >> 29 & 1, value & (1 << 29) - 1
        assert kind in (DIRECT, INDIRECT)
        assert not end
        assert k
        self.arrived += k
        if kind == INDIRECT:
            size, at = len(self.ring.data), self.iarr % len(self.ring.data)
            assert k <= size - at, "ring data across the end of the ring"
            self.got += self.ring.data[at : at + k]
            self.iarr += k
            self.freed = self.iarr
            if self.credit > 2:
                self.control(ACK)
        else:
            assert self.target is not None, "direct data without an advertisement"
            self.filled += k
            assert self.filled <= len(self.target.data)

    def receive(self, n: int) -> bytes:
        """n bytes through the ring."""
        while len(self.got) < n:
            self.step()
        data, self.got = bytes(self.got[:n]), self.got[n:]
        return data

    def post(self, n: int) -> None:
        """Advertise one buffer of n bytes; the other side must not have begun to send."""
        assert self.target is None
        self.filled = 0
        self.target = self.advertise(n, ind=self.iarr, seq=self.arrived, flags=WAITALL)

    def receive_direct(self) -> bytes:
        """What fills the buffer of post."""
        assert self.target is not None
        while self.filled < len(self.target.data):
            self.step()
        data = bytes(self.target.data)
        del self.link.memory.regions[self.target.rkey]
        self.target = None
        return data

    def shut(self) -> None:
        """End our direction, and wait for the other side's."""
        self.fin(self.sent)
        while not (self.fin_acked and self.fin_seen):
            self.step()


class MessagePeer(Peer):
    """SEQPACKET."""

    def __init__(self, agreed: Agreed, *, active: bool = True) -> None:
        self.sent = self.arrived = 0
        self.waiting: deque[Region] = deque()
        self.partial = 0
        self.messages: deque[bytes] = deque()
        super().__init__(agreed, active=active)

    def send(self, data: bytes) -> None:
        self.need_credit()
        while not self.adverts:
            self.step()
        a = self.adverts.popleft()
        k = min(len(data), a.len)
        if k < len(data):
            self.control(LENGTH, seq=len(data))
            self.need_credit()
        if k:
            self.link.write(a.rkey, a.addr, data[:k])
        self.spend()
        self.link.send(word(DIRECT, k, end=True))
        self.sent += 1

    def post(self, nbytes: int) -> None:
        self.waiting.append(self.advertise(nbytes))

    def receive(self) -> bytes:
        while not self.messages:
            self.step()
        return self.messages.popleft()

    def on_word(self, value: int) -> None:
        kind, end, k = value >> 30, value >> 29 & 1, value & (1 << 29) - 1
        assert kind == DIRECT
        assert self.waiting, "a message without an advertisement"
        self.partial += k
        if end:
            region = self.waiting.popleft()
            del self.link.memory.regions[region.rkey]
            self.messages.append(bytes(region.data[: self.partial]))
            self.partial = 0
            self.arrived += 1

    def on_fin(self, c: Control) -> None:
        assert c.seq == self.arrived

    def on_other(self, c: Control) -> None:
        assert c.type in (ACK, CREDIT, PONG, LENGTH), c


def random_bytes(n: int) -> bytes:
    return os.urandom(n)
