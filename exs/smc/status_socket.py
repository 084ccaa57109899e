# SPDX-License-Identifier: MIT OR Apache-2.0
"""The status of one process for another: a UNIX socket that each trio run with SMC-R answers on.

Owns the name, the document, who is answered, and both ends of the connection.  The name is abstract, as those of the
soft device, so nothing of it can be left over; it begins with the process's number and ends in random digits, so
nobody can take it first.  A client says nothing: it connects, reads one JSON document, and that is all.

Invariants: only the same user and root are answered, by the kernel's word (``SO_PEERCRED``); a client costs no more
than one answer of limited length and :data:`SEND_S`; a fork has no part in its parent's socket.  On the other end an
answer is untrusted: limited in length and time, and checked in each of its members.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import secrets
import socket
import struct
import types
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import trio

from exs.smc.status import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "ANSWER_MOST",
    "ASK_S",
    "VERSION",
    "Silence",
    "ask",
    "ask_all",
    "decode",
    "encode",
    "listed",
    "open_listener",
    "serve",
]

log: logging.Logger = logging.getLogger("exs.smc")

VERSION = 1
"""Of the document; another one where a member changes its meaning or goes."""
ANSWER_MOST = 4 << 20
"""Bytes of an answer that are read."""
SEND_S = 1.0
"""Seconds that a client has to read its answer."""
ASK_S = 3.0
"""Seconds that a process has to give one: a client before us may take its time."""
PAUSE_S = 0.1
BACKLOG = 8
AT_ONCE = 16
"""Processes that are asked at the same time."""

UNIX_SOCKETS = Path("/proc/net/unix")
LISTENING = 0x10000
"""In the flags there."""
NAME = re.compile(r"@exs-smc-([1-9][0-9]{0,9})-[0-9a-f]{24}")
CREDENTIALS = struct.Struct("iII")
T = TypeVar("T")


# --- the document ------------------------------------------------------------------------------------------------


def encode(status: Status) -> bytes:
    """The document that is sent."""
    return json.dumps({"version": VERSION, **asdict(status)}, separators=(",", ":")).encode()


def decode(data: bytes) -> Status:
    """The document that came, every member checked; members that are not known are ignored.

    Raises:
        ValueError: It is none, or of another version.
    """
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the answer is no JSON document") from None
    if not isinstance(document, dict):
        raise ValueError("the answer is no status")
    found = cast("dict[str, object]", document)
    if found.get("version") != VERSION:
        raise ValueError(f"the answer is of version {found.get('version')!r:.20}, not {VERSION}")
    return _value(Status, found)


def _value(kind: type[T], document: object) -> T:
    """A value of one of our dataclasses."""
    if not isinstance(document, dict):
        raise ValueError(f"in the answer something is no {kind.__name__}")
    members = cast("dict[str, object]", document)
    hints = typing.get_type_hints(kind)
    found: dict[str, object] = {}
    for field in fields(cast("Any", kind)):  # Any: dataclasses have no type that mypy and pyright both know
        if field.name not in members:
            raise ValueError(f"in the answer {kind.__name__}.{field.name} is missing")
        found[field.name] = _member(hints[field.name], members[field.name], f"{kind.__name__}.{field.name}")
    return kind(**found)


def _member(hint: Any, value: object, name: str) -> object:  # Any: what a type hint evaluates to
    if is_dataclass(hint):
        return _value(cast("type[object]", hint), value)
    if isinstance(hint, types.GenericAlias):  # tuple[X, ...]
        if not isinstance(value, list):
            raise ValueError(f"in the answer {name} is no list")
        return tuple(_member(hint.__args__[0], item, name) for item in cast("list[object]", value))
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise ValueError(f"in the answer {name} is no {hint.__name__}")
    return value


# --- the answering end -------------------------------------------------------------------------------------------

_listeners: set[socket.socket] = set()
_watching_forks = False


def open_listener() -> socket.socket:
    """A listener under a name of this process; gone when it is closed, by :func:`serve`, or the process ends.

    Raises:
        OSError: No descriptor is left, for instance.
    """
    global _watching_forks
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.bind(f"\0exs-smc-{os.getpid()}-{secrets.token_hex(12)}")
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    if not _watching_forks:
        _watching_forks = True
        os.register_at_fork(after_in_child=_close_inherited)
    _listeners.add(listener)
    return listener


def _close_inherited() -> None:
    """In a forked child: the name must not outlive the parent, nor clients wait for somebody who never answers.

    The descriptor alone is closed.  To tell trio would take it out of an epoll set that is the parent's too.
    """
    for listener in list(_listeners):
        listener.close()
    _listeners.clear()


async def serve(listener: socket.socket, look: Callable[[], Status]) -> None:
    """Answer, one client after the other, until cancelled; the listener is closed then.

    Args:
        listener: Of :func:`open_listener`.
        look: Called for each client that may know.
    """
    try:
        accepting = trio.socket.from_stdlib_socket(listener)
        while listener.fileno() != -1:
            try:
                client, _ = await accepting.accept()
            except OSError as error:
                if error.errno in (errno.EBADF, errno.EINVAL):
                    return
                await trio.sleep(PAUSE_S)  # no descriptor is left
                continue
            with client:
                if may_know(client):
                    await _answer(client, look)
    finally:
        _listeners.discard(listener)
        listener.close()


async def _answer(client: trio.socket.SocketType, look: Callable[[], Status]) -> None:
    try:
        data = memoryview(encode(look()))
        with trio.move_on_after(SEND_S):
            while data:
                data = data[await client.send(data, socket.MSG_NOSIGNAL) :]
    except OSError as error:
        log.debug("smc: a status was not delivered: %s", error)
    except Exception:
        # Whoever asks must not end the run: in a system task this would.
        log.exception("smc: the status could not be told")


def may_know(client: trio.socket.SocketType) -> bool:
    """Whether the other end is the same user, or root."""
    uid = credentials(client)[1]
    if uid in (0, os.geteuid()):
        return True
    log.debug("smc: the status was not told to user %d", uid)
    return False


def credentials(peer: trio.socket.SocketType | socket.socket) -> tuple[int, int]:
    """Process (0: one that cannot be seen from here) and user of the other end, as the kernel has them."""
    pid, uid, _ = CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return pid, uid


# --- the asking end ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Silence:
    """A process that uses SMC-R, and did not tell its status."""

    pid: int
    reason: str
    """Why not, in words."""


def listed(lines: Iterable[str] | None = None) -> list[tuple[str, int]]:
    """Names of this network namespace, and the process that each claims to be of.

    Args:
        lines: As in ``/proc/net/unix``, which is read by default.
    """
    found: set[tuple[str, int]] = set()
    for line in UNIX_SOCKETS.read_text(errors="replace").splitlines() if lines is None else lines:
        parts = line.split()
        if len(parts) != 8 or not (match := NAME.fullmatch(parts[7])):
            continue
        if int(parts[3], 16) & LISTENING:
            found.add((parts[7].replace("@", "\0", 1), int(match[1])))
    return sorted(found, key=lambda entry: (entry[1], entry[0]))


async def ask(name: str, claimed: int, seconds: float = ASK_S) -> Status | Silence | None:
    """Ask one process.

    Args:
        name: Of its socket.
        claimed: The process that the name says.
        seconds: How long it has.

    Returns:
        What it says, or why it says nothing; ``None``: it is another user's, or gone.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as plain:
        try:
            plain.connect(name)
        except BlockingIOError:
            return Silence(claimed, "others wait for its answer already") if is_ours(claimed) else None
        except OSError:
            return None
        pid, uid = credentials(plain)
        if os.geteuid() not in (0, uid):
            return None
        pid = pid or claimed
        try:
            with trio.fail_after(seconds):
                data = await _read(trio.socket.from_stdlib_socket(plain))
            if data:
                return replace(decode(data), pid=pid)
        except trio.TooSlowError:
            return Silence(pid, f"no answer within {seconds:g} s")
        except ValueError as error:
            return Silence(pid, str(error))
    return Silence(pid, "it refused to answer") if is_ours(pid) else None


