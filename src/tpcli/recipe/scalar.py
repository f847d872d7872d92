"""What a number in a recipe may be: itself, or a schedule that moves it; what tables share."""

from __future__ import annotations

import math
import types
import typing
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    FiniteFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from tpcli.names import CurveName, SignalName

Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Array = Field(strict=False)  # a TOML array is a list; the models keep tuples
Point = Annotated[tuple[Fraction, FiniteFloat], Array]


class Section(BaseModel):
    """Common to every table: unknown keys are errors, nothing changes after loading.

    TOML has no null: false stands for it in any optional key, so a recipe can also switch off
    what the file that it extends has set.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _false_is_off(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            key: None if value is False and cls._can_be_off(key) else value
            for key, value in values.items()
        }

    @classmethod
    def _can_be_off(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        forms = typing.get_args(field.annotation) if field else ()
        return types.NoneType in forms and bool not in forms

    def written(self) -> set[str]:
        """Keys that were set to something else than their default."""
        fields = type(self).model_fields
        return {
            key
            for key in self.model_fields_set
            if getattr(self, key) != fields[key].get_default(call_default_factory=True)
        }


class Schedule(Section):
    """A value that moves with training, from ``initial`` to ``final``.

    With T total steps the window is S0 = int(T * start) to S1 = int(T * end); step t (from 1) has
    progress p = clip((t - S0) / (S1 - S0), 0, 1). Outside the window the value stands still.
    """

    curve: CurveName = "linear"
    """The shape of the move. "constant" stays at ``initial``; "adaptive" follows ``signal``."""
    initial: FiniteFloat = 0.99
    """The value until the window opens."""
    final: FiniteFloat = 0.0
    """The value after the window closes."""
    start: Fraction = 0.0
    """Where the window opens, as a fraction of all steps."""
    end: Fraction = 0.8
    """Where the window closes, as a fraction of all steps."""
    reverse: bool = False
    """Run the curve backwards in time, value(1 - p): from ``final`` to ``initial``."""
    gamma: Positive = 2.0
    """"gamma": exponent of (initial * (1 - p)) ** gamma."""
    rate: Positive = 5.0
    """"exponential": how fast exp(-rate * p) falls."""
    stairs: PositiveInt = 4
    """"stairs": into how many equal drops the way is cut."""
    points: Annotated[tuple[Point, ...], Array] = ()
    """"piecewise": [progress, value] pairs joined by straight lines, from progress 0 to 1; they
    take the place of ``initial`` and ``final``."""
    signal: SignalName = "entropy"
    """"adaptive": what is measured at every step. "entropy" of all response tokens, in nats, or
    "accuracy", the share of correct responses."""
    target: Positive | None = None
    """"adaptive": while the signal is above it the value moves to ``final``, below it back to
    ``initial``."""
    gain: Positive = 0.1
    """"adaptive": share of the way that a relative error of 1 moves the value in a step."""
    max_change: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.02
    """"adaptive": largest share of the way moved in a step."""
    smoothing: Decay = 0.9
    """"adaptive": decay of the signal's moving average."""

    @model_validator(mode="after")
    def _window_is_open(self) -> Self:
        if self.curve != "constant" and self.end <= self.start:
            raise ValueError(
                f"end ({self.end:g}) must be greater than start ({self.start:g}); "
                'to keep the value fixed, write curve = "constant"'
            )
        return self

    @model_validator(mode="after")
    def _curve_is_defined(self) -> Self:
        if self.curve == "gamma" and not (self.final == 0 and 0 <= self.initial <= 1):
            raise ValueError(
                'curve = "gamma" is (initial * (1 - p)) ** gamma: '
                "it needs initial in [0, 1] and final = 0"
            )
        if self.curve == "piecewise":
            places = [place for place, _ in self.points]
            rising = all(a < b for a, b in pairwise(places))
            if len(places) < 2 or (places[0], places[-1]) != (0, 1) or not rising:
                fault = "progress must rise from 0 to 1" if places else "this curve needs them"
                raise ValueError(
                    f"points: {fault}; write [progress, value] pairs, "
                    "as in [[0.0, 0.99], [0.5, 0.2], [1.0, 0.0]]"
                )
        return self

    @model_validator(mode="after")
    def _target_can_be_met(self) -> Self:
        if self.curve != "adaptive":
            return self
        if self.target is None:
            raise ValueError(
                f'curve = "adaptive" needs target, the {self.signal} that training should hold'
            )
        if self.signal == "accuracy" and self.target >= 1:
            raise ValueError(f"target ({self.target:g}) must be below 1, as accuracy is a share")
        if self.reverse:
            raise ValueError(
                "reverse turns a course, and adaptive has none; exchange initial and final"
            )
        return self

    def course(self) -> dict[str, Any]:
        """What ``tpcli.credit.schedule.value`` takes beside step and horizon."""
        return self.model_dump(exclude=_ADAPTIVE)

    def unread(self) -> list[str]:
        """Keys that were written and that this curve does not read."""
        readers = {
            **dict.fromkeys(_ADAPTIVE, "adaptive"),
            "gamma": "gamma",
            "rate": "exponential",
            "stairs": "stairs",
            "points": "piecewise",
        }
        others = {key for key, curve in readers.items() if curve != self.curve}
        if self.curve == "constant":
            others |= {"final", "start", "end", "reverse"}
        if self.curve == "piecewise":
            others |= {"initial", "final"}
        return sorted(others & self.written())


