"""What a target names, and where its evaluations are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.bench.boxer import boxer, trained

from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs.subject import Subject, resolve


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boxer(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def named(target: str | None, *, step: int | None = None) -> Subject:
    return resolve(target, step=step, report=lambda what, done, total: None)


class TestRuns:
    def test_the_newest_finished_one_at_its_newest_checkpoint(
        self, runs: Path, model: Path
    ) -> None:
        trained(runs, "aaaaaaa", model, steps=(2, 4), created=1.0)
        newest = trained(runs, "bbbbbbb", model, steps=(4, 6), created=2.0)
        trained(runs, "ccccccc", model, steps=(2,), created=3.0, status="failed")
        found = named(None)
        assert found.run is not None
        assert (found.run.id, found.step) == ("bbbbbbb", 6)
        assert found.weights == newest / "checkpoints" / "step-000006" / "model"
        assert found.base == newest / "evals"
        assert found.label == "tiny-bbbbbbb · bbbbbbb · step 6"
        assert found.recipe is not None
        assert not found.trust_remote_code

    def test_by_the_start_of_its_id_at_a_step(self, runs: Path, model: Path) -> None:
        trained(runs, "aaaaaaa", model, steps=(2, 4))
        assert named("aaa", step=2).step == 2
        with pytest.raises(NotFoundError, match="no checkpoint of step 3") as caught:
            named("aaa", step=3)
        assert caught.value.hint == "it has 2, 4: --step 4"

    def test_without_a_checkpoint(self, runs: Path, model: Path) -> None:
        trained(runs, "aaaaaaa", model, steps=())
        with pytest.raises(NotFoundError, match="no checkpoint yet"):
            named("aaaaaaa")

    def test_before_a_warm_up_there_is_no_model(self, runs: Path, model: Path) -> None:
        trained(runs, "aaaaaaa", model, steps=(2,))
        with pytest.raises(UsageError, match="begins with a warm-up"):
            named("aaaaaaa", step=0)

    def test_no_run_at_all(self, runs: Path) -> None:
        with pytest.raises(NotFoundError, match="no finished run") as caught:
            named(None)
        assert "tpcli eval" in caught.value.hint


class TestModels:
    def test_equal_weights_are_one_policy_and_others_another(
        self, runs: Path, model: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(model, tmp_path / "again")
        boxer(tmp_path / "other", seed=1)
        first, again, other = named(str(model)), named("./again"), named("./other")
        assert first.digest == again.digest != other.digest
        assert again.base.parent.parent == runs / "models"
        assert again.base.parent.name == f"again-{again.digest[:10]}"
        assert (again.run, again.step, again.recipe) == (None, None, None)

    def test_a_changed_byte_is_another_policy(
        self, runs: Path, model: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(model, tmp_path / "again")
        before = named("./again")
        path = tmp_path / "again" / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert named("./again").base != before.base

    def test_a_step_belongs_to_a_run(self, runs: Path, model: Path) -> None:
        with pytest.raises(UsageError, match="--step belongs to a run"):
            named(str(model), step=3)

    def test_a_folder_that_is_no_model(self, runs: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(UsageError, match=r"config\.json"):
            named("./empty")


def test_a_recipe_stands_for_the_model_it_starts_from(
    runs: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(
        f"""
        [model]
        source = {json.dumps(str(model))}
        [data]
        source = "running_sum"
        [reward]
        kind = "int"
        [rollout]
        max_new_tokens = 7
        [train]
        steps = 10
        """
    )
    found = named("mine.toml")
    assert found.weights == model
    assert found.recipe is not None
    assert found.recipe.rollout.max_new_tokens == 7
    assert found.base.is_relative_to(runs / "models")
