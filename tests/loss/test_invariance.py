"""A step's loss and gradient do not depend on how the step is laid out or cut."""

import itertools
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.loss.whole import REDUCTIONS, Tokens, draw, loss_and_gradient
from torch import Tensor

from tpcli.names import DenominatorName, ObjectiveName, ReductionName

OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
PAIRS = list(itertools.product(OBJECTIVES, REDUCTIONS))


@st.composite
def steps(draw_from: st.DrawFn) -> Tokens:
    lengths = draw_from(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    return draw(lengths, seed=draw_from(st.integers(0, 10_000)))


def padded(tokens: Tokens, columns: int) -> Tokens:
    """More padding, with numbers on it that would be noticed if they were read."""

    def pad(t: Tensor, value: float) -> Tensor:
        return torch.nn.functional.pad(t, (0, columns), value=value)

    return Tokens(
        logprob=pad(tokens.logprob, -7.0),
        old_logprob=pad(tokens.old_logprob, -3.0),
        advantage=pad(tokens.advantage, 5.0),
        weight=pad(tokens.weight, 0.0),
        mask=pad(tokens.mask, 0.0),
    )


@pytest.mark.parametrize(("objective", "how"), PAIRS)
@settings(max_examples=8, deadline=None)
@given(tokens=steps(), data=st.data())
def test_a_step_is_the_same_however_it_is_laid_out(
    objective: ObjectiveName,
    how: tuple[ReductionName, DenominatorName, float | None],
    tokens: Tokens,
    data: st.DataObject,
) -> None:
    """Cut into micro-batches, with its rows in another order, with more padding."""
    reduction, denominator, constant = how
    rows = len(tokens.mask)
    cuts = data.draw(st.lists(st.integers(1, rows), max_size=3))
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    padding = data.draw(st.integers(1, 4))

    def run(step: Tokens, cuts: list[int]) -> tuple[float, Tensor]:
        return loss_and_gradient(
            step,
            objective,
            reduction=reduction,
            denominator=denominator,
            constant=constant,
            cuts=cuts,
        )

    loss, grad_BT = run(tokens, [])
    assert not grad_BT[~tokens.mask].any()
    cut = run(tokens, cuts)
    shuffled, shuffled_BT = run(tokens.map(lambda t: t[order]), cuts)
    wide, wide_BT = run(padded(tokens, padding), cuts)
    for other, got_BT in (cut, (shuffled, shuffled_BT[order.argsort()]), (wide, wide_BT)):
        assert other == pytest.approx(loss, rel=1e-5, abs=1e-6)
        torch.testing.assert_close(got_BT[:, : grad_BT.shape[1]], grad_BT)
    assert not wide_BT[:, grad_BT.shape[1] :].any()


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=20, deadline=None)
@given(tokens=steps())
def test_only_credited_tokens_are_pushed(objective: ObjectiveName, tokens: Tokens) -> None:
    """Padding and tokens of weight 0 get no gradient, and neither sees the other's log-probs."""
    loss, grad_BT = loss_and_gradient(tokens, objective)
    credited_BT = tokens.weight != 0
    assert not grad_BT[~credited_BT].any()
    elsewhere = Tokens(
        logprob=torch.where(credited_BT, tokens.logprob, -3.0),
        old_logprob=torch.where(credited_BT, tokens.old_logprob, -4.0),
        advantage=tokens.advantage,
        weight=tokens.weight,
        mask=tokens.mask,
    )
    other, got_BT = loss_and_gradient(elsewhere, objective)
    assert other == pytest.approx(loss, rel=1e-6, abs=1e-7)
    torch.testing.assert_close(got_BT, grad_BT)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_filtering_a_response_is_like_not_having_it(objective: ObjectiveName) -> None:
    """Overlong filtering sets weights to 0; a mean over selected tokens then forgets them."""
    tokens = draw([5, 9, 3], seed=3)
    keep = torch.tensor([0, 2])
    weight_BT = tokens.weight.clone()
    weight_BT[1] = 0.0
    filtered = Tokens(tokens.logprob, tokens.old_logprob, tokens.advantage, weight_BT, tokens.mask)
    loss, grad_BT = loss_and_gradient(filtered, objective)
    without, grad_kept_BT = loss_and_gradient(tokens.map(lambda t: t[keep]), objective)
    assert loss == pytest.approx(without, rel=1e-6)
    torch.testing.assert_close(grad_BT[keep], grad_kept_BT)
    assert not grad_BT[1].any()
