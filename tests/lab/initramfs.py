# SPDX-License-Identifier: MIT OR Apache-2.0
"""The first file system of a guest: busybox, the modules that reach the machine's root folder, and a script.

The guest's root is the machine's own, read-only over 9p, under a layer in memory: a guest may write where it likes and
hurts nothing.  Only the job's folder is shared for writing.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from kernel import Kernel
from packages import Missing

WANTED = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")

INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for m in {modules}; do $b insmod /modules/$m || echo "lab: module $m does not load"; done
share=trans=virtio,version=9p2000.L,msize=512000
$b mount -t 9p -o $share,cache=loose,ro host /host || echo "lab: no root folder"
$b mount -t tmpfs -o size=80% layer /layer
$b mkdir /layer/upper /layer/work
$b mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work root /root || echo "lab: no overlay"
$b mount -t 9p -o $share,cache=none job "/root{job}" || echo "lab: no job folder"
for d in proc sys dev; do $b mount --move /$d /root/$d; done
# chroot as process 1 itself: the kernel's own calls of modprobe look for modules in process 1's root folder
exec $b chroot /root /bin/sh "{stage2}" "{job}"
"""


def load_order(modules_dep: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of the wanted modules and of what they need, each after what it needs.

    Args:
        modules_dep: The text of ``modules.dep``.
        wanted: Names of modules; what is built into the kernel is in no list and left out.
    """
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {Path(p).name.split(".")[0].replace("-", "_"): p for p in needs}
    order: list[str] = []
    for name in wanted:
        if name not in by_name:
            continue
        # What is needed first stands last.
        for path in [*reversed(needs[by_name[name]]), by_name[name]]:
            if path not in order:
                order.append(path)
    return order


def archive(entries: list[tuple[str, int, bytes]]) -> bytes:
    """A cpio archive in the "newc" form, of (path, mode, content)."""
    out = bytearray()
    for number, (path, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % f for f in fields) + name
        out += b"\0" * (-len(out) % 4)
        out += content
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def build(kernel: Kernel, job: Path, stage2: Path) -> bytes:
    """The archive for a guest whose job is in that folder."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise Missing("busybox is not installed (busybox-static)")
    order = load_order((kernel.modules / "modules.dep").read_text(), WANTED)
    names = [Path(p).name for p in order]
    init = INIT.format(modules=" ".join(names), job=job, stage2=stage2)
    folders = ("bin", "dev", "proc", "sys", "host", "layer", "root", "modules")
    entries = [(d, 0o40755, b"") for d in folders]
    entries.append(("bin/busybox", 0o100755, Path(busybox).read_bytes()))
    entries.append(("init", 0o100755, init.encode()))
    entries += [
        (f"modules/{n}", 0o100644, (kernel.modules / p).read_bytes()) for n, p in zip(names, order, strict=True)
    ]
    return gzip.compress(archive(entries), compresslevel=1)
