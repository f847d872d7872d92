"""What `tpcli runs` and `tpcli logs` print."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from tests.registry.folders import FINISHED, lines_of, make_run
from typer.testing import CliRunner, Result

from tpcli.cli import logs as logs_cli
from tpcli.cli import runs as runs_cli
from tpcli.cli import runs_list
from tpcli.cli import stop as stop_cli
from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs import runs as jobs
from tpcli.jobs.listing import listing
from tpcli.registry import folder
from tpcli.registry.store import Registry

TITLES = ["id", "name", "schedule", "step", "reward", "entropy", "held-out", "age"]

app = typer.Typer()
app.add_typer(runs_cli.app, name="runs")
app.command("logs")(logs_cli.logs)
app.command("stop")(stop_cli.stop)


def invoke(*arguments: str, width: int = 200) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": str(width)}, catch_exceptions=False)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs folder of three: finished with a dirty tree, dead, failed before its first step."""
    path = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(path))
    now = time.time()
    make_run(
        path,
        "k7m2xqd",
        name="math-linear-s3",
        created=now - 7300,
        lines=lines_of(20),
        state=FINISHED | {"finished": now - 100},
        git="3f2c1a9+dirty",
    )
    gone = {"status": "running", "heartbeat": now - 79_300}
    make_run(
        path,
        "d9r4jfa",
        name="math-sigm-s0",
        created=now - 90_000,
        lines=lines_of(7),
        state=FINISHED | gone,
    )
    failed = {"status": "failed", "error": "out of memory", "hint": "lower x", "exit_code": 4}
    make_run(path, "b6t1yge", created=now - 260_000, state=FINISHED | failed, allocation="uniform")
    for run_dir in path.iterdir():
        Registry(path).index(run_dir)
    return path


def test_the_whole_table(runs: Path) -> None:
    """Reward .3 + .01 a step, entropy .8 - .01 a step, evaluations .25 and .5 (sampled)."""
    head, first, second, third = invoke("runs").stdout.splitlines()
    assert head.split() == [
        "id",
        "name",
        "schedule",
        "step",
        "reward",
        "entropy",
        "held-out",
        "age",
    ]
    assert first.startswith("✓  k7m2xqd  math-linear-s3*  linear .1–.8  ")
    assert first.split()[5:] == ["20", ".500", "▁▂▃▄▅▆▇█", ".600", ".250→.500", "2h"]
    assert second.split()[:2] == ["☠", "d9r4jfa"]
    assert "7/20" in second
    assert third.split() == ["✗", "b6t1yge", "tiny-b6t1yge", "uniform", "0/20", "–", "–", "–", "3d"]


def test_the_footer_says_what_is_wrong_and_what_to_type(runs: Path) -> None:
    result = invoke("runs", "-n", "2")
    assert result.stderr.strip() == (
        "2 of 3 · * dirty tree · ☠ no heartbeat 22h: tpcli resume d9r4jfa"
    )
    assert "out of memory: tpcli runs show b6t1yge" in invoke("runs").stderr


def test_narrow_terminals_lose_columns_and_never_the_id(runs: Path) -> None:
    seen: list[list[str]] = []
    for width in range(120, 0, -1):
        result = invoke("runs", width=width)
        head, *rows = result.stdout.splitlines()
        titles = head.split()
        if width >= 10:
            assert max(map(len, [head, *rows])) <= width
        assert [row.split()[1] for row in rows] == ["k7m2xqd", "d9r4jfa", "b6t1yge"]
        if not seen or titles != seen[-1]:
            seen.append(titles)
    assert seen[0] == TITLES
    assert seen[1] == ["id", "name", "step", "reward", "entropy", "held-out", "age"]
    assert seen[-2:] == [["id", "name"], ["id"]]
    assert all(set(b) < set(a) for a, b in pairwise(seen))


@pytest.mark.parametrize(
    ("allocation", "curve", "shown"),
    [
        ("trajectory_percentile", "adaptive", "adaptive .1–.8"),
        ("low_probability", "constant", "lowprob·constant"),
        ("trajectory_percentile+forking_tokens", "linear", "tp+forking·linear .1–.8"),
    ],
)
def test_the_schedule_of_a_run_in_a_word(
    tmp_path: Path, allocation: str, curve: str, shown: str
) -> None:
    path = tmp_path / "runs"
    Registry(path).index(make_run(path, "k7m2xqd", allocation=allocation, curve=curve))
    assert runs_list.schedule(Registry(path).list()[0]) == shown


