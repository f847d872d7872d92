"""One evaluation's folder: found again by its settings, whole after a crash, one owner at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tpcli.bench.folder import (
    GENERATIONS,
    ITEMS,
    SETTINGS,
    EvaluationFolder,
    Generation,
    result_name,
)
from tpcli.bench.items import Item
from tpcli.errors import UsageError
from tpcli.types import Verdict

SETTINGS_OF_ONE: dict[str, Any] = {
    "bench": "aime24",
    "policy": "d" * 64,
    "asking": {"thinking": None, "template": None},
    "sampling": {"seed": 0, "temperature": 0.6},
}


def made(base: Path, bench: str = "aime24", **more: Any) -> EvaluationFolder:
    folder = EvaluationFolder(base, bench, SETTINGS_OF_ONE | more)
    folder.path.mkdir(parents=True, exist_ok=True)
    return folder


def response(item: str, sample: int, text: str = "é\n\u2028") -> Generation:
    return Generation(item, sample, text, tokens=3, finished=True, opened=False)


class TestPlace:
    def test_equal_settings_find_the_same_folder_in_any_order(self, tmp_path: Path) -> None:
        turned = dict(reversed(SETTINGS_OF_ONE.items()))
        assert EvaluationFolder(tmp_path, "aime24", turned).path == made(tmp_path).path

    @pytest.mark.parametrize(
        "other",
        [
            {"policy": "e" * 64},
            {"asking": {"thinking": False, "template": None}},
            {"sampling": {"seed": 1, "temperature": 0.6}},
            {"sampling": {"seed": 0, "temperature": 0.7}},
            {"more": None},
        ],
    )
    def test_any_other_setting_has_another(self, tmp_path: Path, other: dict[str, Any]) -> None:
        assert made(tmp_path, **other).path != made(tmp_path).path

    def test_a_name_no_file_can_have(self, tmp_path: Path) -> None:
        folder = made(tmp_path, "rg:chain_sum?min_terms=2&x=" + "y" * 300)
        assert folder.path.name.startswith("rg-chain_sum-min_terms-2-x-yyy")
        assert len(folder.path.name) == 60 + 1 + 10
        assert folder.path.parent == tmp_path

    def test_results_have_a_file_each(self, tmp_path: Path) -> None:
        names = [
            result_name(8, None, "int"),
            result_name(16, None, "int"),
            result_name(8, 5, "int"),
            result_name(8, None, "mine.py:f"),
        ]
        assert names[2] == "result-n8-limit5-int.json"
        assert len({*names}) == 4
        folder = made(tmp_path)
        assert folder.result(names[0]) is None
        for name in names:
            folder.write_result(name, {"name": name})
        assert folder.result(names[3]) == {"name": names[3]}
        assert {path.name for path in folder.path.glob("result-*.json")} == {*names}


class TestCrash:
    def test_a_line_cut_anywhere_is_dropped_and_never_merged(self, tmp_path: Path) -> None:
        folder = made(tmp_path)
        path = folder.path / GENERATIONS
        folder.add([response("a", 0), response("a", 1)])
        whole = path.read_bytes()
        kept = whole.index(b"\n") + 1
        for cut in range(kept, len(whole)):
            path.write_bytes(whole[:cut])
            assert [*folder.generations()] == [("a", 0)]
            folder.add([response("b", 0)])
            assert folder.generations() == {
                ("a", 0): response("a", 0),
                ("b", 0): response("b", 0),
            }
            assert path.read_bytes()[:kept] == whole[:kept]

    def test_a_file_of_nothing_but_a_cut_line(self, tmp_path: Path) -> None:
        folder = made(tmp_path)
        (folder.path / GENERATIONS).write_bytes(b'{"item": "a", "sam')
        assert folder.generations() == {}
        folder.add([response("b", 0)])
        assert [*folder.generations()] == [("b", 0)]

    def test_a_damaged_line_counts_as_missing(self, tmp_path: Path) -> None:
        folder = made(tmp_path)
        folder.add([response("a", 0), response("b", 0)])
        path = folder.path / GENERATIONS
        first, second, end = path.read_bytes().split(b"\n")
        path.write_bytes(b"\n".join((b"\0" * len(first), second, end)))
        assert [*folder.generations()] == [("b", 0)]

    def test_verdicts_are_cut_the_same_way(self, tmp_path: Path) -> None:
        folder = made(tmp_path)
        folder.add_verdicts("int", {("a", 0): Verdict(1.0, "correct", "7", "7", 0.5)})
        with (folder.path / "verdicts.jsonl").open("ab") as file:
            file.write(b'{"item": "a", "sample": 0, "kind": "int", "reward": 0')
        folder.add_verdicts("int", {("a", 1): Verdict(0.0, "no_answer")})
        assert {place: one.status for place, one in folder.verdicts("int").items()} == {
            ("a", 0): "correct",
            ("a", 1): "no_answer",
        }

    def test_questions_are_written_once_and_before_the_settings(self, tmp_path: Path) -> None:
        """A crash between the two leaves no settings, and then both are written again."""
        folder = made(tmp_path)
        (folder.path / ITEMS).write_text("half of an older li")
        folder.begin([Item("a", "q", "q?", "7"), Item("b", "r", "r?", "A", (1, 0))])
        lines = [json.loads(line) for line in (folder.path / ITEMS).read_text().splitlines()]
        assert [(line["id"], line["gold"], line["order"]) for line in lines] == [
            ("a", "7", None),
            ("b", "A", [1, 0]),
        ]
        assert json.loads((folder.path / SETTINGS).read_text()) == SETTINGS_OF_ONE
        folder.begin([])
        assert len((folder.path / ITEMS).read_text().splitlines()) == 2


class TestVerdicts:
    def test_each_kind_has_its_own_and_the_later_one_counts(self, tmp_path: Path) -> None:
        folder = made(tmp_path)
        right, wrong = Verdict(1.0, "correct", "7", "7", 0.5), Verdict(0.0, "wrong", "8", "8", 0.5)
        folder.add_verdicts("int", {("a", 0): wrong, ("a", 1): right})
        folder.add_verdicts("math", {("a", 0): wrong})
        folder.add_verdicts("int", {("a", 0): right})
        assert folder.verdicts("int") == {("a", 0): right, ("a", 1): right}
        assert folder.verdicts("math") == {("a", 0): wrong}
        assert folder.verdicts("exact") == {}


HOLD = """
import sys
from pathlib import Path
from tpcli.bench.folder import EvaluationFolder
with EvaluationFolder(Path(sys.argv[1]), "aime24", {}).alone():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_of_two_processes_the_second_is_refused(tmp_path: Path) -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    folder = EvaluationFolder(tmp_path, "aime24", {})
    with pytest.raises(UsageError, match="another process") as caught, folder.alone():
        pass
    assert "wait" in caught.value.hint
    first.communicate("")
    with folder.alone():
        assert folder.path.is_dir()


def test_a_failure_inside_gives_the_folder_back(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path, "aime24", {})
    with pytest.raises(ZeroDivisionError), folder.alone():
        raise ZeroDivisionError
    with EvaluationFolder(tmp_path, "aime24", {}).alone():
        assert folder.path.is_dir()
