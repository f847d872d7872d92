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
FEW = 10
"""Steps up to which the table has them all, and corners of one schedule that it still adds."""


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
                "warmup_steps": course.rise,
                "follows": course.follows or None,
                "low": course.low,
                "high": course.high,
            }
            for course in courses(recipe)
        ],
        "response_tokens": recipe.rollout.max_new_tokens,
        "credited_share": [list(pair) for pair in credited(recipe)],
        "warnings": list(loaded.warnings),
        "figure": str(figure) if figure else None,
    }


def _curve(recipe: Recipe, course: Course) -> str:
    from tpcli.analysis.course import LR
    from tpcli.analysis.schedules import curve

    own = curve(recipe, course.key)
    return recipe.optim.schedule if course.key == LR and own == "constant" else own


# The terminal


def _show(loaded: Loaded) -> None:
    from rich.console import Console
    from rich.text import Text

    from tpcli.analysis.course import courses

    console = Console(highlight=False)
    width = min(console.width, WIDEST)
    found = courses(loaded.recipe)
    lines = [Text(_title(loaded), "bold")]
    for course in found:
        lines += [Text(), *_chart(loaded.recipe, course, width)]
    lines += [Text(), *_share(loaded.recipe, width), Text()]
    lines += _values(loaded.recipe, found, console.width)
    console.print(*lines, sep="\n", soft_wrap=True)


def _plot_width(width: int) -> int:
    """What label and axis leave of a line."""
    return max(width - 8, 12)


def _fitted(facts: Sequence[str], width: int) -> list[Text]:
    """Facts side by side, on as many lines as they need: broken between two where it can be."""
    from textwrap import wrap

    from rich.text import Text

    lines: list[str] = []
    for fact in facts:
        joined = f"{lines[-1]} · {fact}" if lines else fact
        if lines and len(joined) <= width:
            lines[-1] = joined
        else:
            lines += wrap(fact, width)
    return [Text(line, "dim") for line in lines]


def _chart(recipe: Recipe, course: Course, width: int) -> list[Text]:
    """One schedule: what it is, its window, its curve."""
    from rich.text import Text

    from tpcli.cli.chart import curve

    curve_and_ends = f"  {_curve(recipe, course)} {_ends(recipe, course)}"
    head = Text.assemble((course.key, "bold"), curve_and_ends)
    lines = [head, *_fitted(_told(course, recipe), width)]
    if not course.moves:
        return lines  # a number that stands still needs no picture
    bottom, top = (0.0, 1.0) if course.allocations else (min(course.low), max(course.high))
    size = _plot_width(width)
    plot = curve(course.low, course.high, width=size, height=HEIGHT, bottom=bottom, top=top)
    return [*lines, *(Text(line, "cyan") for line in plot[:-2]), *map(Text, plot[-2:])]


def _told(course: Course, recipe: Recipe) -> list[str]:
    """What the head does not say: whose magnitude it is, what it follows, when it moves."""
    from tpcli.analysis.course import gives

    facts = [f"magnitude of {' + '.join(course.allocations)}"] if course.allocations else []
    if gives(recipe) and course.allocations:
        facts = ["magnitude of expert_prefix: share of the solution given"]
    facts += [f"follows {course.follows}"] if course.follows else []
    if course.rise:
        facts.append(f"times a rise over the first {_counted(course.rise, 'step')}")
    facts += [_window(course, recipe.train.steps)] if course.window else []
    return facts


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _ends(recipe: Recipe, course: Course) -> str:
    """From the value before training to that of the last step."""
    from tpcli.analysis.schedules import scalar_at
    from tpcli.cli.glyphs import number

    if course.follows:
        return f"between {number(min(course.low))} and {number(max(course.high))}"
    first, last = number(scalar_at(recipe, course.key, 0)), number(course.low[-1])
    return first if course.window is None else f"{first} → {last}"


def _window(course: Course, steps: int) -> str:
    """The steps at which the value is another one than before."""
    assert course.window
    # What a step measures moves the step after it.
    first, last = max(course.window[0], int(bool(course.follows))) + 1, course.window[1]
    moves = "may move" if course.follows else "moves"
    if first > steps:
        return f"would move from step {first} to step {last}, training ends with step {steps}"
    if last > steps:
        return f"{moves} from step {first} to step {last}, training ends with step {steps}"
    return f"{moves} from step {first} to step {last} of {steps}"


def _share(recipe: Recipe, width: int) -> list[Text]:
    """Which part of a response carries credit, or, where that is not known, how much of it."""
    from rich.text import Text

    from tpcli.analysis.course import SELECTS, gives, placed
    from tpcli.cli.chart import curve, heat

    shares, size = _shares(recipe), _plot_width(width)
    ends = " → ".join(dict.fromkeys(_percents(pair) for pair in (shares[0], shares[-1])))
    if gives(recipe):
        words = f"  {ends}, and every token of the response learns"
        return [Text.assemble(("solution given", "bold"), words)]
    if SELECTS.isdisjoint(recipe.credit.allocations):
        return [Text.assemble(("credited share", "bold"), "  100%, every token at every step")]
    grid, tokens = placed(recipe), _counted(recipe.rollout.max_new_tokens, "token")
    head = Text.assemble(("credited share", "bold"), f"  {ends} of a response of {tokens}")
    if grid is None:
        low, high = [a for a, _ in shares], [b for _, b in shares]
        plot = curve(low, high, width=size, height=HEIGHT, bottom=0.0, top=1.0)
        note = "share of a response's tokens that learn; which ones is known when it is sampled"
    else:
        plot = heat(grid, width=size, height=HEIGHT)
        note = "part of a response that learns, from its first token (0%) to its last (100%)"
    lines = [Text(line, "green") for line in plot[:-2]]
    return [head, *_fitted([note], width), *lines, *map(Text, plot[-2:])]


def _shares(recipe: Recipe) -> list[tuple[float, float]]:
    """Least and most of a response that learns, or of the solution where only that is given."""
    from tpcli.analysis.course import courses, credited, gives

    if not gives(recipe):
        return credited(recipe)
    course = courses(recipe)[0]
    return list(zip(course.low, course.high, strict=True))


def _percents(pair: tuple[float, float]) -> str:
    from tpcli.cli.glyphs import percent

    low, high = map(percent, pair)
    return low if low == high else f"{low}–{high}"


def _values(recipe: Recipe, found: Sequence[Course], width: int) -> list[Text]:
    """The numbers at a few steps; columns that do not fit are left out, step and share never."""
    from rich.text import Text

    from tpcli.analysis.course import gives
    from tpcli.cli.glyphs import number

    shares, steps = _shares(recipe), _shown(recipe.train.steps, found)
    columns = [["step", *(str(step) for step in steps)]]
    heading = "given" if gives(recipe) else "credited"
    columns.append([heading, *(_percents(shares[step - 1]) for step in steps)])
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


def _shown(total: int, found: Sequence[Course]) -> list[int]:
    """Every step of a few; of more the first and last, the quarters, and where a course turns.

    Of many stairs the ends only.
    """
    if total <= FEW:
        return list(range(1, total + 1))
    steps = {1, total, *(max(1, round(total * quarter / 4)) for quarter in (1, 2, 3))}
    for course in found:
        steps |= set(course.corners if len(course.corners) <= FEW else course.window or ())
    return sorted(step for step in steps if 1 <= step <= total)
