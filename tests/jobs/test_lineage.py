"""New runs from old ones: trained again, and forked from a checkpoint, as typed and in parts."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.jobs.bench import SMALL, Bench, metrics, repeatable
from tests.registry.folders import FINISHED, lines_of, make_run

from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs import lineage
from tpcli.jobs.train import create
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import to_toml
from tpcli.registry.store import Registry


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Bench:
    """A finished run of six steps, with checkpoints of 2, 4 and 6."""
    bench = Bench(tmp_path_factory.mktemp("parent"), cache)
    bench.type("train", "small.toml", "--set", "train.keep=3", "--tag", "first")
    return bench


@pytest.fixture
def home(parent: Bench, tmp_path: Path, cache: Path) -> tuple[Bench, Path]:
    """The parent in a folder of its own."""
    shutil.copytree(parent.run, tmp_path / "runs" / parent.run.name)
    bench = Bench(tmp_path, cache)
    return bench, bench.run


def child(bench: Bench, *others: Path) -> Path:
    (found,) = (run for run in bench.runs() if run not in others)
    return found


def told(run: Path, name: str = "run.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / name).read_text())
    return found


@pytest.mark.slow
def test_a_rerun_repeats_every_bit_though_it_is_done(home: tuple[Bench, Path]) -> None:
    bench, run = home
    (bench.folder / "small.toml").unlink()  # the run's own folder is enough
    shown = bench.type("rerun", run.name, "--tag", "second", "--note", "once more", "--json").stdout
    again = child(bench, run)
    assert json.loads(shown)["id"] == again.name
    assert repeatable(again) == repeatable(run)
    identity, before = told(again), told(run)
    assert (identity["tags"], identity["note"]) == (["second"], "once more")
    for key in ("name", "recipe", "seed", "fingerprint"):
        assert identity[key] == before[key]
    assert "parent" not in identity


@pytest.mark.slow
def test_a_fork_without_a_change_repeats_the_parent(home: tuple[Bench, Path]) -> None:
    """From step 2 on every bit is the same, so nothing that counts was left behind."""
    bench, run = home
    bench.type("fork", f"{run.name}@2", "--tag", "second")
    forked = child(bench, run)
    assert repeatable(forked) == repeatable(run)
    assert metrics(forked)[:3] == metrics(run)[:3]
    assert metrics(forked)[3]["time"] > metrics(run)[-1]["time"]
    identity = told(forked)
    assert identity["parent"] == {"run": run.name, "step": 2}
    assert identity["name"] == "small-linear-fork2-s0"
    assert identity["fingerprint"] != told(run)["fingerprint"]  # never "already done" for it


@pytest.mark.slow
def test_a_fork_goes_its_own_way_and_outlives_its_parent(home: tuple[Bench, Path]) -> None:
    """Another end stretches the schedule; a fork of the fork begins where the parent never was."""
    bench, run = home
    before = metrics(run)
    shown = bench.type("fork", f"{run.name}@4", "--set", "train.steps=8", "--seed", "5")
    assert "finished" in shown.stdout
    forked = child(bench, run)
    lines = metrics(forked)
    assert [line["step"] for line in lines] == list(range(9))
    assert lines[:5] == before[:5]
    # int(8 * .8) = 6, while the parent's window had closed at step int(6 * .8) = 4.
    assert before[5]["schedule/magnitude"] == 0 < lines[5]["schedule/magnitude"]
    assert lines[6]["schedule/magnitude"] == 0
    shutil.rmtree(run)
    bench.type("fork", forked.name, "--set", "train.steps=9", "--set", "optim.lr=1e-6")
    grandchild = child(bench, forked)
    assert told(grandchild)["parent"] == {"run": forked.name, "step": 8}
    assert told(grandchild)["name"] == "small-linear-fork8-s5"
    assert metrics(grandchild)[:9] == lines
    bench.type("resume", forked.name, "--steps", "9", "--horizon", "9")
    assert metrics(forked)[-1]["step"] == 9


@pytest.mark.slow
def test_a_stopped_fork_is_resumed_before_its_first_own_checkpoint(
    home: tuple[Bench, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its schedule is written into the checkpoint: nobody needs to name the horizon again."""
    bench, run = home
    monkeypatch.setenv("TPCLI_RUNS", str(bench.folder / "runs"))
    made = create(lineage.fork(f"{run.name}@4", overrides=["train.steps=8"]))
    Registry(made.parent).index(made)
    bench.type("resume", made.name)
    assert metrics(made)[-1]["step"] == 8


