"""Rollout-to-trainer correction by hand, against its plain definition, and what it never does."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tpcli.loss.correction import correct, mismatch
from tpcli.names import CorrectionLevel, CorrectionName

KINDS: tuple[CorrectionName, ...] = get_args(CorrectionName)
LEVELS: tuple[CorrectionLevel, ...] = get_args(CorrectionLevel)

MASK_BT = torch.tensor([[True, True, True], [True, False, False]])
RATIO_BT = torch.tensor([[4.0, 0.5, 1.0], [0.25, 9.0, 9.0]])
"""Products 2 and 0.25, geometric means 2^(1/3) and 0.25; the nines are padding."""


@pytest.mark.parametrize(
    ("kind", "level", "weights", "touched"),
    [
        ("none", "token", [[1, 1, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
        ("none", "sequence", [[1, 1, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
        ("truncate", "token", [[1.5, 0.5, 1], [0.25, 0, 0]], [[1, 0, 0], [0, 0, 0]]),
        ("truncate", "sequence", [[1.5, 1.5, 1.5], [0.25, 0, 0]], [[1, 1, 1], [0, 0, 0]]),
        ("truncate", "geometric", [[2 ** (1 / 3)] * 3, [0.25, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
        ("mask", "token", [[0, 0.5, 1], [0, 0, 0]], [[1, 0, 0], [1, 0, 0]]),
        ("mask", "sequence", [[0, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
        ("mask", "geometric", [[2 ** (1 / 3)] * 3, [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]),
    ],
)
def test_correction_by_hand(
    kind: CorrectionName,
    level: CorrectionLevel,
    weights: list[list[float]],
    touched: list[list[float]],
) -> None:
    """Bounds 0.5 and 1.5; truncating reads the upper one only."""
    old_BT = torch.full((2, 3), -3.0) + RATIO_BT.log()
    got = correct(
        old_BT, torch.full((2, 3), -3.0), MASK_BT, kind=kind, level=level, low=0.5, high=1.5
    )
    torch.testing.assert_close(got.weight_BT, torch.tensor(weights, dtype=torch.float32))
    assert got.touched_BT.tolist() == torch.tensor(touched).bool().tolist()


def test_top_p_is_corrected_by_the_mass_of_the_nucleus() -> None:
    """A nucleus of mass 0.8 makes the sampler's 0.5 of the policy's 0.4: the weight is 0.8."""
    mask_BT = torch.ones(1, 1, dtype=torch.bool)
    got = correct(torch.tensor([[0.4]]).log(), torch.tensor([[0.5]]).log(), mask_BT, kind="mask")
    assert got.weight_BT.item() == pytest.approx(0.8)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (2.0, 1.0), (-0.1, 1.0), (0.0, math.nan)])
def test_bounds_that_leave_nothing_are_refused(low: float, high: float) -> None:
    zero_BT = torch.zeros(1, 1)
    with pytest.raises(ValueError, match="bounds"):
        correct(zero_BT, zero_BT, zero_BT.bool(), kind="mask", low=low, high=high)


def plain_weight(ratio: float, kind: CorrectionName, low: float, high: float) -> float:
    if kind == "none":
        return 1.0
    if kind == "truncate":
        return min(ratio, high)
    return ratio if low <= ratio <= high else 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.floats(-1, 1, width=32), max_size=5), min_size=1, max_size=4),
    low=st.floats(0, 0.9),
    high=st.floats(1.1, 3),
)
def test_a_correction_is_its_plain_definition(
    kind: CorrectionName,
    level: CorrectionLevel,
    rows: list[list[float]],
    low: float,
    high: float,
) -> None:
    """``rows`` are the log-ratios of each response; those on padding are loud."""
    width = max(map(len, rows)) + 1
    mask_BT = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in rows])
    log_ratio_BT = torch.tensor([r + [1e9] * (width - len(r)) for r in rows])
    got = correct(
        log_ratio_BT, torch.zeros_like(log_ratio_BT), mask_BT,
        kind=kind, level=level, low=low, high=high,
    )  # fmt: skip
    for row, weight_T, touched_T in zip(rows, got.weight_BT, got.touched_BT, strict=True):
        whole = math.fsum(row) / (len(row) if level == "geometric" and row else 1)
        ratios = [math.exp(x if level == "token" else whole) for x in row]
        for t, ratio in enumerate(ratios):
            if any(abs(ratio - edge) < 1e-5 for edge in (low, high)):
                continue  # on the very edge float32 may fall on the other side
            expected = plain_weight(ratio, kind, low, high)
            assert weight_T[t].item() == pytest.approx(expected, rel=1e-5)
            assert bool(touched_T[t]) == (kind != "none" and expected != ratio)
        assert not weight_T[len(row) :].any()
        assert not touched_T[len(row) :].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_sampler_that_agrees_needs_no_correction(
    kind: CorrectionName, level: CorrectionLevel
) -> None:
    logprob_BT = -torch.rand(2, 3)
    got = correct(logprob_BT, logprob_BT.clone(), MASK_BT, kind=kind, level=level)
    assert torch.equal(got.weight_BT, MASK_BT.float())
    assert not got.touched_BT.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", LEVELS)
def test_weights_are_finite_detached_and_float32_at_any_distance(
    kind: CorrectionName, level: CorrectionLevel
) -> None:
    """500 nats to either side, NaN on padding, an empty response, float64 log-probs."""
    far_BT = torch.tensor([[500.0, 500.0], [-500.0, math.nan], [math.nan, math.nan]]).double()
    mask_BT = torch.tensor([[True, True], [True, False], [False, False]])
    got = correct(
        far_BT.requires_grad_(), torch.zeros(3, 2), mask_BT, kind=kind, level=level, high=math.inf
    )
    assert got.weight_BT.dtype == torch.float32
    assert not got.weight_BT.requires_grad
    assert torch.isfinite(got.weight_BT).all()
    assert not got.weight_BT[~mask_BT].any()


def sums_by_hand(ratios: list[float]) -> dict[str, float]:
    return {
        "k1": sum(-math.log(r) for r in ratios),
        "k3": sum(r - 1 - math.log(r) for r in ratios),
        "weight": sum(ratios),
        "weight_2": sum(r * r for r in ratios),
    }


def got_sums(ratio_BT: Tensor, mask_BT: Tensor) -> dict[str, float]:
    sums = mismatch(ratio_BT.log(), torch.zeros_like(ratio_BT), mask_BT)
    return {name: value.item() for name, value in sums.items()}


def test_mismatch_by_hand() -> None:
    """Ratios 4, 0.5, 1 and 0.25: weights 5.75, squares 17.3125, an effective share of 0.477."""
    got = got_sums(RATIO_BT, MASK_BT)
    assert got == pytest.approx(sums_by_hand([4.0, 0.5, 1.0, 0.25]), rel=1e-6)
    assert got["weight"] ** 2 / (4 * got["weight_2"]) == pytest.approx(0.4774, abs=1e-4)


def test_mismatch_of_pieces_adds_up() -> None:
    pieces = [got_sums(RATIO_BT[:1], MASK_BT[:1]), got_sums(RATIO_BT[1:], MASK_BT[1:])]
    whole = got_sums(RATIO_BT, MASK_BT)
    assert {k: sum(p[k] for p in pieces) for k in whole} == pytest.approx(whole)


def test_mismatch_estimates_the_divergence_of_sampler_from_policy() -> None:
    """Tokens in the sampler's own proportions: k1 and k3 are exactly KL(sampler || policy)."""
    sampler, policy = [0.5, 0.25, 0.25], [0.25, 0.25, 0.5]
    drawn = [0, 0, 1, 2]
    sums = mismatch(
        torch.tensor([[policy[i] for i in drawn]]).log(),
        torch.tensor([[sampler[i] for i in drawn]]).log(),
        torch.ones(1, 4, dtype=torch.bool),
    )
    divergence = sum(q * math.log(q / p) for q, p in zip(sampler, policy, strict=True))
    assert sums["k1"].item() / 4 == pytest.approx(divergence)
    assert sums["k3"].item() / 4 == pytest.approx(divergence)
