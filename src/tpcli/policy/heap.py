"""Memory that glibc's allocator keeps although nobody uses it, given back to the system.

On a CPU, activations that stay until the backward pass and intermediate results that go at once
share a heap that is full of holes: a third of what they take for SmolLM2. Other systems and C
libraries are left alone.
"""

import ctypes
import sys
from functools import cache
from typing import Any

LARGE = 1_500_000
"""Bytes from which a freed block goes back at once. glibc lets the limit grow to 32 MB; with a far
lower one every element-wise step waits for fresh pages."""
KEPT = 64 * 2**20
"""Bytes at the end of the heap that stay for what comes next, but for ``trim``."""
LAYERS = 8
"""``trim`` after so many layers of a forward pass with gradient: each leaves some 5 MiB of holes
between what it keeps (SmolLM2)."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def settle() -> None:
    """From now on this process returns large blocks; for one that trains on a CPU."""
    library = _glibc()
    if library:
        library.mallopt(_M_MMAP_THRESHOLD, LARGE)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT)


def trim() -> None:
    """Return the holes now, before much is wanted: some 10 ms."""
    library = _glibc()
    if library:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
