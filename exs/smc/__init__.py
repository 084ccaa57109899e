# SPDX-License-Identifier: MIT OR Apache-2.0
"""SMC-R: streams that an AF_SMC program at the other end understands.

The bytes are described in docs/wire/smc-r.md.  Of all this programs need :func:`status` alone, which shows what goes
on: streams are opened by :func:`exs.open_stream` and served by :func:`exs.serve`.
"""

from exs.smc.status import Connection, Cursor, Direction, Fallback, Group, Handshakes, Link, Status, status

__all__ = ["Connection", "Cursor", "Direction", "Fallback", "Group", "Handshakes", "Link", "Status", "status"]
