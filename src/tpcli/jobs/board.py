"""The leaderboard: runs, grouped over their seeds, and models, on the benchmarks they were asked.

Only what was measured alike compares: the same questions, sampling, verifier and number of samples.
For each benchmark the way in which most policies were measured is the common one; a policy that has
a result by it is shown with that, any other with its newest result, marked and out of the ranking.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tpcli.bench import spec
from tpcli.errors import NotFoundError, TpcliError
from tpcli.jobs.runs import runs_dir
from tpcli.registry import folder
from tpcli.registry.run import Evaluation, Run
from tpcli.registry.store import Registry

MATHEMATICS = ("int", "number", "math", "reference")
"""Verifiers of benchmarks whose answers are numbers or formulas."""
GENERAL = "choice"
"""The verifier of benchmarks outside mathematics, where one letter is right."""
POLICYS_OWN = ("policy", "chat_template")
"""Settings that belong to the policy, not to how it was measured."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A benchmark of the board.

    Attributes:
        short: as a column is called.
        general: outside the domain that is trained.
        common: the way in which most were measured; None where nobody was.
    """

    bench: str
    short: str
    mathematics: bool
    general: bool
    common: Measure | None


@dataclass(frozen=True, slots=True)
class Measure:
    """How a result came about; only equal ones compare."""

    n: int
    verifier: str
    settings: str

    def facts(self) -> dict[str, Any]:
        """Everything it is, flat."""
        return {"n": self.n, "verifier": self.verifier} | _flat(json.loads(self.settings))


@dataclass(frozen=True, slots=True)
class Cell:
    """A row on a benchmark, or the average of several.

    Attributes:
        mean: accuracy in [0, 1], of the mean over seeds.
        sd: over seeds, with n - 1; None for one.
        seeds: how many it is the mean of.
        differs: how it was measured otherwise than the common way; empty where it was not.
    """

    mean: float
    sd: float | None
    seeds: int
    differs: tuple[str, ...] = ()


@dataclass(slots=True)
class Row:
    """A model, or runs that differ in their seed alone.

    Attributes:
        runs: ids, a run a seed; empty for a model.
        steps: of the checkpoints that were evaluated.
        cells: by benchmark.
        mathematics, others: averages over all benchmarks of the kind; None where one is missing.
        notes: what is left out of the row.
    """

    label: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    cells: dict[str, Cell]
    mathematics: Cell | None = None
    others: Cell | None = None
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Board:
    """Headings in the order of the columns: mathematics first; models first among the rows."""

    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]

    def of(self, *, mathematics: bool) -> list[Heading]:
        """The headings of one kind."""
        return [one for one in self.headings if one.mathematics == mathematics]

    def best(self, column: str) -> float | None:
        """The largest mean of a benchmark, or of "mathematics" or "others", measured alike."""
        cells = [cell_of(row, column) for row in self.rows]
        return max((cell.mean for cell in cells if cell and not cell.differs), default=None)


def cell_of(row: Row, column: str) -> Cell | None:
    """The cell of a benchmark, or of the average "mathematics" or "others"."""
    averages = {"mathematics": row.mathematics, "others": row.others}
    return averages[column] if column in averages else row.cells.get(column)


@dataclass(frozen=True, slots=True)
class _Policy:
    """One run, or one model, and its results by benchmark, newest first."""

    run: Run | None
    label: str
    key: str
    step: int | None
    results: Mapping[str, Sequence[tuple[Measure, float]]]
    notes: tuple[str, ...] = ()


def board(benches: Sequence[str] = (), words: Sequence[str] = ()) -> Board:
    """The leaderboard of everything that was evaluated whole.

    Args:
        benches: benchmarks and groups; all that were evaluated where none are named.
        words: only runs (id, start of an id, name, name without its seed, tag, @group) and models
            that one of them names; the models that such runs start from stay.

    Raises:
        NotFoundError: a word names nothing that was evaluated.
        UsageError: there is no such benchmark.
    """
    registry = Registry(runs_dir())
    wanted = [one.name for one in spec.find(benches)] if benches else None
    whole = [
        one
        for one in registry.evaluations(kept=True)
        if one.limit is None and (wanted is None or one.bench in wanted)
    ]
    runs = {run.id: run for run in registry.list()}
    policies = _chosen(_policies(whole, runs, registry.runs_dir), words)
    names = wanted or sorted({bench for policy in policies for bench in policy.results})
    headings = [_heading(name, policies) for name in names]
    headings.sort(key=lambda one: not one.mathematics)
    return Board(tuple(headings), tuple(_sorted(_rows(policies, headings), headings)))


# From results to policies


def _policies(
    evaluations: Iterable[Evaluation], runs: Mapping[str, Run], base: Path
) -> list[_Policy]:
    found = dict[tuple[str, str], list[Evaluation]]()
    for one in evaluations:
        if one.run is None or one.run in runs:  # a run that was removed is not shown
            found.setdefault((one.run or "", one.run or one.digest), []).append(one)
    return [
        _run_of(runs[key], its, base) if key else _model_of(its, base)
        for (key, _), its in found.items()
    ]


def _run_of(run: Run, evaluations: Sequence[Evaluation], base: Path) -> _Policy:
    """A run by its newest checkpoint that was evaluated; what only older ones have is told."""
    step = max(one.step or 0 for one in evaluations)
    newest = [one for one in evaluations if (one.step or 0) == step]
    older = {one.bench: one.step for one in reversed(evaluations)}
    notes = tuple(
        f"{run.name}: {bench} was evaluated at step {at}, not at step {step}"
        for bench, at in sorted(older.items())
        if bench not in {one.bench for one in newest}
    )
    return _Policy(run, run.name, _group(run), step, _results(newest, base), notes)


def _model_of(evaluations: Sequence[Evaluation], base: Path) -> _Policy:
    label = evaluations[0].label
    return _Policy(None, label, evaluations[0].digest, None, _results(evaluations, base))


def _results(
    evaluations: Sequence[Evaluation], base: Path
) -> dict[str, list[tuple[Measure, float]]]:
    found = dict[str, list[tuple[Measure, float]]]()
    for one in evaluations:
        found.setdefault(one.bench, []).append((_measure(one, base), one.value))
    return found


def _measure(one: Evaluation, base: Path) -> Measure:
    """Read from the result's file: the registry's digest of the settings holds the policy too."""
    try:
        settings = folder.read_json(base / one.path)["settings"]
        told = {key: settings[key] for key in settings if key not in POLICYS_OWN}
    except (OSError, ValueError, KeyError):  # gone, or broken: like nothing else
        told = {"settings": one.settings}
    return Measure(one.n, one.verifier, json.dumps(told, sort_keys=True))


def _group(run: Run) -> str:
    """What runs of one row have in common: the name without its seed, and the recipe likewise."""
    try:
        recipe = tomllib.loads((run.folder / folder.RESOLVED).read_text(encoding="utf-8"))
        parent = folder.read_json(run.folder / folder.RUN).get("parent") or {}
    except (OSError, ValueError):
        return run.id
    recipe.get("train", {}).pop("seed", None)
    return json.dumps([_stem(run.name), recipe, parent.get("step")], sort_keys=True, default=str)


def _stem(name: str) -> str:
    return re.sub(r"-s\d+$", "", name)


def _chosen(policies: Sequence[_Policy], words: Sequence[str]) -> list[_Policy]:
    if not words:
        return [*policies]
    for word in words:
        if not any(_is_named(policy, word) for policy in policies):
            raise NotFoundError(
                f"nothing that {word} names was evaluated on the whole of these benchmarks",
                hint="tpcli runs lists runs; tpcli eval RUN --bench aime,gpqa evaluates one",
            )
    kept = [p for p in policies if any(_is_named(p, word) for word in words)]
    started = {p.run.model for p in kept if p.run}
    return [p for p in policies if p in kept or (p.run is None and p.label in started)]


def _is_named(policy: _Policy, word: str) -> bool:
    run = policy.run
    if run is None:
        return policy.label == word
    if word.startswith("@"):
        return word[1:] in (_stem(run.name), *run.tags)
    return run.id.startswith(word) or word in (run.name, _stem(run.name), *run.tags)


# From policies to rows


def _heading(name: str, policies: Sequence[_Policy]) -> Heading:
    counts = Counter(
        measure
        for policy in policies
        for measure in dict.fromkeys(m for m, _ in policy.results.get(name, ()))
    )
    common = max(counts, key=lambda measure: (counts[measure], measure.n), default=None)
    try:
        bench = spec.find([name])[0]
        kind, short = str(bench.spec.kind), spec.short(bench)
    except TpcliError:  # a file of the user's own that is not here
        kind, short = common.verifier if common else "", name
    return Heading(name, short, kind in MATHEMATICS, kind == GENERAL, common)


def _rows(policies: Sequence[_Policy], headings: Sequence[Heading]) -> list[Row]:
    groups = dict[tuple[bool, str], list[_Policy]]()
    for policy in policies:
        groups.setdefault((policy.run is None, policy.key), []).append(policy)
    rows = {key: _row(_a_seed_each(group), headings) for (_, key), group in groups.items()}
    twice = Counter(row.label for row in rows.values())
    for key, row in rows.items():
        if twice[row.label] > 1:
            row.label += f" ({row.runs[0] if row.runs else key[:7]})"
    return [*rows.values()]


def _a_seed_each(group: Sequence[_Policy]) -> list[_Policy]:
    """Of several runs with one seed the newest finished one: a repeated run is no further seed."""
    rivals = [(one.run.status == "finished", one.run.created, one) for one in group if one.run]
    if not rivals:
        return [*group]
    by_seed = {one.run.seed: one for _, _, one in sorted(rivals, key=lambda x: x[:2]) if one.run}
    return [by_seed[seed] for seed in sorted(by_seed)]


def _row(group: Sequence[_Policy], headings: Sequence[Heading]) -> Row:
    runs = [policy.run for policy in group if policy.run]
    notes = [note for policy in group for note in policy.notes]
    row = Row(
        label=group[0].label if len(group) == 1 else _stem(group[0].label),
        runs=tuple(run.id for run in runs),
        seeds=tuple(run.seed for run in runs),
        steps=tuple(sorted({p.step for p in group if p.step is not None})),
        cells={},
        notes=notes,
    )
    values = {one.bench: _alike(group, one, row) for one in headings}
    for heading in headings:
        measure, by_seed = values[heading.bench]
        if measure is not None:
            differs = _differs(measure, heading)
            row.cells[heading.bench] = _cell([*by_seed.values()], differs)
    row.mathematics = _average(row, values, [h for h in headings if h.mathematics])
    row.others = _average(row, values, [h for h in headings if not h.mathematics])
    return row


def _alike(
    group: Sequence[_Policy], heading: Heading, row: Row
) -> tuple[Measure | None, dict[int, float]]:
    """The values of a row on a benchmark by place in the group, all measured in one way."""
    results = [policy.results.get(heading.bench, ()) for policy in group]
    counts = Counter(measure for its in results for measure in dict.fromkeys(m for m, _ in its))
    if not counts:
        return None, {}
    common = heading.common
    chosen = common if common in counts else max(counts, key=lambda one: (counts[one], one.n))
    values = dict[int, float]()
    for place, its in enumerate(results):
        fitting = [value for measure, value in its if measure == chosen]
        if fitting:
            values[place] = fitting[0]  # the newest
        elif its:
            row.notes.append(
                f"{group[place].label}: {heading.bench} was measured otherwise than the other "
                "seeds, and is left out"
            )
    return chosen, values


def _cell(values: Sequence[float], differs: Sequence[str]) -> Cell:
    spread = stdev(values) if len(values) > 1 else None
    return Cell(fmean(values), spread, len(values), tuple(differs))


def _differs(measure: Measure, heading: Heading) -> list[str]:
    if heading.common is None or measure == heading.common:
        return []
    ours, common = measure.facts(), heading.common.facts()
    keys = [*common, *(key for key in ours if key not in common)]
    return [
        f"{key} {_told(ours.get(key))} instead of {_told(common.get(key))}"
        for key in keys
        if ours.get(key) != common.get(key)
    ]


def _told(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"


def _average(
    row: Row,
    values: Mapping[str, tuple[Measure | None, Mapping[int, float]]],
    headings: Sequence[Heading],
) -> Cell | None:
    """Over benchmarks, seed by seed; None where a benchmark is missing in all of them."""
    if not headings:
        return None
    maps = [values[one.bench][1] for one in headings]
    whole = sorted(set.intersection(*({*one} for one in maps)))
    if not whole:
        return None
    differs = dict.fromkeys(d for one in headings for d in row.cells[one.bench].differs)
    return _cell([fmean(one[place] for one in maps) for place in whole], [*differs])


def _sorted(rows: Sequence[Row], headings: Sequence[Heading]) -> list[Row]:
    first = "mathematics" if any(one.mathematics for one in headings) else "others"

    def rank(row: Row) -> tuple[bool, bool, float, str]:
        cell = cell_of(row, first)
        return bool(row.runs), cell is None, -cell.mean if cell else 0.0, row.label

    return sorted(rows, key=rank)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found = dict[str, Any]()
    for key, one in value.items():
        found |= _flat(one, f"{prefix}{key}.") if isinstance(one, dict) else {f"{prefix}{key}": one}
    return found
