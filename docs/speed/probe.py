"""What the machine can do at this moment: matrix products, and memory at its highest.

On a shared machine the speed of the same code changes by the minute. The probe beside each timing
says how fast the machine was then.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import psutil
import torch

SHAPES = {"body": (1_024, 576, 1_536), "head": (256, 576, 49_152)}
"""(m, k, n) of [m, k] x [k, n]: SmolLM2's feed-forward layer, and its output head on a chunk."""
TINY = {"body": (64, 32, 64), "head": (64, 32, 128)}
"""The same for the small model."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        lines = facts.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": psutil.virtual_memory().total / 2**30,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def gemm(*, small: bool = False, repeats: int = 4) -> dict[str, float]:
    """GFLOP/s by shape in float32, the best of ``repeats``. 2 m k n operations a product."""
    found = {}
    for name, (m, k, n) in (TINY if small else SHAPES).items():
        left, right = torch.randn(m, k), torch.randn(n, k)
        out = torch.empty(m, n)
        seconds = []
        for _ in range(repeats + 1):  # the first one touches the memory
            began = time.perf_counter()
            torch.mm(left, right.T, out=out)
            seconds.append(time.perf_counter() - began)
        found[name] = 2 * m * k * n / min(seconds[1:]) / 1e9
    return found


def better(one: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    """The higher of two findings, by shape."""
    return {name: max(value, other[name]) for name, value in one.items()}


def tidy() -> None:
    """Give freed memory back to the system, so that a peak is of what follows alone."""
    gc.collect()
    if _STATUS.exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
        if trim:
            trim(0)


def reset_peak() -> None:
    """From now on the peak is that of what follows. Nothing happens outside Linux."""
    if _CLEAR.exists():
        _CLEAR.write_text("5")


def peak_gib() -> float | None:
    """Most resident memory since ``reset_peak``, GiB; None outside Linux."""
    return _status("VmHWM")


def resident_gib() -> float | None:
    """Resident memory now, GiB; None outside Linux."""
    return _status("VmRSS")


def _status(name: str) -> float | None:
    if not _STATUS.exists():
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) / 2**20 if found else None
