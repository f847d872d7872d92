"""vLLM in this process when something dies: a clear error at once, and never a second chance.

In a file of its own: a process has one engine of vLLM at a time.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.tiny import prompt_of
from tests.vllm_real.small import EOS, small_llama, started, trained

from tpcli.errors import RunFailedError
from tpcli.rollout.vllm import VllmEngine

pytest.importorskip("vllm")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[VllmEngine]:
    engine = started(tmp_path, tied=False)
    yield engine
    engine.close()


def sample(engine: VllmEngine) -> None:
    engine.sample([prompt_of([5, 9, 3])], group_size=2, seed=3, temperature=1.0, max_new_tokens=10)


def test_a_load_that_is_cut_off_ends_the_engine(engine: VllmEngine) -> None:
    """Half-replaced weights are never sampled from."""

    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield from trained(small_llama(1, tied=False))[:3]
        raise OSError("the disk is gone")

    with pytest.raises(RunFailedError, match="did not take the new weights: OSError"):
        engine.load(broken(), version=1)
    with pytest.raises(RunFailedError, match="did not take the new weights"):
        sample(engine)
    assert engine.version == 0


def test_a_dead_engine_is_named_and_never_waited_for(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    def dies() -> None:
        raise EngineDeadError

    monkeypatch.setattr(engine._llm.llm_engine, "step", dies)
    for _ in range(2):
        with pytest.raises(RunFailedError, match="failed while generating: EngineDeadError") as was:
            sample(engine)
        assert "tpcli resume" in was.value.hint


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(RunFailedError, match="vLLM cannot start"):
        VllmEngine(
            tmp_path, eos_ids=EOS, max_len=64, max_rows=1, dtype="float32", seed=0, cache_gb=0.1
        )
