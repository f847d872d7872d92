"""``tpcli logs``: what a run's worker wrote."""

from __future__ import annotations

from typing import Annotated

import typer


def logs(
    run: Annotated[str, typer.Argument(help="Id, its beginning, or name.")],
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on until the run ends.")
    ] = False,
    lines: Annotated[int, typer.Option("-n", min=1, help="Lines from the end.")] = 100,
) -> None:
    """Print the end of a run's log."""
    from tpcli.jobs import runs as jobs

    for text in jobs.log(jobs.find(run), lines=lines, follow=follow):
        typer.echo(text, nl=False)
