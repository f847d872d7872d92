"""``tpcli analyse``: a run by trajectory percentile, and whether its tokens pull the same way."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tpcli.analysis.gradients import Interference, Report
    from tpcli.analysis.heatmaps import Trajectories
    from tpcli.jobs.analyse import Measured
    from tpcli.registry.run import Run

WIDEST = 100
SPARKS = 20
PLAIN_INTERVAL = 60.0
"""Seconds between two lines of progress where there is no terminal."""
BINS, RESPONSES = 10, 32
ROOM = 12
"""Bins of which a matrix still fits on 80 columns."""


def analyse(
    run: Annotated[str, typer.Argument(help="Id, its beginning, or name.", show_default=False)],
    at: Annotated[
        list[float] | None,
        typer.Option(help="Point of training to cut KL at, 0 to 1; repeatable. [.3 and .8]"),
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Compare gradients of early and late tokens.")
    ] = False,
    step: Annotated[
        int | None, typer.Option(help="--gradients: of this checkpoint. [the newest]")
    ] = None,
    bins: Annotated[
        int | None,
        typer.Option(min=2, max=20, help=f"--gradients: bins of the trajectory. [{BINS}]"),
    ] = None,
    responses: Annotated[
        int | None,
        typer.Option(min=1, help=f"--gradients: responses with signal, at most. [{RESPONSES}]"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of the figure. [the run's own]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Show what RUN measured by trajectory percentile; it may still be running.

    Maps of percentile x step: entropy, KL to the initial policy, tokens with credit, credit mass,
    clipped tokens. With --gradients: norm and cosine of the gradients of percentile bins.
    """
    from tpcli.errors import UsageError
    from tpcli.jobs.runs import find

    for name, value in (("step", step), ("bins", bins), ("responses", responses)):
        if value is not None and not gradients:
            raise UsageError(f"--{name} is an option of --gradients", hint="add --gradients")
    if at and (gradients or not all(0 <= share <= 1 for share in at)):
        raise UsageError(
            "--at takes shares of training from 0 to 1, without --gradients", hint="--at 0.5"
        )
    if gradients:
        _gradients(find(run), step, bins or BINS, responses or RESPONSES, out, as_json)
    else:
        _trajectories(find(run), at, out, as_json)


def _trajectories(run: Run, at: list[float] | None, out: Path | None, as_json: bool) -> None:
    from tpcli.analysis.heatmaps import PROGRESS
    from tpcli.jobs.analyse import trajectories

    found, figure = trajectories(run, at=at or PROGRESS, out=out)
    if as_json:
        typer.echo(json.dumps(_trajectories_json(run, found, figure), ensure_ascii=False, indent=2))
        return
    from rich.console import Console

    console = Console(highlight=False)
    _write(console, [_title(run, f"step {run.step} of {run.steps}"), *_maps(found, console)])
    _write(console, _stages(found) + _profiles(found))
    typer.echo(f"figure  {figure}")
    if found.missing:
        names = ", ".join(key.partition("/")[0] for key in found.missing)
        typer.echo(f"left out, this run has not measured it by percentile: {names}", err=True)


def _maps(found: Trajectories, console: Console) -> list[Text]:
    from rich.text import Text

    from tpcli.cli.heat import heat_map

    lines = []
    for one in found.maps:
        if one.empty:
            lines += [Text(f"{one.quantity.title}: 0 at every step"), Text()]
            continue
        lines += heat_map(
            one.columns(),
            title=one.quantity.title,
            unit=one.quantity.unit,
            top=one.top,
            beyond=one.beyond,
            steps=(one.steps[0], one.steps[-1]),
            width=min(console.width, WIDEST),
            colours=one.quantity.colours if _coloured(console) else None,
        )
        lines.append(Text())
    return lines


def _stages(found: Trajectories) -> list[Text]:
    """Entropy at the beginning, in the middle and at the end of responses, over training."""
    from rich.text import Text

    from tpcli.analysis.canvas import STAGES
    from tpcli.cli.glyphs import number, sparkline

    if not found.entropy:
        return []
    lines = [Text("Entropy by stage of the trajectory, first step to last (nats a token)", "bold")]
    every = [v for series in found.entropy.values() for v in series.values()]
    for stage, label, *_ in STAGES:
        values = list(found.entropy.get(stage, {}).values())
        if values:
            spark = sparkline(values, SPARKS, low=0.0, high=max(every))
            ends = f"{number(values[0]):>6} → {number(values[-1]):<6}"
            lines.append(Text.assemble((f"  {label:<20}", "dim"), ends, spark))
    return [*lines, Text()]


def _profiles(found: Trajectories) -> list[Text]:
    """KL along the trajectory, first percentile to last."""
    from rich.text import Text

    from tpcli.cli.glyphs import number, sparkline

    if not found.kl:
        return []
    head = "KL to the initial policy, first percentile to last (nats a token)"
    known = [v for cut in found.kl for v in cut.values if v is not None]
    lines = [Text(head, "bold")]
    for cut in found.kl:
        here = [v for v in cut.values if v is not None]
        label = f"  step {cut.step}, {100 * cut.progress:.0f}%"
        spark = sparkline(cut.values, SPARKS, low=0.0, high=max(known))
        ends = f"{number(here[0]):>6} → {number(here[-1]):<6}"
        lines.append(Text.assemble((f"{label:<22}", "dim"), ends, spark))
    return [*lines, Text()]


