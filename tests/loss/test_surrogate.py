"""Each objective by hand, against its plain definition, on policy and at the extremes."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.loss.whole import draw
from torch import Tensor

from tpcli.loss import surrogate
from tpcli.loss.surrogate import cispo, cispo_upper, gspo, ppo_clip, reinforce, sapo, token_loss
from tpcli.names import ObjectiveName

OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
TOKENWISE: tuple[ObjectiveName, ...] = tuple(o for o in OBJECTIVES if o != "gspo")


def at_ratios(ratios: list[float], *, old: float = -1.0) -> tuple[Tensor, Tensor]:
    """[1, T] log-probs that are these ratios apart, and the old ones."""
    old_BT = torch.full((1, len(ratios)), old)
    return (old_BT + torch.tensor([ratios]).log()).requires_grad_(), old_BT


def gradient(loss: Tensor, logprob_BT: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logprob_BT)[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_name_leads_to_the_function_of_that_name(objective: ObjectiveName) -> None:
    tokens = draw([5, 3])
    given_BT = (tokens.logprob, tokens.old_logprob, tokens.advantage)
    own: dict[str, dict[str, Any]] = {
        "ppo_clip": {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.5},
        "gspo": {"weight_BT": tokens.weight, "clip_low": 0.1, "clip_high": 0.3},
        "cispo": {"clip_low": 0.1, "clip_high": 0.3},
        "cispo_upper": {"clip_high": 0.3},
        "reinforce": {},
        "sapo": {"tau_positive": 2.0, "tau_negative": 3.0},
    }
    expected = getattr(surrogate, objective)(*given_BT, **own[objective])
    got = token_loss(
        objective,
        *given_BT,
        tokens.weight,
        clip_low=0.1,
        clip_high=0.3,
        dual_clip=1.5 if objective == "ppo_clip" else None,
        tau_positive=2.0,
        tau_negative=3.0,
    )
    for name in ("loss_BT", "low_BT", "high_BT", "dual_BT", "log_ratio_BT"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o != "ppo_clip"])
def test_a_dual_clip_that_would_do_nothing_is_an_error(objective: ObjectiveName) -> None:
    one_BT = torch.ones(1, 1)
    with pytest.raises(ValueError, match="dual_clip belongs to ppo_clip"):
        token_loss(objective, one_BT, one_BT, one_BT, one_BT, dual_clip=3.0)


def test_ppo_clip_by_hand() -> None:
    """Ratios 2, 0.5 and 4 with advantages 1, -1 and -1; bounds .8, 1.28, dual clip 3."""
    logprob_BT, old_BT = at_ratios([2.0, 0.5, 4.0])
    token = ppo_clip(logprob_BT, old_BT, torch.tensor([[1.0, -1.0, -1.0]]), dual_clip=3.0)
    torch.testing.assert_close(token.loss_BT, torch.tensor([[-1.28, 0.8, 3.0]]))
    assert token.high_BT.tolist() == [[True, False, False]]
    assert token.low_BT.tolist() == [[False, True, False]]
    assert token.dual_BT.tolist() == [[False, False, True]]
    assert gradient(token.loss_BT.sum(), logprob_BT).tolist() == [[0.0, 0.0, 0.0]]


def test_ppo_clip_by_hand_where_the_bound_is_on_the_other_side() -> None:
    """The same ratios, advantages of the other sign: the step back is never clipped."""
    logprob_BT, old_BT = at_ratios([2.0, 0.5])
    token = ppo_clip(logprob_BT, old_BT, torch.tensor([[-1.0, 1.0]]))
    torch.testing.assert_close(token.loss_BT, torch.tensor([[2.0, -0.5]]))
    assert not (token.low_BT | token.high_BT | token.dual_BT).any()
    got_BT = gradient(token.loss_BT.sum(), logprob_BT)
    torch.testing.assert_close(got_BT, torch.tensor([[2.0, -0.5]]))


def test_ppo_clip_refuses_a_dual_clip_inside_the_trust_region() -> None:
    one_BT = torch.ones(1, 1)
    with pytest.raises(ValueError, match="above 1"):
        ppo_clip(one_BT, one_BT, one_BT, dual_clip=1.0)


def test_cispo_by_hand() -> None:
    """Ratios 0.5, 1 and 2 weigh 0.8, 1 and 1.28; log-probs -1 + log ratio; A is 1, -2, -1."""
    logprob_BT, old_BT = at_ratios([0.5, 1.0, 2.0])
    token = cispo(logprob_BT, old_BT, torch.tensor([[1.0, -2.0, -1.0]]))
    by_hand = [[0.8 * (1 + math.log(2)), -2.0, 1.28 * (-1 + math.log(2))]]
    torch.testing.assert_close(token.loss_BT, torch.tensor(by_hand))
    assert token.low_BT.tolist() == [[True, False, False]]
    assert token.high_BT.tolist() == [[False, False, True]]
    got_BT = gradient(token.loss_BT.sum(), logprob_BT)
    torch.testing.assert_close(got_BT, torch.tensor([[-0.8, 2.0, 1.28]]))


def test_cispo_upper_leaves_small_ratios_alone() -> None:
    """Ratio 0.5 keeps its weight, 7 is capped at 1 + clip_high = 5: ScaleRL's eps_max of 5."""
    logprob_BT, old_BT = at_ratios([0.5, 7.0])
    token = cispo_upper(logprob_BT, old_BT, torch.ones(1, 2), clip_high=4.0)
    got_BT = gradient(token.loss_BT.sum(), logprob_BT)
    torch.testing.assert_close(got_BT, torch.tensor([[-0.5, -5.0]]))
    assert token.low_BT.tolist() == [[False, False]]
    assert token.high_BT.tolist() == [[False, True]]


