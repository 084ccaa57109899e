# SPDX-License-Identifier: MIT OR Apache-2.0
"""SMC-R between two sides of exs on the embedded device: contract, data, ends, and every way back to TCP."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import ssl

import pytest
import trio
import trio.testing
import trustme
from ground import patient, scaled
from smc_sides import EID, SMC, pair, receive_all

import exs
import exs.smc
from exs import _native
from exs.smc import clc, option
from exs.smc.status import Connection

KIB, MIB = 1024, 1024 * 1024


async def make_pair() -> tuple[exs.SocketStream, exs.SocketStream]:
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=SMC)
    accepted: list[exs.SocketStream] = []

    async def accept() -> None:
        accepted.append(await listener.accept())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        stream = await exs.open_stream("127.0.0.1", listener.address[1], options=SMC)
    await listener.aclose()
    return stream, accepted[0]


async def test_trios_contract() -> None:
    await trio.testing.check_half_closeable_stream(make_pair, None)


@pytest.mark.parametrize("transport", ["smc-r v2", "smc-r v1"])
async def test_both_sides_say_what_carries_them(transport: str) -> None:
    eids = EID if transport == "smc-r v2" else ()
    options = exs.Options(protocol="smc", device="soft", smc_option="assume", smc_eid=eids)
    async with pair(options) as (one, two):
        assert (one.transport, two.transport) == (transport, transport)
        assert one.transport_reason == ""
        await one.send_all(b"there")
        assert await two.receive_some() == b"there"
        await two.send_all(b"and back")
        assert await one.receive_some() == b"and back"


@pytest.mark.parametrize(("size", "chunk"), [(1, 1), (70_000, 300), (3 * MIB, 64 * KIB), (8 * MIB, 8 * MIB)])
async def test_data_in_both_directions_at_once(size: int, chunk: int) -> None:
    data = (hashlib.sha256(b"seed").digest() * (size // 32 + 1))[:size]

    async def send(stream: exs.SocketStream) -> None:
        for at in range(0, size, chunk):
            await stream.send_all(data[at : at + chunk])
        await stream.send_eof()

    async def check(stream: exs.SocketStream) -> None:
        assert hashlib.sha256(await receive_all(stream)).digest() == hashlib.sha256(data).digest()

    async with pair() as (one, two):
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for stream in (one, two):
                    nursery.start_soon(send, stream)
                    nursery.start_soon(check, stream)


async def test_registered_memory_goes_without_a_copy() -> None:
    data = bytes(range(256)) * KIB
    async with exs.MemoryRegion.allocate(256 * KIB) as region:
        region.view[:] = data
        async with pair() as (one, two):
            found = bytearray()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.send_all, region)
                while len(found) < 256 * KIB:
                    found += await two.receive_some()
            assert found == data
            assert one.socket.statistics().bytes_copied == 0


async def test_a_small_send_is_copied_and_its_buffer_free_at_once() -> None:
    count, size = scaled(2000, 300), 700
    sent = hashlib.sha256()
    async with exs.MemoryRegion.allocate(size) as region, pair() as (one, two):
        found = hashlib.sha256()

        async def receive() -> None:
            left = count * size
            while left:
                chunk = await two.receive_some()
                left -= len(chunk)
                found.update(chunk)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for number in range(count):
                region.view[:] = number.to_bytes(4, "big") * (size // 4)
                sent.update(region.view)
                await one.send_all(region)
        assert found.digest() == sent.digest()
        # All but those that were sent before there was memory to copy them to.
        assert (count - 10) * size <= one.socket.statistics().bytes_copied <= count * size


async def test_what_was_copied_is_bounded_when_nobody_reads() -> None:
    chunk, sent = bytes(1000), 0

    def blocked() -> list[Connection]:
        connections = (c for g in exs.smc.status().groups for c in g.connections)
        return [c for c in connections if c.sending.waiting and c.sending.writer_blocked]

    async def send(stream: exs.SocketStream) -> None:
        nonlocal sent
        while True:
            await stream.send_all(chunk)
            sent += len(chunk)

    async with pair() as (one, two):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, one)
            seen = -1
            while not blocked() or sent != seen:
                seen = sent
                await trio.sleep(patient(0.1))
            nursery.cancel_scope.cancel()
        (connection,) = blocked()
        sending = connection.sending
        # Nothing of the cancelled one went out, and the socket still sends.
        assert sending.nbytes + sending.waiting == sent
        assert sending.nbytes == sending.buffer_bytes
        assert sending.waiting <= 64 * KIB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.send_eof)
            assert await receive_all(two) == bytes(sent)


async def test_what_was_copied_arrives_before_the_end() -> None:
    chunk, count = bytes(range(250)), 400
    async with pair() as (one, two):
        got = bytearray()

        async def receive() -> None:
            await trio.sleep(0.05)
            got.extend(await receive_all(two))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            for _ in range(count):
                await one.send_all(chunk)
            await one.aclose()
        assert got == chunk * count


async def test_a_queue_of_small_sends_and_large_ones_keeps_their_order() -> None:
    sizes = [1, 300, 100_000, 8192, 8193, 20, 4096, 70_000, 5] * scaled(20, 4)
    data = hashlib.sha256(b"queue").digest() * (sum(sizes) // 32 + 1)
    async with exs.MemoryRegion.allocate(sum(sizes)) as region, pair() as (one, two):
        region.view[:] = data[: sum(sizes)]
        got = bytearray()

        async def receive() -> None:
            got.extend(await receive_all(two))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            async with one.socket.send_queue(depth=32) as queue:
                at = 0
                for size in sizes:
                    await queue.put(region[at : at + size])
                    at += size
            await one.send_eof()
        assert got == data[: sum(sizes)]


async def test_a_view_is_the_buffer_and_its_end_frees_it() -> None:
    async with pair() as (one, two):
        await one.send_all(b"some bytes")
        async with two.receive_view(4) as view:
            assert view == b"some"
            with pytest.raises(TypeError):
                view[0] = 0
            with pytest.raises(trio.BusyResourceError):
                await two.receive_some()
            with pytest.raises(trio.BusyResourceError):
                await two.aclose()
        with pytest.raises(KeyError):
            async with two.receive_view() as view:
                assert view == b" bytes"
                raise KeyError
        before = two.socket.statistics().bytes_copied
        assert before == 0
        assert await two.receive_some() == b" bytes"
        await one.send_eof()
        async with two.receive_view() as view:
            assert len(view) == 0


async def lies_there(stream: exs.SocketStream) -> int:
    """The bytes of one view; none is taken."""
    with pytest.raises(KeyError):
        async with stream.receive_view() as view:
            length = len(view)
            raise KeyError
    return length


async def test_a_view_is_all_that_lies_there() -> None:
    async with pair() as (one, two):
        await one.send_all(bytes(300_000))
        with trio.fail_after(10):
            while await lies_there(two) < 300_000:
                pass
        async with two.receive_view(200_000) as view:
            assert len(view) == 200_000
        assert two.socket.statistics().bytes_copied == 0
        assert len(await two.receive_some(99_999)) == 99_999  # more than is copied through a buffer between
        assert two.socket.statistics().bytes_copied == 99_999
        assert await two.receive_some(1 << 40) == b"\0"


async def test_a_view_comes_behind_what_a_queue_did_not_hand_out() -> None:
    async with pair() as (one, two):
        with exs.BufferPool(10, 5) as pool:
            async with two.socket.receive_queue(pool, depth=5) as queue:
                await one.send_all(bytes(range(50)))
                assert bytes((await anext(queue)).view) == bytes(range(10))
        assert two.socket.has_kept  # one message brought all 50, and filled every slab
        await one.send_all(bytes(range(50, 60)))
        await one.send_eof()
        with pytest.raises(KeyError):
            async with two.receive_view() as view:
                raise KeyError
        got = b""
        while True:
            async with two.receive_view() as view:
                if not len(view):
                    break
                got += view
        assert got == bytes(range(10, 60))


async def test_a_view_and_a_long_receive_are_checkpoints() -> None:
    async with pair() as (one, two):
        for _ in range(2):
            await one.send_all(bytes(20))
            await two.socket.wait_ready(_native.POLL_IN)
            with trio.testing.assert_checkpoints():
                assert await two.receive_some(1 << 20)
            await one.send_all(bytes(20))
            await two.socket.wait_ready(_native.POLL_IN)
            with trio.testing.assert_checkpoints():
                async with two.receive_view() as view:
                    assert len(view) == 20
        with trio.CancelScope() as scope:
            scope.cancel()
            await two.receive_some(1 << 20)
        assert scope.cancelled_caught


async def test_many_connections_share_a_link_group() -> None:
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=SMC)
    streams: list[exs.SocketStream] = []

    async def echo() -> None:
        async with await listener.accept() as stream:
            async for chunk in stream:
                await stream.send_all(chunk)

    async with listener, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(echo)
        for number in range(20):
            streams.append(await exs.open_stream("127.0.0.1", listener.address[1], options=SMC))
            await streams[-1].send_all(b"%d" % number)
        for number, stream in enumerate(streams):
            assert await stream.receive_some() == b"%d" % number
            await stream.aclose()


async def test_a_crowd_that_connects_at_once_speaks_smc_all_of_it() -> None:
    """Buffers are announced one after the other: if all began at once, the last ones would be late on a busy host."""
    crowd = scaled(100, 40)
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=SMC)
    streams: list[exs.SocketStream] = []

    async def connect() -> None:
        streams.append(await exs.open_stream("127.0.0.1", listener.address[1], options=SMC))

    async with listener:
        async with trio.open_nursery() as nursery:
            for _ in range(crowd):
                nursery.start_soon(connect)
            for _ in range(crowd):
                streams.append(await listener.accept())
        assert {stream.transport for stream in streams} == {"smc-r v2"}
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.aclose)


async def test_a_close_with_unread_data_is_a_reset() -> None:
    async with pair() as (one, two):
        await one.send_all(b"never read")
        await two.wait_send_all_might_not_block()
        await trio.sleep(0.1)
        await two.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await one.receive_some()


async def test_tls() -> None:
    authority = trustme.CA()
    at_server, at_client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("exs.test").configure_cert(at_server)
    authority.configure_trust(at_client)
    one, two = await make_pair()
    client = trio.SSLStream(one, at_client, server_hostname="exs.test")
    server = trio.SSLStream(two, at_server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"sealed")
        assert await server.receive_some() == b"sealed"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.aclose)
        nursery.start_soon(server.aclose)


# --- plain TCP ----------------------------------------------------------------------------------------------------


async def test_no_device_in_common_is_tcp() -> None:
    other = exs.Options(protocol="smc", device="verbs", smc_option="assume", smc_eid=EID)
    async with pair(SMC, other) as (one, two):
        assert (one.transport, two.transport) == ("tcp", "tcp")
        assert one.transport_reason
        await one.send_all(b"there")
        assert await two.receive_some() == b"there"
        await two.send_eof()
        assert await one.receive_some() == b""
        with pytest.raises(exs.Error):
            _ = one.socket


async def test_both_sides_say_that_the_option_may_not_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(option, "_owner", os.getpid())
    monkeypatch.setattr(option, "_program", None)
    monkeypatch.setattr(option, "_why", "not permitted, the test says")
    options = exs.Options(protocol="smc", device="soft", smc_option="bpf", smc_eid=EID)
    async with pair(options) as (one, two):
        assert (one.transport, two.transport) == ("tcp", "tcp")
        assert (one.transport_reason, two.transport_reason) == ("not permitted, the test says",) * 2


async def test_no_eid_in_common_leaves_version_1() -> None:
    other = exs.Options(protocol="smc", device="soft", smc_option="assume", smc_eid=("OTHER",))
    async with pair(SMC, other) as (one, two):
        assert (one.transport, two.transport) == ("smc-r v1", "smc-r v1")


async def test_a_plain_client_is_served_on_the_same_port() -> None:
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=SMC)
    async with listener, await trio.open_tcp_stream("127.0.0.1", listener.address[1]) as plain:
        await plain.send_all(b"GET / HTTP/1.0")
        async with await listener.accept() as stream:
            assert stream.transport == "tcp"
            got = b""
            while len(got) < 14:
                got += await stream.receive_some()
            assert got == b"GET / HTTP/1.0"
            await stream.send_all(b"OK")
            assert await plain.receive_some() == b"OK"


async def test_a_decline_as_the_first_message_leaves_the_payload() -> None:
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=SMC)
    async with listener, await trio.open_tcp_stream("127.0.0.1", listener.address[1]) as plain:
        decline = clc.Decline(version=1, peer_id=bytes(8), diagnosis=clc.DECLINE_NO_DEVICE).encode()
        await plain.send_all(decline + b"payload")
        async with await listener.accept() as stream:
            assert stream.transport == "tcp"
            assert await stream.receive_some() == b"payload"
            room = bytearray(10)
            await plain.send_all(b"more")
            assert await stream.receive_into(room) == 4


async def proposal_of(plain: trio.SocketStream) -> bytes:
    got = await plain.receive_some(8)
    while len(got) < 8 or len(got) < clc.length_of(got[:8]):
        got += await plain.receive_some(8 - len(got) if len(got) < 8 else clc.length_of(got[:8]) - len(got))
    return got


@pytest.mark.parametrize("size", [1, 100_000])
async def test_a_server_that_declines_gets_its_payload_whole(size: int) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def decline() -> None:
        async with await listener.accept() as plain:
            assert isinstance(clc.decode(await proposal_of(plain)), clc.Proposal)
            code = clc.Decline(version=2, peer_id=bytes(8), diagnosis=clc.DECLINE_NO_UEID)
            await plain.send_all(code.encode() + b"y" * size)
            assert await plain.receive_some() == b"hello"

    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(decline)
        port = listener.socket.getsockname()[1]
        async with await exs.open_stream("127.0.0.1", port, options=SMC) as stream:
            assert stream.transport == "tcp"
            assert "03030008" in stream.transport_reason
            got = bytearray()
            while len(got) < size:
                got += await stream.receive_some()
            assert bytes(got) == b"y" * size
            await stream.send_all(b"hello")


async def test_ipv6_is_tcp() -> None:
    async with pair(host="::1") as (one, two):
        assert (one.transport, two.transport) == ("tcp", "tcp")
        await one.send_all(b"there")
        assert await two.receive_some() == b"there"


async def test_garbage_ends_one_connection_only() -> None:
    (listener,) = await exs.open_listeners(0, host="127.0.0.1", options=SMC)
    async with listener:
        async with await trio.open_tcp_stream("127.0.0.1", listener.address[1]) as plain:
            await plain.send_all(b"\xe2\xd4\xc3\xd9\x01\x00\x0c\x20????")
            with trio.fail_after(5):
                try:
                    assert await plain.receive_some() == b""
                except trio.BrokenResourceError:
                    pass  # what was not read makes it a reset
        accepted: list[exs.SocketStream] = []

        async def accept() -> None:
            accepted.append(await listener.accept())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            stream = await exs.open_stream("127.0.0.1", listener.address[1], options=SMC)
        async with stream, accepted[0]:
            assert stream.transport == "smc-r v2"


async def test_cancelled_in_its_handshake_nothing_is_left() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        with trio.move_on_after(0.3) as scope:
            await exs.open_stream("127.0.0.1", listener.socket.getsockname()[1], options=SMC)
        assert scope.cancelled_caught
        async with await listener.accept() as plain:
            with trio.fail_after(5):
                await proposal_of(plain)
                assert await plain.receive_some() == b""


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(OSError, match="all attempts to connect") as failed:
        await exs.open_stream("127.0.0.1", port, options=SMC)
    cause = failed.value.__cause__
    assert isinstance(cause, ExceptionGroup)
    assert isinstance(cause.exceptions[0], OSError)
    assert cause.exceptions[0].errno == errno.ECONNREFUSED


async def test_only_streams_speak_it() -> None:
    with pytest.raises(exs.Error, match=r"exs\.open_stream"):
        exs.socket(options=SMC)
    with pytest.raises(exs.Error, match=r"exs\.open_stream"):
        await exs.open_message_listeners(0, host="127.0.0.1", options=SMC)