async def _read(peer: trio.socket.SocketType) -> bytes:
    """What comes until the end.

    Raises:
        ValueError: It is too much.
    """
    data = bytearray()
    while len(data) <= ANSWER_MOST:
        try:
            got = await peer.recv(65536)
        except OSError:
            got = b""  # it died, or closed before it looked
        if not got:
            return bytes(data)
        data += got
    raise ValueError(f"the answer is longer than {ANSWER_MOST} bytes")


def is_ours(pid: int) -> bool:
    """Whether a process is there, and of our user; all are root's."""
    try:
        owner = Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return False
    return os.geteuid() in (0, owner)


async def ask_all(pid: int | None = None, seconds: float = ASK_S) -> list[Status | Silence]:
    """Ask every process of the user, or of all users for root.

    Args:
        pid: Only this one.
        seconds: How long each has.

    Returns:
        By process; one that has several trio runs is there once for each.
    """
    found: list[Status | Silence] = []
    places = trio.Semaphore(AT_ONCE)

    async def one(name: str, claimed: int) -> None:
        async with places:
            answer = await ask(name, claimed, seconds)
        if answer is not None:
            found.append(answer)

    async with trio.open_nursery() as nursery:
        for name, claimed in listed():
            if pid in (None, claimed):
                nursery.start_soon(one, name, claimed)
    return sorted(found, key=lambda answer: answer.pid)
