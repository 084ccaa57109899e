# SPDX-License-Identifier: MIT OR Apache-2.0
"""Why a connection does not become SMC-R: the diagnosis codes of DECLINE, and what they mean in words."""

from __future__ import annotations

__all__ = [
    "DECLINE_ADD_LINK_TIMEOUT",
    "DECLINE_CONFIGURATION",
    "DECLINE_CONFIRM_LINK_TIMEOUT",
    "DECLINE_EYECATCHERS",
    "DECLINE_INDIRECT",
    "DECLINE_INTERNAL",
    "DECLINE_IPSEC",
    "DECLINE_LINK_NOT_FOUND",
    "DECLINE_MAX_CONNECTIONS",
    "DECLINE_MAX_LINKS",
    "DECLINE_MEMORY",
    "DECLINE_MODES",
    "DECLINE_NO_DEVICE",
    "DECLINE_NO_LINK",
    "DECLINE_NO_ROUTE",
    "DECLINE_NO_SMCR_DEVICE",
    "DECLINE_NO_UEID",
    "DECLINE_NO_V2_EXTENSION",
    "DECLINE_PEER_NO_SMC",
    "DECLINE_PREFIX",
    "DECLINE_QP",
    "DECLINE_REGISTRATION",
    "DECLINE_RELEASE",
    "DECLINE_RTOKEN",
    "DECLINE_SYNC",
    "DECLINE_VERSION",
    "reason_text",
]

DECLINE_MEMORY = 0x01010000
DECLINE_CONFIRM_LINK_TIMEOUT = 0x02010000
DECLINE_ADD_LINK_TIMEOUT = 0x02020000
DECLINE_CONFIGURATION = 0x03000000
DECLINE_PEER_NO_SMC = 0x03010000
DECLINE_IPSEC = 0x03020000
DECLINE_NO_DEVICE = 0x03030000
DECLINE_NO_SMCR_DEVICE = 0x03030002
DECLINE_NO_V2_EXTENSION = 0x03030004
DECLINE_NO_UEID = 0x03030008
DECLINE_RELEASE = 0x03030009
DECLINE_MAX_CONNECTIONS = 0x0303000A
DECLINE_MAX_LINKS = 0x0303000B
DECLINE_MODES = 0x03040000
DECLINE_EYECATCHERS = 0x03050000
DECLINE_PREFIX = 0x03070000
DECLINE_NO_LINK = 0x030A0000
DECLINE_LINK_NOT_FOUND = 0x030B0000
DECLINE_VERSION = 0x030C0000
DECLINE_NO_ROUTE = 0x030E0000
DECLINE_INDIRECT = 0x030F0000
DECLINE_SYNC = 0x04000000
DECLINE_INTERNAL = 0x09990000
DECLINE_RTOKEN = 0x09990001
DECLINE_QP = 0x09990002
DECLINE_REGISTRATION = 0x09990003

_WORDS = {
    DECLINE_MEMORY: "out of memory",
    DECLINE_CONFIRM_LINK_TIMEOUT: "CONFIRM_LINK was not answered in time",
    DECLINE_ADD_LINK_TIMEOUT: "ADD_LINK was not answered in time",
    DECLINE_CONFIGURATION: "configuration error",
    DECLINE_PEER_NO_SMC: "the peer does not speak SMC",
    DECLINE_IPSEC: "IPsec is in use",
    DECLINE_NO_DEVICE: "no device for SMC, or no version in common",
    0x03030001: "no device for SMC-D",
    DECLINE_NO_SMCR_DEVICE: "no RoCE device with a GID of the TCP connection's IPv4 address",
    0x03030003: "the hardware has no ISM version 2",
    DECLINE_NO_V2_EXTENSION: "the proposal has no version 2 extension",
    0x03030005: "the proposal has no SMC-D version 2 extension",
    0x03030006: "no SEID",
    0x03030007: "no ISM version 2 device",
    DECLINE_NO_UEID: "no EID in common",
    DECLINE_RELEASE: "releases do not match",
    DECLINE_MAX_CONNECTIONS: "numbers of connections in a group do not match",
    DECLINE_MAX_LINKS: "numbers of links in a group do not match",
    DECLINE_MODES: "SMC-R and SMC-D do not match",
    DECLINE_EYECATCHERS: "the peer keeps eyecatchers in its buffers",
    0x03060000: "a socket option that SMC does not know",
    DECLINE_PREFIX: "the two hosts share no IP network",
    0x03080000: "the VLAN cannot be told",
    0x03090000: "the VLAN could not be registered",
    DECLINE_NO_LINK: "the link group has no active link",
    DECLINE_LINK_NOT_FOUND: "the server named an unknown link",
    DECLINE_VERSION: "versions do not match",
    0x030D0000: "the limit of ISM buffers is reached",
    DECLINE_NO_ROUTE: "no route to the peer's GID",
    DECLINE_INDIRECT: "one side sees a gateway, the other none",
    DECLINE_SYNC: "the two hosts do not agree on their link groups",
    0x05000000: "the peer declined",
    DECLINE_INTERNAL: "internal error",
    DECLINE_RTOKEN: "no room for the peer's buffer in the link group",
    DECLINE_QP: "the queue pair could not be made ready",
    DECLINE_REGISTRATION: "the buffer could not be registered",
}


def reason_text(code: int) -> str:
    """What a diagnosis code means, with the code."""
    return f"{_WORDS.get(code, 'reason unknown')} ({code:08x})"