def test_json_is_json_only(runs: Path) -> None:
    result = invoke("runs", "--json")
    listed = json.loads(result.stdout)
    assert result.stderr == ""
    assert [(run["id"], run["status"]) for run in listed] == [
        ("k7m2xqd", "finished"),
        ("d9r4jfa", "dead"),
        ("b6t1yge", "failed"),
    ]
    assert listed[0]["greedy_last"] == 0.625
    assert listed[0]["tags"] == ["ramp"]
    assert listed == json.loads(invoke("runs", "ls", "--json").stdout)


def test_no_runs_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "none"))
    result = invoke("runs")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "tpcli train" in result.stderr
    assert json.loads(invoke("runs", "--json").stdout) == []
    assert not (tmp_path / "none").exists()


def test_a_run_that_ended_unseen_is_read_afresh(runs: Path) -> None:
    """The supervisor wrote state.json and was killed before it told the registry."""
    (runs / "d9r4jfa" / folder.STATE).write_text(json.dumps(FINISHED))
    statuses = {run.id: run.status for run in listing().runs}
    assert statuses["d9r4jfa"] == "finished"


class TestShow:
    def test_everything_about_a_run(self, runs: Path) -> None:
        checkpoints = runs / "d9r4jfa" / folder.CHECKPOINTS
        for name in ("step-000005", "step-000006.tmp", "step-000010"):
            (checkpoints / name).mkdir(parents=True)
        (runs / "d9r4jfa" / folder.MLFLOW).write_text('{"run_id": "m1", "logged_step": 4}')
        text = invoke("runs", "show", "d9", width=80).stdout
        for wanted in (
            "☠ dead  math-sigm-s0 · d9r4jfa",
            "recipes/tiny.toml, seed 3, fingerprint ffffffffffff",
            "trajectory_percentile, linear, window 0.1 to 0.8 of training",
            "7 of 20",
            "step-000005, step-000010\n",
            "run m1, up to step 4",
            str(runs / "d9r4jfa"),
            "tpcli resume d9r4jfa",
        ):
            assert wanted in text
        numbers = [line.split() for line in text.splitlines() if line.startswith("reward")]
        assert numbers == [["reward", ".310", ".370", "+.060"]]

    def test_an_error_comes_with_its_hint(self, runs: Path) -> None:
        lines = invoke("runs", "show", "b6").stdout.splitlines()
        assert lines[:3] == ["✗ failed  tiny-b6t1yge · b6t1yge", "  out of memory", "  lower x"]
        assert not any(line.startswith("held-out") for line in lines)

    def test_a_finished_run_needs_nothing(self, runs: Path) -> None:
        assert "resume" not in invoke("runs", "show", "math-linear-s3").stdout

    def test_json(self, runs: Path) -> None:
        shown = json.loads(invoke("runs", "show", "b6", "--json").stdout)
        assert shown["status"] == "failed"
        assert shown["next"] == ["tpcli resume b6t1yge", "tpcli logs b6t1yge"]
        assert "run.json" in shown["files"]

    def test_an_unknown_run(self, runs: Path) -> None:
        with pytest.raises(NotFoundError, match="no run zzz"):
            invoke("runs", "show", "zzz")


