"""What a recipe would do, worked out before anything heavy is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcli.analysis.schedules import (
    adaptive,
    magnitudes_at,
    moving,
    scalar_at,
    tokens_credited,
    window,
)
from tpcli.cli.glyphs import allocation_name, number, percent
from tpcli.recipe.credit import CLIPPED
from tpcli.recipe.scalar import Schedule

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
        *([("overlong", _overlong(recipe))] if _overlong(recipe) else []),
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
    refills = rollout.dynamic_sampling
    again = f", groups without signal asked again up to {refills.rounds} times" if refills else ""
    return (
        f"{rollout.prompts} prompts × {rollout.group_size} = {responses} responses of at most "
        f"{rollout.max_new_tokens} tokens{again}, "
        f"{updates} optimiser step{'s' if updates > 1 else ''}"
    )


def _overlong(recipe: Recipe) -> str:
    overlong = recipe.reward.overlong
    mask = "unfinished responses are left out of the loss" if overlong.mask else ""
    most = number(scalar_at(recipe, "reward.overlong.penalty", 1))
    cost = f"up to {most} less reward over the last {overlong.buffer} tokens"
    return ", ".join(filter(None, (mask, cost if overlong.buffer else "")))


def _loss(recipe: Recipe) -> str:
    loss = recipe.loss
    over = f" over {loss.denominator} tokens" if loss.reduction.endswith("mean") else ""
    fix = loss.correction
    parts = (
        f"{loss.objective} on {recipe.credit.advantage} advantages",
        _trust(recipe),
        f"{loss.reduction}{over}",
        "" if fix.kind == "none" else f"sampler correction: {fix.kind} a {fix.level}",
        f"lr {scalar_at(recipe, 'optim.lr', 1):g}",
    )
    return ", ".join(filter(None, parts))


def _trust(recipe: Recipe) -> str:
    """What holds the ratio, if the objective has one."""
    loss = recipe.loss
    names = (
        ("tau_positive", "tau_negative") if loss.objective == "sapo" else ("clip_low", "clip_high")
    )
    low, high = (number(scalar_at(recipe, f"loss.{name}", 1)) for name in names)
    if loss.objective == "sapo":
        return f"tau {low}/{high}"
    if loss.objective == "cispo_upper":
        return f"clip –/{high}"
    return f"clip {low}/{high}" if loss.objective in CLIPPED else ""


def _credit(recipe: Recipe) -> str:
    """A line for each allocation, in the order in which they work."""
    followed = recipe.credit.magnitudes()
    lines: list[str] = []
    for name in recipe.credit.allocations:
        if name == "uniform":
            return "uniform: every token learns at every step"
        where = f", {_focus(recipe)}" if name == "trajectory_percentile" else ""
        when = _course(recipe, followed[name]) if name in followed else "dealt to other tokens"
        lines.append(f"{'then ' if lines else ''}{name}{where}, {when}")
    return "\n".join(lines)


def _focus(recipe: Recipe) -> str:
    written = recipe.credit.trajectory_percentile.focus
    if isinstance(written, str):
        return f"{written} first"
    return f"{percent(written[0])} to {percent(written[1])} first"


def _course(recipe: Recipe, key: str) -> str:
    """When a magnitude moves, and from where to where."""
    scalar, moves = recipe.scalars()[key], window(recipe, key)
    first, last = (number(scalar_at(recipe, key, step)) for step in (0, recipe.horizon))
    if moves is None or not isinstance(scalar, Schedule):
        return f"magnitude {first} throughout"
    over = f"over steps {moves[0]} to {moves[1]}"
    if adaptive(recipe, key):
        return f"adaptive, magnitude {_span(scalar)} {over}, {_hold(scalar)}"
    backwards = " reversed" if scalar.reverse else ""
    return f"{scalar.curve}{backwards}, magnitude {first} → {last} {over}"


def _span(rule: Schedule) -> str:
    return f"{number(rule.initial)} ⇄ {number(rule.final)}"


def _hold(rule: Schedule) -> str:
    unit = " nats" if rule.signal == "entropy" else ""
    return f"to hold {rule.signal} at {number(rule.target)}{unit}"


def _moving(recipe: Recipe) -> str:
    found = []
    for key in moving(recipe):
        rule = adaptive(recipe, key)
        first, last = (number(scalar_at(recipe, key, step)) for step in (0, recipe.horizon))
        course = f"{_span(rule)} {_hold(rule)}" if rule else f"{first} → {last}"
        found.append(f"{key} {course}")
    return ", ".join(found)


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
    """Tokens credited at the first, the middle and the last step.

    Where a schedule follows a measurement they lie between those of its two ends.
    """
    length, total = recipe.rollout.max_new_tokens, recipe.train.steps
    keys = list(dict.fromkeys(recipe.credit.magnitudes().values()))
    headings = (
        [allocation_name(key.split(".")[1]) for key in keys] if len(keys) > 1 else ["magnitude"]
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("step", *headings, f"tokens that learn, of {length}", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in sorted({1, (total + 1) // 2, total}):
        ends = (1.0, 1.0 if step == 1 else 0.0)
        tokens = [tokens_credited(recipe, magnitudes_at(recipe, step, end), length) for end in ends]
        table.add_row(
            str(step),
            *(
                _between([number(scalar_at(recipe, key, step, end)) for end in ends])
                for key in keys
            ),
            *(["–"] if not keys else []),
            _between([str(count) for count in tokens]),
            _between([percent(count / length) for count in tokens]),
        )
    return table


def _between(ends: list[str]) -> str:
    return ends[0] if ends[0] == ends[1] else " … ".join(ends)
