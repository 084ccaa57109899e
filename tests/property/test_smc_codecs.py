# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every message of SMC-R there and back, and every string of bytes: a message, or RemoteProtocolError, nothing else."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from exs.errors import RemoteProtocolError
from exs.smc import clc, llc
from exs.smc.wire import Cdc

KNOWN = [
    bytes.fromhex(v["hex"])
    for v in json.loads((Path(__file__).parents[1] / "data" / "smc" / "vectors.json").read_text())["messages"]
]

u8, u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))
u3 = st.integers(0, 2**24 - 1)
gid, mac, ident = (st.binary(min_size=n, max_size=n) for n in (16, 6, 8))
names = st.text("AZ09", min_size=1, max_size=32)
eids = st.lists(names, max_size=8).map(tuple)
areas = st.builds(
    clc.Area,
    subnet=st.binary(min_size=4, max_size=4),
    prefix_length=u8,
    ipv6=st.lists(st.tuples(gid, u8), max_size=8).map(tuple),
)
extensions = st.builds(clc.V2, gid=gid, eids=eids, release=st.integers(0, 15), has_seid=st.booleans(), features=u16)
firsts = st.builds(
    clc.FirstContact,
    v2_direct=st.booleans(),
    os_type=st.integers(0, 15),
    release=st.integers(0, 15),
    host=st.text("az09.-", max_size=32),
    max_connections=u8,
    max_links=u8,
)


@st.composite
def proposals(draw: st.DrawFn) -> clc.Proposal:
    version, v1, v2 = draw(st.sampled_from([1, 2])), draw(st.booleans()), draw(st.booleans())
    v1, v2 = v1 or version == 1, v2 and version > 1
    return clc.Proposal(
        version=version,
        peer_id=draw(ident),
        gid=draw(gid),
        mac=draw(mac),
        offers_v1=v1,
        offers_v2=v2,
        ip_area=draw(areas) if v1 else None,
        v2=draw(extensions) if v2 else None,
    )


@st.composite
def ends(draw: st.DrawFn) -> clc.Accept | clc.Confirm:
    version, first = draw(st.sampled_from([1, 2])), draw(st.booleans())
    kind = draw(st.sampled_from([clc.Accept, clc.Confirm]))
    extension = draw(firsts) if version > 1 and first else None
    more = {"gids": tuple(draw(st.lists(gid, max_size=3)))} if kind is clc.Confirm and extension else {}
    return kind(
        version=version,
        first_contact=first,
        peer_id=draw(ident),
        gid=draw(gid),
        mac=draw(mac),
        qpn=draw(u3),
        psn=draw(u3),
        rkey=draw(u32),
        token=draw(u32),
        vaddr=draw(u64),
        rmbe_index=draw(st.integers(1, 255)),
        size_code=draw(st.integers(0, 15)),
        mtu_code=draw(st.integers(1, 5)),
        eid=draw(names) if version > 1 else "",
        first_contact_extension=extension,
        **more,  # type: ignore[arg-type]  # of Confirm only
    )


new_keys = st.builds(llc.NewKey, u32, u32, u64)
others = st.builds(llc.OtherKey, u8, u32, u64)
versions = {"version": st.sampled_from([1, 2]), "response": st.booleans()}


@st.composite
def confirm_rkeys(draw: st.DrawFn) -> llc.ConfirmRkey:
    found = tuple(draw(st.lists(others, max_size=2)))
    more = draw(st.integers(2, 255)) if len(found) == 2 else len(found)
    flags = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    return llc.ConfirmRkey(
        version=draw(st.sampled_from([1, 2])),
        response=flags[0],
        negative=flags[1],
        retry=flags[2],
        rkey=draw(u32),
        vaddr=draw(u64),
        count=more,
        others=found,
    )


llcs = st.one_of(
    st.builds(
        llc.ConfirmLink, **versions, mac=mac, gid=gid, qpn=u3, number=u8, user_id=u32, no_eyecatchers=st.booleans()
    ),
    st.builds(
        llc.AddLink,
        **versions,
        mac=mac,
        gid=gid,
        qpn=u3,
        number=u8,
        mtu_code=st.integers(0, 15),
        psn=u3,
        reject=st.booleans(),
    ),
    st.builds(
        llc.AddLink,
        version=st.just(2),
        extension=st.just(True),
        v2_direct=st.booleans(),
        target_gid=gid,
        keys=st.lists(new_keys, max_size=255).map(tuple),
    ),
    st.builds(llc.AddLinkCont, number=u8, left=st.just(2), keys=st.lists(new_keys, min_size=2, max_size=2).map(tuple)),
    st.builds(llc.DeleteLink, **versions, all_links=st.booleans(), orderly=st.booleans(), number=u8, reason=u32),
    st.builds(llc.ReqAddLink, gids=st.lists(gid, max_size=8).map(tuple)),
    confirm_rkeys(),
    st.builds(llc.TestLink, **versions, data=gid),
    st.builds(llc.ConfirmRkeyCont, left=st.just(3), others=st.lists(others, min_size=3, max_size=3).map(tuple)),
    st.builds(llc.DeleteRkey, version=st.just(1), rkeys=st.lists(u32, max_size=8).map(tuple), unknown=u8),
    st.builds(llc.DeleteRkey, version=st.just(2), rkeys=st.lists(u32, max_size=255).map(tuple)),
)


declines = st.builds(clc.Decline, version=st.just(2), diagnosis=u32, out_of_sync=st.booleans())


@given(st.one_of(proposals(), ends(), declines))
def test_clc_there_and_back(message: clc.Message) -> None:
    data = message.encode()
    assert clc.length_of(data[:8]) == len(data)
    assert clc.decode(data) == message


@given(llcs, st.booleans())
def test_llc_there_and_back(message: llc.Message, big_endian: bool) -> None:
    assert llc.decode(message.encode(big_endian=big_endian)) == message


def survives(data: bytes) -> None:
    """Only the one exception, and what is understood is said again without trouble."""
    with contextlib.suppress(RemoteProtocolError):
        clc.length_of(data[:8])
    with contextlib.suppress(RemoteProtocolError):
        clc.decode(data).encode()
    with contextlib.suppress(RemoteProtocolError):
        found = llc.decode(data)
        if not isinstance(found, llc.Unknown):
            found.encode()
    with contextlib.suppress(RemoteProtocolError):
        Cdc.decode(data).encode()


@given(st.binary(max_size=300))
def test_garbage(data: bytes) -> None:
    survives(data)


@settings(max_examples=400)
@given(st.sampled_from(KNOWN), st.lists(st.tuples(st.integers(0, 200), u8), max_size=4), st.integers(-60, 20))
def test_known_messages_with_changed_bytes(data: bytes, changes: list[tuple[int, int]], longer: int) -> None:
    changed = bytearray(data[:longer] if longer < 0 else data + bytes(longer))
    for place, value in changes:
        if place < len(changed):
            changed[place] = value
    survives(bytes(changed))
    if len(changed) >= 12 and changed[:4] == data[:4]:  # with a length that fits, so that more is looked at
        changed[5:7] = len(changed).to_bytes(2, "big")
        changed[-4:] = data[:4]
        survives(bytes(changed))


def test_every_message_cut_at_every_byte() -> None:
    for data in KNOWN:
        for end in range(len(data)):
            survives(data[:end])
