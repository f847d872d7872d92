"""What the screens know of a run, and the figures they work out from it. No drawing here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tpcli.analysis.schedules import adaptive, scalar_at, window

if TYPE_CHECKING:
    from tpcli.names import AllocationName, SignalName
    from tpcli.recipe.schema import Recipe

PHASES = ("rollout", "reward", "score", "update", "sync", "eval", "checkpoint", "other")
SETUP = ("weights", "data", "warmup", "eval")
RECENT = 10
"""Steps that "recent" stands for: phase shares, seconds a step, trends."""


@dataclass(frozen=True, slots=True)
class RunView:
    """One look at a run: its files as read, and what only the supervisor knows.

    Attributes:
        run: run.json.
        recipe: the resolved recipe.
        folder: the run folder, as a user would type it.
        started: when this launch began, unix seconds.
        now: when the files were read, unix seconds.
        state: state.json; ``status`` decides between a running and an ended screen.
        progress: progress.json; empty until the worker writes it.
        metrics: the lines of metrics.jsonl, in order.
        checkpoint: step of the newest checkpoint.
        warnings: one line each, such as a mirror that cannot be reached.
        stopping: a first Ctrl-C was seen.
    """

    run: Mapping[str, Any]
    recipe: Recipe
    folder: str
    started: float
    now: float
    state: Mapping[str, Any] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    checkpoint: int | None = None
    warnings: tuple[str, ...] = ()
    stopping: bool = False

    @property
    def status(self) -> str:
        """Of state.json; "running" before there is one."""
        return str(self.state.get("status") or "running")

    @property
    def ended(self) -> bool:
        """Nothing more will happen."""
        return self.status not in ("created", "running")

    @property
    def phase(self) -> str:
        """What the worker is doing; "" before it says so."""
        return str(self.progress.get("phase") or "")

    @property
    def preparing(self) -> bool:
        """Before step 1, or before the first step after a resume."""
        at_zero = not self.progress.get("step")
        return self.phase in ("", "weights", "data", "warmup") or (self.phase == "eval" and at_zero)

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.recipe.train.steps

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def elapsed(self) -> float:
        """Seconds since the launch, up to the end."""
        return max(0.0, float(self.state.get("finished") or self.now) - self.started)

    @property
    def phase_share(self) -> float | None:
        """How much of the current phase is done; None where its size is unknown."""
        total = float(self.progress.get("total") or 0.0)
        done = float(self.progress.get("done") or 0.0)
        return min(done / total, 1.0) if total > 0 else None


def finite(value: object) -> float | None:
    """A number that can be drawn, or None."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def trained(view: RunView) -> list[Mapping[str, Any]]:
    """The lines of real steps: step 0 holds only the evaluation before training."""
    return [line for line in view.metrics if line["step"] >= 1]


def series(view: RunView, key: str) -> list[float | None]:
    """A metric over the steps, None where a step lacks it."""
    return [finite(line.get(key)) for line in trained(view)]


def latest(view: RunView, key: str) -> float | None:
    """A metric's newest value."""
    return next((v for v in reversed(series(view, key)) if v is not None), None)


def peak(view: RunView, key: str) -> float | None:
    """A metric's greatest value."""
    return max(
        (v for line in view.metrics if (v := finite(line.get(key))) is not None), default=None
    )


