"""Figures of arms: what is drawn is what was measured."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from tests.cli import smooth

from tpcli.analysis import arm_figures, bars, looks
from tpcli.analysis.arms import Arm, Score, Trace
from tpcli.analysis.plates import kl_at

STEPS = 20


def trace(
    seed: int, lift: float = 0.0, *, folder: Path = Path("nowhere"), last: int = STEPS, **more: Any
) -> Trace:
    """A smooth run whose numbers, those by percentile too, lie ``lift`` higher."""
    metrics = [smooth.line(step, STEPS, eval_every=5) for step in range(last + 1)]
    for line in metrics:
        for key, value in line.items():
            if key.startswith(("entropy/", "kl/", "eval/", "reward/")):
                line[key] = [v + lift for v in value] if isinstance(value, list) else value + lift
        line["credit/tokens"] = 100.0
    return Trace(
        id=f"run{seed}",
        name=f"run-s{seed}",
        seed=seed,
        status="finished",
        steps=STEPS,
        folder=folder,
        settings={},
        origin={},
        metrics=metrics,
        **more,
    )


def pair() -> list[Arm]:
    """Of two seeds, .1 apart, and of one seed."""
    return [Arm("off", (trace(0, 0.0), trace(1, 0.1))), Arm("linear", (trace(0, 0.3),))]


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def panel(figure: Figure, title: str) -> Axes:
    return next(axis for axis in figure.axes if axis.get_title() == title)


def ys(line: Line2D) -> list[float]:
    values: list[float] = np.asarray(line.get_ydata(), float).tolist()
    return values


def xs(line: Line2D) -> list[float]:
    values: list[float] = np.asarray(line.get_xdata(), float).tolist()
    return values


def boxes(axis: Axes) -> list[Rectangle]:
    """The bars, in the order in which they were drawn."""
    return [patch for patch in axis.patches if isinstance(patch, Rectangle)]


def whiskers(axis: Axes) -> list[list[float]]:
    """Both ends of each error bar."""
    lines = [found for found in axis.collections if isinstance(found, LineCollection)]
    return [np.asarray(line.get_segments()[0])[:, 1].tolist() for line in lines]


def score(value: float, low: float, high: float, settings: str = "a") -> Score:
    return Score("aime24", STEPS, settings, 30, value, 0.05, low, high)


def with_scores(*values: float) -> tuple[Trace, ...]:
    return tuple(
        trace(seed, scores={"aime24": score(value, value - 0.1, value + 0.2)})
        for seed, value in enumerate(values)
    )


def test_a_line_is_the_mean_and_its_band_the_deviation() -> None:
    """Two seeds .1 apart: mean .05 above the first, sd .1 / sqrt 2. One seed: its values."""
    axis = panel(drawn(arm_figures.entropy_by_stage(pair())), "last 10%")
    base = [smooth.line(step, STEPS)["entropy/last"] for step in range(1, STEPS + 1)]
    off, linear = axis.lines
    assert xs(off) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(ys(off), np.array(base) + 0.05)
    np.testing.assert_allclose(ys(linear), np.array(base) + 0.3)
    (shade,) = axis.collections  # a single run has none
    first = [y for x, y in np.asarray(shade.get_paths()[0].vertices).tolist() if x == 1]
    middle, sd = base[0] + 0.05, 0.1 / 2**0.5
    np.testing.assert_allclose([min(first), max(first)], [middle - sd, middle + sd])


def test_entropy_has_a_panel_a_stage() -> None:
    figure = drawn(arm_figures.entropy_by_stage(pair()))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["first 10%", "45–55%", "last 10%", "whole response"]
    assert all(len(axis.lines) == 2 for axis in figure.axes)


@pytest.mark.parametrize("draw", [arm_figures.entropy_by_stage, None])
def test_a_falling_magnitude_runs_from_left_to_right(draw: Any) -> None:
    """Also where panels share their axis; steps do not run backwards."""
    maker = draw or (lambda arms, align: arm_figures.curves(arms, ["entropy", "reward"], align))
    for axis in drawn(maker(pair(), "magnitude")).axes:
        assert axis.xaxis.get_inverted()
        assert min(xs(axis.lines[0])) == 0.0
    assert not any(axis.xaxis.get_inverted() for axis in drawn(maker(pair(), "step")).axes)


def test_curves_along_tokens() -> None:
    """100 tokens a step, the line of step 0 too: step 1 is at 200."""
    figure = drawn(arm_figures.curves(pair(), ["reward"], "tokens"))
    assert xs(panel(figure, "reward").lines[0])[:2] == [200.0, 300.0]


def test_curves_leave_out_what_was_not_recorded() -> None:
    figure = drawn(arm_figures.curves(pair(), ["reward", "aime24", "greedy"]))
    shown = [axis.get_title() for axis in figure.axes if axis.axison]
    assert shown == ["reward", "greedy"]
    assert arm_figures.curves(pair(), ["aime24"]) is None


def test_kl_is_cut_at_shares_of_training() -> None:
    """30% and 80% of 20 steps are 6 and 16; the middles of 20 bins are 2.5, 7.5, ..."""
    figure = drawn(arm_figures.kl_along(pair()))
    assert [axis.get_title() for axis in figure.axes] == [
        "at 30% of training",
        "at 80% of training",
    ]
    off, linear = panel(figure, "at 80% of training").lines
    base = np.array(smooth.line(16, STEPS)["kl/percentile"])
    assert xs(off)[:2] == [2.5, 7.5]
    np.testing.assert_allclose(ys(off), base + 0.05)
    np.testing.assert_allclose(ys(linear), base + 0.3)


def test_kl_of_a_run_under_way_is_not_shown_for_later() -> None:
    """At step 8 of 20 the nearest to 80% would be 40%."""
    young = Arm("young", (trace(0, last=8),))
    assert kl_at(young, 0.8).x == []
    assert len(kl_at(young, 0.3).x) == 20
    figure = drawn(arm_figures.kl_along([young]))
    assert ys(panel(figure, "at 80% of training").lines[0]) == []
    assert arm_figures.kl_along([Arm("a", (trace(0, last=1),))]) is None


def test_a_bin_counts_the_runs_that_have_it() -> None:
    one, two = trace(0), trace(1, 0.1)
    row = next(line for line in one.metrics if line["step"] == 6)
    low = row["kl/percentile"][1]
    row["kl/percentile"][0] = None
    found = kl_at(Arm("a", (one, two)), 0.3)
    other = next(line for line in two.metrics if line["step"] == 6)["kl/percentile"]
    np.testing.assert_allclose(found.mean[:2], [other[0], (low + other[1]) / 2])
    assert found.low[0] == found.high[0] == found.mean[0]


def test_accuracy_over_steps() -> None:
    """Evaluated every fifth step, before training too."""
    figure = drawn(arm_figures.accuracy(pair()))
    assert [axis.get_title() for axis in figure.axes] == ["Held out, sampled", "Held out, greedy"]
    off, linear = figure.axes[0].lines
    assert xs(off) == [0, 5, 10, 15, 20]
    np.testing.assert_allclose([ys(off)[0], ys(off)[-1]], [0.28, 0.66])
    np.testing.assert_allclose([ys(linear)[0], ys(linear)[-1]], [0.53, 0.91])


def test_bars_are_means_with_intervals() -> None:
    """Seeds .3 and .4: mean .35, t interval .35 ± 12.706 * .05, cut at 0; one seed: its own."""
    arms = [Arm("off", with_scores(0.3, 0.4)), Arm("linear", with_scores(0.5))]
    axis = panel(drawn(arm_figures.accuracy(arms)), "Benchmarks, with 95% intervals")
    heights = np.array([bar.get_height() for bar in boxes(axis)])
    np.testing.assert_allclose(heights, [0.35, 0.5])
    np.testing.assert_allclose(whiskers(axis), [[0.0, 0.985310], [0.4, 0.7]], atol=1e-5)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["aime24"]


def test_scores_that_were_asked_in_different_ways_are_no_bars() -> None:
    other = trace(0, scores={"aime24": score(0.5, 0.4, 0.6, settings="b")})
    arms = [Arm("off", with_scores(0.3)), Arm("linear", (other,))]
    assert bars.scored(arms) == []
    assert len(drawn(arm_figures.accuracy(arms)).axes) == 2


def test_an_arm_without_a_score_has_no_bar() -> None:
    arms = [Arm("off", (trace(0),)), Arm("linear", with_scores(0.5))]
    axis = panel(drawn(arm_figures.accuracy(arms)), "Benchmarks, with 95% intervals")
    (bar,) = boxes(axis)
    assert bar.get_x() + bar.get_width() / 2 > 0  # on the right, where the second arm's is


def say(folder: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines) + tail
    (folder / "responses.jsonl").write_text(text, encoding="utf-8")
    return folder


def line_of(step: int, *words: str) -> dict[str, Any]:
    tokens = [word if i == 0 else f" {word}" for i, word in enumerate(words)]
    return {"step": step, "tokens": tokens, "response": " ".join(words)}


def test_frequent_words_are_those_of_the_last_fifth(tmp_path: Path) -> None:
    """After step 16 of 20; a line without tokens, and one still being written, are left out."""
    lines = [line_of(16, "early", "no"), line_of(17, "so", "it", "ends")]
    lines += [line_of(20, "now", "it", "ends"), {"step": 20, "response": "old"}]
    arms = [Arm("off", (trace(0, folder=say(tmp_path / "a", lines, '{"step": 20, "tok')),))]
    figure = drawn(arm_figures.frequent_tokens(arms))
    assert [axis.get_title() for axis in figure.axes] == ["first 10%", "45–55%", "last 10%"]
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["now", "so"]
    assert [bar.get_width() for bar in boxes(first)] == [500, 500]
    assert first.yaxis.get_inverted()  # the first on top
    assert [bar.get_width() for bar in boxes(figure.axes[2])] == [1000]
    everything = drawn(arm_figures.frequent_tokens(arms, since=0))
    assert len(boxes(everything.axes[0])) == 3


def test_words_are_no_formulas_and_blanks_are_seen(tmp_path: Path) -> None:
    """``$a$`` is drawn with its dollars; a letter that the font lacks by its number."""
    lines = [line_of(20, "$a$", "b"), line_of(20, "你", "b")]
    arms = [Arm("off", (trace(0, folder=say(tmp_path, lines)),))]
    figure = drawn(arm_figures.frequent_tokens(arms))
    shown = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert shown == {r"\$a\$", r"\u4f60"}


def test_without_measurements_there_is_no_figure() -> None:
    bare = [Arm("off", (Trace("a", "a", 0, "queued", 5, Path("no"), {}, {}, []),))]
    assert arm_figures.entropy_by_stage(bare) is None
    assert arm_figures.kl_along(bare) is None
    assert arm_figures.accuracy(bare) is None
    assert arm_figures.frequent_tokens(bare) is None
    assert arm_figures.composite(bare, metrics=["reward"]) is None


def test_composite_holds_every_panel_and_one_legend() -> None:
    figure = drawn(arm_figures.composite(pair(), metrics=["reward", "entropy"]))
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["reward", "entropy", "Held out, sampled", "Held out, greedy"]
    assert titles[-2:] == ["at 30% of training", "at 80% of training"]
    assert len(titles) == 10
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["off, n = 2", "linear"]


def test_the_legend_shows_names_as_they_are() -> None:
    """An underscore in front would hide an entry, and $ would begin a formula."""
    arms = [Arm("_a$b$", (trace(0),)), Arm("x" * 50, (trace(1),))]
    figure = drawn(arm_figures.accuracy(arms))
    figure.savefig("/dev/null", format="png")
    texts = figure.legends[0].get_texts()
    assert [text.get_text() for text in texts] == ["_a$b$", f"{'x' * 19}…{'x' * 19}"]


def test_long_names_that_become_equal_are_numbered() -> None:
    long = [f"{'a' * 20}{middle}{'z' * 20}" for middle in ("1", "2")]
    assert looks.shortened([*long, "short"]) == [
        f"{'a' * 19}…{'z' * 19} (1)",
        f"{'a' * 19}…{'z' * 19} (2)",
        "short",
    ]


def test_arms_differ_in_colour_and_style_together() -> None:
    """Twelve pairs; of the first four, each differs in both; bars differ past the six colours."""
    pairs = [(looks.colour(i), looks.style(i)) for i in range(12)]
    assert len(set(pairs)) == 12
    assert len({style for _, style in pairs[:4]}) == len({colour for colour, _ in pairs[:4]}) == 4
    assert len({(looks.colour(i), looks.hatch(i)) for i in range(12)}) == 12


def test_a_legend_of_many_arms_has_even_rows() -> None:
    """Eight short names fit five in a row: four and four."""
    arms = [Arm(f"math-linear-{i}", (trace(0),)) for i in range(8)]
    assert looks.legend_height(arms, 11.0) == pytest.approx(0.15 + 2 * looks.ROW)


def test_drawing_changes_nothing_global() -> None:
    before = dict(mpl.rcParams)
    drawn(arm_figures.composite(pair(), metrics=["reward"])).savefig("/dev/null", format="png")
    assert dict(mpl.rcParams) == before
