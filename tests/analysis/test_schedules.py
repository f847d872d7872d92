"""Schedules worked out ahead of training, and the plain count of tokens against the tensors'."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tpcli.analysis import schedules
from tpcli.credit import allocation
from tpcli.names import AllocationName, LrScheduleName
from tpcli.optim import adamw
from tpcli.recipe.schema import Recipe

SMALL = {"model": {"source": "m"}, "data": {"source": "running_sum"}}


def recipe(steps: int = 20, **tables: Any) -> Recipe:
    return Recipe.model_validate({**SMALL, "train": {"steps": steps}, **tables})


def test_scalar_at_is_the_schedule_or_the_number() -> None:
    """Window 0 to 16 of 20 steps: halfway at step 8."""
    warm = recipe(rollout={"temperature": {"initial": 1.0, "final": 0.6}})
    assert schedules.scalar_at(warm, "rollout.temperature", 8) == pytest.approx(0.8)
    assert schedules.scalar_at(warm, "credit.schedule", 8) == 0.495
    assert schedules.scalar_at(warm, "loss.clip_low", 8) == 0.2


def test_the_horizon_is_what_schedules_stretch_over() -> None:
    far = recipe(train={"steps": 20, "horizon": 40})
    assert schedules.window(far, "credit.schedule") == (0, 32)
    assert schedules.scalar_at(far, "credit.schedule", 16) == 0.495


def test_an_adaptive_value_is_that_of_its_share() -> None:
    """It starts at ``initial``, share 1, and has no course of its own."""
    follows = recipe(
        credit={"schedule": {"curve": "adaptive", "target": 0.3, "initial": 0.9, "final": 0.1}}
    )
    assert schedules.scalar_at(follows, "credit.schedule", 20) == 0.9
    assert schedules.scalar_at(follows, "credit.schedule", 1, share=0.5) == pytest.approx(0.5)
    rule = schedules.adaptive(follows, "credit.schedule")
    assert rule is not None
    assert rule.target == 0.3
    assert schedules.adaptive(recipe(), "credit.schedule") is None
    assert schedules.adaptive(recipe(), "loss.clip_low") is None


def test_what_stands_still_has_no_window() -> None:
    still = recipe(credit={"schedule": {"curve": "constant"}}, loss={"clip_low": 0.1})
    assert schedules.window(still, "credit.schedule") is None
    assert schedules.window(still, "loss.clip_low") is None
    assert schedules.window(recipe(), "credit.schedule") == (0, 16)


def test_moving_leaves_magnitudes_out() -> None:
    both = recipe(rollout={"temperature": {"initial": 1.0, "final": 0.6}})
    assert schedules.moving(both) == ["rollout.temperature"]
    assert schedules.moving(recipe()) == []


def test_leading_is_the_first_allocations_magnitude() -> None:
    own = {"allocation": ["forking_tokens", "random_tokens"], "forking_tokens": {"magnitude": 0.8}}
    assert schedules.leading(recipe(credit=own)) == "credit.forking_tokens.magnitude"
    assert schedules.leading(recipe()) == "credit.schedule"
    assert schedules.leading(recipe(credit={"allocation": "uniform"})) is None


def test_curve_of_a_number_is_constant() -> None:
    assert schedules.curve(recipe(), "credit.schedule") == "linear"
    assert schedules.curve(recipe(), "loss.clip_low") == "constant"


def test_magnitudes_at_a_step() -> None:
    credit = {
        "allocation": ["trajectory_percentile", "forking_tokens", "shuffled"],
        "forking_tokens": {"magnitude": 0.8},
    }
    assert schedules.magnitudes_at(recipe(credit=credit), 8) == {
        "trajectory_percentile": 0.495,
        "forking_tokens": 0.8,
    }


def test_foci_are_those_of_the_credit_functions() -> None:
    assert schedules.FOCI == allocation.FOCI
    early = recipe(credit={"trajectory_percentile": {"focus": "early"}})
    assert schedules.focus(early) == (0.0, 0.0)
    stretch = recipe(credit={"trajectory_percentile": {"focus": [0.2, 0.4]}})
    assert schedules.focus(stretch) == (0.2, 0.4)


@pytest.mark.parametrize(
    ("length", "magnitude", "focus", "stretch"),
    [
        (100, 0.29, (1.0, 1.0), (28, 100)),
        (100, 0.29, (0.0, 0.0), (0, 72)),
        (100, 0.5, (0.5, 0.5), (25, 75)),
        (100, 0.5, (0.2, 0.4), (10, 70)),
        (1, 1.0, (1.0, 1.0), (0, 1)),
        (4, 1.0, (1.0, 1.0), (3, 4)),
        (4, 1.0, (0.0, 0.0), (0, 1)),
        (4, 1.0, (0.5, 0.5), (2, 3)),
        (100, 0.0, (0.5, 0.5), (0, 100)),
    ],
)
def test_credited_stretch(
    length: int, magnitude: float, focus: tuple[float, float], stretch: tuple[int, int]
) -> None:
    """int(100 * .29) is 28 in double precision; one token always has credit."""
    assert schedules.credited_stretch(length, magnitude, focus) == stretch


@pytest.mark.parametrize(("magnitude", "tokens"), [(0.8, 20), (0.81, 19), (1.0, 1), (0.0, 100)])
def test_tokens_credited_by_entropy(magnitude: float, tokens: int) -> None:
    """The top 20% at .8, ceil(L (1 - m)) in general, never none."""
    forking = recipe(credit={"allocation": "forking_tokens"})
    assert schedules.tokens_credited(forking, {"forking_tokens": magnitude}, 100) == tokens


def test_allocations_that_weigh_credit_every_token() -> None:
    for name in ("uniform", "entropy_advantage", "low_probability", "expert_prefix"):
        every = recipe(credit={"allocation": name})
        magnitudes = schedules.magnitudes_at(every, 1)
        assert schedules.tokens_credited(every, magnitudes, 1000) == 1000


def test_tokens_credited_over_training() -> None:
    """m = .99 before the window of 2 to 16, .495 at step 9, 0 after it."""
    ramp = recipe(credit={"schedule": {"start": 0.1}})
    counts = [
        schedules.tokens_credited(ramp, schedules.magnitudes_at(ramp, step), 1000)
        for step in (0, 2, 9, 16, 20)
    ]
    assert counts == [10, 10, 505, 1000, 1000]


def test_the_learning_rate_rises_and_then_falls() -> None:
    """Half after one of two steps; then 1 - p with p = 1/4, 2/4, ... of the four that are left."""
    falls = recipe(steps=6, optim={"lr": 4.0, "schedule": "linear", "warmup_steps": 2})
    assert [schedules.lr_at(falls, t) for t in range(7)] == [0, 2, 4, 3, 2, 1, 0]
    assert schedules.lr_window(falls) == (2, 6)
    flat = recipe(steps=6, optim={"lr": 4.0})
    assert [schedules.lr_at(flat, t) for t in (0, 1, 6)] == [4, 4, 4]
    assert schedules.lr_window(flat) is None


def test_the_rise_applies_to_a_learning_rate_that_is_a_schedule_too() -> None:
    """4 - t, at step 1 half of it."""
    own = {"initial": 4.0, "final": 1.0, "end": 1.0}
    table = recipe(steps=3, optim={"lr": own, "warmup_steps": 2})
    assert [schedules.lr_at(table, t) for t in (1, 2, 3)] == pytest.approx([1.5, 2, 1])
    assert schedules.lr_window(table) == (0, 3)


@given(
    step=st.integers(1, 60),
    horizon=st.integers(2, 50),
    part=st.floats(0, 0.99),
    form=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_the_learning_rate_is_the_optimiser_s(
    step: int, horizon: int, part: float, form: LrScheduleName
) -> None:
    rise = int(part * horizon)
    optim = {"lr": 3e-4, "schedule": form, "warmup_steps": rise}
    own = recipe(steps=horizon, optim=optim, credit={"schedule": 0.5})
    expected = adamw.lr_at(step, horizon, peak=3e-4, warmup_steps=rise, schedule=form)
    assert schedules.lr_at(own, step) == pytest.approx(expected, rel=1e-12, abs=1e-20)


def test_corners_are_where_a_course_turns() -> None:
    """Points at p = .25 of 4 to 16 is step 7, p = .3 is 7.6; two stairs drop at p = .5 and 1."""

    def of(**written: Any) -> list[int]:
        made = recipe(credit={"schedule": {"start": 0.2, "end": 0.8, **written}})
        return schedules.corners(made, "credit.schedule")

    assert of() == [4, 16]
    points = [[0.0, 0.9], [0.25, 0.5], [0.3, 0.4], [1.0, 0.0]]
    assert of(curve="piecewise", points=points) == [4, 7, 8, 16]
    assert of(curve="piecewise", points=points, reverse=True) == [4, 13, 16]
    assert of(curve="stairs", stairs=2) == [4, 10, 16]
    # Backwards the value leaves a level after the step of its drop.
    assert of(curve="stairs", stairs=2, reverse=True) == [4, 5, 11, 16]
    assert schedules.corners(recipe(), "loss.clip_low") == []


COUNTED: list[list[AllocationName]] = [
    ["trajectory_percentile"],
    ["forking_tokens"],
    ["random_tokens"],
    ["trajectory_percentile", "forking_tokens"],
    ["forking_tokens", "trajectory_percentile", "shuffled"],
    ["random_tokens", "forking_tokens", "low_probability"],
]


@example(names=["trajectory_percentile"], length=100, sizes=[0.29, 0, 0], focus=(1.0, 1.0))
@given(
    names=st.sampled_from(COUNTED),
    length=st.integers(1, 120),
    sizes=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    focus=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda ab: (min(ab), max(ab))),
)
def test_the_plain_count_is_the_tensors_count(
    names: list[AllocationName], length: int, sizes: list[float], focus: tuple[float, float]
) -> None:
    chosen = recipe(credit={"allocation": names, "trajectory_percentile": {"focus": list(focus)}})
    magnitudes = dict(zip(names, sizes, strict=False))
    mask_BT = torch.ones(1, length, dtype=torch.bool)
    weight_BT, _ = allocation.allocate(
        names,
        magnitudes=magnitudes,
        mask_BT=mask_BT,
        advantage_B=torch.ones(1),
        entropy_BT=torch.rand(1, length),
        logprob_BT=-torch.rand(1, length),
        focus=focus,
        seeds=[0],
    )
    counted = schedules.tokens_credited(chosen, magnitudes, length)
    assert counted == int((weight_BT != 0).sum())


def test_no_torch_is_loaded() -> None:
    code = "import sys, tpcli.analysis.schedules; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
