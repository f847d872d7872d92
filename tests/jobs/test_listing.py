"""Lists of runs: conditions, order, keys, and forks under their origin."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.registry.folders import FINISHED, lines_of, make_run, write_metrics

from tpcli.errors import UsageError
from tpcli.jobs.listing import Query, condition, key_for, listing, tree, value_of
from tpcli.jobs.runs import refresh
from tpcli.registry import folder
from tpcli.registry.store import Registry

RECIPE = """
[optim]
lr = {lr}
betas = [0.9, 0.999]
nesterov = {nesterov}
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs, a the newest: rewards .35, .50 and none; c is recorded as running and is dead."""
    path = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(path))
    gone = FINISHED | {"status": "running", "heartbeat": 5.0}
    now = time.time()
    for run_id, steps, state, lr, nesterov, more in (
        ("a", 5, FINISHED, "1e-5", "true", {"seed": 10, "tags": ["ramp", "best"]}),
        ("b", 20, FINISHED, "3e-6", "false", {"seed": 9, "tags": ["ramp"]}),
        ("c", 0, gone, '"auto"', "true", {"seed": 8, "tags": [], "name": "other"}),
    ):
        created = now - 3600 * (ord(run_id) - ord("a")) - 10
        run_dir = make_run(
            path, run_id * 7, lines=lines_of(steps), state=state, created=created, **more
        )
        recipe = RECIPE.format(lr=lr, nesterov=nesterov)
        (run_dir / folder.RESOLVED).write_text(recipe)
        Registry(path).index(run_dir)
    return path


def ids(*where: str, **more: Any) -> str:
    return "".join(run.id[0] for run in listing(Query(where=where, **more)).runs)


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("status=finished", "ab"),
        ("status=dead", "c"),
        ("status=running", ""),
        ("status!=dead", "ab"),
        ("seed<9.5", "bc"),
        ("seed>=9", "ab"),
        ("seed<=9", "bc"),
        ("seed > 9", "a"),
        ("seed == 9", "b"),
        ("reward>0.4", "b"),
        ("reward!=0.5", "ac"),
        ("sampled=0.5", "ab"),
        ("eval/greedy>=.625", "ab"),
        ("entropy/all<.7", "b"),
        ("time/step=10", "ab"),
        ("optim.lr<5e-6", "b"),
        ("optim.lr=0.00001", "a"),
        ("optim.lr=auto", "c"),
        ("optim.lr!=auto", "ab"),
        ("optim.nesterov=true", "ac"),
        ("optim.nesterov=1", ""),
        ("optim.betas~0.999", "abc"),
        ("tag=ramp", "ab"),
        ("tag!=ramp", "c"),
        ("tag~es", "a"),
        ("name~tiny-", "ab"),
        ("name=other", "c"),
        ("age<30m", "a"),
        ("age>1.5h", "c"),
        ("created>2001-01-01", "abc"),
        ("created<2001-01-01", ""),
        ("finished<1970-01-02", "abc"),
    ],
)
def test_conditions(runs: Path, where: str, found: str) -> None:
    assert ids(where) == found


def test_all_conditions_must_hold(runs: Path) -> None:
    assert ids("tag=ramp", "optim.lr>5e-6", "status=finished") == "a"
    assert ids("tag=best", "seed=9") == ""


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (None, "abc"),
        ("reward", "abc"),
        ("-reward", "bac"),
        ("seed", "cba"),
        ("-seed", "abc"),
        ("optim.lr", "bac"),
        ("-optim.lr", "cab"),
        ("name", "cab"),
        ("sampled", "abc"),
        ("-sampled", "abc"),
        ("age", "abc"),
        ("-age", "cba"),
    ],
)
def test_order_with_what_is_missing_last_both_ways(
    runs: Path, sort: str | None, order: str
) -> None:
    """Seed 10 comes after 9, and a word after every number; equal ones stay newest first."""
    write_metrics(runs / "ccccccc", [])
    Registry(runs).index(runs / "ccccccc")
    assert ids(sort=sort) == order
    assert ids(sort=sort, limit=2) == order[:2]


def test_the_total_counts_what_does_not_fit_too(runs: Path) -> None:
    found = listing(Query(where=["seed=9"]))
    assert (len(found.runs), found.total, found.notes) == (1, 3, [])


class TestRefusals:
    @pytest.mark.parametrize("text", ["", "status", "=finished", "a b=3", "status:finished"])
    def test_what_is_no_condition(self, text: str) -> None:
        with pytest.raises(UsageError, match="no condition") as caught:
            condition(text)
        assert "KEY OP VALUE" in caught.value.hint

    @pytest.mark.parametrize(
        "query",
        [
            Query(where=["rewrad>3"]),
            Query(sort="rewrad"),
            Query(sort="-rewrad"),
            Query(columns=["rewrad"]),
        ],
    )
    def test_an_unknown_key_gets_the_nearest(self, runs: Path, query: Query) -> None:
        with pytest.raises(UsageError, match='no run has "rewrad"') as caught:
            listing(query)
        assert "reward" in caught.value.hint

    @pytest.mark.parametrize(
        ("word", "near"), [("optim.lrs", "optim.lr"), ("eval/sample", "eval/sampled")]
    )
    def test_settings_and_metrics_are_known_too(self, runs: Path, word: str, near: str) -> None:
        with pytest.raises(UsageError) as caught:
            listing(Query(sort=word))
        assert near in caught.value.hint

    def test_a_metric_that_nobody_recorded_is_said(self, runs: Path) -> None:
        found = listing(Query(sort="kl"))
        assert len(found.runs) == 3
        assert found.notes == ["no run has recorded kl yet"]

    def test_an_unknown_status(self, runs: Path) -> None:
        with pytest.raises(UsageError, match="finshed") as caught:
            listing(Query(where=["status=finshed"]))
        assert "finished" in caught.value.hint

    def test_words_have_no_order_among_numbers(self, runs: Path) -> None:
        with pytest.raises(UsageError, match='seed is a number, and "many" is not'):
            listing(Query(where=["seed>many"]))
        with pytest.raises(UsageError, match="tags have no order"):
            listing(Query(where=["tag>ramp"]))

    def test_nothing_is_refused_where_there_are_no_runs(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "none"))
        found = listing(Query(where=["optim.lr=3"], sort="-reward"))
        assert (found.runs, found.total, found.notes) == ([], 0, [])
        assert not (tmp_path / "none").exists()


def test_a_value_of_the_list_is_the_value_of_the_run(runs: Path) -> None:
    """What a condition looks at, and what a column shows."""
    registry = Registry(runs)
    words = ["id", "seed", "tag", "reward", "eval/greedy", "time/step", "optim.lr", "parent"]
    rows = registry.values([key_for(word) for word in words])
    assert len(rows) == 3
    for run_id, *values in rows:
        [run] = registry.get([run_id])
        assert [value_of(run, word) for word in words] == values


def test_a_run_under_way_is_read_afresh_before_it_is_judged(runs: Path) -> None:
    write_metrics(runs / "ccccccc", lines_of(19))
    (runs / "ccccccc" / folder.STATE).write_text(json.dumps(FINISHED))
    assert ids("status=finished", "reward>.45") == "bc"


def test_a_dead_run_that_grew_is_read_afresh_once(runs: Path) -> None:
    """Its state stands still; the last step gives it away. Then its row is left alone."""
    write_metrics(runs / "ccccccc", lines_of(19))
    assert ids("step=19") == "c"
    registry = Registry(runs)
    assert [run.id for run in registry.under_way()] == ["ccccccc"]
    assert not refresh(registry, registry.under_way())


class TestTree:
    def lines(self, tmp_path: Path, *forks: tuple[str, str, int]) -> list[str]:
        registry = Registry(tmp_path)
        registry.index(make_run(tmp_path, "root", created=1.0))
        registry.index(make_run(tmp_path, "alone", created=2.0))
        for number, (run_id, parent, step) in enumerate(forks):
            origin = {"run": parent, "step": step}
            registry.index(make_run(tmp_path, run_id, created=3.0 + number, parent=origin))
        return [mark + run.id for mark, run in tree(registry.list())]

    def test_forks_stand_under_their_origin_by_step(self, tmp_path: Path) -> None:
        forks = (("late", "root", 40), ("early", "root", 8), ("deep", "early", 20))
        assert self.lines(tmp_path, *forks) == [
            "alone",
            "root",
            "├─ @8 early",
            "│  └─ @20 deep",
            "└─ @40 late",
        ]

    def test_the_last_one_leaves_no_line_behind(self, tmp_path: Path) -> None:
        forks = (("a", "root", 8), ("b", "a", 9), ("c", "a", 10))
        assert self.lines(tmp_path, *forks)[-3:] == ["└─ @8 a", "   ├─ @9 b", "   └─ @10 c"]

    def test_nobody_is_lost(self, tmp_path: Path) -> None:
        """An origin that is not in the list, and folders that name each other."""
        forks = (("orphan", "gone", 8), ("hen", "egg", 1), ("egg", "hen", 1))
        found = self.lines(tmp_path, *forks)
        assert sorted(found) == ["alone", "egg", "hen", "orphan", "root"]


def best_of_three(work: Callable[[], object]) -> float:
    """Processor time of this process, seconds."""
    took = []
    for _ in range(3):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


def test_ten_thousand_runs_are_listed_quickly(runs: Path) -> None:
    """In .05 to .5 of the time where this was written; rows as wide as those of real runs."""
    settings = {f"section.key{n:02d}": "value of usual length" for n in range(90)}
    metrics = {f"group/metric{n:02d}": n / 7 for n in range(50)}
    with sqlite3.connect(runs / "registry.db") as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(runs)")]
        first = connection.execute("SELECT * FROM runs WHERE id = 'bbbbbbb'").fetchone()
        row = dict(zip(names, first, strict=True))
        made = [
            row
            | {
                "id": f"r{n:06d}",
                "created": float(n),
                "reward_last": n / 10_000,
                "settings": json.dumps(settings | {"optim.lr": n}),
                "metrics": json.dumps(metrics),
            }
            for n in range(10_000)
        ]
        marks = ", ".join("?" * len(names))
        connection.executemany(
            f"INSERT INTO runs VALUES ({marks})", [[one[name] for name in names] for one in made]
        )
    # The machine may be slow or busy: beside it the same rows are read whole, as no list need do.
    with sqlite3.connect(runs / "registry.db") as connection:
        whole = best_of_three(
            lambda: [
                (json.loads(settings), json.loads(metrics))
                for settings, metrics in connection.execute("SELECT settings, metrics FROM runs")
            ]
        )
    for query in (
        Query(limit=20),
        Query(where=["status=finished"], sort="-reward", columns=["optim.lr"], limit=20),
        Query(where=["optim.lr>5000", "tag=ramp"], sort="-optim.lr", limit=20),
    ):
        found = listing(query)
        assert (len(found.runs), found.total) == (20, 10_003)
        took = best_of_three(partial(listing, query))
        assert took < whole
    assert found.runs[0].id == "r009999"
