"""Stored responses credited anew, by hand and against the functions that training uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpcli.analysis import replay
from tpcli.analysis.replay import Sample
from tpcli.credit.allocation import allocate
from tpcli.errors import UsageError
from tpcli.names import AllocationName
from tpcli.recipe.load import load_recipe
from tpcli.recipe.schema import Recipe
from tpcli.train.tempo import Rule, Tempo

RECIPE = '[model]\nsource = "m"\n[data]\nsource = "running_sum"\n[train]\nsteps = 10\n'
ADAPTIVE = (
    'credit.schedule={curve="adaptive",target=0.5,end=1.0,smoothing=0.5,gain=0.5,max_change=0.25}'
)


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "r.toml"
    path.write_text(RECIPE)
    return load_recipe(path, overrides=overrides).recipe


def sample(length: int, **changed: Any) -> Sample:
    facts: dict[str, Any] = {
        "step": 1,
        "question": "q",
        "tokens": ("x",) * length,
        "weight": (1.0,) * length,
        "advantage": (0.5,) * length,
        "group_advantage": 0.5,
        "entropy": tuple(float(i % 3) for i in range(length)),
        "old_logprob": (-0.5,) * length,
        "seed": length,
    }
    return Sample(**facts | changed)


def test_one_step_by_hand(tmp_path: Path) -> None:
    """Two responses, 4 and 2 tokens, all credited; then at magnitude .5 the last 2 and the last 1.

    Token-mean over selected: 6 / 3 = 2 times what uniform credit gives.
    """
    uniform = recipe(tmp_path, 'credit.allocation="uniform"')
    half = recipe(tmp_path, "credit.schedule=0.5")
    samples = [sample(4), sample(2)]
    step, examples = replay.compare(samples, uniform, half, {}, {"trajectory_percentile": 0.5})
    assert (step.responses, step.tokens, step.gained, step.lost, step.differ) == (2, 6, 0, 3, 0)
    assert (step.then.credited, step.now.credited) == (6, 3)
    assert step.then.gradient_scale == pytest.approx(1.0)
    assert step.now.gradient_scale == pytest.approx(2.0)
    assert step.now.push == pytest.approx(0.5)
    assert [example.now for example in examples] == [(0, 0, 1, 1), (0, 1)]
    assert [example.changed for example in examples] == [2, 1]


def test_a_response_that_does_not_learn_stays_out(tmp_path: Path) -> None:
    uniform = recipe(tmp_path, 'credit.allocation="uniform"')
    out = sample(2, learns=False, weight=(0.0, 0.0))
    step, examples = replay.compare([sample(4), out], uniform, uniform, {}, {})
    assert (step.gained, step.lost, step.differ) == (0, 0, 0)
    assert examples[1].now == (0, 0)


def test_stored_digits_are_no_difference_and_a_token_is(tmp_path: Path) -> None:
    """exp(-.5) = .606530659...: 1 - .2 + .2 exp(-.5) = .921306, as six digits have it."""
    low = recipe(tmp_path, 'credit.allocation="low_probability"')
    magnitudes: dict[AllocationName, float] = {"low_probability": 0.2}
    for weights, differ in (((0.921306, 0.921306), 0), ((0.921306, 0.9215), 1)):
        step, _ = replay.compare([sample(2, weight=weights)], low, low, magnitudes, magnitudes)
        assert step.differ == differ


@settings(deadline=None)  # the first example imports torch's and the recipe's modules
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    magnitude=st.floats(0, 1),
    names=st.sampled_from(
        [
            ("trajectory_percentile",),
            ("random_tokens", "low_probability"),
            ("trajectory_percentile", "forking_tokens", "shuffled"),
            ("entropy_advantage", "forking_tokens"),
        ]
    ),
)
def test_responses_are_weighed_as_training_weighs_them(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    magnitude: float,
    names: tuple[AllocationName, ...],
) -> None:
    """One response at a time, unpadded, gives the same as a step of them."""
    listed = ", ".join(f'"{name}"' for name in names)
    made = recipe(tmp_path_factory.getbasetemp(), f"credit.allocation=[{listed}]")
    magnitudes = dict.fromkeys(made.credit.magnitudes(), magnitude)
    samples = [sample(length) for length in lengths]
    weight_BT, advantage_BT, mask_BT = replay.weigh(samples, made, magnitudes)
    assert mask_BT.sum(-1).tolist() == lengths
    for b, one in enumerate(samples):
        expected = allocate(
            names,
            magnitudes=magnitudes,
            mask_BT=torch.ones(1, lengths[b], dtype=torch.bool),
            advantage_B=torch.tensor([0.5]),
            entropy_BT=torch.tensor([one.entropy]),
            logprob_BT=torch.tensor([one.old_logprob]),
            seeds=[lengths[b]],
        )
        torch.testing.assert_close(weight_BT[b : b + 1, : lengths[b]], expected[0])
        torch.testing.assert_close(advantage_BT[b : b + 1, : lengths[b]], expected[1])


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        (["loss.denominator='all'"], 1.0),
        # Summed, a token's coefficient is 1 / B: of 2 responses, against 1 / 6.
        (["loss.reduction='seq-mean-token-sum'"], 3.0),
        # And 1 / (C B), where C is the longest response by default.
        (["loss.reduction='seq-mean-token-sum-norm'", "rollout.max_new_tokens=30"], 0.1),
        # 2 of the step's 4 * 8 responses have 1/16 of its constant: 1 / 5 against 1 / 6.
        (
            [
                "loss.denominator='constant'",
                "loss.constant=80.0",
                "rollout.prompts=4",
                "rollout.group_size=8",
            ],
            1.2,
        ),
    ],
)
def test_the_gradient_scale_of_other_reductions(
    tmp_path: Path, sets: list[str], expected: float
) -> None:
    """Responses of 4 and 2 tokens, half of each credited."""
    weight_BT = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    mask_BT = torch.tensor([[True] * 4, [True, True, False, False]])
    made = recipe(tmp_path, *sets)
    assert replay.scale(weight_BT, mask_BT, made) == pytest.approx(expected)


def measured(*entropies: float) -> list[dict[str, Any]]:
    return [{"step": t, "entropy/all": value} for t, value in enumerate(entropies, start=1)]


def test_an_adaptive_schedule_follows_what_was_measured(tmp_path: Path) -> None:
    """Gain .5 of a relative error of 1, at most .25: averages 1, .75 and .625 of target .5.

    Errors 1, .5 and .25 move the share by .25 (bounded), .25 and .125.
    """
    made = recipe(tmp_path, ADAPTIVE, "credit.schedule.initial=1.0")
    found = replay.other_magnitudes(made, measured(1.0, 0.5, 0.5, 0.5), [1, 2, 3, 4])
    values = [found[step]["trajectory_percentile"] for step in (1, 2, 3, 4)]
    assert values == pytest.approx([1.0, 0.75, 0.5, 0.375])


@settings(deadline=None)  # the first example imports torch's and the recipe's modules
@given(
    entropies=st.lists(st.floats(0, 2), min_size=10, max_size=10),
    window=st.sampled_from([(0.0, 1.0), (0.2, 0.7)]),
)
def test_a_replayed_tempo_is_that_of_training(
    tmp_path_factory: pytest.TempPathFactory, entropies: list[float], window: tuple[float, float]
) -> None:
    start, end = window
    ends = [f"credit.schedule.start={start}", f"credit.schedule.end={end}"]
    made = recipe(tmp_path_factory.getbasetemp(), ADAPTIVE, "credit.schedule.initial=1.0", *ends)
    found = replay.other_magnitudes(made, measured(*entropies), list(range(1, 11)))
    tempo = Tempo(
        {"m": Rule("entropy", 0.5, 0.5, 0.25, 0.5, first=int(10 * start), last=int(10 * end))}
    )
    for step in range(1, 11):
        assert found[step]["trajectory_percentile"] == pytest.approx(tempo.shares["m"], abs=1e-12)
        tempo.after(step, {"entropy": entropies[step - 1], "accuracy": 0.0})


def test_accuracy_is_that_of_all_that_was_drawn(tmp_path: Path) -> None:
    made = recipe(tmp_path, ADAPTIVE, "credit.schedule.signal='accuracy'")
    line = {"step": 1, "verdict/correct": 0.5, "sampling/accuracy": 1.0}
    found = replay.other_magnitudes(made, [line], [1, 2])
    assert found[2]["trajectory_percentile"] == pytest.approx(0.99 * 0.75)


def test_a_step_without_its_measurement_is_an_error(tmp_path: Path) -> None:
    made = recipe(tmp_path, ADAPTIVE)
    with pytest.raises(UsageError, match="step 2 of the run has no entropy/all"):
        replay.other_magnitudes(made, [*measured(1.0), {"step": 2}], [3])


def test_own_magnitudes_are_the_recorded_ones(tmp_path: Path) -> None:
    """Also where the recipe would say otherwise: the run may have been resumed with a horizon."""
    line = {"step": 5, "schedule/magnitude": 0.123}
    assert replay.own_magnitudes(recipe(tmp_path), line) == {"trajectory_percentile": 0.123}
    several = recipe(tmp_path, 'credit.allocation=["trajectory_percentile", "random_tokens"]')
    line = {"step": 5, "schedule/random_tokens": 0.2}
    assert replay.own_magnitudes(several, line) == {
        "trajectory_percentile": pytest.approx(0.99 * 3 / 8),
        "random_tokens": 0.2,
    }
    with pytest.raises(UsageError, match="has no schedule/magnitude"):
        replay.own_magnitudes(recipe(tmp_path, ADAPTIVE), {"step": 5})


def test_what_is_read_is_what_training_needs(tmp_path: Path) -> None:
    from tpcli.credit.allocation import IS_RANDOM, NEEDS_ENTROPY, NEEDS_LOGPROB

    assert replay.READS["entropy"] == NEEDS_ENTROPY
    assert replay.READS["old_logprob"] == NEEDS_LOGPROB
    assert replay.READS["seed"] == IS_RANDOM
    forking = recipe(tmp_path, 'credit.allocation=["forking_tokens", "shuffled"]')
    lines = cast(list[dict[str, Any]], [{"entropy": [0.1], "seed": 3}, {"entropy": [0.1]}])
    assert replay.missing(lines, forking) == {"seed": ["shuffled"]}
