"""How glibc's allocator treats a process that trains on a CPU.

A training step asks for the same few sizes again and again. As it comes, glibc returns large blocks
to the system when they are freed, and every fresh page costs some 3 us of a processor. And of a
freed block it can rarely serve the next request of the same size: torch wants its blocks aligned,
glibc cuts a few bytes off at both ends for that, and small objects settle there, so that the heap
fills with holes. Told to keep what is freed and to merge small blocks at once, it does neither.
Other systems and C libraries are left alone.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

LARGE = 32 * 2**20
"""Bytes up to which a block comes from the heap: the most that glibc takes."""
VARIABLE = "GLIBC_TUNABLES"
MERGING = {"glibc.malloc.tcache_count": "0", "glibc.malloc.mxfast": "0"}
"""Small blocks in no list of their own, which would keep them from merging with what is beside."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def variables(own: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the environment of a process says in addition: glibc reads it once, at the start.

    Args:
        own: the environment that it would have. What it says about a setting stays.
    """
    if _glibc() is None:
        return {}
    said = _settings(own)
    missing = [f"{name}={value}" for name, value in MERGING.items() if name not in said]
    return {VARIABLE: ":".join([*filter(None, [own.get(VARIABLE)]), *missing])}


def settle() -> None:
    """From now on this process keeps freed blocks below ``LARGE`` for what comes next.

    Only where it was started with ``variables``: else it would keep the holes as well. Processes
    that it starts from now on are as if it had not been.
    """
    library, said = _glibc(), _settings(os.environ)
    if library is None or not MERGING.items() <= said.items():
        return
    library.mallopt(_M_MMAP_THRESHOLD, LARGE)
    library.mallopt(_M_TRIM_THRESHOLD, -1)
    rest = [f"{name}={value}" for name, value in said.items() if name not in MERGING]
    os.environ[VARIABLE] = ":".join(rest)


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """By name, of those that are well formed."""
    pairs = (part.partition("=") for part in environment.get(VARIABLE, "").split(":"))
    return {name: value for name, equals, value in pairs if equals}


@cache
def _glibc() -> Any:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") else None
