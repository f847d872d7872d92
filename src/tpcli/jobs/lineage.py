"""New runs from old ones: a recipe trained again, and a fork that goes on from a checkpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs.runs import checkpoints, find
from tpcli.jobs.train import Parent, Plan, check_words, default_name, identity_of, parent_of
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import diff
from tpcli.registry import folder
from tpcli.registry.run import Run

if TYPE_CHECKING:
    from tpcli.recipe.schema import Recipe

STATE, MODEL, OPTIMIZER = "state.json", "model", "optimizer.pt"
"""What a checkpoint holds."""
HOW = ("model.gradient_checkpointing", "model.trust_remote_code")
"""Keys of [model] that say how it is computed, not what it is."""


def again(
    key: str,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    note: str = "",
    argv: Sequence[str] = (),
) -> Plan:
    """The resolved recipe of the run ``key``, to be trained from its beginning as a new run.

    Raises:
        NotFoundError: no such run.
        RecipeError, UsageError: what was typed over the recipe, or the name, is not usable.
    """
    return plan_from(
        find(key), overrides=overrides, seed=seed, name=name, tags=tags, note=note, argv=argv
    )


def fork(
    key: str,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    note: str = "",
    argv: Sequence[str] = (),
) -> Plan:
    """A new run that goes on from a checkpoint of another.

    Args:
        key: RUN@STEP, or RUN for its newest checkpoint.

    Raises:
        NotFoundError: no such run or checkpoint.
        RecipeError, UsageError: the recipe is not usable, does not fit the checkpoint, or ends
            at it.
    """
    run, step = _checkpoint(key)
    planned = plan_from(
        run,
        overrides=overrides,
        seed=seed,
        name=name,
        tags=tags,
        note=note,
        argv=argv,
        step=step,
    )
    before, after = load_recipe(run.folder / folder.RESOLVED).recipe, planned.recipe
    _check_fit(run, before, after)
    if step >= after.train.steps:
        raise UsageError(
            f"the recipe ends with step {after.train.steps}, and the fork begins after step {step}",
            hint=f"train further: --set train.steps={step + 100}",
        )
    parent = Parent(run.id, step)
    return replace(
        planned,
        fingerprint=identity_of(after, parent),
        parent=parent,
        fill=partial(fill, run.folder, step, after),
    )


def plan_from(
    run: Run,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    note: str = "",
    argv: Sequence[str] = (),
    step: int | None = None,
) -> Plan:
    """A plan from the run's resolved recipe, with what was typed on top.

    The path of the recipe stays that of the original: a user's own verifier stands beside it.

    Args:
        step: where a fork begins, for its name.
    """
    before = load_recipe(run.folder / folder.RESOLVED).recipe
    loaded = load_recipe(run.folder / folder.RESOLVED, overrides=overrides, seed=seed)
    named = name or _name(run, before, loaded.recipe, step)
    check_words(named, *tags)
    parent = parent_of(run.folder)
    if parent and step is None:
        anew = f"{run.id} is a fork of {parent.run}@{parent.step}; this begins with the first step"
        loaded = replace(loaded, warnings=(*loaded.warnings, anew))
    return Plan(
        loaded=replace(loaded, path=Path(run.recipe)),
        name=named,
        tags=tuple(tags),
        note=note,
        fingerprint=identity_of(loaded.recipe, None),
        argv=tuple(argv),
    )


def _name(run: Run, before: Recipe, after: Recipe, step: int | None) -> str:
    """The original's name, with the seed (and the curve, where it was named so) of the new run."""
    path = Path(run.recipe)
    name = default_name(path, after) if run.name == default_name(path, before) else run.name
    stem = re.sub(r"-s\d+$", "", name)
    if step is not None:
        stem = f"{re.sub(r'-fork[0-9]+$', '', stem)[:80]}-fork{step}"
    elif stem == name and before.train.seed == after.train.seed:
        return name
    return f"{stem[:90]}-s{after.train.seed}"


