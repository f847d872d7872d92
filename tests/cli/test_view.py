import dataclasses

import pytest
from tests.cli import smooth

from tpcli.cli import view as facts


def test_eta_counts_steps_and_evaluations() -> None:
    """Done 12 of 20, evaluated every 5: 8 steps of 18.5 s and the evaluations after 15 and 20."""
    recipe = smooth.recipe(20, eval={"every": 5})
    metrics = [smooth.line(step, 20, eval_every=5) for step in range(13)]
    view = smooth.view(12, 20, recipe=recipe, metrics=metrics, now=metrics[-1]["time"])
    assert facts.eta(view) == pytest.approx(8 * smooth.STEP_SECONDS + 2 * smooth.EVAL_SECONDS)
    later = dataclasses.replace(view, now=view.now + 10)
    assert facts.eta(later) == pytest.approx(8 * smooth.STEP_SECONDS + 2 * smooth.EVAL_SECONDS - 10)


def test_eta_ignores_what_happens_once() -> None:
    """Ten minutes of downloads before step 1 do not stretch the estimate."""
    quick, slow = smooth.view(412), smooth.view(412, started=smooth.STARTED - 600)
    assert facts.eta(quick) == facts.eta(slow)
    assert slow.elapsed == quick.elapsed + 600


def test_eta_at_the_edges() -> None:
    assert facts.eta(smooth.view(0)) is None
    assert facts.eta(smooth.view(20, 20)) == 0.0


def test_eta_without_evaluation() -> None:
    """questions = 0: nothing is added for evaluations, whatever the lines say."""
    view = smooth.view(10, 20, recipe=smooth.recipe(20, eval={"questions": 0}))
    view = dataclasses.replace(view, now=view.metrics[-1]["time"])
    assert facts.eta(view) == pytest.approx(10 * smooth.STEP_SECONDS)


def test_seconds_a_step_leaves_evaluation_out() -> None:
    """Step 450 took 60 s longer for its evaluation."""
    assert facts.seconds_a_step(smooth.view(450)) == pytest.approx(smooth.STEP_SECONDS)


def test_phase_shares() -> None:
    """Of 18.5 s: 11.3 rollout, .1 reward, 6.5 update, .6 other; unused phases are left out."""
    shares = facts.phase_shares(smooth.view(20))
    assert list(shares) == ["rollout", "reward", "update", "other"]
    assert shares["rollout"] == pytest.approx(11.3 / 18.5)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert facts.phase_shares(smooth.view(0)) == {}


@pytest.mark.parametrize(
    ("values", "arrow", "change"),
    [
        ([1.0, 2.0], "↑", 1.0),
        ([4.0, 4.0, 1.0, 1.0], "↓", -3.0),
        ([0.0, 10.0, 5.0, 5.1, 5.0, 5.1], "→", 0.0666),
        ([1.0, None, 3.0], "↑", 2.0),
    ],
)
def test_trend(values: list[float | None], arrow: str, change: float) -> None:
    found = facts.trend(values)
    assert found is not None
    assert found[0] == arrow
    assert found[1] == pytest.approx(change, abs=1e-3)


def test_trend_of_a_long_run() -> None:
    """A tenth of 1000 steps: a slope of .001 a step moves the mean by .1."""
    found = facts.trend([0.001 * step for step in range(1000)])
    assert found is not None
    assert found[0] == "↑"
    assert found[1] == pytest.approx(0.1)


def test_trend_needs_two_values() -> None:
    assert facts.trend([1.0, None]) is None


def test_ends() -> None:
    """Means of the first and last five, of fewer where the halves would overlap."""
    assert facts.ends([float(i) for i in range(20)]) == (2.0, 17.0, 5)
    assert facts.ends([1.0, 2.0, 6.0]) == (1.0, 6.0, 1)
    assert facts.ends([None]) is None


def test_held_out_is_first_to_latest() -> None:
    view = smooth.view(12, 20)
    assert facts.held_out(view, "eval/sampled") == (0.23, 0.23, 0)
    first, last, step = facts.held_out(smooth.view(412), "eval/sampled") or (0, 0, 0)
    assert (first, step) == (0.23, 400)
    assert last == pytest.approx(0.23 + 0.38 * 0.4)


