# SPDX-License-Identifier: MIT OR Apache-2.0
"""The commands ``serve``, ``put`` and ``get``: arguments, connections over exs, output.

The protocol is in ``protocol``, the file system in ``paths``; ``link`` is all that knows of exs sockets.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from contextlib import asynccontextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, cast

import trio

import exs
from exs.cli.common import Address, endpoint_text, options_of
from exs.cli.transfer import client, leftovers, server
from exs.cli.transfer.link import HOLD_US, LINK_ERRORS, ExsLink, lost, open_link
from exs.cli.transfer.paths import Root, printable
from exs.cli.transfer.progress import make_progress
from exs.cli.transfer.session import first_error
from exs.cli.transfer.summary import EXIT_CONNECTION, EXIT_OK, EXIT_SOME_FAILED, Summary, error_record

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator

DIRECTORIES_AT_ONCE = 64
"""That are looked through for leftovers in one step on a thread."""


def transfer_options(options: exs.Options) -> exs.Options:
    """The same, as a transfer wants it."""
    return dataclasses.replace(options, direct_hold_us=HOLD_US)


def connector(address: Address, options: exs.Options) -> client.Connect:
    """Opens links to a server."""
    chosen = transfer_options(options)

    @asynccontextmanager
    async def connect() -> AsyncGenerator[ExsLink]:
        stream = await exs.open_stream(address.host, address.port, options=chosen)
        async with open_link(stream) as link:
            yield link

    return connect


def _finish(summary: Summary, args: argparse.Namespace) -> int:
    if args.json:
        record = summary.record()
        counters = exs.statistics()
        record["statistics"] = {name: getattr(counters, name) for name in type(counters).__slots__}
        print(json.dumps(record))
    else:
        for line in summary.lines():
            print(line, file=sys.stderr)
    return summary.exit_code


def run_put(args: argparse.Namespace) -> int:
    """``exs put``."""
    into = os.path.normpath(args.to).strip("/") if args.to else ""

    async def work() -> Summary:
        with make_progress("put", wanted=not (args.json or args.quiet)) as progress:
            return await client.put(
                connector(args.address, options_of(args)),
                args.files,
                into=os.fsencode("" if into == "." else into),
                workers=args.jobs,
                progress=progress,
            )

    return _finish(trio.run(work), args)


def run_get(args: argparse.Namespace) -> int:
    """``exs get``."""
    paths = [os.fsencode(os.path.normpath(path)) for path in args.paths]
    try:
        os.makedirs(args.output, exist_ok=True)
        root = Root(args.output)
    except OSError as error:
        print(f"exs get: {args.output}: {error.strerror}", file=sys.stderr)
        return EXIT_SOME_FAILED

    async def work() -> Summary:
        with make_progress("get", wanted=not (args.json or args.quiet)) as progress:
            return await client.get(
                connector(args.address, options_of(args)), paths, root, workers=args.jobs, progress=progress
            )

    try:
        return _finish(trio.run(work), args)
    finally:
        root.close()


def _report_json(event: dict[str, object]) -> None:
    print(json.dumps(event), flush=True)


def _report_text(event: dict[str, object]) -> None:
    if event["event"] == "refused":
        error = event["error"]
        print(f"{event['peer']}: refused: {error['reason'] if isinstance(error, dict) else ''}", file=sys.stderr)
    if event["event"] == "cleared":
        print(f"removed {event['path']}, {event['bytes']} bytes, left by a process that was killed", file=sys.stderr)
    if event["event"] != "connection":
        return
    failed = event["failed"]
    assert isinstance(failed, list)
    for failure in cast("list[dict[str, object]]", failed):
        what = failure.get("path") or f"number {failure.get('id')}"
        print(f"{event['peer']}: failed {what}: {failure['reason']}", file=sys.stderr)
    error = event["error"]
    if isinstance(error, dict):
        print(f"{event['peer']}: {error['reason']}", file=sys.stderr)
    if event["files_received"] or event["files_sent"]:
        print(
            f"{event['peer']} ({event['path']}): received {event['files_received']} files, "
            f"{event['bytes_received']} bytes; sent {event['files_sent']} files",
            file=sys.stderr,
        )


async def _until_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()
            return


async def _clear(root: Root, report: server.Report) -> None:
    """Remove what killed processes left in the served directory, while clients are served."""
    steps = leftovers.clear(root)
    while some := await trio.to_thread.run_sync(list, islice(steps, DIRECTORIES_AT_ONCE)):
        for left in chain.from_iterable(some):
            report({"event": "cleared", "path": printable(left.path), "bytes": left.size})


async def _serve(args: argparse.Namespace, root: Root) -> None:
    report = _report_json if args.json else _report_text
    served = server.Server(root, read_only=args.read_only, report=report)

    async def handle(stream: exs.SocketStream) -> None:
        peer, reported = "", False
        try:
            peer = endpoint_text(stream.socket.getpeername())
            async with open_link(stream) as link:
                reported = True
                await served.handle(link, peer)
        except LINK_ERRORS as error:
            # Behind the report this is only the closing of a connection that the peer has lost.
            if not reported:
                report({"event": "refused", "peer": peer, "error": error_record(lost(error))})

    options = transfer_options(options_of(args))
    listeners = await exs.open_listeners(args.port, host=args.host, options=options)
    addresses = [endpoint_text(listener.address) for listener in listeners]
    if args.json:
        _report_json({"event": "listening", "addresses": addresses, "read_only": args.read_only})
    else:
        about = " (read-only)" if args.read_only else ""
        name = printable(os.fsencode(args.directory))
        print(f"serving {name}{about} on {', '.join(addresses)}", file=sys.stderr, flush=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        if not args.read_only:
            nursery.start_soon(_clear, root, report)
        await _until_signal(nursery.cancel_scope)


def run_serve(args: argparse.Namespace) -> int:
    """``exs serve``: until SIGINT or SIGTERM."""
    try:
        root = Root(args.directory)
    except OSError as error:
        print(f"exs serve: {args.directory}: {error.strerror}", file=sys.stderr)
        return EXIT_SOME_FAILED
    try:
        trio.run(_serve, args, root)
    except (OSError, ExceptionGroup) as failure:
        cause = first_error(failure)
        if cause is None:
            raise
        print(f"exs serve: {cause.reason}", file=sys.stderr)
        return EXIT_CONNECTION
    finally:
        root.close()
    return EXIT_OK
