"""Whole runs, as typed: trained, killed, stopped, resumed, on two processes, without MLflow."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from tests.jobs.bench import SMALL, Bench, metrics, repeatable

pytestmark = pytest.mark.slow
SPY = """
import json, os, sys
from pathlib import Path


def score(response, gold):
    seen = {"pid": os.getpid(), "modules": sorted(sys.modules)}
    Path(__file__).with_name(f"seen-{os.getpid()}.json").write_text(json.dumps(seen))
    total = sum(map(ord, response))
    if total % 5 == 0:
        os._exit(3)
    return 0.5 if total % 2 else gold in response
"""
"""A verifier that tells where it runs, and ends its process with every fifth response."""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Bench:
    """A run that nothing disturbed."""
    bench = Bench(tmp_path_factory.mktemp("done"), cache)
    bench.type("train", "small.toml", "--tag", "quiet")
    return bench


def test_a_run_leaves_everything_behind(done: Bench) -> None:
    run = done.run
    lines = metrics(run)
    assert [line["step"] for line in lines] == list(range(7))
    assert {"eval/sampled", "eval/greedy"} <= lines[0].keys() & lines[3].keys() & lines[6].keys()
    last = lines[-1]
    assert len(last["entropy/percentile"]) == len(last["kl/percentile"]) == 20
    assert last["gap/max"] < 1e-3
    # It learned something, or the comparisons below would hold for a run that does nothing.
    assert any(line["optim/grad_norm"] > 0 for line in lines[1:])
    assert last["kl/all"] > 0
    assert last["memory/peak_gb"] > 0
    assert last["schedule/magnitude"] == 0
    assert lines[1]["credit/share"] < 0.5
    assert lines[1]["credit/gradient_scale"] == pytest.approx(1 / lines[1]["credit/share"])
    assert sum(v for k, v in last.items() if k.startswith("verdict/")) == pytest.approx(1)
    spent = sum(v for k, v in last.items() if k.startswith("time/") and k != "time/step")
    assert spent == pytest.approx(last["time/step"], rel=0.01)
    told = json.loads((run / "responses.jsonl").read_text().splitlines()[0])
    assert (
        len(told["tokens"]) == len(told["logprob"]) == len(told["entropy"]) == len(told["weight"])
    )
    facts = json.loads((run / "provenance.json").read_text())
    assert facts["data"]["unique"] == facts["data"]["train"] + facts["data"]["held_out"]
    assert (run / "recipe.toml").read_text() == SMALL
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000004", "step-000006"]
    assert (run / "figures" / "training.png").stat().st_size > 10_000


def test_registry_and_mlflow_hold_the_run(done: Bench) -> None:
    import mlflow

    listed = json.loads(done.type("runs", "--json").stdout)
    (row,) = listed if isinstance(listed, list) else listed["runs"]
    assert (row["status"], row["step"], list(row["tags"])) == ("finished", 6, ["quiet"])
    store = f"sqlite:///{done.folder / 'runs' / 'mlflow.db'}"
    client = mlflow.MlflowClient(store)
    linked = json.loads((done.run / "mlflow.json").read_text())
    history = client.get_metric_history(linked["run_id"], "reward/mean")
    assert [m.step for m in history] == [1, 2, 3, 4, 5, 6]
    names = {a.path for a in client.list_artifacts(linked["run_id"])}
    assert {"recipe.toml", "resolved.toml", "figures"} <= names
    assert client.get_run(linked["run_id"]).info.status == "FINISHED"


def test_the_registry_is_rebuilt_from_the_folders(done: Bench) -> None:
    before = json.loads(done.type("runs", "--json").stdout)
    for path in (done.folder / "runs").glob("registry.db*"):
        path.unlink()
    done.type("db", "rebuild")
    assert json.loads(done.type("runs", "--json").stdout) == before


def test_the_same_again_is_already_done(done: Bench) -> None:
    told = done.type("train", "small.toml")
    assert done.run.name in told.stdout
    assert "already done" in told.stdout
    assert len(done.runs()) == 1


def test_kill_9_and_resume_repeats_every_bit(bench: Bench, done: Bench) -> None:
    """Everything is killed between two checkpoints; only whole steps count."""
    process = bench.start("train", "small.toml")
    bench.until_step(3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert "dead" in bench.type("runs", "--json").stdout
    bench.type("resume", bench.run.name)
    assert repeatable(bench.run) == repeatable(done.run)
    assert len(repeatable(bench.run)) == 7


def test_a_killed_worker_is_reported_and_resumes(bench: Bench, done: Bench) -> None:
    """The training process dies alone, before the first checkpoint."""
    process = bench.start("train", "small.toml")
    bench.until_step(1)
    subprocess.run(["pkill", "-9", "-f", f"m tpcli.train {bench.run.resolve()}"], check=True)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 4, out + err
    assert f"tpcli resume {bench.run.name}" in out
    bench.type("resume", bench.run.name)
    assert repeatable(bench.run) == repeatable(done.run)


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(bench: Bench, done: Bench) -> None:
    process = bench.start("train", "small.toml")
    bench.until_step(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, out + err
    assert f"tpcli resume {bench.run.name}" in out
    reached = metrics(bench.run)[-1]["step"]
    assert reached < 6
    assert (bench.run / "checkpoints" / f"step-{reached:06d}").is_dir()
    bench.type("train", "small.toml", "--resume")
    assert repeatable(bench.run) == repeatable(done.run)


def test_ctrl_c_twice_stops_now(bench: Bench) -> None:
    process = bench.start("train", "small.toml", "--set", "train.steps=500")
    bench.until_step(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=240)
    assert process.returncode == 130
    left = subprocess.run(
        ["pgrep", "-f", f"m tpcli.train {bench.run}"], capture_output=True, check=False
    )
    assert left.stdout == b""


def test_without_mlflow_the_run_goes_on_and_the_gap_is_filled(bench: Bench, done: Bench) -> None:
    """A folder stands where MLflow's database should be."""
    import mlflow

    store = bench.folder / "runs" / "mlflow.db"
    store.mkdir(parents=True)
    told = bench.type("train", "small.toml")
    assert "MLflow" in told.stdout + told.stderr
    assert repeatable(bench.run) == repeatable(done.run)
    store.rmdir()
    bench.type("db", "sync-mlflow")
    linked = json.loads((bench.run / "mlflow.json").read_text())
    history = mlflow.MlflowClient(f"sqlite:///{store}").get_metric_history(
        linked["run_id"], "reward/mean"
    )
    assert [m.step for m in history] == [1, 2, 3, 4, 5, 6]