# In parts, without training


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with checkpoints of 2 and 4 that hold no weights."""
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    (tmp_path / "small.toml").write_text(SMALL)
    recipe = load_recipe(tmp_path / "small.toml").recipe
    base = tmp_path / "runs"
    run = make_run(
        base,
        "abcdefg",
        state=FINISHED,
        lines=lines_of(6),
        name="small-linear-s0",
        recipe="small.toml",
    )
    (run / "resolved.toml").write_text(to_toml(recipe))
    (run / "provenance.json").write_text(json.dumps({"data": {"sha256": "0" * 64}}))
    for step in (2, 4):
        place = run / "checkpoints" / f"step-{step:06d}"
        (place / "model").mkdir(parents=True)
        (place / "model" / "model.safetensors").write_bytes(b"weights")
        state: dict[str, Any] = {
            "step": step,
            "horizon": 6,
            "prompts_seen": 4 * step,
            "seed": 0,
            "tempo": {},
        }
        (place / "state.json").write_text(json.dumps(state))
        group = {"lr": 1.0, "betas": (0.9, 0.95), "eps": 1e-8, "params": [0]}
        groups = [group | {"weight_decay": 0.01}, group | {"weight_decay": 0.0, "params": [1]}]
        moments = {0: {"exp_avg": torch.ones(2)}}
        kept = {"optimizer": {"state": moments, "param_groups": groups}}
        torch.save(kept, place / "optimizer.pt")
    return base


def test_a_fork_takes_the_checkpoint_by_links_and_leaves_the_parents_alone(runs: Path) -> None:
    parent = runs / "abcdefg"
    before = {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}
    made = create(lineage.fork("abcdefg@4", overrides=["train.steps=9"]))
    assert [path.name for path in (made / "checkpoints").iterdir()] == ["step-000004"]
    place, source = (run / "checkpoints/step-000004" for run in (made, parent))
    for name in ("model/model.safetensors", "optimizer.pt"):
        assert os.path.samefile(place / name, source / name)
    assert told(place, "state.json") == told(source, "state.json") | {"horizon": 9}
    assert [line["step"] for line in metrics(made)] == [0, 1, 2, 3, 4]
    assert metrics(made) == metrics(parent)[:5]
    resolved = tomllib.loads((made / "resolved.toml").read_text())
    assert resolved["train"]["steps"] == 9
    assert told(made)["recipe"] == "small.toml"
    assert told(made, "provenance.json")["data"] == {"sha256": "0" * 64}
    assert {path: path.read_bytes() for path in before} == before


def test_other_questions_are_a_matter_of_the_recipe(runs: Path) -> None:
    """Where [data] is another, the worker must not ask for the parent's questions."""
    path = runs / "abcdefg" / "resolved.toml"
    without = load_recipe(path).recipe.model_copy(update={"warmup": None})
    path.write_text(to_toml(without))
    made = create(lineage.fork("abcdefg", overrides=["data.size=77"]))
    assert told(made, "provenance.json")["data"] == {}


def test_a_rerun_of_a_fork_begins_with_the_first_step_and_says_so(runs: Path) -> None:
    made = create(lineage.fork("abcdefg@4", overrides=["train.steps=9"]))
    Registry(runs).index(made)
    planned = lineage.again(made.name)
    assert planned.parent is None
    assert planned.loaded.warnings[-1] == (
        f"{made.name} is a fork of abcdefg@4; this begins with the first step"
    )
    assert planned.fingerprint != told(made)["fingerprint"]


