# SPDX-License-Identifier: MIT OR Apache-2.0
"""CLC, LLC and CDC against bytes that other implementations sent, or that were made from the layout by hand."""

from __future__ import annotations

import errno

import pytest
import smc_messages as make

import exs
from exs import RemoteProtocolError
from exs.smc import clc, eid, llc, wire


@pytest.mark.parametrize("name", make.messages("CLC"))
def test_clc_both_ways(name: str) -> None:
    data = make.message(name)
    assert clc.length_of(data[:8]) == len(data)
    assert clc.decode(data).encode() == data


@pytest.mark.parametrize("name", make.messages("LLC"))
def test_llc_both_ways(name: str) -> None:
    data = make.message(name)
    message = llc.decode(data)
    assert not isinstance(message, llc.Unknown)
    if name == "llc-confirm-link-v2-resp":
        assert message.response
    assert message.encode() == data


@pytest.mark.parametrize("name", make.messages("CDC"))
def test_cdc_both_ways(name: str) -> None:
    data = make.message(name)
    assert wire.Cdc.decode(data).encode() == data


def test_every_kind_of_message_is_there() -> None:
    kinds = {type(clc.decode(data)) for data in make.messages("CLC").values()}
    assert kinds == {clc.Proposal, clc.Accept, clc.Confirm, clc.Decline}
    seen = {type(llc.decode(data)) for data in make.messages("LLC").values()}
    assert seen == set(llc.Message.__args__) - {llc.ConfirmRkeyCont}
    assert make.message("tcp-option") == wire.TCP_OPTION


@pytest.mark.parametrize("layer", ["CLC", "CDC"])
def test_a_message_that_is_cut_anywhere_is_refused(layer: str) -> None:
    decode = clc.decode if layer == "CLC" else wire.Cdc.decode
    for data in make.messages(layer).values():
        for end in range(len(data)):
            with pytest.raises(RemoteProtocolError):
                decode(data[:end])


def test_an_llc_message_that_is_cut_is_ignored_or_refused() -> None:
    for data in make.messages("LLC").values():
        for end in range(44):
            assert llc.decode(data[:end]) == llc.Unknown(data[:end])
    data = make.message("llc-add-link-v2-req-88")
    for end in range(45, 88):
        if end == 72:
            assert llc.decode(data[:end]).extension.keys == ()
        else:
            with pytest.raises(RemoteProtocolError):
                llc.decode(data[:end])


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(RemoteProtocolError, match="RMBE index 0") as caught:
        clc.decode(changed("clc-accept-v2-first", 45, 0))
    assert caught.value.errno == errno.EPROTO
    assert isinstance(caught.value, exs.ProtocolError)
    assert isinstance(caught.value, OSError)


def changed(name: str, offset: int, value: int) -> bytes:
    data = bytearray(make.message(name))
    data[offset] = value
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "offset", "value"),
    [
        ("clc-proposal-v2only-linux61", 0, 0xE3),
        ("clc-proposal-v2only-linux61", 4, 0),
        ("clc-proposal-v2only-linux61", 4, 5),
        ("clc-proposal-v2only-linux61", 6, 0x9D),
        ("clc-proposal-v2only-linux61", 7, 0x02),
        ("clc-proposal-v2only-linux61", 155, 0),
        ("clc-accept-v2-first", 7, 0x38),
        ("clc-accept-v2-first", 7, 0x2A),
        ("clc-accept-v1-first", 67, 0),
        ("clc-confirm-v2-first-1gid", 156, 2),
        ("clc-decline-v1", 6, 29),
    ],
)
def test_a_byte_that_cannot_be(name: str, offset: int, value: int) -> None:
    with pytest.raises(RemoteProtocolError):
        clc.decode(changed(name, offset, value))


def test_a_decline_is_taken_without_its_trailer() -> None:
    assert clc.decode(changed("clc-decline-v1", 27, 0)) == clc.decode(make.message("clc-decline-v1"))


