# SPDX-License-Identifier: MIT OR Apache-2.0
"""SocketStream is a trio.abc.HalfCloseableStream, MessageChannel a trio.abc.Channel: the contract suites."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from exs.testing import check_message_channel, clogged_stream_pair, message_pair, stream_pair

if TYPE_CHECKING:
    import exs


@pytest.mark.timeout(120)
def test_half_closeable_stream(options: exs.Options) -> None:
    async def main() -> None:
        with trio.fail_after(100):
            await trio.testing.check_half_closeable_stream(
                partial(stream_pair, options), partial(clogged_stream_pair, options)
            )

    trio.run(main)


def test_message_channel(options: exs.Options) -> None:
    async def main() -> None:
        with trio.fail_after(20):
            await check_message_channel(partial(message_pair, options))

    trio.run(main)
