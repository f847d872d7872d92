"""What ``tpcli board`` prints: tables, Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from tests.jobs.scores import paper, scored, trained

from tpcli.cli import app


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The paper's shape, and a run that was measured otherwise."""
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    paper(tmp_path / "runs")
    trained(tmp_path / "runs", "odd", seed=0, name="odd", recipe="[loss]\nkl_coef = 0.1\n")
    scored(tmp_path / "runs", "odd", "aime24", 0.9, n=4, max_tokens=32)
    scored(tmp_path / "runs", "odd", "aime25", 0.1)
    return tmp_path / "runs"


def typed(*arguments: str) -> int:
    return app._run(["board", *arguments])


def test_the_table(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("--bench", "aime,gpqa,musr") == 0
    out, err = capsys.readouterr()
    caption, head, *rows = out.splitlines()
    assert caption == "avg@8 in %, mean ± standard deviation over seeds"
    assert head.split() == [
        *("policy", "seeds", "step", "aime24", "aime25", "avg", "gpqa*", "musr*", "avg")
    ]
    assert [row.split()[0] for row in rows] == [
        *("Qwen/Qwen3-4B", "math-linear", "math-off-s0", "odd-s0")
    ]
    assert rows[0].split()[1:] == ["–", "–", "71.2", "62.9", "67.0", "54.1", "61.4", "57.8"]
    assert "74.2 ± 1.0  67.1 ± 1.0  70.7 ± 0.0" in rows[1]
    assert rows[3].split()[1:] == ["1", "20", "90.0ᵃ", "10.0", "50.0ᵃ", "–", "–", "–"]
    assert "ᵃ n 4 instead of 8; sampling.max_tokens 32 instead of 64" in err
    assert "* outside mathematics" in err


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_narrow_terminal_keeps_names_and_averages(
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    width: int,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert typed() == 0
    out, err = capsys.readouterr()
    table = out[out.index("policy") :].splitlines()
    assert max(map(len, table)) <= width
    assert [row.split()[0] for row in table[1:]][1:] == ["math-linear", "math-off-s0", "odd-s0"]
    assert table[0].split().count("avg") == 2
    assert re.search("no room for .*step.*musr", err)


def test_the_best_of_a_column_is_bold(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The highest number, .9, was measured otherwise and is none."""
    assert typed("--format", "md") == 0
    rows = {
        line.split("|")[1].strip(): line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("| ")
    }
    assert rows["math-linear"].count("**") == 2 * 6
    assert "**74.2 ± 1.0**" in rows["math-linear"]
    assert not any("**" in row for name, row in rows.items() if name != "math-linear")
    assert typed("--format", "tex") == 0
    out = capsys.readouterr().out
    assert out.count(r"\textbf{") == 6
    assert r"90.0$^{a}$" in out
    assert r"$^{a}$ n 4 instead of 8; sampling.max\_tokens 32 instead of 64" in out
    assert "ᵃ" not in out


def test_csv_and_json(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("--format", "csv", "--bench", "aime24,gpqa") == 0
    rows = [*csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert rows[0]["aime24"] == "71.2000"
    linear = next(row for row in rows if row["policy"] == "math-linear")
    assert (linear["aime24 sd"], linear["aime24 seeds"], linear["runs"]) == (
        *("1.0000", "3"),
        "tps0 tps1 tps2",
    )
    odd = next(row for row in rows if row["policy"] == "odd-s0")
    assert odd["aime24 differs"].startswith("n 4 instead of 8")
    assert odd["gpqa-diamond"] == ""
    assert typed("--json", "--bench", "aime") == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["bench"] for one in told["benches"]] == ["aime24", "aime25"]
    assert told["benches"][0]["measured"]["n"] == 8
    assert told["rows"][1]["cells"]["aime24"]["seeds"] == 3


def test_different_numbers_of_samples_stand_in_the_heads(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored(base, "off", "math500", 0.8, n=2)
    assert typed("--run", "off", "--bench", "aime24,math500") == 0
    caption, head, *_ = capsys.readouterr().out.splitlines()
    assert caption == "avg@n in %"
    assert head.split() == ["policy", "step", "aime24@8", "math500@2", "avg"]


def test_nothing_evaluated_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    assert typed("--bench", "aime") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "nothing was evaluated on the whole of a benchmark: tpcli eval --bench aime"
    ]
    assert err == ""
    assert typed("--bench", "aime", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []


def test_a_word_that_names_nothing(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("--run", "nope") == 3
    assert "nothing that nope names" in capsys.readouterr().err
