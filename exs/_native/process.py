# SPDX-License-Identifier: MIT OR Apache-2.0
"""The process's one context, and what a negative result of the core means in it.

Owns the context (opened at first use, never by an import), whether this process is a fork of one that had it, and
the way from the core's log records to Python's.

Invariant: a process has at most one open context.  In a forked child :func:`context` never returns
the parent's: it raises ``EINVAL`` until :func:`start_again_after_fork`.
"""

from __future__ import annotations

import atexit
import errno as _errno
import os
import resource
import threading
from typing import TYPE_CHECKING, NamedTuple

from exs import _config, _log
from exs._exs import ffi, lib
from exs._native.addresses import unpack_address
from exs._native.constants import NULL, PATHS
from exs._native.operations import ops
from exs.errors import BusyError, Error, from_errno

if TYPE_CHECKING:
    from exs._exs import CData


class SocketInfo(NamedTuple):
    """What the core knows of a socket."""

    state: int
    error: int
    family: int
    type: int
    device: str
    path: str
    reason: str
    readable: bool
    writable: bool
    peer_fin: bool
    send_shut: bool
    ops_in_flight: int


class DeviceInfo(NamedTuple):
    """What the core knows of a device."""

    name: str
    summary: str
    reason: str
    present: bool
    max_msg: int
    max_inline: int
    has_immediate: bool
    has_key_per_range: bool
    has_read: bool
    pins_memory: bool


def _text(chars: CData) -> str:
    return ffi.string(chars).decode("utf-8", "replace")


