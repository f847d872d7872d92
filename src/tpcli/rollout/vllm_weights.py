"""Weights as vLLM reads them, and what tied ones need on a CPU.

On a CPU vLLM keeps a packed copy of the output matrix beside the embedding, and replacing the
weights of a tied model leaves that copy as it was (0.32.0). There the model is run untied: with an
output matrix of its own that is always sent along.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"


def with_head(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """All of ``named``, and the embedding once more as the output matrix where that is missing."""
    embedding, has_head = None, False
    for name, tensor in named:
        has_head |= name == HEAD
        if name.endswith(EMBEDDING):
            embedding = tensor
        yield name, tensor
    if embedding is not None and not has_head:
        yield HEAD, embedding


def saved(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of every safetensors file in ``folder``."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)


def is_tied(folder: Path, *, trust_remote_code: bool = False) -> bool:
    """Whether the model's output matrix is its embedding."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return bool(config.get_text_config().tie_word_embeddings)