def test_a_schedule_does_not_move_unnamed(bench: Bench, done: Bench) -> None:
    shutil.copytree(done.run, bench.folder / "runs" / done.run.name)
    told = bench.type("resume", bench.run.name, "--steps", "8", code=2)
    assert "--horizon 8" in told.stderr
    assert len(metrics(bench.run)) == 7
    bench.type("resume", bench.run.name, "--steps", "8", "--horizon", "8")
    lines = metrics(bench.run)
    assert [line["step"] for line in lines] == list(range(9))
    # int(8 * .8) = 6: the window closed at step 6 of the new horizon too.
    assert lines[-1]["schedule/magnitude"] == 0


def test_other_questions_are_refused_and_so_is_a_step_back(bench: Bench, done: Bench) -> None:
    shutil.copytree(done.run, bench.folder / "runs" / done.run.name)
    told = bench.type("resume", bench.run.name, "--steps", "4", code=2)
    assert "6 of 4 steps" in told.stderr
    resolved = bench.run / "resolved.toml"
    resolved.write_text(resolved.read_text().replace("max_operand = 9", "max_operand = 8"))
    told = bench.type("resume", bench.run.name, *("--steps", "8", "--horizon", "8"), code=2)
    assert "not those the run was started with" in told.stdout + told.stderr
    assert len(metrics(bench.run)) == 7


