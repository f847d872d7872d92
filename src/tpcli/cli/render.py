"""What training shows: the display while it runs, the summary at its end, the plan of a dry run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tpcli.analysis.schedules import adaptive
from tpcli.cli import view as facts
from tpcli.cli.glyphs import duration, number, percent, signed
from tpcli.cli.live import live_panel
from tpcli.cli.plan import plan
from tpcli.cli.view import RunView

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Display", "RunView", "live_panel", "plain_line", "plan", "summary", "summary_json"]

LIVE_INTERVAL = 0.25
PLAIN_INTERVAL = 60.0
MARKS = {"finished": ("✓", "green"), "stopped": ("■", "yellow")}
FAILED = ("✗", "red")
CURVES = {"reward": "reward/mean", "entropy": "entropy/all", "kl": "kl/all"}


class Display:
    """Shows a run on ``console`` (stderr): a live panel on a terminal, else plain lines.

    Plain lines come when the phase changes before step 1, at every evaluation, at every new
    warning, once a minute, and at the end.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._view: RunView | None = None
        self._drawn = -LIVE_INTERVAL
        self._printed = ""
        self._seen: tuple[str, int] | None = None
        self._warned: set[str] = set()
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False)

    def start(self) -> None:
        """Take the terminal."""
        if self._live:
            self._live.start()

    def update(self, view: RunView) -> None:
        """Show ``view``; call it as often as you like."""
        self._view = view
        if not self._live:
            self._print_if_due(view)
        elif time.monotonic() - self._drawn >= LIVE_INTERVAL:
            self._draw(self._live, view)

    def stop(self) -> None:
        """Show the last view and give the terminal back."""
        if self._live:
            if self._view:
                self._draw(self._live, self._view)
            self._live.stop()
        elif self._view:
            self._print(self._view)

    def _draw(self, live: Live, view: RunView) -> None:
        live.update(live_panel(view, self._console.width), refresh=True)
        self._drawn = time.monotonic()

    def _print_if_due(self, view: RunView) -> None:
        for warning in view.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._write(f"warning: {warning}")
        evaluated = sum("eval/sampled" in line for line in view.metrics)
        event = (view.phase if view.preparing else "", evaluated)
        due = time.monotonic() - self._drawn >= PLAIN_INTERVAL
        if event != self._seen or due:
            self._seen = event
            self._print(view)

    def _print(self, view: RunView) -> None:
        line = plain_line(view)
        if line != self._printed:
            self._printed, self._drawn = line, time.monotonic()
            self._write(line)

    def _write(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)


def plain_line(view: RunView) -> str:
    """The state of a run in one line, for a log file."""
    name = str(view.run.get("id") or "")
    if view.preparing and not view.ended:
        share = view.phase_share
        done = percent(share) if share is not None else ""
        note = str(view.progress.get("note") or "")
        return _joined(name, f"{view.phase or 'starting'} {done}".strip(), _took(view), note)
    left = None if view.ended else facts.eta(view)
    ahead = f", eta {duration(left)}" if left is not None else ""
    parts = [
        f"{label} {number(value)}"
        for label, key in _curves(view).items()
        if (value := facts.latest(view, key)) is not None
    ]
    evals = [
        f"{key} {number(found[1])}"
        for key in ("sampled", "greedy")
        if (found := facts.held_out(view, f"eval/{key}")) is not None
    ]
    steps = f"step {view.step}/{view.steps} {percent(view.step / view.steps)}"
    status = view.status if view.ended else ""
    held_out = f"held-out {', '.join(evals)}" if evals else ""
    return _joined(name, status, steps, f"{_took(view)}{ahead}", *parts, held_out)


def _curves(view: RunView) -> dict[str, str]:
    """The figures worth a word; a magnitude that follows a measurement is one of them."""
    lead = facts.lead(view)
    if lead is None or not adaptive(view.recipe, lead[1]):
        return CURVES
    return CURVES | {"magnitude": f"schedule/{facts.logged_as(view, lead[0])}"}


