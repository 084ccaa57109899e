# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whether the two SYNs of a TCP connection say that their hosts speak SMC-R.

Owns the one program of the process that writes the option, and the warning where it cannot be had.  A listener reads
the client's option without it: the kernel keeps the SYN.

Invariant: an answer is what stood in the peer's segment, never a guess.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import socket
import threading
from pathlib import Path

from exs._native.tcp_option import ANSWERED, PORT, WANTED, OptionProgram

__all__ = ["answered", "available", "forget", "mark", "offered"]

log: logging.Logger = logging.getLogger("exs.smc")

OPTION = b"\xfe\x06\xe2\xd4\xc3\xd9"
"""RFC 7609 A.1: experimental option 254."""

SO_COOKIE = 57
TCP_SAVE_SYN, TCP_SAVED_SYN = 27, 28
SYN_MOST = 512

CAPABILITIES = {"CAP_BPF": 39, "CAP_NET_ADMIN": 12}
CAP_SYS_ADMIN = 21
"""Holds the other two as well."""

_lock = threading.Lock()
_owner = 0  # the process that tried: a fork has the descriptors, but is another owner of sockets
_program: OptionProgram | None = None
_why = ""


def group_folder(mounts: str, groups: str) -> str | None:
    """Where the control group (version 2) of this process is in the file system.

    Args:
        mounts: Text of ``/proc/self/mountinfo``.
        groups: Text of ``/proc/self/cgroup``.
    """
    path = next((line[3:] for line in groups.splitlines() if line.startswith("0::")), None)
    if path is None:
        return None
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ", 1)[0] != "cgroup2":
            continue
        root, point = before.split(" ")[3:5]
        inside = path[len(root) :] if root != "/" and path.startswith(root) else path
        return os.path.normpath(f"{point}/{inside}")
    return None


def _attach() -> OptionProgram | None:
    """The process's program, made at the first call."""
    global _owner, _program, _why
    with _lock:
        if _owner == os.getpid():
            return _program
        if _owner == 0:
            os.register_at_fork(after_in_child=_leave_to_parent)
        _owner, _program = os.getpid(), None
        folder = group_folder(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
        try:
            if folder is None:
                raise FileNotFoundError("there is no control group of version 2 (cgroup2) here")
            _program = OptionProgram(folder)
            _why = ""
        except OSError as error:
            _why = error.strerror or str(error)
            if error.errno == errno.EPERM and (missing := lacking(Path("/proc/thread-self/status").read_text())):
                _why += f", and this process lacks {' and '.join(missing)}"
            log.warning(
                "smc: every connection will be plain TCP, since the TCP option of SMC cannot be set: %s; "
                "Options(smc_option='assume') does without it, for peers that are known to speak SMC",
                _why,
            )
        return _program


def lacking(status: str) -> list[str]:
    """Names of the capabilities that a thread would need and has not.

    Args:
        status: Text of its ``/proc/thread-self/status``.
    """
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    held = int(found[1], 16) if found else 0
    if held >> CAP_SYS_ADMIN & 1:
        return []
    return [name for name, bit in CAPABILITIES.items() if not held >> bit & 1]


def _leave_to_parent() -> None:
    """In a forked child: with its descriptors it would keep the parent's program attached when that has ended."""
    global _lock, _program
    _lock = threading.Lock()  # another thread may have held it at the moment of the fork
    if _program is not None:
        _program.close()
        _program = None


def available() -> str:
    """Empty if the option can be set, else why not, in words."""
    _attach()
    return _why


def _cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


def mark(sock: socket.socket) -> None:
    """Ask for the option in a socket's SYN, before it is connected; of a bound one, before it listens, in SYN-ACKs.

    Without the program nothing is asked for: the peer will see plain TCP.
    """
    program = _attach()
    port = sock.getsockname()[1] if sock.family in (socket.AF_INET, socket.AF_INET6) else 0
    if port:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_SAVE_SYN, 1)
    if program is None:
        return
    program.set(_cookie(sock), WANTED)
    if port:
        program.set(PORT | port, WANTED)


def forget(sock: socket.socket) -> None:
    """A listener that was marked is about to be closed."""
    if _program is not None and _owner == os.getpid():
        _program.set(_cookie(sock), 0)
        _program.set(PORT | sock.getsockname()[1], 0)


def answered(sock: socket.socket) -> bool:
    """Whether the SYN-ACK of a connected socket, which was marked before, had the option.  Asked once."""
    program = _attach()
    if program is None:
        return False
    cookie = _cookie(sock)
    state = program.get(cookie)
    program.set(cookie, 0)
    return bool(state & ANSWERED)


def offered(sock: socket.socket) -> bool:
    """Whether the SYN of an accepted connection had the option, and our SYN-ACK therefore has it.

    Its listener was marked.
    """
    if _attach() is None:
        return False
    return has_option(sock.getsockopt(socket.IPPROTO_TCP, TCP_SAVED_SYN, SYN_MOST))


def has_option(segment: bytes) -> bool:
    """Whether a SYN as the kernel keeps it, headers of IP and TCP, has the option."""
    if not segment:
        return False
    start = 40 if segment[0] >> 4 == 6 else (segment[0] & 15) * 4
    tcp = segment[start:]
    if len(tcp) < 20:
        return False
    options = tcp[20 : (tcp[12] >> 4) * 4]
    while options:
        if options[0] == 0:
            return False
        length = 1 if options[0] == 1 else options[1] if len(options) > 1 else 0
        if options[:6] == OPTION:
            return True
        if length < 1 or (length < 2 and options[0] != 1):
            return False
        options = options[length:]
    return False
