"""``tpcli eval`` with vLLM, on this machine's CPU: the same scores as with transformers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.bench.boxer import boxer, options, question_files

pytest.importorskip("vllm")


def evaluated(folder: Path, *args: str, code: int = 0) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "tpcli", "eval", str(folder / "model"), *args, "--json"],
        cwd=folder,
        env=os.environ | {"TPCLI_RUNS": str(folder / "runs"), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == code, process.stderr
    found: dict[str, Any] = json.loads(process.stdout)
    return found


def test_greedy_scores_are_those_of_the_transformers_engine(tmp_path: Path) -> None:
    boxer(tmp_path / "model", head_dim=32)
    asked = options(question_files(tmp_path), "aime24", "gpqa")
    greedy = (*asked, "--temperature", "0", "-n", "1", "--max-tokens", "40", "--limit", "20")
    with_vllm = evaluated(tmp_path, *greedy, "--engine", "vllm")
    without = evaluated(tmp_path, *greedy)
    for one, other in zip(with_vllm["results"], without["results"], strict=True):
        assert one["settings"]["engine"] == "vllm"
        assert one["summary"]["correct"] == other["summary"]["correct"]
        assert one["summary"]["tokens"] == other["summary"]["tokens"] > 1
