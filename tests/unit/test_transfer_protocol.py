# SPDX-License-Identifier: MIT OR Apache-2.0
"""The transfer protocol as values: codecs, greeting, decoder."""

from __future__ import annotations

import pytest
from digests import BLAKE
from hypothesis import given
from hypothesis import strategies as st

from exs.cli.transfer import protocol
from exs.cli.transfer.protocol import (
    Data,
    Decoder,
    DigestKind,
    Entry,
    Feature,
    Flag,
    FrameType,
    Hello,
    Kind,
    Result,
    TransferError,
    ViolationError,
)


def decode_all(stream: bytes, cuts: list[int] | None = None) -> list[tuple]:
    """Frames with bodies of their own, and DATA joined per run."""
    decoder = Decoder()
    found: list[tuple] = []
    at = 0
    for cut in [*(cuts or []), len(stream)]:
        for item in decoder.feed(memoryview(stream)[at:cut]):
            if isinstance(item, Data):
                if found and found[-1][0] == "data" and found[-1][1] == item.tag:
                    found[-1] = ("data", item.tag, found[-1][2] + bytes(item.view))
                else:
                    found.append(("data", item.tag, bytes(item.view)))
            else:
                found.append((item.type, item.flags, item.tag, bytes(item.body)))
        at = cut
    assert decoder.at_boundary
    return found


# --- codecs -----------------------------------------------------------------------------------------------

names = st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b)


@given(names, st.integers(0, 2**63), st.integers(0, 0o777), st.sampled_from(Kind), st.text(max_size=50))
def test_entries_come_back_as_they_went(path, size, mode, kind, reason):
    entry = Entry(7, kind, path, size, mode, reason)
    back = protocol.decode_entries(memoryview(protocol.encode_entry(entry) * 2))
    assert [(e.id, e.kind, e.path, e.size, e.mode) for e in back] == [(7, kind, path, size, mode)] * 2
    assert back[0].reason.startswith(reason[:30])


@given(st.lists(st.tuples(st.integers(0, 2**63), st.integers(0, 200), st.text(max_size=60)), max_size=20))
def test_results_come_back_as_they_went(values):
    results = [Result(*value) for value in values]
    frame = protocol.encode_results(results)
    assert protocol.decode_results(memoryview(frame)[protocol.HEADER_BYTES :]) == results


@given(st.lists(st.tuples(st.integers(0, 2**63), names), max_size=20))
def test_requests_come_back_as_they_went(wanted):
    assert protocol.decode_fetch(memoryview(protocol.encode_fetch(wanted))[protocol.HEADER_BYTES :]) == wanted


def test_setuid_and_sticky_bits_do_not_travel():
    body = protocol.encode_entry(Entry(1, Kind.FILE, b"f", 0, 0o7755))
    assert protocol.decode_entry(memoryview(body)).mode == 0o755


@pytest.mark.parametrize(
    ("decode", "body"),
    [
        (protocol.decode_entries, protocol.encode_entry(Entry(1, Kind.FILE, b"name"))),
        (protocol.decode_batch, protocol.encode_batch_item(Entry(1, Kind.FILE, b"name", 3), bytes(16)) + b"abc"),
        (protocol.decode_fetch, protocol.encode_fetch([(1, b"name")])[16:]),
        (protocol.decode_results, protocol.encode_results([Result(1, 5, "why")])[16:]),
        (protocol.decode_error, protocol.encode_error(FrameType.ABORT, TransferError(5, "why"))[16:]),
        (protocol.decode_hello, protocol.encode_hello(Hello())[16:]),
    ],
)
def test_every_body_cut_short_is_a_violation(decode, body):
    decode(memoryview(body))
    for length in range(1, len(body)):
        with pytest.raises(ViolationError):
            decode(memoryview(body)[:length])


@given(st.binary(max_size=200))
def test_no_body_makes_a_decoder_raise_anything_else(body):
    for decode in (
        protocol.decode_entries,
        protocol.decode_entry,
        protocol.decode_batch,
        protocol.decode_fetch,
        protocol.decode_results,
        protocol.decode_error,
        protocol.decode_hello,
    ):
        try:
            decode(memoryview(body))
        except ViolationError:
            pass


# --- the greeting -------------------------------------------------------------------------------------------


