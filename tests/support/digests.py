# SPDX-License-Identifier: MIT OR Apache-2.0
"""A checksum that every Python has, for tests of the transfer tools."""

from __future__ import annotations

from exs.cli.transfer import protocol

BLAKE = protocol.DigestKind.BLAKE2B_128


def digest_of(data: bytes) -> bytes:
    hasher = protocol.new_hasher(BLAKE)
    hasher.update(memoryview(data))
    return hasher.digest()
