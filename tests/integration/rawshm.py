# SPDX-License-Identifier: MIT OR Apache-2.0
"""The raw peer's link through shared memory (docs/wire/soft.md): rendezvous, segment, slots.

Both roles of the rendezvous, in steps that a test may take wrongly.  Runs in a thread of the same process or in
another one; it never reads the other side's memory, so the rung is ``shm-ring`` unless a test says otherwise.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import os
import socket
import struct
import time
from dataclasses import dataclass, field, replace
from typing import Self

from rawpeer import Agreed, Judged, Memory, dial, greet
from rawpeer import listener as listener  # the way in is the same
from rawwire import F_ENHANCED, TIMEOUT, Block, Closed, Frame, Hello, Terminated, read_frame

MAGIC, PAGE_MAGIC = 0x45585353484D3031, 0x4558535041474531
HELLO, ACK, WAKE, REGION, LEND = range(1, 6)
CAN_PULL, NEED_VM, RING_ONLY = 1, 2, 4
INLINE, IN_RING, PULL, MAPPED, FILLED, SHUT, FORGET = range(1, 8)
LAST, UNTAGGED, SOLICITED, NOTICE = 1, 2, 4, 8
WITHDRAWN, TERMINATED = 1, 2
NEVER = (1 << 64) - 1

F_ADD_SEALS, F_GET_SEALS = 1033, 1034
SEAL_SHRINK, SEAL_GROW, SEAL_WRITE, SEAL_FUTURE_WRITE = 2, 4, 8, 16
SHARED_SEALS = SEAL_SHRINK | SEAL_GROW
PRIVATE_SEALS = SHARED_SEALS | SEAL_FUTURE_WRITE


@dataclass(frozen=True)
class Message:
    """A message of the UNIX socket."""

    type: int
    flags: int = 0
    why: int = 0
    token: bytes = bytes(16)
    peer_token: bytes = bytes(16)
    addr: int = 0
    len: int = 0
    offset: int = 0
    id: int = 0
    rkey: int = 0
    slots: int = 0
    data_bytes: int = 0
    magic: int = MAGIC
    version: int = 1

    LAYOUT = struct.Struct("=QHHHH16s16sQQQQIIII")

    def encode(self) -> bytes:
        return self.LAYOUT.pack(
            self.magic, self.version, self.type, self.flags, self.why, self.token, self.peer_token, self.addr,
            self.len, self.offset, self.id, self.rkey, self.slots, self.data_bytes, 0,
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> Self:
        v = cls.LAYOUT.unpack(data)
        return cls(*v[2:14], v[0], v[1])


assert Message.LAYOUT.size == 96


def memfd(nbytes: int, seals: int, content: bytes = b"") -> int:
    """A memory file, its pages there."""
    fd = os.memfd_create("exs-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    if nbytes:
        os.posix_fallocate(fd, 0, nbytes)
    os.pwrite(fd, content, 0)
    if seals:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def page_memfd(*, seals: int = PRIVATE_SEALS, nbytes: int = 4096, magic: int = PAGE_MAGIC, version: int = 1) -> int:
    """A group page that says: awake."""
    return memfd(nbytes, seals, struct.pack("=QII", magic, version, 0)[:nbytes])


@dataclass
class Token:
    """Sixteen random bytes at a known address."""

    value: bytes = field(default_factory=lambda: os.urandom(16))

    def __post_init__(self) -> None:
        self._memory = ctypes.create_string_buffer(self.value, 16)
        self.address = ctypes.addressof(self._memory)


def unix_listener() -> tuple[socket.socket, bytes]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    name = b"exs-test-" + os.urandom(8).hex().encode()
    sock.bind(b"\0" + name)
    sock.listen()
    sock.settimeout(TIMEOUT)
    return sock, name


def send_message(unix: socket.socket, message: Message | bytes, fds: list[int] | None = None) -> None:
    data = message if isinstance(message, bytes) else message.encode()
    try:
        socket.send_fds(unix, [data], fds or [])
    except ConnectionError:
        raise Closed(reset=True) from None


def receive_message(unix: socket.socket) -> tuple[Message, list[int]]:
    data, ancillary, _, _ = unix.recvmsg(4096, socket.CMSG_SPACE(8 * 4))
    fds = array.array("i")
    for level, kind, content in ancillary:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        fds.frombytes(content[: len(content) // 4 * 4])
    if not data:
        raise Closed
    message = Message.decode(data)
    assert (message.magic, message.version) == (MAGIC, 1)
    return message, list(fds)


# --- the segment ----------------------------------------------------------------------------------------------


class Segment:
    """The memory of a connection, as one side sees it."""

    def __init__(self, fd: int, slots: int, data_bytes: int, side: int) -> None:
        self.slots, self.data_bytes, self.side = slots, data_bytes, side
        self.map = mmap.mmap(fd, self.size(slots, data_bytes))
        self.view = memoryview(self.map)
        self.words = self.view.cast("I")
        self.longs = self.view.cast("Q")

    @staticmethod
    def size(slots: int, data_bytes: int) -> int:
        return (4096 + 2 * (slots * 64 + data_bytes) + 4095) & ~4095

    @staticmethod
    def head(slots: int, data_bytes: int, *, magic: int = MAGIC, version: int = 1) -> bytes:
        side = struct.pack("=Q56xQI52x", 0, NEVER, 0)
        return struct.pack("=QIII", magic, version, slots, data_bytes).ljust(64, b"\0") + side + side

    def side_at(self, side: int) -> int:
        return 64 + 128 * side

    def slot_at(self, side: int, number: int) -> int:
        return 4096 + (side * self.slots + number % self.slots) * 64

    def data_at(self, side: int, position: int) -> int:
        return 4096 + 2 * self.slots * 64 + side * self.data_bytes + position % self.data_bytes

    def consumed(self, side: int) -> int:
        return self.longs[self.side_at(side) // 8]

    def set_consumed(self, value: int) -> None:
        self.longs[self.side_at(self.side) // 8] = value

    def want(self, side: int) -> int:
        return self.longs[self.side_at(side) // 8 + 8]

    def state(self, side: int) -> int:
        return self.words[self.side_at(side) // 4 + 18]

    def set_state(self, value: int) -> None:
        self.words[self.side_at(self.side) // 4 + 18] = value

    def close(self) -> None:
        for view in (self.longs, self.words, self.view):
            view.release()
        self.map.close()


class ShmLink(Judged):
    """Slots out, slots in, and the UNIX socket that tells of death."""

    def __init__(self, unix: socket.socket, segment: Segment, tcp: socket.socket) -> None:
        self.unix, self.segment, self.tcp = unix, segment, tcp
        self.memory = Memory()
        self.out = self.data_out = 0
        self.taken = self.data_in = 0
        self.regions: dict[int, mmap.mmap] = {}
        self.lent: dict[int, tuple[int, mmap.mmap]] = {}  # what the other side may fill, by key: address, memory
        self.dead = False
        self.owned: list[int] = []  # descriptors to close with the link

    # -- out: anything may be wrong
    def slot(
        self, kind: int, flags: int, length: int = 0, *, rkey: int = 0, raddr: int = 0, word: int = 0,
        body: bytes = b"", src: int | None = None, region: int = 0, wake: bool = True,
    ) -> None:  # fmt: skip
        """Write one slot; body stands where inline payload does."""
        s, me = self.segment, self.segment.side
        deadline = time.monotonic() + TIMEOUT
        while self.out - s.consumed(1 - me) >= s.slots:
            self.check_alive()
            assert time.monotonic() < deadline, "the other side takes no slots"
            time.sleep(0.0005)
        at = s.slot_at(me, self.out)
        packed = struct.pack("=BBHIIQI", kind, flags, 0, length, rkey, raddr, word)
        if flags & UNTAGGED and kind == INLINE:
            packed = packed[:8] + body
        elif src is not None:
            packed = packed.ljust(28, b"\0") + struct.pack("=QQ", src, region)
        else:
            packed += body
        s.view[at + 4 : at + 4 + len(packed)] = packed
        self.out += 1
        s.words[at // 4] = self.out & 0xFFFFFFFF
        if wake:
            self.wake()

    def wake(self) -> None:
        timeout = self.unix.gettimeout()
        self.unix.settimeout(0)  # MSG_DONTWAIT alone: Python would wait
        try:
            self.unix.send(Message(WAKE).encode())
        except BlockingIOError:
            pass  # what lies there wakes as well
        except ConnectionError:
            self.dead = True
        finally:
            self.unix.settimeout(timeout)

    def into_ring(self, data: bytes) -> None:
        s = self.segment
        for i in range(0, len(data)):
            s.view[s.data_at(s.side, self.data_out + i)] = data[i]
        self.data_out += (len(data) + 63) & ~63

    def write(self, rkey: int, addr: int, data: bytes) -> None:
        piece = min(1024, self.segment.data_bytes // 4)
        for i in range(0, len(data), piece) if data else [0]:
            part = data[i : i + piece]
            last = LAST if i + len(part) == len(data) else 0
            if len(part) <= 36:
                self.slot(INLINE, last, len(part), rkey=rkey, raddr=addr + i, body=part)
            else:
                self.wait_ring(len(part))
                self.into_ring(part)
                self.slot(IN_RING, last, len(part), rkey=rkey, raddr=addr + i)

    def wait_ring(self, n: int) -> None:
        """Simple: until everything of ours was consumed."""
        deadline = time.monotonic() + TIMEOUT
        while self.segment.consumed(1 - self.segment.side) != self.out:
            self.check_alive()
            assert time.monotonic() < deadline, "the other side takes no slots"
            time.sleep(0.0002)

    def send(self, data: bytes) -> None:
        assert len(data) <= 52
        self.slot(INLINE, LAST | UNTAGGED, len(data), body=data)

    def lend(self, fd: int, rkey: int, addr: int, length: int, *, offset: int = 0, keep: bool = True) -> None:
        """Let the other side fill memory by itself."""
        if keep:
            self.lent[rkey] = (addr, mmap.mmap(fd, length, offset=offset))
        send_message(self.unix, Message(LEND, rkey=rkey, addr=addr, len=length, offset=offset), [fd])

    # -- in
    def check_alive(self) -> None:
        if self.dead:
            self.verdict_now()
        try:
            message, fds = receive_message_now(self.unix)
        except BlockingIOError:
            return
        except (Closed, ConnectionError):
            self.dead = True
            return
        assert message.type in (WAKE, REGION, LEND), message
        if message.type == LEND:
            (fd,) = fds
            assert fcntl.fcntl(fd, F_GET_SEALS) & SHARED_SEALS == SHARED_SEALS, "lent memory that may shrink"
        if message.type == REGION:
            (fd,) = fds
            assert fcntl.fcntl(fd, F_GET_SEALS) & PRIVATE_SEALS == PRIVATE_SEALS, "a region that may change under us"
            self.regions[message.id] = mmap.mmap(
                fd, message.len, prot=mmap.PROT_READ, offset=message.offset, access=mmap.ACCESS_DEFAULT
            )
        for fd in fds:
            os.close(fd)

    def verdict_now(self) -> None:
        state = self.segment.state(1 - self.segment.side)
        if state & TERMINATED:
            raise Terminated(state >> 8 & 15, state >> 12 & 15, state >> 16 & 255)
        raise Closed

    def next_message(self) -> bytes:
        """The next SEND; WRITEs before it are placed."""
        deadline = time.monotonic() + TIMEOUT
        data = bytearray()
        while True:
            got = self.take()
            if got is None:
                if self.dead:
                    self.verdict_now()
                self.check_alive()
                assert time.monotonic() < deadline, "nothing comes"
                time.sleep(0.0002)
                continue
            payload, last = got
            data += payload
            if last:
                return bytes(data)

    def take(self) -> tuple[bytes, bool] | None:
        """One slot: (payload of a SEND, whether it ends); a WRITE or nothing gives b"", False or None."""
        s, they = self.segment, 1 - self.segment.side
        at = s.slot_at(they, self.taken)
        if s.words[at // 4] != (self.taken + 1) & 0xFFFFFFFF:
            return None
        raw = bytes(s.view[at : at + 64])
        kind, flags, _, length, rkey, raddr, word_ = struct.unpack_from("=BBHIIQI", raw, 4)
        if kind == SHUT:
            self.done()
            raise Closed
        if kind == FORGET:
            self.regions.pop(struct.unpack_from("=Q", raw, 40)[0]).close()
            self.done()
            return b"", False
        data = self.payload(kind, flags, length, raw)
        self.done()
        if flags & UNTAGGED:
            return data, bool(flags & LAST)
        if data:
            self.memory.place(rkey, raddr, data)
        if flags & LAST and flags & NOTICE:
            return struct.pack("=I", word_), True
        return b"", False

    def payload(self, kind: int, flags: int, length: int, raw: bytes) -> bytes:
        s, they = self.segment, 1 - self.segment.side
        if kind == INLINE:
            at = 12 if flags & UNTAGGED else 28
            assert length <= 64 - at
            return raw[at : at + length]
        if kind == IN_RING:
            assert length <= s.data_bytes
            first = min(length, s.data_bytes - self.data_in % s.data_bytes)
            at = s.data_at(they, self.data_in)
            data = bytes(s.view[at : at + first])
            at = s.data_at(they, 0)
            data += bytes(s.view[at : at + length - first])
            self.data_in += (length + 63) & ~63
            return data
        if kind == FILLED:
            rkey, raddr = struct.unpack_from("=IQ", raw, 12)
            base, memory = self.lent[rkey]
            return memory[raddr - base : raddr - base + length]
        assert kind == MAPPED, f"slot of kind {kind} was not agreed upon"
        src, region = struct.unpack_from("=QQ", raw, 32)
        while region not in self.regions:
            self.check_alive()
        return self.regions[region][src : src + length]

    def done(self) -> None:
        self.taken += 1
        self.segment.set_consumed(self.taken)
        if self.segment.want(1 - self.segment.side) <= self.taken and not self.dead:
            self.wake()

    def close(self) -> None:
        for region in self.regions.values():
            region.close()
        for _, memory in self.lent.values():
            memory.close()
        self.unix.close()
        self.tcp.close()
        self.segment.close()
        for fd in self.owned:
            os.close(fd)


def receive_message_now(unix: socket.socket) -> tuple[Message, list[int]]:
    timeout = unix.gettimeout()
    unix.settimeout(0)
    try:
        return receive_message(unix)
    finally:
        unix.settimeout(timeout)


# --- active: our listener, their segment ----------------------------------------------------------------------


@dataclass
class Offer:
    """An active side between its request and its word."""

    tcp: socket.socket
    unix_listener: socket.socket
    token: Token
    mine: Hello
    reply: Frame | None = None
    unix: socket.socket | None = None
    hello: Message | None = None
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        for sock in (self.tcp, self.unix_listener, self.unix):
            if sock is not None:
                sock.close()
        for fd in self.fds:
            os.close(fd)


def offer(address: tuple[str, int], mine: Hello | None = None, **block: object) -> Offer:
    """Send a request that offers shared memory; block: what to say wrongly."""
    mine = mine or Hello()
    listener, name = unix_listener()
    token = Token()
    fields: dict[str, object] = {
        "flags": Block.SHM, "token": token.value, "probe_addr": token.address, "pid_hint": os.getpid(), "name": name,
    }  # fmt: skip
    sock = dial(address)
    said = Block(**(fields | block))  # type: ignore[arg-type]
    sock.sendall(Frame(private=mine.encode() + said.encode()).encode())
    return Offer(sock, listener, token, mine)


def take_hello(o: Offer) -> None:
    """Read the reply, and the HELLO that was sent before it."""
    o.reply = read_frame(o.tcp, reply=True)
    block = Block.decode(o.reply.private)
    assert block is not None
    assert block.flags & Block.SHM, f"not offered back, why {block.why}"
    o.unix, _ = o.unix_listener.accept()
    o.unix.settimeout(TIMEOUT)
    o.hello, o.fds = receive_message(o.unix)
    assert o.hello.type == HELLO
    assert o.hello.token == o.token.value
    seals = [fcntl.fcntl(fd, F_GET_SEALS) for fd in o.fds]
    assert seals[0] & SHARED_SEALS == SHARED_SEALS
    assert seals[1] & PRIVATE_SEALS == PRIVATE_SEALS


def connect(address: tuple[str, int], mine: Hello | None = None, *, flags: int = 0) -> Agreed:
    """Be the active side of a connection in shared memory."""
    o = offer(address, mine)
    try:
        take_hello(o)
        assert o.hello is not None
        assert o.unix is not None
        assert o.reply is not None
        page = page_memfd()
        send_message(o.unix, Message(ACK, flags=flags, token=o.hello.peer_token), [page])
        segment = Segment(o.fds[0], o.hello.slots, o.hello.data_bytes, 0)
    except BaseException:
        o.close()
        raise
    link = ShmLink(o.unix, segment, o.tcp)
    link.owned = [*o.fds, page]
    o.unix_listener.close()
    if o.mine.ring_len:
        link.memory.add(o.mine.ring_len, o.mine.ring_addr, o.mine.ring_rkey)
    theirs = Hello.decode(o.reply.private[: -Block.LAYOUT.size])
    return Agreed(link, o.mine, theirs, Block.decode(o.reply.private), o.reply)


# --- passive: their listener, our segment ---------------------------------------------------------------------


@dataclass
class Answer:
    """A passive side between the request and the other side's word."""

    tcp: socket.socket
    request: Frame
    block: Block
    token: Token
    unix: socket.socket
    fds: list[int] = field(default_factory=list)

    def reply(self, mine: Hello | None = None, *, flags: int = Block.SHM) -> Hello:
        mine = replace(mine or Hello(), cookie=Hello.decode(self.request.private).cookie)
        private = mine.encode() + Block(flags=flags).encode()
        self.tcp.sendall(Frame(reply=True, private=private, flags=F_ENHANCED).encode())
        return mine

    def close(self) -> None:
        self.tcp.close()
        self.unix.close()
        for fd in self.fds:
            os.close(fd)


