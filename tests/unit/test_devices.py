# SPDX-License-Identifier: MIT OR Apache-2.0
from __future__ import annotations

import pytest

import exs
from exs.devices import device_named


def test_soft_is_always_there_and_can_what_it_says() -> None:
    soft = device_named("soft")
    assert soft.present
    assert soft in exs.list_devices()
    assert soft.capabilities is not None
    assert soft.capabilities.has_key_per_range
    assert not soft.capabilities.has_immediate
    assert not soft.capabilities.pins_memory
    assert soft.capabilities.max_inline >= 48  # every control message
    assert soft.capabilities.max_msg >= 1 << 20


def test_what_is_missing_says_why() -> None:
    for device in exs.list_devices():
        assert device.summary
        assert device.present or device.reason
        assert (device.capabilities is not None) == device.present


def test_an_unknown_name_is_a_lookup_error() -> None:
    with pytest.raises(LookupError, match="pigeon"):
        device_named("pigeon")