def test_the_two_cispo_definitions_differ_below_the_lower_bound_only() -> None:
    logprob_BT, old_BT = at_ratios([0.5, 0.9, 1.0, 1.1, 9.0])
    advantage_BT = torch.ones(1, 5)
    two = cispo(logprob_BT, old_BT, advantage_BT, clip_low=0.2, clip_high=0.28)
    upper = cispo_upper(logprob_BT, old_BT, advantage_BT, clip_high=0.28)
    assert (two.loss_BT == upper.loss_BT).tolist() == [[False, True, True, True, True]]


def test_reinforce_by_hand() -> None:
    """-A logprob, whatever the old policy says."""
    logprob_BT = torch.tensor([[-1.0, -3.0]], requires_grad=True)
    token = reinforce(logprob_BT, torch.tensor([[-9.0, 0.0]]), torch.tensor([[2.0, -1.0]]))
    assert token.loss_BT.tolist() == [[2.0, -3.0]]
    assert token.log_ratio_BT.tolist() == [[8.0, -3.0]]
    assert gradient(token.loss_BT.sum(), logprob_BT).tolist() == [[-2.0, 1.0]]


def test_sapo_by_hand() -> None:
    """Ratio 2, tau 2 for A > 0 and 4 otherwise: gates 2 sigmoid(2) and sigmoid(4)."""
    logprob_BT, old_BT = at_ratios([2.0, 2.0])
    token = sapo(
        logprob_BT, old_BT, torch.tensor([[1.0, -1.0]]), tau_positive=2.0, tau_negative=4.0
    )
    s2, s4 = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-4))
    torch.testing.assert_close(token.loss_BT, torch.tensor([[-2 * s2, s4]]))
    got_BT = gradient(token.loss_BT.sum(), logprob_BT)
    by_hand = [[-4 * s2 * (1 - s2) * 2, 4 * s4 * (1 - s4) * 2]]
    torch.testing.assert_close(got_BT, torch.tensor(by_hand))


def test_sapo_refuses_a_gate_without_slope() -> None:
    one_BT = torch.ones(1, 1)
    with pytest.raises(ValueError, match="above 0"):
        sapo(one_BT, one_BT, one_BT, tau_negative=0.0)


