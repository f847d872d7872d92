"""TRL's own loss code on the same tokens: the same loss and gradient, or how they differ."""

from typing import Any

import pytest
import torch
from tests.loss.trl_stand_in import LONGEST, NewTrainer, same, trl_loss, uniform
from tests.loss.whole import Tokens, loss_and_gradient
from torch import Tensor

from tpcli.loss.kl import k3
from tpcli.loss.surrogate import TokenLoss, token_loss
from tpcli.names import ObjectiveName, ReductionName

pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated")

LOSS_TYPES: list[tuple[str, ObjectiveName, ReductionName, dict[str, Any], dict[str, Any]]] = [
    # TRL's loss_type, our objective and reduction, what TRL needs for it, what we need
    ("grpo", "ppo_clip", "seq-mean-token-mean", {}, {}),
    ("bnpo", "ppo_clip", "token-mean", {}, {}),
    ("dr_grpo", "ppo_clip", "seq-mean-token-sum-norm", {}, {"constant": LONGEST}),
    ("dapo", "ppo_clip", "token-mean", {}, {}),
    ("luspo", "ppo_clip", "seq-mean-token-sum", {}, {}),
    # epsilon_high is the largest ratio there and what is added to 1 here
    ("cispo", "cispo_upper", "token-mean", {"epsilon_high": 1.5}, {"clip_high": 0.5}),
    ("sapo", "sapo", "seq-mean-token-mean", {}, {}),
]


@pytest.mark.parametrize("case", LOSS_TYPES, ids=lambda case: case[0])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_loss_type_is_an_objective_and_a_reduction(
    new_trainer: NewTrainer,
    case: tuple[str, ObjectiveName, ReductionName, dict[str, Any], dict[str, Any]],
    beta: float,
    seed: int,
) -> None:
    """With and without beta, TRL's coefficient of the KL to a reference model (k3)."""
    loss_type, objective, reduction, theirs, ours = case
    tokens = uniform(seed=seed)
    ref_BT = tokens.old_logprob - 0.3
    trainer = new_trainer(loss_type=loss_type, beta=beta, **theirs)
    same(
        loss_and_gradient(
            tokens,
            objective,
            reduction=reduction,
            extra=lambda logprob_BT, token: token.loss_BT + beta * k3(logprob_BT, ref_BT),
            **ours,
        ),
        trl_loss(trainer, tokens, ref_per_token_logps=ref_BT),
    )


def test_the_tokens_of_these_tests_meet_every_bound() -> None:
    """Otherwise parity would say nothing of the clipping."""
    met = torch.zeros(3, dtype=torch.bool)
    for seed in range(3):
        tokens = uniform(seed=seed)
        token = token_loss(
            "ppo_clip", tokens.logprob, tokens.old_logprob, tokens.advantage, tokens.weight
        )
        upper = token_loss(
            "cispo_upper",
            tokens.logprob,
            tokens.old_logprob,
            tokens.advantage,
            tokens.weight,
            clip_high=0.5,
        )
        masks = (token.low_BT, token.high_BT, upper.high_BT)
        met |= torch.stack([(m & tokens.mask).any() for m in masks])
    assert met.all()


def test_clip_fractions_are_trls_clip_ratios(new_trainer: NewTrainer) -> None:
    """In cispo TRL counts a bounded weight only where A > 0; we count all, as verl does."""
    tokens = uniform(seed=1)
    given_BT = (tokens.logprob, tokens.old_logprob, tokens.advantage, tokens.weight)

    def share(mask_BT: Tensor) -> float:
        return ((mask_BT & tokens.mask).sum() / tokens.mask.sum()).item()

    trainer = new_trainer(loss_type="dapo")
    trl_loss(trainer, tokens)
    ratios = trainer._metrics["train"]
    ours = token_loss("ppo_clip", *given_BT)
    assert ratios["clip_ratio/low_mean"] == [pytest.approx(share(ours.low_BT))]
    assert ratios["clip_ratio/high_mean"] == [pytest.approx(share(ours.high_BT))]

    trainer = new_trainer(loss_type="cispo", epsilon_high=1.2)
    trl_loss(trainer, tokens)
    high_BT = token_loss("cispo_upper", *given_BT, clip_high=0.2).high_BT
    counted = share(high_BT & (tokens.advantage > 0))
    assert trainer._metrics["train"]["cispo_clip_ratio"] == [pytest.approx(counted)]
    assert counted < share(high_BT)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sequence_level_is_gspo_in_value_and_gradient(new_trainer: NewTrainer, seed: int) -> None:
    """TRL has the plain form; without token weights it is the token form."""
    tokens = uniform(seed=seed, spread=0.3)
    trainer = new_trainer(loss_type="grpo", importance_sampling_level="sequence", epsilon=0.1)
    ours = loss_and_gradient(tokens, "gspo", reduction="seq-mean-token-mean", clip_low=0.1)
    same(ours, trl_loss(trainer, tokens))