def test_the_server_prefers_xxh3():
    both = DigestKind.XXH3_128 | BLAKE
    assert protocol.answer_hello(Hello(digests=both), both).digests == DigestKind.XXH3_128
    assert protocol.answer_hello(Hello(digests=both), BLAKE).digests == BLAKE
    assert protocol.answer_hello(Hello(digests=BLAKE), both).digests == BLAKE


def test_an_unknown_digest_beside_a_known_one_is_ignored():
    assert protocol.answer_hello(Hello(digests=BLAKE | DigestKind(64)), BLAKE).digests == BLAKE


def test_a_newer_client_is_answered_with_this_version():
    assert protocol.answer_hello(Hello(1, 9), BLAKE).version == 1


@pytest.mark.parametrize(
    "hello",
    [
        Hello(min_version=2, version=3),
        Hello(required=Feature.AUTHENTICATION),
        Hello(required=Feature(1 << 20)),
        Hello(digests=DigestKind.NONE),
    ],
)
def test_what_cannot_be_agreed_on_is_refused_with_a_reason(hello):
    back = protocol.decode_hello(memoryview(protocol.encode_hello(hello))[16:])
    assert back == hello
    with pytest.raises(ViolationError) as caught:
        protocol.answer_hello(back, BLAKE)
    assert caught.value.reason


@pytest.mark.parametrize(
    "answer",
    [
        Hello(digests=DigestKind.XXH3_128),
        Hello(digests=BLAKE | DigestKind.XXH3_128),
        Hello(2, 2, digests=BLAKE),
        Hello(offered=Feature.TLS, digests=BLAKE),
    ],
)
def test_a_client_takes_only_what_it_offered(answer):
    with pytest.raises(ViolationError):
        protocol.check_answer(answer, BLAKE)


# --- the decoder --------------------------------------------------------------------------------------------

STREAM = (
    protocol.encode_hello(Hello())
    + protocol.encode_frame(FrameType.LIST, b"some/path", 3)
    + protocol.encode_header(FrameType.DATA, 11, 9)
    + b"hello world"
    + protocol.encode_frame(FrameType.ENTRIES, b"", 3, Flag.MORE)
    + protocol.encode_frame(FrameType.END, bytes(16), 9)
)


def test_the_decoder_gives_the_same_however_the_bytes_arrive():
    whole = decode_all(STREAM)
    assert [item[0] for item in whole] == [FrameType.HELLO, FrameType.LIST, "data", FrameType.ENTRIES, FrameType.END]
    for cut in range(len(STREAM)):
        assert decode_all(STREAM, [cut]) == whole
    assert decode_all(STREAM, list(range(len(STREAM)))) == whole


@given(st.lists(st.integers(0, len(STREAM)), max_size=8).map(sorted))
def test_the_decoder_gives_the_same_for_any_pieces(cuts):
    assert decode_all(STREAM, cuts) == decode_all(STREAM)


def test_data_is_not_copied_by_the_decoder():
    stream = bytearray(protocol.encode_header(FrameType.DATA, 4, 1) + b"abcd")
    (item,) = Decoder().feed(memoryview(stream))
    stream[-1:] = b"X"
    assert isinstance(item, Data)
    assert bytes(item.view) == b"abcX"


@pytest.mark.parametrize(
    "head",
    [
        protocol._HEADER.pack(0, 0, 0, 0, 0),
        protocol._HEADER.pack(99, 0, 0, 0, 0),
        protocol._HEADER.pack(FrameType.LIST, 2, 0, 0, 0),
        protocol._HEADER.pack(FrameType.LIST, 0, 1, 0, 0),
        protocol._HEADER.pack(FrameType.LIST, 0, 0, protocol.MAX_PATH + 1, 0),
        protocol._HEADER.pack(FrameType.DATA, 0, 0, protocol.MAX_BODY + 1, 0),
        protocol._HEADER.pack(FrameType.DATA, 0, 0, 0, 0),
        b"GET / HTTP/1.1\r\n",
    ],
)
def test_a_wrong_header_is_a_violation(head):
    with pytest.raises(ViolationError):
        list(Decoder().feed(memoryview(head)))


@given(st.binary(max_size=300))
def test_no_bytes_make_the_decoder_raise_anything_else(stream):
    try:
        list(Decoder().feed(memoryview(stream)))
    except ViolationError:
        pass
