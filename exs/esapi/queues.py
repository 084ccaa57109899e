# SPDX-License-Identifier: MIT OR Apache-2.0
"""ES-API: event queues."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from exs.errors import from_errno
from exs.esapi import descriptors
from exs.esapi.constants import (
    EXS_EVTVEC_MAX,
    EXS_QATTR_DEPTH,
    EXS_QATTR_EVENTS,
    EXS_QATTR_SIGNAL,
    EXS_QATTR_WAIT,
    EXS_SIG_DISABLE,
    EXS_SIG_ENABLE,
    EXS_WAIT_ADAPTIVE,
    EXS_WAIT_BUSY_POLL,
    EXS_WAIT_NOTIFY,
    QueueWait,
)
from exs.esapi.descriptors import QHandle

if TYPE_CHECKING:
    from exs.events import ExsEvent

_WAITS = {
    EXS_WAIT_ADAPTIVE: "adaptive",
    EXS_WAIT_NOTIFY: "notify",
    EXS_WAIT_BUSY_POLL: "busy",
}


def exs_qcreate(depth: int) -> QHandle:
    """A new event queue.

    Args:
        depth: Operations that may be outstanding on it; each holds a slot from the post until its event is dequeued.

    Raises:
        exs.Error: ``EINVAL``: not a depth.

    *Source:* ES-API ``exs_qcreate``.
    """
    if depth <= 0:
        raise from_errno(errno.EINVAL)
    return QHandle(descriptors.process(), depth)


def exs_qdelete(qh: QHandle) -> None:
    """End a queue; events that nobody dequeued are discarded.

    Raises:
        BusyError: Operations in flight will answer to it; nothing happened.
        exs.Error: ``EBADF``: ended already.

    *Source:* ES-API ``exs_qdelete``.
    """
    process = descriptors.process()
    left = process.hold(qh)
    try:
        qh.queue.free()
    except OSError:
        if left:
            qh.queue.kick()
        raise
    for raw in left:
        process.discard(raw)


def exs_qdequeue(qh: QHandle, count: int = 1, timeout: float | None = None) -> list[ExsEvent]:
    """Take events out of a queue; waits without the interpreter lock.

    Args:
        qh: The queue.
        count: Positive: wait for one event, take up to so many. Negative: wait for ``-count``.
        timeout: Seconds; ``None`` for no limit, 0 to look only.

    Returns:
        The events, oldest first; fewer than were waited for only if the time was over.

    Raises:
        exs.Error: ``EINVAL``: no count, more than ``EXS_EVTVEC_MAX``, or a threshold above the depth;
            ``EBADF``: the queue is or was deleted.

    *Source:* ES-API ``exs_qdequeue``.
    """
    process = descriptors.process()
    most = abs(count)
    least = most if count < 0 else 1
    if not count or most > EXS_EVTVEC_MAX or (count < 0 and most > qh.depth):
        raise from_errno(errno.EINVAL)
    return process.events(qh, most, least, timeout)


def exs_qmodify(qh: QHandle, attr: int, value: int) -> None:
    """Change an attribute of a queue.

    Args:
        qh: The queue.
        attr: ``EXS_QATTR_DEPTH``, ``EXS_QATTR_WAIT``; ``EXS_QATTR_SIGNAL`` can only be disabled.
        value: The new value.

    Raises:
        exs.Error: ``EINVAL``: not such an attribute or value, or a depth below what is in use;
            ``EOPNOTSUPP``: signals.
    """
    descriptors.process()
    if attr == EXS_QATTR_DEPTH and value > 0:
        qh.depth = qh.queue.depth(value)
    elif attr == EXS_QATTR_WAIT and value in _WAITS:
        qh.wait = _WAITS[QueueWait(value)]
    elif attr == EXS_QATTR_SIGNAL and value == EXS_SIG_ENABLE:
        raise from_errno(errno.EOPNOTSUPP, "queues do not send signals; exs_qfd() gives a descriptor to wait on")
    elif attr != EXS_QATTR_SIGNAL or value != EXS_SIG_DISABLE:
        raise from_errno(errno.EINVAL)


def exs_qstatus(qh: QHandle, attr: int) -> int:
    """An attribute of a queue: ``EXS_QATTR_DEPTH``, ``_EVENTS``, ``_SIGNAL``, ``_WAIT``.

    Raises:
        exs.Error: ``EINVAL``: not such an attribute.
    """
    descriptors.process()
    if attr == EXS_QATTR_DEPTH:
        return qh.depth
    if attr == EXS_QATTR_EVENTS:
        return qh.queue.count() + len(qh.backlog)
    if attr == EXS_QATTR_WAIT:
        return next(value for value, name in _WAITS.items() if name == qh.wait)
    if attr == EXS_QATTR_SIGNAL:
        return EXS_SIG_DISABLE
    raise from_errno(errno.EINVAL)


def exs_qfd(qh: QHandle) -> int:
    """A descriptor that is readable when a dequeue has something to do (an addition to the standard).

    It may be readable without an event to be had: dequeue with ``timeout=0``, and wait again only when that gave
    nothing.
    """
    descriptors.process()
    return qh.fileno()
