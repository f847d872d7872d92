"""The soft penalty on length."""

import pytest

from tpcli.reward.length import overlong_penalty


@pytest.mark.parametrize(
    ("length", "cost"), [(1, 0.0), (60, 0.0), (70, 0.25), (90, 0.75), (100, 1.0)]
)
def test_overlong_penalty_by_hand(length: int, cost: float) -> None:
    assert overlong_penalty(length, limit=100, buffer=40) == cost
    assert overlong_penalty(length, limit=100, buffer=40, penalty=0.5) == cost / 2
    assert overlong_penalty(length, limit=100, buffer=0) == 0.0