class TestColumns:
    def test_those_asked_for_and_always_the_id(self, runs: Path) -> None:
        options = (
            "--where",
            "status!=failed",
            "--sort",
            "-reward",
            "--cols",
            "name,reward,tag,age",
        )
        result = invoke("runs", *options)
        assert [line.split() for line in result.stdout.splitlines()] == [
            ["id", "name", "reward", "tag", "age"],
            ["✓", "k7m2xqd", "math-linear-s3", ".500", "ramp", "2h"],
            ["☠", "d9r4jfa", "math-sigm-s0", ".370", "ramp", "1d"],
        ]
        assert result.stderr.startswith("2 of 3 · ")
        assert invoke("runs", "ls", *options).stdout == result.stdout

    def test_settings_are_shown_as_they_were_written(self, runs: Path) -> None:
        words = "id,credit.schedule.initial,optim.betas,note,created"
        row = invoke("runs", "--cols", words, "-n", "1").stdout.splitlines()[1]
        assert " 0.99  [0.9, 0.999]  –     20" in row

    def test_the_last_ones_go_first_when_there_is_no_room(self, runs: Path) -> None:
        result = invoke("runs", "--cols", "name,seed,model,curve", width=36)
        assert result.stdout.splitlines()[0].split() == ["id", "name", "seed"]

    def test_json_has_these_values_and_no_others(self, runs: Path) -> None:
        result = invoke("runs", "--json", "--cols", "optim.betas,reward,status", "--sort", "reward")
        told = json.loads(result.stdout)
        assert told[0] == {
            "id": "d9r4jfa",
            "optim.betas": [0.9, 0.999],
            "reward": 0.37,
            "status": "dead",
        }
        assert [one["reward"] for one in told] == [0.37, 0.5, None]

    def test_what_fits_no_run_is_said(self, runs: Path) -> None:
        result = invoke("runs", "--where", "tag=none")
        assert (result.stdout, result.stderr) == ("", "none of 3 runs fits\n")
        with pytest.raises(UsageError, match="rewrad"):
            invoke("runs", "--sort", "rewrad")


def test_forks_in_the_list_and_on_the_sheet(runs: Path) -> None:
    parent = {"run": "k7m2xqd", "step": 40}
    Registry(runs).index(make_run(runs, "fork222", name="again", parent=parent))
    head, first, fork, *_ = invoke("runs", "--tree").stdout.splitlines()
    assert first.split()[:2] == ["✓", "k7m2xqd"]
    assert fork.split()[1:5] == ["└─", "@40", "fork222", "again"]
    assert head.index("name") == fork.index("again") == first.index("math-linear-s3")
    assert "forks       fork222 at step 40 (again)\n" in invoke("runs", "show", "k7").stdout
    assert "parent      forked from k7m2xqd at step 40\n" in invoke("runs", "show", "fork").stdout
    assert json.loads(invoke("runs", "show", "k7", "--json").stdout)["forks"] == ["fork222"]


class TestChanges:
    def test_tags_notes_and_names(self, runs: Path) -> None:
        assert invoke("runs", "tag", "k7", "best", "ok").stdout == (
            "k7m2xqd  math-linear-s3  ramp, best, ok\n"
        )
        assert invoke("runs", "tag", "@ramp", "ramp", "--remove").stdout.splitlines() == [
            "k7m2xqd  math-linear-s3  best, ok",
            "d9r4jfa  math-sigm-s0  no tags",
            "b6t1yge  tiny-b6t1yge  no tags",
        ]
        assert invoke("runs", "note", "k7", "as hoped").stdout.endswith("as hoped\n")
        assert invoke("runs", "rename", "k7", "first").stdout == "k7m2xqd  first\n"
        text = invoke("runs", "show", "first").stdout
        assert "tags        best, ok\n" in text
        assert "note        as hoped\n" in text

    def test_removed_runs_are_shown_where_they_are_asked_for(self, runs: Path) -> None:
        result = invoke("runs", "rm", "k7", "b6")
        assert result.stdout.splitlines() == [
            "k7m2xqd  math-linear-s3  removed",
            "b6t1yge  tiny-b6t1yge  removed",
        ]
        assert "restore" in result.stderr
        assert [line.split()[1] for line in invoke("runs").stdout.splitlines()[1:]] == ["d9r4jfa"]
        gone = invoke("runs", "--removed", "--where", "status=finished", "--json").stdout
        assert [one["id"] for one in json.loads(gone)] == ["k7m2xqd"]
        sheet = invoke("runs", "show", "k7").stdout
        assert "removed     20" in sheet
        assert "tpcli runs restore k7m2xqd" in sheet
        with pytest.raises(NotFoundError, match="was removed"):
            invoke("logs", "k7")
        invoke("runs", "restore", "k7", "b6")
        assert len(json.loads(invoke("runs", "--json").stdout)) == 3
        assert invoke("runs", "--removed").stderr.startswith("no removed runs in ")

    def test_gc_says_what_goes_and_needs_a_yes(self, runs: Path) -> None:
        assert invoke("runs", "gc", "--yes").stderr == "nothing to delete\n"
        invoke("runs", "rm", "k7")
        (runs / "k7m2xqd" / "weights").write_bytes(b"x" * 2_000_000)
        dry = invoke("runs", "gc", "--dry-run")
        assert dry.stdout.splitlines()[1].split()[:2] == ["k7m2xqd", "math-linear-s3"]
        assert dry.stderr == "would free 2.0 MB\n"
        with pytest.raises(UsageError, match=r"would delete 2\.0 MB for good") as caught:
            invoke("runs", "gc")
        assert "--yes" in caught.value.hint
        assert (runs / "k7m2xqd").exists()
        assert invoke("runs", "gc", "--older", "1", "--yes").stdout == ""
        assert invoke("runs", "gc", "--yes").stdout.endswith("freed 2.0 MB\n")
        assert not (runs / "k7m2xqd").exists()


