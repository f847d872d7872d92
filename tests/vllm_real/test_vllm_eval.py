"""``tpcli eval`` with vLLM, on this machine's CPU: word for word what transformers writes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.bench.boxer import boxer, options, question_files
from transformers import AutoModelForCausalLM

pytest.importorskip("vllm")


def loud(folder: Path) -> None:
    """A model whose next token depends on all before it, so that greedy responses differ."""
    boxer(folder, head_dim=32)
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)


def written(folder: Path, name: str, *args: str) -> dict[tuple[str, str], str]:
    """Responses by benchmark and question, of an evaluation in a registry of its own."""
    runs = folder / name
    process = subprocess.run(
        [sys.executable, "-m", "tpcli", "eval", str(folder / "model"), *args, "--json"],
        cwd=folder,
        env=os.environ
        | {
            "TPCLI_RUNS": str(runs),
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "VLLM_CPU_OMP_THREADS_BIND": "0|1",  # else vLLM wants a memory node for each worker
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert len(json.loads(process.stdout)["results"]) == 2
    found = {}
    for path in runs.rglob("generations.jsonl"):
        for line in path.read_text().splitlines():
            stored = json.loads(line)
            found[path.parent.name.rsplit("-", 1)[0], stored["item"]] = stored["text"]
    return found


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core a worker")
def test_greedy_responses_are_those_of_the_transformers_engine(tmp_path: Path) -> None:
    """Also with the weights in two halves."""
    loud(tmp_path / "model")
    asked = options(question_files(tmp_path), "aime24", "gpqa")
    greedy = (*asked, "--temperature", "0", "-n", "1", "--max-tokens", "40", "--limit", "20")
    without = written(tmp_path, "transformers", *greedy)
    assert len(set(without.values())) > 20
    with_vllm = ("--engine", "vllm")
    assert written(tmp_path, "one", *greedy, *with_vllm) == without
    assert written(tmp_path, "two", *greedy, *with_vllm, "--tensor-parallel", "2") == without
