# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every test here that takes ``options`` runs on each path and in each progress mode; all waits are bounded."""

from __future__ import annotations

import functools
import inspect
from socket import SOCK_SEQPACKET, SOCK_STREAM
from typing import TYPE_CHECKING

import ground
import pytest
import trio
import verbslink
from ground import MODES, PATHS
from victim import Victim

import exs
from exs import _config
from exs.smc import option
from exs.testing import Leaks, clogged_stream_pair, message_pair, stream_pair

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

collect_ignore = [] if ground.VERBS else ["test_hostile_verbs.py"]
BOUND_S = ground.patient(20)

for make in (stream_pair, message_pair, clogged_stream_pair):
    make.__kwdefaults__["host"] = ground.HOST


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = set(metafunc.fixturenames)
    if names & {"options", "streams", "channels", "clogged"}:
        cases = [(path, mode) for path in PATHS for mode in MODES]
        ids = [f"{ground.name_of(path)}-{mode}" for path, mode in cases]
        metafunc.parametrize("options", cases, ids=ids, indirect=True)
    elif "path" in names:
        metafunc.parametrize("path", PATHS, ids=[ground.name_of(path) for path in PATHS])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ground.VERBS and (what := ground.about_soft(item.nodeid)):
            item.add_marker(pytest.mark.skip(reason=ground.ABOUT_SOFT_SKIP + what))
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _bounded(item.obj)


def _bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def bounded(**arguments: object) -> None:
        with trio.fail_after(BOUND_S):
            await test(**arguments)

    return bounded


@pytest.fixture
def options(request: pytest.FixtureRequest) -> exs.Options:
    path, mode = request.param
    return exs.Options(path=path, progress=mode, close_timeout=2.0)


@pytest.fixture
async def streams(options: exs.Options) -> AsyncIterator[tuple[exs.SocketStream, exs.SocketStream]]:
    """A connected pair."""
    a, b = await stream_pair(options)
    yield a, b
    await trio.aclose_forcefully(a)
    await trio.aclose_forcefully(b)


@pytest.fixture
async def clogged(options: exs.Options) -> AsyncIterator[tuple[exs.SocketStream, exs.SocketStream]]:
    """A connected pair in which neither side can send."""
    a, b = await clogged_stream_pair(options)
    yield a, b
    await trio.aclose_forcefully(a)
    await trio.aclose_forcefully(b)


@pytest.fixture
async def channels(options: exs.Options) -> AsyncIterator[tuple[exs.MessageChannel, exs.MessageChannel]]:
    """A connected pair of message channels."""
    a, b = await message_pair(options)
    yield a, b
    await trio.aclose_forcefully(a)
    await trio.aclose_forcefully(b)


@pytest.fixture(scope="session", autouse=True)
def _warm() -> Iterator[None]:
    """What a process opens once and keeps is no leak of a test."""

    async def both_modes() -> None:
        kept = [exs.Options(progress=mode) for mode in MODES]  # type: ignore[arg-type]
        if not ground.VERBS:
            kept.append(exs.Options(protocol="smc", device="soft", smc_option="assume"))
        for options in kept:
            for stream in await stream_pair(options):
                await trio.aclose_forcefully(stream)

    exs.list_devices()
    trio.run(both_modes)
    if ground.VERBS:
        verbslink.Service.get()
    option.available()
    yield
    verbslink.Service.stop()


@pytest.fixture(autouse=True)
def _no_descriptor_left(_warm: None) -> Iterator[None]:
    before = Leaks.now()
    yield
    after = Leaks.settled(before)
    assert len(after.descriptors) <= len(before.descriptors), sorted(after.descriptors - before.descriptors)
    assert after.mappings <= before.mappings, "shared mappings are left"


# --- programs that are attacked (victim.py) -------------------------------------------------------------------


@pytest.fixture(scope="session")
def _warm_esapi() -> None:
    """What ES-API makes once in a process and keeps is there before anybody counts."""
    v = Victim()
    v.healthy()
    v.abandon()


def _attacked(kind: int, session: pytest.Session) -> Iterator[Victim]:
    v = Victim(kind)
    failed = session.testsfailed
    yield v
    if session.testsfailed > failed:
        v.abandon()
        return
    v.healthy()
    v.finish()


@pytest.fixture
def stream(request: pytest.FixtureRequest, _warm_esapi: None) -> Iterator[Victim]:
    """A program with STREAM sockets; it must be healthy afterwards, and leave nothing."""
    yield from _attacked(SOCK_STREAM, request.session)


@pytest.fixture
def messages(request: pytest.FixtureRequest, _warm_esapi: None) -> Iterator[Victim]:
    """The same with SEQPACKET sockets."""
    yield from _attacked(SOCK_SEQPACKET, request.session)


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Options of what ES-API makes from now on: it takes them from the environment."""

    def set_(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"EXS_{name.upper()}", value)
        _config.environment.cache_clear()

    yield set_
    monkeypatch.undo()
    _config.environment.cache_clear()
