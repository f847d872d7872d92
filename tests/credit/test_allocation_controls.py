"""The random controls: equal credited area, drawn evenly, each response by its own seed."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tpcli.credit.allocation import (
    FOCI,
    focus_weight,
    forking_weight,
    random_tokens,
    shuffled,
    suffix_weight,
)

lengths_of = st.lists(st.integers(0, 60), min_size=1, max_size=6)


def mask_of(lengths: Sequence[int], width: int = 60) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def weights_like(mask_BT: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Random weights and advantages, 0 on padding."""
    generator = torch.Generator().manual_seed(seed)
    weight_BT, advantage_BT = torch.rand(2, *mask_BT.shape, generator=generator)
    return weight_BT * mask_BT, advantage_BT * mask_BT


# Equal credited area


def test_random_tokens_keeps_an_exact_number() -> None:
    """Of 10 tokens int(10 m) go; of 1 token none does; of none there is none to keep."""
    mask_BT = mask_of([10, 1, 0])
    counts = {
        m: random_tokens(mask_BT, magnitude=m, seeds=[3, 4, 5]).sum(-1).int().tolist()
        for m in (0.0, 0.25, 0.9, 1.0)
    }
    assert counts == {0.0: [10, 1, 0], 0.25: [8, 1, 0], 0.9: [1, 1, 0], 1.0: [1, 1, 0]}


