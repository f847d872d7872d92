"""Every recipe that ships loads, and those of the paper say what the paper says."""

from pathlib import Path

import pytest

from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import flat
from tpcli.recipe.scalar import Schedule

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = RECIPES / "paper"
RAMP = Schedule(curve="linear", initial=0.99, final=0.0, start=0.0, end=0.8)

ROWS: dict[str, tuple[str, str, float | Schedule | None]] = {
    "qwen3-4b-grpo": ("Qwen/Qwen3-4B", "uniform", None),
    "qwen3-4b-tp-schedule": ("Qwen/Qwen3-4B", "trajectory_percentile", RAMP),
    "qwen3-4b-gspo": ("Qwen/Qwen3-4B", "uniform", None),
    "qwen3-4b-gspo-tp-schedule": ("Qwen/Qwen3-4B", "trajectory_percentile", RAMP),
    "qwen3-4b-entropy-advantage": ("Qwen/Qwen3-4B", "entropy_advantage", 1.0),
    "qwen3-4b-entropy-advantage-scheduled": ("Qwen/Qwen3-4B", "entropy_advantage", RAMP),
    "qwen3-4b-forking-tokens": ("Qwen/Qwen3-4B", "forking_tokens", 0.8),
    "qwen3-4b-forking-tokens-scheduled": ("Qwen/Qwen3-4B", "forking_tokens", RAMP),
    "qwen3-8b-grpo": ("Qwen/Qwen3-8B", "uniform", None),
    "qwen3-8b-tp-schedule": ("Qwen/Qwen3-8B", "trajectory_percentile", RAMP),
}
"""The trained rows of Table 1: model, where credit goes, and how much of it is targeted."""


@pytest.mark.parametrize(
    "file", sorted(RECIPES.rglob("*.toml")), ids=lambda file: str(file.relative_to(RECIPES))
)
def test_every_shipped_recipe_loads_without_a_warning(file: Path) -> None:
    assert load_recipe(file).warnings == ()


def test_every_trained_row_has_a_recipe() -> None:
    assert {file.stem for file in PAPER.glob("*.toml")} == {*ROWS, "base"}


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_the_paper(name: str) -> None:
    model, allocation, schedule = ROWS[name]
    recipe = load_recipe(PAPER / f"{name}.toml").recipe
    assert recipe.model.source == model
    assert recipe.credit.allocation == allocation
    if schedule is not None:
        assert recipe.credit.schedule == schedule
    loss = recipe.loss
    gspo = "gspo" in name
    assert loss.objective == ("gspo" if gspo else "ppo_clip")
    assert loss.dual_clip == (None if gspo else 3.0)
    assert loss.reduction == ("seq-mean-token-mean" if gspo else "token-mean")


SHARED = {
    "data.thinking": True,
    "data.max_prompt_tokens": 1_024,
    "rollout.prompts": 256,
    "rollout.group_size": 8,
    "rollout.max_new_tokens": 39_936,
    "rollout.temperature": 1.2,
    "credit.advantage": "group_std",
    "credit.eps": 1e-6,
    "credit.entropy_advantage.alpha": 0.4,
    "credit.entropy_advantage.kappa": 2.0,
    "loss.clip_low": 0.2,
    "loss.clip_high": 0.28,
    "loss.denominator": "selected",
    "loss.kl_coef": 0.0,
    "loss.entropy_coef": 0.0,
    "optim.lr": 1e-6,
    "optim.schedule": "constant",
    "optim.warmup_steps": 0,
    "train.steps": 117,
    "train.updates": 1,
    "train.save_every": 25,
    "eval.every": 25,
}


@pytest.mark.parametrize("name", [*ROWS, "base"])
def test_hyper_parameters_of_the_paper(name: str) -> None:
    recipe = load_recipe(PAPER / f"{name}.toml").recipe
    settings = flat(recipe)
    assert {key: settings[key] for key in SHARED} == SHARED
    assert recipe.horizon == 117
