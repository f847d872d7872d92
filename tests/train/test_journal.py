"""What the worker writes: whole lines, cut back to a step, timed phases."""

import json
from pathlib import Path

from tpcli.registry.folder import read_metrics
from tpcli.train.journal import Journal
from tpcli.types import StepStats


def test_cut_back_forgets_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, steps=5)
    for step in range(5):
        journal.metrics(StepStats(step, {"reward/mean": step / 10}))
        journal.responses([{"step": step, "response": "a\nb"}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    journal.cut_back(2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2]
    lines = (tmp_path / "responses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
    journal.metrics(StepStats(3, {"reward/mean": 0.3}))
    assert read_metrics(tmp_path)[-1]["reward/mean"] == 0.3


def test_cut_back_to_nothing_without_files(tmp_path: Path) -> None:
    Journal(tmp_path, steps=1).cut_back(0)
    assert read_metrics(tmp_path) == []


def test_progress_says_phase_and_share(tmp_path: Path) -> None:
    journal = Journal(tmp_path, steps=9)
    with journal.phase("rollout", 4) as report:
        told = json.loads((tmp_path / "progress.json").read_text())
        assert (told["phase"], told["step"], told["steps"]) == ("rollout", 4, 9)
        report(3, 8)
    with journal.phase("rollout", 5):
        pass
    assert set(journal.take_seconds()) == {"rollout"}
    assert journal.take_seconds() == {}


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, steps=1, writes=False)
    journal.enter("rollout", 1)
    journal.metrics(StepStats(1))
    journal.responses([{"step": 1}])
    journal.cut_back(0)
    assert list(tmp_path.iterdir()) == []
