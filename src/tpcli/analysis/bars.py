"""Bars of arms: accuracy on benchmarks with intervals, and the frequent words of responses."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tpcli.analysis.arms import Arm, Score, Trace
from tpcli.analysis.compare import incomparable
from tpcli.analysis.looks import colour, frame, hatch, readable
from tpcli.analysis.words import Frequencies, Tally, tally
from tpcli.registry.folder import RESPONSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVEL = 0.95
HEADS = {"first": "first 10%", "middle": "45–55%", "last": "last 10%"}
VISIBLE = {"\n": "⏎", "\t": "⇥", " ": "␣"}


def scored(arms: Sequence[Arm]) -> list[str]:
    """Benchmarks that some run has a score on, all of them asked and sampled in one way."""
    found = dict.fromkeys(bench for arm in arms for run in arm.runs for bench in run.scores)
    return [bench for bench in found if incomparable(arms, bench) is None]


def interval(scores: Sequence[Score]) -> tuple[float, float, float]:
    """Mean over seeds with the ends of its 95% interval, inside [0, 1].

    Of several seeds a t interval over them; of one, its own interval over questions.
    """
    if len(scores) == 1:
        return scores[0].value, scores[0].low, scores[0].high
    from scipy import stats

    values = [score.value for score in scores]
    mean = statistics.fmean(values)
    t = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1))
    half = t * statistics.stdev(values) / math.sqrt(len(values))
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)


def benchmarks(axis: Axes, arms: Sequence[Arm], benches: Sequence[str]) -> None:
    """A group of bars a benchmark, a bar an arm that has a score, error bars of 95%."""
    width = 0.8 / len(arms)
    for i, arm in enumerate(arms):
        shift = (i - (len(arms) - 1) / 2) * width
        for place, bench in enumerate(benches):
            scores = [run.scores[bench] for run in arm.runs if bench in run.scores]
            if not scores:
                continue
            mean, low, high = interval(scores)
            axis.bar(
                place + shift,
                mean,
                0.9 * width,
                color=colour(i),
                hatch=hatch(i),
                edgecolor="white",
                yerr=[[mean - low], [high - mean]],
                error_kw={"lw": 1.2, "capsize": min(3.0, 12 * width), "ecolor": "#222222"},
            )
    axis.set_xticks(range(len(benches)), [_plain(bench) for bench in benches])
    axis.set_xlim(-0.6, len(benches) - 0.4)
    axis.set_ylim(0, 1)
    axis.set_ylabel("accuracy")
    axis.set_title("Benchmarks, with 95% intervals")
    frame(axis)
    axis.grid(visible=False, axis="x")


def words(axis: Axes, one: Frequencies, unit: str, rows: int) -> None:
    """Horizontal bars of one stage, a bar an arm; room for ``rows`` words, the first on top."""
    thick = 0.8 / len(one.rates)
    for i, rates in enumerate(one.rates):
        places = [w - 0.4 + (i + 0.5) * thick for w in range(len(rates))]
        axis.barh(places, rates, 0.9 * thick, color=colour(i), hatch=hatch(i), edgecolor="white")
    axis.set_yticks(range(len(one.words)), [_plain(word) for word in one.words])
    axis.set_ylim(rows - 0.4, -0.6)
    axis.set_xlabel(f"per 1,000 {unit} of the stage")
    axis.set_title(HEADS[one.stage])
    frame(axis)
    axis.grid(visible=False, axis="y")


def tallies(arms: Sequence[Arm], since: float) -> list[Tally]:
    """Word counts, one an arm, over its runs' responses after the share ``since`` of their steps.

    Files are read line by line. A last line that is still being written, and lines of older
    versions without tokens, are left out.
    """
    return [tally(pair for run in arm.runs for pair in _responses(run, since)) for arm in arms]


def _responses(run: Trace, since: float) -> Iterator[tuple[list[str], str]]:
    path = run.folder / RESPONSES
    if not path.exists():
        return
    after = since * (run.metrics[-1]["step"] if run.metrics else 0)
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            value = json.loads(line)
            if value["step"] > after and {"tokens", "response"} <= value.keys():
                yield value["tokens"], value["response"]


def _plain(text: str, longest: int = 20) -> str:
    """As it is to be read: blanks visible, cut to fit, and $ begins no formula."""
    shown = "".join(VISIBLE.get(char, char) for char in text)
    shown = shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
    return readable(shown).replace("$", r"\$")
