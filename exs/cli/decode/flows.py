# SPDX-License-Identifier: MIT OR Apache-2.0
"""Messages out of the segments of a capture: CLC and MPA over TCP, SENDs over RoCEv2.

Owns the order of TCP's bytes and the pieces of a SEND.  Invariant: what is kept for a connection has a bound, and so
has the number of connections; a capture with gaps loses messages, and never yields wrong ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from exs.cli.decode import frames
from exs.cli.decode.capture import TCP, Segment
from exs.errors import RemoteProtocolError
from exs.smc import clc, wire

if TYPE_CHECKING:
    from exs.cli.decode.frames import Frame

__all__ = ["Flows"]

ROCE_PORT = 4791
MOST_FLOWS = 65536
MOST_KEPT = 256 * 1024
"""Bytes of a TCP direction that wait for bytes before them, or for the rest of a message."""
MPA_FRAME = b"MPA ID Re"

# Opcodes of a reliable connection: (first piece, last piece, bytes between the header and the payload).
_SENDS = {
    0x00: (True, False, 0),
    0x01: (False, False, 0),
    0x02: (False, True, 0),
    0x03: (False, True, 4),
    0x04: (True, True, 0),
    0x05: (True, True, 4),
    0x16: (False, True, 4),
    0x17: (True, True, 4),
}
_IMMEDIATE = {0x09: 12, 0x0B: 28}
"""WRITEs whose last packet carries immediate data, and where it is."""
_DATAGRAM = 0x64


@dataclass(slots=True)
class _Direction:
    """The bytes of one direction of a TCP connection, in order."""

    next: int | None = None
    data: bytearray = field(default_factory=bytearray)
    early: dict[int, bytes] = field(default_factory=dict[int, bytes])
    protocol: str = ""
    message: bytearray = field(default_factory=bytearray)
    over: bool = False
    """Nothing that follows is looked at."""

    def end(self) -> list[Frame]:
        """Look at nothing more."""
        self.over = True
        self.data.clear()
        self.early.clear()
        self.message.clear()
        return []

    def take(self, segment: Segment) -> None:
        """Put a segment where it belongs."""
        if segment.syn:
            self.next = (segment.sequence + 1) & 0xFFFFFFFF
            return
        if self.next is None:  # the capture began later: from here on it counts
            self.next = segment.sequence
        if segment.payload and len(self.data) + sum(map(len, self.early.values())) < MOST_KEPT:
            self.early.setdefault(segment.sequence, segment.payload)
        for sequence in sorted(self.early, key=lambda s: (s - (self.next or 0) + 0x80000000) & 0xFFFFFFFF):
            behind = (self.next - sequence) & 0xFFFFFFFF
            if behind >= 0x80000000:
                break
            fresh = self.early.pop(sequence)[behind:]
            self.data += fresh
            self.next = (self.next + len(fresh)) & 0xFFFFFFFF


class Flows:
    """All connections of a capture."""

    def __init__(self) -> None:
        self._tcp: dict[tuple[str, str, tuple[int, int]], _Direction] = {}
        self._roce: dict[tuple[str, str, int], bytearray | None] = {}

    def take(self, segment: Segment) -> list[Frame]:
        """The messages that a segment completes."""
        if segment.protocol == TCP:
            found = self._take_tcp(segment)
        else:
            found = self._take_roce(segment) if segment.ports[1] == ROCE_PORT else []
        for frame in found:
            source, destination = segment.source, segment.destination
            if segment.protocol == TCP:
                source, destination = f"{source}:{segment.ports[0]}", f"{destination}:{segment.ports[1]}"
            place: dict[str, frames.Value] = {"packet": segment.packet.number, "time": f"{segment.packet.time:.6f}"}
            frame.place = place | {"source": source, "destination": destination} | frame.place
        return found

    # -- TCP --------------------------------------------------------------------------------------------------------

    def _take_tcp(self, segment: Segment) -> list[Frame]:
        key = (segment.source, segment.destination, segment.ports)
        if segment.syn or key not in self._tcp:
            if len(self._tcp) >= MOST_FLOWS:
                return []
            self._tcp[key] = _Direction()
        direction = self._tcp[key]
        if not direction.over:
            direction.take(segment)
        found: list[Frame] = []
        while (more := self._next_of(direction)) is not None:
            found += more
        return found

    def _next_of(self, direction: _Direction) -> list[Frame] | None:
        """What the bytes at hand begin with; ``None`` if more are needed."""
        data = direction.data
        if direction.over or (not direction.protocol and len(data) < len(MPA_FRAME)):
            return None
        if direction.protocol == "fpdu":
            return _fpdu(direction)
        if bytes(data[:4]) in clc.EYECATCHERS:
            return _clc(direction)
        if data.startswith(MPA_FRAME):
            return _mpa(direction)
        return direction.end()

    # -- RoCEv2 -----------------------------------------------------------------------------------------------------

    def _take_roce(self, segment: Segment) -> list[Frame]:
        data = segment.payload
        if len(data) < 16:
            return []
        opcode, pad, queue_pair = data[0], data[1] >> 4 & 3, int.from_bytes(data[5:8], "big")
        where: dict[str, frames.Value] = {"queue_pair": f"{queue_pair:#x}"}
        body = data[12 : len(data) - 4 - pad]
        if opcode == _DATAGRAM and queue_pair == 1:
            return _located(_inside(body), where)
        if opcode in _IMMEDIATE:
            at = _IMMEDIATE[opcode]
            return _located([frames.write_notice(data[at : at + 4])], where) if len(data) >= at + 8 else []
        if opcode not in _SENDS:
            return []
        first, last, skipped = _SENDS[opcode]
        key = (segment.source, segment.destination, queue_pair)
        if key not in self._roce and len(self._roce) >= MOST_FLOWS:
            return []
        kept = bytearray() if first else self._roce.get(key)
        if kept is not None:
            kept += body[skipped:]
            if len(kept) > wire.LLC_MOST_BYTES:
                kept = None  # no message of ours is so long
        self._roce[key] = None if last else kept
        return _located([frames.sent(bytes(kept))], where) if last and kept else []


def _located(found: list[Frame], where: dict[str, frames.Value]) -> list[Frame]:
    for frame in found:
        frame.place = where
    return found


def _inside(data: bytes) -> list[Frame]:
    """The hello or refusal in the private data of a set-up message, wherever that puts it."""
    for magic, size in ((frames.HELLO, frames.HELLO_BYTES), (frames.REFUSAL, frames.REFUSAL_BYTES)):
        at = data.find(magic)
        if at >= 0:
            return frames.frames_of(bytes(data[at : at + size]))
    return []


def _clc(direction: _Direction) -> list[Frame] | None:
    data = direction.data
    try:
        size = clc.length_of(bytes(data[:8])) if len(data) >= clc.HEADER_BYTES else len(data) + 1
    except RemoteProtocolError:
        found = frames.frames_of(bytes(data[:8]))
        direction.end()
        return found
    if len(data) < size:
        return None
    found = frames.frames_of(bytes(data[:size]))
    del data[:size]
    return found


def _mpa(direction: _Direction) -> list[Frame] | None:
    data = direction.data
    size = 20 + int.from_bytes(data[18:20], "big") if len(data) >= 20 else len(data) + 1
    if len(data) < size:
        return None
    found = _inside(bytes(data[:size]))
    del data[:size]
    direction.protocol = "fpdu"
    return found


def _fpdu(direction: _Direction) -> list[Frame] | None:
    data = direction.data
    if len(data) < 2:
        return None
    length = int.from_bytes(data[:2], "big")
    size = 2 + length + -(2 + length) % 4 + 4
    if length < 14:
        return direction.end()  # no FPDU
    if len(data) < size:
        return None
    control, operation, payload = data[2], data[3] & 0x0F, bytes(data[20 : 2 + length])
    del data[:size]
    if control & 0x80 or operation not in range(3, 7) or length < 18:
        return []
    direction.message += payload
    if len(direction.message) > wire.LLC_MOST_BYTES:
        return direction.end()  # no message of ours is so long
    if not control & 0x40:
        return []
    message, direction.message = bytes(direction.message), bytearray()
    return [frames.sent(message)] if message else []