def test_without_links_a_fork_is_a_copy(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError(18, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    made = create(lineage.fork("abcdefg"))
    weights = "checkpoints/step-000004/model/model.safetensors"
    assert (made / weights).read_bytes() == b"weights"
    assert not os.path.samefile(made / weights, runs / "abcdefg" / weights)


def test_constants_of_the_optimiser_become_the_childs(runs: Path) -> None:
    """Its state would bring the parent's along; vectors stay undecayed."""
    made = create(lineage.fork("abcdefg", overrides=["optim.weight_decay=0.3", "optim.eps=1e-5"]))
    kept, source = (
        torch.load(run / "checkpoints/step-000004/optimizer.pt", weights_only=True)["optimizer"]
        for run in (made, runs / "abcdefg")
    )
    assert [group["weight_decay"] for group in kept["param_groups"]] == [0.3, 0.0]
    assert [group["eps"] for group in kept["param_groups"]] == [1e-5, 1e-5]
    assert torch.equal(kept["state"][0]["exp_avg"], torch.ones(2))
    assert [group["weight_decay"] for group in source["param_groups"]] == [0.01, 0.0]


def test_what_cannot_be_forked_leaves_no_folder(runs: Path) -> None:
    with pytest.raises(NotFoundError, match="no checkpoint of step 3") as missing:
        lineage.fork("abcdefg@3")
    assert missing.value.hint == "it has 2, 4: tpcli fork abcdefg@4 ..."
    with pytest.raises(UsageError, match="x is not a step"):
        lineage.fork("abcdefg@x")
    with pytest.raises(UsageError, match="ends with step 4") as ended:
        lineage.fork("abcdefg@4", overrides=["train.steps=4"])
    assert ended.value.hint == "train further: --set train.steps=104"
    with pytest.raises(UsageError, match="cannot be a name"):
        lineage.fork("abcdefg@4", name="a b")
    for change in (
        "model.scratch.layers=1",
        'model.scratch.alphabet="0123456789+-=;x"',
        "warmup.steps=7",
        "data.held_out=0.3",  # the policy before RL learned from the others
    ):
        key = change.partition("=")[0]
        with pytest.raises(UsageError, match=key) as misfit:
            lineage.fork("abcdefg@4", overrides=[change])
        assert f"tpcli rerun abcdefg --set {key}=" in misfit.value.hint
    lineage.fork("abcdefg@4", overrides=["model.gradient_checkpointing=true"])
    shutil.rmtree(runs / "abcdefg" / "checkpoints")
    with pytest.raises(NotFoundError, match="no checkpoint to fork from"):
        lineage.fork("abcdefg")
    assert [path.name for path in runs.iterdir() if path.is_dir()] == ["abcdefg"]


def test_a_checkpoint_dropped_meanwhile_is_told(runs: Path) -> None:
    planned = lineage.fork("abcdefg@2")
    shutil.rmtree(runs / "abcdefg/checkpoints/step-000002")
    with pytest.raises(NotFoundError, match="step 2 has just been dropped"):
        create(planned)
    assert [path.name for path in runs.iterdir() if path.is_dir()] == ["abcdefg"]


@pytest.mark.parametrize(
    ("name", "seed", "overrides", "expected"),
    [
        ("small-linear-s0", None, [], "small-linear-s0"),
        ("small-linear-s0", 3, [], "small-linear-s3"),
        ("small-linear-s0", None, ['credit.schedule.curve="cosine"'], "small-cosine-s0"),
        ("mine", None, [], "mine"),
        ("mine", 3, [], "mine-s3"),
        ("mine-s0", 3, ['credit.schedule.curve="cosine"'], "mine-s3"),
    ],
)
def test_names_follow_the_seed(
    runs: Path, name: str, seed: int | None, overrides: list[str], expected: str
) -> None:
    path = runs / "abcdefg" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name}))
    planned = lineage.again("abcdefg", seed=seed, overrides=overrides)
    assert planned.name == expected
    assert planned.loaded.path == Path("small.toml")
