# SPDX-License-Identifier: MIT OR Apache-2.0
"""Options of a socket, and the environment variables that stand in for them.

Owns every ``EXS_`` variable: nothing else reads one.  Order: explicit argument, environment, default.
Invariant: a :class:`Settings` has every field, checked; what is wrong is said with the name of the field or
of the variable.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MOST_EIDS",
    "Options",
    "Settings",
    "environment",
    "is_eid",
    "log_level",
    "read_eids",
    "resolve",
    "variables",
]

KIB = 1024
MIB = 1024 * KIB

PATHS = ("auto", "tcp", "shm", "shm-vm", "shm-ring")

MOST_EIDS = 8
"""Enterprise ids that SMC-R can offer at once."""

_EID = re.compile(r"[A-Z0-9][A-Z0-9.-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What may be chosen for a socket, a stream, or a listener and all that it accepts.

    A field left out (``None``) comes from its environment variable (``EXS_`` and the field's name in capitals), else
    it has its default.

    Raises:
        ValueError: A value is out of range; the text names the field.
    """

    protocol: Literal["exs", "smc"] | None = None
    """Protocol between the two sides. Default ``"exs"``; ``"smc"`` is SMC-R, or plain TCP with a peer that has none
    (streams only)."""
    device: str | None = None
    """``"auto"`` (default), or the name of a device, as ``exs.list_devices()`` gives them."""
    path: Literal["auto", "tcp", "shm", "shm-vm", "shm-ring"] | None = None
    """How the soft device moves bytes. Default ``"auto"``; anything else is taken or refused, without fallback."""
    progress: Literal["inline", "thread"] | None = None
    """Who runs the engines: whoever waits (``"inline"``, default), or one native thread (SMC-R: the default)."""
    wait: Literal["adaptive", "notify", "busy"] | None = None
    """How to wait: spin, then sleep (``"adaptive"``, default); sleep at once; spin only."""
    spin_us: int | None = None
    """Microseconds to spin before sleeping. Default 20; 0 on one core."""
    ring_bytes: int | None = None
    """Bytes of the ring for data that no receive waits for. Default 1 MiB; at least 64 KiB."""
    max_adverts: int | None = None
    """Advertisements of the peer that are remembered. Default 32; 1 to 1024."""
    queue_depth: int | None = None
    """Operations in flight, per direction. Default 256; 1 to 65536."""
    max_message_bytes: int | None = None
    """Bytes of the buffer of ``MessageChannel.receive()``. Default 64 KiB."""
    keepalive: float | None = None
    """Seconds after which a silent, dead peer is noticed. Default 10; 0 for never."""
    close_timeout: float | None = None
    """Seconds that closing and cancelling may take. Default 5."""
    connect_timeout: float | None = None
    """Seconds that setting up a connection may take. Default 30."""
    strict_keys: bool | None = None
    """Refuse direct transfers where a key would expose more than the advertised bytes. Default ``False``."""
    direct_threshold: int | None = None
    """Bytes from which a receive is advertised, and a send may wait for an advertisement. Default 64 KiB."""
    direct_hold_us: int | None = None
    """Microseconds that it may wait for one. Default 50; 0 never waits."""
    crc: bool | None = None
    """Ask for a checksum on the wire, path tcp. Default ``False``."""
    strict_size: bool | None = None
    """Messages: fail with ``EMSGSIZE`` at the sender, instead of cutting one that is too long. Default ``False``."""
    smc_option: Literal["bpf", "assume"] | None = None
    """How SMC-R finds out whether the peer speaks it: by an option in TCP's SYN and SYN-ACK (``"bpf"``, default; takes
    privileges), or not at all, since every peer is taken for one that does (``"assume"``)."""
    smc_eid: tuple[str, ...] | None = None
    """Enterprise ids for version 2 of SMC-R, the preferred one first; both hosts must have one in common. Up to 8, each
    of 1 to 32 characters of ``A-Z``, ``0-9``, ``.`` and ``-``; in ``EXS_SMC_EID`` set off by commas. Default: none."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None:
                _RULES[field.name].check(value, field.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options with every field decided; see :class:`Options` for what they mean."""

    protocol: str = "exs"
    device: str = "auto"
    path: str = "auto"
    progress: str = "inline"
    wait: str = "adaptive"
    spin_us: int = 20
    ring_bytes: int = MIB
    max_adverts: int = 32
    queue_depth: int = 256
    max_message_bytes: int = 64 * KIB
    keepalive: float = 10.0
    close_timeout: float = 5.0
    connect_timeout: float = 30.0
    strict_keys: bool = False
    direct_threshold: int = 64 * KIB
    direct_hold_us: int = 50
    crc: bool = False
    strict_size: bool = False
    smc_option: str = "bpf"
    smc_eid: tuple[str, ...] = ()


class _Rule:
    """How a field is read from the environment, and what it may be."""

    def __init__(self, parse: Callable[[str], object], fits: Callable[[object], bool], wanted: str) -> None:
        self.parse = parse
        self.fits = fits
        self.wanted = wanted

    def check(self, value: object, name: str) -> None:
        if not self.fits(value):
            raise ValueError(f"{name} must be {self.wanted}, not {value!r}")

    def read(self, text: str, name: str) -> object:
        try:
            value = self.parse(text)
        except ValueError:
            raise ValueError(f"{name} must be {self.wanted}, not {text!r}") from None
        self.check(value, name)
        return value


def _word(*allowed: str) -> _Rule:
    return _Rule(str, lambda v: v in allowed, "one of " + ", ".join(allowed))