class Context:
    """The root object of the core, one a process; got from :func:`context`."""

    __slots__ = ("_groups", "_lock", "_log_records", "_pins", "_threaded", "pointer")

    def __init__(self) -> None:
        out = ffi.new("exsi_ctx **")
        code = lib.exsi_open(out)
        if code < 0:
            raise from_errno(code)
        self.pointer: CData = out[0]
        self._groups: set[int] = set()
        self._threaded = 0
        self._pins: bool | None = None
        self._lock = threading.Lock()
        self._log_records = ffi.new("exsi_log_record[]", 16)
        lib.exsi_log_threshold(self.pointer, _config.log_level())

    def forked(self) -> bool:
        """Whether this is a child of the process that opened it."""
        return bool(lib.exsi_forked(self.pointer))

    # groups

    def group_new(self) -> int:
        """A new inline progress group."""
        out = ffi.new("uint64_t *")
        check(lib.exsi_group_new(self.pointer, 0, out))
        group: int = out[0]
        with self._lock:
            self._groups.add(group)
        return group

    def threaded_group(self) -> int:
        """The one group that a native thread drives; made at first use."""
        with self._lock:
            if not self._threaded:
                out = ffi.new("uint64_t *")
                check(lib.exsi_group_new(self.pointer, 1, out))
                self._threaded = out[0]
                self._groups.add(self._threaded)
            return self._threaded

    def group_free(self, group: int) -> None:
        """End a group; what is open in it is aborted."""
        with self._lock:
            self._groups.discard(group)
        check(lib.exsi_group_free(self.pointer, group))

    def quit(self) -> None:
        """Abort all groups and join the native thread, before the interpreter ends.

        The context itself stays: daemon threads may still be inside a call, and the process is about to go.
        """
        with self._lock:
            groups, self._groups = self._groups, set()
        for group in groups:
            lib.exsi_group_free(self.pointer, group)

    # log and devices

    def drain_log(self) -> None:
        """Hand the core's log records to Python's logging."""
        count = lib.exsi_log_drain(self.pointer, self._log_records, 16)
        for i in range(count):
            record = self._log_records[i]
            _log.emit(record.level, _text(record.text), record.socket, record.dropped)

    def devices(self) -> list[DeviceInfo]:
        """Every device known, present or not."""
        room = ffi.new("exsi_device_info[]", 16)
        count = check(lib.exsi_devices(self.pointer, room, 16))
        return [
            DeviceInfo(
                name=_text(d.name),
                summary=_text(d.summary),
                reason=_text(d.reason),
                present=bool(d.present),
                max_msg=d.max_msg,
                max_inline=d.max_inline,
                has_immediate=bool(d.has_immediate),
                has_key_per_range=bool(d.has_key_per_range),
                has_read=bool(d.has_read),
                pins_memory=bool(d.pins_memory),
            )
            for d in (room[i] for i in range(count))
        ]

    def pins_memory(self) -> bool:
        """Whether registering may take long, because a device pins pages."""
        if self._pins is None:
            self._pins = any(d.present and d.pins_memory for d in self.devices())
        return self._pins

    # memory

    def mem_register(self, pointer: CData, length: int, flags: int) -> int:
        """Register memory, without the interpreter lock: the region's handle.

        Raises:
            exs.Error: ``ENOMEM`` names the memlock limit; ``EFAULT``: not mapped; ``EINVAL``: no bytes.
        """
        out = ffi.new("uint64_t *")
        _check_memory(lib.exsi_mem_register(self.pointer, pointer, length, flags, out), length)
        handle: int = out[0]
        return handle

    def mem_allocate(self, length: int, flags: int) -> tuple[int, CData]:
        """New memory of the core's own, registered: handle, and the pointer with which the mapping goes.

        Raises:
            exs.Error: ``ENOMEM``: no memory, or not as much as the memlock limit allows.
        """
        out = ffi.new("uint64_t *")
        addr = ffi.new("void **")
        _check_memory(lib.exsi_mem_allocate(self.pointer, length, flags, out, addr), length)
        unmap = lib.exsi_mem_unmap
        pointer = ffi.gc(ffi.cast("char *", addr[0]), lambda p: unmap(p, length), length)
        return out[0], pointer

    def mem_close(self, handle: int) -> None:
        """End a registration.

        Raises:
            BusyError: Operations in flight use it.
        """
        code = lib.exsi_mem_close(self.pointer, handle)
        if code == -_errno.EBUSY:
            count = lib.exsi_mem_in_use(self.pointer, handle)
            raise BusyError(_errno.EBUSY, f"the memory region is used by {max(count, 1)} operation(s) in flight")
        check(code)

    def mem_close_later(self, handle: int) -> None:
        """End a registration when its last operation ends; never fails."""
        lib.exsi_mem_close_later(self.pointer, handle)

    def mem_in_use(self, handle: int) -> int:
        """Operations in flight that use a region."""
        return max(lib.exsi_mem_in_use(self.pointer, handle), 0)

    # sockets

    def socket_new(
        self,
        family: int,
        kind: int,
        settings: _config.Settings,
        group: int,
        *,
        reuse_address: bool = True,
        reuse_port: bool = False,
        v6_only: bool = True,
    ) -> int:
        """A new socket in a group: its handle."""
        opt = options_of(settings)
        opt.reuse_address = reuse_address
        opt.reuse_port = reuse_port
        opt.v6_only = v6_only
        out = ffi.new("uint64_t *")
        check(lib.exsi_socket_new(self.pointer, group, family, kind, opt, out))
        handle: int = out[0]
        return handle

    def bind(self, sock: int, address: bytes) -> None:
        """Bind to an address made by :func:`pack_address`."""
        check(lib.exsi_bind(self.pointer, sock, ffi.from_buffer("char[]", address), len(address)))

    def listen(self, sock: int, backlog: int) -> None:
        """Listen.

        Raises:
            NoDeviceError: No device or path as it was asked for.
            exs.Error: The address is in use, and so on.
        """
        code = lib.exsi_listen(self.pointer, sock, backlog)
        if code < 0:
            raise self.explain(sock, -code, setup=True)

    def sockname(self, sock: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """The local address."""
        room = ffi.new("char[]", 128)
        size = ffi.new("uint32_t *", 128)
        check(lib.exsi_sockname(self.pointer, sock, room, size))
        return unpack_address(memoryview(ffi.buffer(room)))

    def peername(self, sock: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """The peer's address."""
        room = ffi.new("char[]", 128)
        size = ffi.new("uint32_t *", 128)
        check(lib.exsi_peername(self.pointer, sock, room, size))
        return unpack_address(memoryview(ffi.buffer(room)))

    def query(self, sock: int) -> SocketInfo:
        """The state of a socket."""
        info = ffi.new("exsi_socket_info *")
        check(lib.exsi_socket_query(self.pointer, sock, info))
        return SocketInfo(
            state=info.state,
            error=info.error,
            family=info.family,
            type=info.type,
            device=_text(info.device),
            path=_text(info.path),
            reason=_text(info.reason),
            readable=bool(info.readable),
            writable=bool(info.writable),
            peer_fin=bool(info.peer_fin),
            send_shut=bool(info.send_shut),
            ops_in_flight=info.ops_in_flight,
        )

    def explain(self, sock: int, number: int, *, setup: bool = False, transferred: int = 0) -> Error:
        """The exception for an errno of a socket, with the core's own words where it has some."""
        info = ffi.new("exsi_socket_info *")
        reason = ""
        if sock and lib.exsi_socket_query(self.pointer, sock, info) == 0:
            reason = _text(info.reason)
        if not reason and number in (_errno.EINVAL, _errno.ENOMEM):
            return error(-number, setup=setup, transferred=transferred)
        return from_errno(number, reason or None, setup=setup, transferred=transferred)

    def abandon(self, sock: int) -> None:
        """Close a socket at once, from any thread; operations in flight end with their events."""
        lib.exsi_socket_close(self.pointer, sock, 1, 0, 0, NULL)

    def cancel_match(self, sock: int = 0, cookie: int | None = None) -> int:
        """Ask for the end of all operations of a socket, with a cookie, or both; their events come: how many."""
        return check(lib.exsi_cancel_match(self.pointer, sock, cookie is not None, cookie or 0))

    def statistics(self, sock: int = 0) -> dict[str, int]:
        """Counters of a socket, or of the process, by name."""
        names = _counter_names()
        room = ffi.new("uint64_t[]", len(names))
        count = check(lib.exsi_statistics(self.pointer, sock, room, len(names)))
        return dict(zip(names, (room[i] for i in range(count)), strict=True))


def _counter_names() -> list[str]:
    names: list[str] = []
    while name := lib.exsi_statistics_name(len(names)):
        names.append(_text(name))
    return names


_current: Context | None = None
_is_fork = False
_open_lock = threading.Lock()
_FORKED = "this process is a fork of the one that used exs: every exs object is dead here (use spawn, or fork first)"


def context() -> Context:
    """The process's context, opened by the first call.

    Raises:
        exs.Error: ``EINVAL``: this is a forked child of a process that had used exs.
    """
    if _current is not None:
        return _current
    return _open()


def _open() -> Context:
    global _current
    with _open_lock:
        if _is_fork:
            raise Error(_errno.EINVAL, _FORKED)
        if _current is None:
            first = _current = Context()
            os.register_at_fork(after_in_child=_mark_fork)
            atexit.register(first.quit)
        return _current


def _mark_fork() -> None:
    global _current, _is_fork, _open_lock
    _open_lock = threading.Lock()  # another thread may have held it at the moment of the fork
    if _current is not None:
        _current, _is_fork = None, True


def forked() -> bool:
    """Whether this is a forked child of a process that had used exs, and has not started again."""
    return _is_fork


def start_again_after_fork() -> None:
    """Let a forked child open a context of its own; what it inherited stays dead.  *Source:* ES-API, ``exs_init``."""
    global _is_fork
    _is_fork = False
    ops.reset()  # entries of the parent's operations, whose events never come here


def options_of(settings: _config.Settings) -> CData:
    """Settings as the core takes them."""
    opt = ffi.new("exsi_options *")
    lib.exsi_options_default(opt)
    opt.device = settings.device.encode()
    opt.path = PATHS[settings.path]
    opt.ring_bytes = settings.ring_bytes
    opt.max_adverts = settings.max_adverts
    opt.max_ops = settings.queue_depth
    opt.keepalive_ms = round(settings.keepalive * 1000)
    opt.close_timeout_ms = max(round(settings.close_timeout * 1000), 1)
    opt.connect_timeout_ms = max(round(settings.connect_timeout * 1000), 1)
    opt.direct_threshold = settings.direct_threshold
    opt.direct_hold_us = settings.direct_hold_us
    opt.strict_keys = settings.strict_keys
    opt.crc = settings.crc
    opt.strict_size = settings.strict_size
    return opt


def check(code: int) -> int:
    """A result of the core: itself if not negative, else raises what it means."""
    if code < 0:
        raise error(code)
    return code


def error(code: int, *, setup: bool = False, transferred: int = 0) -> Error:
    """The exception for a negative result (or an errno); in a forked child it names the fork."""
    number = abs(code)
    if number == _errno.EINVAL and _is_fork:
        return Error(number, _FORKED)
    if number == _errno.ENOMEM:
        return from_errno(number, _no_memory("out of memory"), setup=setup, transferred=transferred)
    return from_errno(number, setup=setup, transferred=transferred)


def _check_memory(code: int, length: int) -> None:
    if code != -_errno.ENOMEM:
        check(code)
        return
    raise Error(_errno.ENOMEM, _no_memory(f"no memory to register {length} bytes"))


def _no_memory(what: str) -> str:
    """In words: with RDMA the limit of locked memory is the likely cause, and the one that the user can change."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return what
    return (
        f"{what}; the limit of locked memory (RLIMIT_MEMLOCK, memlock) is {soft} bytes: raise it with 'ulimit -l', in "
        "/etc/security/limits.conf or with LimitMEMLOCK= of the service, or register less"
    )