_ADAPTIVE = {"signal", "target", "gain", "max_change", "smoothing"}


def _number_or_table(value: object) -> str:
    return "table" if isinstance(value, (dict, Schedule)) else "number"


Scalar = Annotated[
    Annotated[FiniteFloat, Tag("number")] | Annotated[Schedule, Tag("table")],
    Discriminator(_number_or_table),
]
"""A number, or a table that moves it: any scalar a researcher may want to schedule."""
PositiveScalar = Annotated[
    Annotated[Positive, Tag("number")] | Annotated[Schedule, Tag("table")],
    Discriminator(_number_or_table),
]
NonNegativeScalar = Annotated[
    Annotated[NonNegative, Tag("number")] | Annotated[Schedule, Tag("table")],
    Discriminator(_number_or_table),
]


def word_or_list(value: object) -> str:
    """Tag of a key that takes a word or a list: a fault then speaks of the one that was meant."""
    return "word" if isinstance(value, str) else "list"


def moves(scalar: float | Schedule) -> bool:
    """Whether the value changes over training."""
    return isinstance(scalar, Schedule) and scalar.curve != "constant"


def check_range(
    key: str, scalar: float | Schedule, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Refuse a scalar that leaves [low, high] at some step; with ``above``, that reaches low.

    Of a table only what is written is looked at: a missing end is another fault.

    Raises:
        ValueError: names the key and what sets the value.
    """
    for name, value in bounds(scalar):
        if isinstance(scalar, Schedule) and name not in scalar.model_fields_set:
            continue
        if not low <= value <= high or (above and value == low):
            if above:
                wanted = f"be above {low:g}" + (
                    "" if high == math.inf else f" and at most {high:g}"
                )
            elif high == math.inf:
                wanted = f"be {low:g} or above"
            else:
                wanted = f"lie in [{low:g}, {high:g}]"
            raise ValueError(f"{key}: {name} ({value:g}) must {wanted}")


def bounds(scalar: float | Schedule) -> list[tuple[str, float]]:
    """The extreme values a scalar takes, with the key that sets each."""
    if not isinstance(scalar, Schedule):
        return [("the value", scalar)]
    if scalar.curve == "constant":
        return [("initial", scalar.initial)]
    if scalar.curve == "piecewise":
        return [("points", value) for _, value in scalar.points]
    return [("initial", scalar.initial), ("final", scalar.final)]