def test_nan_and_null_are_missing() -> None:
    metrics = [smooth.line(1) | {"reward/mean": float("nan"), "entropy/all": None}]
    view = smooth.view(1, metrics=metrics)
    assert facts.series(view, "reward/mean") == [None]
    assert facts.latest(view, "entropy/all") is None


@pytest.mark.parametrize(
    ("phase", "step", "preparing"),
    [("weights", 0, True), ("eval", 0, True), ("eval", 50, False), ("warmup", 25, True)],
)
def test_preparing(phase: str, step: int, preparing: bool) -> None:
    assert smooth.view(progress=smooth.progress(phase, step)).preparing is preparing


def test_elapsed_stops_at_the_end() -> None:
    view = smooth.view(state={"status": "finished", "finished": smooth.STARTED + 7})
    assert (view.elapsed, view.ended) == (7.0, True)


ADAPTIVE = {"curve": "adaptive", "target": 0.3}


def test_magnitudes_of_the_coming_step() -> None:
    """By the schedule at step 413: .99 * (800 - 413) / 700."""
    assert facts.magnitudes(smooth.view()) == {
        "trajectory_percentile": pytest.approx(0.99 * 387 / 700)
    }
    ended = smooth.view(412, state={"status": "stopped"})
    assert facts.magnitudes(ended)["trajectory_percentile"] == pytest.approx(0.99 * 388 / 700)
    uniform = smooth.view(recipe=smooth.recipe(credit={"allocation": "uniform"}))
    assert facts.magnitudes(uniform) == {}
    assert facts.lead(uniform) is None


def test_an_adaptive_magnitude_is_the_one_last_measured() -> None:
    """The line of step 412 has it; before there is a line it is ``initial``. 0 is a value."""
    recipe = smooth.recipe(credit={"schedule": ADAPTIVE})
    now = facts.magnitudes(smooth.view(recipe=recipe))["trajectory_percentile"]
    assert now == smooth.line(412)["schedule/magnitude"]
    assert facts.magnitudes(smooth.view(0, recipe=recipe)) == {"trajectory_percentile": 0.99}
    metrics = [smooth.line(1) | {"schedule/magnitude": 0.0}]
    opened = smooth.view(1, recipe=recipe, metrics=metrics)
    assert facts.magnitudes(opened) == {"trajectory_percentile": 0.0}


def test_several_magnitudes_have_their_own_metrics() -> None:
    """The first is schedule/magnitude, the second has its name; the one that moves leads."""
    credit = {
        "allocation": ["forking_tokens", "random_tokens"],
        "forking_tokens": {"magnitude": 0.8},
        "random_tokens": {"magnitude": ADAPTIVE},
    }
    recipe = smooth.recipe(credit=credit, fresh=True)
    metrics = [smooth.line(1) | {"schedule/magnitude": 0.8, "schedule/random_tokens": 0.6}]
    view = smooth.view(1, recipe=recipe, metrics=metrics)
    assert facts.magnitudes(view) == {"forking_tokens": 0.8, "random_tokens": 0.6}
    assert facts.lead(view) == ("random_tokens", "credit.random_tokens.magnitude")
    assert [facts.logged_as(view, name) for name in recipe.credit.magnitudes()] == [
        "magnitude",
        "random_tokens",
    ]


def test_another_adaptive_scalar_is_the_one_last_measured() -> None:
    warm = ADAPTIVE | {"initial": 1.0, "final": 1.3}
    recipe = smooth.recipe(rollout={"temperature": warm})
    metrics = [smooth.line(1) | {"schedule/temperature": 1.1}]
    assert facts.scalar_now(smooth.view(1, recipe=recipe, metrics=metrics), KEY) == 1.1
    assert facts.scalar_now(smooth.view(0, recipe=recipe), KEY) == 1.0


KEY = "rollout.temperature"


def test_what_an_adaptive_schedule_follows() -> None:
    """Accuracy is that of all responses drawn, where more than the step's own were."""
    metrics = [smooth.line(1) | {"entropy/all": 0.7, "verdict/correct": 0.25}]
    view = smooth.view(1, metrics=metrics)
    assert facts.followed_signal(view, "entropy") == 0.7
    assert facts.followed_signal(view, "accuracy") == 0.25
    refilled = smooth.view(1, metrics=[metrics[0] | {"sampling/accuracy": 0.125}])
    assert facts.followed_signal(refilled, "accuracy") == 0.125
