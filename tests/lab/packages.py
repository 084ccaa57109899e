# SPDX-License-Identifier: MIT OR Apache-2.0
"""The Debian packages that the lab needs on the machine itself: which, and that they are there.

Knows nothing of the guest's kernel, which is never installed (kernel.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess

GUESTS = ("qemu-system-x86", "busybox-static", "kmod", "iproute2")
RDMA = ("rdma-core", "ibverbs-utils", "rdmacm-utils", "ibverbs-providers", "libibverbs-dev", "librdmacm-dev")
MODULES = ("gcc", "make", "libc6-dev", "libelf1", "xz-utils")
PEERS = ("perftest", "qperf", "python3-pyverbs", "tshark", "util-linux")
# Not redis-server: it would start one on the machine, and its program is that of redis-tools.
SMC = ("redis-tools",)
PACKAGES = GUESTS + RDMA + MODULES + PEERS + SMC


class Missing(Exception):
    """Something that the lab needs is not there; says how to get it."""


def installed(listing: str) -> set[str]:
    """The packages that a listing of ``dpkg-query`` calls installed: lines of ``name status``."""
    rows = (line.split() for line in listing.splitlines())
    return {row[0] for row in rows if row[1:] == ["installed"]}


def ensure() -> None:
    """Install what is missing if we are root, else say what to install."""
    if shutil.which("dpkg-query") is None:
        raise Missing("the lab takes its kernel and tools from Debian's packages: run it on Debian 12")
    form = "-f=${Package} ${db:Status-Status}\n"
    listing = subprocess.run(["dpkg-query", "-W", form, *PACKAGES], capture_output=True, text=True, check=False)
    missing = [p for p in PACKAGES if p not in installed(listing.stdout)]
    if not missing:
        return
    if os.geteuid() != 0:
        raise Missing(f"as root: apt-get install --no-install-recommends {' '.join(missing)}")
    print(f"lab: installing {' '.join(missing)}", flush=True)
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=env, check=True)
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    subprocess.run(install, env=env, stdout=subprocess.DEVNULL, check=True)
