"""What `tpcli eval` prints, and how it refuses: in this process, on a model of its own."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bench.boxer import boxer, options, question_files

from tpcli.cli import app, results
from tpcli.jobs import evaluate
from tpcli.jobs.examine import Observer, Request

SAMPLED = ("--top-k", "0", "--temperature", "1", "--max-tokens", "30", "--limit", "3", "-n", "4")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two models and files of questions."""
    folder = tmp_path_factory.mktemp("desk")
    boxer(folder / "model")
    boxer(folder / "other", seed=1)
    boxer(folder / "mute", alphabet="0123456789")
    question_files(folder)
    return folder


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, desk: Path) -> Path:
    """An empty runs folder; MLflow, which takes seconds to begin, is left out."""
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(evaluate, "mirror", lambda subject: None)
    monkeypatch.chdir(desk)
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def found(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> evaluate.Evaluated:
    """A model against another on three benchmarks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPCLI_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.chdir(desk)
        request = Request(
            benches=("aime", "gpqa"),
            target="./model",
            vs="./other",
            files={
                "aime24": Path("aime24.jsonl"),
                "aime25": Path("aime25.parquet"),
                "gpqa": Path("gpqa-diamond.csv"),
            },
            n=4,
            limit=8,
            temperature=1.0,
            top_k=0,
            max_tokens=80,
        )
        return evaluate.run(request, Observer())


def typed(*arguments: str) -> int:
    return app._run(["eval", *arguments])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_and_never_drop_the_benchmark(
    found: evaluate.Evaluated,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    results.show(found, "table")
    out, err = capsys.readouterr()
    table = out[: out.index("stored in")].splitlines()
    assert max(map(len, table[3:])) <= width  # the terminal wraps the two lines above
    for bench in ("aime24", "aime25", "gpqa-diamond"):
        assert sum(line.startswith(bench) for line in table) == 2
    assert ("tokens" in out.split("95% CI")[1].splitlines()[0]) == (width == 120)
    assert "against ./other, paired by question" in out
    assert "the smallest p is" in err
    assert "responses end" not in err


def test_markdown_and_latex_hold_every_column(
    found: evaluate.Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    results.show(found, "md")
    ours, theirs = capsys.readouterr().out.split("\n\n")
    titles = ["bench", "questions", "avg@4", "95% CI", "pass@4", "maj@4", "truncated", "no answer"]
    assert [cell.strip() for cell in ours.splitlines()[0].split("|")[1:-2]] == titles
    assert {line.count("|") for line in ours.splitlines()} == {len(titles) + 2}
    assert len(ours.splitlines()) == 2 + 3 + 1
    assert "| p Holm |" in theirs
    results.show(found, "tex")
    out = capsys.readouterr().out
    assert out.count(r"\begin{tabular}") == 2
    assert r"8 (part)" in out
    assert r"\%" in out
    assert not re.search(r"(?<!\\)[%_#]", out)


def test_json_is_the_stored_result(
    found: evaluate.Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    results.show(found, "json")
    printed = json.loads(capsys.readouterr().out)
    assert [one["bench"] for one in printed["results"]] == ["aime24", "aime25", "gpqa-diamond"]
    first = printed["results"][0]
    (path,) = Path(first["folder"]).glob("result-*.json")
    stored = json.loads(path.read_text())
    assert {key: first[key] for key in stored} == stored
    paired = printed["versus"]["paired"]
    assert [one["bench"] for one in paired] == ["aime24", "aime25", "gpqa-diamond"]
    theirs = printed["versus"]["results"]
    for ours, other, pair in zip(printed["results"], theirs, paired, strict=True):
        difference = ours["summary"]["avg"]["value"] - other["summary"]["avg"]["value"]
        assert pair["paired"]["difference"] == pytest.approx(difference)
        assert sum(pair["solved"].values()) == 8
    assert sum(one["summary"]["avg"]["value"] for one in (*printed["results"], *theirs)) > 0
    mean = sum(one["summary"]["avg"]["value"] for one in printed["results"]) / 3
    assert printed["mean"]["value"] == pytest.approx(mean)


def test_columns_that_only_some_results_have(found: evaluate.Evaluated) -> None:
    """One sample has no majority; verifiers that were killed get a column; no other, no table."""

    def titles(changed: evaluate.Evaluated) -> list[str]:
        return [column.title for column in results.result_columns(changed)]

    first = found.outcomes[0]
    one = replace(first, summary=replace(first.summary, n=1))
    alone = replace(found, outcomes=(one,), mean=None, against=())
    assert "maj@1" not in titles(alone)
    assert "pass@1" not in titles(alone)
    assert "timeout/crash" not in titles(found)
    shares = first.summary.shares | {"timeout": 0.25, "crash": 0.125}
    killed = replace(first, summary=replace(first.summary, shares=shares))
    shown = results.result_columns(replace(found, outcomes=(killed, *found.outcomes[1:])))
    (column,) = [column for column in shown if column.title == "timeout/crash"]
    assert column.cells == ["38%", "0%", "0%", ""]
    assert results.against_columns(alone) == []


def test_a_reward_in_parts_has_a_column_of_its_own(found: evaluate.Evaluated) -> None:
    """Not where it says the same as the accuracy, for all the rounding between the two."""
    first = found.outcomes[0]
    same = replace(first.summary, reward=first.summary.avg.value + 1e-15)
    for summary, shown in ((same, False), (replace(same, reward=0.4321), True)):
        changed = replace(found, outcomes=(replace(first, summary=summary), *found.outcomes[1:]))
        columns = {c.title: c.cells for c in results.result_columns(changed)}
        assert ("reward" in columns) == shown
    assert columns["reward"][0] == ".432"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("./model", "--bench", "aime2"), 2, ["no benchmark aime2", "aime24"]),
        (("nosuchrun", "{aime24}"), 3, ["no run nosuchrun"]),
        (("{aime24}",), 3, ["no finished run", "tpcli eval"]),
        (("./model", "{aime24}", "--temperature", "0"), 2, ["8 times the same", "--n 1"]),
        (("./model", "{aime24}", "--step", "3"), 2, ["--step belongs to a run", "./model"]),
        (("./mute", "{aime24}"), 2, ["the tokenizer does not know"]),
        (("./model",), 2, ["--bench", "aime,gpqa"]),
        (("./model", "--bench", "aime24", "--bench-file", "aime24"), 2, ["names no file"]),
        (("./model", "--bench", "aime24", "--bench-file", "aime24=no.csv"), 2, ["no file no.csv"]),
        (("./model", "{aime24}", "--bench-file", "gpqa=x"), 2, ["not asked for", "aime24,gpqa"]),
        (("./model", "--bench", "aime", "--bench-file", "aime=x"), 2, ["aime24 and aime25"]),
        (("./model", "{aime24}", "--dtype", "float8"), 2, ["float8", "float32"]),
        (("./model", "{aime24}", "--regrade"), 3, ["240 responses of 240 are not stored"]),
        (("./model", "{aime24}", "--verifier", "exactly"), 2, ['"exactly" is no verifier']),
        (("./model", "{aime24}", "--prompt", "recipe"), 2, ["has no recipe"]),
        (("pypi:a==1", "{aime24}"), 2, ["needs the digest"]),
        (("./nowhere", "{aime24}"), 2, ["there is no folder"]),
    ],
)
def test_refusals_are_two_lines(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: Any, code: int, told: list[str]
) -> None:
    asked = options({"aime24": Path("aime24.jsonl")}, "aime24")
    words = [part for one in arguments for part in (asked if one == "{aime24}" else [one])]
    assert typed(*words) == code
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line]
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], err
    assert all(one in err for one in told), err


def test_an_error_is_json_where_json_was_asked_for(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("./model", "--bench", "aime42", "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "usage"


def test_a_second_time_nothing_is_generated_and_a_folder_of_rows_does(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("./model", "--bench", "aime", "--bench-file", "aime=.", *SAMPLED)
    assert typed(*command) == 0
    first = capsys.readouterr()
    monkeypatch.setattr("tpcli.policy.load.load_model", None)
    assert typed(*command) == 0
    second = capsys.readouterr()
    assert second.out == first.out
    assert "nothing was generated for aime24, aime25" in second.err


def test_mlflow_away_is_a_warning(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "mirror", lambda subject: f"{subject.label} not logged")
    asked = options({"aime24": Path("aime24.jsonl")}, "aime24")
    assert typed("./model", *asked, *SAMPLED) == 0
    assert "warning: MLflow is behind: ./model not logged" in capsys.readouterr().err
