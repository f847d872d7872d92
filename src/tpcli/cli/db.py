"""``tpcli db``: look after the registry and MLflow, the two indexes over the run folders."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tpcli.registry.store import Registry

app = typer.Typer(help="Look after the registry and MLflow.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def _registry() -> Registry:
    from tpcli.jobs.runs import runs_dir
    from tpcli.registry.store import Registry

    return Registry(runs_dir())


@app.command("status")
def status(as_json: JsonOption = False) -> None:
    """Say where the registry is, its schema version, and what it and MLflow lack."""
    from tpcli.jobs.mirror import late
    from tpcli.registry.migrations import LATEST

    registry = _registry()
    schema, folders, runs = registry.version(), len(registry.folders()), registry.count()
    behind = [path.name for path in late(registry.runs_dir)]
    if as_json:
        facts = {
            "database": str(registry.path),
            "schema": schema,
            "latest_schema": LATEST,
            "folders": folders,
            "runs": runs,
            "mlflow_late": behind,
        }
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    version = "none yet" if schema is None else f"schema {schema} of {LATEST}"
    lag = f"behind on {', '.join(behind)}: tpcli db sync-mlflow" if behind else "up to date"
    typer.echo(f"registry  {registry.path}, {version}")
    typer.echo(f"runs      {runs} of {folders} folders")
    typer.echo(f"mlflow    {lag}")


@app.command("rebuild")
def rebuild() -> None:
    """Read every run folder again and forget all else."""
    registry = _registry()
    count = registry.rebuild(lambda message: typer.echo(message, err=True))
    typer.echo(f"{count} runs in {registry.path}")


@app.command("migrate")
def migrate() -> None:
    """Bring the registry's schema up to date (any command that opens it does so too)."""
    registry = _registry()
    before = registry.version()
    for copy in registry.migrate():
        typer.echo(f"copied to {copy}", err=True)
    typer.echo(f"schema {before or 0} → {registry.version()}")


@app.command("backup")
def backup(
    target: Annotated[
        Path | None, typer.Argument(help="File to write.", show_default=False)
    ] = None,
) -> None:
    """Copy the registry, also while runs write to it."""
    from tpcli.errors import UsageError

    registry = _registry()
    target = target or registry.runs_dir / time.strftime("registry-%Y%m%d-%H%M%S.db")
    if target.exists():
        raise UsageError(f"{target} exists", hint="name another file")
    registry.backup(target)
    typer.echo(str(target))


@app.command("check")
def check() -> None:
    """Look for damage, rows without a folder and folders without a row."""
    from tpcli.errors import TpcliError

    problems = _registry().check()
    for problem in problems:
        typer.echo(problem)
    if problems:
        raise TpcliError(f"faults in the registry: {len(problems)}", hint="tpcli db rebuild")
    typer.echo("the registry is sound")


@app.command("sync-mlflow")
def sync_mlflow(
    run: Annotated[
        str | None, typer.Argument(help="One run; all by default.", show_default=False)
    ] = None,
) -> None:
    """Log in MLflow what it lacks of one run or of all."""
    from tpcli.errors import PARTLY_FAILED, TpcliError
    from tpcli.jobs.mirror import sync_tracked
    from tpcli.jobs.runs import find

    folders = [find(run).folder] if run else _registry().folders()
    failed: list[str] = []
    for folder in folders:
        outcome = sync_tracked(folder)
        if outcome.error is None:
            typer.echo(f"{folder.name}  {outcome.text}")
        else:
            failed.append(folder.name)
            typer.echo(f"{folder.name}  failed: {outcome.error}", err=True)
    if not failed:
        return
    if len(failed) < len(folders):
        raise typer.Exit(PARTLY_FAILED)
    raise TpcliError(f"MLflow took none of {len(folders)} runs", hint="tpcli doctor")
