"""The small random model and its character-level tokenizer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from tpcli.errors import UsageError
from tpcli.policy.load import load_model
from tpcli.policy.scratch import character_tokenizer
from tpcli.policy.source import resolve
from tpcli.recipe.sections import ScratchSection

SMALL = ScratchSection(hidden_size=16, intermediate_size=24, layers=2, heads=2, context=32)
ALPHABET, PIECES = SMALL.alphabet, SMALL.pieces


def settings(**changes: Any) -> dict[str, Any]:
    return {**SMALL.model_dump(), **changes}


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_folder_loads_and_has_the_shape_asked_for(architecture: str, tmp_path: Path) -> None:
    """Tied embeddings: 19 tokens (3 special, 2 pieces, 14 characters) by 16 once."""
    scratch = settings(architecture=architecture)
    folder = resolve("scratch", scratch=scratch, cache=tmp_path)
    model: Any
    model, tokenizer = load_model(folder, dtype="float32", trust_remote_code=False)
    config = AutoConfig.from_pretrained(folder)
    assert config.model_type == architecture
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (16, 2, 8)
    assert config.max_position_embeddings == 32
    assert len(tokenizer) == 3 + len(PIECES) + len(ALPHABET)
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 16)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    attention, mlp, norms = 4 * 16 * 16, 3 * 16 * 24, 2 * 16
    per_head = 2 * 8 if architecture == "qwen3" else 0
    expected = len(tokenizer) * 16 + 2 * (attention + mlp + norms + per_head) + 16
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("std", [0.02, 0.08])
def test_matrices_start_at_the_spread_asked_for(std: float, tmp_path: Path) -> None:
    folder = resolve("scratch", scratch=settings(init_std=std), cache=tmp_path)
    model, _ = load_model(folder, dtype="float32", trust_remote_code=False)
    drawn = torch.cat([p.flatten() for p in model.model.layers.parameters() if p.ndim == 2])
    assert float(drawn.detach().std()) == pytest.approx(std, rel=0.05)


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    def weights(cache: str, seed: int, noise: int) -> list[torch.Tensor]:
        torch.manual_seed(noise)
        folder = resolve("scratch", scratch=settings(seed=seed), cache=tmp_path / cache)
        model, _ = load_model(folder, dtype="float32", trust_remote_code=False)
        return list(model.state_dict().values())

    base = weights("a", 1, 0)
    for ours, again in zip(base, weights("b", 1, 99), strict=True):
        assert torch.equal(ours, again)
    assert any(not torch.equal(x, y) for x, y in zip(base, weights("a", 2, 0), strict=True))


def test_building_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    resolve("scratch", scratch=settings(), cache=tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_each_setting_has_its_own_folder(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"alphabet": "0123"},
        {"pieces": ("12",)},
        {"layers": 1},
        {"context": 64},
        {"architecture": "qwen3"},
    ]
    folders = {resolve("scratch", scratch=settings(**c), cache=tmp_path) for c in changes}
    assert len(folders) == len(changes)
    assert resolve("scratch", scratch=settings(), cache=tmp_path) in folders


@given(text=st.lists(st.sampled_from([*ALPHABET, *PIECES])).map("".join))
def test_text_survives_and_pieces_win(text: str) -> None:
    tokenizer = TOKENIZER
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    boxes = text.count("\\boxed{")
    assert len(ids) == len(text) - boxes * (len("\\boxed{") - 1)


TOKENIZER: Any = character_tokenizer(ALPHABET, PIECES, context=32)


def test_the_longest_piece_wins() -> None:
    tokenizer: Any = character_tokenizer("ab", ["a", "ab", "abb"], context=8)
    assert tokenizer.convert_ids_to_tokens(tokenizer("abbab")["input_ids"]) == ["abb", "ab"]


def test_special_tokens_are_distinct_and_never_added_by_themselves() -> None:
    special = [TOKENIZER.bos_token_id, TOKENIZER.eos_token_id, TOKENIZER.pad_token_id]
    assert len(set(special)) == 3
    assert TOKENIZER.unk_token is None
    assert not set(special) & set(TOKENIZER("1+1")["input_ids"])
    assert TOKENIZER("<bos>1<eos>")["input_ids"][::2] == special[:2]


@pytest.mark.parametrize("text", ["x", "1 1", "\\boxed", "é"])
def test_an_unknown_character_is_never_written(text: str) -> None:
    with pytest.raises(Exception, match="UNK"):
        TOKENIZER(text)


@pytest.mark.parametrize(("alphabet", "pieces"), [("", ("a",)), ("a", ("",))])
def test_an_empty_alphabet_or_piece(alphabet: str, pieces: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="no piece may be empty"):
        character_tokenizer(alphabet, pieces, context=8)
