"""Whole evaluations, as typed: answered from what is stored, killed, stopped, read by others."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from tests.bench.boxer import boxer, options, question_files

from tpcli.metrics.mlflow import Mirror, default_store

pytestmark = pytest.mark.slow
SAMPLED = ("--top-k", "0", "--temperature", "1", "--max-tokens", "60")
SLOWLY = ("--rows", "1", "-n", "8", "--top-k", "0", "--temperature", "1", "--max-tokens", "40")


class Desk:
    """A folder with a model, files of questions, and the command line in it. No hub answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.model = boxer(folder / "model")
        self.files = question_files(folder)
        self.environment = os.environ | {
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
            "COLUMNS": "120",
        }

        self.store = folder / "empty" / "mlflow.db"
        Mirror(default_store(self.store.parent), "tpcli").open("none", "none", {}, {})

    def start(self, runs: str, *args: str) -> subprocess.Popen[str]:
        """Begin; a new runs folder has MLflow's database, which takes seconds to make, already."""
        (self.folder / runs).mkdir(exist_ok=True)
        if not (self.folder / runs / "mlflow.db").exists():
            shutil.copy(self.store, self.folder / runs)
        return subprocess.Popen(
            [sys.executable, "-m", "tpcli", "eval", *args],
            cwd=self.folder,
            env=self.environment | {"TPCLI_RUNS": str(self.folder / runs)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C is ignored in what a script starts in the background, tests included.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def type(self, runs: str, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        process = self.start(runs, *args)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"{out}\n{err}"
        assert "Traceback" not in out + err
        return subprocess.CompletedProcess(args, code, out, err)

    def responses(self, runs: str, bench: str = "aime24") -> Path:
        """Where an evaluation's responses are, or will be."""
        found = [*(self.folder / runs).glob(f"models/*/evals/{bench}-*")]
        return found[0] / "generations.jsonl" if found else self.folder / "nowhere"

    def until_responses(self, runs: str, count: int, process: subprocess.Popen[str]) -> None:
        """Wait until so many are stored."""
        limit = time.monotonic() + 180
        while time.monotonic() < limit:
            path = self.responses(runs)
            if path.exists() and path.read_bytes().count(b"\n") >= count:
                return
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        raise AssertionError(f"{count} responses never came")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def slowly(desk: Desk) -> list[str]:
    """The command that is disturbed: a batch a question, on the disk after each."""
    return ["./model", *options(desk.files, "aime24"), *SLOWLY]


@pytest.fixture(scope="module")
def quiet(desk: Desk, slowly: list[str]) -> dict[str, Any]:
    """The result of that command when nothing disturbs it."""
    return result_of(json.loads(desk.type("quiet", *slowly, "--json").stdout))


def result_of(printed: dict[str, Any]) -> dict[str, Any]:
    """The one result, without clocks, places and verdict times."""
    (one,) = printed["results"]
    return {key: one[key] for key in ("bench", "settings", "settings_key", "summary", "limit")}


def test_aime_and_gpqa_run_to_the_end_and_are_then_stored(desk: Desk) -> None:
    files = {**desk.files, "aime": desk.files["aime24"]}
    given = ["aime24", "aime25", "gpqa"]
    command = [
        *("./model", "--bench", "aime,gpqa", "--limit", "3", "-n", "4", *SAMPLED),
        *(word for name in given for word in ("--bench-file", f"{name}={files[name]}")),
    ]
    once = desk.type("three", *command)
    rows = [line.split() for line in once.stdout.splitlines()]
    assert [row[:3] for row in rows if row[1:3] == ["3", "(part)"]] == [
        ["aime24", "3", "(part)"],
        ["aime25", "3", "(part)"],
        ["gpqa-diamond", "3", "(part)"],
    ]
    assert "aime24 · 12/12 responses 100%" in once.stderr
    before = desk.responses("three").read_bytes()
    assert before.count(b"\n") == 12
    again = desk.type("three", *command)
    assert again.stdout == once.stdout
    assert "nothing was generated for aime24, aime25, gpqa-diamond: all was stored" in again.stderr
    assert "responses 100%" not in again.stderr
    assert desk.responses("three").read_bytes() == before


def test_without_a_network_one_line_says_what_helps(desk: Desk) -> None:
    told = desk.type("none", "--bench", "aime,gpqa", code=4)
    assert told.stdout == ""
    error, hint = told.stderr.splitlines()
    assert error.startswith("error: aime24, aime25 and gpqa-diamond cannot be loaded")
    assert hint.startswith("hint: ")
    assert "--bench-file aime24=FILE --bench-file aime25=FILE --bench-file gpqa=FILE" in hint


def test_kill_9_generates_nothing_twice_and_changes_nothing(
    desk: Desk, slowly: list[str], quiet: dict[str, Any]
) -> None:
    process = desk.start("killed", *slowly)
    desk.until_responses("killed", 24, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = desk.responses("killed").read_bytes()
    kept = before[: before.rfind(b"\n") + 1]
    assert 24 <= kept.count(b"\n") < 240
    told = desk.type("killed", *slowly, "--json")
    assert "of 240 responses were stored already" in told.stderr
    after = desk.responses("killed").read_bytes()
    assert after.startswith(kept)
    lines = [json.loads(line) for line in after.splitlines()]
    assert len({(line["item"], line["sample"]) for line in lines}) == len(lines) == 240
    assert sorted(after.splitlines()) == sorted(desk.responses("quiet").read_bytes().splitlines())
    assert result_of(json.loads(told.stdout)) == quiet


def test_ctrl_c_says_that_it_goes_on_and_it_does(
    desk: Desk, slowly: list[str], quiet: dict[str, Any]
) -> None:
    process = desk.start("stopped", *slowly)
    desk.until_responses("stopped", 8, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 130, out + err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    kept = desk.responses("stopped").read_bytes()
    assert kept.endswith(b"\n")
    assert kept.count(b"\n") < 240
    told = desk.type("stopped", *slowly, "--json")
    assert desk.responses("stopped").read_bytes().startswith(kept)
    assert result_of(json.loads(told.stdout)) == quiet


# A plain script: nothing of ours, only the files.


def plain_answer(text: str) -> str | None:
    """The integer in the last box."""
    _, box, rest = text.rpartition("\\boxed{")
    inside, closed, _ = rest.partition("}")
    return str(int(inside)) if box and closed and inside.strip().isdigit() else None


def plain_scores(folder: Path, n: int) -> dict[str, float]:
    """avg@n and pass@k from the stored responses and questions of an AIME evaluation."""
    gold = {}
    for line in (folder / "items.jsonl").read_text().splitlines():
        item = json.loads(line)
        gold[item["id"]] = str(int(item["gold"]))
    correct: dict[str, int] = defaultdict(int)
    for line in (folder / "generations.jsonl").read_text().splitlines():
        response = json.loads(line)
        if response["sample"] < n and response["finished"]:
            answer = plain_answer(response["text"])
            correct[response["item"]] += answer == gold[response["item"]]
    scores = {f"avg@{n}": sum(correct.values()) / n / len(gold)}
    for k in (1, 2, 4, 8):
        missed = [math.comb(n - correct[item], k) / math.comb(n, k) for item in gold]
        scores[f"pass@{k}"] = 1 - sum(missed) / len(gold)
    return scores


def our_scores(folder: Path, n: int) -> dict[str, float]:
    (path,) = folder.glob(f"result-n{n}-int*.json")
    summary = json.loads(path.read_text())["summary"]
    passed = {f"pass@{k}": one["value"] for k, one in summary["passed"].items()}
    return {f"avg@{n}": summary["avg"]["value"], **passed}


def test_our_scores_are_those_of_a_plain_script(
    desk: Desk, quiet: dict[str, Any], slowly: list[str]
) -> None:
    """On what the model said, then on responses of which more are right, graded again."""
    shutil.copytree(desk.folder / "quiet", desk.folder / "edited")
    folder = desk.responses("edited").parent
    assert our_scores(folder, 8) == pytest.approx(plain_scores(folder, 8))
    assert our_scores(folder, 8)["avg@8"] > 0
    gold = {
        item["id"]: item["gold"]
        for item in map(json.loads, (folder / "items.jsonl").read_text().splitlines())
    }
    lines = [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        if i % 5 < 3 and int(line["item"], 16) % (line["sample"] + 1) == 0:
            line |= {"text": f"So \\boxed{{{gold[line['item']]}}}", "finished": i % 11 > 0}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "generations.jsonl").write_text(text)
    told = desk.type("edited", *slowly, "--regrade")
    assert "nothing was generated for aime24" in told.stderr
    assert (folder / "generations.jsonl").read_text() == text
    scores = our_scores(folder, 8)
    assert scores == pytest.approx(plain_scores(folder, 8))
    assert scores["avg@8"] > quiet["summary"]["avg"]["value"] + 0.1
    assert scores["pass@1"] < scores["pass@2"] < scores["pass@4"] < scores["pass@8"] < 1
