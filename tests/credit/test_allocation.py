"""Masks and weights against the reference figures and against plain-Python slicing."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from tpcli.credit.allocation import (
    FOCI,
    entropy_advantage,
    focus_weight,
    forking_weight,
    low_probability,
    suffix_weight,
)
from tpcli.names import FocusName

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())


def mask_of(lengths: Sequence[int], width: int | None = None) -> Tensor:
    return torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]


# Trajectory percentile


def test_suffix_weight_by_hand() -> None:
    """Start 0.5 drops half of each response, not half of T."""
    mask_BT = mask_of([4, 2], 4)
    expected_BT = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(suffix_weight(mask_BT, start=0.5), expected_BT)


@pytest.mark.parametrize("case", GOLDEN["tp"], ids=lambda c: str(c["magnitude"]))
def test_suffix_weight_golden(case: dict[str, Any]) -> None:
    mask_BT = mask_of(case["lengths"])
    weight_BT = suffix_weight(mask_BT, start=case["magnitude"])
    assert (mask_BT.sum(-1) - weight_BT.sum(-1)).int().tolist() == case["excluded"]


@example(lengths=[100], start=0.29)  # the float32 trap; random search misses it
@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=8), start=st.floats(0, 1))
def test_suffix_weight_is_slicing(lengths: list[int], start: float) -> None:
    weight_BT = suffix_weight(mask_of(lengths, 200), start=start)
    for row, length in zip(weight_BT.tolist(), lengths, strict=True):
        first = min(int(length * start), length - 1) if length else 0
        assert row == [0.0] * first + [1.0] * (length - first) + [0.0] * (200 - length)


def test_every_focus_name_has_a_window() -> None:
    assert set(FOCI) == set(get_args(FocusName))


@pytest.mark.parametrize(
    ("focus", "magnitude", "kept"),
    [
        (FOCI["late"], 0.5, [5, 6, 7, 8, 9]),
        (FOCI["early"], 0.5, [0, 1, 2, 3, 4]),
        (FOCI["middle"], 0.5, [2, 3, 4, 5, 6, 7]),  # 10 * .25 = 2.5 tokens at each end
        (FOCI["late"], 1.0, [9]),
        (FOCI["early"], 1.0, [0]),
        (FOCI["middle"], 1.0, [5]),
        ((0.2, 0.4), 1.0, [2, 3]),  # the stretch itself
        ((0.2, 0.4), 0.5, [1, 2, 3, 4, 5, 6]),  # from .1 to 1 - .5 * .6 = .7
        ((0.3, 0.3), 1.0, [3]),  # an empty stretch keeps the token that stands there
        ((0.0, 1.0), 1.0, list(range(10))),
    ],
)
def test_focus_weight_by_hand(
    focus: tuple[float, float], magnitude: float, kept: list[int]
) -> None:
    weight_BT = focus_weight(mask_of([10], 12), magnitude=magnitude, focus=focus)
    assert weight_BT[0].nonzero().flatten().tolist() == kept


@example(lengths=[100], magnitude=0.29, ends=[1.0, 1.0])
@example(lengths=[100], magnitude=0.29, ends=[0.0, 0.0])
@given(
    lengths=st.lists(st.integers(0, 120), min_size=1, max_size=6),
    magnitude=st.floats(0, 1),
    ends=st.lists(st.floats(0, 1), min_size=2, max_size=2),
)
def test_focus_weight_is_slicing(lengths: list[int], magnitude: float, ends: list[float]) -> None:
    a, b = sorted(ends)
    weight_BT = focus_weight(mask_of(lengths, 120), magnitude=magnitude, focus=(a, b))
    for row, length in zip(weight_BT.tolist(), lengths, strict=True):
        tokens = list(range(length))
        first = min(int(length * (magnitude * a)), max(length - 1, 0))
        last = min(int(length * (magnitude * (1 - b))), max(length - 1 - first, 0))
        kept = tokens[first : length - last]
        assert [place for place, weight in enumerate(row) if weight] == kept
        assert kept or not length


@given(lengths=st.lists(st.integers(0, 200), min_size=1, max_size=8), magnitude=st.floats(0, 1))
def test_early_is_late_in_the_mirror(lengths: list[int], magnitude: float) -> None:
    mask_BT = mask_of(lengths, 200)
    early_BT = focus_weight(mask_BT, magnitude=magnitude, focus=FOCI["early"])
    late_BT = focus_weight(mask_BT, magnitude=magnitude, focus=FOCI["late"])
    for early_T, late_T, length in zip(early_BT, late_BT, lengths, strict=True):
        assert torch.equal(early_T[:length], late_T[:length].flip(-1))


@given(
    length=st.integers(1, 200),
    magnitudes=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    ends=st.lists(st.sampled_from([0.0, 0.2, 0.3, 0.5, 0.7, 1.0]), min_size=2, max_size=2),
)
def test_the_window_opens_by_adding_tokens(
    length: int, magnitudes: list[float], ends: list[float]
) -> None:
    a, b = sorted(ends)
    narrow, wide = (
        focus_weight(mask_of([length]), magnitude=m, focus=(a, b))
        for m in sorted(magnitudes, reverse=True)
    )
    assert (narrow <= wide).all()


@given(length=st.integers(1, 300), magnitude=st.floats(0, 1))
def test_middle_out_credits_what_late_first_does_or_one_token_more(
    length: int, magnitude: float
) -> None:
    late, middle = (
        int(focus_weight(mask_of([length]), magnitude=magnitude, focus=FOCI[name]).sum())
        for name in ("late", "middle")
    )
    assert middle - late in (0, 1)


@pytest.mark.parametrize("focus", [(0.6, 0.4), (-0.1, 0.4), (0.5, 1.1)])
def test_focus_weight_refuses_a_stretch_that_is_none(focus: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="0 <= a <= b <= 1"):
        focus_weight(mask_of([3]), magnitude=0.5, focus=focus)


# Forking tokens


@pytest.mark.parametrize("case", GOLDEN["forking"], ids=lambda c: str(c["magnitude"]))
def test_forking_weight_golden(case: dict[str, Any]) -> None:
    entropy_BT = torch.tensor(case["entropy"])
    mask_BT = mask_of(case["lengths"], entropy_BT.shape[1])
    got_BT = forking_weight(mask_BT, entropy_BT, magnitude=case["magnitude"])
    assert got_BT.int().tolist() == case["mask"]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    magnitude=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_forking_weight_keeps_the_most_uncertain(
    lengths: list[int], magnitude: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    entropy_BT = torch.rand(len(lengths), 30, generator=generator)
    kept_BT = forking_weight(mask_of(lengths, 30), entropy_BT, magnitude=magnitude).bool()
    for entropy_T, kept_T, length in zip(entropy_BT, kept_BT, lengths, strict=True):
        assert kept_T.sum() == max(1, math.ceil(length * (1 - magnitude)))
        assert not kept_T[length:].any()
        left_T = entropy_T[:length][~kept_T[:length]]
        if len(left_T):
            assert entropy_T[kept_T].min() >= left_T.max()


def test_forking_weight_gives_ties_to_the_earlier_token() -> None:
    got_BT = forking_weight(
        mask_of([4], 5), torch.tensor([[0.1, 0.7, 0.7, 0.7, 9.0]]), magnitude=0.5
    )
    assert got_BT.tolist() == [[0, 1, 1, 0, 0]]


# Entropy advantage


@pytest.mark.parametrize("case", GOLDEN["entropy_adv"], ids=lambda c: str(c["magnitude"]))
def test_entropy_advantage_golden(case: dict[str, Any]) -> None:
    entropy_BT = torch.tensor(case["entropy"])
    got_BT = entropy_advantage(
        torch.tensor(case["advantages_in"]),
        entropy_BT,
        mask_of(case["lengths"], entropy_BT.shape[1]),
        magnitude=case["magnitude"],
        alpha=case["alpha"],
        kappa=case["kappa"],
    )
    torch.testing.assert_close(got_BT, torch.tensor(case["advantages_out"]))


def test_entropy_advantage_by_hand() -> None:
    """m .5: + .5 * min(.4 H, |A| / 2); H = 1 adds .2, H = 9 is cut at 1, to -2 as to 2."""
    got_BT = entropy_advantage(
        torch.tensor([[2.0, 2.0, -2.0]]),
        torch.tensor([[1.0, 9.0, 9.0]]),
        mask_of([3]),
        magnitude=0.5,
    )
    torch.testing.assert_close(got_BT, torch.tensor([[2.2, 2.5, -1.5]]))


def test_entropy_advantage_sends_no_gradient_to_entropy() -> None:
    entropy_BT = torch.ones(1, 2, requires_grad=True)
    got_BT = entropy_advantage(torch.ones(1, 2), entropy_BT, mask_of([2]), magnitude=1.0)
    assert not got_BT.requires_grad


# Low probability


def test_low_probability_by_hand() -> None:
    """1 - .3 + .3 p for p = 1, .5, .1; padding gets 0, whatever it holds."""
    logprob_BT = torch.tensor([[1.0, 0.5, 0.1, 1.0]]).log()
    logprob_BT[0, 3] = torch.nan
    got_BT = low_probability(logprob_BT, mask_of([3], 4), magnitude=0.3)
    torch.testing.assert_close(got_BT, torch.tensor([[1.0, 0.85, 0.73, 0.0]]))


@given(
    probabilities=st.lists(st.floats(1e-6, 1), min_size=2, max_size=20), magnitude=st.floats(0, 1)
)
def test_low_probability_is_the_plain_definition(
    probabilities: list[float], magnitude: float
) -> None:
    logprob_BT = torch.tensor([probabilities]).log()
    got_BT = low_probability(logprob_BT, mask_of([len(probabilities)]), magnitude=magnitude)
    expected = [1 - magnitude + magnitude * p for p in probabilities]
    torch.testing.assert_close(got_BT, torch.tensor([expected]), atol=1e-6, rtol=1e-5)
    assert (low_probability(logprob_BT, mask_of([len(probabilities)]), magnitude=0.0) == 1).all()


def test_low_probability_keeps_a_token_whose_probability_underflows() -> None:
    logprob_BT = torch.tensor([[-1e4, -torch.inf]])
    got_BT = low_probability(logprob_BT, mask_of([2]), magnitude=1.0)
    assert (got_BT > 0).all()
    assert (got_BT < 1e-30).all()


def test_low_probability_sends_no_gradient_to_the_policy() -> None:
    logprob_BT = torch.zeros(1, 2, requires_grad=True)
    assert not low_probability(logprob_BT, mask_of([2]), magnitude=0.5).requires_grad
