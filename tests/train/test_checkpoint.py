"""Checkpoints appear whole, restore every bit, and refuse what they do not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_llama
from transformers import AutoModelForCausalLM

from tpcli.errors import UsageError
from tpcli.optim.adamw import adamw
from tpcli.policy.scratch import character_tokenizer
from tpcli.train.checkpoint import Position, found, newest, position_of, restore, save

POSITION = Position(
    step=3,
    horizon=10,
    prompts_seen=12,
    seed=5,
    tempo={"credit.schedule": {"share": 0.35, "smoothed": None}},
)
TOKENIZER: Any = character_tokenizer("0123456789", ["\\boxed{", "}"], context=64)


def trained(steps: int) -> tuple[Any, torch.optim.Optimizer]:
    model: Any = tiny_llama()
    optimizer = adamw(model.parameters(), lr=1e-2)
    for _ in range(steps):
        push(model, optimizer)
    return model, optimizer


def push(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model(input_ids=torch.arange(2, 12)[None]).logits.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def keep(run_dir: Path, step: int, limit: int = 9) -> Path:
    model, optimizer = trained(0)
    position = Position(step=step, horizon=10, prompts_seen=0, seed=0)
    return save(run_dir, position, model, TOKENIZER, optimizer, keep=limit)


@pytest.mark.parametrize("tied", [True, False])
def test_training_goes_on_bit_for_bit(tmp_path: Path, tied: bool) -> None:
    model: Any = tiny_llama(tied=tied)
    optimizer = adamw(model.parameters(), lr=1e-2)
    for _ in range(3):
        push(model, optimizer)
    folder = save(tmp_path, POSITION, model, TOKENIZER, optimizer, keep=2)
    random = torch.rand(3)
    push(model, optimizer)

    again: Any = tiny_llama(7, tied=tied)
    fresh = adamw(again.parameters(), lr=1e-2)
    assert restore(folder, again, fresh) == POSITION == position_of(folder)
    assert torch.equal(torch.rand(3), random)
    push(again, fresh)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_is_a_model_that_transformers_loads(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    folder = save(tmp_path, POSITION, model, TOKENIZER, optimizer, keep=1)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder / "model")
    ids = torch.arange(2, 9)[None]
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_half_written_checkpoints_do_not_count(tmp_path: Path) -> None:
    keep(tmp_path, 2)
    (tmp_path / "checkpoints" / ".step-000004.partial").mkdir()
    assert [step for step, _ in found(tmp_path)] == [2]
    assert newest(tmp_path) == (2, tmp_path / "checkpoints" / "step-000002")
    assert newest(tmp_path / "nowhere") is None


def test_only_the_last_k_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        keep(tmp_path, step, limit=2)
    assert [step for step, _ in found(tmp_path)] == [4, 6]


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder = keep(tmp_path, 2)
    other: Any = tiny_llama(tied=False)
    other.resize_token_embeddings(70)
    with pytest.raises(UsageError, match="step-000002 does not fit this model"):
        restore(folder, other, adamw(other.parameters(), lr=1e-2))
