"""Whole training runs that sample with vLLM, on this machine's CPU."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tests.jobs.bench import Bench, metrics
from tests.vllm_real.serving import Server
from tests.vllm_real.small import LONG, small_llama, started
from transformers import LlamaForCausalLM

from tpcli.errors import RunFailedError
from tpcli.policy.model import Policy
from tpcli.train.sync import Sync

pytest.importorskip("vllm")

VLLM = """
extends = "small.toml"
[model.scratch]
hidden_size = 128 # vLLM's kernels for CPUs want heads of 32, 64, ... numbers
[rollout]
engine = "vllm"
[rollout.vllm]
cache_gb = 0.2
eager = true
tolerance = 1e-4
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(tmp_path: Path, cache: Path) -> Bench:
    made = Bench(tmp_path, cache)
    (tmp_path / "vllm.toml").write_text(VLLM)
    return made


def test_a_run_on_vllm_goes_as_one_on_transformers(bench: Bench) -> None:
    """The same start, log-probs that agree, and the same reward up to the luck of the draw."""
    asked = (
        *("--set", "train.steps=30", "--set", "warmup.steps=200"),
        *("--set", "rollout.prompts=8", "--set", "rollout.group_size=8"),
        *("--set", "rollout.temperature=1.5", "--set", "optim.lr=1e-4"),
    )
    bench.type("train", "vllm.toml", *asked)
    first = bench.run
    bench.type("train", "vllm.toml", "--set", 'rollout.engine="transformers"', *asked)
    (second,) = {*bench.runs()} - {first}
    ours, theirs = metrics(second), metrics(first)
    assert theirs[0]["eval/greedy"] == ours[0]["eval/greedy"]
    gap = max(line["sync/gap"] for line in theirs[1:])
    print(f"gap {gap:.1e}, of responses {max(line['gap/max'] for line in theirs[1:]):.1e}")
    assert gap < 1e-4
    assert max(line["gap/max"] for line in theirs[1:]) < 1e-3
    # 30 x 64 responses a side: a standard error of about .015 in the difference.
    rewards = [sum(line["reward/mean"] for line in lines[1:]) / 30 for lines in (theirs, ours)]
    print(f"mean reward {rewards[0]:.3f}, transformers {rewards[1]:.3f}")
    assert rewards[0] == pytest.approx(rewards[1], abs=0.08)
    assert theirs[-1]["kl/all"] > 10 * theirs[1]["kl/all"]


def test_a_stopped_run_goes_on_with_the_weights_it_had(bench: Bench) -> None:
    """The engine starts with those of step 0; the first hand-over brings the checkpoint's."""
    process = bench.start("train", "vllm.toml", "--set", "train.steps=6")
    bench.until_step(2)
    process.kill()
    process.communicate()
    bench.type("resume", bench.run.name)
    lines = metrics(bench.run)
    assert [line["step"] for line in lines] == [*range(7)]
    assert max(line["sync/gap"] for line in lines[1:]) < 1e-4


def test_weights_that_do_not_arrive_stop_the_run(tmp_path: Path) -> None:
    engine = started(tmp_path, tied=True)
    model = small_llama(0, tied=True)
    made: dict[str, Any] = {"text": LONG[:192], "tolerance": 1e-3, "shared": False}
    sync = Sync(engine, model, Policy(model), Accelerator(cpu=True), **made)
    try:
        assert sync.push(0).gap < 1e-4
        moved(model)
        assert sync.push(1).gap < 1e-4
        engine._reload = lambda named: None  # type: ignore[method-assign]
        moved(model)
        with pytest.raises(RunFailedError, match="over the tolerance"):
            sync.push(2)
    finally:
        engine.close()


def moved(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape)


SERVED = """
extends = "vllm.toml"
[rollout]
engine = "vllm-server"
ahead = true
[rollout.vllm]
timeout = 20.0
head = true
url = "{url}"
[loss.correction]
kind = "truncate"
"""


def serve(bench: Bench, url: str | None = None) -> Server:
    flags = ("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm")
    return Server(
        bench.folder,
        *(*flags, "--enable-scale-out"),
        source=bench.folder / "untied",
        max_len=128,
        url=url,
        VLLM_SERVER_DEV_MODE="1",
    )


@pytest.fixture
def served(bench: Bench, cache: Path) -> Iterator[Server]:
    """Serves an untied copy of the warmed-up policy, which a run on transformers leaves behind."""
    only = ("--set", "train.steps=2", "--set", "eval.questions=0")
    bench.type("train", "vllm.toml", "--set", 'rollout.engine="transformers"', *only)
    shutil.rmtree(bench.run)
    warm = max(cache.glob("warmups/*/config.json"), key=lambda path: path.stat().st_mtime).parent
    tied = LlamaForCausalLM.from_pretrained(warm)
    tied.config.tie_word_embeddings = False
    untied = LlamaForCausalLM(tied.config)
    untied.load_state_dict(tied.state_dict())
    untied.save_pretrained(bench.folder / "untied")
    server = serve(bench)
    (bench.folder / "served.toml").write_text(SERVED.format(url=server.url))
    yield server
    server.stop()


def test_a_server_draws_a_step_ahead_and_is_missed_when_it_dies(
    bench: Bench, served: Server
) -> None:
    """Staleness 1 after the first step; kill -9 ends the run with a word, a new server mends it."""
    process = bench.start("train", "served.toml", "--set", "train.steps=8")
    bench.until_step(3)
    served.kill()
    said = "".join(process.communicate(timeout=240))
    assert process.returncode == 4, said
    assert served.url in said, said
    again = serve(bench, served.url)
    try:
        bench.type("resume", bench.run.name)
    finally:
        again.stop()
    lines = metrics(bench.run)[1:]
    assert [line["step"] for line in lines] == [*range(1, 9)]
    assert lines[0]["rollout/staleness"] == 0
    assert lines[1]["rollout/staleness"] == lines[-1]["rollout/staleness"] == 1
    assert max(line["sync/gap"] for line in lines) < 1e-4
    # Sampler and trainer are one update apart, which the correction sees.
    assert lines[-1]["gap/mean"] > 10 * lines[-1]["sync/gap"]
