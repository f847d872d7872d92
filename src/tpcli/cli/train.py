"""``tpcli train`` and ``tpcli resume``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tpcli.cli.view import RunView
    from tpcli.jobs.supervise import Snapshot
    from tpcli.recipe.schema import Recipe


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; VALUE is TOML."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Override train.seed.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag of the run; repeatable.")] = None,
    note: Annotated[str, typer.Option(help="A remark, kept with the run.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the recipe and show the plan.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run of this recipe.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Train again what is already done.")
    ] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Train in the background; see tpcli logs -f.")
    ] = False,
    join: Annotated[
        str | None, typer.Option(metavar="RUN", help="Be another machine of a running run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Validate RECIPE, train it, and remember the run."""
    from tpcli.jobs import train as job

    planned = job.plan(
        recipe,
        overrides=overrides or (),
        seed=seed,
        name=name,
        tags=tag or (),
        note=note,
        argv=sys.argv,
    )
    for warning in planned.loaded.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if dry_run:
        _show_plan(planned.recipe, planned.name, as_json)
        return
    if join:
        raise typer.Exit(job.join(join, planned))
    if resume:
        ready = job.prepare(job.unfinished(planned).id)
        _finish(ready.recipe, as_json, lambda show: job.resume(ready, show))
        return
    done = None if force else job.already_done(planned)
    if done:
        _say_done(done.id, done.name, as_json)
        return
    if detach:
        run_dir = job.detach(planned)
        typer.echo(run_dir.name)
        typer.echo(f"watch it: tpcli logs -f {run_dir.name}", err=True)
        return
    _finish(planned.recipe, as_json, lambda show: job.launch(planned, show))


def resume(
    run: Annotated[str, typer.Argument(help="Id, start of an id, or name.", show_default=False)],
    steps: Annotated[int | None, typer.Option(min=1, help="A new last step.")] = None,
    horizon: Annotated[
        int | None, typer.Option(min=1, help="Let the schedules stretch over this many steps.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Go on with RUN from its newest checkpoint."""
    from tpcli.jobs import train as job

    ready = job.prepare(run, steps=steps, horizon=horizon)
    _finish(ready.recipe, as_json, lambda show: job.resume(ready, show))


def _finish(
    recipe: Recipe, as_json: bool, work: Callable[[Callable[[Snapshot], None]], Snapshot]
) -> None:
    """Show the run while it works, then how it ended; exit with its code."""
    last = watch(recipe, work)
    tell(last, recipe, as_json)
    raise typer.Exit(last.exit_code)


def watch(recipe: Recipe, work: Callable[[Callable[[Snapshot], None]], Snapshot]) -> Snapshot:
    """Show the run while it works."""
    from rich.console import Console

    from tpcli.cli import render

    display = render.Display(Console(stderr=True))
    display.start()
    try:
        return work(lambda snapshot: display.update(_view(snapshot, recipe)))
    finally:
        display.stop()


def tell(last: Snapshot, recipe: Recipe, as_json: bool, **more: Any) -> None:
    """How a run ended; ``more`` is added to the JSON."""
    from rich.console import Console

    from tpcli.cli import render

    view = _view(last, recipe)
    if as_json:
        typer.echo(json.dumps(render.summary_json(view) | more, ensure_ascii=False))
    else:
        Console().print(render.summary(view))


def _view(snapshot: Snapshot, recipe: Recipe) -> RunView:
    from tpcli.cli.view import RunView

    return RunView(
        run=snapshot.run,
        recipe=recipe,
        folder=str(snapshot.folder),
        started=snapshot.started,
        now=snapshot.now,
        state=snapshot.state,
        progress=snapshot.progress,
        metrics=snapshot.metrics,
        checkpoint=snapshot.checkpoint,
        warnings=snapshot.warnings,
        stopping=snapshot.stopping,
    )


def _show_plan(recipe: Recipe, name: str, as_json: bool) -> None:
    from rich.console import Console

    from tpcli.cli import render

    if as_json:
        typer.echo(json.dumps({"name": name, "recipe": recipe.model_dump(mode="json")}))
    else:
        Console().print(render.plan(recipe, name=name))


def _say_done(run_id: str, name: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"id": run_id, "name": name, "status": "finished", "done": True}))
        return
    typer.echo(f"already done: {run_id} ({name}), same recipe, seed and code")
    typer.echo(f"look at it: tpcli runs show {run_id} · train it again: --force", err=True)
