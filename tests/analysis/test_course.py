"""What schedules will do, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from tpcli.analysis import course
from tpcli.recipe.load import load_recipe
from tpcli.recipe.schema import Recipe

RECIPE = """\
[model]
source = "m"
[data]
source = "running_sum"
[rollout]
max_new_tokens = 1000
[train]
steps = 10
"""
ADAPTIVE = 'credit.schedule={curve="adaptive",target=0.5,initial=1.0,max_change=0.1,end=1.0}'


def recipe(tmp_path: Path, *overrides: str) -> Recipe:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    return load_recipe(path, overrides=overrides).recipe


def test_the_paper_s_ramp(tmp_path: Path) -> None:
    """.99 (1 - t / 8) up to step 8 of 10; int(1000 m) of 1000 tokens are context."""
    made = recipe(tmp_path)
    (found,) = course.courses(made)
    assert (found.key, found.name, found.window) == ("credit.schedule", "magnitude", (0, 8))
    assert found.allocations == ("trajectory_percentile",)
    assert found.low == found.high
    assert found.low == pytest.approx([0.99 * max(1 - t / 8, 0) for t in range(1, 11)])
    shares = course.credited(made)
    assert shares[0] == (0.134, 0.134)  # int(866.25) = 866
    assert shares[3] == (0.505, 0.505)
    assert shares[7:] == [(1.0, 1.0)] * 3


def test_every_number_that_moves_is_there_and_a_static_magnitude_too(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        'credit.allocation=["trajectory_percentile", "forking_tokens"]',
        "credit.forking_tokens.magnitude=0.8",
        "loss.clip_high={initial=0.28,final=0.2,end=1.0}",
    )
    found = {its.name: its for its in course.courses(made)}
    assert list(found) == ["magnitude", "forking_tokens", "clip_high"]
    assert found["forking_tokens"].low == (0.8,) * 10
    assert found["forking_tokens"].window is None
    assert found["clip_high"].allocations == ()
    assert found["clip_high"].low[-1] == pytest.approx(0.2)
    # At step 4 a fifth of the last 505 of 1000 tokens.
    assert course.credited(made)[3] == (0.101, 0.101)


def test_uniform_credit_has_no_course(tmp_path: Path) -> None:
    made = recipe(tmp_path, 'credit.allocation="uniform"')
    assert course.courses(made) == []
    assert course.credited(made) == [(1.0, 1.0)] * 10
    assert course.placed(made) is None


def test_the_share_is_of_the_longest_response(tmp_path: Path) -> None:
    """int(8 * .86625) = 6 of 8 tokens are context at step 1; of 1000 it is 86.6%."""
    made = recipe(tmp_path, "rollout.max_new_tokens=8")
    assert course.credited(made)[0] == (0.25, 0.25)


def test_the_learning_rate_has_a_course_where_it_moves(tmp_path: Path) -> None:
    """A rise over 2 steps; the fall of 8 more is at p = 1/8 at step 3."""
    assert [its.key for its in course.courses(recipe(tmp_path))] == ["credit.schedule"]
    falls = recipe(tmp_path, "optim.lr=8.0", 'optim.schedule="linear"', "optim.warmup_steps=2")
    lr = course.courses(falls)[-1]
    assert (lr.key, lr.name, lr.allocations) == ("optim.lr", "lr", ())
    assert lr.low == lr.high == pytest.approx([4, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    assert (lr.window, lr.rise, lr.corners, lr.moves) == ((2, 10), 2, (2, 10), True)


def test_a_rise_alone_is_a_move_and_of_one_step_is_none(tmp_path: Path) -> None:
    lr = course.courses(recipe(tmp_path, "optim.lr=4.0", "optim.warmup_steps=4"))[-1]
    assert lr.low == (1, 2, 3, *[4] * 7)
    assert (lr.window, lr.rise, lr.corners, lr.moves) == (None, 4, (4,), True)
    assert len(course.courses(recipe(tmp_path, "optim.warmup_steps=1"))) == 1


def test_a_table_of_learning_rates_rises_too(tmp_path: Path) -> None:
    """10 - t, at step 1 a quarter of 9."""
    table = "optim.lr={initial=10.0,final=1.0,end=0.9}"
    lr = course.courses(recipe(tmp_path, table, "optim.warmup_steps=4"))[-1]
    assert lr.low == pytest.approx([9 / 4, 8 / 2, 7 * 3 / 4, 6, 5, 4, 3, 2, 1, 1])
    assert (lr.window, lr.rise, lr.corners) == ((0, 9), 4, (4, 9))


def test_an_adaptive_magnitude_has_bounds(tmp_path: Path) -> None:
    """Steps 1 to t - 1 have moved it by .1 each at most; nothing moves before the window."""
    made = recipe(tmp_path, ADAPTIVE)
    (found,) = course.courses(made)
    assert found.follows == "entropy, to hold 0.5 nats"
    assert found.high == (1.0,) * 10
    assert found.low == pytest.approx([1 - 0.1 * t for t in range(10)])
    assert course.credited(made)[5] == (0.001, 0.5)
    later = recipe(tmp_path, ADAPTIVE, "credit.schedule.start=0.3", "credit.schedule.end=0.6")
    (found,) = course.courses(later)
    # After steps 3, 4 and 5.
    assert found.low == pytest.approx([1, 1, 1, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.7])


@pytest.mark.parametrize(
    ("focus", "stretch"), [('"late"', (49, 100)), ('"early"', (0, 51)), ("[0.25,0.25]", (12, 63))]
)
def test_the_heat_map_has_the_stretch_that_learns(
    tmp_path: Path, focus: str, stretch: tuple[int, int]
) -> None:
    """m = .495 at step 4: int(100 m a) percentiles in front and int(100 m (1 - b)) behind."""
    grid = course.placed(recipe(tmp_path, f"credit.trajectory_percentile.focus={focus}"))
    assert grid is not None
    assert len(grid) == 10
    assert grid[3] == [1.0 if stretch[0] <= q < stretch[1] else 0.0 for q in range(100)]
    assert grid[9] == [1.0] * 100


def test_random_tokens_are_a_share_of_every_percentile(tmp_path: Path) -> None:
    made = recipe(
        tmp_path,
        'credit.allocation=["trajectory_percentile", "random_tokens"]',
        "credit.random_tokens.magnitude=0.75",
    )
    grid = course.placed(made)
    assert grid is not None
    assert grid[3] == [0.0] * 49 + [0.25] * 51


def test_forking_tokens_have_no_place_until_they_are_shuffled(tmp_path: Path) -> None:
    assert course.placed(recipe(tmp_path, 'credit.allocation="forking_tokens"')) is None
    shuffled = recipe(tmp_path, 'credit.allocation=["forking_tokens", "shuffled"]')
    grid = course.placed(shuffled)
    assert grid is not None
    # ceil(1000 * (1 - .495))
    assert grid[3] == [0.505] * 100
    assert course.placed(recipe(tmp_path, ADAPTIVE)) is None


def test_the_heat_map_agrees_with_the_share(tmp_path: Path) -> None:
    """To a percentile: of 100 tokens, and of 1000."""
    for overrides in (
        ["credit.trajectory_percentile.focus='middle'"],
        ["credit.schedule.curve='cosine'", "credit.schedule.reverse=true"],
        ["credit.allocation='random_tokens'"],
    ):
        made = recipe(tmp_path, *overrides)
        grid = course.placed(made)
        assert grid is not None
        assert [sum(column) / 100 for column in grid] == pytest.approx(
            [share for share, _ in course.credited(made)], abs=0.02
        )


def test_the_figure_s_panels(tmp_path: Path) -> None:
    made = recipe(tmp_path, "loss.kl_coef={initial=0.0,final=0.01}")
    axes = course.figure(made, title="t").axes
    assert [axis.get_title() for axis in axes] == [
        "Which part of a response carries credit (blue)",
        "Magnitude (0: every token alike)",
        "loss.kl_coef",
    ]
    values = axes[0].images[0].get_array()
    assert values is not None
    # Row q, column t: the lowest row is the first percentile.
    assert values.shape == (100, 10)
    np.testing.assert_array_equal(values[:, 3], [0.0] * 49 + [1.0] * 51)
    curve, closes = axes[1].lines
    np.testing.assert_allclose(np.asarray(curve.get_ydata(), float)[3], 0.495)
    assert list(np.asarray(closes.get_xdata())) == [8, 8]  # step 0 is left of the axis


def test_the_figure_of_a_given_solution_has_one_panel(tmp_path: Path) -> None:
    """At 0 nothing is given, and every token learns all along."""
    made = recipe(tmp_path, 'credit.allocation="expert_prefix"')
    (panel,) = course.figure(made, title="t").axes
    assert panel.get_title() == "Share of the solution given"
    mixed = recipe(tmp_path, 'credit.allocation=["expert_prefix", "forking_tokens"]')
    assert course.figure(mixed, title="t").axes[1].get_title() == "Magnitude"


def test_the_figure_of_bounds_is_a_band(tmp_path: Path) -> None:
    axes = course.figure(recipe(tmp_path, ADAPTIVE), title="t").axes
    assert axes[0].get_title() == "Tokens that carry credit"
    assert len(axes[0].collections) == 1
    label = axes[1].collections[0].get_label()
    assert label == "trajectory_percentile (follows entropy, to hold 0.5 nats)"


@pytest.mark.parametrize(("suffix", "begins"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_same_recipe_draws_the_same_bytes(tmp_path: Path, suffix: str, begins: bytes) -> None:
    made, before = recipe(tmp_path), dict(mpl.rcParams)
    paths = [tmp_path / "new" / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        course.draw(made, path, title="t")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(begins)
    assert sorted(paths[0].parent.iterdir()) == paths  # nothing aside is left
    assert dict(mpl.rcParams) == before
