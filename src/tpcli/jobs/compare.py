"""Compare runs: from words to arms, from folders to numbers, and the files that hold the result."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.analysis.arms import AlignName, Arm, Score, Trace
from tpcli.analysis.compare import FLIPS, Comparison, Statistics, Versus, last_step
from tpcli.analysis.gate import Trip
from tpcli.errors import TpcliError, UsageError
from tpcli.jobs.runs import choose, evaluations, runs_dir
from tpcli.recipe.positions import dotted
from tpcli.recipe.render import leaves
from tpcli.registry import folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tpcli.registry.run import Evaluation, Run

SUFFIXES = (".html", ".png", ".md", ".csv", ".tex", ".json")
ORIGIN = ("git.diff_sha256", "python", "machine.cpu", "machine.gpus")
"""Keys of provenance.json that comparisons look at, besides those below ``ORIGIN_TABLES``."""
ORIGIN_TABLES = ("packages.", "compute.", "data.")


@dataclass(frozen=True, slots=True)
class Gathered:
    """The arms that words stand for, and what is to be known of how they were chosen."""

    arms: tuple[Arm, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison and the conditions that it trips."""

    comparison: Comparison
    trips: tuple[Trip, ...] = field(default=())


def run(
    words: Sequence[str],
    *,
    metrics: Sequence[str] = (),
    step: int | None = None,
    fail_if: Sequence[str] = (),
) -> Compared:
    """Compare what the words stand for; the first is what the others stand against.

    Args:
        metrics: keys, short names or benchmarks; none: the usual ones.
        step: a moment to look at besides the end.
        fail_if: conditions, as ``tpcli.analysis.gate`` reads them.

    Raises:
        NotFoundError, UsageError: no such run, metric or step, or a condition that is none.
    """
    from tpcli.analysis.compare import compare
    from tpcli.analysis.gate import parse, tripped

    conditions = [parse(text) for text in fail_if]
    found = gather(words)
    tests = _statistics()
    comparison = compare(found.arms, tests, metrics=metrics, step=step, notes=found.notes)
    return Compared(comparison, tuple(tripped(found.arms, conditions, tests)))


def of_arms(arms: Sequence[Arm], first: str) -> Comparison:
    """Compare arms that are already gathered: by the metric named, then the usual ones."""
    from tpcli.analysis.compare import compare, usual

    return compare(arms, _statistics(), metrics=[first, *usual(arms)])


def _statistics() -> Statistics:
    from tpcli.bench.stats import holm, paired

    return Statistics(partial(paired, resamples=FLIPS), holm)


