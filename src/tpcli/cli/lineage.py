"""``tpcli rerun``, ``tpcli fork`` and ``tpcli reproduce``: new runs from old ones."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from tpcli.jobs.reproduce import Difference, Reproduction, Verdict
    from tpcli.jobs.train import Plan

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Id, start of an id, or name.", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; VALUE is TOML."),
]
SeedOption = Annotated[int | None, typer.Option(help="Override train.seed.")]
NameOption = Annotated[str | None, typer.Option(help="Name of the new run.")]
TagOption = Annotated[list[str] | None, typer.Option(help="Tag of the new run; repeatable.")]
NoteOption = Annotated[str, typer.Option(help="A remark, kept with the new run.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CAUSES = 12
"""Differences of provenance that a terminal shows."""


def rerun(
    run: RunArgument,
    overrides: SetOption = None,
    seed: SeedOption = None,
    name: NameOption = None,
    tag: TagOption = None,
    note: NoteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Train RUN's resolved recipe from its beginning, as a new run, also where it is done."""
    from tpcli.jobs import lineage

    planned = lineage.again(
        run,
        overrides=overrides or (),
        seed=seed,
        name=name,
        tags=tag or (),
        note=note,
        argv=sys.argv,
    )
    _train(planned, as_json)


def fork(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[@STEP]", help="A checkpoint of a run. [the newest]", show_default=False
        ),
    ],
    overrides: SetOption = None,
    seed: SeedOption = None,
    name: NameOption = None,
    tag: TagOption = None,
    note: NoteOption = "",
    as_json: JsonOption = False,
) -> None:
    """Go on from a checkpoint of RUN as a new run, with other settings from there on."""
    from tpcli.jobs import lineage

    planned = lineage.fork(
        run,
        overrides=overrides or (),
        seed=seed,
        name=name,
        tags=tag or (),
        note=note,
        argv=sys.argv,
    )
    _train(planned, as_json)


def reproduce(
    run: RunArgument,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps to repeat. [5, or as many as there are]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Repeat the first steps of RUN: the first step and tensor that differ, or none.

    Exit code 0 where every number is the same, 6 where one differs.
    """
    from tpcli.cli.train import tell, watch
    from tpcli.errors import OK, TRIPPED
    from tpcli.jobs import reproduce as job
    from tpcli.jobs.train import launch

    ready = job.prepare(run, steps=steps, argv=sys.argv)
    _warn(ready.plan)
    recipe = ready.plan.recipe
    last = watch(recipe, lambda show: launch(ready.plan, show))
    if last.exit_code != OK:
        tell(last, recipe, as_json)
        raise typer.Exit(last.exit_code)
    verdict = job.compare(ready.original.folder, last.folder, ready.steps)
    tell(last, recipe, as_json, **({"reproduction": _record(ready, verdict)} if as_json else {}))
    if not as_json:
        _show(ready, verdict)
    raise typer.Exit(OK if verdict.difference is None else TRIPPED)


def _train(planned: Plan, as_json: bool) -> None:
    from tpcli.cli.train import tell, watch
    from tpcli.jobs.train import launch

    _warn(planned)
    last = watch(planned.recipe, lambda show: launch(planned, show))
    tell(last, planned.recipe, as_json)
    raise typer.Exit(last.exit_code)


def _warn(planned: Plan) -> None:
    for warning in planned.loaded.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _record(ready: Reproduction, verdict: Verdict) -> dict[str, Any]:
    causes = [{"what": w, "original": a, "again": b} for w, a, b in verdict.causes]
    return {
        "original": ready.original.id,
        "identical": verdict.difference is None,
        **asdict(verdict),
        "causes": causes,
    }


def _show(ready: Reproduction, verdict: Verdict) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    counts = (
        f"{_count(verdict.steps, 'step')}, {_count(verdict.numbers, 'number')}, "
        f"{_count(verdict.tensors, 'tensor')}"
    )
    whose = f"{ready.original.name} · {ready.original.id}"
    lines = [Text.assemble("\nagainst ", (whose, "bold"))]
    if verdict.difference is None:
        lines.append(Text.assemble(("identical", "bold green"), f": {counts}"))
    else:
        lines += [*_told(verdict.difference), Text(f"equal before it: {counts}", "dim")]
        lines += _causes(verdict)
    for line in lines:
        console.print(line, soft_wrap=True)
    if not verdict.kept:
        there = ", ".join(map(str, verdict.there)) or "none"
        typer.secho(
            "no tensor was compared: this run ends with a checkpoint, and the original has those "
            f"of steps {there}",
            err=True,
            dim=True,
        )


def _told(found: Difference) -> list[Text]:
    from rich.text import Text

    place = f", number {', '.join(map(str, found.place))}" if found.place else ""
    head = Text.assemble(
        ("differs", "bold red"),
        " at step ",
        (str(found.step), "bold"),
        ": ",
        (found.tensor, "bold"),
    )
    head.append(f"{place} (counted from 0)" if place else "")
    lines = [head, Text(f"  original  {_value(found.original)}")]
    lines.append(Text(f"  again     {_value(found.again)}"))
    if found.apart is not None:
        lines.append(Text(f"  apart     {found.apart:.3g}"))
    if found.size > 1:
        largest = "" if found.largest is None else f", by up to {found.largest:.3g}"
        lines.append(Text(f"  {found.count:,} of its {found.size:,} numbers differ{largest}"))
    return lines


def _causes(verdict: Verdict) -> list[Text]:
    from rich.text import Text

    if not verdict.causes:
        return [
            Text(
                "code, packages, device, threads, git and data are recorded as equal (a GPU adds "
                "in no fixed order)"
            )
        ]
    shown = verdict.causes[:CAUSES]
    width = max(len(what) for what, _, _ in shown)
    lines = [Text("what else differs, the likeliest cause first:")]
    lines += [Text(f"  {w.ljust(width)}  {_value(a)} → {_value(b)}") for w, a, b in shown]
    if len(verdict.causes) > CAUSES:
        lines.append(Text(f"  and {len(verdict.causes) - CAUSES} more: --json has them", "dim"))
    return lines


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _value(value: Any) -> str:
    if value is None:
        return "nothing"
    text = f"{value:.9g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
