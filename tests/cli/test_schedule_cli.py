"""``tpcli schedule plot``: what it prints, warns about and draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tpcli import errors
from tpcli.cli.app import main

RECIPE = """\
[model]
source = "m"
[data]
source = "running_sum"
[rollout]
max_new_tokens = 1000
[train]
steps = 10
"""
ADAPTIVE = 'credit.schedule={curve="adaptive",target=0.5,max_change=0.1}'


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    (folder / "recipes").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    Path("recipes/math.toml").write_text(RECIPE)


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["schedule", "plot", *args])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_without_a_recipe_the_main_one(capsys: pytest.CaptureFixture[str]) -> None:
    """The window of 10 steps closes at int(10 * .8); .99 (1 - 1/8) leaves 13% at step 1."""
    assert run() == errors.OK
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == "math.toml · 10 steps · trajectory_percentile, late"
    assert lines[2] == "credit.schedule  linear .990 → 0"
    assert lines[3].endswith(" · moves from step 1 to step 8 of 10")
    assert "credited share  13% → 100% of a response of 1000 tokens" in lines
    table = [line.split() for line in lines]
    assert table[table.index(["step", "credited", "magnitude"]) + 1 :] == [
        ["1", "13%", ".866"],
        ["2", "26%", ".742"],
        ["3", "38%", ".619"],
        ["4", "50%", ".495"],
        ["5", "63%", ".371"],
        ["6", "75%", ".247"],
        ["7", "88%", ".124"],
        ["8", "100%", "0"],
        ["9", "100%", "0"],
        ["10", "100%", "0"],
    ]


def test_it_stays_within_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curve's axis ends at the edge; of the table's columns the last go first."""
    more = ["--set", "loss.clip_high={initial=0.28,final=0.2}", "--steps", "117"]
    for width in (120, 80, 60, 40):
        monkeypatch.setenv("COLUMNS", str(width))
        assert run(*more) == errors.OK
        lines = capsys.readouterr().out.splitlines()
        plots = [line for line in lines if "┤" in line or "└" in line]
        assert max(map(len, plots)) == min(width, 100)
    monkeypatch.setenv("COLUMNS", "30")
    run(*more)
    assert ["step", "credited", "magnitude"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_json_has_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--steps", "4", "--json", "--set", "credit.schedule.end=1.0") == errors.OK
    found = json.loads(capsys.readouterr().out)
    (schedule,) = found["schedules"]
    assert found["steps"] == 4
    assert schedule["window"] == [0, 4]
    assert schedule["low"] == schedule["high"] == pytest.approx([0.7425, 0.495, 0.2475, 0.0])
    assert found["response_tokens"] == 1000
    assert found["credited_share"] == [[0.258] * 2, [0.505] * 2, [0.753] * 2, [1.0] * 2]


@pytest.mark.parametrize(
    ("settings", "warned", "window"),
    [
        (
            ["train.horizon=40"],
            "is cut short: it would end at step 32, of 10",
            "moves from step 1 to step 32, training ends with step 10",
        ),
        (
            ["train.horizon=40", "credit.schedule.start=0.5"],
            "never moves: it begins after step 20, of 10",
            "would move from step 21 to step 32, training ends with step 10",
        ),
    ],
)
def test_a_ramp_that_training_does_not_see_is_warned_about(
    capsys: pytest.CaptureFixture[str], settings: list[str], warned: str, window: str
) -> None:
    run(*(word for setting in settings for word in ("--set", setting)))
    out, err = capsys.readouterr()
    assert f"warning: credit.schedule {warned}" in err
    assert window in out
    assert "warning" not in out


def test_an_adaptive_schedule_says_what_it_follows(capsys: pytest.CaptureFixture[str]) -> None:
    run("--set", ADAPTIVE)
    out = capsys.readouterr().out
    assert "adaptive between .297 and .990" in out  # 7 moves of .1 * .99
    assert "follows entropy, to hold 0.5 nats" in out
    assert "may move from step 2 to step 8 of 10" in out  # step 1 is measured before any move
    assert max(map(len, out.splitlines())) <= 80
    assert ["8", "1%–70%", ".297–.990"] in [line.split() for line in out.splitlines()]


def test_the_learning_rate_s_rise_and_fall(capsys: pytest.CaptureFixture[str]) -> None:
    """Half of 2e-4 at step 1, and half of it again at p = .5 of steps 2 to 10."""
    rate = ["optim.lr=2e-4", "optim.schedule='cosine'", "optim.warmup_steps=2"]
    run(*(word for setting in rate for word in ("--set", setting)))
    lines = capsys.readouterr().out.splitlines()
    head = lines.index("optim.lr  cosine .0002 → 0")
    rise = "times a rise over the first 2 steps · moves from step 3 to step 10 of 10"
    assert lines[head + 1] == rise
    table = [line.split() for line in lines]
    begin = table.index(["step", "credited", "magnitude", "lr"])
    assert [table[begin + step][-1] for step in (1, 2, 6, 10)] == [".0001", ".0002", ".0001", "0"]


def test_the_table_has_the_corners_of_a_course(capsys: pytest.CaptureFixture[str]) -> None:
    """Of 40 steps: quarters, the window's end at 32, and the points at .3 and .55 of it."""
    points = "credit.schedule.points=[[0.0,0.9],[0.3,0.5],[0.55,0.1],[1.0,0.0]]"
    run("--steps", "40", "--set", "credit.schedule.curve='piecewise'", "--set", points)
    assert steps_shown(capsys) == [1, 10, 18, 20, 30, 32, 40]
    run("--steps", "40", "--set", "credit.schedule.curve='stairs'")
    assert steps_shown(capsys) == [1, 8, 10, 16, 20, 24, 30, 32, 40]
    many = ["--set", "credit.schedule.curve='stairs'", "--set", "credit.schedule.stairs=16"]
    run("--steps", "40", *many)
    assert steps_shown(capsys) == [1, 10, 20, 30, 32, 40]


def steps_shown(capsys: pytest.CaptureFixture[str]) -> list[int]:
    lines = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.split()[:1] == ["step"])
    return [int(line.split()[0]) for line in lines[begin + 1 :]]


