"""What a reader finds in a run's folder, whatever the writer was doing."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from tpcli.registry.folder import METRICS, read_json, read_metrics, write_json_atomic


def test_json_round_trip_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json_atomic(path, {"status": "running", "note": "ä"})
    write_json_atomic(path, {"status": "finished", "note": "ä"})
    assert read_json(path) == {"status": "finished", "note": "ä"}
    assert os.listdir(tmp_path) == ["state.json"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == 0o044, "others may read it"


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_json_atomic(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["state.json"]


def test_only_an_object_is_a_json_file_of_ours(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        read_json(tmp_path / "run.json")


def test_metrics_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_a_line_without_its_end_is_left_out(tmp_path: Path) -> None:
    """'{"step": 12' would parse as step 12 of 120 if the cut fell there and a brace followed."""
    whole = json.dumps({"step": 1, "reward/mean": 0.5})
    for torn in ("", "{", '{"step": 2, "reward', '{"step": 2}'):
        (tmp_path / METRICS).write_text(whole + "\n" + torn)
        assert [line["step"] for line in read_metrics(tmp_path)] == [1], torn


def test_a_cut_inside_a_character_is_a_torn_line_too(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1}\n{"note": "\xc3')
    assert read_metrics(tmp_path) == [{"step": 1}]


def test_a_repeated_step_counts_once_and_the_later_line_wins(tmp_path: Path) -> None:
    rows = [{"step": 1, "x": 1}, {"step": 2, "x": 2}, {"step": 1, "x": 3}]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_metrics(tmp_path) == [{"step": 1, "x": 3}, {"step": 2, "x": 2}]


@pytest.mark.parametrize("broken", ["{", "[1]", '{"time": 3}', "3"])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, broken: str) -> None:
    (tmp_path / METRICS).write_text(f'{{"step": 1}}\n{broken}\n{{"step": 2}}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        read_metrics(tmp_path)
