"""One word for a run or for a group of runs, a run a seed."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from tests.registry.folders import FINISHED, make_run

from tpcli.errors import NotFoundError
from tpcli.jobs.runs import choose, find
from tpcli.registry.store import Registry


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs by name, two of them tagged together with a fourth."""
    path = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(path))
    add(path, "aaaaaaa", "math-linear-s10", 10, ["best"])
    add(path, "bbbbbbb", "math-linear-s2", 2, ["best"])
    add(path, "ccccccc", "math-linear-s3", 3, [])
    add(path, "ddddddd", "other", 5, ["best", "late"])
    add(path, "eeeeeee", "math-linear-s3-x", 4, [])
    return path


def add(path: Path, run_id: str, name: str, seed: int, tags: list[str], **more: Any) -> None:
    state = FINISHED | more.pop("state", {})
    Registry(path).index(
        make_run(path, run_id, name=name, seed=seed, tags=tags, state=state, **more)
    )


def chosen(word: str) -> tuple[str, list[str], list[str]]:
    found = choose(word)
    return found.label, [run.id for run in found.runs], found.notes


def test_a_tag_is_a_group_in_order_of_seed(runs: Path) -> None:
    assert chosen("@best") == ("best", ["bbbbbbb", "ddddddd", "aaaaaaa"], [])


def test_a_part_of_a_tag_is_none(runs: Path) -> None:
    with pytest.raises(NotFoundError):
        choose("@bes")


def test_without_the_tag_the_names_count(runs: Path) -> None:
    assert chosen("@math-linear") == ("math-linear", ["bbbbbbb", "ccccccc", "aaaaaaa"], [])
    add(runs, "fffffff", "x", 1, ["math-linear"])
    assert chosen("@math-linear") == ("math-linear", ["fffffff"], [])


def test_one_run_is_called_by_its_name_if_only_it_has_that(runs: Path) -> None:
    assert chosen("ccc") == ("math-linear-s3", ["ccccccc"], [])
    assert chosen("other") == ("other", ["ddddddd"], [])
    add(runs, "fffffff", "other", 1, [])
    assert chosen("ddddddd") == ("ddddddd", ["ddddddd"], [])


def test_of_a_seed_the_newest_finished_one_counts(runs: Path) -> None:
    add(runs, "fffffff", "math-linear-s3", 3, [], created=2000.0)
    add(runs, "ggggggg", "math-linear-s3", 3, [], created=3000.0, state={"status": "failed"})
    label, ids, notes = chosen("@math-linear")
    assert (label, ids) == ("math-linear", ["bbbbbbb", "fffffff", "aaaaaaa"])
    assert notes == [
        "@math-linear, seed 3: fffffff counts; left out: ggggggg (failed), ccccccc (finished)"
    ]


def test_where_none_is_finished_the_newest_counts(runs: Path) -> None:
    for number, run_id in enumerate(("fffffff", "ggggggg")):
        state = {"status": "stopped"}
        add(runs, run_id, "math-off-s0", 0, [], created=2000.0 + number, state=state)
    assert chosen("@math-off")[1] == ["ggggggg"]


@pytest.mark.parametrize(
    ("word", "near"), [("@math-liner", "@math-linear"), ("@bets", "@best"), ("@", "@best")]
)
def test_an_unknown_group_gets_the_nearest(runs: Path, word: str, near: str) -> None:
    with pytest.raises(NotFoundError, match=f"no runs in the group {word}") as caught:
        choose(word)
    assert near in caught.value.hint


def test_a_killed_run_is_dead_here_at_once_and_elsewhere_within_a_minute(runs: Path) -> None:
    """Its last sign of life is 54 seconds old; there is no process 2**22 + 1 on Linux."""
    now = time.time()
    state = {"status": "running", "heartbeat": now - 54.0, "pid": 2**22 + 1}
    add(runs, "here000", "x", 0, [], state=state | {"host": socket.gethostname()})
    add(runs, "there00", "y", 0, [], state=state | {"host": "elsewhere"})
    assert find("here000").status == "dead"
    assert find("there00").status == "running"
    limit = time.monotonic() + 30
    while find("there00").status == "running" and time.monotonic() < limit:
        time.sleep(0.2)
    assert 6 <= time.time() - now < 20
    assert find("there00").status == "dead"