def test_trls_token_selection_is_a_weight_under_the_denominator_all(
    new_trainer: NewTrainer,
) -> None:
    """top_entropy_quantile takes tokens out of the numerator alone."""
    tokens, entropy_BT = uniform(), torch.rand(4, 9, generator=torch.Generator().manual_seed(0))
    trainer = new_trainer(loss_type="grpo", top_entropy_quantile=0.5)
    chosen_BT = trainer.get_high_entropy_mask(entropy_BT, tokens.mask, 0.5)
    assert 0 < chosen_BT.sum() < tokens.mask.sum()
    ours = loss_and_gradient(
        Tokens(
            tokens.logprob,
            tokens.old_logprob,
            tokens.advantage,
            torch.where(chosen_BT, 1.0, 0.0),
            tokens.mask,
        ),
        "ppo_clip",
        reduction="seq-mean-token-mean",
        denominator="all",
    )
    same(ours, trl_loss(trainer, tokens, entropy=entropy_BT))


def test_with_selected_tokens_trls_gspo_leaks_to_the_others_and_ours_does_not(
    new_trainer: NewTrainer,
) -> None:
    """One response of 4 on policy, 2 tokens selected, A = 1: the plain form pushes all 4 by
    2 / 4 / 4, the token form the selected 2 by 1 / 4."""
    logprob_BT = torch.full((1, 4), -1.0)
    weight_BT = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    tokens = Tokens(
        logprob_BT, logprob_BT, torch.ones(1, 4), weight_BT, torch.ones(1, 4, dtype=torch.bool)
    )
    trainer = new_trainer(
        loss_type="grpo", importance_sampling_level="sequence", top_entropy_quantile=0.5
    )
    theirs, leaked_BT = trl_loss(trainer, tokens, entropy=weight_BT)
    ours, got_BT = loss_and_gradient(
        tokens, "gspo", reduction="seq-mean-token-mean", denominator="all"
    )
    assert theirs == pytest.approx(ours) == pytest.approx(-0.5)
    torch.testing.assert_close(leaked_BT, torch.full((1, 4), -1 / 8))
    torch.testing.assert_close(got_BT, torch.tensor([[0.0, -1 / 4, 0.0, -1 / 4]]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_delta_is_dual_clip(new_trainer: NewTrainer, seed: int) -> None:
    tokens = uniform(seed=seed, spread=1.5)
    trainer = new_trainer(loss_type="dapo", delta=3.0)
    same(loss_and_gradient(tokens, "ppo_clip", dual_clip=3.0), trl_loss(trainer, tokens))


def test_a_delta_inside_the_clip_range_is_not_dual_clip(new_trainer: NewTrainer) -> None:
    """Ratio 2, delta 1.1 < 1.28. TRL lowers the ratio before clipping: A = 1 is paid 1.1, not
    1.28, and A = -1 is charged the clipped 1.28, where a dual clip of 1.1 charges 1.1."""
    old_BT = torch.full((1, 1), -3.0)
    one_BT = torch.ones(1, 1)
    trainer = new_trainer(loss_type="dapo", delta=1.1)
    for advantage, theirs, ours in ((1.0, -1.1, -1.28), (-1.0, 1.28, 1.1)):
        tokens = Tokens(
            old_BT + torch.tensor(2.0).log(), old_BT, advantage * one_BT, one_BT, one_BT.bool()
        )
        assert trl_loss(trainer, tokens)[0] == pytest.approx(theirs)
        assert loss_and_gradient(tokens, "ppo_clip", dual_clip=1.1)[0] == pytest.approx(ours)


def test_bias_corrected_kl_is_k3_times_the_ratio(new_trainer: NewTrainer) -> None:
    """TRL's default (use_bias_correction_kl) weighs the KL of a token by its ratio, gradient
    included; ours is the plain k3, of the same value on policy but another gradient."""
    tokens = uniform()
    ref_BT = tokens.old_logprob - 0.3
    trainer = new_trainer(loss_type="dapo", beta=0.1, use_bias_correction_kl=True)

    def corrected(logprob_BT: Tensor, token: TokenLoss) -> Tensor:
        ratio_BT = (logprob_BT - tokens.old_logprob).exp()
        return token.loss_BT + 0.1 * ratio_BT * k3(logprob_BT, ref_BT)

    theirs = trl_loss(trainer, tokens, ref_per_token_logps=ref_BT)
    same(loss_and_gradient(tokens, "ppo_clip", extra=corrected), theirs)

    on_policy = Tokens(
        tokens.old_logprob, tokens.old_logprob, tokens.advantage, tokens.weight, tokens.mask
    )
    loss, theirs_BT = trl_loss(trainer, on_policy, ref_per_token_logps=ref_BT)
    ours, ours_BT = loss_and_gradient(
        on_policy, "ppo_clip", extra=lambda lp_BT, t: t.loss_BT + 0.1 * k3(lp_BT, ref_BT)
    )
    assert loss == pytest.approx(ours)
    assert (theirs_BT - ours_BT)[tokens.mask].abs().min() > 1e-5
