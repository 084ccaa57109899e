# SPDX-License-Identifier: MIT OR Apache-2.0
"""Limits that are reached: descriptors and memory of the process.

Each test is a process of its own, since a limit is the whole process's.  What needs more than there is gets its
documented error; whoever needs nothing new goes on, and all works again once there is room.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ground import patient

ALONE = """
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
"""

HERE = ":".join(str(Path(__file__).parent.parent / folder) for folder in ("integration", "support"))


def test_limit_of_descriptors(run_python: Callable[..., object]) -> None:
    """EMFILE where one is needed, the old connections go on; a connection that waits is taken when there is room."""
    done = run_python(
        ALONE
        + """
v = Victim()
region = MemoryRegion.allocate(100_000)
region.view[:] = b"r" * 100_000
mh = esapi.exs_mregister(region, esapi.EXS_ACCESS_READ)
esapi.exs_accept(v.listener, "accept", v.queue); v.posted("accept")
client = socket.create_connection(v.address)          # set up by the kernel, not yet taken
used = len(os.listdir("/proc/self/fd"))
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
hold = [os.dup(0) for _ in range(20)]
top = max(hold) + 1
resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
while True:
    try:
        hold.append(os.dup(0))
    except OSError:
        break
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
    assert problem.errno == errno.EMFILE, problem
else:
    v.posted("connect")
    v.expect("connect", errno.EMFILE)
v.healthy()
# A stranger waits in the queue of the listener, and costs nothing meanwhile.
for _ in range(20):
    v.drain(0.01)
v.healthy()
for h in hold:
    os.close(h)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
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
print("good")
""",
        HERE,
        timeout=patient(30),
    )
    assert done.stdout == "good\n", done.stderr  # type: ignore[attr-defined]


def test_limit_of_memory(run_python: Callable[..., object]) -> None:
    """ENOMEM on the operation that needs it, and only there."""
    done = run_python(
        ALONE
        + """
v = Victim()
with open("/proc/self/statm") as f:
    used = int(f.read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), resource.RLIM_INFINITY))
refused(errno.ENOMEM, lambda: MemoryRegion.allocate(1 << 30))
refused(errno.ENOMEM, lambda: exs.BufferPool(1 << 20, 1 << 12))
os.environ["EXS_RING_BYTES"] = str(512 << 20)
from exs import _config
_config.environment.cache_clear()
fd = v.socket()
esapi.exs_connect(fd, v.address, "big ring", v.queue); v.posted("big ring")
v.expect("big ring", errno.ENOMEM)
v.healthy()
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
v.finish()
print("good")
""",
        HERE,
        timeout=patient(30),
    )
    assert done.stdout == "good\n", done.stderr  # type: ignore[attr-defined]


def test_listener_without_memory_refuses_and_lives(run_python: Callable[..., object]) -> None:
    done = run_python(
        ALONE
        + """
os.environ["EXS_RING_BYTES"] = str(512 << 20)
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
print("good")
""",
        HERE,
        timeout=patient(30),
    )
    assert done.stdout == "good\n", done.stderr  # type: ignore[attr-defined]
