"""``tpcli replay``: which stored tokens another schedule would have credited."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from itertools import groupby
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tpcli.analysis.replay import Example, Step
    from tpcli.jobs.replay import Replay

ROWS = 20
"""Steps in the table; of more, as many evenly spaced ones."""
WIDEST = 100
LONGEST = 240
BEFORE = 20
"""Tokens of the example that are shown, and how many of them stand before the first change."""
GAP = 2
Mark = Literal["both", "then", "now", "neither"]
STYLES: dict[Mark, str] = {
    "both": "cyan",
    "then": "red strike",
    "now": "bold green",
    "neither": "dim",
}
BRACKETS: dict[Mark, tuple[str, str]] = {
    "both": ("[", "]"),
    "then": ("[-", "-]"),
    "now": ("{+", "+}"),
    "neither": ("", ""),
}
MEANINGS: dict[Mark, str] = {
    "both": "credited by both",
    "then": "only then",
    "now": "only now",
    "neither": "by neither",
}


def replay(
    run: Annotated[str, typer.Argument(help="Id, its beginning, or name.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="What to change; VALUE is TOML."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Show which stored tokens of RUN another schedule would have credited.

    Nothing is trained: responses, entropies and log-probs are those of the run, though another
    schedule would have changed them too. What can be changed: credit.*, loss.reduction,
    loss.denominator and loss.constant. An adaptive schedule follows what the run measured.
    """
    from tpcli.jobs import replay as job

    found = job.replay(run, overrides or ())
    if as_json:
        typer.echo(json.dumps(_facts(found), ensure_ascii=False, indent=2))
        return
    for warning in _warnings(found):
        typer.echo(f"warning: {warning}", err=True)
    from rich.console import Console

    console = Console(highlight=False)
    console.print(*_sheet(found, console), sep="\n", soft_wrap=True)


def _facts(found: Replay) -> dict[str, Any]:
    from tpcli.recipe.render import diff

    example = found.example
    return {
        "run": found.run.id,
        "changed": [
            {"key": key, "then": then, "now": now}
            for key, then, now in diff(found.own, found.other)
        ],
        "steps": [dataclasses.asdict(step) for step in found.steps],
        "example": {
            "step": example.sample.step,
            "question": example.sample.question,
            "tokens": list(example.sample.tokens),
            "then": list(example.sample.weight),
            "now": list(example.now),
        },
        "warnings": _warnings(found),
    }


def _warnings(found: Replay) -> list[str]:
    differ = sum(step.differ for step in found.steps)
    if not differ:
        return found.warnings
    tokens = sum(step.tokens for step in found.steps)
    return [
        *found.warnings,
        f"the run's own recipe gives other weights than it stored for {differ} of "
        f"{_counted(tokens, 'token')}; what was credited then is as stored",
    ]


