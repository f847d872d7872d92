"""What a run is called, and what its folder says of its credit, before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from tpcli.jobs import train
from tpcli.recipe.schema import Recipe
from tpcli.registry import folder

SMALL = '[model]\nsource = "m"\n[data]\nsource = "running_sum"\n[train]\nsteps = 10\n[credit]\n'
OWN = 'allocation = ["forking_tokens", "shuffled"]\nforking_tokens.magnitude = 0.8\n'


@pytest.mark.parametrize(
    ("credit", "name"),
    [
        ({"allocation": "uniform"}, "uniform"),
        ({}, "linear"),
        ({"schedule": 0.5}, "constant"),
        ({"schedule": {"curve": "adaptive", "target": 0.3}}, "adaptive"),
        ({"allocation": ["random_tokens"], "random_tokens": {"magnitude": 0.5}}, "constant"),
        (
            {
                "allocation": ["forking_tokens", "random_tokens"],
                "forking_tokens": {"magnitude": {"curve": "stairs"}},
            },
            "stairs",
        ),
    ],
)
def test_a_run_is_named_after_the_first_allocations_curve(
    credit: dict[str, Any], name: str
) -> None:
    recipe = Recipe.model_validate(
        {
            "model": {"source": "m"},
            "data": {"source": "running_sum"},
            "train": {"steps": 10, "seed": 3},
            "credit": credit,
        }
    )
    assert train.curve_of(recipe) == name
    assert train.default_name(Path("recipes/math.toml"), recipe) == f"math-{name}-s3"


def test_the_folder_names_every_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    recipe = tmp_path / "own.toml"
    recipe.write_text(SMALL + OWN)
    run = json.loads((train.create(train.plan(recipe)) / folder.RUN).read_text())
    assert (run["name"], run["curve"]) == ("own-constant-s0", "constant")
    assert run["allocation"] == "forking_tokens+shuffled"
