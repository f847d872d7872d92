"""What a recipe would do, worked out before anything heavy is loaded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcli.cli.glyphs import number, percent
from tpcli.cli.view import moving, scalar_at, window

if TYPE_CHECKING:
    from tpcli.recipe.schema import Recipe


def plan(recipe: Recipe, *, name: str = "") -> RenderableType:
    """What ``train`` would do with ``recipe``, as a table of facts."""
    rows = Table.grid(padding=(0, 2))
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    for label, text in (
        ("model", _model(recipe)),
        ("data", _data(recipe)),
        *([("warm-up", _warmup(recipe))] if recipe.warmup else []),
        ("each step", _each_step(recipe)),
        ("loss", _loss(recipe)),
        ("credit", _credit(recipe)),
        *([("moving", _moving(recipe))] if moving(recipe) else []),
        ("evaluations", _evaluations(recipe)),
        (
            "checkpoints",
            f"every {recipe.train.save_every} steps and at the end, {recipe.train.keep} kept",
        ),
        ("launch", _launch(recipe)),
        ("track", f"MLflow: {recipe.track.mlflow or 'off'}"),
    ):
        rows.add_row(label, text)
    title = Text.assemble(
        "would train ", (name or recipe.model.source, "bold"), f", {recipe.train.steps} steps"
    )
    warnings = [Text(f"warning: {warning}", "yellow") for warning in recipe.warnings()]
    return Group(title, rows, Text(), _credited(recipe), *warnings)


def tokens_credited(recipe: Recipe, step: int, length: int) -> int:
    """Tokens that learn of a response of ``length`` tokens at ``step``."""
    magnitude = scalar_at(recipe, "credit.schedule", step)
    if recipe.credit.allocation == "trajectory_percentile":
        return length - min(int(length * magnitude), length - 1)
    if recipe.credit.allocation == "forking_tokens":
        return max(1, math.ceil(length * (1.0 - magnitude)))
    return length


def _model(recipe: Recipe) -> str:
    model = recipe.model
    pin = model.revision or (f"sha256 {model.sha256[:12]}…" if model.sha256 else "")
    if model.scratch:
        shape = model.scratch
        pin = f"{shape.architecture}, {shape.layers} layers of {shape.hidden_size}"
    kept = "gradient checkpointing" if model.gradient_checkpointing else ""
    return ", ".join(filter(None, (model.source, pin, model.dtype, kept)))


def _data(recipe: Recipe) -> str:
    data = recipe.data
    local = data.source.startswith("hf:") or data.source.endswith((".jsonl", ".parquet"))
    size = "" if local else f"{data.size} questions generated, "
    shots = f", {len(data.examples)} worked examples in the prompt" if data.examples else ""
    return f"{data.source}, {size}{percent(data.held_out)} held out{shots}"


def _warmup(recipe: Recipe) -> str:
    assert recipe.warmup is not None
    return f"{recipe.warmup.steps} supervised steps of {recipe.warmup.batch_size} solutions, cached"


def _each_step(recipe: Recipe) -> str:
    rollout, updates = recipe.rollout, recipe.train.updates
    responses = rollout.prompts * rollout.group_size
    return (
        f"{rollout.prompts} prompts × {rollout.group_size} = {responses} responses of at most "
        f"{rollout.max_new_tokens} tokens, {updates} optimiser step{'s' if updates > 1 else ''}"
    )


def _loss(recipe: Recipe) -> str:
    loss = recipe.loss
    low, high = (number(scalar_at(recipe, f"loss.clip_{side}", 1)) for side in ("low", "high"))
    over = f" over {loss.denominator} tokens" if loss.reduction.endswith("mean") else ""
    return f"{loss.objective}, clip {low}/{high}, {loss.reduction}{over}, lr {recipe.optim.lr:g}"


def _credit(recipe: Recipe) -> str:
    allocation, moves = recipe.credit.allocation, window(recipe)
    if allocation == "uniform":
        return "uniform: every token learns at every step"
    first = number(scalar_at(recipe, "credit.schedule", 0))
    if moves is None:
        return f"{allocation}, magnitude {first} throughout"
    last = number(scalar_at(recipe, "credit.schedule", recipe.horizon))
    curve = getattr(recipe.credit.schedule, "curve", "")
    return f"{allocation}, {curve}, magnitude {first} → {last} over steps {moves[0]} to {moves[1]}"


def _moving(recipe: Recipe) -> str:
    ends = {k: [scalar_at(recipe, k, t) for t in (0, recipe.horizon)] for k in moving(recipe)}
    return ", ".join(f"{k} {number(first)} → {number(last)}" for k, (first, last) in ends.items())


def evaluation_steps(recipe: Recipe) -> list[int]:
    """Steps after which held-out accuracy is measured; 0 stands for before training."""
    if not recipe.eval.questions:
        return []
    total = recipe.train.steps
    return sorted({*range(0, total, recipe.eval.every), total})


def _evaluations(recipe: Recipe) -> str:
    steps = evaluation_steps(recipe)
    if not steps:
        return "none"
    shown = [str(s) for s in steps]
    if len(shown) > 6:
        shown = [*shown[:3], "…", shown[-1]]
    each = f"{recipe.eval.questions} questions, {recipe.eval.samples} samples and 1 greedy each"
    return f"{len(steps)}, at steps {', '.join(shown)}: {each}"


def _launch(recipe: Recipe) -> str:
    launch = recipe.launch
    count = f"{launch.processes} process{'es' if launch.processes > 1 else ''}"
    machines = f" on {launch.machines} machines" if launch.machines > 1 else ""
    precision = (
        "" if launch.mixed_precision == "no" else f", mixed precision {launch.mixed_precision}"
    )
    return f"{count}{machines}{precision}{', CPU only' if launch.cpu else ''}"


def _credited(recipe: Recipe) -> Table:
    """Tokens credited at the first, the middle and the last step."""
    length, total = recipe.rollout.max_new_tokens, recipe.train.steps
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("step", "magnitude", f"tokens that learn, of {length}", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in sorted({1, (total + 1) // 2, total}):
        credited = tokens_credited(recipe, step, length)
        magnitude = "–"
        if recipe.credit.allocation != "uniform":
            magnitude = number(scalar_at(recipe, "credit.schedule", step))
        table.add_row(str(step), magnitude, str(credited), percent(credited / length))
    return table