def _whole(least: int, most: int) -> _Rule:
    def fits(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return _Rule(int, fits, f"a whole number from {least} to {most}")


def _seconds(least: float, most: float) -> _Rule:
    def fits(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

    return _Rule(float, fits, f"a number of seconds from {least:g} to {most:g}")


def _flag() -> _Rule:
    words = {"1": True, "yes": True, "true": True, "on": True, "0": False, "no": False, "false": False, "off": False}

    def parse(text: str) -> bool:
        try:
            return words[text.lower()]
        except KeyError:
            raise ValueError from None

    return _Rule(parse, lambda v: isinstance(v, bool), "true or false")


def is_eid(text: str) -> bool:
    """Whether a text can be an enterprise id; capitals matter, and so does each character."""
    return _EID.fullmatch(text) is not None


def read_eids(text: str) -> tuple[str, ...]:
    """Enterprise ids of a list with commas.

    Raises:
        ValueError: One is none, one is there twice, or there are too many.
    """
    eids = tuple(part.strip() for part in text.split(","))
    if not _are_eids(eids):
        raise ValueError(f"{text!r} is no list of enterprise ids")
    return eids


def _are_eids(value: object) -> bool:
    if not isinstance(value, tuple):
        return False
    eids = cast("tuple[object, ...]", value)
    return all(isinstance(eid, str) and is_eid(eid) for eid in eids) and len(eids) == len(set(eids)) <= MOST_EIDS


def _eids() -> _Rule:
    wanted = (
        f"up to {MOST_EIDS} different enterprise ids, each of 1 to 32 of A-Z, 0-9, '.' and '-', a letter or digit first"
    )
    return _Rule(read_eids, _are_eids, wanted)


_RULES: dict[str, _Rule] = {
    "protocol": _word("exs", "smc"),
    "device": _Rule(str, lambda v: isinstance(v, str) and 0 < len(v.encode()) < 16, "the name of a device"),
    "path": _word(*PATHS),
    "progress": _word("inline", "thread"),
    "wait": _word("adaptive", "notify", "busy"),
    "spin_us": _whole(0, 1_000_000),
    "ring_bytes": _whole(64 * KIB, 1 << 30),
    "max_adverts": _whole(1, 1024),
    "queue_depth": _whole(1, 65536),
    "max_message_bytes": _whole(1, 1 << 30),
    "keepalive": _seconds(0, 86400),
    "close_timeout": _seconds(0.001, 3600),
    "connect_timeout": _seconds(0.001, 3600),
    "strict_keys": _flag(),
    "direct_threshold": _whole(0, 1 << 30),
    "direct_hold_us": _whole(0, 1_000_000),
    "crc": _flag(),
    "strict_size": _flag(),
    "smc_option": _word("bpf", "assume"),
    "smc_eid": _eids(),
}

_LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def variables() -> dict[str, str]:
    """Name of each environment variable, and what it may be."""
    names = {f"EXS_{name.upper()}": rule.wanted for name, rule in _RULES.items()}
    return names | {"EXS_LOG_LEVEL": "one of " + ", ".join(_LOG_LEVELS)}


def defaults() -> Settings:
    """The settings of a program that says nothing, on this machine."""
    # Spinning on the only core keeps from running the very process that is waited for.
    return Settings() if len(os.sched_getaffinity(0)) > 1 else replace(Settings(), spin_us=0)


@functools.cache
def environment() -> Settings:
    """Defaults, overridden by the environment; read once.

    Raises:
        ValueError: A variable has a value that it may not have; the text names it.
    """
    found: dict[str, object] = {}
    for name, rule in _RULES.items():
        text = os.environ.get(f"EXS_{name.upper()}", "")
        if text:
            found[name] = rule.read(text, f"EXS_{name.upper()}")
    return replace(defaults(), **found)  # type: ignore[arg-type]  # _RULES has checked each by its name


def resolve(options: Options | None) -> Settings:
    """Decide every field: explicit argument, else environment, else default.

    Args:
        options: What the program asked for, or ``None`` for nothing.

    Returns:
        The settings.

    Raises:
        ValueError: An environment variable has a value that it may not have.
    """
    base = environment()
    if options is None:
        return _completed(base, chosen=bool(os.environ.get("EXS_PROGRESS")))
    given = {f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) is not None}
    chosen = "progress" in given or bool(os.environ.get("EXS_PROGRESS"))
    return _completed(replace(base, **given) if given else base, chosen=chosen)


def _completed(settings: Settings, *, chosen: bool) -> Settings:
    """Who runs the engines of SMC-R, if nobody has said: a peer's TEST_LINK must be answered within 2 s."""
    return replace(settings, progress="thread") if settings.protocol == "smc" and not chosen else settings


def resolve_over(settings: Settings, field: str, value: object) -> Settings:
    """Settings with one field changed.

    Raises:
        ValueError: It may not have that value.
    """
    _RULES[field].check(value, field)
    return replace(settings, **{field: value})  # type: ignore[arg-type]  # checked by its rule


def log_level() -> int:
    """The level from which the core keeps records (``EXS_LOG_LEVEL``, default warning).

    Raises:
        ValueError: The variable has a value that it may not have.
    """
    text = os.environ.get("EXS_LOG_LEVEL", "warning")
    try:
        return _LOG_LEVELS[text.lower()]
    except KeyError:
        raise ValueError(f"EXS_LOG_LEVEL must be one of {', '.join(_LOG_LEVELS)}, not {text!r}") from None
