"""The screens of ``tpcli eval``: results and comparisons as tables, text and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tpcli.bench.stats import Estimate
    from tpcli.cli.columns import Column
    from tpcli.jobs.evaluate import Evaluated
    from tpcli.jobs.examine import Outcome


def show(found: Evaluated, form: str) -> None:
    """Write the result on stdout: "table", "md", "tex" or "json"."""
    from tpcli.cli import columns as tables

    results, against = result_columns(found), against_columns(found)
    if form == "json":
        typer.echo(json.dumps(record(found), ensure_ascii=False, indent=2))
        return
    if form != "table":
        write = tables.markdown if form == "md" else tables.latex
        typer.echo("\n\n".join(write(part) for part in (results, against) if part))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for line in [*_head(found), *_lines(results, console), *_versus(found, against, console)]:
        console.print(line, soft_wrap=True)
    typer.echo(f"\nstored in  {found.subject.base}")
    _footnotes(found)


def _head(found: Evaluated) -> list[Text]:
    from rich.text import Text

    sampling = found.sampling
    how = "greedy" if not sampling.temperature else f"temperature {sampling.temperature:g}"
    if sampling.temperature:
        how += f", top-p {sampling.top_p:g}, top-k {sampling.top_k or 'off'}"
    longest = {outcome.result["settings"]["sampling"]["max_tokens"] for outcome in found.outcomes}
    ends = "–".join(f"{length:,}" for length in sorted({min(longest), max(longest)}))
    text = f"{how}, up to {ends} tokens, seed {sampling.seed}"
    return [Text(found.subject.label, "bold"), Text(text, "dim"), Text()]


def result_columns(found: Evaluated) -> list[Column]:
    """A row a benchmark, and one for their mean."""
    from tpcli.cli.columns import Column
    from tpcli.cli.glyphs import number, percent, whole

    outcomes, n = found.outcomes, found.outcomes[0].summary.n
    summaries = [outcome.summary for outcome in outcomes]
    tail = [""] * (found.mean is not None)
    estimates = [s.avg for s in summaries] + ([found.mean] if found.mean else [])
    failed = [s.shares["timeout"] + s.shares["crash"] for s in summaries]
    columns = [
        Column("bench", [o.bench for o in outcomes] + ["mean"] * len(tail), 0),
        Column("questions", [_asked(o) for o in outcomes] + tail, 7, right=True),
        Column(f"avg@{n}", [number(e.value) for e in estimates], 1, right=True),
        Column("95% CI", [_interval(e) for e in estimates], 2, right=True),
    ]
    if n > 1:
        most = [number(s.passed[n].value) for s in summaries] + tail
        columns.append(Column(f"pass@{n}", most, 5, right=True))
        maj = [number(s.maj.value) for s in summaries] + tail
        columns.append(Column(f"maj@{n}", maj, 6, right=True))
    if any(abs(s.reward - s.avg.value) > 1e-9 for s in summaries):  # it gives parts of a point
        rewards = [number(s.reward) for s in summaries] + tail
        columns.append(Column("reward", rewards, 2, right=True))
    truncated = [percent(s.truncated) for s in summaries] + tail
    silent = [percent(s.shares["no_answer"]) for s in summaries] + tail
    columns.append(Column("truncated", truncated, 3, right=True))
    columns.append(Column("no answer", silent, 4, right=True))
    if any(failed):
        columns.append(Column("timeout/crash", [percent(f) for f in failed] + tail, 3, right=True))
    columns.append(Column("tokens", [whole(s.tokens) for s in summaries] + tail, 8, right=True))
    return columns


def against_columns(found: Evaluated) -> list[Column]:
    """A row a benchmark: the difference by question, its tests, and who solves what."""
    from tpcli.cli.columns import Column
    from tpcli.cli.glyphs import number, signed

    pairs = found.against
    if not pairs:
        return []
    interval = [
        "–" if p.paired.low is None else f"[{signed(p.paired.low)}, {signed(p.paired.high)}]"
        for p in pairs
    ]
    return [
        Column("bench", [p.bench for p in pairs], 0),
        Column("other", [number(p.old.value) for p in pairs], 2, right=True),
        Column("Δ", [signed(p.paired.difference) for p in pairs], 1, right=True),
        Column("95% CI", interval, 1, right=True),
        Column("p t-test", [number(p.paired.p_t) for p in pairs], 4, right=True),
        Column("p Holm", [number(p.p_holm) for p in pairs], 3, right=True),
        Column("p sign-flip", [number(p.paired.p_sign_flip) for p in pairs], 5, right=True),
        Column("gained", [str(p.solved.only_new) for p in pairs], 2, right=True),
        Column("lost", [str(p.solved.lost) for p in pairs], 2, right=True),
        Column("both", [str(p.solved.both) for p in pairs], 6, right=True),
        Column("neither", [str(p.solved.neither) for p in pairs], 6, right=True),
    ]


def _asked(outcome: Outcome) -> str:
    some = "" if outcome.result["limit"] is None else " (part)"
    return f"{len(outcome.items):,}{some}"


def _interval(estimate: Estimate) -> str:
    from tpcli.cli.glyphs import number

    return f"[{number(estimate.low)}, {number(estimate.high)}]"


def _lines(columns: Sequence[Column], console: Console) -> list[Text]:
    from rich.text import Text

    from tpcli.cli.columns import fitting, joined

    kept = fitting(columns, console.width)
    rows = range(len(columns[0].cells))
    return [Text(joined(kept, None), "dim"), *(Text(joined(kept, row)) for row in rows)]


def _versus(found: Evaluated, columns: Sequence[Column], console: Console) -> list[Text]:
    from rich.text import Text

    if found.other is None:
        return []
    head = Text.assemble("\nagainst ", (found.other.label, "bold"), ", paired by question\n")
    return [head, *_lines(columns, console)]


def _footnotes(found: Evaluated) -> None:
    """What one must know to read the numbers, on stderr."""
    lines = [*found.notes]
    for outcome in found.outcomes:
        if outcome.made is not None:
            lines.append(
                f"{outcome.bench}: {len(outcome.items)} different held-out questions, of "
                f"{outcome.made:,} made"
            )
    if found.against:
        lines.append(
            "gained, lost, both, neither: questions of which more than half of the samples are "
            "right, here alone, there alone, in both, in neither"
        )
        least = max(pair.paired.smallest_p for pair in found.against)
        if least > 0.001:
            lines.append(f"sign-flip: with so few pairs that differ, the smallest p is {least:.3g}")
    stored = [outcome.bench for outcome in found.outcomes if outcome.stored]
    if stored:
        lines.append(f"nothing was generated for {', '.join(stored)}: all was stored")
    for line in lines:
        typer.secho(line, err=True, dim=True)


def record(found: Evaluated) -> dict[str, Any]:
    """The result as JSON."""
    return {
        "label": found.subject.label,
        "results": [_outcome(outcome) for outcome in found.outcomes],
        "mean": dataclasses.asdict(found.mean) if found.mean else None,
        "versus": found.other
        and {
            "label": found.other.label,
            "results": [_outcome(outcome) for outcome in found.others],
            "paired": [dataclasses.asdict(pair) for pair in found.against],
        },
        "notes": list(found.notes),
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return outcome.result | {"folder": str(outcome.folder), "stored": outcome.stored}
