"""``tpcli runs``: which runs there are, one of them in full, and what one changes about them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpcli.cli.runs_list import MARKS as MARKS

if TYPE_CHECKING:
    from tpcli.jobs.curate import Waste
    from tpcli.registry.run import Run

app = typer.Typer(help="List runs, show one, or change what is said of it.")

WhereOption = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="EXPR", help="KEY OP VALUE, as reward>=0.5. All must hold."),
]
SortOption = Annotated[
    str | None, typer.Option(metavar="KEY", help='By a key; "-KEY": the largest first.')
]
ColsOption = Annotated[
    str | None, typer.Option("--cols", metavar="KEY,...", help="Columns to show.")
]
LimitOption = Annotated[int, typer.Option("-n", min=1, help="How many.")]
RemovedOption = Annotated[bool, typer.Option("--removed", help="The removed runs instead.")]
TreeOption = Annotated[bool, typer.Option("--tree", help="Forks under what they came from.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id, its beginning, or name.")]
RunsArgument = Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids, names, or @group.")]


@app.callback(invoke_without_command=True)
def list_runs(
    context: typer.Context,
    where: WhereOption = None,
    sort: SortOption = None,
    cols: ColsOption = None,
    limit: LimitOption = 20,
    removed: RemovedOption = False,
    tree: TreeOption = False,
    as_json: JsonOption = False,
) -> None:
    """List runs, show one, or change what is said of it.

    A KEY is a column (name, seed, status, ...), "tag", "age", a metric (reward, eval/sampled) or
    a setting of the recipe (optim.lr). OP is one of = != < <= > >= and ~ for "contains".
    """
    if context.invoked_subcommand is None:
        _list(where, sort, cols, limit, removed, tree, as_json)


@app.command("ls")
def ls(
    where: WhereOption = None,
    sort: SortOption = None,
    cols: ColsOption = None,
    limit: LimitOption = 20,
    removed: RemovedOption = False,
    tree: TreeOption = False,
    as_json: JsonOption = False,
) -> None:
    """List runs, as without a command."""
    _list(where, sort, cols, limit, removed, tree, as_json)


def _list(
    where: Sequence[str] | None,
    sort: str | None,
    cols: str | None,
    limit: int,
    removed: bool,
    tree: bool,
    as_json: bool,
) -> None:
    from tpcli.jobs import listing as jobs
    from tpcli.jobs.runs import record, runs_dir

    columns = [word for word in (cols or "").replace(" ", "").split(",") if word]
    found = jobs.listing(jobs.Query(where or (), sort, columns, limit, removed))
    rows = jobs.tree(found.runs) if tree else [("", run) for run in found.runs]
    if as_json:
        asked = dict.fromkeys(["id", *columns])
        told = [
            {word: jobs.value_of(run, word) for word in asked} if columns else record(run)
            for _, run in rows
        ]
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    if not found.runs:
        typer.echo(_none(found, removed, str(runs_dir())), err=True)
        return
    from rich.console import Console

    from tpcli.cli.runs_list import footer, table

    console = Console(highlight=False)
    for line in table(rows, columns, console.width, time.time()):
        console.print(line, soft_wrap=True)
    text = footer(found, time.time())
    Console(stderr=True, highlight=False).print(text, style="dim", soft_wrap=True)


def _none(found: Any, removed: bool, place: str) -> str:
    if found.total:
        return " · ".join([f"none of {found.total} runs fits", *found.notes])
    if removed:
        return f"no removed runs in {place}"
    return f"no runs in {place} yet: tpcli train recipes/math.toml"


@app.command("show")
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show one run: what it is, how it stands, its numbers, its files."""
    from tpcli.jobs import runs as jobs

    found = jobs.find(run, removed=None)
    if as_json:
        typer.echo(json.dumps(jobs.details(found), ensure_ascii=False, indent=2))
        return
    from rich.console import Console

    from tpcli.cli.run_sheet import sheet

    Console(highlight=False).print(*sheet(found), sep="\n", soft_wrap=True)


@app.command("tag")
def tag(
    run: RunArgument,
    tags: Annotated[list[str], typer.Argument(metavar="TAG...", help="Tags.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take them away.")] = False,
) -> None:
    """Tag a run or, as @group, several; @TAG is then the name of the group."""
    from tpcli.jobs import curate

    for one in curate.tag([run], tags, remove=remove):
        _say(one, ", ".join(one.tags) or "no tags")


@app.command("note")
def note(run: RunArgument, text: Annotated[str, typer.Argument(help='"" for none.')]) -> None:
    """Write a note on a run, in place of the one that it has."""
    from tpcli.jobs import curate

    one = curate.note(run, text)
    _say(one, one.note or "no note")


@app.command("rename")
def rename(run: RunArgument, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Give a run another name; its id stays."""
    from tpcli.jobs import curate

    typer.echo(f"{curate.rename(run, name).id}  {name}")


@app.command("rm")
def rm(runs: RunsArgument) -> None:
    """Remove runs from every list. They can be restored until tpcli runs gc."""
    from tpcli.jobs import curate

    for one in curate.remove(runs):
        _say(one, "removed")
    typer.echo("back: tpcli runs restore RUN; for good: tpcli runs gc", err=True)


@app.command("restore")
def restore(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or names.")],
) -> None:
    """Take removed runs back."""
    from tpcli.jobs import curate

    for one in curate.restore(runs):
        _say(one, "restored")


@app.command("gc")
def gc(
    older: Annotated[
        float, typer.Option(metavar="DAYS", min=0.0, help="Removed at least so long ago.")
    ] = 0.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Delete for good: removed runs, and what crashed writers left."""
    from tpcli.errors import UsageError
    from tpcli.jobs import curate

    found = curate.waste(older)
    if not found:
        typer.echo("nothing to delete", err=True)
        return
    for line in _wasted(found):
        typer.echo(line)
    whole = _disk(sum(one.bytes for one in found))
    if dry_run:
        typer.echo(f"would free {whole}", err=True)
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(f"this would delete {whole} for good", hint="add --yes")
        typer.confirm(f"delete {whole} for good?", abort=True, err=True)
    typer.echo(f"freed {_disk(curate.collect(found))}")


def _wasted(found: Sequence[Waste]) -> list[str]:
    from tpcli.cli.columns import Column, joined
    from tpcli.cli.runs_list import age

    now = time.time()
    columns = [
        Column("id", [one.run.id if one.run else one.path.name for one in found], 0),
        Column("name", [one.run.name if one.run else "left by a crash" for one in found], 0),
        Column(
            "removed",
            [f"{age(now - (one.run.removed or now))} ago" if one.run else "" for one in found],
            0,
        ),
        Column("disk", [_disk(one.bytes) for one in found], 0, right=True),
    ]
    return [joined(columns, row) for row in (None, *range(len(found)))]


def _disk(size: float) -> str:
    """Bytes with the largest unit that leaves at least one: 512 B, 1.5 MB, 12 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _say(run: Run, text: str) -> None:
    typer.echo(f"{run.id}  {run.name}  {text}")
