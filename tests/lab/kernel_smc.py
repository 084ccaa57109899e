# SPDX-License-Identifier: MIT OR Apache-2.0
"""The kernel's SMC-R in a guest: what it needs before it uses soft-RoCE, sockets of it, and what it says of them.

``set_up`` is to run in both guests, ``python kernel_smc.py set-up`` does it in the second.  ``python kernel_smc.py
peer ...`` is a program on AF_SMC for tests to speak with: :func:`peer` says what it does.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import socket
import struct
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

AF_SMC = 43
EID = "EXS.LAB"
PNETID = "EXSLAB"
NETDEV, RDMADEV, PORT = "eth0", "rxe0", 1
TEST_LINK_S = 3
"""Else a kernel notices only after half a minute that its peer was killed."""

# --- netlink ------------------------------------------------------------------------------------------------------

NETLINK_SOCK_DIAG, NETLINK_GENERIC = 4, 16
GENL_CONTROL, GET_FAMILY = 16, 3
FLAGS_ACK, FLAGS_DUMP = 0x5, 0x301
NLMSG_ERROR, NLMSG_DONE, SOCK_DIAG_BY_FAMILY = 2, 3, 20
ADD_UEID, GET_LINK_GROUPS = 10, 2
PNETID_ADD = 2
DIAG_HEADER = 64
"""Bytes of an answer before its attributes: four of its own, the socket's addresses, a user, an inode."""
DIAG_FALLBACK = 5
MODES = {0: "SMC-R", 1: "TCP", 2: "SMC-D"}


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by their kind; of a kind that comes twice the last."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def ask(protocol: int, kind: int, flags: int, payload: bytes) -> list[bytes]:
    """One request; the payloads of its answers.

    Raises:
        OSError: The kernel refused it.
    """
    answers: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
        netlink.settimeout(20)
        netlink.bind((0, 0))
        netlink.send(struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload)
        while True:
            data = netlink.recv(1 << 17)
            while len(data) >= 16:
                length, what = struct.unpack_from("=IH", data)
                body, data = data[16:length], data[(length + 3) & ~3 :]
                if what == NLMSG_ERROR and (code := struct.unpack_from("=i", body)[0]):
                    raise OSError(-code, "the kernel refused a netlink request")
                if what in (NLMSG_ERROR, NLMSG_DONE):
                    return answers
                answers.append(body)


def family(name: str) -> int:
    body = struct.pack("=BBH", GET_FAMILY, 1, 0) + attribute(2, name.encode() + b"\0")
    return struct.unpack("=H", attributes(ask(NETLINK_GENERIC, GENL_CONTROL, FLAGS_ACK, body)[0][4:])[1])[0]


def generic(name: str, command: int, *parts: bytes, flags: int = FLAGS_ACK) -> list[bytes]:
    body = struct.pack("=BBH", command, 1, 0) + b"".join(parts)
    return [answer[4:] for answer in ask(NETLINK_GENERIC, family(name), flags, body)]


def add_eid(name: str) -> None:
    try:
        generic("SMC_GEN_NETLINK", ADD_UEID, attribute(1, name.ljust(32).encode() + b"\0"))
    except FileExistsError:
        pass


def set_up(eid: str = EID) -> None:
    """Let SMC-R use ``rxe0`` for what goes through ``eth0``: an EID for version 2, and a pnetid, since rxe does not
    say which Ethernet device it belongs to.
    """
    add_eid(eid)
    name = attribute(1, PNETID.encode() + b"\0")
    for where in (
        attribute(2, NETDEV.encode() + b"\0"),
        attribute(3, RDMADEV.encode() + b"\0") + attribute(4, bytes([PORT])),
    ):
        try:
            generic("SMC_PNETID", PNETID_ADD, name, where)
        except FileExistsError:
            pass
    Path("/proc/sys/net/smc/smcr_testlink_time").write_text(str(TEST_LINK_S))


@dataclass(frozen=True)
class Row:
    """A socket as the kernel's diagnostics show it: its state (smc_state), and how it goes."""

    state: int
    mode: str
    reason: int
    peer_reason: int
    local: int
    remote: int


def sockets() -> list[Row]:
    """Every AF_SMC socket of this guest."""
    request = struct.pack("=BBBx", AF_SMC, 0xFF, 0) + bytes(48)
    rows = []
    for answer in ask(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, FLAGS_DUMP, request):
        _, state, mode, _, local, remote = struct.unpack_from(">BBBBHH", answer)
        reasons = attributes(answer[DIAG_HEADER:]).get(DIAG_FALLBACK, bytes(8))
        rows.append(Row(state, MODES.get(mode, str(mode)), *struct.unpack_from("=II", reasons), local, remote))
    return rows


def link_groups() -> int:
    """How many link groups there are in this guest."""
    return len(generic("SMC_GEN_NETLINK", GET_LINK_GROUPS, flags=FLAGS_DUMP))


def sent_packets() -> int:
    """What rxe has sent so far."""
    return int(Path(f"/sys/class/infiniband/{RDMADEV}/ports/{PORT}/hw_counters/sent_pkts").read_text())


# --- sockets --------------------------------------------------------------------------------------------------------


def smc_socket() -> socket.socket:
    """A stream socket of AF_SMC, that takes IPv4 addresses as AF_INET's do."""
    made = socket.socket(AF_SMC, socket.SOCK_STREAM, 0)
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=made.detach())