def gather(words: Sequence[str]) -> Gathered:
    """The arm that each word stands for: a run, or the runs of a group.

    Raises:
        UsageError: fewer than two words, or the same one twice.
        NotFoundError: no such run or group.
    """
    if len(words) < 2:
        raise UsageError("a comparison takes two runs or groups", hint="tpcli compare RUN RUN")
    twice = next((word for word in words if words.count(word) > 1), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice", hint="tpcli runs lists the others")
    chosen = [choose(word) for word in words]
    labels = [one.label for one in chosen]
    arms = tuple(
        Arm(one.label if labels.count(one.label) == 1 else word, tuple(map(trace, one.runs)))
        for word, one in zip(words, chosen, strict=True)
    )
    return Gathered(arms, tuple(note for one in chosen for note in one.notes))


def trace(run: Run) -> Trace:
    """A run as comparisons see it, from its folder. TpcliError where that is damaged."""
    with _readable(run):
        table = tomllib.loads((run.folder / folder.RESOLVED).read_text(encoding="utf-8"))
        return Trace(
            id=run.id,
            name=run.name,
            seed=run.seed,
            status=run.status,
            steps=run.steps,
            folder=run.folder,
            settings=_flat(table),
            origin=_origin(run),
            metrics=folder.read_metrics(run.folder),
            scores=scores(evaluations(run)),
        )


@contextmanager
def _readable(run: Run) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise TpcliError(
            f"cannot read run {run.id}: {error}",
            hint=f"compare without it, or restore {run.folder}",
        ) from error


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    return {dotted(path): value for path, value in leaves(table)}


def _origin(run: Run) -> dict[str, Any]:
    """What a run comes from besides its recipe; hosts, paths and the command make no difference."""
    try:
        facts = _flat(folder.read_json(run.folder / folder.PROVENANCE))
    except FileNotFoundError:
        facts = {}
    kept = {
        key: value for key, value in facts.items() if key in ORIGIN or key.startswith(ORIGIN_TABLES)
    }
    return {"tpcli.code": run.code, "git": run.git} | kept


def scores(found: Sequence[Evaluation]) -> dict[str, Score]:
    """Of each benchmark the newest result on all of its questions, of the newest checkpoint.

    Args:
        found: of one run, newest first.
    """
    whole = [one for one in found if one.limit is None and one.step is not None]
    last: dict[str, int] = {}
    for one in whole:
        last[one.bench] = max(last.get(one.bench, 0), one.step or 0)
    kept: dict[str, Evaluation] = {}
    for one in whole:
        if one.step == last[one.bench]:
            kept.setdefault(one.bench, one)
    return {bench: _score(one) for bench, one in kept.items()}


def _score(one: Evaluation) -> Score:
    return Score(
        bench=one.bench,
        step=one.step or 0,
        settings=_how(one),
        n=one.n,
        value=one.value,
        se=one.se,
        low=one.low,
        high=one.high,
    )


def _how(one: Evaluation) -> str:
    """Digest of how questions were asked, sampled and judged, whatever the weights."""
    result = folder.read_json(runs_dir() / one.path)
    settings = {key: value for key, value in result["settings"].items() if key != "policy"}
    text = json.dumps([settings, one.verifier], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# files


def check_outputs(paths: Sequence[Path], *, force: bool) -> None:
    """Refuse files that cannot be written, before anything is computed.

    Raises:
        UsageError: an ending that says no format, or a file that is there and ``force`` is off.
    """
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(
                f"--out {path}: the ending says no format", hint=f"there are {', '.join(SUFFIXES)}"
            )
        if path.is_dir():
            raise UsageError(f"--out {path} is a folder", hint="name a file")
        if path.exists() and not force:
            raise UsageError(
                f"--out {path} is there already", hint="another name, or --force to replace it"
            )


def write(
    compared: Compared,
    path: Path,
    *,
    command: str,
    align: AlignName,
    tables: Mapping[str, Callable[[Comparison], str]],
) -> None:
    """Write the comparison in the format that the ending of ``path`` says, whole or not at all.

    Args:
        command: as typed, for the report.
        align: what the curves of figures run along.
        tables: how to write the formats that are tables of text, by ending.

    Raises:
        TpcliError: the file cannot be written, or there is nothing to draw.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(compared, aside, command, align, tables)
        aside.replace(path)
    except OSError as error:
        raise TpcliError(f"cannot write {path}: {error}", hint="another --out") from error
    finally:
        with suppress(OSError):  # where even its folder cannot be, there is nothing to clear away
            aside.unlink()


def _write(
    compared: Compared,
    path: Path,
    command: str,
    align: AlignName,
    tables: Mapping[str, Callable[[Comparison], str]],
) -> None:
    comparison, suffix = compared.comparison, path.suffix.lower()
    if suffix == ".html":
        from tpcli.analysis import report

        report.write(comparison, path, command=command, align=align)
    elif suffix == ".png":
        from tpcli.analysis import arm_figures, canvas

        figure = arm_figures.composite(comparison.arms, metrics=comparison.metrics, align=align)
        if figure is None:
            raise TpcliError("there is nothing to draw", hint="none of the metrics was recorded")
        canvas.save(figure, path)
    elif suffix == ".csv":
        path.write_text(long_form(comparison), encoding="utf-8", newline="")
    elif suffix == ".json":
        text = json.dumps(record(compared), ensure_ascii=False, indent=2)
        path.write_text(text + "\n", encoding="utf-8")
    else:
        path.write_text(tables[suffix](comparison) + "\n", encoding="utf-8")


def long_form(comparison: Comparison) -> str:
    """Every value as CSV: metric, when, arm, seed, value."""
    text = io.StringIO()
    sheet = csv.writer(text)
    sheet.writerow(("metric", "when", "arm", "seed", "value"))
    for row in comparison.rows:
        for cell in row.cells:
            for seed, value in cell.values.items():
                sheet.writerow((row.metric, row.when, cell.arm, seed, repr(value)))
    return text.getvalue()


def record(compared: Compared) -> dict[str, Any]:
    """The comparison as JSON, with every value by seed."""
    found = compared.comparison
    return {
        "arms": [
            {"label": arm.label, "runs": [_run(run) for run in arm.runs]} for arm in found.arms
        ],
        "metrics": list(found.metrics),
        "rows": [
            {
                "metric": row.metric,
                "key": row.key,
                "when": row.when,
                "arms": [dataclasses.asdict(cell) | {"n": cell.n} for cell in row.cells],
                "versus": [_against(one) for one in row.versus],
            }
            for row in found.rows
        ],
        "recipe": [dataclasses.asdict(one) for one in found.recipe],
        "equal": found.equal,
        "origin": [dataclasses.asdict(one) for one in found.origin],
        "warnings": list(found.warnings),
        "tripped": [dataclasses.asdict(trip) for trip in compared.trips],
    }


def _run(run: Trace) -> dict[str, Any]:
    kept = {key: getattr(run, key) for key in ("id", "name", "seed", "status", "steps")}
    return kept | {"step": last_step(run), "folder": str(run.folder)}


def _against(one: Versus) -> dict[str, Any]:
    return dataclasses.asdict(one) | {"up": one.up}
