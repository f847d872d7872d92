"""``tpcli eval``: a run or a model on benchmarks, with intervals, and against another."""

from __future__ import annotations

import dataclasses
import enum
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpcli.names import DtypeName

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from tpcli.bench.stats import Estimate
    from tpcli.cli.columns import Column
    from tpcli.jobs.evaluate import Evaluated, Outcome, Request

PLAIN_INTERVAL = 60.0
"""Seconds between two lines of progress where there is no terminal."""


class Format(enum.StrEnum):
    """How the result is written."""

    table = "table"
    md = "md"
    tex = "tex"
    json = "json"


class Prompting(enum.StrEnum):
    """Whose prompt is used."""

    bench = "bench"
    recipe = "recipe"


def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|MODEL|RECIPE]",
            help="A run, a hub id or folder, or a recipe. [the newest finished run]",
            show_default=False,
        ),
    ] = None,
    bench: Annotated[
        list[str] | None,
        typer.Option(help="Benchmarks, with commas: aime,gpqa; rg:TASK; a .toml file."),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Samples a question.")] = 8,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions a benchmark, chosen by hash. [all]")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="A run's checkpoint; 0: before training. [newest]")
    ] = None,
    vs: Annotated[
        str | None, typer.Option(metavar="RUN", help="Compare with this one, paired by question.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples and of choices' order.")] = 0,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy. [.6]")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="[.95]")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="0 keeps all. [20]")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest response. [the run's own, else 38912]")
    ] = None,
    thinking: Annotated[
        bool | None,
        typer.Option("--thinking/--no-thinking", help="The chat template's. [the recipe's]"),
    ] = None,
    prompt: Annotated[
        Prompting, typer.Option(help="recipe: its system message, template and examples.")
    ] = Prompting.bench,
    bench_file: Annotated[
        list[str] | None,
        typer.Option(metavar="BENCH=FILE", help="Rows of a benchmark from a file; repeatable."),
    ] = None,
    verifier: Annotated[
        str | None, typer.Option(help="In place of the benchmark's: math, reference, ...")
    ] = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade what is stored again; generate nothing.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="Responses decoded at once.")] = 64,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16. [bfloat16 on a GPU]")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.table,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Evaluate a policy on benchmarks: avg@n, pass@k, maj@n, with 95% intervals over questions.

    Responses are stored as they come, in the run's folder: a repeated command answers from them,
    an interrupted one goes on. Benchmarks: tpcli bench ls.
    """
    from tpcli.jobs.evaluate import Request, mirror, run

    request = Request(
        benches=_benches(bench),
        target=target,
        files=_files(bench_file or []),
        n=n,
        limit=limit,
        step=step,
        vs=vs,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        thinking=thinking,
        own_prompt=prompt is Prompting.recipe,
        rows=rows,
        dtype=_dtype(dtype),
        verifier=verifier,
        regrade=regrade,
    )
    form = Format.json if as_json else form
    found = _run(request, run)
    failed = [error for error in map(mirror, _subjects(found)) if error]
    _show(found, form)
    for error in failed:
        typer.echo(f"warning: MLflow is behind: {error}; later: tpcli db sync-mlflow", err=True)


def _benches(options: Sequence[str] | None) -> tuple[str, ...]:
    from tpcli.errors import UsageError

    names = [name.strip() for option in options or () for name in option.split(",")]
    if not names:
        raise UsageError("--bench says on what", hint="--bench aime,gpqa; tpcli bench ls has more")
    return tuple(names)


def _files(options: Sequence[str]) -> dict[str, Path]:
    from tpcli.errors import UsageError

    found = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not (equals and name and path):
            raise UsageError(f"--bench-file {option} names no file", hint="--bench-file gpqa=FILE")
        found[name] = Path(path).expanduser()
    return found


def _dtype(name: str | None) -> DtypeName | None:
    from typing import cast, get_args

    from tpcli.errors import UsageError

    if name is not None and name not in get_args(DtypeName):
        raise UsageError(
            f"--dtype {name} is not one of {', '.join(get_args(DtypeName))}",
            hint="--dtype float32",
        )
    return cast("DtypeName | None", name)


def _run(request: Request, run: Any) -> Evaluated:
    """Evaluate with progress on stderr; after Ctrl-C say what is kept."""
    from tpcli.errors import INTERRUPTED

    with _Screen() as screen:
        try:
            found: Evaluated = run(request, screen)
        except KeyboardInterrupt:
            screen.close()
            typer.echo("stopped; the same command goes on with what is missing", err=True)
            raise typer.Exit(INTERRUPTED) from None
    return found


class _Screen:
    """Progress on stderr: a bar on a terminal, else a line a minute and one a benchmark."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, speed="", visible=False)
        self._what, self._began, self._before = "", 0.0, 0
        self._told = time.monotonic()

    def __enter__(self) -> _Screen:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back."""
        self._bar.stop()

    def fetching(self, what: str, done: float, total: float) -> None:
        """Weights or rows on their way."""
        self._bar.update(
            self._task, description=what, completed=done, total=total or None, visible=True
        )

    def generating(self, bench: str, done: int, asked: int, tokens: int) -> None:
        """Responses of a benchmark, their speed, and when they will be there."""
        now = time.monotonic()
        if bench != self._what:
            self._what, self._began, self._before = bench, now, done
            if done and done < asked:
                self._console.print(f"{bench}: {done} of {asked} responses were stored already")
        line = self._speed(now - self._began, done - self._before, asked - done, tokens)
        self._bar.update(
            self._task, description=bench, completed=done, total=asked, speed=line, visible=True
        )
        if self._bar.disable and (now - self._told >= PLAIN_INTERVAL or done == asked):
            self._told = now
            share = f"{done}/{asked} responses {100 * done / asked:.0f}%"
            self._console.print(" · ".join(part for part in (bench, share, line) if part))

    def _speed(self, seconds: float, fresh: int, left: int, tokens: int) -> str:
        from tpcli.cli.glyphs import duration, number

        if not fresh or seconds <= 0:
            return ""
        speed = f"{number(tokens / seconds)} tokens/s" if tokens else ""
        eta = f"eta {duration(seconds * left / fresh)}" if left else ""
        return " · ".join(part for part in (speed, eta) if part)


# The result


def _subjects(found: Evaluated) -> list[Any]:
    return [found.subject] + ([found.other] if found.other else [])


def _show(found: Evaluated, form: Format) -> None:
    from tpcli.cli import columns as tables

    results, against = result_columns(found), against_columns(found)
    if form is Format.json:
        typer.echo(json.dumps(record(found), ensure_ascii=False, indent=2))
        return
    if form is not Format.table:
        write = tables.markdown if form is Format.md else tables.latex
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