def pattern(length: int, seed: int) -> bytes:
    """Bytes of which no part repeats soon."""
    block = hashlib.sha256(seed.to_bytes(4, "big")).digest() * 31 + b"odd"
    return (block * (length // len(block) + 1))[:length]


def receive_all(sock: socket.socket, chunk: int) -> tuple[int, str]:
    """Length and checksum of everything until the peer ends."""
    total, digest = 0, hashlib.sha256()
    while data := sock.recv(chunk):
        total += len(data)
        digest.update(data)
    return total, digest.hexdigest()


def peer(options: argparse.Namespace) -> None:
    """A program on AF_SMC: listens or connects, and does one thing on each connection.

    ``echo`` returns what comes until the end; ``exchange`` sends BYTES in pieces of CHUNK, half closes, receives all,
    and says length and checksum; ``sink`` receives and says length and checksum; ``drain`` does that too, says when it
    begins, and sends something after the end; ``hold`` sends BYTES, says so, waits for a line and reads once; ``first``
    sends BYTES and closes; ``unread`` waits for a line and closes with whatever was not read; ``urgent`` sends a byte
    out of band amid others, and ``out-of-band`` receives one; ``late`` does what ``hold`` does, and sends;
    ``timed`` says how many seconds connecting and closing took.
    """
    with smc_socket() as sock:
        for name, size in ((socket.SO_RCVBUF, options.rcvbuf), (socket.SO_SNDBUF, options.sndbuf)):
            if size:
                sock.setsockopt(socket.SOL_SOCKET, name, size)
        if options.host:
            start = time.monotonic()
            sock.connect((options.host, options.port))
            options.connected = time.monotonic() - start
            one_connection(sock, options)
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", options.port))
        sock.listen(64)
        print("listening", sock.getsockname()[1], flush=True)
        threads = []
        for _ in range(options.connections):
            accepted, _ = sock.accept()
            threads.append(threading.Thread(target=one_connection, args=(accepted, options)))
            threads[-1].start()
        for thread in threads:
            thread.join()


def one_connection(sock: socket.socket, options: argparse.Namespace) -> None:
    try:
        with sock:
            ACTIONS[options.action](sock, options)
    except OSError as error:
        print("error", error.errno, flush=True)


def _echo(sock: socket.socket, options: argparse.Namespace) -> None:
    while data := sock.recv(options.chunk):
        sock.sendall(data)


def _exchange(sock: socket.socket, options: argparse.Namespace) -> None:
    def send() -> None:
        data = memoryview(pattern(options.bytes, options.seed))
        for at in range(0, len(data), options.chunk):
            sock.sendall(data[at : at + options.chunk])
        sock.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    total, digest = receive_all(sock, options.chunk)
    sender.join()
    print("received", total, digest, flush=True)


def _sink(sock: socket.socket, options: argparse.Namespace) -> None:
    print("received", *receive_all(sock, options.chunk), flush=True)


def _drain(sock: socket.socket, options: argparse.Namespace) -> None:
    print("draining", flush=True)
    _sink(sock, options)
    sock.sendall(b"is anybody there?")


def _urgent(sock: socket.socket, options: argparse.Namespace) -> None:
    sock.sendall(b"before")
    sock.send(b"!", socket.MSG_OOB)
    sock.sendall(b"after")
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1)


def _out_of_band(sock: socket.socket, options: argparse.Namespace) -> None:
    # Sooner than what stands before it: once that is read, Linux would not pass over it any more.
    deadline = time.monotonic() + 50
    while True:
        try:
            urgent = sock.recv(10, socket.MSG_OOB)
            break
        except OSError as error:
            if error.errno != errno.EINVAL or time.monotonic() > deadline:  # it is not there yet
                raise
            time.sleep(0.1)
    print("urgent", urgent, flush=True)
    for _ in range(2):
        print("in band", sock.recv(options.chunk), flush=True)


def _timed(sock: socket.socket, options: argparse.Namespace) -> None:
    sock.shutdown(socket.SHUT_WR)
    assert not sock.recv(1)
    start = time.monotonic()
    sock.close()
    print(options.connected, time.monotonic() - start, flush=True)


def _hold(sock: socket.socket, options: argparse.Namespace) -> None:
    sock.sendall(pattern(options.bytes, options.seed))
    print("holding", flush=True)
    sys.stdin.readline()
    sock.settimeout(60)
    print("read", len(sock.recv(options.chunk)), flush=True)


def _late(sock: socket.socket, options: argparse.Namespace) -> None:
    _hold(sock, options)
    sock.sendall(b"is anybody there?")


def _first(sock: socket.socket, options: argparse.Namespace) -> None:
    sock.sendall(pattern(options.bytes, options.seed))


def _unread(sock: socket.socket, options: argparse.Namespace) -> None:
    print("unread", flush=True)
    sys.stdin.readline()


ACTIONS = {
    "drain": _drain,
    "echo": _echo,
    "exchange": _exchange,
    "first": _first,
    "hold": _hold,
    "late": _late,
    "out-of-band": _out_of_band,
    "sink": _sink,
    "timed": _timed,
    "unread": _unread,
    "urgent": _urgent,
}


def status() -> dict[str, object]:
    """What this guest's kernel says of its SMC."""
    return {
        "sockets": [asdict(row) for row in sockets()],
        "link_groups": link_groups(),
        "sent_packets": sent_packets(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("set-up")
    verbs.add_parser("status")
    one = verbs.add_parser("peer")
    one.add_argument("action", choices=ACTIONS)
    one.add_argument("--host")
    one.add_argument("--port", type=int, default=0)
    one.add_argument("--bytes", type=int, default=0)
    one.add_argument("--chunk", type=int, default=65536)
    one.add_argument("--seed", type=int, default=1)
    one.add_argument("--connections", type=int, default=1)
    one.add_argument("--rcvbuf", type=int, default=0)
    one.add_argument("--sndbuf", type=int, default=0)
    options = parser.parse_args()
    if options.verb == "set-up":
        set_up()
    elif options.verb == "status":
        print(json.dumps(status()))
    else:
        peer(options)


if __name__ == "__main__":
    main()