def _trajectories_json(run: Run, found: Trajectories, figure: Path) -> dict[str, Any]:
    maps = {
        one.quantity.key: {
            "title": one.quantity.title,
            "unit": one.quantity.unit,
            "steps": list(one.rows),
            "values": list(one.rows.values()),
        }
        for one in found.maps
    }
    return {
        "run": run.id,
        "name": run.name,
        "steps": run.steps,
        "maps": maps,
        "missing": found.missing,
        "kl": [dataclasses.asdict(cut) for cut in found.kl],
        "entropy": {
            stage: {"steps": list(series), "values": list(series.values())}
            for stage, series in found.entropy.items()
        },
        "figure": str(figure),
    }


def _gradients(
    run: Run, step: int | None, bins: int, responses: int, out: Path | None, as_json: bool
) -> None:
    from tpcli.jobs.analyse import gradients

    with _progress(hidden=as_json) as report:
        found = gradients(run, step=step, bins=bins, responses=responses, out=out, report=report)
    if as_json:
        facts = {"run": run.id, "name": run.name} | dataclasses.asdict(found)
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2, default=str))
        return
    from rich.console import Console

    console = Console(highlight=False)
    _write(console, [_title(run, f"checkpoint of step {found.step}"), *_basis(found)])
    _write(console, _norms(found.interference))
    _write(console, _cosines(found.interference, _coloured(console)))
    typer.echo(f"figure  {found.figure}")


def _basis(found: Measured) -> list[Text]:
    """What the gradients were measured on."""
    from rich.text import Text

    from tpcli.cli.glyphs import number

    first, last = found.steps
    when = f"step {first}" if first == last else f"steps {first} to {last}"
    return [
        Text(
            f"{found.used} responses with signal, of {found.looked_at} stored ones looked at; "
            f"sampled in {when}"
        ),
        Text(
            f"temperature {found.temperature:g}; mean |sampled − present log-prob| "
            f"{number(found.interference.gap)} nats a token"
        ),
        Text(),
    ]


def _norms(found: Interference) -> list[Text]:
    from rich.text import Text

    from tpcli.cli.glyphs import bar, number
    from tpcli.cli.heat import cosine

    lines = [Text(f"{'percentile':>10}{'tokens':>9}{'norm':>9}  {'':20}  reliability", "dim")]
    largest = max(found.norm) or 1.0
    for q, label in enumerate(_labels(found.bins)):
        full, _ = bar(found.norm[q] / largest, 20)
        lines.append(
            Text.assemble(
                (f"{label:>10}", "dim"),
                f"{found.tokens[q]:>9}{number(found.norm[q]):>9}  ",
                (f"{full:<20}", "cyan"),
                f"  {cosine(found.halves[q][q]):>11}",
            )
        )
    lines.append(Text(f"{'all':>10}{sum(found.tokens):>9}{number(found.whole):>9}", "bold"))
    note = (
        "reliability: the cosine of a bin's gradients from two halves of the responses;",
        "where it is near 0, the cosines of that bin with others are noise",
    )
    return [*lines, *(Text(text, "dim") for text in note), Text()]


def _cosines(found: Interference, coloured: bool) -> list[Text]:
    from rich.text import Text

    from tpcli.cli.heat import matrix

    if found.bins > ROOM:
        return [Text(f"cosines of {found.bins} bins: in the figure and in --json", "dim"), Text()]
    labels, lines = _labels(found.bins), []
    for title, values in (
        ("cosine, all responses", found.cosine),
        ("cosine between halves of the responses (diagonal: reliability)", found.halves),
    ):
        lines += [*matrix(values, title=title, labels=labels, coloured=coloured), Text()]
    return lines


def _labels(bins: int) -> list[str]:
    """The stretch of each bin, in per cent."""
    return [f"{100 * q / bins:.0f}–{100 * (q + 1) / bins:.0f}" for q in range(bins)]


def _title(run: Run, what: str) -> Text:
    from rich.text import Text

    return Text.assemble((run.name, "bold"), f" · {run.id} · {what}\n")


def _coloured(console: Console) -> bool:
    """Whether colours can stand for numbers: sixteen of them cannot."""
    rich_in_colour = console.color_system in ("256", "truecolor")
    return console.is_terminal and rich_in_colour and not console.no_color


def _write(console: Console, lines: list[Text]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)


@contextmanager
def _progress(*, hidden: bool) -> Iterator[Report]:
    """Responses done, on stderr: a bar on a terminal, else a line a minute."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, highlight=False)
    last = time.monotonic()
    with Progress(
        console=console, transient=True, disable=hidden or not console.is_terminal
    ) as bar:
        task = bar.add_task("gradients", total=None)

        def report(done: int, total: int) -> None:
            nonlocal last
            bar.update(task, completed=done, total=total)
            if bar.disable and not hidden and time.monotonic() - last >= PLAIN_INTERVAL:
                last = time.monotonic()
                console.print(f"gradients of {done} of {total} responses")

        yield report
