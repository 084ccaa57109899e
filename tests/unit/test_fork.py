# SPDX-License-Identifier: MIT OR Apache-2.0
"""After a fork everything of exs is dead in the child, and says so; the parent does not notice."""

from __future__ import annotations

import pytest

HEAD = """
import errno, os, socket, sys, traceback, warnings
import exs
from exs import _native, esapi
from exs.esapi import *

U = EXS_MHANDLE_UNREGISTERED

def refused(call):
    try:
        call()
    except exs.Error as e:
        assert e.errno == errno.EINVAL and "fork" in str(e), repr(e)
    else:
        raise AssertionError("accepted")

def in_child(work):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: there are threads
        pid = os.fork()
    if not pid:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def pair(progress=0):
    q = exs_qcreate(4)
    listener = exs_socket(socket.AF_INET, socket.SOCK_STREAM)
    exs_setsockopt(listener, SOL_EXS, EXS_SO_PROGRESS, progress)
    exs_bind(listener, ("127.0.0.1", 0))
    exs_listen(listener)
    a = exs_socket(socket.AF_INET, socket.SOCK_STREAM)
    exs_setsockopt(a, SOL_EXS, EXS_SO_PROGRESS, progress)
    exs_accept(listener, None, q)
    exs_connect(a, exs_getsockname(listener), None, q)
    b, = (e.exs_evt_union.exs_evt_fd for e in exs_qdequeue(q, -2, 10) if e.exs_evt_type == EXS_EVT_ACCEPT)
    return a, b, listener, q
"""


@pytest.fixture
def succeeds(run_python):
    """Run a program that begins with HEAD, and see that it came to its end."""

    def run(code: str, *args: str) -> None:
        done = run_python(HEAD + code + 'print("done")\n', *args)
        assert done.stdout == "done\n", done.stderr

    return run


# ES-API 1.4
def test_objects_of_the_parent_are_dead_in_the_child(succeeds) -> None:
    succeeds(
        """
exs_init()
a, b, listener, q = pair(int(sys.argv[1]))
region = exs.MemoryRegion.allocate(4096)
mh = exs_mregister(region, EXS_ACCESS_READ)

def child():
    for call in (
        lambda: exs_send(a, b"x", None, 0, U, None, q),
        lambda: exs_recv(a, bytearray(1), None, 0, U, None, None),
        lambda: exs_qdequeue(q, 1, 0),
        lambda: exs_qcreate(5),
        lambda: exs_close(a),
        lambda: exs_mregister(bytearray(5), EXS_ACCESS_READ),
        lambda: exs_mderegister(mh),
        lambda: exs.MemoryRegion(bytearray(5)),
        lambda: region.close(),
        lambda: exs.statistics(),
        lambda: exs.list_devices(),
    ):
        refused(call)

for _ in range(3):
    in_child(child)
exs_send(a, b"hello", None, 0, U, None, None)
room = bytearray(5)
assert exs_recv(b, room, None, 0, U, None, None) == 5 and room == b"hello"
exs_mderegister(mh)
for fd in (a, b, listener):
    exs_close(fd)
""",
        "0",
    )


def test_the_child_may_begin_again(succeeds) -> None:
    succeeds(
        """
exs_init()
a, b, listener, q = pair(1)

def child():
    refused(lambda: exs_qcreate(5))
    exs_init()
    for old in (a, b, listener):
        try:
            exs_getsockname(old)
        except exs.Error as e:
            assert e.errno in (errno.EBADF, errno.ENOTSOCK), e
        else:
            raise AssertionError("an old descriptor lives")
    x, y, l, mine = pair(1)
    exs_send(x, b"child", None, 0, U, None, None)
    room = bytearray(5)
    assert exs_recv(y, room, None, 0, U, None, None) == 5 and room == b"child"
    for fd in (x, y, l):
        exs_close(fd)

in_child(child)
exs_send(a, b"hello", None, 0, U, None, None)
room = bytearray(5)
assert exs_recv(b, room, None, 0, U, None, None) == 5 and room == b"hello"
for fd in (a, b, listener):
    exs_close(fd)
""",
    )


def test_a_fork_before_the_first_use_is_no_matter(succeeds) -> None:
    succeeds(
        """
def work():
    exs_init()
    a, b, listener, q = pair(1)
    exs_send(a, b"hello", None, 0, U, None, None)
    assert exs_recv(b, bytearray(5), None, 0, U, None, None) == 5
    for fd in (a, b, listener):
        exs_close(fd)

in_child(work)
work()
""",
    )


def test_the_childs_garbage_does_not_touch_the_parent(succeeds) -> None:
    succeeds(
        """
import gc
exs_init()
a, b, listener, q = pair()
data = exs.MemoryRegion.allocate(1 << 20)
data.view[:] = b"y" * (1 << 20)
exs_send(a, data, None, 0, exs_mregister(data, EXS_ACCESS_READ), "send", q)

def child():
    global data, q
    warnings.simplefilter("ignore")
    del data, q
    _native.ops._slots.clear()
    gc.collect()

in_child(child)
room = bytearray(1 << 20)
exs_recv(b, room, None, MSG_WAITALL, U, "recv", q)
assert len(exs_qdequeue(q, -2, 10)) == 2
assert room == data.view
for fd in (a, b, listener):
    exs_close(fd)
data.close()
""",
    )
