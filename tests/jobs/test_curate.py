"""Tags, notes, names, removal and deletion: the folder is changed first, the index follows."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.registry.folders import FINISHED, make_run

from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs import curate
from tpcli.jobs.runs import choose, find
from tpcli.registry import folder
from tpcli.registry.folder import BrokenFolderError
from tpcli.registry.store import Registry


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seeds 0 and 1 of a group by name, both finished, without tags."""
    path = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(path))
    for seed, run_id in enumerate(("aaaaaaa", "bbbbbbb")):
        add(path, run_id, name=f"math-linear-s{seed}", seed=seed)
    return path


def add(path: Path, run_id: str, state: dict[str, Any] = FINISHED, **identity: Any) -> Path:
    run_dir = make_run(path, run_id, state=state, **{"tags": [], **identity})
    Registry(path).index(run_dir)
    return run_dir


def alive() -> dict[str, Any]:
    return FINISHED | {"status": "running", "heartbeat": time.time()}


class TestTags:
    def test_they_are_added_once_and_taken_away(self, runs: Path) -> None:
        curate.tag(["aaa"], ["best", "ok"])
        [run] = curate.tag(["aaaaaaa"], ["ok", "new"])
        assert run.tags == ("best", "ok", "new")
        [run] = curate.tag(["aaaaaaa"], ["best", "never"], remove=True)
        assert run.tags == ("ok", "new")

    def test_they_live_in_the_folder(self, runs: Path) -> None:
        curate.tag(["@math-linear"], ["best"])
        curate.note("aaa", "two words")
        curate.rename("bbb", "chosen-s1")
        before = Registry(runs).list()
        (runs / "registry.db").unlink()
        Registry(runs).rebuild()
        after = Registry(runs).list()
        assert after == before
        assert [run.tags for run in after] == [("best",), ("best",)]
        assert {run.note for run in after} == {"", "two words"}
        assert find("chosen-s1").id == "bbbbbbb"

    @pytest.mark.parametrize("word", ["", "two words", "a/b", "x" * 101, "ä", "@x"])
    def test_words_are_checked_before_anything_changes(self, runs: Path, word: str) -> None:
        before = (runs / "aaaaaaa" / folder.RUN).read_text()
        with pytest.raises(UsageError, match="cannot be a name or a tag"):
            curate.tag(["aaa"], ["fine", word])
        with pytest.raises(UsageError, match="cannot be a name or a tag"):
            curate.rename("aaa", word)
        assert (runs / "aaaaaaa" / folder.RUN).read_text() == before

    def test_other_things_in_run_json_stay(self, runs: Path) -> None:
        path = add(runs, "ccccccc", parent={"run": "aaaaaaa", "step": 5}, extra=7) / folder.RUN
        before = json.loads(path.read_text())
        curate.tag(["ccc"], ["x"])
        assert json.loads(path.read_text()) == before | {"tags": ["x"]}
        assert find("ccc").parent_step == 5

    def test_a_folder_that_is_gone_does_not_come_back(self, runs: Path) -> None:
        (runs / "aaaaaaa").rename(runs.parent / "elsewhere")
        with pytest.raises(BrokenFolderError, match="aaaaaaa"):
            curate.tag(["aaaaaaa"], ["x"])
        assert not (runs / "aaaaaaa").exists()


class TestRemoval:
    def test_removed_runs_are_out_of_every_list(self, runs: Path) -> None:
        curate.remove(["aaa"])
        registry = Registry(runs)
        assert [run.id for run in registry.list()] == ["bbbbbbb"]
        assert [run.id for run in registry.list(removed=True)] == ["aaaaaaa"]
        assert (registry.count(), registry.count(removed=True)) == (1, 1)
        assert [run.id for run in choose("@math-linear").runs] == ["bbbbbbb"]
        with pytest.raises(NotFoundError, match="run aaaaaaa was removed") as caught:
            find("math-linear-s0")
        assert caught.value.hint == "tpcli runs restore aaaaaaa"
        assert find("aaa", removed=None).removed is not None
        assert registry.check() == []

    def test_a_removed_run_is_no_reason_not_to_train(self, runs: Path) -> None:
        registry = Registry(runs)
        assert registry.same("f" * 12, "0.1.0-abc") is not None
        assert registry.newest_finished() is not None
        curate.remove(["aaa", "bbb"])
        assert registry.same("f" * 12, "0.1.0-abc") is None
        assert registry.newest_finished() is None

    def test_there_and_back(self, runs: Path) -> None:
        before = (Registry(runs).list(), (runs / "aaaaaaa" / folder.RUN).read_text())
        curate.remove(["@math-linear"])
        assert Registry(runs).list() == []
        curate.restore(["aaaaaaa", "math-linear-s1"])
        after = (Registry(runs).list(), (runs / "aaaaaaa" / folder.RUN).read_text())
        assert after[0] == before[0]
        assert json.loads(after[1]) == json.loads(before[1])

    def test_it_survives_a_rebuild(self, runs: Path) -> None:
        curate.remove(["aaa"])
        Registry(runs).rebuild()
        assert [run.id for run in Registry(runs).list(removed=True)] == ["aaaaaaa"]

    def test_a_running_run_is_refused_and_then_all_stay(self, runs: Path) -> None:
        add(runs, "ccccccc", alive())
        with pytest.raises(UsageError, match="run ccccccc is running") as caught:
            curate.remove(["aaa", "ccc"])
        assert "tpcli stop ccccccc" in caught.value.hint
        assert Registry(runs).count() == 3

    def test_restoring_what_is_not_removed(self, runs: Path) -> None:
        with pytest.raises(NotFoundError, match="run aaaaaaa is not removed"):
            curate.restore(["aaa"])

    def test_a_name_means_the_kept_run(self, runs: Path) -> None:
        add(runs, "ccccccc", name="math-linear-s0")
        curate.remove(["aaa"])
        assert find("math-linear-s0").id == "ccccccc"
        assert find("math-linear-s0", removed=None).id == "ccccccc"
        assert find("math-linear-s0", removed=True).id == "aaaaaaa"


