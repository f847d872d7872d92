"""A recorded run under another schedule: which stored tokens it would have credited, and how much.

Counterfactual only in what is credited: the responses, their entropies and their log-probs are
those of the run. Under another schedule the policy would have become another one, and sampled
other responses; the further the run, the more so.

Letters: B responses of one step, T padded tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpcli.analysis.schedules import adaptive, focus, scalar_at, window
from tpcli.errors import UsageError
from tpcli.names import AllocationName, SignalName
from tpcli.recipe.scalar import Schedule

if TYPE_CHECKING:
    from torch import Tensor

    from tpcli.recipe.schema import Recipe

SIGNALS: dict[SignalName, tuple[str, ...]] = {
    "entropy": ("entropy/all",),
    # Where groups were drawn again, the accuracy of all that was drawn.
    "accuracy": ("sampling/accuracy", "verdict/correct"),
}
"""The metrics that an adaptive schedule follows: the first one that a step has."""
READS: dict[str, frozenset[AllocationName]] = {
    "entropy": frozenset({"forking_tokens", "entropy_advantage"}),
    "old_logprob": frozenset({"low_probability"}),
    "seed": frozenset({"random_tokens", "shuffled"}),
    "group_advantage": frozenset({"entropy_advantage"}),
}
"""What allocations read of a stored response beside its tokens, weights and advantages."""
TOLERANCE = 1e-4
"""Weights are stored with six digits."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored response: L tokens, and of each what the update knew of it.

    Attributes:
        weight, advantage: as they were in the loss, the allocation's work included.
        group_advantage: before any shaping.
        learns: False where the whole response was left out of the loss.
        entropy, old_logprob, seed: None where the run did not store them.
    """

    step: int
    question: str
    tokens: tuple[str, ...]
    weight: tuple[float, ...]
    advantage: tuple[float, ...]
    group_advantage: float
    learns: bool = True
    entropy: tuple[float, ...] | None = None
    old_logprob: tuple[float, ...] | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Side:
    """The credit of one step's stored responses under one recipe.

    Attributes:
        credited: tokens with a weight other than 0.
        gradient_scale: mean coefficient of a credited token relative to 1 / tokens, over the
            stored responses as if they were the whole step.
        push: mean |advantage| of the credited tokens.
    """

    magnitudes: dict[AllocationName, float]
    credited: int
    gradient_scale: float
    push: float


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as it was and as it would have been.

    Attributes:
        gained, lost: tokens credited only now, and only then.
        differ: stored weights that the run's own recipe does not give again.
    """

    step: int
    responses: int
    tokens: int
    then: Side
    now: Side
    gained: int
    lost: int
    differ: int


@dataclass(frozen=True, slots=True)
class Example:
    """One response with its weights under both recipes."""

    sample: Sample
    now: tuple[float, ...]

    @property
    def changed(self) -> int:
        """Tokens credited by one recipe only."""
        pairs = zip(self.sample.weight, self.now, strict=True)
        return sum((then != 0) != (now != 0) for then, now in pairs)


def sample_of(line: Mapping[str, Any]) -> Sample:
    """One line of responses.jsonl; older runs lack some of its keys.

    Raises:
        KeyError: the line lacks what every run stores.
    """
    advantage = tuple(line["advantage"])
    # Without shaping, all tokens of a response have the group's advantage.
    group = line.get("group_advantage", advantage[0] if advantage else 0.0)
    return Sample(
        step=int(line["step"]),
        question=line["question"],
        tokens=tuple(line["tokens"]),
        weight=tuple(line["weight"]),
        advantage=advantage,
        group_advantage=group,
        learns=line.get("learns", True),
        entropy=tuple(line["entropy"]) if "entropy" in line else None,
        old_logprob=tuple(line["old_logprob"]) if "old_logprob" in line else None,
        seed=line.get("seed"),
    )


def missing(lines: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, list[str]]:
    """Keys that the recipe's allocations read and some line lacks, with the readers."""
    used = set(recipe.credit.allocations)
    return {
        key: sorted(used & readers)
        for key, readers in READS.items()
        if used & readers and any(line.get(key) is None for line in lines)
    }


# Magnitudes


def own_magnitudes(recipe: Recipe, line: Mapping[str, Any]) -> dict[AllocationName, float]:
    """The magnitudes that a step of the run had: as recorded, else as its recipe says."""
    keys = recipe.credit.magnitudes()
    step = int(line["step"])
    found: dict[AllocationName, float] = {}
    for name, key in keys.items():
        metric = "schedule/magnitude" if len(keys) == 1 else f"schedule/{name}"
        recorded = line.get(metric)
        if recorded is None and adaptive(recipe, key):
            raise UsageError(f"step {step} of the run has no {metric}, which its schedule moved")
        found[name] = scalar_at(recipe, key, step) if recorded is None else float(recorded)
    return found


def other_magnitudes(
    recipe: Recipe, metrics: Sequence[Mapping[str, Any]], steps: Sequence[int]
) -> dict[int, dict[AllocationName, float]]:
    """The magnitudes that ``recipe`` would have had at ``steps``.

    An adaptive one follows what the run measured: its course had the measurements been the same.
    """
    keys = recipe.credit.magnitudes()
    shares = {
        key: _shares(rule, window(recipe, key) or (0, 0), metrics, max(steps))
        for key in set(keys.values())
        if (rule := adaptive(recipe, key))
    }
    return {
        step: {
            name: scalar_at(recipe, key, step, shares[key][step] if key in shares else 1.0)
            for name, key in keys.items()
        }
        for step in steps
    }


