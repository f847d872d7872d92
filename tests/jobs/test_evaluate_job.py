"""The use case below `tpcli eval`: a run, its place, its copies; comparing; recipe prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from mlflow.tracking import MlflowClient
from tests.bench.boxer import boxer, question_files, trained

from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs import evaluate
from tpcli.jobs.evaluate import Evaluated
from tpcli.jobs.examine import Observer, Request
from tpcli.metrics.mlflow import default_store
from tpcli.registry.store import Registry


class Watching(Observer):
    """Remembers which benchmarks were generated for."""

    def __init__(self) -> None:
        self.benches: list[str] = []

    def generating(self, bench: str, done: int, asked: int, tokens: int) -> None:
        self.benches.append(bench)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    boxer(folder / "model")
    boxer(folder / "other", seed=1)
    question_files(folder)
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, desk: Path) -> Path:
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(desk)
    return tmp_path / "runs"


AIME = Request(
    benches=("aime24",),
    target="./model",
    files={"aime24": Path("aime24.jsonl")},
    n=4,
    temperature=1.0,
    top_k=0,
    max_tokens=30,
)


def run(**more: Any) -> tuple[Evaluated, list[str]]:
    """The result, and the benchmarks that were generated for."""
    watching = Watching()
    return evaluate.run(replace(AIME, **more), watching), watching.benches


def test_a_finished_run_is_evaluated_where_it_lies(runs: Path, desk: Path) -> None:
    """No target: the newest. Its folder, the registry and MLflow have the result."""
    trained(runs, "aaaaaaa", desk / "model", steps=(2,), created=1.0)
    newest = trained(runs, "bbbbbbb", desk / "model", steps=(4, 6), created=2.0)
    found, _ = run(target=None)
    (outcome,) = found.outcomes
    assert outcome.folder.parent == newest / "evals"
    assert not (runs / "models").exists()
    [row] = Registry(runs).evaluations()
    assert (row.run, row.step, row.bench, row.n) == ("bbbbbbb", 6, "aime24", 4)
    assert row.value == outcome.summary.avg.value
    assert (runs / row.path).is_file()
    assert evaluate.mirror(found.subject) is None
    assert evaluate.mirror(found.subject) is None
    client = MlflowClient(default_store(runs))
    experiment = client.get_experiment_by_name("tpcli")
    assert experiment is not None
    (copy,) = client.search_runs([experiment.experiment_id])
    assert copy.data.tags["tpcli.run"] == "bbbbbbb"
    history = client.get_metric_history(copy.info.run_id, "bench/aime24/avg_4")
    assert [(one.step, one.value) for one in history] == [(6, row.value)]


def test_a_runs_own_limit_of_tokens_is_the_default(runs: Path, desk: Path) -> None:
    trained(runs, "aaaaaaa", desk / "model", steps=(2,))
    found, _ = run(target="aaaaaaa", max_tokens=None, limit=2)
    assert found.sampling.max_tokens == 64  # of recipes/tiny.toml
    assert found.outcomes[0].summary.tokens <= 64


def texts(found: Evaluated) -> list[str]:
    path = found.outcomes[0].folder / "generations.jsonl"
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_only_what_is_missing_is_generated(runs: Path) -> None:
    first, asked = run(limit=4)
    assert "aime24" in asked
    assert first.outcomes[0].result["limit"] == 4
    again, asked = run(limit=4)
    assert asked == []
    assert again.outcomes[0].stored
    assert again.outcomes[0].summary == first.outcomes[0].summary
    written = json.dumps(first.outcomes[0].result)
    assert json.dumps(again.outcomes[0].result) == written
    fewer, asked = run(limit=2)
    assert asked == []
    assert set(fewer.outcomes[0].summary.correct) < set(first.outcomes[0].summary.correct)
    before = texts(first)
    whole, asked = run()
    assert "aime24" in asked
    assert texts(whole)[:16] == before
    assert len(texts(whole)) == 120
    assert whole.outcomes[0].result["limit"] is None
    assert len(Registry(runs).evaluations()) == 3


def test_other_settings_are_another_evaluation(runs: Path) -> None:
    places = {
        run(limit=1, **more)[0].outcomes[0].folder
        for more in ({}, {"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}, {"max_tokens": 20})
    }
    assert len(places) == 5


def test_regrade_with_nothing_stored_refuses_and_loads_no_model(runs: Path) -> None:
    with pytest.raises(NotFoundError, match="8 responses of 8 are not stored"):
        run(limit=2, regrade=True)
    assert Registry(runs).evaluations() == []


def test_another_verifier_judges_the_same_responses(runs: Path) -> None:
    first, _ = run(limit=4)
    other, asked = run(limit=4, verifier="exact")
    assert asked == []
    assert other.outcomes[0].folder == first.outcomes[0].folder
    kinds = {one.verifier for one in Registry(runs).evaluations()}
    assert len(kinds) == 2
    with pytest.raises(UsageError, match="no verifier"):
        run(limit=4, verifier="exactly")


def test_against_the_same_weights_nothing_differs(runs: Path) -> None:
    found, _ = run(vs="./model", limit=4)
    (pair,) = found.against
    assert pair.paired.difference == 0
    assert pair.solved.only_new == pair.solved.lost == 0
    assert pair.solved.both + pair.solved.neither == 4


def test_the_other_side_is_sampled_in_the_same_way(runs: Path, desk: Path) -> None:
    """A run whose recipe would end responses at 64 tokens, and a model that has no recipe."""
    trained(runs, "aaaaaaa", desk / "other", steps=(2,))
    found, _ = run(target="aaaaaaa", vs="./model", max_tokens=None, limit=2)
    ours, theirs = found.outcomes[0].result["settings"], found.others[0].result["settings"]
    assert ours["sampling"] == theirs["sampling"]
    assert ours["sampling"]["max_tokens"] == 64
    assert ours["policy"] != theirs["policy"]


def test_two_at_once_are_refused_by_the_folder(runs: Path) -> None:
    found, _ = run(limit=1)
    held = FileLock(found.outcomes[0].folder / ".lock")
    with held, pytest.raises(UsageError, match="another process is at this evaluation"):
        run(limit=1)
    assert run(limit=1)[1] == []