def test_stop_asks_a_running_run(runs: Path) -> None:
    own = psutil.Process().create_time()
    alive = {"pid": os.getpid(), "pid_started": own, "host": socket.gethostname()}
    run_dir = make_run(runs, "zzzzzzz", state=FINISHED | alive | {"status": "running"})
    Registry(runs).index(run_dir)
    result = invoke("stop", "zzz")
    assert result.stdout == "zzzzzzz  tiny-zzzzzzz  stops after its step\n"
    assert (run_dir / folder.STOP).exists()
    with pytest.raises(UsageError, match="k7m2xqd is not running: it is finished"):
        invoke("stop", "k7")


class TestLogs:
    def test_the_last_lines(self, runs: Path) -> None:
        (runs / "k7m2xqd" / folder.LOG).write_text("a\nb\nc\nno end")
        assert invoke("logs", "k7", "-n", "2").stdout == "c\nno end"
        assert invoke("logs", "k7").stdout == "a\nb\nc\nno end"
        assert invoke("logs", "k7", "-f").stdout == "a\nb\nc\nno end"

    def test_no_log(self, runs: Path) -> None:
        with pytest.raises(NotFoundError, match="has written no log"):
            invoke("logs", "b6", "-f")

    def test_following_until_the_end(self, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The log begins late, and a two-byte character is written in halves."""
        monkeypatch.setattr(jobs, "POLL", 0.01)
        own = psutil.Process().create_time()
        alive: dict[str, Any] = {"pid": os.getpid(), "pid_started": own}
        alive |= {"status": "running", "host": socket.gethostname()}
        run_dir = make_run(runs, "zzzzzzz", state=FINISHED | alive)
        Registry(runs).index(run_dir)

        def write() -> None:
            for part in (b"one\n", b"tw\xc3", b"\xb6\nthr", b"ee"):
                time.sleep(0.05)
                with (run_dir / folder.LOG).open("ab") as file:
                    file.write(part)
            folder.write_json_atomic(run_dir / folder.STATE, FINISHED)

        writer = threading.Thread(target=write)
        writer.start()
        texts = list(jobs.log(jobs.find("zzz"), lines=10, follow=True))
        writer.join()
        assert "".join(texts) == "one\ntwö\nthree"
        assert "one\n" in texts, "not all at the end"


def test_these_commands_load_nothing_heavy() -> None:
    """`tpcli --help` imports every command's module."""
    code = (
        "import sys, tpcli.cli.runs, tpcli.cli.db, tpcli.cli.logs, tpcli.cli.doctor\n"
        "import tpcli.cli.stop\n"
        "print(*{'sqlalchemy', 'torch', 'mlflow', 'pydantic', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_list_of_runs_loads_no_sqlalchemy(runs: Path) -> None:
    """It takes longer to load than all the rest of the command; dead runs change nothing."""
    code = (
        "import sys; from tpcli.cli.app import main\n"
        "try: main(['runs', '--where', 'seed=3', '--sort', '-reward'])\n"
        "finally: print(*{'sqlalchemy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1].startswith("✓  k7m2xqd")
    assert done.stdout.splitlines()[-1] == ""
