"""One update against its plain form, and the same for every way of cutting it up."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests.tiny import tiny_llama
from tests.train.parts import (
    KNOBS,
    METHOD,
    distance,
    learner,
    loud_batch,
    step_batch,
    step_taken,
    weights,
)
from tests.train.together import together
from torch import Tensor

from tpcli.credit.advantage import advantages
from tpcli.errors import RunFailedError
from tpcli.names import AllocationName, ObjectiveName
from tpcli.policy.pack import plan_rows
from tpcli.policy.score import measure, push_logprobs
from tpcli.types import TokenBatch

REDUCTIONS: list[dict[str, Any]] = [
    {"reduction": "token-mean", "denominator": "selected"},
    {"reduction": "token-mean", "denominator": "all"},
    {"reduction": "token-mean", "denominator": "constant"},
    {"reduction": "seq-mean-token-sum"},
    {"reduction": "seq-mean-token-mean", "denominator": "selected"},
    {"reduction": "seq-mean-token-mean", "denominator": "all"},
    {"reduction": "seq-mean-token-mean", "denominator": "constant"},
    {"reduction": "seq-mean-token-sum-norm"},
]
HEADS = [(tied, entropy_coef) for tied in (True, False) for entropy_coef in (0.0, 0.1)]
"""Of a tied head autograd brings the embedding's part; with an entropy term the gradient is formed
in the backward pass, else before it."""
COMBINED: list[tuple[AllocationName, ...]] = [
    ("uniform",),
    ("trajectory_percentile",),
    ("forking_tokens",),
    ("low_probability",),
    ("random_tokens",),
    ("trajectory_percentile", "entropy_advantage", "shuffled"),
]


ONE_EACH = 1
"""Micro-batch tokens so few that every response stands alone."""
UNLIKE = 14


def one_step(batch: TokenBatch | None = None, **changes: Any) -> Tensor:
    made, model = learner(**changes)
    before = weights(model)
    made.update(batch or step_batch(), KNOBS)
    return step_taken(before, model)


def head_step(
    batch: TokenBatch, tied: bool, entropy_coef: float, budget: int, **more: Any
) -> Tensor:
    made, model = learner(tied=tied, micro_batch_tokens=budget, **more)
    before = weights(model)
    made.update(batch, replace(KNOBS, entropy_coef=entropy_coef))
    return step_taken(before, model)


def plain_gradient(start: float) -> Tensor:
    """Policy gradient of the credited suffixes, token-mean, full logits, one response at a time."""
    model, batch = tiny_llama(), step_batch()
    total, tokens = torch.zeros(()), 0
    for b, length in enumerate(batch.mask_BT.sum(-1).tolist()):
        prompt = list(batch.prompts[b // 2].tokens)
        response = batch.tokens_BT[b, :length]
        ids = torch.cat([torch.tensor(prompt), response])[None]
        log_p = (model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / 1.3).log_softmax(-1)
        chosen = log_p.gather(1, response[:, None])[:, 0]
        first = min(int(length * start), length - 1)
        # On policy the ratio is 1: its gradient is the log-prob's.
        total = total - (batch.advantage_B[b] * chosen[first:]).sum()
        tokens += length - first
    (total / tokens).backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in model.parameters()]
    return torch.cat([g.flatten() for g in grads if g is not None])


def test_update_is_the_plain_policy_gradient() -> None:
    """The group without signal counts in the denominator and adds no gradient."""
    assert distance(one_step(), plain_gradient(0.4)) < 1e-5


@pytest.mark.parametrize("changes", REDUCTIONS, ids=lambda c: "-".join(c.values()))
@pytest.mark.parametrize("names", COMBINED, ids="+".join)
def test_micro_batches_do_not_change_the_step(
    changes: dict[str, Any], names: tuple[AllocationName, ...]
) -> None:
    whole = one_step(allocations=names, **changes)
    assert whole.norm() > 0
    pieces = one_step(allocations=names, micro_batch_tokens=12, **changes)
    assert distance(pieces, whole) < 1e-5


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_objectives_agree_on_policy(objective: str) -> None:
    """At ratio 1 nothing is clipped: all are the policy gradient."""
    step = one_step(objective=objective, dual_clip=None)
    assert distance(step, plain_gradient(0.4)) < 1e-5


def test_two_updates_are_two_steps_with_ratios() -> None:
    made, _ = learner(updates=2)
    learned = made.update(step_batch(), replace(KNOBS, lr=5.0))
    # The second half is scored by the policy before the first step and learned from after it.
    assert abs(learned.sums["ppo_kl"]) > 1e-4
    once, _ = learner()
    assert abs(once.update(step_batch(), KNOBS).sums["ppo_kl"]) < 1e-6


def test_entropy_advantage_needs_and_gets_a_scoring_pass() -> None:
    made, _ = learner(allocations=("entropy_advantage",))
    batch = step_batch()
    learned = made.update(batch, replace(KNOBS, magnitudes={"entropy_advantage": 1.0}))
    bonus_BT = learned.advantage_BT - batch.advantage_B[:, None]
    learning = batch.mask_BT & (batch.advantage_B != 0)[:, None]
    assert (bonus_BT[learning] > 0).all()
    assert (learned.entropy_BT[batch.mask_BT] > 0).all()


@pytest.mark.parametrize("coefficient", ["kl_coef", "entropy_coef"])
def test_penalties_reach_groups_without_signal(coefficient: str) -> None:
    """With every advantage 0 only the penalty moves the weights, and only where it is on."""
    quiet = replace(step_batch(), advantage_B=torch.zeros(8))
    for value in (0.0, 0.5):
        made, model = learner(reference=True)
        before = weights(model)
        changes: dict[str, Any] = {coefficient: value}
        made.update(quiet, replace(KNOBS, **changes))
        assert (step_taken(before, model).norm() > 0) == (value > 0)


def test_kl_to_another_policy_is_positive_and_to_itself_zero() -> None:
    made, _ = learner(reference=True)
    learned = made.update(step_batch(), KNOBS)
    mask_BT = step_batch().mask_BT
    assert (learned.kl_BT[mask_BT] > 0).all()
    assert (learned.kl_BT[~mask_BT] == 0).all()
    alone, _ = learner()
    assert (alone.update(step_batch(), KNOBS).kl_BT == 0).all()


def test_every_response_is_scored_once() -> None:
    """Also those that teach nothing: entropy is of all response tokens."""
    made, _ = learner()
    learned = made.update(step_batch(), KNOBS)
    mask_BT = step_batch().mask_BT
    assert (learned.entropy_BT[mask_BT] > 0).all()
    assert (learned.logprob_BT[mask_BT] < 0).all()
    assert (learned.entropy_BT[~mask_BT] == 0).all()


def test_a_response_that_does_not_learn_leaves_numerator_and_denominator() -> None:
    """Masked as overlong: the step is that of the others alone, by the tokens that remain."""
    batch = step_batch()
    learns_B = torch.tensor([True, True, True, True, False, True, False, True])
    made, model = learner(allocations=("uniform",))
    before = weights(model)
    learned = made.update(replace(batch, learns_B=learns_B), KNOBS)
    masked = step_taken(before, model)
    assert (learned.weight_BT[~learns_B] == 0).all()

    quiet = replace(batch, advantage_B=batch.advantage_B * learns_B)
    made, model = learner(allocations=("uniform",))
    before = weights(model)
    made.update(quiet, KNOBS)
    every, left = int(batch.mask_BT.sum()), int(batch.mask_BT[learns_B].sum())
    assert distance(masked, step_taken(before, model) * (every / left)) < 1e-5


def test_correction_weighs_each_token_by_trainer_over_sampler() -> None:
    """With one weight for all tokens the step is that many times the plain one."""
    made, model = learner()
    batch = step_batch()
    old_BT = made.update(batch, KNOBS).logprob_BT
    rollout_BT = torch.where(batch.mask_BT, old_BT - math.log(1.5), 0.0)
    shifted = replace(batch, rollout_logprob_BT=rollout_BT)
    plain = one_step()
    for kind, factor in (("truncate", 1.5), ("mask", 1.5), ("none", 1.0)):
        made, model = learner(correction=kind)
        before = weights(model)
        learned = made.update(shifted, KNOBS)
        assert distance(step_taken(before, model), plain * factor) < 1e-4
        assert learned.sums.get("corrected", 0.0) == 0
    made, model = learner(correction="mask")
    before = weights(model)
    learned = made.update(shifted, replace(KNOBS, correction_high=1.2))
    assert step_taken(before, model).abs().max() == 0
    assert learned.sums["corrected"] == learned.sums["learning_tokens"] > 0


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_correction_is_the_same_for_any_cut(level: str) -> None:
    """Also when only a suffix learns: a sequence's ratio is of the whole response."""
    changes: dict[str, Any] = {"correction": "truncate", "correction_level": level}
    whole = one_step(**changes)
    assert distance(one_step(micro_batch_tokens=12, **changes), whole) < 1e-5
    assert distance(one_step(), whole) > 1e-2


