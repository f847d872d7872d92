"""Arms of a comparison, each a set of runs over seeds, and the numbers that are taken from a run.

Pure: ``tpcli.jobs.compare`` reads the folders. A metric is named by its key in metrics.jsonl, by a
short name for it ("reward", see ``SHORT``), or as a benchmark that the run was evaluated on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from tpcli.analysis.canvas import number, points

AlignName = Literal["step", "magnitude", "tokens"]
SHORT = {
    "reward": "reward/mean",
    "sampled": "eval/sampled",
    "greedy": "eval/greedy",
    "entropy": "entropy/all",
    "kl": "kl/all",
    "length": "length/mean",
    "truncated": "length/truncated",
    "credit": "credit/share",
}
"""Short names of the metrics that are asked for most."""
TAIL = 0.1
"""Last share of the steps that a value "at the end" is the mean of."""


@dataclass(frozen=True, slots=True)
class Score:
    """One run on one benchmark: accuracy with its interval over questions.

    Attributes:
        settings: digest of how it was asked and sampled; only equal ones compare.
        se: None where the questions show no spread.
    """

    bench: str
    step: int
    settings: str
    n: int
    value: float
    se: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Trace:
    """A run as comparisons see it.

    Attributes:
        steps: that the recipe asks for.
        settings: the resolved recipe, flat.
        origin: what else it comes from, flat: code, git, packages, device, threads, data.
        metrics: the lines of metrics.jsonl, in order of step; step 0 is before training.
        scores: on benchmarks, of the newest checkpoint that was evaluated whole.
    """

    id: str
    name: str
    seed: int
    status: str
    steps: int
    folder: Path
    settings: Mapping[str, Any]
    origin: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Score] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arm:
    """Runs that are one condition, a run a seed."""

    label: str
    runs: tuple[Trace, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of its runs, in their order."""
        return tuple(run.seed for run in self.runs)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run has cost up to its last step.

    Attributes:
        generated: tokens of the responses that it learned from.
        credited: of these, tokens that carried credit.
        seconds: of its steps, evaluation included, preparation not.
    """

    generated: float
    credited: float
    seconds: float


def key_of(metric: str) -> str:
    """The key in metrics.jsonl that a name stands for."""
    return SHORT.get(metric, metric)


def at_end(run: Trace, metric: str) -> float | None:
    """The mean of what was recorded in the last tenth of the steps, the last value at least.

    A metric of every step is so freed of some noise; of a rare one, an evaluation, it is the
    last value. Of a benchmark, its accuracy. None where nothing was recorded.
    """
    if metric in run.scores:
        return run.scores[metric].value
    steps, values = points(run.metrics, key_of(metric))
    if not values:
        return None
    first = steps[-1] - TAIL * max(steps[-1], 1)
    tail = [value for step, value in zip(steps, values, strict=True) if step > first]
    return sum(tail or values[-1:]) / len(tail or values[-1:])


def at_step(run: Trace, metric: str, step: int) -> float | None:
    """The last value that was recorded at ``step`` or before; None where there is none."""
    steps, values = points(run.metrics, key_of(metric))
    known = [value for at, value in zip(steps, values, strict=True) if at <= step]
    return known[-1] if known else None


def best(run: Trace, metric: str) -> tuple[float, int] | None:
    """The largest value and its step: of several noisy values, more than one would get again."""
    steps, values = points(run.metrics, key_of(metric))
    pairs = zip(values, steps, strict=True)
    return max(pairs, key=lambda pair: (pair[0], -pair[1]), default=None)


def budget(run: Trace) -> Budget:
    """What the run has cost; what was not recorded counts as nothing."""
    lines = [line for line in run.metrics if line["step"] >= 1]
    credited = [number(line.get("credit/tokens")) or 0.0 for line in lines]
    generated = [number(line.get("length/tokens")) or _whole(line) for line in lines]
    seconds = [number(line.get("time/step")) or 0.0 for line in lines]
    return Budget(sum(generated), sum(credited), sum(seconds))


def _whole(line: Mapping[str, Any]) -> float:
    """Tokens of a step that did not record them, from those with credit and their share."""
    credited, share = number(line.get("credit/tokens")), number(line.get("credit/share"))
    return credited / share if credited and share else 0.0


def course(run: Trace, metric: str, align: AlignName) -> tuple[list[float], list[float]]:
    """A metric along training, as x and y of a curve.

    Args:
        align: x is the step, the magnitude of the schedule at it (which falls), or the tokens
            that have carried credit up to it.

    Returns:
        Points in order of step, without those at which x or y was not recorded.
    """
    credited = [number(line.get("credit/tokens")) or 0.0 for line in run.metrics]
    total = dict(zip((line["step"] for line in run.metrics), accumulate(credited), strict=True))
    magnitude = dict(zip(*points(run.metrics, "schedule/magnitude"), strict=True))
    places: Mapping[int, float] = {"magnitude": magnitude, "tokens": total}.get(align, {})
    steps, values = points(run.metrics, key_of(metric))
    pairs = [
        (float(step) if align == "step" else places[step], value)
        for step, value in zip(steps, values, strict=True)
        if align == "step" or step in places
    ]
    return [x for x, _ in pairs], [y for _, y in pairs]
