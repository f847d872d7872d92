"""Which GPUs of this machine are free, and holding them so that nobody of us takes them too.

A GPU is free when no sweep on this machine holds its lock and no process computes on it. The lock
of a sweep goes with the sweep, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tpcli.errors import TpcliError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCKS = Path("/tmp/tpcli-gpus")
"""One folder for all users of the machine: $TMPDIR may be each user's own."""
PATIENCE = 60.0
"""Seconds that nvidia-smi may take."""
FRESH = 3.0
"""Seconds for which what nvidia-smi said of the processes is believed."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """``name`` is what CUDA_VISIBLE_DEVICES calls it, ``uuid`` what the driver calls it."""

    name: str
    uuid: str


@dataclass(slots=True)
class Lease:
    """GPUs that are ours until they are given back."""

    gpus: Sequence[Gpu] = ()
    locks: list[BaseFileLock] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process see these and no others; empty where there are none."""
        if not self.gpus:
            return {}
        # By index, for there are libraries that read numbers; CUDA counts as nvidia-smi does.
        names = ",".join(gpu.name for gpu in self.gpus)
        return {"CUDA_VISIBLE_DEVICES": names, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}

    def release(self) -> None:
        """Give them back; again does no harm."""
        while self.locks:
            self.locks.pop().release()


class Pool:
    """The GPUs that this process may use."""

    def __init__(self) -> None:
        self._looked = -FRESH
        self._busy: frozenset[str] = frozenset()

    @cached_property
    def _gpus(self) -> list[Gpu]:
        return visible()

    @property
    def size(self) -> int:
        """How many there are, free or not."""
        return len(self._gpus)

    def free(self) -> int:
        """How many could be taken now."""
        if time.monotonic() - self._looked > FRESH:
            self._looked, self._busy = time.monotonic(), busy()
        return sum(gpu.uuid not in self._busy and _lockable(gpu) for gpu in self._gpus)

    def take(self, count: int) -> Lease | None:
        """Lock ``count`` free ones; None where there are not so many."""
        lease = Lease()
        if count == 0:
            return lease
        taken: list[Gpu] = []
        occupied = busy()
        for gpu in self._gpus:
            lock = None if gpu.uuid in occupied or len(taken) == count else _lock(gpu)
            if lock:
                taken.append(gpu)
                lease.locks.append(lock)
        if len(taken) < count:
            lease.release()
            return None
        lease.gpus = taken
        return lease


def visible() -> list[Gpu]:
    """The GPUs this process may use, in order: all, or those of CUDA_VISIBLE_DEVICES.

    A number counts as nvidia-smi counts. Without nvidia-smi, or a driver behind it, there are none.
    """
    try:
        rows = _query("--query-gpu=index,uuid")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return []
    found = [Gpu(name, uuid) for name, uuid in rows]
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is None:
        return found
    chosen: dict[str, Gpu] = {}
    for word in (part.strip() for part in told.split(",")):
        gpu = _chosen(word, found)
        if gpu is None:
            break  # CUDA too reads no further than to the first that does not exist
        chosen[gpu.uuid] = gpu
    return list(chosen.values())


def busy() -> frozenset[str]:
    """UUIDs of the GPUs on which some process computes.

    Raises:
        TpcliError: nvidia-smi does not say.
    """
    try:
        return frozenset(uuid for uuid, _pid in _query("--query-compute-apps=gpu_uuid,pid"))
    except (OSError, subprocess.CalledProcessError) as error:
        raise TpcliError(
            f"nvidia-smi does not say which GPUs are in use: {error}",
            hint="tpcli doctor looks at the driver; --set launch.cpu=true does without",
        ) from error


def _chosen(word: str, found: Sequence[Gpu]) -> Gpu | None:
    """The GPU that a word of CUDA_VISIBLE_DEVICES means: its number, or the start of its UUID."""
    if word.startswith("MIG-"):
        return Gpu(word, word)
    for gpu in found:
        if word == gpu.name or (word.startswith("GPU-") and gpu.uuid.startswith(word)):
            return gpu
    return None


def _query(what: str) -> list[tuple[str, str]]:
    """The two columns that nvidia-smi prints for each GPU, or each process."""
    try:
        done = subprocess.run(
            ["nvidia-smi", what, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise TpcliError(
            f"nvidia-smi gave no answer within {PATIENCE:.0f} seconds",
            hint="the driver hangs: see dmesg; --set launch.cpu=true does without",
        ) from error
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    return [(row[0].strip(), row[1].strip()) for row in rows if len(row) == 2]


def _lockable(gpu: Gpu) -> bool:
    lock = _lock(gpu)
    if lock is None:
        return False
    lock.release()
    return True


def _lock(gpu: Gpu) -> BaseFileLock | None:
    """Take the GPU's lock; None where another sweep has it."""
    from filelock import FileLock, Timeout

    try:
        with contextlib.suppress(FileExistsError):
            LOCKS.mkdir()
            LOCKS.chmod(0o1777)  # whatever the umask: every user puts locks here
        lock = FileLock(LOCKS / f"{gpu.uuid}.lock", mode=0o666, thread_local=False)
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except OSError as error:
        raise TpcliError(
            f"cannot lock GPUs in {LOCKS}: {error.strerror}",
            hint=f"the folder must be open to all: its owner types chmod 1777 {LOCKS}",
        ) from error
    return lock
