# SPDX-License-Identifier: MIT OR Apache-2.0
"""Messages of SMC-R survive the wire, and bytes that are none raise RemoteProtocolError and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import smc_messages as make
from hypothesis import example, given
from hypothesis import strategies as st

from exs import RemoteProtocolError
from exs.smc import clc, llc, wire

KNOWN = {layer: list(make.messages(layer).values()) for layer in ("CLC", "LLC", "CDC")}
DECODERS: dict[str, Callable[[bytes], object]] = {"CLC": clc.decode, "LLC": llc.decode, "CDC": wire.Cdc.decode}


@st.composite
def mutated(draw: st.DrawFn, layer: str) -> bytes:
    """A message of the layer with some bytes changed, some cut off or appended."""
    data = bytearray(draw(st.sampled_from(KNOWN[layer])))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(make.u8)
    end = draw(st.integers(0, len(data)))
    return bytes(data[:end]) if draw(st.booleans()) else bytes(data) + draw(st.binary(max_size=64))


def taken(decoder: Callable[[bytes], object], data: bytes) -> object:
    """What was made of the bytes; ``None`` if they were refused as they may be."""
    try:
        return decoder(data)
    except RemoteProtocolError:
        return None


@given(make.clc_messages)
def test_a_clc_message_comes_back(message: clc.Message) -> None:
    data = message.encode()
    assert clc.length_of(data[:8]) == len(data)
    assert clc.decode(data) == message


@given(make.llc_messages, st.booleans())
def test_an_llc_message_comes_back(message: llc.Message, big_endian: bool) -> None:
    data = message.encode(big_endian=big_endian)
    assert 44 <= len(data) <= 8192
    assert llc.decode(data) == message
    if message.version == 2 and data[1] != data[2]:
        assert llc.is_big_endian(data) is big_endian


@given(make.cdcs)
def test_a_cdc_message_comes_back(message: wire.Cdc) -> None:
    assert wire.Cdc.decode(message.encode()) == message


@given(make.clc_messages, st.data())
def test_a_clc_message_that_is_cut_is_refused(message: clc.Message, data: st.DataObject) -> None:
    whole = message.encode()
    with pytest.raises(RemoteProtocolError):
        clc.decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(make.llc_messages, st.data())
def test_an_llc_message_that_is_cut_is_never_taken_for_another(message: llc.Message, data: st.DataObject) -> None:
    whole = message.encode()
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    made = taken(llc.decode, cut)
    if len(cut) < 44:
        assert made == llc.Unknown(cut)
    else:
        assert made is None or type(made) is type(message)


@pytest.mark.parametrize("layer", DECODERS)
@given(data=st.binary(max_size=300))
def test_noise_is_refused_or_taken_for_a_message(layer: str, data: bytes) -> None:
    taken(DECODERS[layer], data)


@given(mutated("CLC"))
@example(bytes.fromhex("e2d4c3d901003410") + bytes(31) + b"\x28" + bytes(8) + wire.EYECATCHER)
def test_clc_with_changed_bytes(data: bytes) -> None:
    made = taken(clc.decode, data)
    if made is not None and not getattr(made, "smcd", False):
        assert clc.decode(made.encode()) == made  # type: ignore[attr-defined]


@given(mutated("LLC"))
def test_llc_with_changed_bytes(data: bytes) -> None:
    made = taken(llc.decode, data)
    if made is not None and not isinstance(made, llc.Unknown):
        assert llc.decode(made.encode()) == made  # type: ignore[attr-defined]


@given(mutated("CDC"))
def test_cdc_with_changed_bytes(data: bytes) -> None:
    made = taken(wire.Cdc.decode, data)
    assert made is None or wire.Cdc.decode(made.encode()) == made  # type: ignore[attr-defined]


@given(st.binary(max_size=16))
def test_a_header_has_a_length_or_is_refused(header: bytes) -> None:
    length = taken(clc.length_of, header)
    assert length is None or 28 <= length <= 4248  # type: ignore[operator]
