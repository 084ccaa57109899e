# SPDX-License-Identifier: MIT OR Apache-2.0
"""Limits that are reached: descriptors and memory of the process.

Each test is a process of its own, since a limit is the whole process's.  What needs more than there is gets its
documented error; whoever needs nothing new goes on, and all works again once there is room.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from ground import VERBS, patient, scaled

RING = scaled(512 << 20, 128 << 20)
"""More than there will be room for; an emulated machine pins even 128 MiB slowly."""
# Where both ends are in the kernel's hands, the listener may be the one that has no descriptor left.
NO_DESCRIPTOR = (errno.EMFILE, errno.ECONNREFUSED) if VERBS else (errno.EMFILE,)
ALONE = (
    f"RING, NO_DESCRIPTOR = {RING}, {NO_DESCRIPTOR}"
    + '''
import errno, os, resource, socket, sys
sys.path[:0] = sys.argv[1].split(':')
from exs import esapi, MemoryRegion
import exs
import rawpeer as rp
from victim import Victim
import gc

warm = Victim(); warm.healthy(); warm.abandon()

def refused(number, call):
    try:
        call()
    except OSError as problem:
        assert problem.errno == number, problem
        return str(problem)
    raise AssertionError("not refused")

def use_up_descriptors():
    """All of them; the list, and what gives back what is in it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hold = [os.dup(0) for _ in range(20)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(hold) + 1, hard))
    while True:
        try:
            hold.append(os.dup(0))
        except OSError:
            break

    def give_back():
        for h in hold:
            os.close(h)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    return hold, give_back
'''
)

HERE = ":".join(str(Path(__file__).parent.parent / folder) for folder in ("integration", "support"))


@pytest.fixture
def alone(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[[str], None]:
    """Run a program that begins with ALONE, and see that it came to its end."""

    def run(code: str) -> None:
        done = run_python(ALONE + code + 'print("good")\n', HERE, timeout=patient(30))
        assert done.stdout == "good\n", done.stderr

    return run


def test_limit_of_descriptors(alone: Callable[[str], None]) -> None:
    """EMFILE where one is needed; the old connections go on."""
    alone(
        """
v = Victim()
region = MemoryRegion.allocate(100_000)
region.view[:] = b"r" * 100_000
mh = esapi.exs_mregister(region, esapi.EXS_ACCESS_READ)
hold, give_back = use_up_descriptors()
refused(errno.EMFILE, v.socket)
refused(errno.EMFILE, lambda: esapi.exs_qcreate(4))
refused(errno.EMFILE, lambda: MemoryRegion.allocate(4096))
v.healthy()
# Memory that comes with a descriptor finds room all the same.
for a, b in (v.good, v.good[::-1]):
    room = bytearray(100_000)
    v.recv(b, room, f"recv {a}", esapi.MSG_WAITALL)
    v.drain(0.01)
    v.send(a, region, f"send {a}", 0, mh)
    v.expect(f"recv {a}")
    v.expect(f"send {a}")
    assert room == region.view
esapi.exs_mderegister(mh)
region.close()
# A socket that was made before cannot connect, and says so.
os.close(hold.pop())
fd = v.socket()
try:
    esapi.exs_connect(fd, v.address, "connect", v.queue)
except OSError as problem:
    assert problem.errno in NO_DESCRIPTOR, problem
else:
    v.posted("connect")
    v.expect("connect", *NO_DESCRIPTOR)
v.healthy()
give_back()
v.finish()
"""
    )


def test_a_connection_that_waits_is_taken_when_there_are_descriptors(alone: Callable[[str], None]) -> None:
    alone(
        """
v = Victim()
esapi.exs_accept(v.listener, "accept", v.queue); v.posted("accept")
client = socket.create_connection(v.address)          # set up by the kernel, not yet taken
hold, give_back = use_up_descriptors()
for _ in range(20):                                   # it waits, and costs nothing meanwhile
    v.drain(0.01)
v.healthy()
give_back()
def act():
    client.settimeout(10)
    client.sendall(rp.Frame(private=rp.Hello().encode()).encode())
    rp.read_frame(client, reply=True)
    link = rp.TcpLink(client)
    link.send(rp.Control(rp.CREDIT).encode())
    return link
link = v.during(act)
v.expect("accept")
v.healthy()
link.close()
v.finish()
"""
    )


def test_limit_of_memory(alone: Callable[[str], None]) -> None:
    """ENOMEM on the operation that needs it, and only there."""
    alone(
        """
v = Victim()
with open("/proc/self/statm") as f:
    used = int(f.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), resource.RLIM_INFINITY))
refused(errno.ENOMEM, lambda: MemoryRegion.allocate(1 << 30))
refused(errno.ENOMEM, lambda: exs.BufferPool(1 << 20, 1 << 12))
os.environ["EXS_RING_BYTES"] = str(RING)
from exs import _config
_config.environment.cache_clear()
fd = v.socket()
esapi.exs_connect(fd, v.address, "big ring", v.queue); v.posted("big ring")
v.expect("big ring", errno.ENOMEM)
v.healthy()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
v.finish()
"""
    )


def test_listener_without_memory_refuses_and_lives(alone: Callable[[str], None]) -> None:
    alone(
        """
os.environ["EXS_RING_BYTES"] = str(RING)
from exs import _config
_config.environment.cache_clear()
v = Victim(healthy=False)
with open("/proc/self/statm") as f:
    used = int(f.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), resource.RLIM_INFINITY))
os.environ["EXS_RING_BYTES"] = "65536"
_config.environment.cache_clear()
fd = v.begin_connect(v.address, "connect")
event = v.until(lambda: v.events.get("connect"))
assert event.exs_evt_errno in (errno.ECONNREFUSED, errno.ECONNRESET), event
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
esapi.exs_accept(v.listener, "accept", v.queue); v.posted("accept")
v.begin_connect(v.address, "again")
v.expect("again"); v.expect("accept")
v.finish()
"""
    )
