# SPDX-License-Identifier: MIT OR Apache-2.0
"""What ``exs bench`` measures: one class per way to move bytes, both sides of it.

A peer sends one buffer again and again ("hot") and receives into its own buffers; the receiver answers with one
byte when it has everything, and the sender's clock stops there.  A receiver calls ``ready`` when its receives
are posted: before that nothing is sent.
"""

from __future__ import annotations

import mmap
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio

import exs

if TYPE_CHECKING:
    from exs._native import Span

HOST = "127.0.0.1"
STREAM_SLAB = 64 << 10
"""A stream's receives are at least this long: a stream may take many small sends at once."""

Ready = Callable[[], None]
Config = dict[str, Any]  # Any: what stands in JSON


class SyncPeer(ABC):
    """A peer that blocks.  Every method runs in a process of its own for its side."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def listen(self) -> str:
        """Begins to listen; returns the address for ``connect``."""

    @abstractmethod
    def accept(self) -> None:
        """Waits for the other side."""

    @abstractmethod
    def connect(self, address: str) -> None:
        """Connects to the other side."""

    def facts(self) -> Config:
        """What the report should say of the connection."""
        return {}

    @abstractmethod
    def send_many(self, size: int, count: int, depth: int) -> None:
        """Sends messages and waits for the answer."""

    @abstractmethod
    def receive_many(self, size: int, count: int, depth: int, ready: Ready) -> None:
        """Receives them and answers."""

    @abstractmethod
    def ask(self, size: int, count: int) -> list[float]:
        """Round trips; returns the time of each in microseconds."""

    @abstractmethod
    def answer(self, size: int, count: int, ready: Ready) -> None:
        """The other half of ``ask``."""

    @abstractmethod
    def close(self) -> None:
        """The end."""


class TrioPeer(ABC):
    """A peer whose methods are awaited, in one trio run for its side; its subclasses say what it can measure."""

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    async def listen(self) -> str:
        """Begins to listen; returns the address for ``connect``."""

    @abstractmethod
    async def accept(self) -> None:
        """Waits for the other side."""

    @abstractmethod
    async def connect(self, address: str) -> None:
        """Connects to the other side."""

    def facts(self) -> Config:
        """What the report should say of the connection."""
        return {}

    async def close(self) -> None:  # noqa: B027  some have nothing to close
        """The end."""


class ThroughputPeer(TrioPeer):
    """A peer that moves many messages one way."""

    @abstractmethod
    async def send_many(self, size: int, count: int, depth: int) -> None:
        """Sends messages and waits for the answer."""

    @abstractmethod
    async def receive_many(self, size: int, count: int, depth: int, ready: Ready) -> None:
        """Receives them and answers."""


class RoundTripPeer(TrioPeer):
    """A peer that sends one message there and waits for one back."""

    async def ask(self, size: int, count: int) -> list[float]:
        """Round trips; returns the time of each in microseconds."""
        times: list[float] = []
        clock = time.perf_counter_ns
        exchange = self.exchanger(size)
        for _ in range(count):
            began = clock()
            await exchange()
            times.append((clock() - began) / 1e3)
        return times

    @abstractmethod
    def exchanger(self, size: int) -> Callable[[], Awaitable[None]]:
        """One round trip, for ``ask``."""

    @abstractmethod
    async def answer(self, size: int, count: int, ready: Ready) -> None:
        """The other half of ``ask``."""


# --- the standard library, and trio ---------------------------------------------------------------------------


class PythonTcp(SyncPeer):
    """Blocking sockets of the standard library."""

    _socket: socket.socket

    def listen(self) -> str:
        """Listens on a free port."""
        self._listener = socket.create_server((HOST, 0))
        return str(self._listener.getsockname()[1])

    def accept(self) -> None:
        """Takes one connection."""
        self._use(self._listener.accept()[0])
        self._listener.close()

    def connect(self, address: str) -> None:
        """Connects to a port."""
        self._use(socket.create_connection((HOST, int(address))))

    def _use(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connected

    def send_many(self, size: int, count: int, depth: int) -> None:
        """``sendall`` for each."""
        data = b"x" * size
        for _ in range(count):
            self._socket.sendall(data)
        self._exactly(memoryview(bytearray(1)))

    def receive_many(self, size: int, count: int, depth: int, ready: Ready) -> None:
        """``recv_into``, as much as comes."""
        buffer = memoryview(bytearray(max(STREAM_SLAB, size)))
        ready()
        left = size * count
        while left:
            got = self._socket.recv_into(buffer, min(left, len(buffer)))
            if not got:
                raise EOFError
            left -= got
        self._socket.sendall(b"k")

    def _exactly(self, buffer: memoryview) -> None:
        while buffer:
            got = self._socket.recv_into(buffer)
            if not got:
                raise EOFError
            buffer = buffer[got:]

    def ask(self, size: int, count: int) -> list[float]:
        """One message there, one back."""
        data, buffer = b"x" * size, memoryview(bytearray(size))
        times: list[float] = []
        for _ in range(count):
            began = time.perf_counter_ns()
            self._socket.sendall(data)
            self._exactly(buffer)
            times.append((time.perf_counter_ns() - began) / 1e3)
        return times

    def answer(self, size: int, count: int, ready: Ready) -> None:
        """Echoes."""
        buffer = memoryview(bytearray(size))
        ready()
        for _ in range(count):
            self._exactly(buffer)
            self._socket.sendall(buffer)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()


S = TypeVar("S", bound=trio.abc.Stream)


class StreamPeer(ThroughputPeer, RoundTripPeer, Generic[S]):
    """Anything with ``send_all`` and ``receive_some``."""

    stream: S

    def _message(self, size: int) -> Any:  # Any: whatever this stream's send_all takes
        """What is sent, again and again."""
        return b"x" * size

    async def send_many(self, size: int, count: int, depth: int) -> None:
        """``send_all`` for each."""
        data, send = self._message(size), self.stream.send_all
        for _ in range(count):
            await send(data)
        await self._exactly(1)

    async def receive_many(self, size: int, count: int, depth: int, ready: Ready) -> None:
        """``receive_some``, as much as comes."""
        ready()
        left, step, receive = size * count, max(STREAM_SLAB, min(size, 1 << 20)), self.stream.receive_some
        while left:
            got = len(await receive(min(left, step)))
            if not got:
                raise EOFError
            left -= got
        await self.stream.send_all(b"k")

    async def _exactly(self, size: int) -> None:
        while size:
            got = len(await self.stream.receive_some(size))
            if not got:
                raise EOFError
            size -= got

    def exchanger(self, size: int) -> Callable[[], Awaitable[None]]:
        """One message there, one back."""
        data = self._message(size)

        async def exchange() -> None:
            await self.stream.send_all(data)
            await self._exactly(size)

        return exchange

    async def answer(self, size: int, count: int, ready: Ready) -> None:
        """Echoes."""
        data = self._message(size)
        ready()
        for _ in range(count):
            await self._exactly(size)
            await self.stream.send_all(data)

    async def close(self) -> None:
        """Closes the stream."""
        await self.stream.aclose()


class TrioTcp(StreamPeer[trio.SocketStream]):
    """trio's streams over TCP."""

    stream: trio.SocketStream

    async def listen(self) -> str:
        """Listens on a free port."""
        (self._listener,) = await trio.open_tcp_listeners(0, host=HOST)
        return str(self._listener.socket.getsockname()[1])

    async def accept(self) -> None:
        """Takes one connection."""
        self.stream = await self._listener.accept()
        await self._listener.aclose()

    async def connect(self, address: str) -> None:
        """Connects to a port."""
        self.stream = await trio.open_tcp_stream(HOST, int(address))


