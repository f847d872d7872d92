"""Two training processes that share one engine, each with half of the weights."""

from pathlib import Path

import pytest
from tests.jobs.bench import Bench, metrics
from tests.vllm_real.test_vllm_training import VLLM

pytest.importorskip("vllm")


def test_two_processes_share_an_engine(tmp_path: Path) -> None:
    """The trainer's log-probs of what the halves drew together, after every update."""
    bench = Bench(tmp_path, tmp_path / "cache")
    (tmp_path / "vllm.toml").write_text(VLLM)
    asked = ("--set", "train.steps=3", "--set", "rollout.prompts=4", "--set", "optim.lr=1e-3")
    bench.type(
        *("train", "vllm.toml", *asked),
        *("--set", "launch.processes=2", "--set", "launch.cpu=true"),
        *("--set", "rollout.vllm.tensor_parallel=2"),
    )
    before, *lines = metrics(bench.run)
    assert before["eval/questions"] == 8  # each counted once
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert max(line["sync/gap"] for line in lines) < 1e-4
    assert max(line["gap/max"] for line in lines) < 1e-3
    assert lines[-1]["kl/all"] > lines[0]["kl/all"]
