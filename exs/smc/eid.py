# SPDX-License-Identifier: MIT OR Apache-2.0
"""Enterprise ids: names of which two hosts must share one for SMC-R version 2.

Owns their syntax, which is Linux's, and their form on the wire: 32 bytes, padded with blanks.
"""

from __future__ import annotations

import re

__all__ = ["EIDS_MAX", "EID_LEN", "check", "from_wire", "parse", "to_wire"]

EID_LEN = 32
EIDS_MAX = 8
"""So many fit into a PROPOSAL; Linux offers at most 4."""

_SYNTAX = re.compile(r"[A-Z0-9][A-Z0-9.-]{0,31}")


def check(text: str) -> str:
    """An id without its padding.

    Raises:
        ValueError: It is none; says what one is.
    """
    text = text.rstrip(" ")
    if not _SYNTAX.fullmatch(text):
        raise ValueError(
            f"an EID has 1 to {EID_LEN} capital letters, digits, dots and hyphens, and begins with a letter or digit: "
            f"not {text!r}"
        )
    return text


def parse(text: str) -> tuple[str, ...]:
    """The ids of a list with commas, in order of preference; of an empty text none.

    Raises:
        ValueError: One is none, one comes twice, or there are too many.
    """
    found = tuple(check(part.strip()) for part in text.split(",") if part.strip())
    if len(set(found)) != len(found):
        raise ValueError(f"an EID comes twice: {text!r}")
    if len(found) > EIDS_MAX:
        raise ValueError(f"at most {EIDS_MAX} EIDs fit into a message, not {len(found)}")
    return found


def to_wire(text: str) -> bytes:
    """Its 32 bytes."""
    return text.encode("latin-1").ljust(EID_LEN, b" ")


def from_wire(data: bytes) -> str:
    """What 32 bytes say, without padding; a peer's may be of any syntax."""
    return data.decode("latin-1").rstrip(" ")