def test_where_a_bound_held_is_recorded() -> None:
    made, _ = learner(updates=2, allocations=("uniform",))
    learned = made.update(step_batch(), replace(KNOBS, lr=5.0, clip_low=1e-4, clip_high=1e-4))
    clips = sum(learned.sums[f"clip_{name}"] for name in ("low", "high", "dual"))
    assert clips > 0
    assert int(learned.clipped_BT.sum()) == clips
    # Nothing has moved yet in the first half.
    assert not learned.clipped_BT[:4].any()


def test_coefficients_add_up_to_the_loss() -> None:
    """On policy every ratio is 1, so the loss is the sum of -coefficient * advantage."""
    made, _ = learner()
    learned = made.update(step_batch(), KNOBS)
    by_hand = -(learned.coefficient_BT * learned.advantage_BT).sum()
    assert math.isclose(learned.sums["loss"], float(by_hand), rel_tol=1e-5)


def test_gradient_norm_is_clipped() -> None:
    free = one_step()
    clipped = one_step(max_grad_norm=0.01)
    assert math.isclose(clipped.norm(), 0.01, rel_tol=1e-3)
    assert torch.nn.functional.cosine_similarity(clipped, free, dim=0) > 0.9999


def test_a_gradient_that_is_not_finite_stops_the_run_and_spares_the_weights() -> None:
    made, model = learner()
    before = weights(model)
    broken = replace(step_batch(), advantage_B=torch.full((8,), math.inf))
    with pytest.raises(RunFailedError, match="not finite"):
        made.update(broken, KNOBS)
    assert step_taken(before, model).abs().max() == 0