def test_two_processes_train_together(bench: Bench) -> None:
    bench.type("train", "small.toml", *("--set", "launch.processes=2", "--set", "launch.cpu=true"))
    lines = metrics(bench.run)
    assert [line["step"] for line in lines] == list(range(7))
    assert lines[0]["eval/questions"] == 8
    facts = json.loads((bench.run / "provenance.json").read_text())
    assert facts["compute"]["processes"] == 2


def test_a_verifier_of_ones_own_in_two_processes(bench: Bench) -> None:
    """It stands beside the recipe; where it runs, nothing of training is loaded.

    Those responses that end its process are counted, and the run goes on.
    """
    elsewhere = bench.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "spy.py").write_text(SPY)
    (elsewhere / "spied.toml").write_text((bench.folder / "small.toml").read_text())
    told = ("launch.processes=2", "launch.cpu=true", 'reward.kind="spy:score"', "train.steps=2")
    options = [word for setting in told for word in ("--set", setting)]
    bench.type("train", "elsewhere/spied.toml", *options)
    seen = [json.loads(path.read_text()) for path in elsewhere.glob("seen-*.json")]
    assert len({one["pid"] for one in seen}) >= 2
    for one in seen:
        assert "math_verify" in one["modules"]
        assert not {"torch", "transformers", "tpcli.train"} & set(one["modules"])
    lines = metrics(bench.run)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert sum(line.get("verdict/crash", 0) for line in lines) > 0
    assert all(0 <= line["reward/mean"] <= 1 for line in lines[1:])
    assert all(not psutil.pid_exists(one["pid"]) for one in seen)


def test_mathematics_gives_integers_the_same_verdicts(bench: Bench, done: Bench) -> None:
    bench.type("train", "small.toml", "--set", 'reward.kind="math"')
    assert repeatable(bench.run) == repeatable(done.run)


def test_a_verifier_that_is_not_there_is_told_in_one_line(bench: Bench) -> None:
    told = bench.type("train", "small.toml", "--set", 'reward.kind="no_such:f"', code=2)
    shown = told.stdout + told.stderr
    assert '[reward].kind = "no_such:f": there is no module "no_such"' in " ".join(shown.split())
    assert "Traceback" not in shown


def test_several_updates_on_scored_entropy(bench: Bench) -> None:
    """Two updates a step, forking tokens, KL and entropy in the loss: every path of the step."""
    bench.type(
        "train",
        "small.toml",
        *("--set", "train.updates=2", "--set", 'credit.allocation="forking_tokens"'),
        *("--set", "loss.kl_coef=0.01", "--set", "loss.entropy_coef={initial=0.01, final=0.0}"),
    )
    first, *_, last = metrics(bench.run)[1:]
    assert first["loss/entropy_bonus"] > 0
    assert first["schedule/entropy_coef"] > last["schedule/entropy_coef"] == 0
    assert last["loss/kl"] > 0
    assert first["credit/share"] < last["credit/share"] == 1


def test_what_the_worker_cannot_do_is_told_in_one_line(bench: Bench) -> None:
    """Settings of another source, which only the worker can know: exit 2 and no traceback."""
    lines = [json.dumps({"question": f"{i}+1", "answer": str(i + 1)}) for i in range(60)]
    (bench.folder / "sums.jsonl").write_text("\n".join(lines))
    told = bench.type("train", "small.toml", "--set", 'data.source="sums.jsonl"', code=2)
    assert "has no meaning" in told.stdout + told.stderr
    assert "Traceback" not in told.stdout + told.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes find two GPUs, or one")
def test_processes_that_would_not_work_together_do_not_start(bench: Bench) -> None:
    """Without GPUs accelerate starts several only when told that they are to use the CPU."""
    failed = bench.type("train", "small.toml", "--set", "launch.processes=2", code=2)
    said = " ".join(failed.stdout.split())
    assert "launch.processes is 2, but accelerate made 1 of them work together" in said
    assert "launch.cpu = true" in said
