# SPDX-License-Identifier: MIT OR Apache-2.0
"""A peer that speaks our wire through pyverbs alone: connections by rdma_cm, work requests posted by hand.

Written from docs/wire/exs.md and docs/wire/verbs.md, it calls nothing of exs: it runs with the system's Python, which
has pyverbs (Debian's python3-pyverbs).  By itself it is a second implementation that can be started by hand:

    rawverbs.py [--listen] [--immediate] stream|seqpacket ADDRESS PORT [BYTES]

sends one message, receives one, and says both as JSON.  With ``serve FD`` it carries out what verbslink.py asks for,
each connection in a process of its own: calls of librdmacm wait without letting go of the interpreter.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any  # pyverbs has no types

from pyverbs import cm_enums as ce
from pyverbs import enums as e
from pyverbs.cmid import CMID, AddrInfo, CMEvent, CMEventChannel, ConnParam
from pyverbs.cq import CQ
from pyverbs.mr import MR
from pyverbs.qp import QP, QPCap, QPInitAttr
from pyverbs.wr import SGE, RecvWR, SendWR
from rawpeer import Agreed, Memory, MessagePeer, Region, StreamPeer
from rawwire import STREAM, TIMEOUT, Closed, Frame, Hello, Rejected

IMMEDIATE = 4  # flag of the hello
SLOT = 64  # bytes of a receive: every message of the protocol fits
STAGE = 1 << 20  # bytes of one WRITE at most
DEPTH = 512
GRACE = 0.5  # seconds in which completions may come behind rdma_cm's word that all is over


class VerbsMemory(Memory):
    """Real memory, registered: address and key are the device's choice."""

    def __init__(self, pd: Any) -> None:
        super().__init__()
        self._pd = pd
        self._held: list[Any] = []

    def add(self, nbytes: int, addr: int | None = None, rkey: int | None = None) -> Region:
        mr = MR(self._pd, nbytes, e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE)
        self._held.append(mr)
        room = (ctypes.c_char * nbytes).from_address(mr.buf)
        region = Region(mr.buf, mr.rkey, room)  # type: ignore[arg-type]  # read like a bytearray
        self.regions[region.rkey] = region
        return region


class Manager:
    """One connection id of rdma_cm and the events that belong to it, waited for with a bound."""

    def __init__(self) -> None:
        before = _channels()
        self.channel = CMEventChannel()
        (self.fd,) = _channels() - before  # pyverbs does not tell it, and its own wait has no bound
        self.id = CMID(creator=self.channel)
        self.listener: Any = None
        self.over = 0.0  # when rdma_cm said so

    def ready(self, timeout: float = 0.0) -> bool:
        return bool(select.select([self.fd], [], [], timeout)[0])

    def event(self, *wanted: int) -> tuple[int, bytes]:
        """The next event, which must be one of these, and its private data."""
        if not self.ready(TIMEOUT):
            raise AssertionError(f"no event of rdma_cm, {wanted} was expected")
        event = CMEvent(self.channel)
        kind, private, text = event.event_type, b"", event.event_str()
        if kind in (
            ce.RDMA_CM_EVENT_CONNECT_REQUEST,
            ce.RDMA_CM_EVENT_CONNECT_RESPONSE,
            ce.RDMA_CM_EVENT_ESTABLISHED,
            ce.RDMA_CM_EVENT_REJECTED,
        ):
            private = event.private_data
        if kind == ce.RDMA_CM_EVENT_CONNECT_REQUEST and self.listener is None:
            self.listener, self.id = self.id, CMID(creator=event, listen_id=self.id)
        event.ack_cm_event()
        if kind == ce.RDMA_CM_EVENT_REJECTED:
            raise Rejected(private)
        if kind in (ce.RDMA_CM_EVENT_DISCONNECTED, ce.RDMA_CM_EVENT_TIMEWAIT_EXIT):
            self.over = self.over or time.monotonic()
        assert kind in wanted, f"rdma_cm says {text}"
        return kind, private

    def drain(self) -> None:
        """Note an end of the connection that rdma_cm knows of."""
        while not self.over and self.ready():
            self.event(ce.RDMA_CM_EVENT_ESTABLISHED, ce.RDMA_CM_EVENT_DISCONNECTED, ce.RDMA_CM_EVENT_TIMEWAIT_EXIT)

    def resolve(self, address: tuple[str, int]) -> None:
        where = AddrInfo(dst=address[0], dst_service=str(address[1]), port_space=ce.RDMA_PS_TCP)
        self.id.resolve_addr(where, int(TIMEOUT * 1000))
        self.event(ce.RDMA_CM_EVENT_ADDR_RESOLVED)
        self.id.resolve_route(int(TIMEOUT * 1000))
        self.event(ce.RDMA_CM_EVENT_ROUTE_RESOLVED)

    def bind(self, address: tuple[str, int]) -> None:
        where = AddrInfo(src=address[0], src_service=str(address[1]), port_space=ce.RDMA_PS_TCP, flags=ce.RAI_PASSIVE)
        self.id.bind_addr(where)
        self.id.listen(8)