def plain(
    objective: ObjectiveName, logprob: float, old: float, advantage: float
) -> tuple[float, float]:
    """Loss and gradient of one token at the default bounds .8, 1.28, dual clip 3, tau 1, 1.05."""
    ratio = math.exp(logprob - old)
    clipped = min(max(ratio, 0.8), 1.28)
    if objective == "ppo_clip":
        loss = max(-advantage * ratio, -advantage * clipped)
        if advantage < 0:
            loss = min(loss, -advantage * 3.0)
        return loss, -advantage * ratio if loss == -advantage * ratio else 0.0
    if objective == "cispo":
        return -clipped * advantage * logprob, -clipped * advantage
    if objective == "cispo_upper":
        return -min(ratio, 1.28) * advantage * logprob, -min(ratio, 1.28) * advantage
    if objective == "reinforce":
        return -advantage * logprob, -advantage
    tau = 1.0 if advantage > 0 else 1.05
    gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return -advantage * 4 / tau * gate, -advantage * 4 * gate * (1 - gate) * ratio


@pytest.mark.parametrize("objective", TOKENWISE)
@settings(max_examples=60)
@example(log_ratio=1.5, advantage=-1.0)  # beyond the dual clip
@given(
    log_ratio=st.floats(-2, 2).filter(
        lambda x: all(abs(x - math.log(edge)) > 1e-3 for edge in (0.8, 1.28, 3.0))
    ),
    advantage=st.floats(-3, 3),
)
def test_an_objective_is_its_plain_definition(
    objective: ObjectiveName, log_ratio: float, advantage: float
) -> None:
    old_BT = torch.tensor([[-1.5]])
    logprob_BT = (old_BT + log_ratio).requires_grad_()
    token = token_loss(
        objective,
        logprob_BT,
        old_BT,
        torch.tensor([[advantage]]),
        torch.ones(1, 1),
        dual_clip=3.0 if objective == "ppo_clip" else None,
    )
    loss, slope = plain(objective, -1.5 + log_ratio, -1.5, advantage)
    assert token.loss_BT.item() == pytest.approx(loss, rel=1e-4, abs=1e-6)
    got = gradient(token.loss_BT.sum(), logprob_BT).item()
    assert got == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_on_policy_every_objective_is_the_policy_gradient(
    objective: ObjectiveName, seed: int, lengths: list[int]
) -> None:
    """r = 1: the gradient is -A a token, no bound is met, for any weights."""
    tokens = draw(lengths, seed=seed, spread=0.0)
    logprob_BT = tokens.logprob.clone().requires_grad_()
    token = token_loss(objective, logprob_BT, tokens.old_logprob, tokens.advantage, tokens.weight)
    got_BT = gradient((tokens.weight * token.loss_BT).sum(), logprob_BT)
    torch.testing.assert_close(got_BT, -tokens.advantage * tokens.weight)
    assert not (token.low_BT | token.high_BT | token.dual_BT).any()
    assert not token.log_ratio_BT.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_extreme_ratios_stay_finite(objective: ObjectiveName, advantage: float) -> None:
    """Log-ratios of 500 nats to either side, alone and in one response."""
    logprob_BT = torch.tensor([[0.0, -500.0], [0.0, 0.0], [-500.0, -500.0]], requires_grad=True)
    old_BT = torch.tensor([[-500.0, 0.0], [-500.0, -500.0], [0.0, 0.0]])
    advantage_BT = torch.full((3, 2), advantage)
    token = token_loss(objective, logprob_BT, old_BT, advantage_BT, torch.ones(3, 2))
    assert torch.isfinite(token.loss_BT).all()
    assert torch.isfinite(gradient(token.loss_BT.sum(), logprob_BT)).all()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_gradient_reaches_the_old_policy_or_the_advantage(objective: ObjectiveName) -> None:
    tokens = draw([4, 2]).map(lambda t: t if t.dtype == torch.bool else t.requires_grad_())
    token = token_loss(
        objective, tokens.logprob, tokens.old_logprob, tokens.advantage, tokens.weight
    )
    token.loss_BT.sum().backward()  # type: ignore[no-untyped-call]
    assert tokens.logprob.grad is not None
    assert tokens.old_logprob.grad is None
    assert tokens.advantage.grad is None
    assert not token.log_ratio_BT.requires_grad


