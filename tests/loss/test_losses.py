"""Losses and KL against the reference figures; reductions by hand and under any split."""

import itertools
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.loss.whole import REDUCTIONS
from torch import Tensor

from tpcli.loss.kl import ESTIMATORS
from tpcli.loss.reduce import Totals, coefficients, count, gradient_scale
from tpcli.loss.surrogate import token_loss
from tpcli.names import DenominatorName, KlName, ReductionName

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())


def name_of(case: dict[str, Any]) -> str:
    return f"{case['objective']}-{case['aggregation']}"


@pytest.mark.parametrize("case", GOLDEN["losses"], ids=name_of)
def test_losses_golden(case: dict[str, Any]) -> None:
    """Value, gradient, clip fraction and KL; the norm's constant is the padded length there."""
    logprob_BT = torch.tensor(case["logprob"], requires_grad=True)
    weight_BT = torch.tensor(case["mask"])
    mask_BT = weight_BT.bool()
    token = token_loss(
        case["objective"],
        logprob_BT,
        torch.tensor(case["old_logprob"]),
        torch.tensor(case["advantages"]),
        weight_BT,
        clip_low=case["clip_low"],
        clip_high=case["clip_high"],
        dual_clip=case["dual_clip"],
    )
    norm = case["aggregation"] == "seq-mean-token-sum-norm"
    coefficient_BT = coefficients(
        weight_BT,
        mask_BT,
        Totals(*count(weight_BT, mask_BT).tolist()),
        reduction=case["aggregation"],
        constant=mask_BT.shape[1] if norm else None,
    )
    loss = (coefficient_BT * token.loss_BT).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    torch.testing.assert_close(logprob_BT.grad, torch.tensor(case["grad"]))
    clipped = ((token.low_BT | token.high_BT) & mask_BT).sum() / mask_BT.sum()
    assert clipped.item() == pytest.approx(case["clip_fraction"])
    ppo_kl = -token.log_ratio_BT[mask_BT].mean()
    assert ppo_kl.item() == pytest.approx(case["ppo_kl"], rel=1e-5)


@pytest.mark.parametrize("case", GOLDEN["kl"], ids=lambda c: c["estimator"])
def test_kl_golden(case: dict[str, Any]) -> None:
    got = ESTIMATORS[case["estimator"]](
        torch.tensor(case["logprob"]), torch.tensor(case["ref_logprob"])
    )
    torch.testing.assert_close(got, torch.tensor(case["kl"]))


def test_every_estimator_name_has_a_function() -> None:
    assert set(ESTIMATORS) == set(get_args(KlName))


def pieces_of(rows: int, cuts: list[int]) -> list[slice]:
    edges = [0, *sorted({c % rows for c in cuts} - {0}), rows]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize(("reduction", "denominator", "constant"), REDUCTIONS)
@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 7), max_size=5), padding=st.integers(0, 4))
def test_any_split_and_padding_gives_the_same_coefficients(
    reduction: ReductionName,
    denominator: DenominatorName,
    constant: float | None,
    cuts: list[int],
    padding: int,
) -> None:
    lengths_B = torch.tensor([9, 1, 5, 3, 7, 2, 8])
    mask_BT = torch.arange(9 + padding) < lengths_B[:, None]
    weight_BT = (mask_BT & (torch.arange(9 + padding) % 3 != 0)).float()

    def run(part: slice, totals: Totals) -> Tensor:
        return coefficients(
            weight_BT[part],
            mask_BT[part],
            totals,
            reduction=reduction,
            denominator=denominator,
            constant=constant,
        )

    parts = pieces_of(7, cuts)
    counted = torch.stack([count(weight_BT[p], mask_BT[p]) for p in parts]).sum(0)
    totals = Totals(*counted.tolist())
    assert totals == Totals(*count(weight_BT, mask_BT).tolist())
    split_BT = torch.cat([run(p, totals) for p in parts])
    assert torch.equal(split_BT, run(slice(None), totals))
    assert split_BT[:, 9:].sum() == 0


