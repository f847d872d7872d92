"""What TRL makes of rollouts and rewards: importance weights of the sampler, and advantages."""

import pytest
import torch
from tests.loss.trl_stand_in import NewTrainer, same, scored, trl_loss, uniform
from tests.loss.whole import loss_and_gradient

from tpcli.credit.advantage import advantages
from tpcli.loss.correction import correct
from tpcli.loss.kl import k3
from tpcli.names import AdvantageName, CorrectionLevel, CorrectionName

pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated")

MODES: list[tuple[str, CorrectionName, CorrectionLevel]] = [
    ("token_truncate", "truncate", "token"),
    ("token_mask", "mask", "token"),
    ("sequence_truncate", "truncate", "sequence"),
    ("sequence_mask", "mask", "sequence"),
]


@pytest.mark.parametrize(("mode", "kind", "level"), MODES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_vllm_importance_sampling_is_our_correction(
    new_trainer: NewTrainer, mode: str, kind: CorrectionName, level: CorrectionLevel, seed: int
) -> None:
    """The same weights, and through the loss of both the same gradient; the KL is not weighted,
    and masked tokens stay in the denominator."""
    tokens = uniform((9, 2, 5, 3), seed=seed, spread=0.3)
    noise_BT = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))
    rollout_BT = tokens.old_logprob - 0.4 * noise_BT
    rollout_BT[0] -= 0.4  # far enough apart as a whole, too
    ref_BT = tokens.old_logprob - 0.3
    low = 0.5 if kind == "mask" else None
    trainer = new_trainer(
        loss_type="grpo",
        beta=0.1,
        use_vllm=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=1.5,
        vllm_importance_sampling_clip_min=low,
    )
    trainer.beta = 0.0  # the reference's log-probs are given below, not computed
    theirs_BT = scored(trainer, tokens, rollout_BT, [1.0, 0.0, 0.0, 1.0], 1)[
        "importance_sampling_ratio"
    ]
    trainer.beta = 0.1
    ours = correct(
        tokens.old_logprob, rollout_BT, tokens.mask, kind=kind, level=level, low=low or 0, high=1.5
    )
    torch.testing.assert_close(
        ours.weight_BT, torch.where(tokens.mask, theirs_BT.expand(4, 9), 0.0)
    )
    assert ours.touched_BT.any()
    same(
        loss_and_gradient(
            tokens,
            "ppo_clip",
            reduction="seq-mean-token-mean",
            extra=lambda lp_BT, t: ours.weight_BT * t.loss_BT + 0.1 * k3(lp_BT, ref_BT),
        ),
        trl_loss(trainer, tokens, ref_per_token_logps=ref_BT, importance_sampling_ratio=theirs_BT),
    )


def test_trls_truncation_has_a_lower_bound_if_asked_and_ours_never(
    new_trainer: NewTrainer,
) -> None:
    """A ratio of 0.1 becomes clip_min there and stays here: raising it adds bias for nothing."""
    tokens = uniform((2, 2))
    trainer = new_trainer(
        use_vllm=True,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_min=0.5,
    )
    rollout_BT = tokens.old_logprob - torch.tensor(0.1).log()
    theirs_BT = scored(trainer, tokens, rollout_BT, [1.0, 0.0], 1)["importance_sampling_ratio"]
    torch.testing.assert_close(theirs_BT, torch.full((2, 2), 0.5))
    ours = correct(tokens.old_logprob, rollout_BT, tokens.mask, kind="truncate", low=0.5)
    torch.testing.assert_close(ours.weight_BT, torch.full((2, 2), 0.1))


@pytest.mark.parametrize(
    ("scale_rewards", "name"),
    [("group", "group_std"), ("batch", "batch_std"), ("none", "group_mean")],
)
def test_advantages_are_trls_at_its_eps(
    new_trainer: NewTrainer, scale_rewards: str, name: AdvantageName
) -> None:
    """Three groups of four, one of them without signal; TRL adds 1e-4 to the deviation."""
    rewards = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 0.0]
    tokens = uniform([2] * 12)
    trainer = new_trainer(scale_rewards=scale_rewards)
    theirs_B = scored(trainer, tokens, tokens.old_logprob, rewards, 3)["advantages"]
    ours_B = advantages(name, torch.tensor(rewards), group_size=4, eps=1e-4)
    torch.testing.assert_close(ours_B, theirs_B)
