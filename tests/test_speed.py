"""The speed bench of docs/speed: what it counts and prints, and one small run of all of it."""

import importlib
import json
import math
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny import tiny_llama

SPEED = Path(__file__).parents[1] / "docs" / "speed"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the bench by its name."""
    monkeypatch.syspath_prepend(str(SPEED))
    return importlib.import_module


def test_shape_of_a_model(speed: Any) -> None:
    """Two layers, D = 32, four heads and two for keys and values, feed-forward 64, V = 61."""
    shape = speed("flops").Shape.of(tiny_llama())
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64
    assert asdict(shape) == {
        "body": 2 * layer,
        "attention": 2 * 4 * 8,
        "hidden": 32,
        "vocabulary": 61,
    }


def test_flops_by_hand(speed: Any) -> None:
    flops = speed("flops")
    shape = flops.Shape(body=10, attention=3, hidden=2, vocabulary=7)
    read = flops.Pass(tokens=5, pairs=15, learns=False)
    learned = flops.Pass(tokens=5, pairs=15, learns=True)
    assert flops.body_flops(shape, read) == 2 * 10 * 5 + 4 * 3 * 15
    assert flops.body_flops(shape, learned) == 3 * flops.body_flops(shape, read)
    assert flops.head_flops(shape, scored=4, learned=1) == 2 * 2 * 7 * 4 + 4 * 2 * 7
    total = flops.update_flops(shape, [read, learned], scored=4, learned=1)
    assert total == 4 * 280 + 168


@pytest.mark.parametrize("learns", [False, True])
def test_flops_are_those_torch_counts(speed: Any, learns: bool) -> None:
    """In eager attention, where masked pairs are multiplied too: all T * T of them."""
    from torch.utils.flop_counter import FlopCounterMode

    flops, model, tokens = speed("flops"), tiny_llama(), 9
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(learns):
        logits = model(torch.arange(tokens)[None]).logits
        if learns:
            logits.sum().backward()
    shape = flops.Shape.of(model)
    one = flops.Pass(tokens, tokens * tokens, learns=learns)
    counted = flops.update_flops(shape, [one], scored=tokens, learned=tokens if learns else 0)
    assert counter.get_total_flops() == counted


def test_pairs_are_those_of_a_causal_mask(speed: Any) -> None:
    mask = torch.ones(5, 8).tril(3)
    assert speed("flops").causal_pairs(5, 3) == int(mask.sum())
    assert speed("flops").causal_pairs(4) == 10


def test_the_clock_divides_time_between_parts(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of an inner part are not the outer one's; an occasion is not divided."""
    phases = speed("phases")
    clock, now = phases.Clock(), [0.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    with clock.part("outer"):
        wait(1)
        with clock.part("inner"):
            wait(2)
        with clock.part(phases.EVAL):
            wait(4)
            with clock.part("inner"):
                wait(8)
        wait(16)
    assert dict(clock.seconds) == {"outer": 17, "inner": 2, phases.EVAL: 12}


def test_what_is_gone_is_reported(speed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The bench goes on when a function it times has another name."""
    clock = speed("phases").Clock()
    clock.around(math, "no_such_function", "part")
    assert "no no_such_function" in capsys.readouterr().err
    assert not hasattr(math, "no_such_function")


def test_the_tool_is_counted_between_the_first_and_the_last_step(speed: Any) -> None:
    """Looks are (seconds, lines of metrics, the tool's processor seconds, the worker's)."""
    looks = [(1.0, 0, 3.0, 1.0), (2.0, 1, 3.5, 2.0), (4.0, 3, 3.7, 6.0), (9.0, 3, 5.7, 6.5)]
    assert speed("share").between(looks) == pytest.approx(
        {"tool": 0.2, "worker": 4.0, "wall": 2.0, "steps": 2, "start": 3.5, "end": 2.0}
    )


def test_a_training_process_that_has_ended_is_not_the_tool(speed: Any) -> None:
    """While it ends it has no command."""
    count: Any = speed("share")._count
    commands = {1: ["tpcli", "train"], 2: ["python", "-m", "tpcli.train", "runs/a"]}

    class Process:
        def __init__(self, pid: int, seconds: float) -> None:
            self.pid, self._seconds = pid, seconds

        def cmdline(self) -> list[str]:
            return commands[self.pid]

        def create_time(self) -> float:
            return 0.0

        def cpu_times(self) -> Any:
            return SimpleNamespace(user=self._seconds, system=0.0)

        def children(self) -> list["Process"]:
            return [Process(2, 90.0)] if self.pid == 1 else []

    spent: dict[tuple[int, float], tuple[float, bool]] = {}
    count(Process(1, 3.0), spent)
    commands[2] = []
    count(Process(1, 4.0), spent)
    assert spent == {(1, 0.0): (4.0, False), (2, 0.0): (90.0, True)}


def test_forced_lengths(speed: Any) -> None:
    """Before its length a response cannot end; at its length it must."""
    force = speed("trl_step").ForcedLengths(torch.tensor([2, 3]), prompt=4, eos_ids=[1, 5])
    free = force(torch.zeros(2, 4), torch.zeros(2, 6))
    assert (free[:, [1, 5]] == -math.inf).all()
    assert free[:, [0, 2, 3, 4]].isfinite().all()
    second = force(torch.zeros(2, 5), torch.zeros(2, 6))
    assert second[0].tolist() == [-math.inf, 0.0, *[-math.inf] * 4]
    assert second[1].isfinite().sum() == 4


def test_ratio_is_of_pairs(speed: Any) -> None:
    """Ratios 2, 3 and 8: not the ratio of the medians, 6 / 1."""
    assert speed("report").ratio([2, 6, 8], [1, 2, 1]) == "3.00 (2.00–8.00)"


def _table(text: str, title: str) -> list[list[str]]:
    """The cells below the table head that begins with ``title``."""
    lines = text.split(f"| {title} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.slow
def test_a_whole_small_run(tmp_path: Path) -> None:
    command = [sys.executable, str(SPEED / "measure.py"), "--small", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "results.md").read_text()
    results = json.loads((tmp_path / "results.json").read_text())
    _check_side(results["side"], done.stdout)
    assert [point["at"] for point in results["curves"]["vocabulary"]] == ["100"]
    assert "trl" in results["curves"]["length"][0]
    loop = results["profile"]["loop"]
    assert sum(loop["parts"].values()) == pytest.approx(loop["whole"])
    assert loop["parts"]["not accounted"] < 0.5 * loop["whole"]  # far less in longer steps
    for part in ("generation: decoding", "update: backward", "text and grading", "statistics"):
        assert loop["parts"][part] > 0
    assert set(loop["occasions"]) == {"held-out evaluation", "checkpoint"}
    assert results["profile"]["tool"]["worker"] > 0
    assert not re.findall(r"^no \w+ to time", done.stderr, re.MULTILINE)


def _check_side(side: dict[str, Any], text: str) -> None:
    assert len(side["rounds"]) == 2
    for one in side["rounds"]:
        ours, trl = one["ours"], one["trl"]
        assert ours["tokens"] == trl["tokens"] == sum(map(sum, one["lengths"]))
        for answer in (ours, trl):
            assert answer["updates"][0]["gradient"] > 0
            spent = answer["updates"][0]["seconds"]
            parts = spent["forward"] + spent["backward"] + spent["optimiser"]
            assert parts <= spent["whole"] * 1.001
            assert min(answer["probe"].values()) > 0
        # What is not credited costs the head no backward pass and, not measured, no pass at all.
        flops = [update["flops"] for update in ours["updates"]]
        assert flops[0] > flops[1] > flops[2] >= flops[3]
        assert all(without < with_ for with_, without in zip(flops[1:4], flops[4:], strict=True))
    rows = {row[0]: row[1:] for row in _table(text, "")}
    assert {"whole step", "generation", "update", "update, 20% credited"} <= set(rows)


def test_parts_that_are_not_measured_anew_stay(speed: Any, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"side": {"origin": 1}, "curves": {"origin": 2}, "profile": {}}))
    measure = speed("measure")
    found = measure.with_earlier({"curves": {"origin": 3}}, path)
    assert found == {"side": {"origin": 1}, "curves": {"origin": 3}}
    assert measure.with_earlier({"side": {"origin": 4}}, tmp_path / "none") == {
        "side": {"origin": 4}
    }


def test_a_command_without_where_the_results_went(
    speed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = ["measure.py", "--rounds", "3", "--out", "somewhere", "--parts", "side"]
    monkeypatch.setattr(sys, "argv", told)
    origin = speed("measure")._origin()
    assert origin["command"] == "python docs/speed/measure.py --rounds 3 --parts side"


def test_without_trl(speed: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """One line says what to install, before anything is measured."""
    measure = speed("measure")
    monkeypatch.setattr(sys, "argv", ["measure.py", "--parts", "side"])
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None)
    assert measure.main() == 2
    assert "pip install 'tpcli[trl]'" in capsys.readouterr().err
