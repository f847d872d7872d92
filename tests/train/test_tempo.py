"""Adaptive schedules: which way they go, where they stand still, and what survives a restart."""

import json
from dataclasses import replace

import pytest

from tpcli.train.tempo import Rule, Tempo

RULE = Rule(
    signal="entropy", target=0.5, gain=0.5, max_change=0.05, smoothing=0.0, first=0, last=100
)


def course(rule: Rule, measured: list[float]) -> list[float]:
    tempo, shares = Tempo({"credit.schedule": rule}), []
    for step, value in enumerate(measured, start=1):
        tempo.after(step, {"entropy": value, "accuracy": 0.0})
        shares.append(tempo.shares["credit.schedule"])
    return shares


def test_above_the_target_the_window_opens_and_below_it_closes() -> None:
    """Relative errors of .04 and -.1, times gain .5."""
    assert course(RULE, [0.52, 0.45]) == pytest.approx([0.98, 1.0])
    assert course(RULE, [0.52, 0.52, 0.45]) == pytest.approx([0.98, 0.96, 1.0])


def test_a_step_is_bounded_and_the_share_stays_in_range() -> None:
    shares = course(RULE, [100.0] * 30)
    assert shares[:3] == pytest.approx([0.95, 0.9, 0.85])
    assert shares[-1] == 0.0


def test_it_follows_its_own_signal() -> None:
    assert course(replace(RULE, signal="accuracy"), [100.0]) == [1.0]


def test_it_stands_still_outside_its_window_but_goes_on_averaging() -> None:
    rule = replace(RULE, first=2, last=4, smoothing=0.5)
    shares = course(rule, [0.52] * 6)
    assert shares[0] == 1.0
    assert shares[1] == pytest.approx(0.98)
    assert shares[2] == pytest.approx(0.96)
    assert shares[3] == shares[5] == shares[2]


def test_it_goes_on_from_its_state() -> None:
    rule = replace(RULE, smoothing=0.9)
    measured = [0.6, 0.7, 0.3, 0.2, 0.9]
    whole = course(rule, measured)
    before = Tempo({"credit.schedule": rule})
    for step in (1, 2):
        before.after(step, {"entropy": measured[step - 1], "accuracy": 0.0})
    after = Tempo({"credit.schedule": rule})
    after.restore(json.loads(json.dumps(before.state())))
    for step in (3, 4, 5):
        after.after(step, {"entropy": measured[step - 1], "accuracy": 0.0})
    assert after.shares["credit.schedule"] == whole[-1]


def test_a_scalar_the_state_does_not_know_starts_anew() -> None:
    tempo = Tempo({"credit.schedule": RULE})
    tempo.restore({"loss.kl_coef": {"share": 0.2, "smoothed": 0.1}})
    assert tempo.shares == {"credit.schedule": 1.0}
