"""The grid of an ablation: from what was typed to variants of a recipe, and their seeds.

A variant is a name and the overrides that make it. Variants of several axes (schedule, allocation,
varied keys) are their product, or go side by side where they are zipped.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from tpcli.analysis.schedules import leading, scalar_at, window
from tpcli.errors import UsageError
from tpcli.names import AllocationName, CurveName
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import fingerprint

if TYPE_CHECKING:
    from tpcli.recipe.schema import Recipe

ControlName = Literal["reversed", "random", "constant"]
OFF = "off"
"""The schedule that is none: every token learns, from the first step to the last."""
MOST = 10_000
"""Seeds, or runs, that one grid may have."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One condition of an ablation.

    Attributes:
        label: as screens show it.
        overrides: "key=VALUE" in TOML, over the recipe and what else was set.
    """

    label: str
    overrides: tuple[str, ...] = ()

    @property
    def slug(self) -> str:
        """The label in the characters that names and tags may have."""
        return slug(self.label)


def slug(text: str) -> str:
    """``text`` in the characters that names and tags may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-") or "run"


def seeds_of(text: str) -> tuple[int, ...]:
    """Seeds as they are typed: "0-4", "1,3,7" or "0-2,9".

    Raises:
        UsageError: not of this form, or a seed twice.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first >= MOST:
            raise UsageError(
                f'--seeds: "{part.strip()}" is no seed and no range',
                hint="write --seeds 0-4, or --seeds 0,3,7",
            )
        found += range(first, last + 1)
    if len({*found}) < len(found):
        raise UsageError(f"--seeds {text}: a seed is there twice", hint="name each one once")
    return tuple(found)


def variants(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    schedules: Sequence[str] = (),
    allocations: Sequence[str] = (),
    vary: Sequence[str] = (),
    zipped: bool = False,
    controls: Sequence[str] = (),
) -> list[Variant]:
    """The variants of the recipe at ``path``, each valid, each another recipe.

    Args:
        overrides: of every variant.
        schedules: curves, or "off" for uniform credit.
        allocations: one, or several joined by "+".
        vary: "key=v1,v2", each key an axis of its own.
        zipped: the varied keys go together, value by value.
        controls: to be added for each variant whose credit moves: "reversed" runs the schedule
            backwards, "random" credits as many tokens anywhere, "constant" holds the mean.

    Raises:
        UsageError, RecipeError: what was typed makes no grid, or no recipe.
    """
    axes = [
        *([_schedules(schedules)] if schedules else []),
        *([_allocations(allocations)] if allocations else []),
        *_varied(vary, zipped),
    ]
    combined = [_joined(parts) for parts in product(*axes)] if axes else [Variant("recipe")]
    if len(combined) > MOST:
        raise UsageError(f"{len(combined):,} variants are too many", hint=f"at most {MOST:,}")
    for name in controls:
        _known(name, get_args(ControlName), "--controls")
    found: dict[str, Variant] = {}
    for variant in combined:
        recipe = load_recipe(path, overrides=[*overrides, *variant.overrides]).recipe
        if schedules and variant.label.split("·")[0] != OFF:
            _check_moves(recipe, variant)
        found.setdefault(fingerprint(recipe), variant)  # "off" is one, whatever the allocation
        for control in (_control(recipe, variant, name) for name in controls):
            if control is not None:
                itself = load_recipe(path, overrides=[*overrides, *control.overrides]).recipe
                found.setdefault(fingerprint(itself), control)
    return _apart([*found.values()])


def _joined(parts: Sequence[Variant]) -> Variant:
    if parts[0].label == OFF:  # of uniform credit an allocation cannot be seen
        parts = [part for part in parts if part is parts[0] or not _allocates(part)]
    label = "·".join(part.label for part in parts)
    return Variant(label, tuple(one for part in parts for one in part.overrides))


def _allocates(variant: Variant) -> bool:
    return any(one.startswith("credit.allocation=") for one in variant.overrides)


def _schedules(names: Sequence[str]) -> list[Variant]:
    for name in names:
        _known(name, (*get_args(CurveName), OFF), "--schedule")
    return [
        Variant(OFF, ('credit.allocation="uniform"',))
        if name == OFF
        else Variant(name, (f'credit.schedule.curve="{name}"',))
        for name in _once(names, "--schedule")
    ]


def _allocations(names: Sequence[str]) -> list[Variant]:
    found = []
    for name in _once(names, "--allocation"):
        parts = name.split("+")
        for part in parts:
            _known(part, get_args(AllocationName), "--allocation")
        value = json.dumps(parts if len(parts) > 1 else name)
        found.append(Variant(name, (f"credit.allocation={value}",)))
    return found


def _varied(vary: Sequence[str], zipped: bool) -> list[list[Variant]]:
    axes = []
    for text in vary:
        key, equals, values = text.partition("=")
        split = _split(values)
        if not equals or not all(split):
            raise UsageError(f"--vary {text} has no values", hint="write --vary optim.lr=1e-5,2e-5")
        short = key.rpartition(".")[2]
        axes.append(
            [Variant(f"{short}={one}", (f"{key}={_toml(one)}",)) for one in _once(split, text)]
        )
    if not zipped:
        return axes
    if len({len(axis) for axis in axes}) != 1 or len(axes) < 2:
        sizes = ", ".join(str(len(axis)) for axis in axes) or "none"
        raise UsageError(
            f"--zip needs several varied keys with as many values each; there are {sizes}",
            hint="--vary optim.lr=1e-5,2e-5 --vary train.steps=100,200 --zip",
        )
    return [[_joined(parts) for parts in zip(*axes, strict=True)]]


def _control(recipe: Recipe, variant: Variant, name: str) -> Variant | None:
    """A variant's control; None where its credit does not move, or is uniform."""
    key = leading(recipe)
    if key is None or (window(recipe, key) is None and name != "random"):
        return None
    if name == "reversed":
        change = f"{key}.reverse=true"
    elif name == "constant":
        steps = range(1, recipe.train.steps + 1)
        mean = sum(scalar_at(recipe, key, step) for step in steps) / recipe.train.steps
        change = f"{key}={mean!r}"
    else:
        change = f"credit.allocation={json.dumps(_anywhere(recipe))}"
    return Variant(f"{variant.label}·{name}", (*variant.overrides, change))