def _checkpoint(key: str) -> tuple[Run, int]:
    """The run, and the step of the checkpoint, that RUN@STEP names."""
    named, at, wanted = key.partition("@")
    run = find(named)
    steps = [int(name.removeprefix("step-")) for name in checkpoints(run)]
    if not steps:
        raise NotFoundError(
            f"run {run.id} has no checkpoint to fork from",
            hint=f"train its recipe from the beginning: tpcli rerun {run.id}",
        )
    if not at:
        return run, steps[-1]
    if not wanted.isdigit():
        raise UsageError(
            f"{key}: {wanted or 'nothing'} is not a step", hint=f"tpcli fork {run.id}@{steps[-1]}"
        )
    if int(wanted) not in steps:
        raise NotFoundError(
            f"run {run.id} has no checkpoint of step {wanted}",
            hint=f"it has {', '.join(map(str, steps))}: tpcli fork {run.id}@{steps[-1]} ...",
        )
    return run, int(wanted)


def _check_fit(run: Run, before: Recipe, after: Recipe) -> None:
    """Refuse another model, or another policy to measure the KL from."""
    tables = {"model": "the weights", "warmup": "the policy before RL"}
    if before.warmup is not None:  # which learned from the questions
        tables["data"] = "what the policy learned before RL"
    for key, old, new in diff(before, after):
        what = tables.get(key.partition(".")[0])
        if what and key not in HOW:
            raise UsageError(
                f"{key} decides {what}, which a checkpoint brings along: "
                f"{_told(old)} in {run.id}, {_told(new)} here",
                hint=f"leave it as it is, or begin anew: tpcli rerun {run.id} --set {key}=...",
            )


def _told(value: object) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)[:60]


# Into the new folder


def fill(parent_dir: Path, step: int, recipe: Recipe, new_dir: Path) -> None:
    """Put the checkpoint, and the metrics up to it, into the folder of a fork.

    The weights are hard links where the file system has them: the child keeps its own when the
    parent is removed. The state is written anew, because its schedule is the child's from here on.

    Raises:
        NotFoundError: the checkpoint was dropped meanwhile by the run that is still training.
    """
    source = parent_dir / folder.CHECKPOINTS / f"step-{step:06d}"
    target = new_dir / folder.CHECKPOINTS / source.name
    try:
        shutil.copytree(source, target, copy_function=link_or_copy)
    except OSError as error:
        if source.exists():
            raise
        raise NotFoundError(
            f"the checkpoint of step {step} has just been dropped",
            hint=f"take a newer one: tpcli fork {parent_dir.name}",
        ) from error
    state = folder.read_json(target / STATE)
    state |= {"horizon": recipe.horizon, "seed": recipe.train.seed}
    folder.write_json_atomic(target / STATE, state)  # replaces the link, not the parent's file
    before = load_recipe(parent_dir / folder.RESOLVED).recipe
    if _constants(before) != _constants(recipe):
        _set_constants(target / OPTIMIZER, recipe)
    if before.data == recipe.data:  # then the worker refuses other questions
        known, facts = (folder.read_json(d / folder.PROVENANCE) for d in (parent_dir, new_dir))
        folder.write_json_atomic(new_dir / folder.PROVENANCE, facts | {"data": known["data"]})
    lines = [line for line in folder.read_metrics(parent_dir) if line["step"] <= step]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (new_dir / folder.METRICS).write_text(text, encoding="utf-8")


def link_or_copy(source: str, target: str) -> None:
    """A hard link; a copy where the file system has none, or between two."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _constants(recipe: Recipe) -> dict[str, object]:
    """What the optimiser keeps in its state beside the moments; the rate is set at every step."""
    section = recipe.optim
    return {"betas": section.betas, "eps": section.eps, "weight_decay": section.weight_decay}


def _set_constants(path: Path, after: Recipe) -> None:
    """Write the optimiser's state anew with the child's constants and the parent's moments."""
    import torch

    kept = torch.load(path, map_location="cpu", weights_only=True)
    groups = kept["optimizer"]["param_groups"]
    for place, group in enumerate(groups):
        # Matrices come first, then vectors, which are not decayed.
        decayed = place == 0
        group |= _constants(after) | ({} if decayed else {"weight_decay": 0.0})
    aside = path.with_suffix(".partial")
    torch.save(kept, aside)
    aside.replace(path)  # the link goes, the parent's file stays