def test_of_a_given_solution_the_share_that_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    run("--set", 'credit.allocation="expert_prefix"')
    out = capsys.readouterr().out
    assert "magnitude of expert_prefix: share of the solution given" in out
    assert "solution given  87% → 0%, and every token of the response learns" in out
    assert "credited" not in out
    rows = [line.split() for line in out.splitlines()]
    assert rows[rows.index(["step", "given", "magnitude"]) + 4] == ["4", "50%", ".495"]


def test_uniform_credit(capsys: pytest.CaptureFixture[str]) -> None:
    run("--set", 'credit.allocation="uniform"')
    assert "100%, every token at every step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("out", "written"), [("a/b.svg", "a/b.svg"), ("png", "math-schedule.png"), ("x.PNG", "x.PNG")]
)
def test_a_figure_beside_the_text(
    capsys: pytest.CaptureFixture[str], out: str, written: str
) -> None:
    assert run("--out", out) == errors.OK
    assert f"figure: {written}" in capsys.readouterr().err
    assert Path(written).stat().st_size > 5000


@pytest.mark.parametrize("out", ["x.pdf", "x", "pdf"])
def test_another_format_is_refused_before_anything_is_drawn(
    capsys: pytest.CaptureFixture[str], out: str
) -> None:
    assert run("--out", out) == errors.USAGE
    told, err = capsys.readouterr()
    assert told == ""
    assert "a figure is .png or .svg" in err
    assert sorted(Path().iterdir()) == [Path("recipes")]


def test_a_faulty_recipe_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipes/maths.toml") == errors.USAGE
    assert "did you mean recipes/math.toml?" in capsys.readouterr().err
