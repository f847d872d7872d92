"""From what is typed to the variants of an ablation."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.jobs.bench import RECIPES

from tpcli.errors import RecipeError, UsageError
from tpcli.jobs.grid import Variant, seeds_of, variants
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import flat
from tpcli.recipe.schema import Recipe

TINY = RECIPES / "tiny.toml"


def recipe(variant: Variant, path: Path = TINY) -> Recipe:
    return load_recipe(path, overrides=variant.overrides).recipe


def labels(**asked: object) -> list[str]:
    return [variant.label for variant in variants(TINY, **asked)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0-4", (0, 1, 2, 3, 4)), ("7", (7,)), ("0-2, 9", (0, 1, 2, 9)), ("3,1", (3, 1))],
)
def test_seeds(text: str, expected: tuple[int, ...]) -> None:
    assert seeds_of(text) == expected


@pytest.mark.parametrize("text", ["", "4-2", "a", "1,,2", "-1", "0-99999", "1,0-2"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--seeds"):
        seeds_of(text)


def test_schedules_change_the_curve_and_nothing_else() -> None:
    found = variants(TINY, schedules=["linear", "cosine", "off"])
    assert [v.label for v in found] == ["linear", "cosine", "off"]
    linear, cosine, off = (flat(recipe(v)) for v in found)
    changed = {key for key in linear if linear[key] != cosine.get(key)}
    assert changed == {"credit.schedule.curve"}
    assert {key for key in linear if linear[key] != off.get(key)} == {"credit.allocation"}
    assert off["credit.allocation"] == "uniform"


def test_a_plain_number_becomes_a_schedule(tmp_path: Path) -> None:
    path = tmp_path / "static.toml"
    path.write_text(f'extends = "{TINY}"\n[credit]\nschedule = 0.5\n')
    (found,) = variants(path, schedules=["linear"])
    schedule = recipe(found, path).credit.schedule
    assert not isinstance(schedule, float)
    assert schedule.curve == "linear"


def test_axes_multiply() -> None:
    found = labels(schedules=["linear", "cosine"], vary=["optim.lr=1e-5,2e-5"])
    assert found == ["linear·lr=1e-5", "linear·lr=2e-5", "cosine·lr=1e-5", "cosine·lr=2e-5"]


def test_varied_keys_may_go_together() -> None:
    asked = ["optim.lr=1e-5,2e-5", "train.steps=100,50"]
    found = variants(TINY, vary=asked, zipped=True)
    made = [recipe(variant) for variant in found]
    assert [(one.optim.lr, one.train.steps) for one in made] == [(1e-5, 100), (2e-5, 50)]
    with pytest.raises(UsageError, match="as many values"):
        variants(TINY, vary=["optim.lr=1e-5,2e-5", "train.steps=100"], zipped=True)


def test_off_is_one_arm_whatever_the_allocation() -> None:
    found = labels(
        schedules=["off", "linear"], allocations=["trajectory_percentile", "random_tokens"]
    )
    assert found == ["off", "linear·trajectory_percentile", "linear·random_tokens"]


def test_values_are_toml_or_words() -> None:
    found = variants(TINY, vary=["optim.betas=[0.9, 0.95],[0.9, 0.99]"])
    assert [recipe(v).optim.betas for v in found] == [(0.9, 0.95), (0.9, 0.99)]
    found = variants(TINY, vary=["credit.advantage=group_std,leave_one_out"])
    assert [recipe(v).credit.advantage for v in found] == ["group_std", "leave_one_out"]
    found = variants(TINY, vary=["rollout.temperature=.5,1"])
    assert [recipe(v).rollout.temperature for v in found] == [0.5, 1.0]


def test_controls_of_a_schedule() -> None:
    """The constant's magnitude is the schedule's mean; random tokens follow the same schedule."""
    found = variants(TINY, schedules=["linear"], controls=["reversed", "random", "constant"])
    assert [v.label for v in found] == [
        "linear",
        "linear·reversed",
        "linear·random",
        "linear·constant",
    ]
    backwards, anywhere, level = (recipe(variant) for variant in found[1:])
    assert not isinstance(backwards.credit.schedule, float)
    assert backwards.credit.schedule.reverse
    assert anywhere.credit.allocations == ("random_tokens",)
    # 150 steps, window 0 to 30: m falls from .99 * 29/30 at step 1 to 0 at step 30.
    expected = sum(0.99 * (30 - step) / 30 for step in range(1, 31)) / 150
    assert level.credit.schedule == pytest.approx(expected)


def test_other_allocations_are_shuffled_for_a_control(tmp_path: Path) -> None:
    path = tmp_path / "entropy.toml"
    path.write_text(
        f'extends = "{TINY}"\n[credit]\nallocation = "entropy_advantage"\n'
        "[credit.entropy_advantage]\n"
        'magnitude = { curve = "linear", initial = 1.0, final = 0.0 }\n'
    )
    found = variants(path, vary=["optim.lr=1e-5"], controls=["random"])
    assert recipe(found[1], path).credit.allocations == ("entropy_advantage", "shuffled")


def test_no_control_without_a_schedule() -> None:
    assert labels(schedules=["off", "constant"], controls=["reversed"]) == ["off", "constant"]


@pytest.mark.parametrize(
    ("asked", "message", "hint"),
    [
        ({"schedules": ["cosin"]}, "cosin", "cosine"),
        ({"allocations": ["forking"]}, "forking", "forking_tokens"),
        ({"schedules": ["linear"], "controls": ["reverse"]}, "reverse", "reversed"),
        ({"schedules": ["linear", "linear"]}, "twice", "once"),
        ({"vary": ["optim.lr"]}, "no values", "--vary"),
        ({"vary": ["optim.lr=1e-5,"]}, "no values", "--vary"),
    ],
)
def test_what_makes_no_grid(asked: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        variants(TINY, **asked)  # type: ignore[arg-type]
    assert hint in caught.value.hint


def test_a_schedule_with_nothing_to_move_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing to move"):
        variants(TINY, schedules=["linear"], allocations=["uniform"])


def test_every_variant_is_a_valid_recipe() -> None:
    with pytest.raises(RecipeError, match="unknown key"):
        variants(TINY, vary=["optim.learning_rate=1e-5"])


def test_labels_become_names_and_tags() -> None:
    assert Variant("linear·lr=1e-5").slug == "linear-lr-1e-5"
    with pytest.raises(UsageError, match="would be called"):
        variants(TINY, vary=["data.template='{question};','{question}='", "optim.lr=1e-5"])
