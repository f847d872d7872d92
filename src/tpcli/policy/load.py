"""From a local folder to a model and a tokenizer that are ready to train."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tpcli.errors import UsageError
from tpcli.names import DtypeName

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    folder: Path, *, dtype: DtypeName, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (on the CPU, no dropout, sdpa attention) and tokenizer of ``folder``.

    Every parameter comes from the files: one that is missing there is an error, never noise.
    """
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    try:
        with quiet():
            model, info = auto.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (ValueError, OSError, ImportError) as error:
        raise _cannot_load(folder, error) from error
    if info["missing_keys"]:
        raise UsageError(
            f"the weights in {folder} lack {sorted(info['missing_keys'])[0]}",
            hint="the folder holds another kind of model, or only a part of one",
        )
    # An embedding drops the gradient of its padding_idx, which may be a token of every prompt
    # (SmolLM2 pads with <|im_end|>). Masks come from lengths here, so no padding_idx is needed.
    model.get_input_embeddings().padding_idx = None
    _without_dropout(model)
    model.eval()
    return cast("PreTrainedModel", model), load_tokenizer(
        folder, trust_remote_code=trust_remote_code
    )


def _without_dropout(model: Any) -> None:
    """No dropout in training mode either: ratios compare the very same network."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of ``folder`` alone."""
    from transformers import AutoTokenizer

    try:
        return cast(
            "PreTrainedTokenizerBase",
            AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=trust_remote_code
            ),
        )
    except (ValueError, OSError, ImportError) as error:
        raise _cannot_load(folder, error) from error


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends a response: the tokenizer's and the generation config's."""
    return _ends(getattr(model, "generation_config", None), tokenizer)


def eos_ids_in(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The same of a model that stays in its folder."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config: Any = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:  # as transformers does it: a model without one takes its config's
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return _ends(config, tokenizer)


def _ends(config: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    listed = getattr(config, "eos_token_id", None)
    ids = set(listed if isinstance(listed, list) else [listed]) | {tokenizer.eos_token_id}
    found = sorted(i for i in ids if isinstance(i, int))
    if not found:
        raise UsageError(
            "the model names no end-of-sequence token, so no response could end",
            hint="set eos_token in its tokenizer_config.json",
        )
    return found


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A filler; masks come from lengths, so any id serves."""
    pad = tokenizer.pad_token_id
    return pad if isinstance(pad, int) else 0


def cache_bytes(model: PreTrainedModel) -> int:
    """Bytes that the keys and values of one token take, over all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)


def context_of(folder: Path, *, trust_remote_code: bool) -> int | None:
    """Tokens that the positions of the model in ``folder`` reach; None where it does not say."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (ValueError, OSError, ImportError) as error:
        raise _cannot_load(folder, error) from error
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def _cannot_load(folder: Path, error: Exception) -> UsageError:
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "trust_remote_code" in str(error):
        return UsageError(
            f"the model in {folder} brings Python code of its own",
            hint="read that code; if you trust it, set [model].trust_remote_code = true",
        )
    return UsageError(
        f"transformers cannot load {folder}: {said}",
        hint="check that the folder is a complete causal language model, "
        "and that transformers is new enough for it",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and remarks off the screen."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