def trend(values: Sequence[float | None]) -> tuple[str, float] | None:
    """Arrow and change of mean between the newest steps and as many before them.

    "Newest" is a tenth of all steps, ten at least while there are twenty. A change below a
    twentieth of the whole range is no trend ("→"). None with less than two values.
    """
    known = [v for v in values if v is not None]
    size = min(max(RECENT, len(known) // 10), len(known) // 2)
    if not size:
        return None
    change = sum(known[-size:]) / size - sum(known[-2 * size : -size]) / size
    if abs(change) <= 0.05 * (max(known) - min(known)):
        return "→", change
    return ("↑" if change > 0 else "↓"), change


def ends(values: Sequence[float | None], most: int = 5) -> tuple[float, float, int] | None:
    """Mean of the first and of the last few values, and how many those are: one step is noisy."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    size = max(1, min(most, len(known) // 2))
    return sum(known[:size]) / size, sum(known[-size:]) / size, size


def held_out(view: RunView, key: str) -> tuple[float, float, int] | None:
    """Held-out accuracy at the first and at the latest evaluation, and that one's step."""
    found = [
        (v, int(line["step"])) for line in view.metrics if (v := finite(line.get(key))) is not None
    ]
    return (found[0][0], *found[-1]) if found else None


def seconds_a_step(view: RunView, last: int | None = RECENT) -> float | None:
    """Mean over the ``last`` steps (None: all), evaluations and checkpoints left out."""
    plain = [
        whole
        - (finite(line.get("time/eval")) or 0.0)
        - (finite(line.get("time/checkpoint")) or 0.0)
        for line in _last(view, last)
        if (whole := finite(line.get("time/step"))) is not None
    ]
    return sum(plain) / len(plain) if plain else None


def _last(view: RunView, count: int | None) -> list[Mapping[str, Any]]:
    return trained(view)[-count:] if count else trained(view)


def phase_shares(view: RunView, last: int | None = RECENT) -> dict[str, float]:
    """Share of the time by phase over the ``last`` steps (None: all), in the order of the flow."""
    lines = _last(view, last)
    spent = {p: sum(finite(line.get(f"time/{p}")) or 0.0 for line in lines) for p in PHASES}
    total = sum(spent.values())
    return {p: s / total for p, s in spent.items() if s > 0} if total else {}


def eta(view: RunView) -> float | None:
    """Seconds to the end: the steps left, and the evaluations and checkpoints among them.

    Counted from the newest line of metrics, so it runs down within a step. One-off phases
    (weights, data, warm-up) play no part.
    """
    pace = seconds_a_step(view)
    if pace is None:
        return None
    recipe, done, total = view.recipe, view.step, view.steps
    left = (total - done) * pace
    if recipe.eval.questions:
        left += _moments(done, total, recipe.eval.every) * _mean_time(view, "time/eval")
    left += _moments(done, total, recipe.train.save_every) * _mean_time(view, "time/checkpoint")
    since = view.now - (finite(view.metrics[-1].get("time")) or view.now)
    return max(0.0, left - max(0.0, since))


def _moments(done: int, total: int, every: int) -> int:
    """Steps after ``done`` with something that is due every ``every`` steps and at the end."""
    return total // every - done // every + (1 if total % every and done < total else 0)


def _mean_time(view: RunView, key: str) -> float:
    known = [v for line in view.metrics if (v := finite(line.get(key))) is not None and v > 0]
    return sum(known[-3:]) / len(known[-3:]) if known else 0.0


def coming(view: RunView) -> int:
    """The step that is next; of an ended run its last."""
    return min(view.step + (0 if view.ended else 1), view.recipe.horizon)


def magnitudes(view: RunView) -> dict[AllocationName, float]:
    """Each allocation's magnitude at the coming step."""
    followed = view.recipe.credit.magnitudes()
    return {name: scalar_now(view, followed[name], logged_as(view, name)) for name in followed}


def lead(view: RunView) -> tuple[AllocationName, str] | None:
    """The first allocation whose magnitude moves, else the first, and the key that it follows."""
    followed = view.recipe.credit.magnitudes()
    moves = [(name, key) for name, key in followed.items() if window(view.recipe, key)]
    return next(iter([*moves, *followed.items()]), None)


def logged_as(view: RunView, name: AllocationName) -> str:
    """The metric, under "schedule/", of an allocation's magnitude: the first one's is "the" one."""
    return "magnitude" if name == next(iter(view.recipe.credit.magnitudes())) else name


def scalar_now(view: RunView, key: str, metric: str = "") -> float:
    """A scalar at the coming step; of one that follows a measurement, where that last put it.

    Args:
        key: dotted, one of ``recipe.scalars()``.
        metric: its name under "schedule/", if that is not the last part of ``key``.
    """
    measured = latest(view, f"schedule/{metric or key.rpartition('.')[2]}")
    if adaptive(view.recipe, key) is None:
        return scalar_at(view.recipe, key, coming(view))
    return scalar_at(view.recipe, key, 0) if measured is None else measured


def followed_signal(view: RunView, signal: SignalName) -> float | None:
    """The newest value of what an adaptive schedule follows."""
    if signal == "entropy":
        return latest(view, "entropy/all")
    drawn = latest(view, "sampling/accuracy")
    return latest(view, "verdict/correct") if drawn is None else drawn


def unjudged(view: RunView) -> dict[str, float]:
    """Shares of all responses so far that no verifier judged: over the deadline, or crashed."""
    found = {}
    for status in ("timeout", "crash"):
        shares = [v for v in series(view, f"verdict/{status}") if v is not None]
        if any(shares):
            found[status] = sum(shares) / len(shares)
    return found
