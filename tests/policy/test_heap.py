"""What is freed is kept, and serves again."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tpcli.policy import heap

glibc = pytest.mark.skipif(heap._glibc() is None, reason="another C library")


def resident_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


FREED = """
import torch
from tpcli.policy import heap
from tests.policy.test_heap import resident_mib
heap.settle()
large = torch.ones(5_000_000)
pins = [torch.ones(20_000)] if {pinned} else []
before = resident_mib()
del large
print(before - resident_mib())
"""


def returned(*, settled: bool, pinned: bool) -> float:
    """MiB that freeing 19 MiB, in a process of its own, gives back to the system.

    Args:
        pinned: a small block stands above, so that the end of the heap stays where it is.
    """
    environment = {**os.environ, **(heap.variables({}) if settled else {heap.VARIABLE: ""})}
    command = [sys.executable, "-c", FREED.format(pinned=pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout)


@glibc
@pytest.mark.parametrize("pinned", [True, False])
def test_settled_a_large_block_stays(pinned: bool) -> None:
    assert returned(settled=False, pinned=pinned) > 15
    assert returned(settled=True, pinned=pinned) < 5


@glibc
def test_glibc_knows_the_settings_by_these_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loader lists those that it takes, with their values."""
    loaders = [*Path("/lib64").glob("ld-linux-*.so.*"), *Path("/lib").glob("ld-linux-*.so.*")]
    if not loaders:
        pytest.skip("no loader where it usually is")
    monkeypatch.setattr(heap, "MERGING", dict.fromkeys(heap.MERGING, "48"))
    command = [str(loaders[0]), "--list-tunables"]
    found = subprocess.run(command, capture_output=True, text=True, env=heap.variables({}))
    if found.returncode:
        pytest.skip("glibc before 2.33")
    for name in heap.MERGING:
        assert f"{name}: 0x30 " in found.stdout


@glibc
def test_what_the_user_says_about_a_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = "glibc.malloc.arena_max=1:glibc.malloc.mxfast=64"
    told = heap.variables({heap.VARIABLE: own})
    assert told == {heap.VARIABLE: f"{own}:glibc.malloc.tcache_count=0"}
    monkeypatch.setenv(heap.VARIABLE, told[heap.VARIABLE])
    heap.settle()
    assert os.environ[heap.VARIABLE] == told[heap.VARIABLE]


@glibc
def test_settled_a_process_hands_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what is the user's."""
    own = "glibc.malloc.arena_max=1"
    monkeypatch.setenv(heap.VARIABLE, heap.variables({heap.VARIABLE: own})[heap.VARIABLE])
    calls: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, what: int, value: int) -> None:
            calls.append((what, value))

    monkeypatch.setattr(heap, "_glibc", Library)
    heap.settle()
    assert os.environ[heap.VARIABLE] == own
    assert calls == [(-3, heap.LARGE), (-1, -1)]
    heap.settle()
    assert len(calls) == 2


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    assert heap.variables({}) == {}
    heap.settle()
