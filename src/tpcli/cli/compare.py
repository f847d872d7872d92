"""``tpcli compare``: runs or groups of runs side by side, with paired tests over seeds."""

from __future__ import annotations

import enum
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer


class Align(enum.StrEnum):
    """What curves run along."""

    step = "step"
    magnitude = "magnitude"
    tokens = "tokens"


def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|@GROUP...", help="Two or more; the first is what the others stand against."
        ),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="With commas: reward, entropy, a key of metrics.jsonl, a benchmark.",
            show_default="held-out accuracy, reward, entropy, shared benchmarks",
        ),
    ] = None,
    at: Annotated[
        int | None, typer.Option(metavar="STEP", min=0, help="A step to look at besides the end.")
    ] = None,
    align: Annotated[
        Align,
        typer.Option(help="What curves run along: tokens are those that carried credit."),
    ] = Align.step,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Write .html, .png, .md, .csv, .tex or .json; repeatable."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --out replace files.")] = False,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPR",
            help="Exit with 6 where it holds or cannot be told; repeatable. 'delta(reward) < 0'; "
            "mean, delta, low, high, p (sign-flip), p_t.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Compare runs, or groups of runs over seeds: values, paired differences, what differs.

    A group is @NAME: the runs with that tag, or named NAME-s0, NAME-s1, ... Differences are taken
    seed by seed; what too few seeds cannot say is said so.
    """
    from tpcli.cli import compared as screens
    from tpcli.errors import TRIPPED
    from tpcli.jobs import compare as job

    paths = list(dict.fromkeys(out or ()))
    job.check_outputs(paths, force=force)
    found = job.run(arms, metrics=_split(metric), step=at, fail_if=fail_if or ())
    command = shlex.join(["tpcli", *sys.argv[1:]])
    for path in paths:
        job.write(found, path, command=command, align=align.value, tables=screens.TABLES)
    if as_json:
        typer.echo(json.dumps(job.record(found), ensure_ascii=False, indent=2))
    else:
        screens.show(found.comparison, align.value)
    for path in paths:
        typer.echo(f"wrote {path}", err=True)
    for trip in found.trips:
        typer.echo(screens.tripped(trip), err=True)
    if found.trips:
        raise typer.Exit(TRIPPED)


def _split(options: Sequence[str] | None) -> list[str]:
    names = [name.strip() for option in options or () for name in option.split(",")]
    return [name for name in names if name]
