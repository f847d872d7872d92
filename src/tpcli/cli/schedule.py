"""``tpcli schedule plot``: what a recipe's schedules will do, before any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from tpcli.analysis.course import Course
    from tpcli.recipe.load import Loaded
    from tpcli.recipe.schema import Recipe

app = typer.Typer(help="Look at schedules before training.", no_args_is_help=True)

WIDEST = 100
HEIGHT = 6
GAP = 2


@app.command("plot")
def plot(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")] = Path(
        "recipes/math.toml"
    ),
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; VALUE is TOML."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Override train.steps.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw a figure, .png or .svg; or just png or svg."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Show what RECIPE's schedules will do, and how much of a response learns at each step."""
    from tpcli.recipe.load import load_recipe

    target = _figure_path(out, recipe) if out else None
    typed = [*(overrides or ()), *([f"train.steps={steps}"] if steps else [])]
    loaded = load_recipe(recipe, overrides=typed)
    if target:
        from tpcli.analysis.course import draw

        draw(loaded.recipe, target, title=_title(loaded))
    if as_json:
        typer.echo(json.dumps(_facts(loaded, target), ensure_ascii=False, indent=2))
        return
    for warning in loaded.warnings:
        typer.echo(f"warning: {warning}", err=True)
    _show(loaded)
    if target:
        typer.echo(f"figure: {target}", err=True)


def _figure_path(out: Path, recipe: Path) -> Path:
    """Where the figure goes; a format alone is a file here, named after the recipe."""
    from tpcli.analysis.course import FORMATS
    from tpcli.errors import UsageError

    if f".{out}" in FORMATS:
        return Path(f"{recipe.stem}-schedule.{out}")
    if out.suffix.lower() not in FORMATS:
        allowed = " or ".join(FORMATS)
        raise UsageError(
            f"--out {out}: a figure is {allowed}",
            hint=f"write --out {out.with_suffix('.png') if out.name else 'png'}",
        )
    return out


def _title(loaded: Loaded) -> str:
    recipe, steps = loaded.recipe, loaded.recipe.train.steps
    length = f"{steps} step{'s' if steps > 1 else ''}"
    if recipe.horizon != steps:
        length += f" (horizon {recipe.horizon})"
    return f"{loaded.path.name} · {length} · {recipe.credit.label}{_focus(recipe)}"


def _focus(recipe: Recipe) -> str:
    """The focus where the allocation has one: ", late first"."""
    if "trajectory_percentile" not in recipe.credit.allocations:
        return ""
    written = recipe.credit.trajectory_percentile.focus
    return f", {written}" if isinstance(written, str) else f", focus {written[0]:g}–{written[1]:g}"


def _facts(loaded: Loaded, figure: Path | None) -> dict[str, Any]:
    from tpcli.analysis.course import courses, credited

    recipe = loaded.recipe
    return {
        "recipe": str(loaded.path),
        "steps": recipe.train.steps,
        "horizon": recipe.horizon,
        "allocation": list(recipe.credit.allocations),
        "schedules": [
            {
                "key": course.key,
                "allocations": list(course.allocations),
                "curve": _curve(recipe, course),
                "window": course.window,
                "follows": course.follows or None,
                "low": course.low,
                "high": course.high,
            }
            for course in courses(recipe)
        ],
        "credited_share": [list(pair) for pair in credited(recipe)],
        "warnings": list(loaded.warnings),
        "figure": str(figure) if figure else None,
    }


def _curve(recipe: Recipe, course: Course) -> str:
    return getattr(recipe.scalars()[course.key], "curve", "constant")


# The terminal


def _show(loaded: Loaded) -> None:
    from rich.console import Console
    from rich.text import Text

    from tpcli.analysis.course import courses

    console = Console(highlight=False)
    width = max(min(console.width, WIDEST) - 8, 12)  # without label and axis
    found = courses(loaded.recipe)
    lines = [Text(_title(loaded), "bold")]
    for course in found:
        lines += [Text(), *_chart(loaded.recipe, course, width)]
    lines += [Text(), *_share(loaded.recipe, width), Text()]
    lines += _values(loaded.recipe, found, console.width)
    console.print(*lines, sep="\n", soft_wrap=True)


