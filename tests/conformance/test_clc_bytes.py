# SPDX-License-Identifier: MIT OR Apache-2.0
"""Points 7 to 25, 29 and 31 of SMC-R, as far as bytes show them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import smc_messages as make

from exs import RemoteProtocolError
from exs.smc import clc, eid, wire

GID = bytes(10) + b"\xff\xff" + bytes((10, 9, 0, 1))
PEER_ID = bytes.fromhex("5a01020000000001")
MAC = PEER_ID[2:]

PROPOSAL = clc.Proposal(version=2, peer_id=PEER_ID, mac=MAC, offers_v2=True, v2=clc.V2(gid=GID, eids=("SMCEXS",)))
CONFIRM = clc.Confirm(
    version=2,
    first_contact=True,
    peer_id=PEER_ID,
    gid=GID,
    mac=MAC,
    qpn=17,
    rkey=0x1234,
    token=7,
    size_code=2,
    mtu_code=3,
    vaddr=0x7F1234560000,
    psn=0x0A0B0C,
    eid="SMCEXS",
    first_contact_extension=clc.FirstContact(host="exs-client"),
    gids=(GID,),
)


def accept_of(confirm: clc.Confirm, **changes: object) -> clc.Accept:
    names = [name for name in clc.Accept.__dataclass_fields__ if name != "gids"]
    return replace(clc.Accept(**{name: getattr(confirm, name) for name in names}), **changes)


def changed(name: str, offset: int, *values: int) -> bytes:
    data = bytearray(make.message(name))
    data[offset : offset + len(values)] = bytes(values)
    return bytes(data)


@pytest.mark.smcr(7)
@pytest.mark.parametrize(
    ("message", "kind", "length"),
    [
        (PROPOSAL, 1, 156),
        (accept_of(CONFIRM), 2, 160),
        (CONFIRM, 3, 180),
        (accept_of(CONFIRM, first_contact=False, first_contact_extension=None), 2, 108),
        (replace(CONFIRM, first_contact=False, first_contact_extension=None, gids=()), 3, 108),
        (accept_of(CONFIRM, version=1, eid="", first_contact_extension=None), 2, 68),
        (clc.Decline(version=1, peer_id=PEER_ID, diagnosis=clc.DECLINE_NO_DEVICE), 4, 28),
        (clc.Decline(version=2, peer_id=PEER_ID, diagnosis=clc.DECLINE_NO_DEVICE), 4, 44),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else type(value).__name__,
)
def test_007_header_length_and_trailer(message: clc.Message, kind: int, length: int) -> None:
    data = message.encode()
    assert len(data) == length
    assert data[:5] == b"\xe2\xd4\xc3\xd9" + bytes((kind,))
    assert int.from_bytes(data[5:7], "big") == length
    assert data[7] >> 4 == message.version
    assert data[-4:] == b"\xe2\xd4\xc3\xd9"


@pytest.mark.smcr(8)
def test_008_a_proposal_of_version_2() -> None:
    data = PROPOSAL.encode()
    assert data == make.message("clc-proposal-v2only-exs")
    assert (data[7], data[38:40], data[50:52]) == (0x22, b"\0\0", b"\0\x1c")


@pytest.mark.smcr(9)
def test_009_a_proposal_of_both_versions() -> None:
    gid = bytes.fromhex("fe80000000000000000000fffe000001")
    area = clc.Area(subnet=bytes((10, 9, 0, 0)), prefix_length=24)
    data = replace(PROPOSAL, offers_v1=True, gid=gid, ip_area=area).encode()
    assert data == make.message("clc-proposal-v1-and-v2")
    assert (data[7], data[38:40], data[50:52]) == (0x20, b"\0\x28", b"\0\x24")


@pytest.mark.smcr(10)
def test_010_the_captured_proposal() -> None:
    message = clc.decode(make.message("clc-proposal-v2only-linux61"))
    assert message == clc.Proposal(version=2, peer_id=bytes(8), offers_v2=True, v2=clc.V2(gid=GID, eids=("SMCEXS",)))


@pytest.mark.smcr(11)
def test_011_the_published_proposals() -> None:
    first = clc.decode(make.message("clc-proposal-v1-rfc"))
    assert (first.version, first.offers_v1, first.offers_v2, first.v2) == (1, True, False, None)
    assert first.ip_area == clc.Area(subnet=bytes((127, 0, 0, 0)), prefix_length=8)
    second = clc.decode(make.message("clc-proposal-v1-ipv6-rfc"))
    assert second.ip_area == clc.Area(ipv6=(clc.Prefix(address=bytes(15) + b"\x01", length=128),))


@pytest.mark.smcr(12)
def test_012_version_2_in_the_header_only() -> None:
    data = make.message("clc-proposal-v1only-linux61-form")
    message = clc.decode(data)
    assert data[7] == 0x28
    assert (message.offers_v1, message.offers_v2, message.v2) == (True, False, None)
    assert message.ip_area == clc.Area(subnet=bytes((10, 9, 0, 0)), prefix_length=24)


@pytest.mark.smcr(13)
def test_013_parts_are_found_by_their_offsets() -> None:
    prefixes = tuple(clc.Prefix(address=bytes((n,)) * 16, length=64) for n in range(8))
    smcd = clc.SmcdV2(seid=b"S" * 32, devices=tuple((bytes((n,)) * 8, n) for n in range(8)))
    message = replace(
        PROPOSAL,
        offers_v1=True,
        smcd_v1=True,
        smcd_v2=True,
        ip_area=clc.Area(ipv6=prefixes),
        v2=clc.V2(gid=GID, eids=("ONE", "TWO"), seid_present=True, smcd=smcd),
    )
    data = message.encode()
    assert len(data) == 40 + 40 + (8 + 17 * 8) + (40 + 32 * 2) + (48 + 10 * 8) + 4
    assert data[7] == 0x2F
    assert int.from_bytes(data[50:52], "big") == 36 + 17 * 8
    assert clc.decode(data) == message


@pytest.mark.smcr(14)
@pytest.mark.parametrize(
    "data",
    [
        changed("clc-proposal-v2only-linux61", 80, 0),
        changed("clc-proposal-v2only-linux61", 80, 2),
        changed("clc-proposal-v2only-linux61", 80, 9),
        changed("clc-proposal-v2only-linux61", 81, 9),
        changed("clc-proposal-v2only-linux61", 50, 0, 29),
        changed("clc-proposal-v2only-linux61", 50, 0xFF, 0xFF),
        changed("clc-proposal-v1-ipv6-rfc", 47, 0),
        changed("clc-proposal-v1-ipv6-rfc", 47, 9),
        changed("clc-proposal-v1-rfc", 39, 41),
        changed("clc-proposal-v1-and-v2", 39, 39),
    ],
)
def test_014_counts_that_disagree_with_the_length(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        clc.decode(data)


@pytest.mark.smcr(15)
def test_015_numbers_are_big_endian() -> None:
    message = replace(CONFIRM, qpn=0x010203, rkey=0x04050607, token=0x08090A0B, psn=0x141516, vaddr=0x0C0D0E0F10111213)
    data = message.encode()
    assert data[38:41] == bytes((1, 2, 3))
    assert data[41:45] == bytes((4, 5, 6, 7))
    assert data[46:50] == bytes((8, 9, 10, 11))
    assert data[52:60] == bytes(range(0x0C, 0x14))
    assert data[61:64] == bytes((0x14, 0x15, 0x16))
    assert clc.decode(data) == message


@pytest.mark.smcr(16)
def test_016_sizes_and_mtus() -> None:
    for code in range(16):
        message = clc.decode(changed("clc-accept-v2-first", 50, code << 4 | 5))
        assert wire.rmbe_bytes(message.size_code) == 16384 << code
    assert [wire.mtu_bytes(code) for code in range(1, 6)] == [256, 512, 1024, 2048, 4096]
    for code in (0, 6, 15):
        with pytest.raises(RemoteProtocolError, match="MTU"):
            clc.decode(changed("clc-accept-v2-first", 50, 0x20 | code))


@pytest.mark.smcr(17)
def test_017_the_element_of_the_buffer() -> None:
    assert CONFIRM.encode()[45] == 1
    third = clc.decode(changed("clc-accept-v2-first", 45, 3))
    assert third.base == third.vaddr + 2 * 65536
    assert clc.decode(make.message("clc-accept-v2-first")).base == 0x7F9876540000
    with pytest.raises(RemoteProtocolError, match="index 0"):
        clc.decode(changed("clc-accept-v2-first", 45, 0))


@pytest.mark.smcr(18)
def test_018_the_first_contact_extension() -> None:
    data = CONFIRM.encode()
    assert data[104:108] == bytes((0x80, 0x20, 0, 0))
    assert data[108:140] == b"exs-client".ljust(32)
    assert clc.decode(data).first_contact_extension == clc.FirstContact(host="exs-client")
    indirect = clc.decode(changed("clc-accept-v2-first", 104, 0)).first_contact_extension
    assert not indirect.v2_direct


@pytest.mark.smcr(19)
def test_019_the_gids_of_a_confirm() -> None:
    other = bytes(10) + b"\xff\xff" + bytes((10, 9, 1, 1))
    data = replace(CONFIRM, gids=(GID, other)).encode()
    assert len(data) == 164 + 2 * 16
    assert data[156:160] == bytes((2, 0, 0, 0))
    assert data[160:192] == GID + other
    assert make.message("clc-confirm-v2-first-1gid") == CONFIRM.encode()


@pytest.mark.smcr(21)
def test_021_a_proposal_without_version_1_has_peer_id_and_mac() -> None:
    data = PROPOSAL.encode()
    assert data[8:16] == PEER_ID
    assert data[32:38] == MAC


@pytest.mark.smcr(23)
def test_023_the_first_known_eid_of_the_client() -> None:
    offered = clc.decode(replace(PROPOSAL, v2=clc.V2(gid=GID, eids=("NO", "B.2", "A-1"))).encode()).v2.eids
    chosen = eid.choose(offered, {"A-1", "B.2"})
    assert accept_of(CONFIRM, eid=chosen).encode()[64:96] == b"B.2".ljust(32)
    assert eid.choose(offered, {"OTHER"}) is None


@pytest.mark.smcr(25)
@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("A", True),
        ("9.A-Z", True),
        ("A" * 32, True),
        ("", False),
        ("A" * 33, False),
        ("a", False),
        ("-A", False),
        (".A", False),
        ("A B", False),
        ("A ", False),
        ("A_B", False),
        ("Ä", False),
        ("A\0", False),
        ("A\n", False),
    ],
)
def test_025_what_an_eid_may_be(text: str, valid: bool) -> None:
    assert eid.is_eid(text) is valid
    if valid:
        assert eid.padded(text) == text.encode().ljust(32, b" ")


@pytest.mark.smcr(29)
@pytest.mark.parametrize(("version", "length", "byte"), [(1, 28, 0x10), (2, 44, 0x20)])
def test_029_the_two_forms_of_a_decline(version: int, length: int, byte: int) -> None:
    message = clc.Decline(version=version, peer_id=PEER_ID, diagnosis=clc.DECLINE_NO_DEVICE)
    data = message.encode()
    assert (len(data), data[7]) == (length, byte)
    assert clc.decode(data) == message
    assert replace(message, out_of_sync=True).encode()[7] == byte | 0x08


@pytest.mark.smcr(31)
@pytest.mark.parametrize(
    "header",
    [
        "e2d4c3d801009c22",
        "e2d4c3d900009c22",
        "e2d4c3d905009c22",
        "e2d4c3d901009c02",
        "e2d4c3d90200a038",
        "e2d4c3d901000722",
        "e2d4c3d901ffff22",
        "e2d4c3d902000010",
        "e2d4c3d904002d10",
        "0000000000000000",
        "e2d4c3d901009c",
    ],
)
def test_031_a_header_that_cannot_be(header: str) -> None:
    with pytest.raises(RemoteProtocolError):
        clc.length_of(bytes.fromhex(header))