def _channels() -> set[int]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").endswith("rdma_cm"):
                found.add(int(name))
    return found


class VerbsLink:
    """A queue pair: SENDs, WRITEs, and WRITEs with immediate data if both sides agreed on them.

    A WRITE is held until the next call, so that a notice behind it can go as its immediate data.
    """

    def __init__(self, manager: Manager) -> None:
        self.manager = manager
        self.immediate = False
        pd, context = manager.id.pd, manager.id.context
        self.memory = VerbsMemory(pd)
        self._cq = CQ(context, 4 * DEPTH)
        cap = QPCap(max_send_wr=DEPTH, max_recv_wr=DEPTH, max_send_sge=1, max_recv_sge=1, max_inline_data=0)
        self._qp = QP(pd, QPInitAttr(qp_type=e.IBV_QPT_RC, scq=self._cq, rcq=self._cq, cap=cap))
        self._move(e.IBV_QPS_INIT)
        self._room = MR(pd, DEPTH * SLOT, e.IBV_ACCESS_LOCAL_WRITE)
        self._stage = MR(pd, STAGE, e.IBV_ACCESS_LOCAL_WRITE)
        self._held: tuple[int, int, bytes] | None = None
        self._arrived: list[bytes] = []
        self._sent: list[int] = []  # statuses of what was sent
        self._failed = ""
        self._serial = 0

    @property
    def qpn(self) -> int:
        return int(self._qp.qp_num)

    def _move(self, state: int) -> None:
        attr, mask = self.manager.id.init_qp_attr(state)
        self._qp.modify(attr, mask)

    def connected(self) -> None:
        """To RTR and RTS, which rdma_cm leaves to the owner of the queue pair, except on iWARP.

        INIT once more: only now does rdma_cm know what the peer may do, and on rxe it could write nothing else.
        """
        self._move(e.IBV_QPS_INIT)
        self._move(e.IBV_QPS_RTR)
        self._move(e.IBV_QPS_RTS)

    def post_receives(self, n: int) -> None:
        for slot in range(n):
            self._receive(slot)

    def _receive(self, slot: int) -> None:
        sge = SGE(self._room.buf + slot * SLOT, SLOT, self._room.lkey)
        self._qp.post_recv(RecvWR(wr_id=slot, num_sge=1, sg=[sge]))

    # -- out
    def write(self, rkey: int, addr: int, data: bytes) -> None:
        self._release()
        for at in range(0, max(len(data), 1), STAGE):
            self._release()
            self._held = (rkey, addr + at, data[at : at + STAGE])

    def send(self, data: bytes) -> None:
        if self.immediate and len(data) == 4:
            rkey, addr, held = self._held or (0, 0, b"")
            self._held = None
            self._post(e.IBV_WR_RDMA_WRITE_WITH_IMM, held, rkey, addr, data)
        else:
            self._release()
            self._post(e.IBV_WR_SEND, data)

    def _release(self) -> None:
        if self._held is not None:
            rkey, addr, data = self._held
            self._held = None
            self._post(e.IBV_WR_RDMA_WRITE, data, rkey, addr)

    def _post(self, opcode: int, data: bytes, rkey: int = 0, addr: int = 0, imm: bytes = b"") -> None:
        """Post one request and wait for its completion."""
        if self._failed:
            raise Closed(reset=True)
        if data:
            self._stage.write(data, len(data))
        piece = SGE(self._stage.buf, len(data), self._stage.lkey)  # pyverbs wants one, of no bytes too
        self._serial += 1
        wr = SendWR(
            wr_id=self._serial + DEPTH,
            opcode=opcode,
            num_sge=1,
            sg=[piece],
            imm_data=int.from_bytes(imm, sys.byteorder) if imm else 0,
            send_flags=e.IBV_SEND_SIGNALED,
        )
        if opcode != e.IBV_WR_SEND:
            wr.set_wr_rdma(rkey, addr)
        self._qp.post_send(wr)
        done = len(self._sent) + 1
        self._until(lambda: len(self._sent) >= done)

    # -- in
    def next_message(self) -> bytes:
        self._release()
        self._until(lambda: bool(self._arrived))
        return self._arrived.pop(0)

    def _until(self, holds: Any) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not holds():
            moved = self._poll()
            if holds():
                return
            if self._failed:
                raise Closed(reset=True)
            if not moved and self.manager.over and time.monotonic() > self.manager.over + GRACE:
                raise Closed
            assert time.monotonic() < deadline, "the other side does nothing"
            if not moved:
                self.manager.drain()
                time.sleep(0.0003)

    def _poll(self) -> int:
        count, completions = self._cq.poll(16)
        for wc in completions[:count]:
            if wc.status != e.IBV_WC_SUCCESS:
                self._failed = self._failed or f"{'send' if wc.wr_id >= DEPTH else 'receive'} status {wc.status}"
            elif wc.wr_id >= DEPTH:
                self._sent.append(wc.wr_id)
            else:
                self._arrived.append(self._message(wc))
                self._receive(wc.wr_id)
        return int(count)

    def _message(self, wc: Any) -> bytes:
        if wc.opcode == e.IBV_WC_RECV_RDMA_WITH_IMM:
            assert self.immediate, "immediate data that was not agreed on"
            return int(wc.imm_data).to_bytes(4, sys.byteorder)
        return bytes(self._room.read(wc.byte_len, wc.wr_id * SLOT))

    def verdict(self) -> Exception:
        """Read to the end, and say how it ended."""
        try:
            while True:
                self.next_message()
        except Closed as why:
            return why

    def status(self) -> str:
        """The first completion that failed, in words; empty if none did."""
        return self._failed

    def close(self) -> None:
        """End the connection in order, as far as it still is one."""
        with contextlib.suppress(Exception):  # pyverbs' own; it may be over
            self.manager.id.disconnect()
        for thing in (self._qp, self._room, self._stage, *self.memory._held, self._cq):
            with contextlib.suppress(Exception):
                thing.close()


