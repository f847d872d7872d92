"""How many responses are decoded at once."""

from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from tests.tiny import tiny_llama

from tpcli.jobs.engines import rows_of
from tpcli.policy.load import cache_bytes


def test_cache_bytes_by_hand() -> None:
    """Keys and values of 2 layers with 2 heads of 32 / 4 numbers each, 4 bytes a number."""
    assert cache_bytes(tiny_llama()) == 2 * 2 * 2 * 8 * 4
    assert cache_bytes(tiny_llama().to(torch.bfloat16)) == 2 * 2 * 2 * 8 * 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens_in_memory", "rows"),
    [(0, 1), (199, 1), (200, 1), (400, 2), (799, 2), (800, 4), (10**9, 64)],
)
def test_rows_are_a_power_of_two_that_fills_half_of_memory(
    monkeypatch: pytest.MonkeyPatch, tokens_in_memory: int, rows: int
) -> None:
    model: Any = tiny_llama()
    free = SimpleNamespace(available=tokens_in_memory * cache_bytes(model))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    assert rows_of(model, 100) == rows
