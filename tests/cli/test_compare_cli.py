"""What `tpcli compare` prints and refuses, at several widths, and the exit codes for checks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.jobs.arms import make_arm, make_result
from tests.registry.folders import RESOLVED

from tpcli.cli import app
from tpcli.cli.chart import LABEL, overlay

COSINE = RESOLVED.replace('"linear"', '"cosine"')


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five runs "off" and "on", three "half", with a benchmark."""
    place = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(place))
    ids = make_arm(place, "off", range(5), gain=0.3)
    ids += make_arm(place, "on", range(5), gain=0.4, share=0.62, resolved=COSINE)
    make_arm(place, "half", range(3), gain=0.35)
    for i, run_id in enumerate(ids):
        make_result(place, run_id, "aime24", 0.3 + 0.01 * i)
    return place


def typed(*arguments: str) -> int:
    return app._run(["compare", *arguments])


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("others", [("@on",), ("@on", "@half")])
def test_screens_fit_and_never_drop_the_metric(
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int,
    others: tuple[str, ...],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert typed("@off", *others, "--metric", "reward,entropy", "--at", "20") == 0
    out = capsys.readouterr().out.splitlines()
    told = ("values are", "best:", "half: seeds", "exact", "p Holm:", "no room", "warning:")
    assert max(len(line) for line in out if not line.startswith(told)) <= width
    starts = ("reward ", "reward best", "reward@20", "entropy ", "entropy@20")
    for start in starts:
        assert any(line.startswith(start) for line in out)
    assert any(line.startswith("metric") and "Δ" in line for line in out)
    assert ("p t-test" in "".join(line for line in out if line.startswith("metric"))) == (
        width == 120
    )


def test_the_screen_says_what_it_must(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("@off", "@on") == 0
    out, err = capsys.readouterr()
    assert "credit.schedule.curve  linear" in out
    assert "… 6 keys equal" in out
    assert "git 3f2c1a9" in out
    assert "aime24 avg@16" in out
    assert "exact sign-flip: the smallest p at n=5 is .062; 1 more seed could reach .05" in out
    assert "warning: credit: on learned from 62% of the tokens that off did" in out
    assert "reward over step, mean over seeds" in out
    assert err == ""


def test_three_arms_are_corrected_and_missing_seeds_are_told(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert typed("@off", "@on", "@half", "--metric", "reward") == 0
    out = capsys.readouterr().out
    assert "p Holm" in out
    assert "half: seeds without a pair are left out: 3, 4" in out
    assert "the smallest p at n=3 is .250; 3 more seeds" in out
    assert "the smallest p at n=5 is .062; 1 more seed " in out


def test_single_runs_of_other_seeds_say_what_cannot_be_said(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("off1", "on2", "--metric", "reward", "--align", "magnitude") == 0
    out = capsys.readouterr().out
    assert "on-s2: no seed in common: no paired difference" in out
    assert "±" not in out
    assert "reward over magnitude" in out
    assert typed("off1", "on1", "--metric", "reward") == 0
    assert "one seed in common: a difference, but no interval" in capsys.readouterr().out


def test_many_arms_drop_columns_of_the_recipe_but_say_so(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert typed(*(f"{name}{i}" for name in ("off", "on") for i in range(5))) == 0
    out = capsys.readouterr().out
    assert "no room for" in out
    assert out.startswith("recipe diff")


def test_json_is_all_that_is_printed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("@off", "@on", "--metric", "reward", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metrics"] == ["reward"]
    assert typed("@off", "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "usage"


def test_checks_end_with_six_and_tell_the_values(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files are written all the same."""
    page = tmp_path / "page.md"
    arguments = ("@off", "@on", "--metric", "reward", "--out", str(page))
    checks = ("--fail-if", "delta(reward) > 0", "--fail-if", "reward > 9")
    assert typed(*arguments, *checks) == 6
    err = capsys.readouterr().err.splitlines()
    assert err[0] == f"wrote {page}"
    assert err[1].startswith("tripped: delta(reward) > 0: on has 0.")
    assert len(err) == 2
    assert page.exists()
    assert typed("@off", "@on", "--fail-if", "delta(reward) < 0", "--fail-if", "p(reward)>.07") == 0


def test_what_cannot_be_told_trips_and_what_is_no_condition_is_refused(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("off1", "on2", "--fail-if", "delta(reward) < -9") == 6
    assert "cannot be told of on-s2: no seed in common" in capsys.readouterr().err
    assert typed("off1", "on2", "--fail-if", "gain(reward) < 0") == 2
    assert typed("off1", "on2", "--fail-if", "delta(rewrd) < 0") == 2
    assert "did you mean reward" in capsys.readouterr().err


def test_files_are_not_replaced_unless_forced(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.csv"
    page.write_text("mine")
    assert typed("@off", "@on", "--out", str(page)) == 2
    assert page.read_text() == "mine"
    out, err = capsys.readouterr()
    assert out == ""
    assert "--force" in err
    assert typed("@off", "@on", "--out", str(page), "--force") == 0
    assert page.read_text().startswith("metric,when,arm,seed,value")


def test_curves_share_a_plot() -> None:
    """A rise over the whole width, and a level line over its right half: each owns its cells."""
    lines, owners = overlay([([0, 8], [0.0, 1.0]), ([4, 8], [0.0, 0.0])], width=4, height=2)
    assert [line[:LABEL] for line in lines[:2]] == ["  1.00", "     0"]
    assert owners == [[None, None, 0, 0], [0, 0, 1, 1]]
    assert lines[-1].split() == ["0", "8"]
    flipped, owners = overlay([([0, 8], [0.0, 1.0])], width=4, height=2, flip=True)
    assert owners == [[0, 0, None, None], [None, None, 0, 0]]
    assert flipped[-1].split() == ["8", "0"]