def _sheet(found: Replay, console: Console) -> list[Text]:
    """What changed, step by step, and in one response."""
    from rich.text import Text

    shown = _spread(found.steps, ROWS)
    responses = sum(step.responses for step in found.steps)
    stored = _counted(responses, "response")
    title = Text.assemble((found.run.name, "bold"), f" · {found.run.id} · {stored}")
    note = "then → now; the scale is of the stored responses as if they were the whole step, not of"
    note += " all that were drawn: 1 is uniform credit"
    lines = [title, *_changes(found), Text(), *_table(found, shown)]
    lines += [Text(line, "dim") for line in wrap(note, min(console.width, WIDEST))]
    if len(shown) < len(found.steps):
        lines.append(Text(f"{len(shown)} of {len(found.steps)} steps; all of them: --json", "dim"))
    return [*lines, Text(), *_example(found.example, console)]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _spread(steps: Sequence[Step], count: int) -> list[Step]:
    """The first step, the last, and evenly spaced ones between."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)]


def _changes(found: Replay) -> list[Text]:
    """A line for every setting that differs; one for a table that gave way to a number."""
    from rich.text import Text

    from tpcli.analysis.schedules import curve
    from tpcli.recipe.render import diff
    from tpcli.recipe.scalar import Schedule

    lines: dict[str, str] = {}
    own, other = found.own.scalars(), found.other.scalars()
    for key, then, now in diff(found.own, found.other):
        # The number or table that a row is a part of.
        scalar = next((its for its in own | other if f"{key}.".startswith(f"{its}.")), key)
        ends = [(found.own, own.get(scalar)), (found.other, other.get(scalar))]
        if len({isinstance(end, Schedule) for _, end in ends}) == 1:
            lines[key] = f"{_value(then)} → {_value(now)}"
        else:
            lines[scalar] = " → ".join(
                curve(r, scalar) if isinstance(end, Schedule) else _value(end) for r, end in ends
            )
    if not lines:
        return [Text("nothing is changed: the run has these settings already", "dim")]
    width = max(map(len, lines))
    return [Text(f"{key:<{width}}  {text}") for key, text in lines.items()]


def _value(value: object) -> str:
    return "—" if value is None else json.dumps(value, ensure_ascii=False)


def _table(found: Replay, shown: Sequence[Step]) -> list[Text]:
    from rich.text import Text

    from tpcli.cli.glyphs import number, percent, whole

    columns = {
        "step": [str(step.step) for step in shown],
        "credited": [
            f"{percent(step.then.credited / step.tokens)} → "
            f"{percent(step.now.credited / step.tokens):>4}"
            for step in shown
        ],
        "gradient scale": [
            f"{number(step.then.gradient_scale)} → {number(step.now.gradient_scale):>4}"
            for step in shown
        ],
        "gained": [whole(step.gained) for step in shown],
        "lost": [whole(step.lost) for step in shown],
        "of tokens": [whole(step.tokens) for step in shown],
    }
    shapes = {*found.own.credit.allocations, *found.other.credit.allocations}
    if "entropy_advantage" in shapes:
        columns["mean |A|"] = [
            f"{number(step.then.push)} → {number(step.now.push):>4}" for step in shown
        ]
    sizes = [max(map(len, (title, *cells))) for title, cells in columns.items()]
    rows = [columns.keys(), *zip(*columns.values(), strict=True)]
    lines = [
        (" " * GAP).join(cell.rjust(size) for cell, size in zip(row, sizes, strict=True))
        for row in rows
    ]
    return [Text(lines[0], "dim"), *map(Text, lines[1:])]


# One response


def _example(example: Example, console: Console) -> list[Text]:
    """The response that changes most, its tokens coloured, or in brackets where colours are off."""
    from rich.text import Text

    sample, coloured = example.sample, console.color_system is not None and not console.no_color
    marks = [mark(then, now) for then, now in zip(sample.weight, example.now, strict=True)]
    first = next((i for i, m in enumerate(marks) if m in ("then", "now")), 0)
    begin = max(min(first - BEFORE, len(marks) - LONGEST), 0)
    end = min(begin + LONGEST, len(marks))
    body = Text()
    if begin:
        body.append(f"… {_counted(begin, 'token')} … ", "dim")
    for its, group in groupby(range(begin, end), key=lambda i: marks[i]):
        text = "".join(plain(sample.tokens[i]) for i in group)
        open_, close = ("", "") if coloured else BRACKETS[its]
        body.append(f"{open_}{text}{close}", STYLES[its])
    if end < len(marks):
        body.append(f" … {_counted(len(marks) - end, 'token')} …", "dim")
    legend = Text("  ").join(
        Text(MEANINGS[its] if coloured else "".join((a, MEANINGS[its], b)), STYLES[its])
        for its, (a, b) in BRACKETS.items()
    )
    what = f"the response that changes most, {example.changed} of {_counted(len(marks), 'token')}"
    if not example.changed:
        what = "no response has other tokens credited; the first one"
    return [
        Text.assemble((f"step {sample.step}, {what}: ", "bold"), plain(sample.question)),
        legend,
        body,
    ]


def mark(then: float, now: float) -> Mark:
    """Who credits a token, by its weights."""
    if then:
        return "both" if now else "then"
    return "now" if now else "neither"


def plain(text: str) -> str:
    """Text on one line, without what could steer a terminal."""
    return "".join(
        char if char.isprintable() else "↵" if char == "\n" else ascii(char)[1:-1] for char in text
    )
