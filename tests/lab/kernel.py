# SPDX-License-Identifier: MIT OR Apache-2.0
"""The guest's kernel: Debian's packages unpacked into a cache, never installed, and two modules built beside them.

Owns the cache folder; one process at a time fills it (a lock), and what is complete is never written again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from packages import Missing

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = Path(os.environ.get("EXS_LAB_CACHE") or ROOT / ".cache" / "lab")
SIW = "drivers/infiniband/sw/siw"


@dataclass(frozen=True)
class Kernel:
    """A kernel that a guest can boot."""

    release: str
    tree: Path

    @property
    def image(self) -> Path:
        return self.tree / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.tree / "lib" / "modules" / self.release


def ensure() -> Kernel:
    """The kernel, from the cache or fetched and built now (about 230 MB, about 20 s)."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tree, stamp = CACHE / "tree", CACHE / "kernel.json"
        wanted = {"lab": _digest(HERE / "module")}
        known = json.loads(stamp.read_text()) if stamp.exists() else {}
        if not known.get("release"):
            shutil.rmtree(tree, ignore_errors=True)
            known = {"release": _fetch(tree)}
        kernel = Kernel(known["release"], tree)
        if known.get("lab") != wanted["lab"]:
            shutil.rmtree(CACHE / "module", ignore_errors=True)
            shutil.copytree(HERE / "module", CACHE / "module")
            _build(kernel, CACHE / "module")
        stamp.write_text(json.dumps({**known, **wanted}))
        return kernel


def _digest(folder: Path) -> str:
    texts = [p.read_bytes() for p in sorted(folder.iterdir())]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def release_in(dependencies: str) -> str:
    """The kernel release that a meta package depends on, from the output of ``apt-cache depends``."""
    found = re.search(r"Depends: linux-headers-(\S+)", dependencies)
    if not found:
        raise Missing("apt knows no linux-headers-amd64: run apt-get update; the lab takes Debian's kernel")
    return found[1]


def _fetch(tree: Path) -> str:
    if os.geteuid() == 0:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
    asked = ["apt-cache", "depends", "linux-headers-amd64"]
    release = release_in(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    series = ".".join(release.split(".")[:2])
    shown = ["apt-cache", "show", "--no-all-versions", f"linux-headers-{release}"]
    said = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    version = re.search(r"^Version: (\S+)", said, re.MULTILINE)
    assert version, said
    flavour = release.rsplit("-", 1)[0]
    names = [
        f"linux-image-{release}",
        f"linux-headers-{release}",
        f"linux-headers-{flavour}-common",
        f"linux-kbuild-{series}",
        f"linux-source-{series}",
    ]
    print(f"lab: fetching Debian's kernel {release} ({version[1]})", flush=True)
    debs = CACHE / "debs"
    shutil.rmtree(debs, ignore_errors=True)
    debs.mkdir()
    apt = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download"]
    subprocess.run([*apt, *(_at(n, version[1]) for n in names)], cwd=debs, check=True)
    tree.mkdir()
    for name in names[:-1]:
        subprocess.run(["dpkg-deb", "-x", *debs.glob(f"{name}_*"), tree], check=True)
    # The headers lead to one another by absolute paths, where they would be if they were installed.
    makefile = tree / f"usr/src/linux-headers-{release}" / "Makefile"
    makefile.write_text(makefile.read_text().replace(" /usr/src/", f" {tree}/usr/src/"))
    siw = CACHE / "siw"
    _unpack_siw(next(debs.glob(f"{names[-1]}_*")), series, siw)
    _build(Kernel(release, tree), siw, "CONFIG_RDMA_SIW=m")
    shutil.rmtree(debs)
    return release


def _at(name: str, version: str) -> str:
    """A package of that version; of the newest where it has none.

    The packages of one kernel do not reach a mirror together: its tools may be a revision ahead of its image.
    """
    asked = ["apt-cache", "show", "--all-versions", name]
    said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    return f"{name}={version}" if f"Version: {version}" in said.splitlines() else name


def _unpack_siw(deb: Path, series: str, siw: Path) -> None:
    """The folder of one driver out of the package with all of the kernel's sources."""
    shutil.rmtree(siw, ignore_errors=True)
    siw.mkdir()
    script = (
        'dpkg-deb --fsys-tarfile "$1" | tar xO "./usr/src/linux-source-$2.tar.xz" '
        '| tar xJ --strip-components=5 -C "$3" "linux-source-$2/$4"'
    )
    subprocess.run(["bash", "-o", "pipefail", "-c", script, "siw", deb, series, siw, SIW], check=True)


def _build(kernel: Kernel, folder: Path, *settings: str) -> None:
    """Build a folder's module and put it among the kernel's own."""
    print(f"lab: building the kernel module in {folder.name}", flush=True)
    headers = kernel.tree / f"usr/src/linux-headers-{kernel.release}"
    done = subprocess.run(
        ["make", "-C", headers, f"M={folder}", *settings, "modules"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Missing(f"{folder.name} does not build:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    extra = kernel.modules / "extra"
    extra.mkdir(exist_ok=True)
    for module in folder.glob("*.ko"):
        subprocess.run(["strip", "-g", "-o", extra / module.name, module], check=True)
    subprocess.run(["depmod", "-b", kernel.tree, kernel.release], check=True)
