"""Whole sweeps with real training, from the command line."""

from __future__ import annotations

import json
import time

import psutil
import pytest
from tests.jobs.bench import Bench, repeatable

pytestmark = pytest.mark.slow
ASK = ("ablate", "small.toml", "--schedule", "linear,cosine", "--seeds", "0-1", "--jobs", "2")


def test_kill_9_and_the_same_command_again(bench: Bench) -> None:
    """Every run once, and the one that was cut off equal bit for bit to one that was not."""
    first = bench.start(*ASK)
    bench.until_step(2)
    first.kill()
    first.communicate()
    cut_off = {path.name for path in bench.runs()}
    again = json.loads(bench.type(*ASK, "--json").stdout)
    assert {cell["status"] for cell in again["cells"]} == {"finished"}
    assert not any(cell["reused"] for cell in again["cells"]), "they are the sweep's own"
    assert len(bench.runs()) == 4
    assert cut_off < {cell["run"] for cell in again["cells"]}
    assert len(list(bench.folder.glob("runs/sweeps/*"))) == 1
    interrupted = next(
        cell for cell in again["cells"] if cell["run"] in cut_off and cell["variant"] == "cosine"
    )
    curve = '--set=credit.schedule.curve="cosine"'
    seed = f"--seed={interrupted['seed']}"
    undisturbed = json.loads(
        bench.type("train", "small.toml", curve, seed, "--force", "--json").stdout
    )
    runs = bench.folder / "runs"
    assert repeatable(runs / interrupted["run"]) == repeatable(runs / undisturbed["id"])
    report = (bench.folder / again["report"]).read_text()
    assert all(cell["run"] in report for cell in again["cells"])
    whole = again["comparison"]["rows"][0]["versus"][0]
    assert set(whole["pairs"]) == {"0", "1"}

    begun = time.monotonic()
    third = bench.type(*ASK)
    assert "4/4 done" in third.stdout
    assert len(bench.runs()) == 5, "nothing was trained"
    assert time.monotonic() - begun < 120
    group = bench.type("compare", f"@{again['id']}.linear", f"@{again['id']}.cosine")
    assert "n=2" in group.stdout


def test_nothing_trains_on_unseen(bench: Bench) -> None:
    """The runs of a sweep that vanished save after their step, and end."""
    sweep = bench.start(*ASK, "--set", "train.steps=400")
    bench.until_step(1)
    sweep.kill()
    sweep.communicate()
    limit = time.monotonic() + 180
    while _processes(bench) and time.monotonic() < limit:
        time.sleep(0.1)
    assert _processes(bench) == []
    for run in bench.runs():
        assert json.loads((run / "state.json").read_text())["status"] == "stopped"
        assert list(run.glob("checkpoints/step-*")), "what was done is kept"


def _processes(bench: Bench) -> list[int]:
    where = str(bench.folder)
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if where in " ".join(process.info["cmdline"] or ())
    ]


def test_one_variant_fails_and_the_others_go_on(bench: Bench) -> None:
    ask = ("ablate", "small.toml", "--vary", "reward.kind=int,nowhere:grade", "--set")
    done = bench.type(*ask, "train.steps=2", code=5)
    assert "✓" in done.stdout
    assert "nowhere" in done.stdout, "the reason"
    assert "1/2 done · 1 failed" in done.stdout
    assert "--retry-failed" in done.stdout
    (bench.folder / "nowhere.py").write_text("def grade(response, answer):\n    return 1.0\n")
    known = next(bench.folder.glob("runs/sweeps/*")).name
    mended = bench.type("ablate", "--resume", known, "--retry-failed")
    assert "2/2 done" in mended.stdout
