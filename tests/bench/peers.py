# SPDX-License-Identifier: MIT OR Apache-2.0
"""Peers of ``make bench`` that ``exs bench`` does not need: ES-API from Python, trio.socket, trio over eventfds.

Loaded by exs.cli.bench.side through the configuration's ``module``.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Awaitable, Callable

import trio

import exs
from exs import esapi
from exs.cli.bench.peers import (
    HOST,
    STREAM_SLAB,
    Config,
    Ready,
    RoundTripPeer,
    SyncPeer,
    ThroughputPeer,
    TrioTcp,
    private_region,
)
from exs.events import XferPart


class TrioSocket(TrioTcp):
    """trio.socket with ``recv_into``: what one writes who knows that streams cost."""

    async def _exactly(self, size: int) -> None:
        view = memoryview(self._buffer(size))[:size]
        while view:
            got = await self.stream.socket.recv_into(view)
            if not got:
                raise EOFError
            view = view[got:]

    def _buffer(self, size: int) -> bytearray:
        kept: bytearray | None = getattr(self, "_kept", None)
        if kept is None or len(kept) < size:
            kept = self._kept = bytearray(size)
        return kept

    async def _send(self, data: bytes) -> None:
        sent = await self.stream.socket.send(data)
        while sent < len(data):
            sent += await self.stream.socket.send(memoryview(data)[sent:])

    async def send_many(self, size: int, count: int, depth: int) -> None:
        data = b"x" * size
        for _ in range(count):
            await self._send(data)
        await self._exactly(1)

    async def receive_many(self, size: int, count: int, depth: int, ready: Ready) -> None:
        step = max(STREAM_SLAB, size)
        view, left = memoryview(self._buffer(step)), size * count
        ready()
        while left:
            got = await self.stream.socket.recv_into(view[: min(left, step)])
            if not got:
                raise EOFError
            left -= got
        await self._send(b"k")

    def exchanger(self, size: int) -> Callable[[], Awaitable[None]]:
        data = b"x" * size

        async def exchange() -> None:
            await self._send(data)
            await self._exactly(size)

        return exchange

    async def answer(self, size: int, count: int, ready: Ready) -> None:
        data = b"x" * size
        ready()
        for _ in range(count):
            await self._exactly(size)
            await self._send(data)


class TrioEventfd(RoundTripPeer):
    """One eventfd each way: what a wake-up costs in trio, with nothing moved at all."""

    _mine: int
    _theirs: int

    async def listen(self) -> str:
        self._mine, self._theirs = self.config["eventfds"]
        return "-"

    async def accept(self) -> None:
        pass

    async def connect(self, address: str) -> None:
        self._theirs, self._mine = self.config["eventfds"]

    async def _wait(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._mine)
            try:
                os.eventfd_read(self._mine)
            except BlockingIOError:
                continue
            return

    def exchanger(self, size: int) -> Callable[[], Awaitable[None]]:
        async def exchange() -> None:
            os.eventfd_write(self._theirs, 1)
            await self._wait()

        return exchange

    async def answer(self, size: int, count: int, ready: Ready) -> None:
        ready()
        for _ in range(count):
            await self._wait()
            os.eventfd_write(self._theirs, 1)


class TrioCheckpoint(ThroughputPeer):
    """Nothing but ``await trio.lowlevel.checkpoint()``, as "throughput" of one side."""

    async def listen(self) -> str:
        return "-"

    async def accept(self) -> None:
        pass

    async def connect(self, address: str) -> None:
        pass

    async def send_many(self, size: int, count: int, depth: int) -> None:
        for _ in range(count):
            await trio.lowlevel.checkpoint()

    async def receive_many(self, size: int, count: int, depth: int, ready: Ready) -> None:
        ready()


class EsApi(SyncPeer):
    """ES-API from Python: one thread, one event queue, receives posted ahead, no trio.

    Configuration: ``type``, ``memory``, ``host``, and ``path``, ``device``, ``wait`` (through the environment), as for
    the peer ``exs``.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for name in ("path", "device", "wait"):
            if name in config:
                os.environ[f"EXS_{name.upper()}"] = config[name]
        self._host = config.get("host", HOST)
        esapi.exs_init()
        self._stream = config.get("type", "stream") == "stream"
        kind = socket.SOCK_STREAM if self._stream else socket.SOCK_SEQPACKET
        self._fd = esapi.exs_socket(socket.AF_INET, kind)
        self._regions: dict[tuple[str, int], tuple[memoryview, esapi.MHandle]] = {}
        self._keep: list[exs.MemoryRegion] = []

    def _memory(self, name: str, size: int) -> tuple[memoryview, esapi.MHandle]:
        key = (name, size)
        if key not in self._regions:
            if self.config.get("memory") == "allocated":
                region = exs.MemoryRegion.allocate(size)
                region.view[:] = b"x" * size
            else:
                region = private_region(size)
            self._keep.append(region)
            view = region.view
            self._regions[key] = (view, esapi.MHandle(region))
        return self._regions[key]

    def listen(self) -> str:
        esapi.exs_bind(self._fd, (self._host, 0))
        esapi.exs_listen(self._fd)
        return str(esapi.exs_getsockname(self._fd)[1])

    def accept(self) -> None:
        fd = esapi.exs_accept(self._fd, None, None)
        assert fd is not None
        esapi.exs_close(self._fd)
        self._fd = fd

    def connect(self, address: str) -> None:
        esapi.exs_connect(self._fd, (self._host, int(address)), None, None)

    def send_many(self, size: int, count: int, depth: int) -> None:
        view, handle = self._memory("send", size)
        queue = esapi.exs_qcreate(depth)
        send, take, fd = esapi.exs_send, esapi.exs_qdequeue, self._fd
        posted = done = 0
        while done < count:
            while posted < count and posted - done < depth:
                send(fd, view, size, 0, handle, None, queue)
                posted += 1
            for event in take(queue, depth):
                event.raise_for_errno()
                done += 1
        esapi.exs_qdelete(queue)
        byte, handle = self._memory("byte", 64)
        esapi.exs_recv(fd, byte, 1, 0, handle, None, None)

    def receive_many(self, size: int, count: int, depth: int, ready: Ready) -> None:
        slab = max(size, STREAM_SLAB) if self._stream else size
        buffers = [self._memory(f"receive{i}", slab) for i in range(depth)]
        queue = esapi.exs_qcreate(depth)
        receive, take, fd = esapi.exs_recv, esapi.exs_qdequeue, self._fd
        left = size * count
        flags = esapi.MSG_WAITALL if self._stream and size >= STREAM_SLAB else 0
        posted = received = 0
        # With MSG_WAITALL no more may be posted than will come, or what follows would fill it.
        most = count if not self._stream or flags else 1 << 62
        for i in range(min(depth, most)):
            receive(fd, buffers[i][0], slab, flags, buffers[i][1], i, queue)
            posted += 1
        ready()
        while left:
            for event in take(queue, depth):
                event.raise_for_errno()
                part, which = event.exs_evt_union, event.exs_evt_ahandle
                assert isinstance(part, XferPart)
                assert isinstance(which, int)
                left -= part.exs_evt_length
                received += 1
                if left and posted < most:
                    receive(fd, buffers[which][0], slab, flags, buffers[which][1], which, queue)
                    posted += 1
        if posted > received:
            esapi.exs_cancel(fd=fd)
            take(queue, -(posted - received))
        esapi.exs_qdelete(queue)
        byte, handle = self._memory("byte", 64)
        esapi.exs_send(fd, byte, 1, 0, handle, None, None)

    def ask(self, size: int, count: int) -> list[float]:
        (there, a), (back, b) = self._memory("send", size), self._memory("back", size)
        times, whole = [], esapi.MSG_WAITALL if self._stream else 0
        for _ in range(count):
            began = time.perf_counter_ns()
            esapi.exs_send(self._fd, there, size, 0, a, None, None)
            esapi.exs_recv(self._fd, back, size, whole, b, None, None)
            times.append((time.perf_counter_ns() - began) / 1e3)
        return times

    def answer(self, size: int, count: int, ready: Ready) -> None:
        view, handle = self._memory("back", size)
        whole = esapi.MSG_WAITALL if self._stream else 0
        ready()
        for _ in range(count):
            esapi.exs_recv(self._fd, view, size, whole, handle, None, None)
            esapi.exs_send(self._fd, view, size, 0, handle, None, None)

    def close(self) -> None:
        esapi.exs_close(self._fd)
        self._regions.clear()
        for region in self._keep:
            region.close()


PEERS = {
    "trio-socket": TrioSocket,
    "trio-eventfd": TrioEventfd,
    "trio-checkpoint": TrioCheckpoint,
    "esapi": EsApi,
}
