"""Memory really goes back to the system."""

import subprocess
import sys

import psutil
import pytest
import torch
from tests.tiny import random_batch, tiny_llama

from tpcli.policy import heap
from tpcli.policy.model import Policy
from tpcli.policy.pack import pack, plan_rows

glibc = pytest.mark.skipif(heap._glibc() is None, reason="another C library")


def resident_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


@glibc
def test_trim_returns_the_holes() -> None:
    """Every other block of a large heap is free: only trimming gives those back."""
    blocks = [torch.ones(20_000) for _ in range(2_000)]  # 80 kB each
    del blocks[::2]
    before = resident_mib()
    heap.trim()
    assert resident_mib() < before - 60
    assert all(bool((block == 1).all()) for block in blocks)


KEPT = """
import sys, torch
from tests.policy.test_heap import resident_mib
from tpcli.policy import heap
if sys.argv[1] == "settled":
    heap.settle()
torch.ones(5_000_000)  # freed at once: the limit for large blocks grows over it
large = torch.ones(5_000_000)
pin = torch.ones(20_000)
before = resident_mib()
del large
print(before - resident_mib())
"""


@glibc
def test_settled_large_blocks_go_back_at_once() -> None:
    """19 MiB below a small block that stays."""

    def returned(how: str) -> float:
        command = [sys.executable, "-c", KEPT, how]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return float(out)

    assert returned("settled") > 15
    assert returned("as it was") < 5


@pytest.mark.parametrize(("layers", "trims"), [(1, 2), (2, 1), (3, 0)])
@pytest.mark.parametrize("learns", [True, False])
def test_trimmed_before_the_head_and_between_layers_that_keep(
    layers: int, trims: int, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two layers."""
    done: list[None] = []
    monkeypatch.setattr(heap, "trim", lambda: done.append(None))
    monkeypatch.setattr(heap, "LAYERS", layers)
    policy, batch = Policy(tiny_llama()), random_batch([5, 3], [4], group_size=2)
    ((row,),) = plan_rows(batch, range(2), budget=100)
    packed = pack([row], batch)
    with torch.set_grad_enabled(learns):
        policy(packed, packed.mask_bT)
    assert len(done) == 1 + (trims if learns else 0)


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    heap.settle()
    heap.trim()