def plain_gspo(logprob_BT: Tensor, old_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The plain form: every token's loss is the clipped ratio of its whole response."""
    length_B1 = mask_BT.sum(-1, keepdim=True)
    log_s_B1 = torch.where(mask_BT, logprob_BT - old_BT, 0.0).sum(-1, keepdim=True) / length_B1
    s_B1 = log_s_B1.exp()
    return torch.maximum(-advantage_BT * s_B1, -advantage_BT * s_B1.clamp(0.8, 1.28))


def test_gspo_does_not_leak_through_uncredited_tokens_and_the_plain_form_does() -> None:
    """One response, weights 0, 1, 1: ours pushes the credited two, the plain form all three."""
    old_BT = torch.full((1, 3), -1.0)
    weight_BT = torch.tensor([[0.0, 1.0, 1.0]])
    advantage_BT = torch.ones(1, 3)
    logprob_BT = torch.tensor([[-0.7, -0.9, -1.1]], requires_grad=True)
    token = gspo(logprob_BT, old_BT, advantage_BT, weight_BT)
    torch.testing.assert_close(token.loss_BT[0, 1:], torch.tensor([-1.0, -1.0]))
    got_BT = gradient((token.loss_BT * weight_BT).sum(), logprob_BT)
    torch.testing.assert_close(got_BT, torch.tensor([[0.0, -1.0, -1.0]]))

    plain_BT = plain_gspo(logprob_BT, old_BT, advantage_BT, torch.ones(1, 3, dtype=torch.bool))
    leaked_BT = gradient((plain_BT * weight_BT).sum(), logprob_BT)
    # s = exp(0.1), two losses of -s, each spread over the three tokens.
    torch.testing.assert_close(leaked_BT, torch.full((1, 3), -2 / 3 * math.exp(0.1)))


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), lengths=st.lists(st.integers(2, 8), min_size=1, max_size=4))
def test_the_plain_form_gives_every_token_of_a_response_the_same_push(
    seed: int, lengths: list[int]
) -> None:
    """Whatever the weights: they only set how much the response is pushed; ours sets each token."""
    tokens = draw(lengths, seed=seed, spread=0.05)
    logprob_BT = tokens.logprob.clone().requires_grad_()
    given_BT = (logprob_BT, tokens.old_logprob, tokens.advantage)
    leaked_BT = gradient((plain_gspo(*given_BT, tokens.mask) * tokens.weight).sum(), logprob_BT)
    push_B1 = leaked_BT[:, :1]
    torch.testing.assert_close(leaked_BT, torch.where(tokens.mask, push_B1, 0.0))
    ours_BT = gradient((gspo(*given_BT, tokens.weight).loss_BT * tokens.weight).sum(), logprob_BT)
    assert torch.equal(ours_BT != 0, tokens.weight != 0)


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), lengths=st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_with_equal_weights_gspo_is_its_plain_form(seed: int, lengths: list[int]) -> None:
    tokens = draw(lengths, seed=seed, weighted=False)
    logprob_BT = tokens.logprob.clone().requires_grad_()
    given_BT = (logprob_BT, tokens.old_logprob, tokens.advantage)
    plain_BT = plain_gspo(*given_BT, tokens.mask)
    ours_BT = gspo(*given_BT, tokens.weight).loss_BT
    torch.testing.assert_close(ours_BT[tokens.mask], plain_BT[tokens.mask])
    torch.testing.assert_close(
        gradient((ours_BT * tokens.weight).sum(), logprob_BT),
        gradient((plain_BT * tokens.weight).sum(), logprob_BT),
    )
