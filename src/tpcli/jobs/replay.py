"""Replay a run: read what it stored, and credit it anew under a changed recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.analysis import replay as credit
from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs.runs import find
from tpcli.recipe.load import load_recipe
from tpcli.registry import folder

if TYPE_CHECKING:
    from tpcli.recipe.schema import Recipe
    from tpcli.registry.run import Run

LOSS_KEYS = ("loss.reduction", "loss.denominator", "loss.constant")
GROUP_KEYS = ("credit.advantage", "credit.eps", "credit.ddof", "credit.k")


@dataclass(frozen=True, slots=True)
class Replay:
    """A run's stored responses, credited as they were and as ``other`` would have.

    Attributes:
        example: the response whose credited tokens change most; the earliest of several.
        warnings: of the changed recipe, on what was changed.
    """

    run: Run
    own: Recipe
    other: Recipe
    steps: list[credit.Step]
    example: credit.Example
    warnings: list[str]


def replay(key: str, overrides: Sequence[str]) -> Replay:
    """Credit a run's stored responses anew, under its own recipe with ``overrides`` on top.

    Raises:
        NotFoundError: no such run, or it stored no responses.
        UsageError: an override that the stored responses cannot answer, or a key they lack.
    """
    typed = _typed(overrides)
    run = find(key)
    resolved = run.folder / folder.RESOLVED
    own, changed = load_recipe(resolved).recipe, load_recipe(resolved, overrides=overrides)
    other = changed.recipe
    _refuse_prefix(own, other)
    lines = read_responses(run.folder)
    if not lines:
        raise NotFoundError(
            f"run {run.id} has stored no responses",
            hint="[track].responses says how many a step are kept",
        )
    # With [track].tokens_every, entropy and log-prob are stored of some steps alone.
    lines = [x for x in lines if not credit.missing([x], own) | credit.missing([x], other)] or lines
    _refuse_missing(run, lines, own, other)
    steps, example = _steps(run, lines, own, other)
    warnings = [warning for warning in changed.warnings if _concerns(warning, typed)]
    return Replay(run, own, other, steps, example, warnings)


def _steps(
    run: Run, lines: Sequence[dict[str, Any]], own: Recipe, other: Recipe
) -> tuple[list[credit.Step], credit.Example]:
    metrics = folder.read_metrics(run.folder)
    by_step = {int(line["step"]): line for line in metrics}
    samples = [credit.sample_of(line) for line in lines]
    groups = {step: list(its) for step, its in groupby(samples, key=lambda s: s.step)}
    magnitudes = credit.other_magnitudes(other, metrics, list(groups))
    steps: list[credit.Step] = []
    best: credit.Example | None = None
    for step, its in groups.items():
        own_m = credit.own_magnitudes(own, by_step.get(step, {"step": step}))
        row, examples = credit.compare(its, own, other, own_m, magnitudes[step])
        steps.append(row)
        most = max(examples, key=lambda example: example.changed)
        if best is None or most.changed > best.changed:
            best = most
    assert best is not None
    return steps, best


def read_responses(run_dir: Path) -> list[dict[str, Any]]:
    """Every whole line of responses.jsonl that has tokens, in order of step.

    A last line without its line feed is still being written: left out. No file: no lines.

    Raises:
        UsageError: a broken line, which it names, or one that lacks what every run stores.
    """
    try:
        data = (run_dir / folder.RESPONSES).read_bytes()
    except FileNotFoundError:
        return []
    lines = []
    for number, text in enumerate(data.split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
            credit.sample_of(line)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{folder.RESPONSES}, line {number}: {error}") from None
        except KeyError as error:
            raise UsageError(f"{folder.RESPONSES}, line {number} has no {error}") from None
        if line["tokens"]:
            lines.append(line)
    return sorted(lines, key=lambda line: int(line["step"]))


# What cannot be replayed


def _typed(overrides: Sequence[str]) -> list[str]:
    """The keys that were typed, after refusing those that stored responses cannot answer."""
    if not overrides:
        raise UsageError(
            "a replay needs something to change",
            hint="as in --set credit.schedule.curve='\"cosine\"'",
        )
    keys = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        keys.append(key := key.strip())
        if not equals:
            raise UsageError(
                f"--set {override}: a replay needs KEY=VALUE",
                hint=f"write --set {key}=VALUE; KEY is one of credit.*, {', '.join(LOSS_KEYS)}",
            )
        if key in GROUP_KEYS:
            raise UsageError(
                f"{key} cannot be replayed: it needs the rewards of whole groups, and a run stores "
                "one response of each",
                hint="train it: tpcli train RECIPE --set ...",
            )
        if not key.startswith("credit.") and key not in LOSS_KEYS:
            raise UsageError(
                f"{key} cannot be replayed: it would have made other responses or another policy",
                hint=f"a replay changes credit.*, {', '.join(LOSS_KEYS)}",
            )
    return keys


def _refuse_prefix(own: Recipe, other: Recipe) -> None:
    """Another prefix of a worked solution would have been continued by other responses."""

    def prefix(recipe: Recipe) -> object:
        key = recipe.credit.magnitudes().get("expert_prefix")
        return recipe.scalars()[key] if key else None

    if prefix(own) != prefix(other):
        raise UsageError(
            "expert_prefix cannot be replayed: with another part of the solution given, "
            "other responses would have been sampled",
            hint="keep it, with its magnitude, as the run had it, and change what comes after",
        )


def _refuse_missing(run: Run, lines: Sequence[dict[str, Any]], *recipes: Recipe) -> None:
    lacking: dict[str, list[str]] = {}
    for recipe in recipes:
        lacking |= credit.missing(lines, recipe)
    if lacking:
        wants = "; ".join(f"{key}, which {' and '.join(who)} reads" for key, who in lacking.items())
        raise UsageError(
            f"the stored responses of run {run.id} lack {wants}",
            hint="runs of this version store it; train it again to replay it",
        )


def _concerns(warning: str, typed: Sequence[str]) -> bool:
    """Whether a warning is about what was typed: a resolved recipe has every key written out."""
    about = warning.split()[0]
    return any(key.startswith(about) or about.startswith(key) for key in typed)
