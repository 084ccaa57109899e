# SPDX-License-Identifier: MIT OR Apache-2.0
"""SMC-R messages for tests: bytes from tests/data/smc, and hypothesis strategies for values."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import strategies as st

from exs.smc import clc, llc, wire

DATA = Path(__file__).resolve().parent.parent / "data" / "smc"


def messages(layer: str) -> dict[str, bytes]:
    """Name and bytes of each message of a layer: CLC, LLC, CDC or TCP."""
    rows = json.loads((DATA / "messages.json").read_text())
    return {row["name"]: bytes.fromhex(row["hex"]) for row in rows if row["layer"] == layer}


def message(name: str) -> bytes:
    """The bytes of one message."""
    return next(
        bytes.fromhex(row["hex"]) for row in json.loads((DATA / "messages.json").read_text()) if row["name"] == name
    )


def arithmetic(op: str) -> list[dict[str, object]]:
    """The examples of one kind."""
    return [row for row in json.loads((DATA / "arithmetic.json").read_text()) if row["op"] == op]


u8, u16, u24, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 24, 32, 64))
nibble = st.integers(0, 15)


def some(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


def few(values: st.SearchStrategy, most: int) -> st.SearchStrategy[tuple]:
    """None, some, or as many as there may be, which then are alike: a value of its own for each takes seconds."""
    full = values.map(lambda value: (value,) * most)
    return st.lists(values, max_size=min(3, most)).map(tuple) | full


text = st.binary(max_size=32).map(lambda data: data.rstrip(b" ").decode("latin-1"))

areas = st.builds(
    clc.Area,
    subnet=some(4),
    prefix_length=u8,
    ipv6=few(st.builds(clc.Prefix, address=some(16), length=u8), wire.MOST_PREFIXES),
)
isms = st.builds(clc.Ism, gid=some(8), chid=u16, vendor_oui=some(3), vendor_options=some(5))
smcd_parts = st.builds(clc.SmcdV2, seid=some(32), devices=few(st.tuples(some(8), u16), wire.MOST_EIDS))
v2_parts = st.builds(
    clc.V2,
    gid=some(16),
    eids=few(text, wire.MOST_EIDS),
    release=nibble,
    seid_present=st.booleans(),
    max_connections=u8,
    max_links=u8,
    feature_mask=u16,
    smcd=st.none() | smcd_parts,
)
first_contacts = st.builds(
    clc.FirstContact,
    v2_direct=st.booleans(),
    os_type=nibble,
    release=nibble,
    host=text,
    max_connections=u8,
    max_links=u8,
    feature_mask=u16,
    vendor_options=some(4),
)


@st.composite
def proposals(draw: st.DrawFn) -> clc.Proposal:
    version = draw(st.sampled_from((1, 2)))
    v1, d1, v2, d2 = (draw(st.booleans()) for _ in range(4))
    v2, d2 = v2 and version == 2, d2 and version == 2
    ism = draw(st.none() | isms.filter(lambda i: i != clc.Ism()))
    if version == 1 and not (v1 or d1):
        ism = None  # nothing says then that the area is there
    return clc.Proposal(
        version=version,
        peer_id=draw(some(8)),
        gid=draw(some(16)),
        mac=draw(some(6)),
        offers_v1=v1,
        smcd_v1=d1,
        offers_v2=v2,
        smcd_v2=d2,
        ism=ism,
        ip_area=draw(areas) if v1 or d1 else None,
        v2=draw(v2_parts) if v2 or d2 else None,
    )


@st.composite
def answers(draw: st.DrawFn, kind: type[clc.Accept | clc.Confirm]) -> clc.Accept | clc.Confirm:
    version, first = draw(st.sampled_from((1, 2))), draw(st.booleans())
    extension = draw(first_contacts) if version == 2 and (first or draw(st.booleans())) else None
    with_gids = kind is clc.Confirm and extension is not None
    return kind(
        version=version,
        first_contact=first,
        peer_id=draw(some(8)),
        gid=draw(some(16)),
        mac=draw(some(6)),
        qpn=draw(u24),
        rkey=draw(u32),
        token=draw(u32),
        size_code=draw(nibble),
        mtu_code=draw(st.integers(1, 5)),
        vaddr=draw(u64),
        psn=draw(u24),
        rmbe_index=draw(st.integers(1, 255)),
        eid=draw(text) if version == 2 else "",
        first_contact_extension=extension,
        **({"gids": draw(few(some(16), 255))} if with_gids else {}),
    )


@st.composite
def declines(draw: st.DrawFn) -> clc.Decline:
    version = draw(st.sampled_from((1, 2)))
    return clc.Decline(
        version=version,
        peer_id=draw(some(8)),
        diagnosis=draw(u32),
        out_of_sync=draw(st.booleans()),
        os_type=draw(nibble),
        more=draw(st.tuples(u32, u32, u32, u32)) if version == 2 else (0, 0, 0, 0),
    )


clc_messages = st.one_of(proposals(), answers(clc.Accept), answers(clc.Confirm), declines())

new_keys = st.builds(llc.NewLinkKey, rkey=u32, new_rkey=u32, new_vaddr=u64)
link_keys = st.builds(llc.LinkKey, number=u8, rkey=u32, vaddr=u64)
flag = st.booleans()
either = st.sampled_from((1, 2))


@st.composite
def counted(draw: st.DrawFn, kind: type, keys: st.SearchStrategy, room: int, **fields: st.SearchStrategy) -> object:
    """A message with some entries, of which more may follow elsewhere if it is full."""
    entries = draw(few(keys, room))
    more = draw(st.integers(0, 255 - room)) if len(entries) == room else 0
    return kind(keys=entries, more=more, response=draw(flag), **{name: draw(value) for name, value in fields.items()})


@st.composite
def add_links(draw: st.DrawFn) -> llc.AddLink:
    version = draw(either)
    extension = st.builds(llc.AddLinkV2, v2_direct=flag, target_gid=some(16), keys=few(new_keys, 255))
    return llc.AddLink(
        version=version,
        response=draw(flag),
        mac=draw(some(6)),
        gid=draw(some(16)),
        qpn=draw(u24),
        number=draw(u8),
        mtu_code=draw(nibble),
        psn=draw(u24),
        reject=draw(flag),
        reason=draw(nibble) if version == 1 else 0,
        extension=draw(st.none() | extension) if version == 2 else None,
    )


@st.composite
def delete_rkeys(draw: st.DrawFn) -> llc.DeleteRkey:
    version, response = draw(either), draw(flag)
    rkeys = draw(few(u32, 8 if version == 1 else 255))
    return llc.DeleteRkey(version=version, response=response, rkeys=rkeys, negative=draw(flag), errors=draw(u8))


llc_messages = st.one_of(
    st.builds(
        llc.ConfirmLink,
        version=either,
        response=flag,
        mac=some(6),
        gid=some(16),
        qpn=u24,
        number=u8,
        user_id=u32,
        max_links=u8,
        no_eyecatchers=flag,
    ),
    add_links(),
    counted(llc.AddLinkCont, new_keys, 2, version=st.just(1), number=u8),
    st.builds(llc.DeleteLink, version=either, response=flag, number=u8, reason=u32, all_links=flag, orderly=flag),
    st.builds(llc.ReqAddLink, response=flag, gids=few(some(16), 255)),
    counted(llc.ConfirmRkey, link_keys, 2, version=either, rkey=u32, vaddr=u64, negative=flag, retry=flag),
    st.builds(llc.TestLink, version=either, response=flag, data=some(16)),
    counted(llc.ConfirmRkeyCont, link_keys, 3, version=st.just(1)),
    delete_rkeys(),
)

cursors = st.builds(wire.Cursor, wrap=u16, count=u32)
cdcs = st.builds(
    wire.Cdc, sequence=u16, token=u32, producer=cursors, consumer=cursors, producer_flags=u8, state_flags=u8
)
