# SPDX-License-Identifier: MIT OR Apache-2.0
"""Bytes as messages with named fields: SMC-R's, and those of exs itself.

Owns how a message is recognized and how its fields are shown.  The layouts of SMC-R are :mod:`exs.smc`'s; those of exs
are here, since only the native engine makes them (docs/wire/exs.md).  Invariant: any bytes give frames; what cannot be
read is a frame with an error.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, cast

from exs.errors import RemoteProtocolError
from exs.smc import clc, llc, wire

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Frame", "Value", "frames_of", "sent", "write_notice"]

Value = bool | int | str | list["Value"] | dict[str, "Value"]

HELLO, REFUSAL = b"EXS1", b"EXSR"
HELLO_BYTES, REFUSAL_BYTES, CONTROL_BYTES, NOTICE_BYTES = 56, 64, 48, 4

CONTROLS = {
    1: "ADVERT",
    2: "ACK",
    3: "CREDIT",
    4: "REVOKE",
    5: "REVOKED",
    6: "FIN",
    7: "RESET",
    8: "PING",
    9: "PONG",
    10: "LENGTH",
    11: "RING",
}
REFUSALS = {
    1: "no hello, or no version in common",
    2: "other socket type",
    3: "backlog or resources",
    4: "a path that was asked for is not to be had",
    5: "dial again by verbs",
}

HEXADECIMAL = frozenset(
    {"rkey", "rkeys", "new_rkey", "vaddr", "new_vaddr", "token", "psn", "qpn", "user_id", "key", "address"}
)
"""Numbers that people know by their hexadecimal digits."""


@dataclass(slots=True)
class Frame:
    """A message for people."""

    layer: str
    name: str
    size: int
    fields: dict[str, Value] = field(default_factory=dict[str, Value])
    error: str = ""
    place: dict[str, Value] = field(default_factory=dict[str, Value])
    """Where it was found in a capture."""


def _bits(value: int, names: dict[int, str]) -> list[Value]:
    return [name for bit, name in names.items() if value & bit]


def _address(data: bytes) -> str:
    address = ipaddress.IPv6Address(data)
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped else str(address)


def _plain(name: str, value: object) -> Value:
    """A field as text, number, list or mapping."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return f"{value:#x}" if name in HEXADECIMAL else value
    if isinstance(value, bytes):
        if len(value) == 16 and name in ("gid", "gids", "target_gid", "address"):
            return _address(value)
        if name == "subnet":
            return str(ipaddress.IPv4Address(value))
        return value.hex(":") if name == "mac" else value.hex()
    if isinstance(value, tuple):
        return [_plain(name, part) for part in cast("tuple[object, ...]", value)]
    if is_dataclass(value):
        return _fields_of(value)
    return str(value)


def _fields_of(message: object) -> dict[str, Value]:
    """The fields of a dataclass; parts that are absent are left out."""
    assert is_dataclass(message)
    named = {f.name: getattr(message, f.name) for f in fields(message)}
    return {name: _plain(name, value) for name, value in named.items() if value is not None}


# -- SMC-R ----------------------------------------------------------------------------------------------------------


def _clc(data: bytes) -> Frame:
    message = clc.decode(data)
    name = clc.NAMES[data[4]]
    shown = _fields_of(message)
    if isinstance(message, clc.Accept | clc.Confirm) and message.smcd:
        shown = {name: shown[name] for name in ("version", "first_contact", "smcd")}
    elif isinstance(message, clc.Accept | clc.Confirm):
        shown["rmbe_bytes"] = wire.rmbe_bytes(message.size_code)
        shown["mtu"] = wire.mtu_bytes(message.mtu_code)
    if isinstance(message, clc.Decline):
        shown["diagnosis"] = f"{message.diagnosis:08x}"
        shown["reason"] = clc.reason_text(message.diagnosis)
    return Frame("CLC", name, len(data), shown)


def _llc(data: bytes) -> Frame:
    message = llc.decode(data)
    if isinstance(message, llc.Unknown):
        return _unknown(data)
    shown = _fields_of(message)
    if isinstance(message, llc.DeleteLink):
        shown["reason"] = f"{message.reason:08x}"
    return Frame("LLC", message.NAME, len(data), shown)


def _cdc(data: bytes) -> Frame:
    message = wire.Cdc.decode(data)
    shown = _fields_of(message)
    shown["producer_flags"] = _bits(
        message.producer_flags,
        {
            wire.Cdc.BLOCKED: "writer blocked",
            wire.Cdc.URGENT_PENDING: "urgent pending",
            wire.Cdc.URGENT_PRESENT: "urgent present",
            wire.Cdc.UPDATE_REQUESTED: "update requested",
            wire.Cdc.VALIDATION: "failover validation",
        },
    )
    shown["state_flags"] = _bits(
        message.state_flags,
        {wire.Cdc.DONE: "sending done", wire.Cdc.CLOSED: "closed", wire.Cdc.ABORTED: "aborted"},
    )
    return Frame("CDC", "CDC", len(data), shown)


# -- exs ------------------------------------------------------------------------------------------------------------


def _hello(data: bytes) -> Frame:
    read = wire.Reader(data, "hello", 4)
    shown: dict[str, Value] = {"version": read.number(1), "lowest_version": read.number(1)}
    names = {1: "stream", 2: "seqpacket", 4: "write with immediate", 8: "rather verbs"}
    shown["flags"] = _bits(read.number(2), names)
    shown["ring_address"], shown["ring_key"] = f"{read.number(8):#x}", f"{read.number(4):#x}"
    shown["ring_bytes"], shown["credits"], shown["max_adverts"] = read.number(4), read.number(2), read.number(2)
    shown["max_write"], shown["cookie"] = read.number(4), read.take(8).hex()
    return Frame("exs", "HELLO", len(data), shown)


def _refusal(data: bytes) -> Frame:
    read = wire.Reader(data, "refusal", 4)
    version, code, length = read.number(1), read.number(1), read.number(1)
    read.skip(1)
    text = read.take(56)[:length].decode("ascii", "replace")
    shown: dict[str, Value] = {"version": version, "code": code, "reason": REFUSALS.get(code, "unknown"), "text": text}
    return Frame("exs", "REFUSAL", len(data), shown)


def _control(data: bytes) -> Frame:
    read = wire.Reader(data, "control message", 1)
    flags, credit, number, freed = read.number(1), read.number(2), read.number(4), read.number(8)
    shown: dict[str, Value] = {"flags": _bits(flags, {1: "waitall", 2: "FIN processed"}), "credits": credit}
    shown |= {"id": number, "freed": freed, "address": f"{read.number(8):#x}", "key": f"{read.number(4):#x}"}
    shown |= {"length": read.number(4), "ind": read.number(8), "seq": read.number(8)}
    return Frame("exs", CONTROLS[data[0]], len(data), shown)


def write_notice(data: bytes) -> Frame:
    """The notice of a WRITE: four bytes, sent or as immediate data."""
    word = int.from_bytes(data, "big")
    kind = {0: "direct", 1: "indirect"}.get(word >> 30, "reserved")
    shown: dict[str, Value] = {"kind": kind, "end": bool(word >> 29 & 1), "length": word & 0x1FFFFFFF}
    return Frame("exs", "NOTICE", len(data), shown)


# -- recognition ----------------------------------------------------------------------------------------------------


def _unknown(data: bytes) -> Frame:
    shown: dict[str, Value] = {"data": data[:64].hex() + ("..." if len(data) > 64 else "")}
    return Frame("", "unknown", len(data), shown, "no message that is known")


def _guarded(layer: str, decode: Callable[[bytes], Frame], data: bytes) -> Frame:
    try:
        return decode(data)
    except RemoteProtocolError as error:
        return Frame(layer, "broken", len(data), _unknown(data).fields, error.strerror or str(error))


def sent(data: bytes) -> Frame:
    """A message that went by SEND: an LLC or CDC message, or one of exs; their lengths tell them apart."""
    if data[:1] == bytes((wire.Cdc.TYPE,)) and len(data) >= wire.LLC_BYTES:
        return _guarded("CDC", _cdc, data)
    if len(data) == CONTROL_BYTES and data[0] in CONTROLS:
        return _guarded("exs", _control, data)
    if len(data) == NOTICE_BYTES:
        return write_notice(data)
    return _guarded("LLC", _llc, data)


def frames_of(data: bytes) -> list[Frame]:
    """All messages in some bytes: CLC messages and those of set-up one behind the other, or one message of a link."""
    found: list[Frame] = []
    while data:
        if data[:4] in clc.EYECATCHERS:
            try:
                size = clc.length_of(data[:8])
            except RemoteProtocolError as error:
                found.append(Frame("CLC", "broken", len(data), _unknown(data).fields, error.strerror or str(error)))
                break
            found.append(_guarded("CLC", _clc, data[:size]))
        elif data[:4] == HELLO:
            size = HELLO_BYTES
            found.append(_guarded("exs", _hello, data[:size]))
        elif data[:4] == REFUSAL:
            size = REFUSAL_BYTES
            found.append(_guarded("exs", _refusal, data[:size]))
        elif not found:
            return [sent(data)]
        else:
            found.append(_unknown(data))
            break
        data = data[size:]
    return found
