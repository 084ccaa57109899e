# SPDX-License-Identifier: MIT OR Apache-2.0
"""tshark as an independent judge of iWARP traffic: what it printed, as values that tests can compare.

Knows nothing of exs but that it speaks MPA: what is expected of the traffic is said by the tests.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

TIMEOUT = 20.0
MARK = b"exs: the capture ends here"

WRITE, READ_REQUEST, READ_RESPONSE, SEND, SEND_SE, TERMINATE = 0, 1, 2, 3, 5, 7
REQUEST, REPLY = "MPA Request Frame", "MPA Reply Frame"

# rpcordma takes SENDs of some lengths for its own.  The rest is for streams whose FPDUs span segments and whose
# packets were caught in another order than they were sent.
OPTIONS = (
    "--disable-protocol",
    "rpcordma",
    "-o",
    "tcp.desegment_tcp_streams:TRUE",
    "-o",
    "tcp.reassemble_out_of_order:TRUE",
)

# This tshark knows RFC 5044 alone: of RFC 6581 it says that revision 2 and the flag of the read depths are not in it.
NOT_IN_RFC_5044 = {
    "Res field is NOT set to zero as required by RFC 5044",
    "Rev field is NOT set to one as required by RFC 5044",
}

TERMINATE_TYPES = tuple(f"iwarp_rdma.term_etype{part}" for part in ("_rdma", "_ddp", "_llp", ""))
TERMINATE_CODES = tuple(
    f"iwarp_rdma.term_errcode{part}" for part in ("_rdma", "_ddp_tagged", "_ddp_untagged", "_llp", "")
)

FIELDS = (
    "tcp.srcport",
    "tcp.seq",
    "tcp.len",
    "_ws.col.Info",
    "iwarp_mpa.rev",
    "iwarp_mpa.crc_flag",
    "iwarp_mpa.marker_flag",
    "iwarp_mpa.pdlength",
    "iwarp_mpa.ulpdulength",
    "iwarp_ddp.last_flag",
    "iwarp_rdma.opcode",
    "iwarp_mpa.crc_check",
    "iwarp_mpa.bad_length",
    "iwarp_rdma.term_layer",
    *TERMINATE_TYPES,
    *TERMINATE_CODES,
)


def find_tshark() -> None:
    """Skip the test where the judge cannot work; where CI runs it must."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root (and ip) to capture in a network namespace")
    if not shutil.which("tshark") or not shutil.which("dumpcap"):
        if os.environ.get("CI"):
            pytest.fail("tshark is not installed: CI needs its judgement")
        pytest.skip("needs tshark")


@dataclass(frozen=True, slots=True)
class Fpdu:
    """One FPDU as tshark decoded it."""

    opcode: int
    ulpdu: int
    last: bool

    @property
    def payload(self) -> int:
        return self.ulpdu - (14 if self.opcode in (WRITE, READ_RESPONSE) else 18)


