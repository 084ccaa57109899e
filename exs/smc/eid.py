# SPDX-License-Identifier: MIT OR Apache-2.0
"""Enterprise ids: what says that two hosts of version 2 belong together.

Owns their padding and the choice between two lists.  What may be one is :mod:`exs._config`'s, which reads them from
``Options(smc_eid=...)`` and ``EXS_SMC_EID``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from exs._config import MOST_EIDS, is_eid, read_eids

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

__all__ = ["EID_BYTES", "MOST_EIDS", "choose", "is_eid", "padded", "read_eids", "text"]

EID_BYTES = 32


def padded(eid: str) -> bytes:
    """The 32 bytes that travel, filled up with blanks.

    Raises:
        ValueError: It is no enterprise id.
    """
    if not is_eid(eid):
        raise ValueError(f"{eid!r} is no enterprise id: 1 to 32 of A-Z, 0-9, '.' and '-', a letter or digit first")
    return eid.encode("ascii").ljust(EID_BYTES)


def text(data: bytes) -> str:
    """An id as people write it.

    Args:
        data: The 32 bytes.

    Raises:
        ValueError: They are no enterprise id.
    """
    if len(data) != EID_BYTES:
        raise ValueError(f"an enterprise id has {EID_BYTES} bytes, not {len(data)}")
    eid = data.rstrip(b" ").decode("latin-1")
    if not is_eid(eid):
        raise ValueError(f"{eid!r} is no enterprise id")
    return eid


def choose(offered: Sequence[str], known: Collection[str]) -> str | None:
    """The server's choice: the first of the client's list that it knows itself.

    Args:
        offered: The client's ids, in its order.
        known: The server's.

    Returns:
        The id, or ``None`` if they have none in common.
    """
    return next((eid for eid in offered if eid in known), None)