def _anywhere(recipe: Recipe) -> list[str]:
    """Allocations that credit as much, with no regard to where."""
    names: list[str] = [*recipe.credit.allocations]
    if "trajectory_percentile" in names and recipe.credit.trajectory_percentile.magnitude is None:
        return ["random_tokens" if name == "trajectory_percentile" else name for name in names]
    return [*names, "shuffled"]


def _check_moves(recipe: Recipe, variant: Variant) -> None:
    if "credit.schedule" in recipe.credit.magnitudes().values():
        return
    raise UsageError(
        f"--schedule has nothing to move in {variant.label}: credit.allocation is "
        f'"{recipe.credit.label}", and no magnitude follows [credit.schedule]',
        hint="add --allocation trajectory_percentile, or leave --schedule out",
    )


def _apart(found: Sequence[Variant]) -> list[Variant]:
    """Refuse variants whose names and tags would be the same."""
    slugs = [variant.slug for variant in found]
    for variant in found:
        if slugs.count(variant.slug) > 1:
            raise UsageError(
                f'two variants would be called "{variant.slug}"', hint="vary one key at a time"
            )
    return [*found]


def _known(name: str, names: Sequence[str], flag: str) -> None:
    if name not in names:
        near = get_close_matches(name, names, n=1)
        raise UsageError(
            f'{flag}: "{name}" is not one of {", ".join(names)}',
            hint=f'did you mean "{near[0]}"?' if near else "",
        )


def _once(names: Sequence[str], flag: str) -> Sequence[str]:
    if len({*names}) < len(names):
        raise UsageError(f"{flag}: a value is there twice", hint="name each one once")
    return names


def _split(text: str) -> list[str]:
    """At the commas that stand outside quotes and brackets."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _toml(word: str) -> str:
    """A typed value in TOML: a bare word is text, .5 a number."""
    try:
        tomllib.loads(f"value = {word}")
    except ValueError:
        try:
            return repr(float(word))
        except ValueError:
            return json.dumps(word, ensure_ascii=False)
    return word
