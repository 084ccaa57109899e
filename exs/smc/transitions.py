# SPDX-License-Identifier: MIT OR Apache-2.0
"""The log lines of the machines: one for each change of a state, with all that it takes to follow it.

Owns their wording and the names of what a record carries.  Knows no table.  Invariant: a machine changes its state in
one place, which calls :func:`log_transition` once for a change and not at all for none.
"""

from __future__ import annotations

import logging

__all__ = ["log_transition"]

log: logging.Logger = logging.getLogger("exs.smc")


def log_transition(
    kind: str,
    serial: int,
    what: str,
    old: str,
    new: str,
    *,
    role: str,
    group: int | None = None,
    link: int | None = None,
    token: int | None = None,
) -> None:
    """Log that a machine has come to another state.

    A record carries the same as attributes: ``exs_smc_kind``, ``exs_smc_serial``, ``exs_smc_role``, ``exs_smc_input``,
    ``exs_smc_old``, ``exs_smc_new``, ``exs_smc_group``, ``exs_smc_link`` and ``exs_smc_token``.

    Args:
        kind: ``"handshake"`` or ``"group"``.
        serial: Which of its kind, counted from 1.
        what: What happened.
        old: State before.
        new: State afterwards.
        role: ``"client"`` or ``"server"``.
        group: Serial of the group that it is about, once there is one.
        link: Handle of that group's link.
        token: Our alert token of the connection, once it has one.
    """
    if not log.isEnabledFor(logging.DEBUG):
        return
    place = f", group {group}" if group is not None and kind != "group" else ""
    place += f", link {link:#x}" if link is not None else ""
    place += f", token {token:08x}" if token is not None else ""
    log.debug(
        "smc %s %s %d%s: %s -> %s (%s)", role, kind, serial, place, old, new, what,
        extra={
            "exs_smc_kind": kind,
            "exs_smc_serial": serial,
            "exs_smc_role": role,
            "exs_smc_input": what,
            "exs_smc_old": old,
            "exs_smc_new": new,
            "exs_smc_group": group,
            "exs_smc_link": link,
            "exs_smc_token": token,
        },
    )  # fmt: skip
