# SPDX-License-Identifier: MIT OR Apache-2.0
"""One virtual machine: its command line, its job folder, its life from boot to exit status.

Always software emulation: it works everywhere alike, and a ``/dev/kvm`` may be there and hang a guest.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import initramfs
from kernel import ROOT, Kernel

STAGE2 = Path(__file__).resolve().parent / "guest.sh"
BUILD = ROOT / "build" / "lab"
PROCESSOR = "max,-erms,-fsrm"
"""Not with fast "rep movsb": the kernel would copy by it, and emulation moves one byte at a time; six times slower."""
BOOT_S = 120.0
"""How long a guest may take until it runs its job: about 10 s if the machine does nothing else."""


class Failed(Exception):
    """A guest did not boot, or did not end; says so with the end of its console."""


@dataclass(frozen=True)
class Job:
    """What a guest shall do.

    Args:
        command: The program and its arguments.
        env: Its environment, beside what every guest has.
        venv: Whose programs come first.
        cwd: Where it starts.
        timeout: Seconds until the machine is switched off.
    """

    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    venv: Path | None = None
    cwd: Path = ROOT
    timeout: float = 600.0

    def script(self) -> str:
        """The job as a program for the guest's shell."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {
            "PATH": f"{self.venv}/bin:{path}" if self.venv else path,
            "PYTHONSAFEPATH": "1",
            "TMPDIR": "/var/tmp",  # in memory
            "EXS_LAB": "1",
            **self.env,
        }
        lines = [f"export {k}={shlex.quote(v)}" for k, v in env.items()]
        lines.append("stty -onlcr 2>/dev/null")
        lines.append(f"cd {shlex.quote(str(self.cwd))}")
        lines.append(f"exec {shlex.join(self.command)}")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Shape:
    """What a machine is made of."""

    cpus: int = 2
    memory_mib: int = 2560
    smc: bool = False


def command_line(
    kernel: Kernel,
    folder: Path,
    role: int,
    shape: Shape,
    wires: Sequence[int],
    terminal: str,
    hands: tuple[int, int],
) -> list[str]:
    """How QEMU is called.

    Args:
        kernel: What it boots.
        folder: The job's folder.
        role: 1 or 2; the last part of its addresses.
        shape: Processors and memory.
        wires: A connected socket for each Ethernet device; without, the devices lead nowhere.
        terminal: A QEMU character device for the job's input and output.
        hands: Two ends of a socket: through one the guest speaks to QEMU's monitor at the other (cable.py).
    """
    nics: list[str] = []
    for n in range(3):
        backend = f"socket,id=wire{n},fd={wires[n]}" if wires else f"user,id=wire{n},restrict=on"
        nics += ["-netdev", backend]
        nics += ["-device", f"virtio-net-pci,netdev=wire{n},mac=52:54:00:ec:{n:02x}:{role:02x},romfile="]
    share = "security_model=none,multidevs=remap"
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", PROCESSOR),
        *("-smp", str(shape.cpus), "-m", str(shape.memory_mib)),
        *("-kernel", str(kernel.image), "-initrd", str(folder / "initramfs")),
        # On a busy machine the kernel takes late ticks of an emulated timer for none, and gives up.  What is emulated
        # is translated once for each address: a library at the same one in every process, once for all of them.
        *("-append", "console=ttyS0 quiet panic=-1 nokaslr norandmaps mitigations=off no_timer_check tsc=reliable"),
        *("-serial", f"file:{folder / 'console'}"),
        *(
            "-chardev",
            f"{terminal},id=terminal",
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtconsole,chardev=terminal",
        ),
        *("-chardev", f"socket,id=monitor,fd={hands[0]}", "-mon", "chardev=monitor,mode=readline"),
        *("-chardev", f"socket,id=hands,fd={hands[1]}", "-device", "virtserialport,chardev=hands,name=hands"),
        *("-fsdev", f"local,id=host,path=/,readonly=on,{share}"),
        *("-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
        *("-fsdev", f"local,id=job,path={folder},{share}"),
        *("-device", "virtio-9p-pci,fsdev=job,mount_tag=job"),
        *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        *nics,
    ]


