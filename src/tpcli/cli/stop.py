"""``tpcli stop``: ask a run to stop after its step, or end it at once."""

from __future__ import annotations

from typing import Annotated

import typer


def stop(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Id, its beginning, or name.")],
    now: Annotated[bool, typer.Option("--now", help="End it at once; its step is lost.")] = False,
) -> None:
    """Stop a running run after its step, with a checkpoint; it can be resumed."""
    from tpcli.jobs import runs as jobs

    if now:
        ended = jobs.end(run)
        typer.echo(f"{ended.id}  {ended.name}  {ended.status} at step {ended.step}")
        typer.echo(f"to go on: tpcli resume {ended.id}", err=True)
        return
    asked = jobs.stop(run)
    typer.echo(f"{asked.id}  {asked.name}  stops after its step")
    typer.echo(f"watch it: tpcli logs -f {asked.id}", err=True)
