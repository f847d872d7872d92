"""``tpcli runs``: which runs there are, and one of them in full."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tpcli.cli.columns import GAP, Column, fitting, joined

if TYPE_CHECKING:
    from rich.text import Text

    from tpcli.registry.run import Evaluation, Run

app = typer.Typer(help="List runs, or show one.", invoke_without_command=True)

MARKS = {
    "created": ("◌", "dim"),
    "running": ("▶", "cyan"),
    "finished": ("✓", "green"),
    "stopped": ("■", "yellow"),
    "failed": ("✗", "red"),
    "dead": ("☠", "red"),
}
SPARKS = 8
LimitOption = Annotated[int, typer.Option("-n", min=1, help="How many, newest first.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


@app.callback()
def list_runs(context: typer.Context, limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List the newest runs, or show one."""
    if context.invoked_subcommand is None:
        _list(limit, as_json)


@app.command("ls")
def ls(limit: LimitOption = 20, as_json: JsonOption = False) -> None:
    """List the newest runs."""
    _list(limit, as_json)


@app.command("show")
def show(
    run: Annotated[str, typer.Argument(help="Id, its beginning, or name.")],
    as_json: JsonOption = False,
) -> None:
    """Show one run: what it is, how it stands, its numbers, its files."""
    from tpcli.jobs import runs as jobs

    found = jobs.find(run)
    if as_json:
        typer.echo(json.dumps(jobs.details(found), ensure_ascii=False, indent=2))
        return
    from rich.console import Console

    Console(highlight=False).print(*sheet(found), sep="\n", soft_wrap=True)


def _list(limit: int, as_json: bool) -> None:
    from tpcli.jobs import runs as jobs

    found = jobs.listing(limit)
    if as_json:
        records = [jobs.record(run) for run in found.runs]
        typer.echo(json.dumps(records, ensure_ascii=False, indent=2))
        return
    if not found.runs:
        typer.echo(f"no runs in {jobs.runs_dir()} yet: tpcli train recipes/math.toml", err=True)
        return
    from rich.console import Console

    console = Console(highlight=False)
    for line in table(found.runs, console.width, time.time()):
        console.print(line, soft_wrap=True)
    footer = _footer(found.runs, found.total, time.time())
    Console(stderr=True, highlight=False).print(footer, style="dim", soft_wrap=True)


def table(runs: Sequence[Run], width: int, now: float) -> list[Text]:
    """One line a run, under a head line. What does not fit is left out, the id never is."""
    from rich.text import Text

    marks = [MARKS[run.status] for run in runs]
    columns = fitting(_columns(runs, now), width - 1 - GAP)
    lines = [Text(" " * (1 + GAP) + joined(columns, None), "dim")]
    for row, (mark, style) in enumerate(marks):
        lines.append(Text.assemble((mark, style), " " * GAP, joined(columns, row)))
    return lines


def _columns(runs: Sequence[Run], now: float) -> list[Column]:
    from tpcli.cli.glyphs import sparkline

    sparks = [sparkline(run.reward_history, SPARKS) for run in runs]
    rewards = [f"{_plain(run.reward_last):>4} {s}" for run, s in zip(runs, sparks, strict=True)]
    held_out = [_change(run.sampled_first, run.sampled_last) for run in runs]
    return [
        Column("id", [run.id for run in runs], 0),
        Column("name", [run.name + "*" * run.dirty for run in runs], 1),
        Column("schedule", [schedule(run) for run in runs], 7),
        Column("step", [_progress(run) for run in runs], 2, right=True),
        Column("reward", rewards, 3),
        Column("entropy", [_plain(run.entropy_last) for run in runs], 6, right=True),
        Column("held-out", held_out, 4, right=True),
        Column("age", [_age(now - run.created) for run in runs], 5, right=True),
    ]


def _footer(runs: Sequence[Run], total: int, now: float) -> str:
    parts = [f"{len(runs)} of {total}"]
    if any(run.dirty for run in runs):
        parts.append("* dirty tree")
    for run in runs:
        if run.status == "dead":
            silence = _age(now - (run.heartbeat or run.created))
            parts.append(f"☠ no heartbeat {silence}: tpcli resume {run.id}")
            break
    for run in runs:
        if run.status == "failed":
            parts.append(f"✗ {run.error or 'failed'}: tpcli runs show {run.id}")
            break
    return " · ".join(parts)


def schedule(run: Run) -> str:
    """Curve and window, "linear .1–.8"; the allocations too where they are not the usual one."""
    from tpcli.cli.glyphs import allocation_name

    if run.allocation == "uniform":
        return "uniform"
    if run.allocation == "trajectory_percentile":
        return _curve(run)
    return f"{allocation_name(run.allocation)}·{_curve(run)}"


def _curve(run: Run) -> str:
    if run.curve == "constant" or run.window_start is None or run.window_end is None:
        return run.curve
    ends = (f"{end:g}".replace("0.", ".") for end in (run.window_start, run.window_end))
    return f"{run.curve} {'–'.join(ends)}"


def _progress(run: Run) -> str:
    return str(run.step) if run.step >= run.steps else f"{run.step}/{run.steps}"


def _plain(value: float | None) -> str:
    from tpcli.cli.glyphs import number

    return number(value)


def _change(first: float | None, last: float | None) -> str:
    return _plain(last) if first is None or first == last else f"{_plain(first)}→{_plain(last)}"


def _age(seconds: float) -> str:
    """The largest unit alone: 5s, 12m, 2h, 3d."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


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
        ended = f"{_moment(run.finished)}, after {duration(run.finished - run.created)}"
    elif run.status == "dead" and run.heartbeat:
        seen = f"{_moment(run.heartbeat)} ({_age(time.time() - run.heartbeat)} ago)"
    horizon = "" if run.horizon == run.steps else f" (horizon {run.horizon})"
    here = f"{run.host}, pid {run.pid}" if run.status == "running" else ""
    return [
        ("recipe", f"{run.recipe}, seed {run.seed}, fingerprint {run.fingerprint[:12]}"),
        ("model", run.model),
        ("credit", run.allocation if run.allocation == "uniform" else credit),
        ("steps", f"{run.step} of {run.steps}{horizon}"),
        ("code", " · ".join(text for text in (run.code, run.git and f"git {run.git}") if text)),
        ("created", f"{_moment(run.created)} ({_age(time.time() - run.created)} ago)"),
        ("ended", ended),
        ("running on", here),
        ("last seen", seen),
        ("tags", ", ".join(run.tags)),
        ("note", run.note),
    ]


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


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
            figures = f"{_plain(first):>7}{_plain(last):>8}{signed(last - first):>9}"
            lines.append(Text.assemble((f"{label:<18}", "dim"), figures))
    return lines


def _evaluations(found: Sequence[Evaluation]) -> list[Text]:
    """One line a result, newest first."""
    from rich.text import Text

    from tpcli.cli.columns import Column

    if not found:
        return []
    columns = [
        Column("bench", [one.bench for one in found], 0),
        Column("step", [str(one.step) for one in found], 0, right=True),
        Column("accuracy", [f"avg@{one.n} {_plain(one.value)}" for one in found], 0),
        Column("95% CI", [f"[{_plain(one.low)}, {_plain(one.high)}]" for one in found], 0),
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