@dataclass
class Way:
    """One direction of a connection."""

    tcp_bytes: int = 0
    set_up: list[str] = field(default_factory=list)
    set_up_bytes: int = 0
    revision: int = 0
    crc: bool = False
    markers: bool = False
    fpdus: list[Fpdu] = field(default_factory=list)
    crcs_seen: int = 0
    bad_length: int = 0
    terminates: list[tuple[int, int, int]] = field(default_factory=list)  # layer, type, code

    @property
    def decoded_bytes(self) -> int:
        """How much of the stream tshark found to be frames of MPA: length field, ULPDU, padding, CRC."""
        return self.set_up_bytes + sum((2 + f.ulpdu + 3) // 4 * 4 + 4 for f in self.fpdus)

    def count(self, *opcodes: int) -> int:
        """Segments of these opcodes."""
        return sum(1 for f in self.fpdus if f.opcode in opcodes)

    def messages(self, *opcodes: int) -> int:
        """Messages of these opcodes."""
        return sum(1 for f in self.fpdus if f.opcode in opcodes and f.last)

    def payload(self, *opcodes: int) -> int:
        """Bytes that segments of these opcodes carried."""
        return sum(f.payload for f in self.fpdus if f.opcode in opcodes)


@dataclass
class Verdict:
    """What tshark says of a capture with one connection."""

    to_server: Way
    to_client: Way
    complaints: set[str]  # of iWARP's dissectors, and of any layer that something is malformed or missing
    good_crcs: int
    bad_crcs: int


def _tshark(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["tshark", *OPTIONS, *arguments], capture_output=True, text=True, timeout=4 * TIMEOUT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _list(cell: str) -> list[int]:
    return [int(value, 0) for value in cell.split(",") if value]


def _add(way: Way, row: dict[str, str]) -> None:
    if int(row["tcp.len"]):  # relative numbers: the SYN is 0, so the first byte is 1
        way.tcp_bytes = max(way.tcp_bytes, int(row["tcp.seq"]) + int(row["tcp.len"]) - 1)
    for name in (REQUEST, REPLY):
        if name in row["_ws.col.Info"]:
            way.set_up.append(name)
            way.set_up_bytes += 20 + int(row["iwarp_mpa.pdlength"])
            way.revision = int(row["iwarp_mpa.rev"])
            way.crc = row["iwarp_mpa.crc_flag"] == "1"
            way.markers = row["iwarp_mpa.marker_flag"] == "1"
    lengths, opcodes = _list(row["iwarp_mpa.ulpdulength"]), _list(row["iwarp_rdma.opcode"])
    last = _list(row["iwarp_ddp.last_flag"])
    assert len(lengths) == len(opcodes) == len(last), f"an FPDU without its header: {row}"
    way.fpdus += [Fpdu(o, n, bool(e)) for o, n, e in zip(opcodes, lengths, last, strict=True)]
    way.crcs_seen += len(_list(row["iwarp_mpa.crc_check"]))
    way.bad_length += len(row["iwarp_mpa.bad_length"])
    types = [n for name in TERMINATE_TYPES for n in _list(row[name])]
    codes = [n for name in TERMINATE_CODES for n in _list(row[name])]
    way.terminates += zip(_list(row["iwarp_rdma.term_layer"]), types, codes, strict=True)


def _complaints(capture: Path, port: int) -> set[str]:
    """What the experts say: a table of count, group, protocol and text per severity."""
    found = set()
    for line in _tshark("-r", capture, "-q", "-z", f"expert,tcp.port=={port}").splitlines():
        match = re.match(r"\s*\d+\s+(\S+)\s+(\S+)\s+(.*\S)\s*$", line)
        if not match:
            continue
        group, protocol, text = match.groups()
        if protocol.startswith("IWARP") or group in ("Malformed", "Checksum", "Reassemble", "Protocol", "Undecoded"):
            found.add(text)
    return found


def judge(capture: Path, port: int) -> Verdict:
    """Have tshark decode what went to and from this port.

    Args:
        capture: A capture file.
        port: The TCP port of the server of one connection.
    """
    wanted = f"tcp.port == {port}"
    columns = [word for name in FIELDS for word in ("-e", name)]
    text = _tshark("-r", capture, "-Y", wanted, "-T", "fields", "-E", "separator=/t", "-E", "occurrence=a", *columns)
    to_server, to_client = Way(), Way()
    for line in text.splitlines():
        row = dict(zip(FIELDS, line.split("\t"), strict=True))
        _add(to_client if int(row["tcp.srcport"]) == port else to_server, row)
    details = _tshark("-r", capture, "-Y", wanted, "-V")
    complaints = _complaints(capture, port)
    for word in ("Malformed Packet", "Unreassembled Packet", "Dissector bug", "Short Frame"):
        if word in details:
            complaints.add(word)
    return Verdict(to_server, to_client, complaints, details.count("(Good CRC32)"), details.count("(Bad CRC32"))


class Capture:
    """dumpcap on the loopback interface, ours or a network namespace's, for the length of a ``with``."""

    def __init__(self, file: Path, namespace: str | None = None, *, only: str = "tcp") -> None:
        self.prefix = ["ip", "netns", "exec", namespace] if namespace else []
        self.file = file
        self.process = subprocess.Popen(
            [
                *self.prefix,
                "dumpcap",
                "-q",
                "-i",
                "lo",
                "-s",
                "0",
                "-B",
                "64",
                "-f",
                f"{only} or udp port 9",
                "-w",
                str(file),
            ],
            stderr=subprocess.PIPE,
        )
        self.said = b""

    def _hear(self, word: bytes) -> None:
        assert self.process.stderr is not None
        deadline = time.monotonic() + TIMEOUT
        while word not in self.said:
            left = deadline - time.monotonic()
            assert left > 0, f"dumpcap does not say {word!r}: {self.said!r}"
            if select.select([self.process.stderr], [], [], left)[0]:
                got = os.read(self.process.stderr.fileno(), 4096)
                assert got, f"dumpcap ended: {self.said!r}"
                self.said += got

    def __enter__(self) -> Self:
        self._hear(b"File:")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._mark()
        finally:
            self.process.send_signal(signal.SIGINT)
            _, rest = self.process.communicate(timeout=TIMEOUT)
            self.said += rest
        if kind is None:
            dropped = re.search(rb"received/dropped on interface .*: \d+/(\d+)", self.said)
            assert dropped, self.said
            assert dropped.group(1) == b"0", f"packets were not caught: {self.said!r}"

    def _mark(self) -> None:
        """One packet more: when it is in the file, all before it are."""
        code = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto({MARK!r}, ('127.0.0.1', 9))"
        subprocess.run([*self.prefix, "python3", "-c", code], timeout=TIMEOUT, check=True)
        deadline = time.monotonic() + TIMEOUT
        while MARK not in self.file.read_bytes()[-4096:]:
            assert time.monotonic() < deadline, "the last packet is not in the capture"
            time.sleep(0.05)
