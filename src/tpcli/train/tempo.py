"""Schedules that follow a measurement: how far each has come, which a checkpoint keeps."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tpcli.credit.schedule import adapt, smooth
from tpcli.names import SignalName


@dataclass(frozen=True, slots=True)
class Rule:
    """How one scalar follows its signal; ``first`` and ``last`` are the steps of its window."""

    signal: SignalName
    target: float
    gain: float
    max_change: float
    smoothing: float
    first: int
    last: int


class Tempo:
    """The shares (1: at ``initial``, 0: at ``final``) of the adaptive scalars, by dotted key."""

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        self._rules = dict(rules)
        self.shares = dict.fromkeys(self._rules, 1.0)
        self._smoothed: dict[str, float | None] = dict.fromkeys(self._rules)

    def after(self, step: int, measured: Mapping[SignalName, float]) -> None:
        """Take in what step ``step`` measured; the next step has the new shares."""
        for key, rule in self._rules.items():
            average = smooth(self._smoothed[key], measured[rule.signal], decay=rule.smoothing)
            self._smoothed[key] = average
            if rule.first <= step < rule.last:
                self.shares[key] = adapt(
                    self.shares[key],
                    average,
                    target=rule.target,
                    gain=rule.gain,
                    max_change=rule.max_change,
                )

    def state(self) -> dict[str, Any]:
        """What ``restore`` takes back, as plain numbers."""
        return {
            key: {"share": self.shares[key], "smoothed": self._smoothed[key]} for key in self._rules
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; a scalar it does not know starts anew."""
        for key in self._rules.keys() & state.keys():
            self.shares[key] = state[key]["share"]
            self._smoothed[key] = state[key]["smoothed"]