# --- exs --------------------------------------------------------------------------------------------------------


def private_region(size: int) -> exs.MemoryRegion:
    """Registered memory that is the program's own: what a program has that did not ask exs for its memory."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"x" * size
    return exs.MemoryRegion(memory)


def options_from(config: Config) -> exs.Options:
    """The options that a configuration names."""
    names = ["path", "spin_us", "wait", "progress", "ring_bytes", "device", "queue_depth", "crc", "direct_hold_us"]
    names += ["protocol", "smc_option", "smc_eid"]
    return exs.Options(**{name: config[name] for name in names if name in config})


class ExsPeer(ThroughputPeer, RoundTripPeer):
    """exs from trio.

    Configuration: ``type`` is ``stream`` or ``seqpacket``; ``memory`` is ``private`` or ``allocated``; ``calls``
    is ``queue`` (batches) or ``await`` (one awaited call for each message: a stream's ``send``, and ``recv_into`` of
    what is there, as with any stream; for messages ``put`` and the steps of a receive queue); the rest are fields of
    ``exs.Options``.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._regions: dict[tuple[str, int], exs.MemoryRegion] = {}
        self._pools: dict[tuple[int, int], exs.BufferPool] = {}
        self._awaits = config.get("calls") == "await"
        self._is_stream = config.get("type", "stream") == "stream"
        self._host: str = config.get("host", HOST)
        self._socket: exs.Socket
        self._channel: exs.SocketStream | exs.MessageChannel

    def _region(self, name: str, size: int) -> exs.MemoryRegion:
        key = (name, size)
        if key not in self._regions:
            allocated = self.config.get("memory") == "allocated"
            self._regions[key] = exs.MemoryRegion.allocate(size) if allocated else private_region(size)
            if allocated:
                self._regions[key].view[:] = b"x" * size
        return self._regions[key]

    def _pool(self, size: int, depth: int) -> exs.BufferPool:
        key = (size, depth)
        if key not in self._pools:
            self._pools[key] = exs.BufferPool(size, depth)
        return self._pools[key]

    async def listen(self) -> str:
        """Listens on a free port."""
        options = options_from(self.config)
        self._listener: exs.SocketListener | exs.MessageListener
        if self._is_stream:
            self._listener = (await exs.open_listeners(0, host=self._host, options=options))[0]
        else:
            self._listener = (await exs.open_message_listeners(0, host=self._host, options=options))[0]
        return str(self._listener.address[1])

    async def accept(self) -> None:
        """Takes one connection."""
        self._channel = await self._listener.accept()
        self._socket = self._channel.socket
        await self._listener.aclose()

    async def connect(self, address: str) -> None:
        """Connects to a port."""
        options = options_from(self.config)
        if self._is_stream:
            self._channel = await exs.open_stream(self._host, int(address), options=options)
        else:
            self._channel = await exs.open_message_channel(self._host, int(address), options=options)
        self._socket = self._channel.socket

    def facts(self) -> Config:
        """The device and the path."""
        device = self._socket.device
        return {"device": device.name if device else "", "path": self._socket.path}

    async def send_many(self, size: int, count: int, depth: int) -> None:
        """Batches through a send queue, or one ``send`` each."""
        region = self._region("send", size)
        if self._awaits and self._is_stream:
            send, view = self._socket.send, region[:]
            for _ in range(count):
                await send(view)
        elif self._awaits:
            view = region[:]
            async with self._socket.send_queue(depth=depth) as sends:
                for _ in range(count):
                    await sends.put(view)
        else:
            batch = [region[:]] * min(depth, count)
            left = count
            async with self._socket.send_queue(depth=depth) as sends:
                while left:
                    step = min(left, len(batch))
                    await sends.put_many(batch if step == len(batch) else batch[:step])
                    left -= step
        await self._socket.recv_into(self._region("byte", 64)[:1])

    async def receive_many(self, size: int, count: int, depth: int, ready: Ready) -> None:
        """Batches from a receive queue, or one ``recv_into`` each."""
        total = size * count
        if self._awaits and self._is_stream:
            view, receive = self._region("receive", max(size, STREAM_SLAB))[:], self._socket.recv_into
            ready()
            while total:
                got = await receive(view)
                if not got:
                    raise EOFError
                total -= got
        elif self._awaits:
            async with self._socket.receive_queue(self._pool(size, depth), depth=depth) as receives:
                ready()
                async for chunk in receives:
                    total -= chunk.length
                    if not total:
                        break
        else:
            slab = max(size, STREAM_SLAB) if self._is_stream and size < STREAM_SLAB else size
            async with self._socket.receive_queue(self._pool(slab, depth), depth=depth) as receives:
                ready()
                while total:
                    chunks = await receives.get_many(depth)
                    if not chunks:
                        raise EOFError
                    for chunk in chunks:
                        total -= chunk.length
        await self._socket.send(self._region("byte", 64)[:1])

    def exchanger(self, size: int) -> Callable[[], Awaitable[None]]:
        """One message there, one back."""
        there, back = self._region("send", size)[:], self._region("receive", size)[:]
        send, receive, whole = self._socket.send, self._socket.recv_into, self._is_stream

        async def exchange() -> None:
            await send(there)
            if await receive(back, waitall=whole) != size:
                raise EOFError

        return exchange

    async def answer(self, size: int, count: int, ready: Ready) -> None:
        """Echoes."""
        view = self._region("receive", size)[:]
        send, receive, whole = self._socket.send, self._socket.recv_into, self._is_stream
        ready()
        for _ in range(count):
            if await receive(view, waitall=whole) != size:
                raise EOFError
            await send(view)

    async def close(self) -> None:
        """Closes the connection, then the memory."""
        await self._channel.aclose()
        for region in self._regions.values():
            await region.aclose()
        for pool in self._pools.values():
            await pool.aclose()


