"""Conditions: how they are read, when they trip, and that what cannot be told trips too."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from tests.analysis.test_compare import TESTS, arm, scored

from tpcli.analysis.arms import Arm
from tpcli.analysis.gate import Condition, Trip, parse, tripped
from tpcli.errors import UsageError

OLD = {0: 0.4, 1: 0.5, 2: 0.6}
NEW = {0: 0.5, 1: 0.7, 2: 0.9}
"""Against ``OLD``: differences .1, .2, .3 with interval -.048 to .448, p .25, p of t .074."""


def trips(text: str, new: Mapping[int, float] = NEW, *more: Arm) -> list[Trip]:
    return tripped([arm("old", OLD), arm("new", new), *more], [parse(text)], TESTS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("delta(reward) < 0", ("delta", "reward", "<", 0.0)),
        (" p_t( reward/mean )>=.05 ", ("p_t", "reward/mean", ">=", 0.05)),
        ("reward <= -1e-3", ("mean", "reward", "<=", -0.001)),
        ("mean(rg:chain_sum?max_terms=4) > 1", ("mean", "rg:chain_sum?max_terms=4", ">", 1.0)),
        ("aime24<.3", ("mean", "aime24", "<", 0.3)),
    ],
)
def test_forms(text: str, expected: tuple[str, str, str, float]) -> None:
    assert parse(text) == Condition(text.strip(), *expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is no condition"),
        ("reward", "is no condition"),
        ("delta(reward) == 0", "is no condition"),
        ("delta() < 0", "is no condition"),
        ("delta(reward) < 0 < 1", "is no condition"),
        ("gain(reward) < 0", "no statistic gain"),
        ("reward < much", "much is no number"),
        ("reward < nan", "nan is no number"),
        ("reward < inf", "inf is no number"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "arms"),
    [
        ("reward < .6", ["old"]),
        ("mean(reward) > .1", ["old", "new"]),
        ("delta(reward) < .19", []),
        ("delta(reward) > .19", ["new"]),
        ("low(reward) < 0", ["new"]),
        ("low(reward) < -.05", []),
        ("high(reward) > .44", ["new"]),
        ("high(reward) > .45", []),
        ("p(reward) >= .25", ["new"]),
        ("p(reward) > .25", []),
        ("p(reward) <= .25", ["new"]),
        ("p(reward) < .25", []),
        ("p_t(reward) > .074", ["new"]),
        ("p_t(reward) > .075", []),
    ],
)
def test_when_they_trip(text: str, arms: list[str]) -> None:
    assert [trip.arm for trip in trips(text)] == arms


def test_every_arm_is_looked_at() -> None:
    found = trips("delta(reward) < .1", {0: 0.1, 1: 0.1, 2: 0.1}, arm("third", {0: 0.45, 1: 0.5}))
    assert [trip.arm for trip in found] == ["new", "third"]
    assert found[1].value == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("text", "new", "reason"),
    [
        ("delta(reward) < -9", {7: 0.5}, "no seed in common"),
        ("p(reward) > 2", {0: 0.5}, "one seed in common"),
        ("low(reward) < -9", {0: 0.5}, "one seed in common"),
        ("p_t(reward) > 2", {0: 0.5, 1: 0.6, 2: 0.7}, "all differences are equal"),
    ],
)
def test_what_cannot_be_told_trips(text: str, new: Mapping[int, float], reason: str) -> None:
    (trip,) = trips(text, new)
    assert trip.value is None
    assert reason in trip.reason


def test_a_metric_that_an_arm_lacks_or_that_does_not_compare_trips() -> None:
    lacking = tripped(
        [arm("old", OLD), arm("new", NEW, "entropy/all")], [parse("reward < -9")], TESTS
    )
    assert [(trip.arm, trip.reason) for trip in lacking] == [("new", "it has no value")]
    arms = [scored("a", 0.3), scored("b", 0.4, settings="other")]
    found = tripped(arms, [parse("delta(aime24) < -9")], TESTS)
    assert "asked or sampled in different ways" in found[0].reason
    with pytest.raises(UsageError, match="no run has a metric rewrd"):
        trips("rewrd < 0")