def _chart(recipe: Recipe, course: Course, width: int) -> list[Text]:
    """One schedule: what it is, its window, its curve."""
    from rich.text import Text

    from tpcli.cli.chart import curve

    names = " + ".join(course.allocations)
    curve_and_ends = f"  {_curve(recipe, course)} {_ends(recipe, course)}"
    head = Text.assemble((course.key, "bold"), curve_and_ends)
    facts = [f"magnitude of {names}"] if names else []
    facts += [f"follows {course.follows}"] if course.follows else []
    facts += [_window(course.window, recipe.train.steps)] if course.window else []
    lines = [head, Text(f"{' · '.join(facts)}", "dim")] if facts else [head]
    if course.window is None:
        return lines  # a number that stands still needs no picture
    bottom, top = (0.0, 1.0) if names else (min(course.low), max(course.high))
    plot = curve(course.low, course.high, width=width, height=HEIGHT, bottom=bottom, top=top)
    return [*lines, *(Text(line, "cyan") for line in plot[:-2]), *map(Text, plot[-2:])]


def _ends(recipe: Recipe, course: Course) -> str:
    """From the value before training to that of the last step."""
    from tpcli.analysis.schedules import scalar_at
    from tpcli.cli.glyphs import number

    if course.follows:
        return f"between {number(min(course.low))} and {number(max(course.high))}"
    first, last = number(scalar_at(recipe, course.key, 0)), number(course.low[-1])
    return first if course.window is None else f"{first} → {last}"


def _window(window: tuple[int, int], steps: int) -> str:
    first, last = window
    if first >= steps:
        return f"would open after step {first}, training ends with step {steps}"
    if last > steps:
        return f"opens after step {first}, would close at step {last}, training ends with {steps}"
    return f"opens after step {first}, closed at step {last} of {steps}"


def _share(recipe: Recipe, width: int) -> list[Text]:
    """Which part of a response carries credit, or, where that is not known, how much of it."""
    from rich.text import Text

    from tpcli.analysis.course import SELECTS, credited, placed
    from tpcli.cli.chart import curve, heat

    if SELECTS.isdisjoint(recipe.credit.allocations):
        return [Text.assemble(("credited share", "bold"), "  100%, every token at every step")]
    grid, shares = placed(recipe), credited(recipe)
    ends = " → ".join(dict.fromkeys(_percents(pair) for pair in (shares[0], shares[-1])))
    head = Text.assemble(("credited share", "bold"), f"  {ends}")
    if grid is None:
        low, high = [a for a, _ in shares], [b for _, b in shares]
        plot = curve(low, high, width=width, height=HEIGHT, bottom=0.0, top=1.0)
        note = "share of a response's tokens that learn; which ones is known when it is sampled"
    else:
        plot = heat(grid, width=width, height=HEIGHT)
        note = "part of a response that learns, from its first token (0%) to its last (100%)"
    lines = [Text(line, "green") for line in plot[:-2]]
    return [head, Text(note, "dim"), *lines, *map(Text, plot[-2:])]


def _percents(pair: tuple[float, float]) -> str:
    from tpcli.cli.glyphs import percent

    low, high = map(percent, pair)
    return low if low == high else f"{low}–{high}"


def _values(recipe: Recipe, found: Sequence[Course], width: int) -> list[Text]:
    """The numbers at a few steps; columns that do not fit are left out, step and share never."""
    from rich.text import Text

    from tpcli.analysis.course import credited
    from tpcli.cli.glyphs import number

    shares, steps = credited(recipe), _shown(recipe, found)
    columns = [["step", *(str(step) for step in steps)]]
    columns.append(["credited", *(_percents(shares[step - 1]) for step in steps)])
    for course in found:
        pairs = [(course.low[step - 1], course.high[step - 1]) for step in steps]
        cells = ["–".join(dict.fromkeys(map(number, pair))) for pair in pairs]
        columns.append([course.name, *cells])
    widths = [max(map(len, column)) for column in columns]
    while len(columns) > 2 and sum(widths) + GAP * len(widths) > width:
        columns.pop(), widths.pop()
    rows = [
        (" " * GAP).join(cell.rjust(size) for cell, size in zip(row, widths, strict=True))
        for row in zip(*columns, strict=True)
    ]
    return [Text(rows[0], "dim"), *map(Text, rows[1:])]


def _shown(recipe: Recipe, found: Sequence[Course]) -> list[int]:
    """The first and last step, the quarters between, and the ends of each window."""
    total = recipe.train.steps
    steps = {1, total, *(max(1, round(total * quarter / 4)) for quarter in (1, 2, 3))}
    steps |= {step for course in found for step in course.window or ()}
    return sorted(step for step in steps if 1 <= step <= total)
