"""A small random model with a character-level tokenizer, for runs that need no download."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tpcli.errors import UsageError
from tpcli.policy.load import quiet
from tpcli.policy.store import Report, once, save_model, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
_LAYOUT = 1  # counts up when the same settings would give another folder


def from_scratch(
    *,
    architecture: Literal["llama", "qwen3"],
    alphabet: str,
    pieces: Sequence[str],
    hidden_size: int,
    intermediate_size: int,
    layers: int,
    heads: int,
    context: int,
    init_std: float,
    seed: int,
    cache: Path,
    report: Report = silent,
) -> Path:
    """The folder of a random model, the same for the same settings.

    Args:
        architecture: which transformers model class.
        alphabet: the characters the tokenizer knows, one token each.
        pieces: longer strings that are one token each; they win over single characters.
        hidden_size: width of the residual stream, a multiple of ``heads``.
        intermediate_size: width of the feed-forward layer.
        layers: transformer blocks.
        heads: attention heads; keys and values have as many.
        context: longest sequence, in tokens.
        init_std: standard deviation of the initial matrices. 1 / sqrt(hidden_size) keeps the
            residual stream near unit size; transformers' usual 0.02 suits widths near 2,500.
        seed: of the weights.
        cache: where prepared models are kept.
        report: told what is being done.
    """
    shape: dict[str, int | float] = {
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": context,
        "initializer_range": init_std,
    }
    settings = [_LAYOUT, architecture, alphabet, list(pieces), shape, seed]
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]

    def build(folder: Path) -> None:
        report("building a model from scratch", 0, 0)
        tokenizer = character_tokenizer(alphabet, pieces, context=context)
        _save(folder, architecture, shape, seed, tokenizer)

    return once(cache / "models" / f"scratch-{architecture}-{key}", build, report=report)


def character_tokenizer(
    alphabet: str, pieces: Sequence[str], *, context: int
) -> PreTrainedTokenizerFast:
    """One token a character or piece, plus distinct <bos>, <eos> and <pad>.

    There is no unknown token: a character outside the alphabet is an error when it is encoded.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast
    if not alphabet or not all(pieces):
        raise UsageError(
            "the tokenizer needs characters, and no piece may be empty",
            hint="correct [model.scratch].alphabet and [model.scratch].pieces",
        )
    longest_first = sorted(pieces, key=len, reverse=True)
    tokens = dict.fromkeys([*_SPECIAL.values(), *pieces, *alphabet])
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    pattern = "|".join([*map(re.escape, longest_first), r"[\s\S]"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer: PreTrainedTokenizerFast = fast(
        tokenizer_object=backend,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **_SPECIAL,
    )
    return tokenizer


def _save(
    folder: Path,
    architecture: Literal["llama", "qwen3"],
    shape: dict[str, int | float],
    seed: int,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    auto: Any = AutoModelForCausalLM
    config_class: Any = {"llama": LlamaConfig, "qwen3": Qwen3Config}[architecture]
    config = config_class(
        **shape,
        head_dim=int(shape["hidden_size"]) // int(shape["num_attention_heads"]),
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        model = auto.from_config(config, dtype=torch.float32)
    finally:
        torch.default_generator.set_state(state)
    with quiet():
        save_model(model, tokenizer, folder)
