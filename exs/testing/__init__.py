# SPDX-License-Identifier: MIT OR Apache-2.0
"""Helpers to test programs that use exs, and exs itself: connected pairs, scripted faults, contract checks."""

from exs.testing.checks import Leaks, PoisonedBuffer, check_message_channel, no_leaks
from exs.testing.faults import Corrupt, Cut, Inject, Stall, tcp_proxy
from exs.testing.pairs import clogged_stream_pair, message_pair, stream_pair

__all__ = [
    "Corrupt",
    "Cut",
    "Inject",
    "Leaks",
    "PoisonedBuffer",
    "Stall",
    "check_message_channel",
    "clogged_stream_pair",
    "message_pair",
    "no_leaks",
    "stream_pair",
    "tcp_proxy",
]
