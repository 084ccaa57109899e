# SPDX-License-Identifier: MIT OR Apache-2.0
"""The lab's own decisions, without a machine: order of modules, archive, command lines, verdicts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import ground
import guest
import initramfs
import kernel
import packages
import pytest
import suites

DEP = """\
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/fscache/fscache.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
kernel/virtio/virtio-pci.ko: kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko
"""


def test_a_module_is_loaded_after_what_it_needs() -> None:
    order = [Path(p).stem for p in initramfs.load_order(DEP, ("virtio_pci", "9pnet_virtio", "9p", "builtin"))]
    assert order == ["virtio", "virtio_ring", "virtio-pci", "9pnet", "9pnet_virtio", "netfs", "fscache", "9p"]


def test_an_archive_has_what_was_put_in(tmp_path: Path) -> None:
    blob = initramfs.archive([("bin", 0o40755, b""), ("bin/x", 0o100755, b"abc"), ("odd-name", 0o100644, b"12345")])
    assert blob[:6] == b"070701"
    assert len(blob) % 4 == 0
    at, found = 0, {}
    while True:
        size, name_size = int(blob[at + 54 : at + 62], 16), int(blob[at + 94 : at + 102], 16)
        name = blob[at + 110 : at + 110 + name_size - 1].decode()
        body = at + 110 + name_size + (-(110 + name_size) % 4)
        if name == "TRAILER!!!":
            break
        found[name] = blob[body : body + size]
        at = body + size + (-size % 4)
    assert found == {"bin": b"", "bin/x": b"abc", "odd-name": b"12345"}


def test_a_guest_is_emulated_and_its_root_is_read_only(tmp_path: Path) -> None:
    booted = kernel.Kernel("6.1.0", tmp_path)
    line = guest.command_line(booted, tmp_path, 2, guest.Shape(), [11, 12, 13], "stdio", (21, 22))
    text = " ".join(line)
    assert "-accel tcg" in text
    assert "kvm" not in text
    assert "id=host,path=/,readonly=on" in text
    assert [w for w in line if w.startswith("socket,id=wire")] == [f"socket,id=wire{n},fd={11 + n}" for n in range(3)]
    macs = {w.split("mac=")[1][:17] for w in line if "mac=" in w}
    assert macs == {f"52:54:00:ec:{n:02x}:02" for n in range(3)}


def test_a_job_says_its_arguments_as_they_are(tmp_path: Path) -> None:
    words = ["printf", "%s|", "a b", "$HOME", "it's", '"', ";"]
    script = guest.Job(words, env={"EXS_X": "1 2"}, cwd=tmp_path).script()
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "".join(f"{w}|" for w in words[2:])


def test_releases_and_packages_are_read() -> None:
    said = "linux-headers-amd64\n  Depends: linux-headers-6.1.0-56-amd64\n"
    assert kernel.release_in(said) == "6.1.0-56-amd64"
    with pytest.raises(packages.Missing, match="apt-get update"):
        kernel.release_in("linux-headers-amd64\n")
    assert packages.installed("kmod installed\nperftest not-installed\nhalf half-installed\n") == {"kmod"}


def test_what_is_about_soft_is_skipped_for_a_reason_that_the_verdict_knows() -> None:
    assert any(re.search(allowed, f"{ground.ABOUT_SOFT_SKIP}anything") for allowed in suites.ALLOWED_SKIPS)
    assert ground.about_soft("tests/integration/test_proxy.py::test_a_proxy_that_does_nothing")
    assert ground.about_soft("tests/integration/test_faults.py::test_mapped_file_truncated[x]")
    assert ground.about_soft("tests/integration/test_streams.py::test_anything[verbs-rxe-inline]") is None


@pytest.mark.parametrize("name", ground.ABOUT_SOFT)
def test_what_is_about_soft_is_there(name: str) -> None:
    integration = kernel.ROOT / "tests" / "integration"
    function = name.partition("[")[0]
    assert (integration / f"{name}.py").exists() or any(
        f"def {function}" in file.read_text() for file in integration.glob("test_*.py")
    )


SUITE = suites.Suite("s", "soft/tcp", [], least=2)
GOOD = "<testcase name='a'/><testcase name='b'/>"


@pytest.mark.parametrize(
    ("status", "cases", "partly", "good"),
    [
        (0, GOOD, False, True),
        (0, "<testcase name='a'/>", False, False),  # fewer than there are
        (0, "<testcase name='a'/>", True, True),
        (5, "", True, True),  # somebody's -k selects nothing here
        (5, "", False, False),
        (1, GOOD + "<testcase name='c'><failure/></testcase>", False, False),
        (1, GOOD + "<testcase name='c'><error/></testcase>", True, False),
        (3, GOOD, False, False),  # pytest itself failed
        (3, GOOD, True, False),
        (0, GOOD + "<testcase name='c'><skipped message='no huge pages'/></testcase>", False, True),
        (0, GOOD + "<testcase name='c'><skipped message='no mood'/></testcase>", False, False),
        (0, GOOD + "<testcase name='c'><skipped message='about soft: its bytes'/></testcase>", False, True),
        (0, GOOD + "<testcase name='c'><skipped message='no word about soft: x'/></testcase>", False, False),
        (0, None, False, False),
    ],
)
def test_a_verdict(status: int, cases: str | None, partly: bool, good: bool) -> None:
    report = None if cases is None else f"<testsuites><testsuite>{cases}</testsuite></testsuites>"
    assert suites.judge(SUITE, status, report, 1.0, partly=partly).good is good
