# SPDX-License-Identifier: MIT OR Apache-2.0
"""The TCP option of SMC-R on loopback: whose segments have it, and what each side knows of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from exs.smc import option

IPV4, IPV6 = (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")


@pytest.fixture
def program() -> None:
    if why := option.available():
        pytest.skip(f"needs root: {why}")


@contextmanager
def connection(family: int, host: str, *, client: bool, server: bool) -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.socket(family) as listener, socket.socket(family) as one:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, 0))
        if server:
            option.mark(listener)
        else:
            listener.setsockopt(socket.IPPROTO_TCP, option.TCP_SAVE_SYN, 1)
        listener.listen()
        if client:
            option.mark(one)
        one.connect(listener.getsockname())
        two, _ = listener.accept()
        with two:
            yield one, two
        if server:
            option.forget(listener)


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize("family", [IPV4, IPV6], ids=["v4", "v6"])
@pytest.mark.parametrize("client", [False, True])
@pytest.mark.parametrize("server", [False, True])
def test_it_is_answered_only_where_it_was_offered_and_wanted(
    family: tuple[int, str], client: bool, server: bool
) -> None:
    with connection(*family, client=client, server=server) as (one, two):
        assert option.offered(two) is client
        assert option.answered(one) is (client and server)


@pytest.mark.usefixtures("program")
def test_payload_passes_and_no_later_segment_has_it() -> None:
    with connection(*IPV4, client=True, server=True) as (one, two):
        one.sendall(b"x" * 100_000)
        got = b""
        while len(got) < 100_000:
            got += two.recv(65536)
        two.sendall(b"back")
        assert one.recv(10) == b"back"


@pytest.mark.usefixtures("program")
def test_a_listener_that_is_gone_marks_nobody_on_its_port() -> None:
    with connection(*IPV4, client=True, server=True) as (one, two):
        port = two.getsockname()[1]
        assert option.answered(one)
    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        option.mark(client)
        client.connect(listener.getsockname())
        assert not option.answered(client)


PEER = """
import socket, sys
from exs.smc import option
listener = socket.create_server(("127.0.0.1", 0))
listener.close()
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
option.mark(listener)
listener.listen()
print(listener.getsockname()[1], flush=True)
sys.stdin.readline()
"""


@pytest.mark.usefixtures("program")
def test_two_processes_each_with_its_own() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        port = int(other.stdout.readline())
        with socket.socket() as one, socket.socket() as two:
            option.mark(one)
            one.connect(("127.0.0.1", port))
            two.connect(("127.0.0.1", port))
            assert option.answered(one)
            assert not option.answered(two)
        other.kill()


WITHOUT = """
import logging, socket, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
from exs.smc import option
for _ in range(2):
    one = socket.socket()
    option.mark(one)
print(option.available())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_the_capability_one_warning_names_it() -> None:
    bare = ["setpriv", "--bounding-set=-bpf,-sys_admin", "--inh-caps=-bpf,-sys_admin"]
    command = [*bare, sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    first, last = done.stdout.splitlines()
    assert "CAP_BPF and CAP_NET_ADMIN" in first
    assert "assume" in first
    assert last.endswith("this process lacks CAP_BPF")


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        (0, ["CAP_BPF", "CAP_NET_ADMIN"]),
        (1 << 39, ["CAP_NET_ADMIN"]),
        (1 << 12, ["CAP_BPF"]),
        (1 << 39 | 1 << 12, []),
        (1 << 21, []),
    ],
)
def test_the_missing_capability_is_named(held: int, missing: list[str]) -> None:
    status = f"CapInh:\t{0:016x}\nCapPrm:\t{(1 << 41) - 1:016x}\nCapEff:\t{held:016x}\nCapBnd:\t{0:016x}\n"
    assert option.lacking(status) == missing


def test_the_folder_of_the_group() -> None:
    mounts = (
        "25 1 0:22 / /sys/fs/cgroup rw shared:4 - tmpfs tmpfs rw\n"
        "31 25 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n"
    )
    assert option.group_folder(mounts, "4:memory:/x\n0::/a/b\n") == "/sys/fs/cgroup/unified/a/b"
    assert option.group_folder(mounts, "0::/\n") == "/sys/fs/cgroup/unified"
    assert option.group_folder(mounts, "4:memory:/x\n") is None
    assert option.group_folder("", "0::/\n") is None
    inside = "31 25 0:27 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert option.group_folder(inside, "0::/docker/1/x\n") == "/sys/fs/cgroup/x"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (option.OPTION + b"\1\1", True),
        (b"\2\4\5\xb4\1\1" + option.OPTION, True),
        (b"\2\4\5\xb4\0\0" + option.OPTION, False),
        (b"\xfe\x06\xe2\xd4\xc3\xc4\1\1", False),
        (b"\2\0" + option.OPTION, False),
        (b"\2", False),
        (b"", False),
    ],
)
def test_options_of_a_segment(options: bytes, found: bool) -> None:
    padded = options.ljust((len(options) + 3) // 4 * 4, b"\0")
    tcp = bytes(12) + bytes([(20 + len(padded)) // 4 << 4]) + bytes(7) + padded
    assert option.has_option(b"\x45" + bytes(19) + tcp) is found
    assert option.has_option(b"\x60" + bytes(39) + tcp) is found
    assert not option.has_option((b"\x45" + bytes(19) + tcp)[:30])
