"""From tokens back to text, without losing what marks the end of thinking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OPEN, CLOSE = "<think>", "</think>"
TAIL = 16
"""Tokens at the end of a prompt that are looked at for an open think block."""


def response_text(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a response: special tokens left out, but for those that mark thinking.

    Some tokenizers count <think> and </think> among their special tokens; a verifier has to see
    them all the same.
    """
    special = set(tokenizer.all_special_ids)
    marks = {tokenizer.convert_tokens_to_ids(mark) for mark in (OPEN, CLOSE)} & special
    marks -= {tokenizer.unk_token_id}  # what a tokenizer without such marks answers
    kept = [token for token in tokens if token not in special or token in marks]
    text = tokenizer.decode(kept, skip_special_tokens=False)
    assert isinstance(text, str)
    return text


def opens_thinking(prompt: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the prompt ends with <think>: the response then begins inside the block.

    Chat templates of thinking models may write the mark themselves, so that the response holds
    only the closing one.
    """
    return response_text(prompt[-TAIL:], tokenizer).rstrip().endswith(OPEN)
