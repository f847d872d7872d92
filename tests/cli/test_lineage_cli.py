"""What ``rerun``, ``fork`` and ``reproduce`` print, in this process and without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.jobs.bench import SMALL
from tests.registry.folders import FINISHED, lines_of, make_run

from tpcli.cli import app
from tpcli.errors import INTERRUPTED, OK, RUN_FAILED
from tpcli.jobs import reproduce, train
from tpcli.jobs.reproduce import Difference, Verdict
from tpcli.jobs.supervise import Observer, Snapshot
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import to_toml
from tpcli.registry import folder

SAME = Verdict(steps=2, numbers=1234, tensors=56, kept=(2,), there=(2, 4))
OTHER = Verdict(
    steps=1,
    numbers=700,
    kept=(),
    there=(4, 6),
    difference=Difference(2, "entropy of response 1", (5,), 0.25, 0.125, 0.125, 3, 40, 0.5),
    causes=[("packages.torch", "1.0", "2.0"), ("tpcli.code", None, "x" * 80)],
)


class Trainer:
    """Stands in for the supervisor: a run that ends at once with ``code``."""

    def __init__(self) -> None:
        self.code, self.launched = OK, list[train.Plan]()

    def __call__(self, planned: train.Plan, observe: Observer) -> Snapshot:
        self.launched.append(planned)
        state = {"status": "finished" if self.code == OK else "stopped", "exit_code": self.code}
        run = {"id": "newrun2", "name": planned.name, "steps": planned.recipe.train.steps}
        last = Snapshot(run, Path("runs/newrun2"), 1000.0, 1010.0, state=state)
        observe(last)
        return last


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A finished run of six steps, and a trainer that takes no time."""
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SMALL)
    run = make_run(
        tmp_path / "runs",
        "abcdefg",
        state=FINISHED,
        lines=lines_of(6),
        name="small-linear-s0",
        recipe="small.toml",
        horizon=6,
    )
    (run / folder.RESOLVED).write_text(to_toml(load_recipe("small.toml").recipe))
    (run / folder.CHECKPOINTS / "step-000004").mkdir(parents=True)
    double = Trainer()
    monkeypatch.setattr(train, "launch", double)
    return double


def compared(monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    def compare(original: Path, again: Path, steps: int) -> Verdict:
        assert (original.name, again.name, steps) == ("abcdefg", "newrun2", 2)
        return verdict

    monkeypatch.setattr(reproduce, "compare", compare)


def typed(*arguments: str) -> int:
    return app._run([*arguments])


def test_rerun_trains_what_the_run_says(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ("--seed", "4", "--tag", "b", "--note", "why", "--set", "train.updates=2")
    assert typed("rerun", "abc", *told) == OK
    (planned,) = trainer.launched
    assert (planned.name, planned.tags, planned.note) == ("small-linear-s4", ("b",), "why")
    assert (planned.recipe.train.updates, planned.recipe.train.seed) == (2, 4)
    assert planned.parent is None
    out, err = capsys.readouterr()
    assert "✓ finished  small-linear-s4 · newrun2" in out
    assert "newrun2" in err


def test_fork_trains_from_the_checkpoint(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("fork", "abc@4", "--name", "mine", "--set", "train.steps=9", "--json") == OK
    (planned,) = trainer.launched
    assert (planned.name, planned.recipe.train.steps) == ("mine", 9)
    assert planned.parent == train.Parent("abcdefg", 4)
    assert json.loads(capsys.readouterr().out)["id"] == "newrun2"


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (("rerun", "zzz"), 3, "no run zzz", "tpcli runs"),
        (("fork", "abc@5"), 3, "no checkpoint of step 5", "it has 4: tpcli fork abcdefg@4"),
        (("fork", "abc@4", "--set", "train.steps=3"), 2, "ends with step 3", "train.steps=104"),
        (("reproduce", "abc", "--steps", "7"), 2, "has done 6 steps", "--steps 6"),
        (("reproduce", "abc", "--steps", "0"), 2, "--steps", "--help"),
    ],
)
def test_refusals_are_told_in_two_lines(
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
    hint: str,
) -> None:
    assert typed(*arguments) == code
    told, hinted = capsys.readouterr().err.splitlines()
    assert message in told
    assert hint in hinted
    assert trainer.launched == []


@pytest.mark.parametrize("code", [INTERRUPTED, RUN_FAILED])
@pytest.mark.parametrize("command", ["rerun", "fork", "reproduce"])
def test_a_run_that_did_not_end_gives_its_own_exit_code(
    trainer: Trainer, capsys: pytest.CaptureFixture[str], command: str, code: int
) -> None:
    """A reproduction of fewer steps than were asked for is compared with nothing."""
    trainer.code = code
    assert typed(command, "abc") == code
    out = capsys.readouterr().out
    assert "tpcli resume newrun2" in out
    assert "identical" not in out


def test_identical(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(monkeypatch, SAME)
    assert typed("reproduce", "abc", "--steps", "2") == OK
    (planned,) = trainer.launched
    section = planned.recipe.train
    assert (section.steps, section.horizon, planned.tags) == (2, 6, ("reproduce",))
    out, err = capsys.readouterr()
    assert out.splitlines()[-2:] == [
        "against small-linear-s0 · abcdefg",
        "identical: 2 steps, 1,234 numbers, 56 tensors",
    ]
    assert "no tensor was compared" not in err


def test_the_first_difference_and_what_may_explain_it(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(monkeypatch, OTHER)
    assert typed("reproduce", "abc", "--steps", "2") == 6
    out, err = capsys.readouterr()
    assert out[out.index("differs") :].splitlines() == [
        "differs at step 2: entropy of response 1, number 5 (counted from 0)",
        "  original  0.25",
        "  again     0.125",
        "  apart     0.125",
        "  3 of its 40 numbers differ, by up to 0.5",
        "equal before it: 1 step, 700 numbers, 0 tensors",
        "what else differs, the likeliest cause first:",
        "  packages.torch  1.0 → 2.0",
        f"  tpcli.code      nothing → {'x' * 59}…",
    ]
    assert "the original has those of steps 4, 6" in err
    assert typed("reproduce", "abc", "--steps", "2", "--json") == 6
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (told["id"], told["status"]) == ("newrun2", "finished")
    found = told["reproduction"]
    assert (found["original"], found["identical"]) == ("abcdefg", False)
    assert found["difference"]["tensor"] == "entropy of response 1"
    assert found["causes"][0] == {"what": "packages.torch", "original": "1.0", "again": "2.0"}


def test_a_difference_without_a_recorded_cause_says_so(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(monkeypatch, replace(OTHER, causes=[]))
    assert typed("reproduce", "abc", "--steps", "2") == 6
    assert "git and data are recorded as equal" in capsys.readouterr().out
