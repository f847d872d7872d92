"""``tpcli recipe``: check recipes, show what they resolve to, and compare them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tpcli.recipe.load import Loaded
    from tpcli.recipe.schema import Recipe

app = typer.Typer(help="Check, show and compare recipes.", no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(help="A TOML file.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
ABSENT = "—"
WIDEST = 48


@app.command("validate")
def validate(
    files: Annotated[list[Path], typer.Argument(help="TOML files.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Check FILES, and name every fault of every one."""
    from tpcli.errors import Fault, RecipeError
    from tpcli.recipe.load import load_recipe
    from tpcli.recipe.render import fingerprint

    good: list[Loaded] = []
    faults: list[Fault] = []
    for file in files:
        try:
            good.append(load_recipe(file))
        except RecipeError as error:
            faults += error.faults
    if as_json and not faults:
        typer.echo(json.dumps([_facts(loaded) for loaded in good], ensure_ascii=False, indent=2))
    elif not as_json:
        width = max((len(str(loaded.path)) for loaded in good), default=0)
        for loaded in good:
            typer.echo(
                f"{loaded.path!s:<{width}}  {fingerprint(loaded.recipe)[:12]}  "
                f"{loaded.recipe.train.steps:>5} steps  {_credit(loaded.recipe)}"
            )
        _warn(good)
    if faults:
        raise RecipeError(list(dict.fromkeys(faults)))  # files may share a faulty parent


@app.command("show")
def show(
    file: FileArgument,
    origin: Annotated[
        bool, typer.Option("--origin", help="A key a line, with where it came from.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; VALUE is TOML."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Override train.seed.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a recipe with parents and defaults filled in."""
    from tpcli.recipe.load import load_recipe
    from tpcli.recipe.render import flat, plain, to_toml

    loaded = load_recipe(file, overrides=overrides or (), seed=seed)
    if as_json:
        facts = {**_facts(loaded), "recipe": plain(loaded.recipe)}
        if origin:
            facts["origin"] = loaded.origin
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2, default=str))
        return
    _warn([loaded])
    if origin:
        settings = {key: _value(value) for key, value in flat(loaded.recipe).items()}
        for line in _aligned([(k, "=", text, loaded.origin[k]) for k, text in settings.items()]):
            typer.echo(line)
    else:
        typer.echo(to_toml(loaded.recipe), nl=False)


@app.command("schema")
def schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    from tpcli.recipe.spec import json_schema

    typer.echo(json.dumps(json_schema(), ensure_ascii=False, indent=2))


@app.command("diff")
def diff(left: FileArgument, right: FileArgument, as_json: JsonOption = False) -> None:
    """Show the settings in which two recipes differ."""
    from tpcli.recipe import render
    from tpcli.recipe.load import load_recipe

    a, b = load_recipe(left).recipe, load_recipe(right).recipe
    differ = render.diff(a, b)
    equal = len(render.flat(a).keys() | render.flat(b).keys()) - len(differ)
    if as_json:
        rows = [{"key": key, "left": x, "right": y} for key, x, y in differ]
        found = {"differ": rows, "equal": equal}
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2, default=str))
        return
    if differ:
        head = ("", str(left), str(right))
        for line in _aligned([head, *((key, _value(x), _value(y)) for key, x, y in differ)]):
            typer.echo(line)
    typer.echo(f"{len(differ)} keys differ, {equal} are equal")


def _facts(loaded: Loaded) -> dict[str, Any]:
    from tpcli.recipe.render import fingerprint

    return {
        "file": str(loaded.path),
        "fingerprint": fingerprint(loaded.recipe),
        "steps": loaded.recipe.train.steps,
        "credit": _credit(loaded.recipe),
        "warnings": list(loaded.warnings),
    }


def _credit(recipe: Recipe) -> str:
    """Allocations, each with its curve or the number that stands in for a curve."""
    scalars, followed = recipe.scalars(), recipe.credit.magnitudes()
    parts = []
    for name in recipe.credit.allocations:
        scalar = scalars[followed[name]] if name in followed else None
        curve = f"{scalar:g}" if isinstance(scalar, float) else getattr(scalar, "curve", "")
        parts.append(f"{name}·{curve}" if curve else name)
    return " + ".join(parts)


def _warn(loaded: Sequence[Loaded]) -> None:
    for one in loaded:
        for warning in one.warnings:
            typer.echo(f"{one.path}: warning: {warning}", err=True)


def _value(value: Any) -> str:
    """One line, near enough to TOML to be read."""
    text = ABSENT if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 1]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
