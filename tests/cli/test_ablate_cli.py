"""``tpcli ablate``: what it refuses, and what it plans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.jobs.bench import RECIPES
from tests.jobs.made_up import finish

from tpcli import errors
from tpcli.cli.app import main
from tpcli.jobs.train import create, plan

TINY = str(RECIPES / "tiny.toml")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def type_(*args: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["ablate", *args])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((TINY,), "nothing to vary"),
        ((TINY, "--schedule", "cosin"), 'did you mean "cosine"'),
        ((TINY, "--schedule", "linear", "--seeds", "4-0"), "is no seed and no range"),
        ((TINY, "--schedule", "linear", "--set", "optim.lr=-1"), "optim.lr"),
        ((TINY, "--schedule", "linear", "--slurm", "time=5"), "--on slurm"),
        ((TINY, "--schedule", "linear", "--baseline", "off"), "no variant"),
        ((TINY, "--schedule", "linear", "--detect", ".1"), "--detect belongs to --plan"),
        ((TINY, "--schedule", "linear", "--jobs", "2", "--on", "ray"), "--jobs is for runs here"),
        (("--resume", "abcd", "--seeds", "0-9", "--zip"), "--zip, --seeds would change it"),
        ((), "nothing to vary"),
        (("nowhere.toml", "--schedule", "linear"), "there is no such file"),
    ],
)
def test_what_is_refused(
    args: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert type_(*args) == errors.USAGE
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists(), "nothing is left behind"


def test_an_unknown_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert type_("--resume", "abcd") == errors.NOT_FOUND
    assert "no sweep abcd" in capsys.readouterr().err


def test_the_recipe_defaults_to_the_main_example(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As typed: tpcli ablate --schedule linear,cosine."""
    (folder / "recipes").symlink_to(RECIPES)
    assert type_("--schedule", "linear,cosine", "--plan") == errors.OK
    out = capsys.readouterr().out
    assert "math-sched · " in out
    assert "recipes/math.toml · 2 variants × 1 seed = 2 runs" in out
    assert "one seed: no interval and no test" in out
    assert not (folder / "runs" / "sweeps").exists()


def test_the_plan_of_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    """Two of six are there; 4 x 150 steps of 2 s are left, two at a time."""
    curves = [(0, "linear", 0.5), (0, "cosine", 0.52), (1, "linear", 0.6), (1, "cosine", 0.68)]
    for seed, curve, value in curves:
        setting = f'credit.schedule.curve="{curve}"'
        finish(create(plan(Path(TINY), overrides=[setting], seed=seed)), value)
    asked = (TINY, "--schedule", "linear,cosine", "--seeds", "1-3", "--jobs", "2", "--plan")
    assert type_(*asked, "--detect", "0.05") == errors.OK
    out = capsys.readouterr().out
    assert "to train    4 of 6 runs; 2 are there" in out
    assert "20m00s one after the other, 10m00s if 2 at once go as fast: 2.00 s/step" in out
    # Differences .02 and .08: mean .05, sd .0424.
    assert "vary by ±.042 (2 paired differences)" in out
    assert "3 seeds can reach p = .250 at best; 6 seeds can reach .05" in out
    assert "to find     .050 with probability .8: 8 seeds" in out
    assert type_(*asked, "--json") == errors.OK
    told = json.loads(capsys.readouterr().out)
    assert told["seconds"] == 1200.0
    assert sum(cell["reused"] for cell in told["cells"]) == 2