def test_an_answer_for_smcd_is_recognized() -> None:
    data = wire.EYECATCHER_SMCD + bytes.fromhex("02003011") + bytes(36) + wire.EYECATCHER_SMCD
    message = clc.decode(data)
    assert isinstance(message, clc.Accept)
    assert message.smcd
    with pytest.raises(ValueError, match="SMC-D"):
        message.encode()


def test_a_proposal_of_a_later_version_is_read_as_version_2() -> None:
    data = changed("clc-proposal-v2only-linux61", 7, 0x32)
    assert clc.decode(data) == clc.decode(make.message("clc-proposal-v2only-linux61"))


def test_version_2_1_is_read() -> None:
    data = bytearray(make.message("clc-proposal-v2only-exs"))
    data[83] = 0x10
    data[104:108] = bytes((255, 1, 0, 3))
    v2 = clc.decode(bytes(data)).v2
    assert (v2.release, v2.max_connections, v2.max_links, v2.feature_mask) == (1, 255, 1, 3)
    data = bytearray(make.message("clc-accept-v2-first"))
    data[105], data[140:148] = 0x21, bytes((32, 1, 0, 0, 1, 2, 3, 4))
    first = clc.decode(bytes(data)).first_contact_extension
    assert (first.release, first.max_connections, first.max_links) == (1, 32, 1)
    assert first.vendor_options == bytes((1, 2, 3, 4))


def test_a_value_that_does_not_fit_is_refused() -> None:
    accept = clc.decode(make.message("clc-accept-v2-first"))
    for field, value in (("qpn", 1 << 24), ("gid", b""), ("mtu_code", 6), ("size_code", 16), ("eid", "A" * 33)):
        with pytest.raises(ValueError, match=r"."):
            clc.replace(accept, **{field: value}).encode()
    with pytest.raises(ValueError, match="version 2"):
        llc.AddLinkCont(version=2, number=1).encode()
    with pytest.raises(ValueError, match="at most 8"):
        llc.DeleteRkey(version=1, rkeys=tuple(range(9))).encode()


def test_every_reason_has_words() -> None:
    named = {value for name, value in vars(clc).items() if name.startswith("DECLINE_")}
    assert named <= set(clc.REASONS)
    assert clc.reason_text(clc.DECLINE_NO_UEID) == "no enterprise id in common"
    assert clc.reason_text(0x12345678) == "reason 12345678"


def test_sizes_and_codes() -> None:
    for row in make.arithmetic("rmbe_size_nibble"):
        assert wire.rmbe_bytes(row["nibble"]) == row["bytes"]
        assert wire.rmbe_code(row["bytes"]) == row["nibble"]
    assert [wire.rmbe_code(n) for n in (1, 16384, 16385, 1 << 40)] == [0, 0, 1, 15]
    assert [wire.mtu_bytes(code) for code in range(1, 6)] == [256, 512, 1024, 2048, 4096]
    for code in (0, 6):
        with pytest.raises(RemoteProtocolError):
            wire.mtu_bytes(code)


def test_what_is_said_of_eids() -> None:
    assert eid.padded("SMCEXS") == b"SMCEXS" + b" " * 26
    assert eid.text(eid.padded("A.B-9")) == "A.B-9"
    for bad in (b"", b" " * 32, b"smcexs".ljust(32), b"A B".ljust(32), b"A".ljust(32, b"\0")):
        with pytest.raises(ValueError, match="enterprise id"):
            eid.text(bad)
    for bad_text in ("", "-A", "a", "A_B", "A" * 33, "É"):
        with pytest.raises(ValueError, match="enterprise id"):
            eid.padded(bad_text)
    assert eid.choose(("C", "B", "A"), {"A", "B"}) == "B"
    assert eid.choose(("C",), ("A",)) is None


def test_eids_from_the_environment(setenv) -> None:
    setenv(EXS_SMC_EID="SMCEXS, OTHER.1")
    assert exs._config.resolve(None).smc_eid == ("SMCEXS", "OTHER.1")
    assert exs._config.resolve(exs.Options(smc_eid=("MINE",))).smc_eid == ("MINE",)
    setenv(EXS_SMC_EID="")
    assert exs._config.resolve(None).smc_eid == ()