@pytest.mark.parametrize(
    ("reduction", "denominator", "constant", "expected"),
    [
        # weights [[0, 1, 1, 0], [1, 0, 0, 0]] of lengths 4 and 1: 3 selected, 5 tokens, 2 responses
        ("token-mean", "selected", None, [[0, 1 / 3, 1 / 3, 0], [1 / 3, 0, 0, 0]]),
        ("token-mean", "all", None, [[0, 1 / 5, 1 / 5, 0], [1 / 5, 0, 0, 0]]),
        ("token-mean", "constant", 10.0, [[0, 0.1, 0.1, 0], [0.1, 0, 0, 0]]),
        ("seq-mean-token-sum", "selected", None, [[0, 0.5, 0.5, 0], [0.5, 0, 0, 0]]),
        ("seq-mean-token-mean", "selected", None, [[0, 0.25, 0.25, 0], [0.5, 0, 0, 0]]),
        ("seq-mean-token-mean", "all", None, [[0, 0.125, 0.125, 0], [0.5, 0, 0, 0]]),
        ("seq-mean-token-mean", "constant", 4.0, [[0, 0.125, 0.125, 0], [0.125, 0, 0, 0]]),
        ("seq-mean-token-sum-norm", "selected", 4.0, [[0, 0.125, 0.125, 0], [0.125, 0, 0, 0]]),
    ],
)
def test_coefficients_by_hand(
    reduction: ReductionName,
    denominator: DenominatorName,
    constant: float | None,
    expected: list[list[float]],
) -> None:
    weight_BT = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
    got_BT = coefficients(
        weight_BT,
        mask_BT,
        Totals(*count(weight_BT, mask_BT).tolist()),
        reduction=reduction,
        denominator=denominator,
        constant=constant,
    )
    torch.testing.assert_close(got_BT, torch.tensor(expected))


def test_a_weight_on_padding_counts_nowhere() -> None:
    mask_BT = torch.tensor([[True, True, False], [True, False, False]])
    everywhere_BT = torch.ones(2, 3)
    totals = Totals(*count(everywhere_BT, mask_BT).tolist())
    assert totals == Totals(selected=3, tokens=3, credited=2, responses=2)
    got_BT = coefficients(everywhere_BT, mask_BT, totals)
    torch.testing.assert_close(got_BT, mask_BT / 3)


@pytest.mark.parametrize(
    ("reduction", "denominator", "expected"),
    [
        # Responses of 2, 2 and 0 tokens; the second is left out of the loss.
        ("token-mean", "selected", 1 / 2),
        ("token-mean", "all", 1 / 4),
        ("seq-mean-token-sum", "selected", 1.0),
        ("seq-mean-token-sum", "all", 1 / 2),
        ("seq-mean-token-mean", "selected", 1 / 2),
        ("seq-mean-token-mean", "all", 1 / 4),
        ("seq-mean-token-sum-norm", "selected", 1 / 4),
        ("seq-mean-token-sum-norm", "all", 1 / 8),
    ],
)
def test_responses_without_credit_count_under_all_and_empty_ones_never(
    reduction: ReductionName, denominator: DenominatorName, expected: float
) -> None:
    mask_BT = torch.tensor([[True, True], [True, True], [False, False]])
    weight_BT = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    got_BT = coefficients(
        weight_BT,
        mask_BT,
        Totals(*count(weight_BT, mask_BT).tolist()),
        reduction=reduction,
        denominator=denominator,
        constant=4.0,
    )
    torch.testing.assert_close(got_BT, weight_BT * expected)


def test_a_step_without_credit_has_no_gradient() -> None:
    nothing_BT = torch.zeros(2, 3)
    mask_BT = nothing_BT.bool()
    got_BT = coefficients(nothing_BT, mask_BT, Totals(*count(nothing_BT, mask_BT).tolist()))
    assert torch.equal(got_BT, nothing_BT)


def test_missing_constant_is_an_error() -> None:
    one_BT = torch.ones(1, 1)
    with pytest.raises(ValueError, match="constant"):
        coefficients(one_BT, one_BT.bool(), Totals(1, 1, 1, 1), denominator="constant")


def test_gradient_scale_is_one_for_uniform_credit_and_grows_as_credit_narrows() -> None:
    mask_BT = torch.ones(2, 50, dtype=torch.bool)
    for kept, expected in ((50, 1.0), (1, 50.0)):
        weight_BT = (torch.arange(50) >= 50 - kept).float().expand(2, 50)
        totals = Totals(*count(weight_BT, mask_BT).tolist())
        scale = gradient_scale(coefficients(weight_BT, mask_BT, totals), totals)
        assert math.isclose(scale.item(), expected, rel_tol=1e-6)
