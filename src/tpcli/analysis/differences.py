"""What differs between arms besides what they show: recipe, origin, budgets. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from tpcli.analysis.arms import Arm, Budget, budget

SEED = "train.seed"
"""The key that runs of one arm may differ in."""
TOLERANCE = 0.05
"""Budgets that differ by less, as a share of the first arm's, count as equal."""
BUDGETS: tuple[tuple[str, Callable[[Budget], float], str], ...] = (
    ("budget", lambda cost: cost.generated, "{} generated {} the tokens that {} did"),
    ("credit", lambda cost: cost.credited, "{} learned from {} the tokens that {} did"),
    ("time", lambda cost: cost.seconds, "{} took {} the time that {} did"),
)
MANY = 3.0
"""A ratio that is told as so many times, not per cent."""
ORIGINS = (
    ("tpcli.code", "the runs were made by different versions of tpcli's code"),
    ("data.sha256", "the runs were given different data"),
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A key that is not the same in all arms.

    Attributes:
        values: of each arm, the different values that its runs have; None where a run lacks it.
    """

    key: str
    values: tuple[tuple[Any, ...], ...]


def differences(arms: Sequence[Arm], what: Literal["settings", "origin"]) -> tuple[Difference, ...]:
    """The keys whose values differ between arms, in their order; the run's seed is left out."""
    found = []
    for key in keys_of(arms, what):
        values = tuple(_distinct(_table(run, what).get(key) for run in arm.runs) for arm in arms)
        if len({_set(one) for one in values}) > 1:
            found.append(Difference(key, values))
    return tuple(found)


def keys_of(arms: Sequence[Arm], what: Literal["settings", "origin"]) -> list[str]:
    """Every key that some run has, in order, without the run's seed."""
    keys = dict.fromkeys(key for arm in arms for run in arm.runs for key in _table(run, what))
    return [key for key in keys if key != SEED]


def doubts(arms: Sequence[Arm], metrics: Sequence[str]) -> list[str]:
    """What makes the comparison less than fair, a sentence each."""
    return [
        *_mixed(arms),
        *_shared(arms),
        *_unfinished(arms),
        *_origins(arms),
        *_checkpoints(arms, metrics),
        *_budgets(arms),
    ]


def _mixed(arms: Sequence[Arm]) -> Iterable[str]:
    """Runs of one arm are one condition, or their mean means nothing."""
    for arm in arms:
        keys = [
            key
            for key in keys_of([arm], "settings")
            if len(_distinct(run.settings.get(key) for run in arm.runs)) > 1
        ]
        if keys:
            yield f"{arm.label}: its runs differ in more than the seed: {', '.join(keys)}"


def _shared(arms: Sequence[Arm]) -> Iterable[str]:
    holders: dict[str, list[str]] = {}
    for arm in arms:
        for run in arm.runs:
            holders.setdefault(run.id, []).append(arm.label)
    for run_id, labels in holders.items():
        if len(labels) > 1:
            yield f"run {run_id} is in more than one arm: {', '.join(labels)}"


def _unfinished(arms: Sequence[Arm]) -> Iterable[str]:
    for arm in arms:
        for run in arm.runs:
            if run.status != "finished":
                step = run.metrics[-1]["step"] if run.metrics else 0
                yield (
                    f"run {run.id} of {arm.label} is not finished: {run.status}, "
                    f"step {step}/{run.steps}"
                )


def _origins(arms: Sequence[Arm]) -> Iterable[str]:
    for key, sentence in ORIGINS:
        if len(_distinct(run.origin.get(key) for arm in arms for run in arm.runs)) > 1:
            yield sentence


def _checkpoints(arms: Sequence[Arm], metrics: Sequence[str]) -> Iterable[str]:
    for metric in metrics:
        steps = {
            arm.label: sorted({run.scores[metric].step for run in arm.runs if metric in run.scores})
            for arm in arms
        }
        if len({step for found in steps.values() for step in found}) > 1:
            told = [f"{label} at step {_either(found)}" for label, found in steps.items() if found]
            yield f"{metric}: the checkpoints are of different steps: {', '.join(told)}"


def _either(steps: Sequence[int]) -> str:
    return " or ".join(map(str, steps))


def _budgets(arms: Sequence[Arm]) -> Iterable[str]:
    """Where an arm has cost more or less than the first one, each the mean over its runs."""
    costs = {arm.label: [budget(run) for run in arm.runs] for arm in arms}
    base, *others = arms
    for word, amount, sentence in BUDGETS:
        of = {label: fmean(map(amount, found)) for label, found in costs.items()}
        for arm in others:
            if not of[base.label]:  # not recorded
                continue
            ratio = of[arm.label] / of[base.label]
            if abs(ratio - 1) > TOLERANCE:
                much = f"{ratio:.0%} of" if ratio < MANY else f"{ratio:.3g} times"
                yield f"{word}: {sentence.format(arm.label, much, base.label)}"


def _table(run: Any, what: str) -> Mapping[str, Any]:
    table: Mapping[str, Any] = getattr(run, what)
    return table


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    """Each value once, in order; False is not 0, and lists may be values."""
    return tuple({_text(value): value for value in values}.values())


def _set(values: Iterable[Any]) -> frozenset[str]:
    return frozenset(map(_text, values))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
