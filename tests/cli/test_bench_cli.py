"""What `tpcli bench` prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from tests.bench.shapes import SHAPES, save
from typer.testing import CliRunner, Result

from tpcli.cli.bench import app as bench_app
from tpcli.errors import UsageError

app = typer.Typer()
app.add_typer(bench_app, name="bench")
OWN = """
title = "Sums of my own"
source = "file://sums.jsonl"
kind = "int"
answer = "{answer}"
"""


def invoke(*arguments: str, width: int = 120) -> Result:
    environment = {"COLUMNS": str(width)}
    return CliRunner().invoke(app, ["bench", *arguments], env=environment, catch_exceptions=False)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_benchmark_is_listed_within_the_width(width: int) -> None:
    result = invoke("ls", width=width)
    lines = result.stdout.splitlines()
    assert {line.split()[0] for line in lines[1:]} == {*SHAPES}
    assert max(map(len, lines)) <= width
    assert "rg:TASK" in result.stderr


def test_a_wide_terminal_shows_what_is_gated() -> None:
    (line,) = [one for one in invoke("ls", width=200).stdout.splitlines() if "gpqa" in one]
    assert line.split() == [
        *("gpqa-diamond", "gpqa", "GPQA", "Diamond", "198", "choice"),
        *("hf://Idavidrein/gpqa", "(gated)"),
    ]


def test_ones_own_are_listed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benches").mkdir()
    (tmp_path / "benches" / "mine.toml").write_text(OWN)
    facts = {one["name"]: one for one in json.loads(invoke("ls", "--json").stdout)}
    assert facts.keys() == {*SHAPES, "mine"}
    assert facts["mine"]["file"] == "benches/mine.toml"
    assert facts["aime24"]["count"] == 30
    text = invoke("show", "mine").stdout
    assert "Sums of my own" in text
    assert "questions" not in text


def test_show_a_group() -> None:
    text = invoke("show", "aime").stdout
    first, second = text.split("\n\naime25\n")
    assert first.splitlines()[0] == "aime24"
    assert "revision  563bb8404243c5f09de6ec262f2db674fe5bce9b" in second
    assert "\\boxed{}" in first
    names = [one["name"] for one in json.loads(invoke("show", "aime", "--json").stdout)]
    assert names == ["aime24", "aime25"]


def test_show_a_question_of_a_file(tmp_path: Path) -> None:
    shape = SHAPES["gpqa-diamond"]
    path = save(tmp_path / "rows.csv", [case.row for case in shape.cases], shape.columns)
    command = ("show", "gpqa", "--question", "2", "--bench-file", str(path))
    item = json.loads(invoke(*command, "--json").stdout)
    assert item["text"].startswith('A "diamond" sample,\nnumber 1, decays')
    right = item["order"].index(0)
    assert item["answer"] == "ABCD"[right]
    assert f"\n{item['answer']}. 1, about\n" in item["text"]
    shown = invoke(*command)
    assert shown.stdout == f"{item['text']}\n\n"
    assert f"right answer {item['answer']}" in shown.stderr


def test_what_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="aime is several: aime24, aime25"):
        invoke("show", "aime", "--question", "1")
    shape = SHAPES["aime24"]
    path = save(tmp_path / "rows.jsonl", [case.row for case in shape.cases], shape.columns)
    with pytest.raises(UsageError, match="aime24 has 30 questions"):
        invoke("show", "aime24", "--question", "31", "--bench-file", str(path))
    with pytest.raises(UsageError, match="no benchmark aime42") as caught:
        invoke("show", "aime42")
    assert "aime24" in caught.value.hint