def answer(listener: socket.socket) -> Answer:
    """Take a request that offers shared memory, and go to its UNIX socket."""
    tcp, request = greet(listener)
    block = Block.decode(request.private)
    assert block is not None
    assert block.flags & Block.SHM
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    unix.settimeout(TIMEOUT)
    unix.connect(b"\0" + block.name)
    return Answer(tcp, request, block, Token(), unix)


def say_hello(a: Answer, fds: list[int] | None = None, **fields: object) -> Message:
    """Send the HELLO; fds: segment and page, good ones if not given."""
    message = Message(
        HELLO, token=a.block.token, peer_token=a.token.value, addr=a.token.address, slots=64, data_bytes=8192
    )
    message = replace(message, **fields)  # type: ignore[arg-type]
    if fds is None:
        content = Segment.head(message.slots, message.data_bytes)
        fds = [memfd(Segment.size(message.slots, message.data_bytes), SHARED_SEALS, content), page_memfd()]
    a.fds += fds
    send_message(a.unix, message, fds)
    return message


def accept(listener: socket.socket, mine: Hello | None = None) -> Agreed:
    """Be the passive side of a connection in shared memory."""
    a = answer(listener)
    try:
        hello = say_hello(a)
        mine = a.reply(mine)
        ack, fds = receive_message(a.unix)
        a.fds += fds
        assert ack.type == ACK
        assert ack.token == a.token.value
        assert ack.why == 0, ack
        segment = Segment(a.fds[0], hello.slots, hello.data_bytes, 1)
    except BaseException:
        a.close()
        raise
    link = ShmLink(a.unix, segment, a.tcp)
    link.owned = a.fds
    if mine.ring_len:
        link.memory.add(mine.ring_len, mine.ring_addr, mine.ring_rkey)
    theirs = Hello.decode(a.request.private[: -Block.LAYOUT.size])
    return Agreed(link, mine, theirs, a.block, a.request)