@example(lengths=[50], magnitude=0.58, seed=0)  # int(50 * 0.58) is 28, not 29
@given(lengths=lengths_of, magnitude=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_random_tokens_has_the_area_of_late_and_of_early_first(
    lengths: list[int], magnitude: float, seed: int
) -> None:
    mask_BT = mask_of(lengths)
    kept_BT = random_tokens(
        mask_BT, magnitude=magnitude, seeds=[seed + i for i in range(len(lengths))]
    )
    assert ((kept_BT == 0) | (kept_BT == 1)).all()
    assert not kept_BT[~mask_BT].any()
    for target_BT in (
        suffix_weight(mask_BT, start=magnitude),
        focus_weight(mask_BT, magnitude=magnitude, focus=FOCI["early"]),
    ):
        assert kept_BT.sum(-1).tolist() == target_BT.sum(-1).tolist()


@example(length=100, magnitude=0.29)  # the one kind of m at which they differ: 72 and 71 tokens
@example(length=10, magnitude=0.8)
@given(length=st.integers(1, 60), magnitude=st.floats(0, 1))
def test_random_tokens_has_the_area_of_forking_tokens(length: int, magnitude: float) -> None:
    """ceil(L (1 - m)) is L - int(L m) on paper.

    In double precision they part, by one token, where L * m is whole on paper and rounding leaves
    one of the two products just beside the whole number.
    """
    mask_BT = mask_of([length], 100)
    random = random_tokens(mask_BT, magnitude=magnitude, seeds=[0]).sum()
    forking = forking_weight(mask_BT, torch.zeros(1, 100), magnitude=magnitude).sum()
    distance = abs(length * magnitude - round(length * magnitude))
    assert abs(random - forking) <= (1 if distance < 1e-12 else 0)


def test_where_the_areas_part() -> None:
    """100 * 0.29 is 28.999999999999996, 100 * (1 - 0.29) is 71 exactly."""
    mask_BT = mask_of([100], 100)
    assert random_tokens(mask_BT, magnitude=0.29, seeds=[0]).sum() == 72
    assert forking_weight(mask_BT, torch.zeros(1, 100), magnitude=0.29).sum() == 71


@given(lengths=lengths_of, seed=st.integers(0, 2**31))
def test_shuffled_keeps_every_pair(lengths: list[int], seed: int) -> None:
    """A response's (weight, advantage) pairs are the same ones, padding stays 0."""
    mask_BT = mask_of(lengths)
    weight_BT, advantage_BT = weights_like(mask_BT, seed)
    moved_BT, shaped_BT = shuffled(
        weight_BT, advantage_BT, mask_BT, seeds=[seed + i for i in range(len(lengths))]
    )
    for row, length in enumerate(lengths):
        before = sorted(zip(weight_BT[row].tolist(), advantage_BT[row].tolist(), strict=True))
        after = sorted(zip(moved_BT[row].tolist(), shaped_BT[row].tolist(), strict=True))
        assert before == after
        assert not moved_BT[row, length:].any()


# An even draw


def test_random_tokens_favours_no_place() -> None:
    """4,000 draws of 3 in 12: each place is kept 1,000 times, give or take five deviations."""
    draws = 4000
    kept_BT = random_tokens(mask_of([12] * draws, 12), magnitude=0.75, seeds=range(draws))
    slack = 5 * math.sqrt(draws * 0.25 * 0.75)
    assert (kept_BT.sum(0) - draws / 4).abs().max() < slack


def test_random_tokens_is_not_a_run_of_neighbours() -> None:
    """Two of 12, 4,000 times: neighbours in 11 of 66 pairs."""
    draws = 4000
    kept_BT = random_tokens(mask_of([12] * draws, 12), magnitude=0.84, seeds=range(draws)).bool()
    assert (kept_BT.sum(-1) == 2).all()
    side_by_side = int((kept_BT[:, 1:] & kept_BT[:, :-1]).sum())
    assert abs(side_by_side - draws / 6) < 5 * math.sqrt(draws * 5 / 36)


@pytest.mark.parametrize("before", ["suffix", "random"])
def test_shuffled_favours_no_place(before: str) -> None:
    """Nor does it when random_tokens has used the same seeds before it."""
    draws = 4000
    mask_BT = mask_of([12] * draws, 12)
    weight_BT = (
        suffix_weight(mask_BT, start=0.75)
        if before == "suffix"
        else random_tokens(mask_BT, magnitude=0.75, seeds=range(draws))
    )
    moved_BT, _ = shuffled(weight_BT, weight_BT, mask_BT, seeds=range(draws))
    slack = 5 * math.sqrt(draws * 0.25 * 0.75)
    assert (moved_BT.sum(0) - draws / 4).abs().max() < slack
    overlap = (moved_BT * weight_BT).sum() / draws  # 3 * 3 / 12 by chance
    assert abs(overlap - 0.75) < 0.06


def test_another_seed_is_another_draw() -> None:
    mask_BT = mask_of([60, 60])
    same, other = random_tokens(mask_BT, magnitude=0.5, seeds=[1, 2])
    assert not torch.equal(same, other)
    again = random_tokens(mask_BT, magnitude=0.5, seeds=[1, 1])
    assert torch.equal(again[0], again[1])
    assert torch.equal(again[0], same)


@given(length=st.integers(1, 60), magnitudes=st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_random_tokens_opens_by_adding_tokens(length: int, magnitudes: list[float]) -> None:
    """Under one seed what is credited stays credited as m falls."""
    few, many = (
        random_tokens(mask_of([length]), magnitude=m, seeds=[9])
        for m in sorted(magnitudes, reverse=True)
    )
    assert (few <= many).all()


# What the draw does not depend on


@given(
    lengths=lengths_of,
    magnitude=st.floats(0, 1),
    wider=st.integers(0, 40),
    cut=st.integers(0, 6),
    data=st.data(),
)
def test_controls_depend_on_neither_padding_nor_order_nor_split(
    lengths: list[int], magnitude: float, wider: int, cut: int, data: st.DataObject
) -> None:
    seeds = [1000 + i for i in range(len(lengths))]
    mask_BT = mask_of(lengths)
    weight_BT, advantage_BT = weights_like(mask_BT, 7)
    kept_BT = random_tokens(mask_BT, magnitude=magnitude, seeds=seeds)
    moved_BT, shaped_BT = shuffled(weight_BT, advantage_BT, mask_BT, seeds=seeds)

    wide = torch.nn.functional.pad
    got_BT = random_tokens(mask_of(lengths, 60 + wider), magnitude=magnitude, seeds=seeds)
    assert torch.equal(got_BT, wide(kept_BT, (0, wider)))
    got_BT, shaped = shuffled(
        wide(weight_BT, (0, wider)),
        wide(advantage_BT, (0, wider)),
        mask_of(lengths, 60 + wider),
        seeds=seeds,
    )
    assert torch.equal(got_BT, wide(moved_BT, (0, wider)))
    assert torch.equal(shaped, wide(shaped_BT, (0, wider)))

    order = data.draw(st.permutations(range(len(lengths))))
    moved_seeds = [seeds[i] for i in order]
    got_BT = random_tokens(mask_BT[order], magnitude=magnitude, seeds=moved_seeds)
    assert torch.equal(got_BT, kept_BT[order])
    got_BT, _ = shuffled(weight_BT[order], advantage_BT[order], mask_BT[order], seeds=moved_seeds)
    assert torch.equal(got_BT, moved_BT[order])

    parts = [slice(0, cut), slice(cut, len(lengths))]
    split = [random_tokens(mask_BT[p], magnitude=magnitude, seeds=seeds[p]) for p in parts]
    assert torch.equal(torch.cat(split), kept_BT)
    pairs = [shuffled(weight_BT[p], advantage_BT[p], mask_BT[p], seeds=seeds[p]) for p in parts]
    assert torch.equal(torch.cat([pair[0] for pair in pairs]), moved_BT)
    assert torch.equal(torch.cat([pair[1] for pair in pairs]), shaped_BT)


def test_the_draw_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    random_tokens(mask_of([5]), magnitude=0.5, seeds=[0])
    shuffled(*weights_like(mask_of([5]), 0), mask_of([5]), seeds=[0])
    assert torch.equal(torch.rand(3), expected)


def test_random_tokens_reads_a_mask_with_holes() -> None:
    """Tokens 1, 3, 4 count: two of them stay, and no other."""
    mask_BT = torch.tensor([[0, 1, 0, 1, 1, 0]], dtype=torch.bool)
    kept_BT = random_tokens(mask_BT, magnitude=0.5, seeds=[0])
    assert kept_BT.sum() == 2
    assert not kept_BT[~mask_BT].any()


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3]])
def test_controls_need_one_seed_a_response(seeds: list[int]) -> None:
    mask_BT = mask_of([3, 2])
    with pytest.raises(ValueError, match="2 responses need one seed each"):
        random_tokens(mask_BT, magnitude=0.5, seeds=seeds)
    with pytest.raises(ValueError, match="2 responses need one seed each"):
        shuffled(mask_BT.float(), mask_BT.float(), mask_BT, seeds=seeds)