# --- set-up -------------------------------------------------------------------------------------------------------


def _offer(link: VerbsLink, mine: Hello) -> Hello:
    """Our hello with the true address and key of its ring; the receives that it promises are posted."""
    if mine.flags & STREAM:
        ring = link.memory.add(mine.ring_len)
        mine = replace(mine, ring_addr=ring.addr, ring_rkey=ring.rkey)
    link.post_receives(mine.credits)
    return mine


def _parameters(link: VerbsLink, private: bytes) -> Any:
    parameters = ConnParam(resources=1, depth=1, retry=6, rnr_retry=6, qp_num=link.qpn, data_len=len(private))
    parameters.set_private_data(private)
    return parameters


def _agree(link: VerbsLink, mine: Hello, private: bytes) -> Agreed:
    theirs = Hello.decode(private[:56])
    link.immediate = bool(mine.flags & theirs.flags & IMMEDIATE)
    return Agreed(link, mine, theirs, None, Frame(private=private))


def connect(address: tuple[str, int], mine: Hello | None = None, private: bytes | None = None) -> Agreed:
    """Be the active side.

    Args:
        address: Of a listener on an RDMA device.
        mine: Our hello; its ring is replaced by real memory.
        private: What is sent instead of the hello.

    Raises:
        Rejected: The other side refused.
    """
    manager = Manager()
    manager.resolve(address)
    link = VerbsLink(manager)
    mine = _offer(link, mine or Hello())
    manager.id.connect(_parameters(link, mine.encode() if private is None else private))
    kind, reply = manager.event(ce.RDMA_CM_EVENT_CONNECT_RESPONSE, ce.RDMA_CM_EVENT_ESTABLISHED)
    if kind == ce.RDMA_CM_EVENT_CONNECT_RESPONSE:
        link.connected()
        manager.id.establish()
    return _agree(link, mine, reply)


def listen(address: tuple[str, int]) -> Manager:
    """A listener on an RDMA device."""
    manager = Manager()
    manager.bind(address)
    return manager


def accept(manager: Manager, mine: Hello | None = None, private: bytes | None = None) -> Agreed:
    """Be the passive side: take one connection."""
    _, request = manager.event(ce.RDMA_CM_EVENT_CONNECT_REQUEST)
    link = VerbsLink(manager)
    mine = replace(_offer(link, mine or Hello()), cookie=Hello.decode(request[:56]).cookie)
    with contextlib.suppress(Exception):  # on iWARP the device does it
        link.connected()
    manager.id.accept(_parameters(link, mine.encode() if private is None else private))
    manager.event(ce.RDMA_CM_EVENT_ESTABLISHED)
    return _agree(link, mine, request)


