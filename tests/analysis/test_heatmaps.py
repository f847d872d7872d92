"""Maps of percentile x step and the cuts through them, from lines of metrics."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tests.cli import smooth

from tpcli.analysis import heatmaps
from tpcli.analysis.heatmaps import HeatMap, Quantity

TITLES = [
    "Entropy",
    "Entropy by stage of the trajectory",
    "KL to the initial policy",
    "KL to the initial policy along the trajectory",
    "Tokens that carry credit",
    "Credit mass",
    "Tokens with a clipped gradient",
    "Schedule and credit",
]


def lines(last: int = 6) -> list[dict[str, Any]]:
    """A run that measures everything: mass even over the last 10 bins, 2% clipped in the last."""
    found = smooth.lines(last, last)
    for line in found[1:]:
        line["mass/percentile"] = [0.0] * 10 + [0.1] * 10
        line["clip/percentile"] = [0.0] * 19 + [0.02]
    return found


def without(metrics: list[dict[str, Any]], *prefixes: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.startswith(prefixes)} for line in metrics]


def map_of(rows: dict[int, list[float | None]], top: float | None = None) -> HeatMap:
    return HeatMap(Quantity("x", "X", "nats", "viridis", top), rows)


def drawn(metrics: list[dict[str, Any]], **options: Any) -> Figure:
    figure = heatmaps.percentiles(metrics, **options)
    assert figure is not None
    return figure


def titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def test_a_map_holds_the_lists_of_the_metrics() -> None:
    """Step 0, the evaluation before training, has none; a step without the list has no row."""
    metrics = lines()
    del metrics[4]["kl/percentile"]
    kl = next(m for m in heatmaps.read(metrics).maps if m.quantity.key == "kl/percentile")
    assert list(kl.rows) == [1, 2, 3, 5, 6]
    assert kl.rows[3] == metrics[3]["kl/percentile"]
    assert kl.columns()[3] == [None] * 20
    assert kl.columns()[4] == metrics[5]["kl/percentile"]


def test_values_that_are_no_numbers_are_missing() -> None:
    metrics = lines(2)
    metrics[1]["kl/percentile"] = [None] * 20
    metrics[2]["kl/percentile"][:3] = [math.nan, None, math.inf]
    kl = next(m for m in heatmaps.read(metrics).maps if m.quantity.key == "kl/percentile")
    assert list(kl.rows) == [2]
    assert kl.rows[2][:3] == [None, None, None]
    assert kl.rows[2][3] == metrics[2]["kl/percentile"][3]


def test_runs_recorded_before_say_what_they_lack() -> None:
    found = heatmaps.read(smooth.lines(6, 6))
    assert found.missing == ["mass/percentile", "clip/percentile"]
    assert heatmaps.read(lines()).missing == []
    nothing = heatmaps.read([])
    assert (nothing.maps, nothing.kl, nothing.entropy) == ([], [], {})
    assert len(nothing.missing) == 5


def test_the_scale_ends_at_the_largest_value_or_where_the_quantity_says() -> None:
    """A map of zeros still has a scale."""
    assert map_of({1: [0.5, None], 2: [2.0, 1.0]}).top == 2.0
    assert map_of({1: [0.0, 0.0]}).top == 1.0
    capped = map_of({1: [0.5, None]}, top=0.25)
    assert (capped.top, capped.beyond) == (0.25, True)
    assert not map_of({1: [0.25]}, top=0.25).beyond
    assert not map_of({1: [0.5]}).beyond


def test_kl_is_cut_at_the_nearest_recorded_step() -> None:
    """Of 10 steps, 0.3 is step 3; 0.8 is step 8, which is not there: 7 and 9 are as near."""
    one = map_of({step: [float(step)] for step in (1, 2, 3, 4, 7, 9, 10)})
    cuts = heatmaps.profiles(one, (0.8, 0.3), steps=10)
    assert [(c.step, c.progress, c.values) for c in cuts] == [(3, 0.3, [3.0]), (7, 0.7, [7.0])]


def test_a_run_under_way_is_cut_where_it_is_and_says_so() -> None:
    """At step 4 of 10 the cut at 0.8 is step 4, at progress 0.4; two cuts at one step are one."""
    one = map_of({step: [0.0] for step in range(1, 5)})
    cuts = heatmaps.profiles(one, (0.3, 0.8, 0.9), steps=10)
    assert [(cut.step, cut.progress) for cut in cuts] == [(3, 0.3), (4, 0.4)]
    assert [cut.step for cut in heatmaps.profiles(one, (0.5, 1.0))] == [2, 4]


@given(
    recorded=st.sets(st.integers(1, 60), min_size=1),
    share=st.floats(0, 1),
    steps=st.integers(1, 60),
)
def test_no_recorded_step_is_nearer(recorded: set[int], share: float, steps: int) -> None:
    one = map_of({step: [0.0] for step in recorded})
    (cut,) = heatmaps.profiles(one, (share,), steps=steps)
    assert cut.step in recorded
    assert all(abs(cut.step - share * steps) <= abs(s - share * steps) for s in recorded)


def test_entropy_by_stage_is_that_of_the_metrics() -> None:
    metrics = lines()
    assert heatmaps.read(metrics).entropy == {
        stage: {line["step"]: line[f"entropy/{stage}"] for line in metrics[1:]}
        for stage in ("all", "first", "middle", "last")
    }


def test_the_image_is_percentile_by_step() -> None:
    """Row q, column t is bin q of step t; a null bin and a step without the list are masked."""
    metrics = lines()
    metrics[2]["entropy/percentile"][3] = None
    del metrics[4]["entropy/percentile"]
    (image,) = drawn(metrics).axes[0].images
    values = image.get_array()
    assert values is not None
    assert values.shape == (20, 6)
    np.testing.assert_allclose(values[:, 0], metrics[1]["entropy/percentile"])
    masked = np.ma.getmaskarray(values)
    assert masked[3, 1]
    assert masked[:, 3].all()
    assert masked.sum() == 21
    assert list(image.get_extent()) == [0.5, 6.5, 0, 100]
    assert image.origin == "lower"


def test_every_quantity_has_a_panel() -> None:
    figure = drawn(lines())
    assert titles(figure) == TITLES
    units = [axis.get_ylabel() for axis in figure.axes if axis.get_title() == ""]
    assert units == ["nats", "nats", "share", "share of the step", "share"]


def test_panels_are_left_out_with_what_was_not_measured() -> None:
    assert titles(drawn(without(lines(), "kl/", "mass/", "clip/"))) == [
        "Entropy",
        "Entropy by stage of the trajectory",
        "Tokens that carry credit",
        "Schedule and credit",
    ]
    nothing = without(lines(), *(q.key for q in heatmaps.QUANTITIES))
    assert heatmaps.percentiles(nothing) is None


def test_cuts_are_lines_over_the_middles_of_the_bins() -> None:
    metrics = lines(10)
    metrics[3]["kl/percentile"][1] = None
    axis = next(a for a in drawn(metrics).axes if a.get_title() == TITLES[3])
    first, second = axis.lines
    assert [first.get_label(), second.get_label()] == [
        "step 3, 30% of training",
        "step 8, 80% of training",
    ]
    assert list(np.asarray(second.get_xdata()))[:3] == [2.5, 7.5, 12.5]
    assert list(np.asarray(first.get_xdata()))[:2] == [2.5, 12.5]
    np.testing.assert_allclose(np.asarray(second.get_ydata()), metrics[8]["kl/percentile"])


@pytest.mark.parametrize("steps", [None, 40])
def test_progress_is_of_the_whole_run(steps: int | None) -> None:
    """20 recorded steps: all of the run, or half of its 40."""
    axis = next(
        a for a in drawn(lines(20), at=(1.0,), steps=steps).axes if "along" in a.get_title()
    )
    share = 100 if steps is None else 50
    assert axis.lines[0].get_label() == f"step 20, {share}% of training"