def heads_seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts tokens as they meet the output head: those pushed, and all that are measured."""
    from tpcli.policy import model as policy_model

    seen = {"pushed": 0, "in all": 0}
    pushed, only_measured = push_logprobs, measure

    def push(hidden_KD: Tensor, w: Tensor, t: Tensor, push_k: Tensor, **kwargs: Any) -> Any:
        seen["pushed"] += len(push_k)
        seen["in all"] += len(hidden_KD)
        return pushed(hidden_KD, w, t, push_k, **kwargs)

    def look(hidden_KD: Tensor, *args: Any, **kwargs: Any) -> Any:
        seen["in all"] += len(hidden_KD)
        return only_measured(hidden_KD, *args, **kwargs)

    monkeypatch.setattr(policy_model, "push_logprobs", push)
    monkeypatch.setattr(policy_model, "measure", look)
    return seen


@pytest.mark.parametrize("measure_all", [True, False])
def test_what_is_not_credited_is_not_scored(
    monkeypatch: pytest.MonkeyPatch, measure_all: bool
) -> None:
    """Learning never scores a token without credit; measuring does only where it is asked for."""
    seen = heads_seen(monkeypatch)
    made, model = learner()
    before = weights(model)
    learned = made.update(step_batch(), KNOBS, measure_all=measure_all)
    assert distance(step_taken(before, model), plain_gradient(0.4)) < 1e-5
    chosen_BT = (learned.weight_BT != 0) & (step_batch().advantage_B != 0)[:, None]
    assert seen["pushed"] == int(chosen_BT.sum())
    measured_BT = step_batch().mask_BT if measure_all else chosen_BT
    assert seen["in all"] == int(measured_BT.sum())
    assert torch.equal(learned.measured_BT, measured_BT)
    assert torch.equal(learned.entropy_BT != 0, measured_BT)


@pytest.mark.parametrize("measure_all", [True, False])
def test_groups_without_signal_are_read_for_the_metrics_alone(measure_all: bool) -> None:
    made, model = learner()
    tokens = [0]
    model.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: tokens.__setitem__(
            0, tokens[0] + (args[0] if args else kwargs["hidden_states"]).shape[1]
        ),
        with_kwargs=True,
    )
    made.update(step_batch(), KNOBS, measure_all=measure_all)
    inputs = {0: 4 + 4 + 0, 1: 9 + 6 + 1, 2: 2 + 2 + 5, 3: 5 + 8 + 3}  # prompt, L - 1 of each
    assert tokens[0] == sum(n for group, n in inputs.items() if measure_all or group != 1)


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    """1 process x 8 micro-batches = 2 x 4 = 1 x 1, for every reduction, unequal lengths.

    And so where a group has no signal and the processes have different numbers of micro-batches.
    """
    together("two_processes.py", tmp_path, processes=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    loud = loud_batch()
    assert len(plan_rows(loud, range(8), budget=ONE_EACH)) == 8
    assert len(plan_rows(loud, range(8), budget=METHOD.micro_batch_tokens)) == 1
    assert len(REDUCTIONS) == len(found["unlike"]) == len(found["four_each"])
    for changes, unlike, four_each in zip(
        REDUCTIONS, found["unlike"], found["four_each"], strict=True
    ):
        assert distance(unlike, one_step(**changes)) < 1e-5, changes
        whole = one_step(loud_batch(), **changes)
        assert whole.norm() > 0
        eight = one_step(loud_batch(), micro_batch_tokens=ONE_EACH, **changes)
        assert distance(eight, whole) < 1e-5, changes
        assert distance(four_each, whole) < 1e-5, changes
    for head, step in zip(HEADS, found["heads"], strict=True):
        assert distance(step, head_step(step_batch(), *head, METHOD.micro_batch_tokens)) < 1e-5, (
            head
        )
    torch.testing.assert_close(
        found["advantages"], advantages("batch_std", loud.reward_B, group_size=2)
    )


def test_method_is_the_recipe_default() -> None:
    """The plain form above is that of the defaults; a new default must be looked at here."""
    assert (METHOD.reduction, METHOD.denominator) == ("token-mean", "selected")
