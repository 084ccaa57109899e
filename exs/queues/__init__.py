# SPDX-License-Identifier: MIT OR Apache-2.0
"""Many transfers in flight from one task: :class:`SendQueue` and :class:`ReceiveQueue`.

While the block of a queue is open, it owns one direction of a socket: any other use of that direction is refused.  A
batch is one C call and one checkpoint.

Invariant: a buffer is referred to from its acceptance until its event was read, and the end of the block waits
for the last event; after it no byte of any buffer moves.
"""

from exs.queues.receiving import ReceiveQueue
from exs.queues.sending import SendQueue

__all__ = ["ReceiveQueue", "SendQueue"]
