"""One line of metrics by hand, and the same from two processes as from one."""

import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from tests.tiny import prompt_of
from tests.train.parts import KNOBS
from torch import Tensor

from tpcli.metrics.stats import BINS
from tpcli.names import VerdictStatus
from tpcli.train.collect import Collected
from tpcli.train.measure import Tally, finish, tally
from tpcli.train.method import Learned
from tpcli.types import Rollout, StepStats, TokenBatch, Verdict

LENGTHS = [4, 4, 2, 1]
REWARDS = [1.0, 0.0, 0.5, 0.5]
STATUS: list[VerdictStatus] = ["correct", "unfinished", "wrong", "no_answer"]
QUARTERS = [2, 7, 12, 17]
"""Bins of a response of four tokens: those at .125, .375, .625 and .875."""
HALVES, WHOLE = [5, 15], [10]

MASK_BT = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
SUFFIX_BT = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0]]).bool()
ROLLOUT_BT = torch.where(MASK_BT, -1.0, 0.0)


def batch() -> TokenBatch:
    """Two prompts of two responses; the advantages of the second are 0."""
    return TokenBatch(
        prompts=[prompt_of([2, 3], "a"), prompt_of([2, 3], "b")],
        tokens_BT=torch.where(MASK_BT, 5, 0),
        mask_BT=MASK_BT,
        rollout_logprob_BT=ROLLOUT_BT,
        reward_B=torch.tensor(REWARDS),
        advantage_B=torch.tensor([3.0, -1.0, 0.0, 0.0]),
        group_size=2,
    )


def collected() -> Collected:
    rollouts = [
        Rollout(torch.full((n,), 5), torch.zeros(n), status != "unfinished")
        for n, status in zip(LENGTHS, STATUS, strict=True)
    ]
    verdicts = [Verdict(r, status) for r, status in zip(REWARDS, STATUS, strict=True)]
    prompts = list(batch().prompts)
    return Collected(
        prompts,
        [rollouts[:2], rollouts[2:]],
        [verdicts[:2], verdicts[2:]],
        drawn=10,
        correct=3,
        refilled=2,
    )


def learned(**sums: float) -> Learned:
    """The suffixes learn, each token with coefficient 1/4."""
    advantage_BT = torch.where(MASK_BT, batch().advantage_B[:, None], 0.0)
    return Learned(
        weight_BT=SUFFIX_BT.float(),
        advantage_BT=advantage_BT,
        logprob_BT=ROLLOUT_BT.clone(),
        entropy_BT=torch.where(MASK_BT, 2.0, 0.0),
        kl_BT=torch.zeros(4, 4),
        ref_logprob_BT=torch.zeros(4, 4),
        measured_BT=MASK_BT,
        coefficient_BT=SUFFIX_BT / 4,
        clipped_BT=torch.zeros(4, 4, dtype=torch.bool),
        sums=sums,
    )


def line(made: Learned | None = None, asked: TokenBatch | None = None, **options: Any) -> StepStats:
    settings: dict[str, Any] = {
        "progress": 0.5,
        "updates": 1,
        "grad_norm": 0.1,
        "with_kl": False,
    }
    total = tally(asked or batch(), collected(), made or learned())
    return finish(7, total, KNOBS, **(settings | options))


def spread(values: dict[int, float], empty: float | None) -> list[float | None]:
    return [values.get(q, empty) for q in range(BINS)]


def test_mass_is_the_share_of_coefficient_times_advantage() -> None:
    """Of 3 + 3 to the first response's suffix and 1 + 1 to the second's, both in the same bins."""
    made = learned()
    assert line(made).percentiles["mass/percentile"] == spread({12: 0.5, 17: 0.5}, 0.0)
    # By token now: 0 and 3 of the first, 1 and 1 of the second, 2 of the third.
    made.advantage_BT[0, 2] = 0.0
    made.advantage_BT[2, 1] = 2.0
    mass = line(made).percentiles["mass/percentile"]
    assert mass == pytest.approx(spread({12: 1 / 7, 17: 4 / 7, 15: 2 / 7}, 0.0))


def test_clips_and_credit_are_shares_of_each_bin() -> None:
    """None where no response has a token."""
    made = learned()
    made.clipped_BT[0, 3] = made.clipped_BT[2, 1] = True
    found = line(made).percentiles
    places = dict.fromkeys([*QUARTERS, *HALVES, *WHOLE], 0.0)
    assert found["clip/percentile"] == spread(places | {17: 0.5, 15: 1.0}, None)
    assert found["credit/percentile"] == spread(places | {12: 1.0, 17: 1.0, 15: 1.0, 10: 1.0}, None)


def test_a_group_without_signal_is_one_whose_advantages_are_all_zero() -> None:
    """Not one of equal rewards: pass@k can be sure of a group that has a wrong answer."""
    one = line().scalars["reward/groups_without_signal"]
    both = line(asked=replace(batch(), advantage_B=torch.zeros(4)))
    none = line(asked=replace(batch(), advantage_B=torch.tensor([0.0, 1.0, 0.0, -1.0])))
    assert one == 0.5
    assert both.scalars["reward/groups_without_signal"] == 1.0
    assert none.scalars["reward/groups_without_signal"] == 0.0


def test_correction_is_a_mean_over_the_tokens_that_learn() -> None:
    """Not over all that have credit."""
    made = learned(correction=3.0, corrected=1.0, learning_tokens=4.0)
    scalars = line(made, with_correction=True).scalars
    assert (scalars["correction/weight"], scalars["correction/share"]) == (0.75, 0.25)
    for without in (line(made), line(learned(), with_correction=True)):
        assert not [name for name in without.scalars if name.startswith("correction/")]


