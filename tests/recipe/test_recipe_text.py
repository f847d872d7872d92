"""The fingerprint, TOML that loads again, and what differs between two recipes."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import diff, fingerprint, flat, plain, to_toml
from tpcli.recipe.schema import Recipe

SMALL = {"model": {"source": "m"}, "data": {"source": "running_sum"}, "train": {"steps": 10}}
RICH = {
    **SMALL,
    "data": {
        "source": "hf:a/b",
        "config": {"split": "train", "odd key.": {"x": [1, 2.5, {"y": True}]}},
        "system": 'two\nlines, a "quote" and a \\backslash',
        "solution_field": "solution",
        "examples": [{"question": "é", "solution": "\\boxed{1}"}, {"question": "", "solution": ""}],
    },
    "warmup": {"steps": 3},
    "reward": {"overlong": {"mask": True}},
    "rollout": {
        "dynamic_sampling": {},
        "temperature": {"initial": 1.2, "final": 0.6, "curve": "cosine"},
    },
    "credit": {
        "allocation": ["expert_prefix", "trajectory_percentile", "forking_tokens"],
        "schedule": {"curve": "piecewise", "points": [[0, 1], [0.5, 0.2], [1, 0]]},
        "trajectory_percentile": {"focus": [0.25, 0.5]},
        "forking_tokens": {"magnitude": 0.8},
        "expert_prefix": {"magnitude": {"curve": "adaptive", "target": 0.3}},
        "advantage": "pass_at_k",
        "k": 4,
    },
    "loss": {"dual_clip": False, "objective": "gspo", "correction": {"kind": "mask"}},
    "track": {"mlflow": False},
    "launch": {"processes": 2},
}


def test_golden_fingerprint() -> None:
    """A changed default makes every old run look different: change this line on purpose only."""
    expected = "923e1aa928a4de67ab536a26e760d704c100785559ff603877126a7887b15514"
    assert fingerprint(Recipe.model_validate(SMALL)) == expected


def test_fingerprint_sees_values_not_spelling(tmp_path: Path) -> None:
    one = tmp_path / "one.toml"
    one.write_text(
        '[model]\nsource = "m"\n[data]\nsource = "running_sum"\n[optim]\nlr = 1\nbetas = [0, 0]\n'
        "[train]\nsteps = 10\nseed = 0 # the default\n[rollout]\ntemperature = 1\n"
    )
    (tmp_path / "base.toml").write_text('# c\ntrain.steps = 10\ndata.source = "running_sum"\n')
    other = tmp_path / "other.toml"
    other.write_text(
        'extends = "base.toml"\noptim = { betas = [0.0, 0.0], lr = 1.0 }\nmodel.source="m"'
    )
    a, b = load_recipe(one).recipe, load_recipe(other).recipe
    assert fingerprint(a) == fingerprint(b)
    assert fingerprint(load_recipe(other, seed=1).recipe) != fingerprint(a)
    assert fingerprint(load_recipe(one, overrides=["track.mlflow=false"]).recipe) != fingerprint(a)


@pytest.mark.parametrize("data", [SMALL, RICH], ids=["small", "rich"])
def test_toml_loads_again(data: dict[str, object], tmp_path: Path) -> None:
    recipe = Recipe.model_validate(data)
    file = tmp_path / "a.toml"
    file.write_text(to_toml(recipe), encoding="utf-8")
    again = load_recipe(file).recipe
    assert again == recipe
    assert to_toml(again) == to_toml(recipe)
    assert fingerprint(again) == fingerprint(recipe)


def test_off_is_written_and_absent_is_not() -> None:
    off = tomllib.loads(to_toml(Recipe.model_validate(RICH)))
    assert off["loss"]["dual_clip"] is False
    assert off["track"]["mlflow"] is False
    on = tomllib.loads(to_toml(Recipe.model_validate(SMALL)))
    assert on["loss"]["dual_clip"] == 3.0
    assert on["track"]["mlflow"] == "sqlite"
    assert "warmup" not in on
    assert "horizon" not in on["train"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    TEXT | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(config=st.dictionaries(TEXT, VALUES, max_size=3), system=TEXT)
def test_any_text_and_any_setting_survives(config: dict[str, object], system: str) -> None:
    data = {"source": "s", "config": config, "system": system}
    recipe = Recipe.model_validate({**SMALL, "data": data})
    assert Recipe.model_validate(tomllib.loads(to_toml(recipe))) == recipe


def test_flat_keys() -> None:
    keys = flat(Recipe.model_validate(RICH))
    assert keys["rollout.temperature.final"] == 0.6
    assert keys["loss.clip_low"] == 0.2
    assert keys["loss.dual_clip"] is False
    assert keys['data.config."odd key.".x'] == [1, 2.5, {"y": True}]
    assert keys["data.examples"][0]["question"] == "é"


def test_diff() -> None:
    a = Recipe.model_validate({**SMALL, "credit": {"schedule": 0.5}})
    b = Recipe.model_validate({**SMALL, "loss": {"dual_clip": False}, "train": {"steps": 20}})
    assert diff(a, a) == []
    assert diff(a, b) == [
        ("credit.schedule", 0.5, None),
        ("loss.dual_clip", 3.0, False),
        ("train.steps", 10, 20),
        ("credit.schedule.curve", None, "linear"),
        ("credit.schedule.initial", None, 0.99),
        ("credit.schedule.final", None, 0.0),
        ("credit.schedule.start", None, 0.0),
        ("credit.schedule.end", None, 0.8),
        ("credit.schedule.reverse", None, False),
        ("credit.schedule.gamma", None, 2.0),
        ("credit.schedule.rate", None, 5.0),
        ("credit.schedule.stairs", None, 4),
        ("credit.schedule.points", None, []),
        ("credit.schedule.signal", None, "entropy"),
        ("credit.schedule.gain", None, 0.1),
        ("credit.schedule.max_change", None, 0.02),
        ("credit.schedule.smoothing", None, 0.9),
    ]
    assert diff(b, a)[0] == ("credit.schedule.curve", "linear", None)


def test_diff_tells_false_from_zero() -> None:
    a = Recipe.model_validate({**SMALL, "data": {"source": "s", "config": {"x": 0}}})
    b = Recipe.model_validate({**SMALL, "data": {"source": "s", "config": {"x": False}}})
    assert diff(a, b) == [("data.config.x", 0, False)]


def test_plain_is_what_toml_has() -> None:
    recipe = Recipe.model_validate(RICH)
    assert tomllib.loads(to_toml(recipe)) == plain(recipe)
