"""Percentile bins and stages against their definitions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tpcli.metrics.stats import (
    BINS,
    STAGES,
    by_percentile,
    by_stage,
    groups_without_signal,
    mean_of,
    percentile,
)


def mask_of(lengths: list[int]) -> torch.Tensor:
    return torch.arange(max([*lengths, 1])) < torch.tensor(lengths)[:, None]


def test_percentile_by_hand() -> None:
    """Four tokens stand in the middle of their quarters."""
    assert percentile(mask_of([4, 1])).tolist() == [[0.125, 0.375, 0.625, 0.875], [0.5, 0, 0, 0]]


def test_bins_by_hand() -> None:
    """Two bins: halves of each response, not of the batch's width."""
    value_BT = torch.tensor([[1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 99.0, 99.0]])
    assert mean_of(by_percentile(value_BT, mask_of([4, 2]), bins=2)) == [13 / 3, 9.0]


def test_empty_bins_are_none() -> None:
    assert mean_of(by_percentile(torch.ones(1, 1), mask_of([1]), bins=3)) == [None, 1.0, None]


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=6), padding=st.integers(0, 3))
def test_bins_count_every_token_once_whatever_the_padding(lengths: list[int], padding: int) -> None:
    mask_BT = torch.nn.functional.pad(mask_of(lengths), (0, padding))
    value_BT = torch.randn(mask_BT.shape, generator=torch.Generator().manual_seed(0))
    sums, counts = by_percentile(value_BT, mask_BT)
    assert counts.sum() == sum(lengths)
    torch.testing.assert_close(sums.sum(), value_BT[mask_BT].double().sum())
    for length in lengths:  # a response of at least as many tokens as bins reaches each
        if length >= BINS:
            own = by_percentile(torch.ones(1, length), mask_of([length]))
            assert (own[1] > 0).all()


def test_stages_by_hand() -> None:
    """100 tokens: the first ten, those at 45-55%, the last ten."""
    value_BT = torch.arange(100.0)[None]
    every, first, middle, last = mean_of(by_stage(value_BT, mask_of([100])))
    assert (every, first, middle, last) == (49.5, 4.5, 49.5, 94.5)
    assert list(STAGES) == ["first", "middle", "last"]


def test_short_responses_are_not_left_out_of_stages() -> None:
    """One token stands for every stage; of two the first and the last for theirs."""
    assert mean_of(by_stage(torch.tensor([[7.0]]), mask_of([1]))) == [7.0] * 4
    _, first, _, last = mean_of(by_stage(torch.tensor([[1.0, 2.0]]), mask_of([2])))
    assert (first, last) == (1.0, 2.0)


def test_an_empty_response_counts_nowhere() -> None:
    assert by_stage(torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool))[1].tolist() == [0] * 4


def test_groups_without_signal() -> None:
    advantages = torch.tensor([0.0, 0.0, -1.0, 1.0, 0.0, 0.5])
    assert groups_without_signal(advantages, group_size=2).tolist() == [True, False, False]
