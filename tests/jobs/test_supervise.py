"""The supervisor's parts that need no training: commands, checkpoints, one at a time, the end."""

import json
from pathlib import Path
from typing import Any

import pytest

from tpcli.errors import UsageError
from tpcli.jobs import supervise
from tpcli.jobs.supervise import (
    Snapshot,
    _alone,
    _Tail,
    _Watch,
    _worker,
    command,
    newest_checkpoint,
)
from tpcli.policy import heap
from tpcli.recipe.sections import LaunchSection


def test_a_run_has_one_supervisor(tmp_path: Path) -> None:
    refused = pytest.raises(UsageError, match="already has a supervisor")
    with _alone(tmp_path), refused, _alone(tmp_path):
        pass
    with _alone(tmp_path):
        pass


def test_stray_folders_among_the_checkpoints_do_no_harm(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    for name in ("step-000010", "step-000020", "step-000020-best", ".step-000030.partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert newest_checkpoint(tmp_path) == 20


def test_each_machine_has_a_launcher_file_of_its_own(tmp_path: Path) -> None:
    for rank in (0, 1):
        launch = LaunchSection(
            processes=4, machines=2, machine_rank=rank, main_address="node0", main_port=29500
        )
        line = command(tmp_path, launch, new_horizon=rank == 1)
        config = json.loads(Path(line[line.index("--config_file") + 1]).read_text())
        assert (config["machine_rank"], config["num_processes"]) == (rank, 4)
        assert (config["main_process_ip"], config["main_process_port"]) == ("node0", 29500)
        assert ("--new-horizon" in line) == (rank == 1)


def test_threads_are_the_users_where_he_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    line = command(tmp_path, LaunchSection(), new_horizon=False)
    assert line[line.index("--num_cpu_threads_per_process") + 1] == "7"


@pytest.mark.parametrize(
    ("driver", "cpu", "visible", "settled"),
    [
        (False, False, None, True),
        (True, False, None, False),
        (True, False, "0", False),
        (True, False, "", True),
        (True, True, None, True),
    ],
)
def test_a_worker_on_a_cpu_is_told_how_to_treat_its_heap(
    driver: bool,
    cpu: bool,
    visible: str | None,
    settled: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where a GPU may be used only if the recipe wants a CPU."""
    started: list[dict[str, str]] = []

    def start(_: list[str], *, env: dict[str, str], **__: Any) -> None:
        started.append(env)
        raise OSError("not started")

    said = {heap.VARIABLE: "of heap"}
    monkeypatch.delenv(heap.VARIABLE, raising=False)
    monkeypatch.setattr(heap, "variables", lambda: said)
    monkeypatch.setattr(supervise, "GPU_DEVICES", (tmp_path if driver else tmp_path / "none",))
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("subprocess.Popen", start)
    with (
        pytest.raises(OSError, match="not started"),
        _worker(tmp_path, LaunchSection(cpu=cpu), False),
    ):
        pass
    (told,) = started
    assert (told.get(heap.VARIABLE) == "of heap") == settled
    assert told["PYTHONUNBUFFERED"] == "1"


def test_the_tail_reads_whole_lines_and_starts_again_after_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = _Tail(path)
    assert tail.read() == []
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert [line["step"] for line in tail.read()] == [0, 1]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert [line["step"] for line in tail.read()] == [0, 1, 2]
    aside = tmp_path / "aside"
    aside.write_text('{"step": 0}\n')
    aside.replace(path)
    assert [line["step"] for line in tail.read()] == [0]


@pytest.mark.parametrize(
    ("left", "stopping", "status", "code"),
    [
        ({"progress.json": {"phase": "done"}}, 0, "finished", 0),
        ({"progress.json": {"phase": "stopped"}}, 2, "stopped", 130),
        ({"progress.json": {"phase": "update"}}, 15, "stopped", 143),
        ({"failure.json": {"error": "e", "hint": "h", "exit_code": 2}}, 2, "failed", 2),
        ({"progress.json": {"phase": "update"}}, 0, "failed", 4),
    ],
)
def test_how_a_run_ended(
    tmp_path: Path, left: dict[str, object], stopping: int, status: str, code: int
) -> None:
    """A failure is told even where somebody had asked it to stop."""
    for name, value in left.items():
        (tmp_path / name).write_text(json.dumps(value))
    watch = _Watch(tmp_path, lambda snapshot: None)
    watch.stopping = stopping
    watch.conclude(-9)
    state = json.loads((tmp_path / "state.json").read_text())
    assert (state["status"], state["exit_code"]) == (status, code)


def test_a_display_that_fails_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    calls = 0

    def broken(snapshot: Snapshot) -> None:
        nonlocal calls
        calls += 1
        raise BrokenPipeError("closed")

    watch = _Watch(tmp_path, broken)
    watch.look(None)
    watch.look(None)
    assert calls == 1
    assert "the run goes on" in capsys.readouterr().err
