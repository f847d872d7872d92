"""``tpcli doctor``: what works here, and what to type where it does not."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from tpcli.errors import RUN_FAILED

MARKS = {
    "ok": ("✓", "green"),
    "optional": ("·", "dim"),
    "warning": ("!", "yellow"),
    "broken": ("✗", "red"),
}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Check this machine: exit code 4 where something that training needs is broken."""
    from tpcli.jobs.doctor import examine
    from tpcli.jobs.runs import runs_dir
    from tpcli.policy.store import cache_dir

    checks = examine(runs_dir(), cache_dir())
    broken = any(check.state == "broken" for check in checks)
    if as_json:
        listed = [dataclasses.asdict(check) for check in checks]
        typer.echo(json.dumps({"ok": not broken, "checks": listed}, indent=2, ensure_ascii=False))
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for column in range(3):
            table.add_column(no_wrap=column < 2, overflow="fold")
        for check in checks:
            mend = f"\n→ {check.mend}" if check.mend and check.state != "ok" else ""
            table.add_row(Text(*MARKS[check.state]), check.name, Text(check.detail + mend))
        Console(highlight=False).print(table)
    if broken:
        raise typer.Exit(RUN_FAILED)