class TestCollection:
    def test_removed_runs_go_for_good(self, runs: Path) -> None:
        curate.remove(["aaa"])
        (runs / "aaaaaaa" / "checkpoints").mkdir()
        (runs / "aaaaaaa" / "checkpoints" / "weights").write_bytes(b"x" * 5000)
        [one] = curate.waste()
        assert one.bytes == sum(p.stat().st_size for p in (runs / "aaaaaaa").rglob("*.*")) + 5000
        assert curate.collect([one]) == one.bytes
        assert sorted(p.name for p in runs.iterdir() if p.is_dir()) == ["bbbbbbb"]
        assert Registry(runs).list(removed=None) == [find("bbb")]
        assert curate.waste() == []

    def test_its_results_are_forgotten_with_it(self, runs: Path) -> None:
        registry = Registry(runs)
        for run_id in ("aaaaaaa", "bbbbbbb"):
            path = runs / run_id / "evals" / "versus-1.json"
            path.parent.mkdir()
            path.write_text(json.dumps(COMPARISON | {"run": run_id}))
            registry.index_comparison(path)
        curate.remove(["aaa"])
        curate.collect(curate.waste())
        assert [one.run for one in registry.comparisons()] == ["bbbbbbb"]

    def test_older_spares_the_recent(self, runs: Path) -> None:
        curate.remove(["aaa"])
        path = runs / "aaaaaaa" / folder.RUN
        folder.write_json_atomic(
            path, folder.read_json(path) | {"removed": time.time() - 3.5 * curate.DAY}
        )
        Registry(runs).index(path.parent)
        curate.remove(["bbb"])
        assert [w.path.name for w in curate.waste(older=3)] == ["aaaaaaa"]
        assert curate.waste(older=4) == []
        assert [w.path.name for w in curate.waste()] == ["aaaaaaa", "bbbbbbb"]

    def test_a_run_restored_meanwhile_stays(self, runs: Path) -> None:
        curate.remove(["aaa"])
        found = curate.waste()
        curate.restore(["aaa"])
        assert curate.collect(found) == 0
        assert find("aaa").folder.exists()

    def test_what_crashed_writers_left(self, runs: Path) -> None:
        for name, age in ((".old.partial", 1.1), (".new.partial", 0.9)):
            (runs / name).mkdir()
            (runs / name / folder.RUN).write_text("{")
            os.utime(runs / name, (0, time.time() - age * curate.DAY))
        assert Registry(runs).rebuild() == 2
        [one] = curate.waste()
        assert (one.path.name, one.run, one.bytes) == (".old.partial", None, 1)
        curate.collect([one])
        assert [p.name for p in runs.glob(".*.partial")] == [".new.partial"]

    def test_a_deletion_that_was_cut_off_is_ended(self, runs: Path) -> None:
        curate.remove(["aaa"])
        (runs / "aaaaaaa").rename(runs / ".aaaaaaa.partial")
        [one] = curate.waste()
        assert curate.collect([one]) == one.bytes > 0
        assert not (runs / ".aaaaaaa.partial").exists()
        assert Registry(runs).list(removed=True) == []


COMPARISON: dict[str, Any] = {
    "step": 6,
    "label": "tiny",
    "other": "base",
    "created": 5.0,
    "benches": [
        {
            "bench": "aime24",
            "p_holm": None,
            "paired": dict.fromkeys(("se", "low", "high", "p_t"))
            | {"difference": 0.1, "p_sign_flip": 0.5},
            "solved": dict.fromkeys(("only_new", "lost", "both", "neither"), 1),
        }
    ],
}


def _tag(runs_dir: str, number: int) -> None:
    os.environ["TPCLI_RUNS"] = runs_dir
    curate.tag(["aaaaaaa"], [f"t{number:02d}", f"u{number:02d}"])
    curate.tag(["aaaaaaa"], [f"u{number:02d}"], remove=True)


def test_sixteen_taggers_lose_nothing(runs: Path) -> None:
    """Each adds two tags to the same run and takes one of them away again."""
    context = multiprocessing.get_context("spawn")
    taggers = [context.Process(target=_tag, args=(str(runs), number)) for number in range(16)]
    for tagger in taggers:
        tagger.start()
    for tagger in taggers:
        tagger.join()
    assert [tagger.exitcode for tagger in taggers] == [0] * 16
    [row] = [run for run in Registry(runs).list() if run.id == "aaaaaaa"]
    assert sorted(row.tags) == [f"t{number:02d}" for number in range(16)]


def test_a_name_is_no_id_of_a_run(runs: Path) -> None:
    one, other = sorted(path.parent.name for path in runs.glob("*/run.json"))[:2]
    with pytest.raises(UsageError, match="is the id of a run"):
        curate.rename(one, other)
