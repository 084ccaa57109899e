# SPDX-License-Identifier: MIT OR Apache-2.0
"""Points 51, 52, 58, 59, 62 and 66 of SMC-R, as far as bytes show them."""

from __future__ import annotations

import pytest
import smc_messages as make

from exs.smc import llc


@pytest.mark.smcr(51)
def test_051_the_header_of_version_2() -> None:
    data = llc.TestLink().encode()
    assert data[:4] == bytes.fromhex("272c0000")
    assert llc.is_big_endian(data) is False
    other = llc.TestLink().encode(big_endian=True)
    assert other[:4] == bytes.fromhex("27002c00")
    assert llc.is_big_endian(other) is True
    assert llc.decode(other) == llc.decode(data) == llc.TestLink()


@pytest.mark.smcr(51)
def test_051_the_header_of_version_1() -> None:
    data = llc.TestLink(version=1).encode()
    assert data[:4] == bytes.fromhex("072c0000")
    assert llc.decode(data) == llc.TestLink(version=1)
    assert llc.is_big_endian(data) is None


@pytest.mark.smcr(52)
@pytest.mark.parametrize("said", ["0000", "0100", "0001", "ffff"])
def test_052_entries_are_counted_by_bytes(said: str) -> None:
    data = bytearray(make.message("llc-add-link-v2-req-88"))
    data[70:72] = bytes.fromhex(said)
    keys = llc.decode(bytes(data)).extension.keys
    assert keys == (llc.NewLinkKey(rkey=0xABCD, new_rkey=0xABCE, new_vaddr=0x7F9876540000),)
    twice = llc.decode(bytes(data) + bytes(data[72:]))
    assert len(twice.extension.keys) == 2


@pytest.mark.smcr(58)
def test_058_a_buffer_on_several_links() -> None:
    message = llc.decode(make.message("llc-confirm-rkey-v1-req-2links"))
    assert (message.rkey, message.vaddr, message.more) == (0x1235, 0x7F1234570000, 0)
    assert message.keys == (llc.LinkKey(number=2, rkey=0x2235, vaddr=0x7F1234570000),)


@pytest.mark.smcr(58)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 255])
def test_058_more_links_than_there_is_room_for(count: int) -> None:
    data = bytearray(make.message("llc-confirm-rkey-v2-req"))
    data[4] = count
    message = llc.decode(bytes(data))
    assert len(message.keys) == min(count, 2)
    assert len(message.keys) + message.more == count


@pytest.mark.smcr(59)
def test_059_the_answer_to_delete_rkey_in_version_1() -> None:
    request = llc.DeleteRkey(version=1, rkeys=(1, 2, 3))
    assert request.answered((True, True, True)).encode()[3:6] == bytes((0x80, 3, 0))
    assert request.answered((False, True, False)).encode()[3:6] == bytes((0xA0, 3, 0xA0))
    known = llc.DeleteRkey(version=1, rkeys=(0x1235,)).answered((False,)).encode()
    assert known == make.message("llc-delete-rkey-v1-resp-neg")


@pytest.mark.smcr(59)
def test_059_the_answer_to_delete_rkey_in_version_2() -> None:
    request = llc.DeleteRkey(rkeys=tuple(range(255)))
    assert len(request.encode()) == 8 + 4 * 255
    answer = request.answered((False,) * 200 + (True,) * 55)
    assert answer.encode()[3:6] == bytes((0xA0, 255, 200))
    short = llc.decode(answer.encode()[:44])
    assert (short.response, short.negative, short.errors) == (True, True, 200)


@pytest.mark.smcr(62)
def test_062_the_answer_to_req_add_link() -> None:
    request = llc.decode(make.message("llc-req-add-link-v2"))
    assert [gid[12:] for gid in request.gids] == [bytes((10, 9, 0, 1)), bytes((10, 9, 0, 3))]
    assert llc.ReqAddLink(response=True).encode() == make.message("llc-req-add-link-v2-resp")


@pytest.mark.smcr(66)
@pytest.mark.parametrize("kind", [0x00, 0x0A, 0x0F, 0x05, 0x10, 0x20, 0x23, 0x28, 0x2A, 0x31, 0x41, 0x81, 0xA1, 0xFE])
def test_066_what_is_not_known_is_ignored(kind: int) -> None:
    data = bytes((kind,)) + make.message("llc-test-link-v2-req")[1:]
    assert llc.decode(data) == llc.Unknown(data)


@pytest.mark.smcr(66)
def test_066_what_is_too_short_is_ignored() -> None:
    data = make.message("llc-confirm-link-v2-req")
    for end in range(44):
        assert isinstance(llc.decode(data[:end]), llc.Unknown)