def test_rewards_verdicts_and_lengths_by_hand() -> None:
    learns_B = torch.tensor([True, False, True, True])
    scalars = line(asked=replace(batch(), learns_B=learns_B), with_refills=True).scalars
    expected = {
        "reward/mean": 0.5,
        "reward/std": math.sqrt(0.5 / 3),
        "verdict/correct": 0.25,
        "verdict/wrong": 0.25,
        "verdict/no_answer": 0.25,
        "verdict/unfinished": 0.25,
        "verdict/timeout": 0.0,
        "length/mean": 11 / 4,
        "length/max": 4.0,
        "length/truncated": 0.25,
        "length/masked": 0.25,
        "sampling/accuracy": 0.3,
        "sampling/responses": 10.0,
        "sampling/refilled_groups": 2.0,
    }
    assert {name: scalars[name] for name in expected} == pytest.approx(expected)
    plain = line().scalars
    assert not {"length/masked", "sampling/responses"} & plain.keys()


def test_credit_loss_and_clips_by_hand() -> None:
    """Clips are of the six credited tokens; what updates add up is divided among them."""
    made = learned(
        loss=-0.8,
        kl_loss=0.2,
        entropy_bonus=0.6,
        clip_low=1.0,
        clip_high=2.0,
        clip_dual=3.0,
        ppo_kl=0.4,
        learning_tokens=4.0,
        gradient_scale=5.0,
    )
    scalars = line(made, updates=2).scalars
    expected = {
        "credit/tokens": 6.0,
        "credit/share": 6 / 11,
        "credit/gradient_scale": 2.5,
        "loss/total": -0.4,
        "loss/kl": 0.1,
        "loss/entropy_bonus": 0.3,
        "loss/clip_low": 1 / 6,
        "loss/clip_high": 2 / 6,
        "loss/clip_dual": 3 / 6,
        "loss/ppo_kl": 0.1,
        "entropy/all": 2.0,
        "schedule/progress": 0.5,
        "optim/grad_norm": 0.1,
    }
    assert {name: scalars[name] for name in expected} == pytest.approx(expected)


def test_the_gap_between_sampler_and_trainer_by_hand() -> None:
    """One token of eleven is half as likely to the trainer: w = 1/2, k3 = 1/2 - 1 + log 2."""
    made = learned()
    made.logprob_BT[1, 0] -= math.log(2)
    scalars = line(made).scalars
    assert scalars["gap/mean"] == pytest.approx(math.log(2) / 11)
    assert scalars["gap/max"] == pytest.approx(math.log(2))
    assert scalars["gap/kl"] == pytest.approx((math.log(2) - 0.5) / 11, rel=1e-5)
    assert scalars["gap/effective_share"] == pytest.approx(10.5**2 / (11 * 10.25))


def test_kl_and_scheduled_knobs_are_there_where_they_are_wanted() -> None:
    made = replace(learned(), kl_BT=torch.where(MASK_BT, 0.25, 0.0))
    assert line(made, with_kl=True).scalars["kl/all"] == 0.25
    assert "kl/percentile" in line(made, with_kl=True).percentiles
    assert not [name for name in line(made).scalars if name.startswith("kl/")]
    knobs = replace(KNOBS, moving={"clip_high": 0.3}, magnitudes={"forking_tokens": 0.7})
    total = tally(batch(), collected(), made)
    scalars = finish(7, total, knobs, progress=0.0, updates=1, grad_norm=0.0, with_kl=False).scalars
    assert (scalars["schedule/clip_high"], scalars["schedule/magnitude"]) == (0.3, 0.7)


class Ranks:
    """As much of an Accelerator as a tally needs: what ranks before this one have given."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def gather(self, row: Tensor) -> Tensor:
        self.rows.append(row)
        return torch.cat(self.rows)


def test_two_processes_have_the_numbers_of_one() -> None:
    """Each has a group of its own; sums add up, and of a maximum the larger counts."""
    made, asked, got = learned(loss=-0.8, learning_tokens=4.0), batch(), collected()
    made.logprob_BT[0, 0] -= 1.0
    whole = tally(asked, got, made)

    def half(at: int) -> Tally:
        here, group = slice(2 * at, 2 * at + 2), slice(at, at + 1)
        return tally(
            replace(
                asked,
                prompts=asked.prompts[group],
                **{
                    name: getattr(asked, name)[here]
                    for name in (
                        "tokens_BT",
                        "mask_BT",
                        "rollout_logprob_BT",
                        "reward_B",
                        "advantage_B",
                    )
                },
            ),
            Collected(
                got.prompts[group], got.groups[group], got.verdicts[group], 5, 1 + at, refilled=1
            ),
            replace(
                made,
                **{
                    name: getattr(made, name)[here]
                    for name in Learned.__dataclass_fields__
                    if name.endswith("_BT")
                },
                sums={"loss": -0.4, "learning_tokens": 2.0},
            ),
        )

    ranks = cast(Accelerator, Ranks())
    half(0).over(ranks)
    both = half(1).over(ranks)
    assert both.sums.keys() == whole.sums.keys()
    for name, value in whole.sums.items():
        torch.testing.assert_close(both.sums[name], value, msg=name)
    for name, value in whole.largest.items():
        torch.testing.assert_close(both.largest[name], value, msg=name)