def free_port(host: str) -> int:
    """A port that TCP has free; rdma_cm's own are few and not told by pyverbs."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


# --- one message each way -----------------------------------------------------------------------------------------


def talk(kind: str, address: tuple[str, int], n: int, *, immediate: bool, passive: bool) -> dict[str, object]:
    """Send n bytes, receive n bytes as one message or stream, and end in order."""
    hello = Hello() if kind == "stream" else Hello.for_messages()
    hello = replace(hello, flags=hello.flags | (IMMEDIATE if immediate else 0))
    agreed = accept(listen(address), hello) if passive else connect(address, hello)
    data = os.urandom(n)
    if kind == "stream":
        stream = StreamPeer(agreed, active=not passive)
        stream.send(data)
        got = stream.receive(n)
        with contextlib.suppress(Closed):  # the other side may go as soon as it has our last word
            stream.shut()
        assert stream.fin_seen
        stream.close()
    else:
        messages = MessagePeer(agreed, active=not passive)
        messages.post(n)
        messages.send(data)
        got = messages.receive()
        messages.fin(messages.sent)
        with contextlib.suppress(Closed):
            while not (messages.fin_acked and messages.fin_seen):
                messages.step()
        assert messages.fin_seen
        messages.close()
    link = agreed.link
    assert isinstance(link, VerbsLink)
    return {
        "sent": hashlib.sha256(data).hexdigest(),
        "received": hashlib.sha256(got).hexdigest(),
        "bytes": len(got),
        "immediate": link.immediate,
    }


# --- at the service of verbslink.py -------------------------------------------------------------------------------


def serve(fd: int) -> None:
    """Carry out commands of one process, a child for each connection, until it is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(fileno=fd)
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return  # nothing is ever written to it: its end is the end of who started us
        sock, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            with Connection(sock.detach()) as commands:
                Servant(commands).run()
            os._exit(0)
        sock.close()


class Servant:
    """One connection, commanded from outside: (name, arguments) comes, (kind, value) goes."""

    def __init__(self, commands: Connection) -> None:
        self._commands = commands
        self._manager: Manager | None = None
        self._link: VerbsLink | None = None

    def run(self) -> None:
        while True:
            try:
                name, arguments = self._commands.recv()
            except (EOFError, ConnectionError):
                return
            try:
                answer: tuple[str, object] = ("ok", getattr(self, f"do_{name}")(*arguments))
            except Closed as closed:
                answer = ("closed", (closed.reset, self._link.status() if self._link else ""))
            except Rejected as rejected:
                answer = ("rejected", rejected.private)
            except Exception as problem:  # pyverbs has its own; the test shall see it, whatever it is
                answer = ("error", f"{type(problem).__name__}: {problem}")
            self._commands.send(answer)

    def _agreed(self, agreed: Agreed) -> tuple[Hello, Hello, bool]:
        assert isinstance(agreed.link, VerbsLink)
        self._link = agreed.link
        return agreed.mine, agreed.theirs, agreed.link.immediate

    def do_connect(self, address: tuple[str, int], mine: Hello, private: bytes | None) -> tuple[Hello, Hello, bool]:
        return self._agreed(connect(address, mine, private))

    def do_listen(self, host: str) -> tuple[str, int]:
        address = (host, free_port(host))
        self._manager = listen(address)
        return address

    def do_accept(self, mine: Hello, private: bytes | None) -> tuple[Hello, Hello, bool]:
        assert self._manager is not None
        return self._agreed(accept(self._manager, mine, private))

    def __getattr__(self, name: str) -> Any:
        """What is not a matter of set-up is the link's."""
        if not name.startswith("do_") or self._link is None:
            raise AttributeError(name)
        return getattr(self._link, name.removeprefix("do_"))

    def do_add(self, nbytes: int) -> tuple[int, int]:
        assert self._link is not None
        region = self._link.memory.add(nbytes)
        return region.addr, region.rkey

    def do_read(self, rkey: int) -> bytes:
        assert self._link is not None
        return bytes(self._link.memory.regions[rkey].data)

    def do_verdict(self) -> str:
        assert self._link is not None
        self._link.verdict()
        return self._link.status()


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["serve"]:
        serve(int(arguments[1]))
        return 0
    flags = {word for word in arguments if word.startswith("--")}
    kind, host, port, *rest = [word for word in arguments if word not in flags]
    signal.alarm(60)  # a call of librdmacm that never returns ends the process all the same
    said = talk(
        kind, (host, int(port)), int(rest[0]) if rest else 5000,
        immediate="--immediate" in flags, passive="--listen" in flags,
    )  # fmt: skip
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
