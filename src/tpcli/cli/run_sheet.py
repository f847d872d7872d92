"""One run in full, as ``tpcli runs show`` prints it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpcli.cli.columns import Column, joined
from tpcli.cli.runs_list import MARKS, age, moment, plain

if TYPE_CHECKING:
    from rich.text import Text

    from tpcli.registry.run import Evaluation, Run


def sheet(run: Run) -> list[Text]:
    """One run in full, as lines."""
    from rich.text import Text

    from tpcli.jobs import runs as jobs

    mark, style = MARKS[run.status]
    lines = [
        Text.assemble((f"{mark} {run.status}", f"bold {style}"), f"  {run.name} · {run.id}"),
        *(Text(f"  {text}", "red") for text in [run.error] if text),
        *(Text(f"  {text}") for text in [run.hint] if text),
        Text(),
        *_facts(_identity(run)),
        Text(),
    ]
    numbers = _numbers(run)
    if numbers:
        lines += [Text(f"{'':18}{'first':>7}{'last':>8}{'change':>9}", "dim"), *numbers, Text()]
    lines += _evaluations(jobs.evaluations(run))
    lines += _facts(_places(run))
    commands = jobs.next_commands(run)
    return lines + ([Text(), *(Text(f"  {command}") for command in commands)] if commands else [])


def _facts(facts: Sequence[tuple[str, str]]) -> list[Text]:
    from rich.text import Text

    return [Text.assemble((f"{label:<12}", "dim"), text) for label, text in facts if text]


def _identity(run: Run) -> list[tuple[str, str]]:
    from tpcli.cli.glyphs import duration

    moves = run.curve
    if run.window_start is not None and run.window_end is not None and run.curve != "constant":
        moves += f", window {run.window_start:g} to {run.window_end:g} of training"
    credit = f"{run.allocation}, {moves}"
    ended, seen = "", ""
    if run.finished:
        ended = f"{moment(run.finished)}, after {duration(run.finished - run.created)}"
    elif run.status == "dead" and run.heartbeat:
        seen = f"{moment(run.heartbeat)} ({age(time.time() - run.heartbeat)} ago)"
    horizon = "" if run.horizon == run.steps else f" (horizon {run.horizon})"
    here = f"{run.host}, pid {run.pid}" if run.status == "running" else ""
    removed = f"{moment(run.removed)} ({age(time.time() - run.removed)} ago)" if run.removed else ""
    return [
        ("removed", removed),
        ("recipe", f"{run.recipe}, seed {run.seed}, fingerprint {run.fingerprint[:12]}"),
        ("model", run.model),
        ("credit", run.allocation if run.allocation == "uniform" else credit),
        ("steps", f"{run.step} of {run.steps}{horizon}"),
        ("parent", _origin(run)),
        ("forks", _forks(run)),
        ("code", " · ".join(text for text in (run.code, run.git and f"git {run.git}") if text)),
        ("created", f"{moment(run.created)} ({age(time.time() - run.created)} ago)"),
        ("ended", ended),
        ("running on", here),
        ("last seen", seen),
        ("tags", ", ".join(run.tags)),
        ("note", run.note),
    ]


def _origin(run: Run) -> str:
    if run.parent is None:
        return ""
    return f"forked from {run.parent}" + (
        "" if run.parent_step is None else f" at step {run.parent_step}"
    )


def _forks(run: Run) -> str:
    from tpcli.jobs import runs as jobs

    found = jobs.forks(run)
    return ", ".join(f"{fork.id} at step {fork.parent_step} ({fork.name})" for fork in found)


def _numbers(run: Run) -> list[Text]:
    from rich.text import Text

    from tpcli.cli.glyphs import signed

    lines = []
    for label, first, last in (
        ("held-out, sampled", run.sampled_first, run.sampled_last),
        ("held-out, greedy", run.greedy_first, run.greedy_last),
        ("reward", run.reward_first, run.reward_last),
        ("entropy", run.entropy_first, run.entropy_last),
    ):
        if first is not None and last is not None:
            figures = f"{plain(first):>7}{plain(last):>8}{signed(last - first):>9}"
            lines.append(Text.assemble((f"{label:<18}", "dim"), figures))
    return lines


def _evaluations(found: Sequence[Evaluation]) -> list[Text]:
    """One line a result, newest first."""
    from rich.text import Text

    if not found:
        return []
    columns = [
        Column("bench", [one.bench for one in found], 0),
        Column("step", [str(one.step) for one in found], 0, right=True),
        Column("accuracy", [f"avg@{one.n} {plain(one.value)}" for one in found], 0),
        Column("95% CI", [f"[{plain(one.low)}, {plain(one.high)}]" for one in found], 0),
        Column("questions", [f"{one.questions:,}" for one in found], 0, right=True),
        Column("verifier", [one.verifier for one in found], 0),
    ]
    rows = [Text(joined(columns, row)) for row in range(len(found))]
    return [Text(joined(columns, None), "dim"), *rows, Text()]


def _places(run: Run) -> list[tuple[str, str]]:
    from tpcli.jobs import runs as jobs

    mirrored = jobs.mlflow(run)
    mlflow = f"run {mirrored['run_id']}, up to step {mirrored['logged_step']}" if mirrored else ""
    return [
        ("folder", str(run.folder)),
        ("files", ", ".join(jobs.files(run))),
        ("checkpoints", ", ".join(jobs.checkpoints(run))),
        ("mlflow", mlflow),
    ]