class Guest:
    """A running machine.

    Args:
        kernel: What it boots.
        job: What it does.
        role: 1 or 2.
        shape: Processors and memory.
        wires: See :func:`command_line`; they are ours to close.
        interactive: Whether the job has our own terminal.
        echo: Whether its output goes to ours, as it comes.
    """

    def __init__(
        self,
        kernel: Kernel,
        job: Job,
        *,
        role: int = 1,
        shape: Shape | None = None,
        wires: Sequence[int] = (),
        interactive: bool = False,
        echo: bool = True,
    ) -> None:
        shape = shape or Shape()
        BUILD.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"guest{role}-", dir=BUILD))
        self._job, self._echo, self._interactive = job, echo, interactive
        self._started = time.monotonic()
        settings = {
            "role": str(role),
            "modules": str(kernel.modules),
            "terminal": "hvc0",
            "smc": "1" if shape.smc else "",
        }
        (self.folder / "settings").write_text("".join(f"{k}={shlex.quote(v)}\n" for k, v in settings.items()))
        here = f"export EXS_LAB_JOB={shlex.quote(str(self.folder))}\n"
        (self.folder / "job.sh").write_text(here + job.script())
        (self.folder / "initramfs").write_bytes(initramfs.build(kernel, self.folder, STAGE2))
        one, other = socket.socketpair()
        with one, other:
            hands = (one.fileno(), other.fileno())
            line = command_line(kernel, self.folder, role, shape, wires, "stdio,signal=off", hands)
            self._qemu = subprocess.Popen(
                # Whoever ends us, kill -9 included, ends the machine too.
                ["setpriv", "--pdeathsig", "KILL", "--", *line],
                stdin=None if interactive else subprocess.DEVNULL,
                stdout=None if interactive else subprocess.PIPE,
                pass_fds=(*wires, *hands),
            )
        self._reader = threading.Thread(target=self._copy, daemon=True)
        self._reader.start()

    def _copy(self) -> None:
        """The job's output: to its folder, and to ours."""
        if self._qemu.stdout is None:
            return
        with open(self.folder / "output", "wb") as keep:
            while data := os.read(self._qemu.stdout.fileno(), 65536):
                keep.write(data)
                keep.flush()
                if self._echo:
                    sys.stdout.buffer.write(data)
                    sys.stdout.buffer.flush()

    @property
    def up(self) -> bool:
        """Whether it has begun its job."""
        return (self.folder / "up").exists()

    def wait(self) -> int:
        """Wait until the job is over and the machine is off; returns the job's exit status.

        Raises:
            Failed: It did not boot, it was switched off for its timeout, or it ended without a status.
        """
        limit = self._started + BOOT_S + self._job.timeout
        while True:
            try:
                self._qemu.wait(0.5)
                break
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if not self.up and now > self._started + BOOT_S:
                raise self._failure(f"the guest did not boot within {BOOT_S:.0f} s")
            if now > limit:
                raise self._failure(f"the guest was switched off after {now - self._started:.0f} s")
        if not self._interactive:
            self._reader.join()
        status = self.folder / "status"
        if not status.exists():
            raise self._failure("the guest ended without an exit status" if self.up else "the guest did not boot")
        return int(status.read_text())

    def ended(self, patience: float) -> bool:
        """Whether the machine is off, within so many seconds."""
        try:
            self._qemu.wait(patience)
        except subprocess.TimeoutExpired:
            return False
        return True

    def console_tail(self, lines: int = 40) -> str:
        """The end of what its kernel and our script said."""
        console = self.folder / "console"
        text = console.read_text(errors="replace") if console.exists() else "(nothing)"
        return "\n".join(text.splitlines()[-lines:])

    def _failure(self, what: str) -> Failed:
        self.kill()
        return Failed(f"{what}; the end of its console ({self.folder / 'console'}):\n{self.console_tail()}")

    def kill(self) -> None:
        """Switch it off."""
        if self._qemu.poll() is None:
            self._qemu.kill()
            self._qemu.wait()

    def discard(self) -> None:
        """Its folder is not needed any more."""
        shutil.rmtree(self.folder, ignore_errors=True)