class SmcPeer(StreamPeer[exs.SocketStream]):
    """A stream over SMC-R as any trio program uses it: ``send_all``, from registered memory, and ``receive_some``.

    Configuration: ``queue`` sends by a send queue instead, ``view`` receives by ``receive_view``; ``host`` is where to
    listen, or the listener's address; the rest are fields of ``exs.Options``.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # Both ends are ours, so no privilege is needed to learn that the other one speaks SMC.
        chosen = {"protocol": "smc", "smc_option": "assume", **config}
        self._options = options_from({**chosen, "smc_eid": tuple(chosen.get("smc_eid", ()))})
        self._host: str = config.get("host", HOST)
        self._views, self._queues = bool(config.get("view")), bool(config.get("queue"))
        self._regions: dict[int, exs.MemoryRegion] = {}
        self.stream: exs.SocketStream

    async def listen(self) -> str:
        """Listens on a free port."""
        self._listener = (await exs.open_listeners(0, host=self._host, options=self._options))[0]
        return str(self._listener.address[1])

    async def accept(self) -> None:
        """Takes one connection."""
        self.stream = await self._listener.accept()
        await self._listener.aclose()

    async def connect(self, address: str) -> None:
        """Connects to a port."""
        self.stream = await exs.open_stream(self._host, int(address), options=self._options)
        if self.stream.transport == "tcp":
            raise ValueError(f"this is plain TCP: {self.stream.transport_reason}")

    def facts(self) -> Config:
        """The device, the path and the version."""
        sock = self.stream.socket
        device = sock.device
        name = device.name if device else ""
        return {"device": name, "path": sock.path, "transport": self.stream.transport}

    def _message(self, size: int) -> Span:
        if size not in self._regions:
            self._regions[size] = private_region(size)
        return self._regions[size][:]

    async def send_many(self, size: int, count: int, depth: int) -> None:
        """One ``send_all`` each, or batches through a send queue."""
        if not self._queues:
            await super().send_many(size, count, depth)
            return
        batch = [self._message(size)] * min(depth, count)
        async with self.stream.socket.send_queue(depth=depth) as sends:
            for at in range(0, count, len(batch)):
                await sends.put_many(batch[: count - at])
        await self._exactly(1)

    async def receive_many(self, size: int, count: int, depth: int, ready: Ready) -> None:
        """As much as comes, by copies or by views."""
        if not self._views:
            await super().receive_many(size, count, depth, ready)
            return
        ready()
        left, receive = size * count, self.stream.receive_view
        while left:
            async with receive(left) as view:
                got = len(view)
            if not got:
                raise EOFError
            left -= got
        await self.stream.send_all(b"k")

    async def close(self) -> None:
        """Closes the stream, then the memory."""
        await self.stream.aclose()
        for region in self._regions.values():
            await region.aclose()


PEERS: dict[str, type[SyncPeer | TrioPeer]] = {
    "python-tcp": PythonTcp,
    "trio-tcp": TrioTcp,
    "exs": ExsPeer,
    "smc": SmcPeer,
}
"""By the name that a driver gives."""
