# SPDX-License-Identifier: MIT OR Apache-2.0
"""The devices: which there are, what they can do, and why one is missing.

Owns the values :class:`Device` and :class:`Capabilities`; the core knows the facts.  Nothing is probed by an
import: the first call opens what there is.
"""

from __future__ import annotations

from dataclasses import dataclass

from exs import _native

__all__ = ["Capabilities", "Device", "device_named", "list_devices"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a device can do."""

    max_msg: int
    """Bytes of the largest single transfer."""
    max_inline: int
    """Bytes that a post copies, so that the buffer is free at once."""
    has_immediate: bool
    """A write can carry a word to the receiver."""
    has_key_per_range: bool
    """A peer's key covers just the bytes that were advertised to it; if not, the whole region."""
    has_read: bool
    """It can read a peer's memory."""
    pins_memory: bool
    """Registering pins pages: it takes time, and counts against the limit of locked memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device known to exs, present or not."""

    name: str
    """What ``Options(device=...)`` calls it."""
    summary: str
    """What it is, in words."""
    present: bool
    """Whether it can be used here."""
    reason: str
    """Why it, or a feature of it, is missing; empty if nothing is."""
    capabilities: Capabilities | None
    """What it can do; ``None`` if it is not present."""


def list_devices() -> list[Device]:
    """Every device known, present or not, best first.

    Raises:
        exs.Error: ``EINVAL``: the process is a fork of one that used exs.
    """
    return [_device(info) for info in _native.context().devices()]


def device_named(name: str) -> Device:
    """The device of that name.

    Raises:
        LookupError: There is none.
    """
    for device in list_devices():
        if device.name == name:
            return device
    raise LookupError(f"no device is named {name!r}")


def _device(info: _native.DeviceInfo) -> Device:
    capabilities = Capabilities(
        max_msg=info.max_msg,
        max_inline=info.max_inline,
        has_immediate=info.has_immediate,
        has_key_per_range=info.has_key_per_range,
        has_read=info.has_read,
        pins_memory=info.pins_memory,
    )
    return Device(
        name=info.name,
        summary=info.summary,
        present=info.present,
        reason=info.reason,
        capabilities=capabilities if info.present else None,
    )
