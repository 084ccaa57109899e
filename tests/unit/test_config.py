# SPDX-License-Identifier: MIT OR Apache-2.0
from __future__ import annotations

import logging
import os
from dataclasses import FrozenInstanceError, fields

import pytest

from exs import Options, _config, open_listeners, open_stream


def test_what_nobody_says_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    settings = _config.resolve(None)
    assert settings == _config.Settings() == _config.resolve(Options())
    assert (settings.ring_bytes, settings.max_adverts, settings.queue_depth) == (1 << 20, 32, 256)
    assert (settings.keepalive, settings.close_timeout) == (10.0, 5.0)
    assert (settings.spin_us, settings.max_message_bytes, settings.direct_threshold) == (20, 65536, 65536)


def test_on_one_core_nothing_spins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert _config.resolve(None).spin_us == 0
    assert _config.resolve(Options(spin_us=7)).spin_us == 7


def test_argument_beats_environment_beats_default(setenv) -> None:
    setenv(EXS_PATH="tcp", EXS_RING_BYTES="131072", EXS_CLOSE_TIMEOUT="0.5", EXS_CRC="yes")
    from_env = _config.resolve(None)
    assert (from_env.path, from_env.ring_bytes, from_env.close_timeout, from_env.crc) == ("tcp", 131072, 0.5, True)
    mixed = _config.resolve(Options(path="shm", crc=False))
    assert (mixed.path, mixed.ring_bytes, mixed.crc) == ("shm", 131072, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EXS_PATH", "pigeon"),
        ("EXS_PROGRESS", "sometimes"),
        ("EXS_RING_BYTES", "1024"),
        ("EXS_RING_BYTES", "lots"),
        ("EXS_QUEUE_DEPTH", "0"),
        ("EXS_KEEPALIVE", "-1"),
        ("EXS_CLOSE_TIMEOUT", "nan"),
        ("EXS_CRC", "perhaps"),
        ("EXS_DEVICE", "a name that is much too long"),
        ("EXS_SMC_EID", "lower"),
        ("EXS_SMC_EID", "A,,B"),
    ],
)
def test_a_bad_variable_is_an_error_that_names_it(setenv, name: str, value: str) -> None:
    setenv(**{name: value})
    with pytest.raises(ValueError, match=name):
        _config.resolve(None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("path", "pigeon"),
        ("progress", "none"),
        ("wait", ""),
        ("ring_bytes", 65535),
        ("ring_bytes", True),
        ("queue_depth", 1.5),
        ("max_adverts", 0),
        ("keepalive", "10"),
        ("close_timeout", 0),
        ("strict_keys", 1),
        ("device", ""),
        ("protocol", "smtp"),
        ("smc_eid", "SMCEXS"),
        ("smc_eid", ("smcexs",)),
        ("smc_eid", ("A", "A")),
        ("smc_eid", tuple("ABCDEFGHI")),
    ],
)
def test_a_bad_field_is_an_error_that_names_it(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        Options(**{field: value})


@pytest.mark.parametrize("field", [{"path": "tcp"}, {"crc": True}])
async def test_what_belongs_to_a_link_cannot_be_chosen_for_one_of_its_streams(setenv, field: dict[str, object]) -> None:
    (name,) = field
    explicit = Options(protocol="smc", device="soft", smc_option="assume", **field)
    with pytest.raises(ValueError, match=f"^{name}=.* share a link"):
        await open_stream("127.0.0.1", 9, options=explicit)
    with pytest.raises(ValueError, match=f"^{name}="):
        await open_listeners(0, host="127.0.0.1", options=explicit)
    setenv(EXS_PROTOCOL="smc")
    with pytest.raises(ValueError, match=f"^{name}="):
        await open_listeners(0, host="127.0.0.1", options=Options(device="soft", **field))


async def test_a_path_for_the_whole_program_does_not_keep_it_from_smc(setenv) -> None:
    setenv(EXS_PATH="tcp", EXS_CRC="1")
    options = Options(protocol="smc", path="auto", crc=False, device="soft", smc_option="assume")
    for listener in await open_listeners(0, host="127.0.0.1", options=options):
        await listener.aclose()


def test_options_are_values() -> None:
    assert Options(path="tcp") == Options(path="tcp")
    assert hash(Options(spin_us=1)) == hash(Options(spin_us=1))
    with pytest.raises(FrozenInstanceError):
        Options().path = "tcp"  # type: ignore[misc]


def test_each_field_has_a_default_a_variable_and_a_description() -> None:
    options = {f.name for f in fields(Options)}
    assert options == {f.name for f in fields(_config.Settings)}
    assert {f"EXS_{name.upper()}" for name in options} | {"EXS_LOG_LEVEL"} == set(_config.variables())


def test_the_log_level(setenv) -> None:
    assert _config.log_level() == logging.WARNING
    setenv(EXS_LOG_LEVEL="debug")
    assert _config.log_level() == logging.DEBUG
    setenv(EXS_LOG_LEVEL="loud")
    with pytest.raises(ValueError, match="EXS_LOG_LEVEL"):
        _config.log_level()