def _shares(
    rule: Schedule, window: tuple[int, int], metrics: Sequence[Mapping[str, Any]], last: int
) -> dict[int, float]:
    """An adaptive schedule's share at steps 1 to ``last``, moved by what each step measured."""
    from tpcli.credit.schedule import adapt, smooth

    assert rule.target is not None
    measured = {int(line["step"]): _signal(line, rule.signal) for line in metrics}
    share, average, found = 1.0, None, {}
    for step in range(1, last + 1):
        found[step] = share
        value = measured.get(step)
        if value is None:
            if step == last:
                break  # it would only move the next step
            raise UsageError(
                f"step {step} of the run has no {SIGNALS[rule.signal][-1]}, "
                f'which curve = "adaptive" with signal = "{rule.signal}" follows'
            )
        average = smooth(average, value, decay=rule.smoothing)
        if window[0] <= step < window[1]:
            share = adapt(
                share, average, target=rule.target, gain=rule.gain, max_change=rule.max_change
            )
    return found


def _signal(line: Mapping[str, Any], signal: SignalName) -> float | None:
    return next((line[key] for key in SIGNALS[signal] if line.get(key) is not None), None)


# Weights


def weigh(
    samples: Sequence[Sample], recipe: Recipe, magnitudes: Mapping[AllocationName, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, advantage and mask, [B, T], of stored responses under the recipe's credit."""
    import torch

    from tpcli.credit.allocation import allocate

    mask_BT = _padded([(1.0,) * len(s.tokens) for s in samples]) != 0
    credit, step = recipe.credit, samples[0].step
    weight_BT, advantage_BT = allocate(
        credit.allocations,
        magnitudes=magnitudes,
        mask_BT=mask_BT,
        advantage_B=torch.tensor([s.group_advantage for s in samples]),
        entropy_BT=_padded_or_none([s.entropy for s in samples]),
        logprob_BT=_padded_or_none([s.old_logprob for s in samples]),
        focus=focus(recipe),
        alpha=scalar_at(recipe, "credit.entropy_advantage.alpha", step),
        kappa=scalar_at(recipe, "credit.entropy_advantage.kappa", step),
        seeds=[s.seed for s in samples if s.seed is not None],
    )
    learns_B1 = torch.tensor([[s.learns] for s in samples])
    return weight_BT * learns_B1, advantage_BT, mask_BT


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([torch.tensor(row, dtype=torch.float32) for row in rows], batch_first=True)


def _padded_or_none(rows: Sequence[Sequence[float] | None]) -> Tensor | None:
    known = [row for row in rows if row is not None]
    return _padded(known) if len(known) == len(rows) else None


def scale(weight_BT: Tensor, mask_BT: Tensor, recipe: Recipe) -> float:
    """Effective gradient scale of these responses, as if they were a whole optimiser step.

    token-mean divides by ``constant`` whatever the number of responses, so their part of the step
    is taken of it: b / (prompts * group_size / updates).
    """
    from tpcli.loss.reduce import Totals, coefficients, count, gradient_scale

    loss, rollout = recipe.loss, recipe.rollout
    constant = loss.constant or float(rollout.max_new_tokens)
    if loss.reduction == "token-mean":
        constant *= len(mask_BT) * recipe.train.updates / (rollout.prompts * rollout.group_size)
    totals = Totals(*count(weight_BT, mask_BT).tolist())
    coefficient_BT = coefficients(
        weight_BT,
        mask_BT,
        totals,
        reduction=loss.reduction,
        denominator=loss.denominator,
        constant=constant,
    )
    return float(gradient_scale(coefficient_BT, totals))


def compare(
    samples: Sequence[Sample],
    own: Recipe,
    other: Recipe,
    own_m: Mapping[AllocationName, float],
    other_m: Mapping[AllocationName, float],
) -> tuple[Step, list[Example]]:
    """One step's stored responses under the run's own recipe and under another.

    What was credited then is what the run stored; its recipe is worked out again as a check.
    """
    again_BT, _, mask_BT = weigh(samples, own, own_m)
    stored_BT = _padded([s.weight for s in samples])
    now_BT, advantage_BT, _ = weigh(samples, other, other_m)
    had_BT, has_BT = stored_BT != 0, now_BT != 0
    step = Step(
        step=samples[0].step,
        responses=len(samples),
        tokens=int(mask_BT.sum()),
        then=_side(own_m, stored_BT, _padded([s.advantage for s in samples]), mask_BT, own),
        now=_side(other_m, now_BT, advantage_BT, mask_BT, other),
        gained=int((has_BT & ~had_BT).sum()),
        lost=int((had_BT & ~has_BT).sum()),
        differ=int(((again_BT - stored_BT).abs() > TOLERANCE).sum()),
    )
    rows = [tuple(now_BT[b, : len(s.tokens)].tolist()) for b, s in enumerate(samples)]
    return step, [Example(s, now) for s, now in zip(samples, rows, strict=True)]


def _side(
    magnitudes: Mapping[AllocationName, float],
    weight_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    recipe: Recipe,
) -> Side:
    credited_BT = weight_BT != 0
    credited = int(credited_BT.sum())
    return Side(
        magnitudes=dict(magnitudes),
        credited=credited,
        gradient_scale=scale(weight_BT, mask_BT, recipe),
        push=float(advantage_BT.abs()[credited_BT].sum()) / max(credited, 1),
    )
