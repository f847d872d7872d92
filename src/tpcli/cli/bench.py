"""``tpcli bench``: which benchmarks there are, and one of them in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tpcli.bench.items import Item
    from tpcli.bench.spec import Benchmark

app = typer.Typer(help="List benchmarks, or show one.", no_args_is_help=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


@app.command("ls")
def ls(as_json: JsonOption = False) -> None:
    """List the benchmarks that ship, and this project's own (benches/*.toml)."""
    from tpcli.bench import spec

    benches = [*spec.shipped(), *spec.own()]
    if as_json:
        typer.echo(json.dumps([_facts(one) for one in benches], ensure_ascii=False, indent=2))
        return
    from rich.console import Console
    from rich.text import Text

    from tpcli.cli.columns import Column, fitting, joined

    console = Console(highlight=False)
    columns = [
        Column("bench", [one.name for one in benches], 0),
        Column("group", [one.spec.group or "" for one in benches], 4),
        Column("title", [one.spec.title for one in benches], 3),
        Column("questions", [_count(one) for one in benches], 1, right=True),
        Column("answers", [one.spec.kind for one in benches], 2),
        Column("source", [one.spec.source + " (gated)" * one.spec.gated for one in benches], 5),
    ]
    kept = fitting(columns, console.width)
    console.print(Text(joined(kept, None), "dim"), soft_wrap=True)
    for row in range(len(benches)):
        console.print(Text(joined(kept, row)), soft_wrap=True)
    typer.echo(
        "also rg:TASK, any reasoning-gym task with one right answer (rg:chain_sum), and a .toml "
        "file of your own",
        err=True,
    )


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A benchmark, rg:TASK or a .toml file.")],
    question: Annotated[
        int | None, typer.Option(min=1, help="Show this question as it is asked; loads the rows.")
    ] = None,
    bench_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="--question: its rows from a file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a benchmark is, or one of its questions."""
    from tpcli.bench import spec
    from tpcli.bench.items import load
    from tpcli.errors import UsageError

    benches = spec.find([name])
    if question is None:
        if as_json:
            typer.echo(json.dumps([_facts(one) for one in benches], ensure_ascii=False, indent=2))
        else:
            typer.echo("\n\n".join("\n".join(_sheet(one)) for one in benches))
        return
    if len(benches) > 1:
        names = ", ".join(one.name for one in benches)
        raise UsageError(f"{name} is several: {names}", hint=f"tpcli bench show {benches[0].name}")
    bench = benches[0].read_from(bench_file) if bench_file else benches[0]
    items = load(bench, seed=0).items
    if question > len(items):
        raise UsageError(
            f"{bench.name} has {len(items)} questions", hint=f"--question {len(items)}"
        )
    _show_item(items[question - 1], as_json)


def _show_item(item: Item, as_json: bool) -> None:
    if as_json:
        facts = {"id": item.id, "text": item.text, "answer": item.gold, "order": item.order}
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    typer.echo(f"{item.text}\n")
    order = f", choices shown in the order {', '.join(map(str, item.order))}" if item.order else ""
    typer.echo(f"id {item.id}, right answer {item.gold}{order}", err=True)


def _facts(bench: Benchmark) -> dict[str, Any]:
    spec = bench.spec.model_dump(mode="json")
    return {"name": bench.name, "file": str(bench.file) if bench.file else None, **spec}


def _count(bench: Benchmark) -> str:
    return f"{bench.spec.count:,}" if bench.spec.count else "–"


def _sheet(bench: Benchmark) -> list[str]:
    spec = bench.spec
    shown = {
        "title": spec.title,
        "group": spec.group,
        "source": spec.source + (f", config {spec.config}" if spec.config else ""),
        "revision": spec.revision,
        "splits": ", ".join(spec.splits) if spec.source.startswith("hf://") else None,
        "access": "gated: its owner lets people in one by one" if spec.gated else None,
        "questions": _count(bench) if spec.count else None,
        "answers": f"{spec.kind} (docs/verifiers.md)",
        "settings": json.dumps(spec.settings) if spec.settings else None,
        "file": str(bench.file) if bench.file else None,
        "asked as": spec.ask(spec.question + ("\n\nA. ...\nB. ..." if spec.choices else "")),
    }
    lines = [bench.name]
    for label, value in shown.items():
        if value is not None:
            lines.append(f"  {label:<10}" + value.replace("\n", "\n" + " " * 12))
    return lines
