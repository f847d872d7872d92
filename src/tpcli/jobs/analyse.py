"""Looking into one run: its measurements by trajectory percentile, and gradients of its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.errors import NotFoundError, UsageError
from tpcli.registry import folder

if TYPE_CHECKING:
    from tpcli.analysis.gradients import Interference, Report
    from tpcli.analysis.heatmaps import Trajectories
    from tpcli.policy.model import Policy
    from tpcli.recipe.schema import Recipe
    from tpcli.registry.run import Run

PERCENTILES = "percentiles.png"
READ = ("ids", "prompt_ids", "group_advantage", "logprob")
"""What a stored response must have for its gradient to be computed again."""


def trajectories(run: Run, *, at: Sequence[float], out: Path | None) -> tuple[Trajectories, Path]:
    """What the run's metrics hold by percentile, and the figure that was drawn of it.

    Args:
        at: points of training at which KL is cut, as shares of all steps.
        out: folder of the figure; None means the run's own.
    """
    from tpcli.analysis import heatmaps
    from tpcli.analysis.canvas import save

    metrics = folder.read_metrics(run.folder)
    figure = heatmaps.percentiles(metrics, at=at, steps=run.steps)
    if figure is None:
        raise NotFoundError(
            f"run {run.id} has measured nothing by trajectory percentile yet",
            hint=f"its first step must end before there is something to see: tpcli logs {run.id}",
        )
    path = save(figure, (out or run.folder / folder.FIGURES) / PERCENTILES)
    return heatmaps.read(metrics, at=at, steps=run.steps), path


@dataclass(frozen=True, slots=True)
class Measured:
    """Gradients by percentile, and what they were measured on.

    Attributes:
        step: of the checkpoint, whose weights sampled the responses of the step after it.
        looked_at: stored responses that were looked at, nearest first.
        used: those of them that carry signal; the others have no gradient.
        steps: the first and last step that the used ones were sampled in.
        temperature: that their log-probs were taken at.
    """

    step: int
    looked_at: int
    used: int
    steps: tuple[int, int]
    temperature: float
    interference: Interference
    figure: Path


def gradients(
    run: Run,
    *,
    step: int | None,
    bins: int,
    responses: int,
    out: Path | None,
    report: Report | None = None,
) -> Measured:
    """Measure the gradients of a checkpoint by percentile, on the run's stored responses.

    Args:
        step: of the checkpoint; None means the newest.
        bins: of trajectory percentile.
        responses: how many to use at most: those with signal sampled nearest to the checkpoint.
        out: folder of the figure; None means the run's own.

    Raises:
        NotFoundError: no such checkpoint, or no stored responses that could be used.
        UsageError: the gradients do not fit into memory.
    """
    from tpcli.analysis import gradients as analysis
    from tpcli.analysis.canvas import save
    from tpcli.recipe.load import load_recipe

    recipe = load_recipe(run.folder / folder.RESOLVED).recipe
    at, checkpoint = _checkpoint(run, step)
    samples, looked_at = nearest_with_signal(_stored(run), at, responses)
    if not samples:
        raise NotFoundError(
            f"none of the {looked_at} stored responses of run {run.id} carries signal: "
            "every advantage is 0",
            hint="store more of them (track.responses), or train on questions that the policy "
            "answers sometimes",
        )
    policy = _policy(checkpoint / "model", recipe, bins)
    temperature = _temperature(run, recipe, samples[0]["step"])
    found = analysis.compare(
        analysis.bin_gradients(
            policy,
            analysis.to_batch(samples),
            bins=bins,
            temperature=temperature,
            budget=recipe.train.micro_batch_tokens,
            report=report,
        )
    )
    title = f"{run.name} · {run.id} · checkpoint of step {at} · {len(samples)} responses"
    target = (out or run.folder / folder.FIGURES) / f"gradients-{at:06d}.png"
    sampled = [sample["step"] for sample in samples]
    return Measured(
        step=at,
        looked_at=looked_at,
        used=len(samples),
        steps=(min(sampled), max(sampled)),
        temperature=temperature,
        interference=found,
        figure=save(analysis.draw(found, title), target),
    )


def nearest_with_signal(
    stored: Sequence[dict[str, Any]], step: int, most: int
) -> tuple[list[dict[str, Any]], int]:
    """At most ``most`` responses that carry signal, and how many were looked at to find them.

    The weights of checkpoint ``step`` sampled the responses of ``step + 1``: those come first, then
    those of the steps around it, the earlier of two equally near.
    """
    ordered = sorted(stored, key=lambda line: (abs(line["step"] - step - 1), line["step"]))
    found: list[dict[str, Any]] = []
    for seen, line in enumerate(ordered):
        if len(found) == most:
            return found, seen
        if line["ids"] and line["group_advantage"] and line.get("learns", True):
            found.append(line)
    return found, len(ordered)


def _checkpoint(run: Run, step: int | None) -> tuple[int, Path]:
    from tpcli.train.checkpoint import found

    every = dict(found(run.folder))
    if not every:
        raise NotFoundError(
            f"run {run.id} has no checkpoint",
            hint="one is written at the end, and every [train].save_every steps before it",
        )
    wanted = max(every) if step is None else step
    if wanted not in every:
        raise NotFoundError(
            f"run {run.id} has no checkpoint of step {step}",
            hint=f"it has {', '.join(map(str, every))}: --step {max(every)}",
        )
    return wanted, every[wanted]


def _stored(run: Run) -> list[dict[str, Any]]:
    """The run's stored responses, whole lines only."""
    path = run.folder / folder.RESPONSES
    data = path.read_bytes() if path.exists() else b""
    lines = [json.loads(line) for line in data.split(b"\n")[:-1] if line.strip()]
    if not lines:
        raise NotFoundError(
            f"run {run.id} has stored no responses",
            hint="train with track.responses above 0; the gradients are computed on them",
        )
    usable = [line for line in lines if all(key in line for key in READ)]
    if not usable:
        missing = [key for key in READ if key not in lines[-1]]
        raise UsageError(
            f"the stored responses of run {run.id} have no {', '.join(missing)}",
            hint="the run is from an older version; train again to look at its gradients",
        )
    return usable


def _policy(path: Path, recipe: Recipe, bins: int) -> Policy:
    """The checkpoint's model in float32, where it computes fastest."""
    import psutil
    import torch

    from tpcli.analysis.gradients import check_memory
    from tpcli.policy.load import load_model
    from tpcli.policy.model import Policy

    model, _ = load_model(path, dtype="float32", trust_remote_code=recipe.model.trust_remote_code)
    check_memory(model.num_parameters(), bins, psutil.virtual_memory().available)
    policy = Policy(model, head_chunk=recipe.train.head_chunk)
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    return policy


def _temperature(run: Run, recipe: Recipe, step: int) -> float:
    """Of the responses sampled in ``step``: as recorded where it moves, else the recipe's."""
    from tpcli.analysis.schedules import scalar_at

    for line in folder.read_metrics(run.folder):
        if line["step"] == step and "schedule/temperature" in line:
            return float(line["schedule/temperature"])
    return scalar_at(recipe, "rollout.temperature", step)
