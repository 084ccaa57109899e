# SPDX-License-Identifier: MIT OR Apache-2.0
"""CLC, LLC and CDC against known messages, both ways; what each field of the captured and published ones says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exs.errors import RemoteProtocolError
from exs.smc import clc, decline, eid, llc, wire

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "data" / "smc" / "vectors.json").read_text())[
    "messages"
]


def message(name: str) -> bytes:
    return bytes.fromhex(next(v["hex"] for v in VECTORS if v["id"] == name))


def of_layer(*layers: str) -> list[Any]:
    return [pytest.param(bytes.fromhex(v["hex"]), id=v["id"]) for v in VECTORS if v["layer"] in layers]


@pytest.mark.parametrize("data", of_layer("CLC"))
def test_clc_both_ways(data: bytes) -> None:
    assert clc.length_of(data[:8]) == len(data)
    assert clc.decode(data).encode() == data


@pytest.mark.parametrize("data", of_layer("LLC"))
def test_llc_both_ways(data: bytes) -> None:
    found = llc.decode(data)
    assert not isinstance(found, llc.Unknown)
    assert found.encode() == data


@pytest.mark.parametrize("data", of_layer("CDC"))
def test_cdc_both_ways(data: bytes) -> None:
    assert wire.Cdc.decode(data).encode() == data


def test_every_vector_is_used() -> None:
    assert {v["layer"] for v in VECTORS} == {"CLC", "LLC", "CDC", "TCP"}
    assert message("tcp-option") == wire.TCP_OPTION


def test_the_captured_proposal() -> None:
    found = clc.decode(message("clc-proposal-v2only-linux61"))
    assert isinstance(found, clc.Proposal)
    assert (found.offers_v1, found.offers_v2) == (False, True)
    assert found.peer_id == bytes(8)
    assert found.ip_area is None
    assert found.v2 == clc.V2(gid=bytes(10) + b"\xff\xff\x0a\x09\x00\x01", eids=("SMCEXS",))


def test_the_published_proposals() -> None:
    four, six = clc.decode(message("clc-proposal-v1-rfc")), clc.decode(message("clc-proposal-v1-ipv6-rfc"))
    assert isinstance(four, clc.Proposal)
    assert isinstance(six, clc.Proposal)
    assert (four.version, four.offers_v1, four.offers_v2) == (1, True, False)
    assert four.ip_area == clc.Area(subnet=b"\x7f\0\0\0", prefix_length=8)
    assert six.ip_area is not None
    assert six.ip_area.ipv6 == ((bytes(15) + b"\1", 128),)


def test_a_header_of_version_2_may_offer_version_1_only() -> None:
    found = clc.decode(message("clc-proposal-v1only-linux61-form"))
    assert isinstance(found, clc.Proposal)
    assert (found.version, found.offers_v1, found.offers_v2) == (2, True, False)


def test_what_is_for_smcd_is_stepped_over() -> None:
    smcd = clc.SmcdV2(seid=b"S" * 32, devices=((b"12345678", 9), (b"abcdefgh", 10)))
    area = clc.Area(subnet=b"\x0a\0\0\0", prefix_length=8, ipv6=((b"p" * 16, 64), (b"q" * 16, 48)))
    asked = clc.Proposal(
        offers_v1=True,
        offers_v2=True,
        offers_v1_smcd=True,
        offers_v2_smcd=True,
        ism_gid=b"ISM-GID\0",
        ism_chid=7,
        ip_area=area,
        v2=clc.V2(gid=b"g" * 16, eids=("A", "B"), smcd=smcd),
    )
    assert clc.decode(asked.encode()) == asked


def test_release_1_is_understood() -> None:
    first = clc.FirstContact(release=1, max_connections=16, max_links=1, features=3, vendor=b"vend", host="h")
    asked = clc.Accept(first_contact=True, eid="X", first_contact_extension=first)
    assert len(asked.encode()) == 160
    assert clc.decode(asked.encode()) == asked
    offer = clc.V2(gid=bytes(16), eids=("X",), release=1, max_connections=20, max_links=2, features=1)
    proposal = clc.Proposal(offers_v2=True, v2=offer, vendor=b"abcdefgh")
    assert clc.decode(proposal.encode()) == proposal


@pytest.mark.parametrize("length", [28, 44])
def test_a_decline_comes_in_two_lengths(length: int) -> None:
    data = clc.Decline(version=1 if length == 28 else 2, diagnosis=clc.DECLINE_NO_UEID).encode()
    found = clc.decode(data[:7] + b"\x20" + data[8:])
    assert isinstance(found, clc.Decline)
    assert found.diagnosis == clc.DECLINE_NO_UEID
    assert clc.decode(data[:-4] + b"????") == clc.decode(data)


def test_numbers_keep_all_their_bits() -> None:
    end = clc.Accept(
        version=1, qpn=0xFFFFFE, psn=0x800001, rkey=0x80000001, token=0xFEDCBA98, vaddr=0xFEDCBA9876543210, size_code=15
    )
    assert clc.decode(end.encode()) == end


ACCEPT = message("clc-accept-v2-first")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"SMCR" + ACCEPT[4:], "no eyecatcher at the beginning"),
        (ACCEPT[:-1] + b"\0", "no eyecatcher at the end"),
        (ACCEPT[:4] + b"\5" + ACCEPT[5:], "no message type 5"),
        (ACCEPT[:7] + b"\x08" + ACCEPT[8:], "of version 0"),
        (ACCEPT[:5] + b"\0\x0b" + ACCEPT[7:], "11 bytes are no possible length"),
        (ACCEPT[:5] + b"\0\xa1" + ACCEPT[7:], "says 161 bytes and has 160"),
        (ACCEPT[:45] + b"\0" + ACCEPT[46:], "index of its element is 0"),
        (ACCEPT[:50] + b"\0" + ACCEPT[51:], "0 is no MTU code"),
        (ACCEPT[:50] + b"\x06" + ACCEPT[51:], "6 is no MTU code"),
        (ACCEPT[:7] + b"\x1a" + ACCEPT[8:], "path type 2"),
        (ACCEPT[:7] + b"\x18" + ACCEPT[8:], "wrong for version 1"),
    ],
)
def test_what_is_no_message_is_told_by_its_field(data: bytes, text: str) -> None:
    with pytest.raises(RemoteProtocolError, match=text):
        clc.decode(data)


PROPOSAL = message("clc-proposal-v1-and-v2")


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (38, b"\0\x29", "IP area"),
        (87, b"\x09", "IPv6 prefixes"),
        (88, b"\x09", "EIDs"),
        (50, b"\x02\0", "ends at byte"),
    ],
)
def test_a_proposal_whose_counts_lie(place: int, value: bytes, text: str) -> None:
    data = PROPOSAL[:place] + value + PROPOSAL[place + len(value) :]
    with pytest.raises(RemoteProtocolError, match=text):
        clc.decode(data)


def test_a_proposal_whose_length_disagrees() -> None:
    body = PROPOSAL[8:-4] + bytes(3)
    data = PROPOSAL[:5] + (len(PROPOSAL) + 3).to_bytes(2, "big") + PROPOSAL[7:8] + body + PROPOSAL[-4:]
    with pytest.raises(RemoteProtocolError, match="by its counts"):
        clc.decode(data)


# --- LLC -----------------------------------------------------------------------------------------------------------


def test_add_link_counts_by_its_bytes() -> None:
    data = message("llc-add-link-v2-req-88")
    big = data[:70] + b"\0\1" + data[72:]
    for form in (data, big, data[:70] + b"\xff\xff" + data[72:]):
        found = llc.decode(form)
        assert isinstance(found, llc.AddLink)
        assert found.keys == (llc.NewKey(0xABCD, 0xABCE, 0x7F9876540000),)


def test_add_link_is_refused_in_both_versions() -> None:
    asked = llc.decode(message("llc-add-link-v2-req-88"))
    assert isinstance(asked, llc.AddLink)
    assert asked.rejected(1).encode() == message("llc-add-link-v2-reject")
    one = replace(asked, version=1, extension=False, keys=(), v2_direct=False)
    assert one.rejected(1).encode() == message("llc-add-link-v1-reject")


def test_delete_rkey_is_answered_in_both_versions() -> None:
    two = llc.decode(message("llc-delete-rkey-v2-req"))
    assert isinstance(two, llc.DeleteRkey)
    assert two.answered([True]).encode() == message("llc-delete-rkey-v2-resp")
    one = replace(two, version=1)
    assert one.answered([False]).encode() == message("llc-delete-rkey-v1-resp-neg")
    assert replace(two, rkeys=(1, 2, 3)).answered([False, True, False]).unknown == 2
    assert replace(one, rkeys=(1, 2, 3)).answered([False, True, False]).unknown == 0xA0


def test_lengths_are_written_in_the_peers_order() -> None:
    link = llc.TestLink()
    assert link.encode()[1:3] == b"\x2c\0"
    assert link.encode(big_endian=True)[1:3] == b"\0\x2c"
    assert llc.is_big_endian(link.encode()) is False
    assert llc.is_big_endian(link.encode(big_endian=True)) is True
    assert llc.is_big_endian(llc.TestLink(version=1).encode()) is None
    assert llc.decode(link.encode(big_endian=True)) == link


def test_what_is_unknown_is_no_error() -> None:
    for data in (b"", bytes(43), bytes(44), b"\x2f" + bytes(43), b"\x31" + bytes(43), b"\xfe" + bytes(43)):
        assert isinstance(llc.decode(data), llc.Unknown)


def test_a_long_answer_to_many_keys_fits_a_message() -> None:
    answer = llc.DeleteRkey(rkeys=tuple(range(200))).answered([True] * 200)
    assert len(answer.encode()) == 44
    assert llc.decode(answer.encode()) == answer


# --- EIDs and codes ------------------------------------------------------------------------------------------------


def test_eids() -> None:
    assert eid.parse("") == ()
    assert eid.parse(" A , SMC-EXS.1 ") == ("A", "SMC-EXS.1")
    assert eid.to_wire("A") == b"A" + b" " * 31
    assert eid.from_wire(eid.to_wire("SMCEXS")) == "SMCEXS"


@pytest.mark.parametrize("text", ["a", "-A", ".A", "A_B", "A B", "A" * 33, "\xc4"])
def test_what_is_no_eid(text: str) -> None:
    with pytest.raises(ValueError, match="capital letters"):
        eid.parse(text)


def test_lists_of_eids_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="twice"):
        eid.parse("A,A")
    with pytest.raises(ValueError, match="at most 8"):
        eid.parse(",".join("ABCDEFGHI"))


def test_every_code_has_words() -> None:
    for name in decline.__all__:
        if name.startswith("DECLINE_"):
            assert "reason unknown" not in decline.reason_text(getattr(decline, name))
    assert decline.reason_text(0x12345678) == "reason unknown (12345678)"