def _joined(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _took(view: RunView) -> str:
    return duration(view.elapsed)


def summary(view: RunView) -> RenderableType:
    """The end of a run: what came of it, what it cost, and what to type next."""
    cost = Table.grid(padding=(0, 2))
    cost.add_column(style="dim", no_wrap=True)
    cost.add_column(overflow="fold")
    for label, text in _cost(view):
        cost.add_row(label, text)
    parts: list[RenderableType] = [_headline(view), *_failure(view), Text()]
    if view.metrics:
        parts += [_outcome(view), Text()]
    parts += [cost]
    parts += [Text(f"warning: {warning}", "yellow") for warning in view.warnings]
    return Group(*parts, Text(), *(Text(f"  {line}") for line in _next(view)))


def _headline(view: RunView) -> Text:
    mark, style = MARKS.get(view.status, FAILED)
    where = f"{view.steps} steps"
    if view.step < view.steps or view.status != "finished":
        where = f"after step {view.step} of {view.steps}"
    return Text.assemble(
        (f"{mark} {view.status}", f"bold {style}"),
        f"  {view.run.get('name', '')} · ",
        (str(view.run.get("id", "")), "bold"),
        f" · {where} · {_took(view)}",
    )


def _failure(view: RunView) -> list[Text]:
    styles = {"error": "red", "hint": "none"}
    return [Text(str(view.state[k]), style) for k, style in styles.items() if view.state.get(k)]


def _outcome(view: RunView) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", style="dim", no_wrap=True)
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", style="dim", overflow="fold")
    for name in ("sampled", "greedy"):
        found = facts.held_out(view, f"eval/{name}")
        if found is not None:
            first, last, step = found
            change = (
                (number(last), signed(last - first), f"at step {step}") if step else ("–", "–", "")
            )
            table.add_row(f"held-out {name}", number(first), *change)
    for label, key in _curves(view).items():
        ends = facts.ends(facts.series(view, key))
        if ends is not None:
            first, last, size = ends
            note = f"mean of {size} steps" if size > 1 else ""
            table.add_row(label, number(first), number(last), signed(last - first), note)
    return table


def _cost(view: RunView) -> list[tuple[str, str]]:
    pace, shares = facts.seconds_a_step(view, last=None), facts.phase_shares(view, last=None)
    rows = []
    if pace is not None:
        phases = ", ".join(f"{p} {percent(round(s, 2))}" for p, s in shares.items() if s >= 0.005)
        rows.append(("time", f"{number(pace)} s/step; {phases}"))
    memory = [
        f"{number(size)} GB{name}"
        for name, key in (("", "memory/peak_gb"), (" on the GPU", "memory/gpu_gb"))
        if (size := facts.peak(view, key))
    ]
    if memory:
        rows.append(("peak memory", ", ".join(memory)))
    speed = _mean(facts.series(view, "speed/tokens_per_s"))
    if speed is not None:
        rows.append(("speed", f"{number(speed)} tokens/s"))
    lost = ", ".join(f"{status} {percent(share)}" for status, share in facts.unjudged(view).items())
    if lost:
        rows.append(("verifier", f"{lost} of responses, counted as wrong"))
    return [*rows, ("run folder", view.folder)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _next(view: RunView) -> list[str]:
    name = view.run.get("id", "")
    lines = [f"tpcli runs show {name}"]
    if view.status != "finished":
        lines.append(f"tpcli resume {name}")
    if view.status not in MARKS:
        lines.append(f"tpcli logs {name}    ({view.folder}/log.txt)")
    return lines


def summary_json(view: RunView) -> dict[str, Any]:
    """``summary`` for programs; a figure that was not measured is None."""
    held_out = {}
    for name in ("sampled", "greedy"):
        found = facts.held_out(view, f"eval/{name}")
        held_out[name] = found and {"before": found[0], "after": found[1], "step": found[2]}
    curves = {}
    for name, key in _curves(view).items():
        ends = facts.ends(facts.series(view, key))
        curves[name] = ends and {"first": ends[0], "last": ends[1], "mean_of": ends[2]}
    return {
        "id": view.run.get("id"),
        "name": view.run.get("name"),
        "status": view.status,
        "step": view.step,
        "steps": view.steps,
        "held_out": held_out,
        **curves,
        "seconds": view.elapsed,
        "seconds_per_step": facts.seconds_a_step(view, last=None),
        "phase_shares": facts.phase_shares(view, last=None),
        "peak_memory_gb": facts.peak(view, "memory/peak_gb"),
        "peak_gpu_gb": facts.peak(view, "memory/gpu_gb"),
        "unjudged": facts.unjudged(view),
        "tokens_per_second": _mean(facts.series(view, "speed/tokens_per_s")),
        "checkpoint": view.checkpoint,
        "folder": view.folder,
        "warnings": list(view.warnings),
        "error": view.state.get("error"),
        "hint": view.state.get("hint"),
    }
