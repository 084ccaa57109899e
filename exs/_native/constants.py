# SPDX-License-Identifier: MIT OR Apache-2.0
"""The core's numbers under Python's names: kinds and flags of events, flags of calls, states of a socket.

Owns the names only; the numbers are those that the extension was compiled with.

Invariant: nothing here is computed or changes after import, so the others may bind a name once and keep it.
"""

from __future__ import annotations

from exs._exs import ffi, lib

OP_SEND = lib.EXSI_OP_SEND
OP_RECV = lib.EXSI_OP_RECV
OP_CONNECT = lib.EXSI_OP_CONNECT
OP_ACCEPT = lib.EXSI_OP_ACCEPT
OP_SHUTDOWN = lib.EXSI_OP_SHUTDOWN
OP_CLOSE = lib.EXSI_OP_CLOSE
OP_POLL = lib.EXSI_OP_POLL

EV_TRUNCATED = lib.EXSI_EV_TRUNCATED
EV_EOR = lib.EXSI_EV_EOR
EV_DIRECT = lib.EXSI_EV_DIRECT
EV_INDIRECT = lib.EXSI_EV_INDIRECT
EV_EOF = lib.EXSI_EV_EOF
EV_SEND_SHUT = lib.EXSI_EV_SEND_SHUT

WAITALL = lib.EXSI_OPF_WAITALL
DONTWAIT = lib.EXSI_OPF_DONTWAIT
SHUT_WR_AFTER = lib.EXSI_OPF_SHUT_WR
STRICT_SIZE = lib.EXSI_OPF_STRICT_SIZE
POLL_IN = lib.EXSI_OPF_POLL_IN
POLL_OUT = lib.EXSI_OPF_POLL_OUT
FRAGILE = lib.EXSI_FLAG_FRAGILE
COPY_MAX = lib.EXSI_COPY_MAX

MR_READ = lib.EXSI_MR_READ
MR_WRITE = lib.EXSI_MR_WRITE
MR_HUGE = lib.EXSI_MR_HUGE

NULL = ffi.NULL

SOCK_NEW = lib.EXSI_SOCK_NEW
SOCK_LISTENING = lib.EXSI_SOCK_LISTENING
SOCK_CONNECTING = lib.EXSI_SOCK_CONNECTING
SOCK_CONNECTED = lib.EXSI_SOCK_CONNECTED
SOCK_CLOSING = lib.EXSI_SOCK_CLOSING
SOCK_DEAD = lib.EXSI_SOCK_DEAD
SOCK_CLOSED = lib.EXSI_SOCK_CLOSED

PATHS = {
    "auto": lib.EXSI_PATH_AUTO,
    "tcp": lib.EXSI_PATH_TCP,
    "shm": lib.EXSI_PATH_SHM,
    "shm-vm": lib.EXSI_PATH_SHM_VM,
    "shm-ring": lib.EXSI_PATH_SHM_RING,
}

WAITS = {
    "adaptive": lib.EXSI_WAIT_ADAPTIVE,
    "notify": lib.EXSI_WAIT_NOTIFY,
    "busy": lib.EXSI_WAIT_BUSY,
}
