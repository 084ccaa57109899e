# SPDX-License-Identifier: MIT OR Apache-2.0
"""The logger ``exs``: records of the core, handed to Python's logging.

Owns the logger's name and the shape of a record.  Never configures logging: a ``NullHandler`` keeps an
unconfigured program silent.
"""

from __future__ import annotations

import logging

logger = logging.getLogger("exs")
logger.addHandler(logging.NullHandler())


def emit(level: int, text: str, socket: int, dropped: int) -> None:
    """Log one record of the core.

    Args:
        level: A level of :mod:`logging`; the core uses the same numbers.
        text: What happened.
        socket: Handle of the socket concerned, or 0; stands in the record as ``exs_socket``.
        dropped: Records lost just before this one; stands in the record as ``exs_dropped``.
    """
    logger.log(level, "%s", text, extra={"exs_socket": socket, "exs_dropped": dropped})
