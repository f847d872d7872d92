"""Questions as the model reads them: chat template or plain text, tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tpcli.errors import UsageError
from tpcli.types import Prompt, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts that fit, in order.

    ``too_long`` counts the questions left out; ``template_hash`` names the chat template ("plain"
    where the tokenizer has none).
    """

    prompts: tuple[Prompt, ...]
    too_long: int
    template_hash: str


def build_prompts(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    *,
    system: str | None,
    template: str,
    examples: Sequence[tuple[str, str]],
    thinking: bool | None,
    max_prompt_tokens: int,
) -> PromptSet:
    """The prompts of ``questions``, by the tokenizer's own chat template where it has one.

    Args:
        questions: what to ask.
        tokenizer: the model's.
        system: system message; None leaves it to the chat template.
        template: what the user says; {question} stands for the question.
        examples: (question, solution) pairs that come first, as earlier turns.
        thinking: passed to the chat template as enable_thinking, unless None.
        max_prompt_tokens: longer prompts are left out.
    """
    if tokenizer.chat_template:
        texts = _chats(questions, tokenizer, system, template, examples, thinking)
    elif system is not None or thinking is not None:
        key = "system" if system is not None else "thinking"
        raise UsageError(
            f"the tokenizer has no chat template, so [data].{key} would have no effect",
            hint=f"leave [data].{key} out",
        )
    else:
        shown = "".join(_ask(template, question) + solution for question, solution in examples)
        bos = tokenizer.bos_token or ""
        texts = [f"{bos}{shown}{_ask(template, question.text)}" for question in questions]
    prompts = [
        Prompt(question, tokens)
        for question, tokens in zip(questions, encode(texts, tokenizer), strict=True)
        if len(tokens) <= max_prompt_tokens
    ]
    if questions and not prompts:
        raise UsageError(
            f"all {len(questions)} prompts are longer than {max_prompt_tokens} tokens",
            hint="raise [data].max_prompt_tokens, or shorten the template and its examples",
        )
    return PromptSet(tuple(prompts), len(questions) - len(prompts), _template_hash(tokenizer))


def with_prefix(prompt: Prompt, solution: Sequence[int], *, magnitude: float) -> Prompt:
    """The prompt with the first round(n * magnitude) of the solution's n tokens after it.

    Ref: expert-prefix criterion of https://arxiv.org/abs/2605.25381
    """
    given = round(len(solution) * magnitude)
    return Prompt(prompt.question, (*prompt.tokens, *solution[:given]), prefix=given)


def sft_tokens(solution: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens of a worked solution as a response: its text, then end of sequence."""
    if tokenizer.eos_token_id is None:
        raise UsageError(
            "the tokenizer has no end-of-sequence token, so no response could end",
            hint="choose another [model].source, or set eos_token in its tokenizer_config.json",
        )
    return (*encode([solution], tokenizer)[0], int(tokenizer.eos_token_id))


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """The tokens of each text, special tokens written in it included and none added.

    A character that the tokenizer cannot write is an error, never an unknown token in passing.
    """
    if not texts:
        return []
    try:
        return [tuple(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    except Exception as error:  # the tokenizers library has no exception type of its own
        if "UNK" not in str(error):
            raise
        raise UsageError(
            f"the tokenizer does not know {', '.join(map(repr, _unknown(texts, tokenizer)[:10]))}",
            hint="add what is missing to [model.scratch].alphabet, or change [data]",
        ) from error


def _unknown(texts: Sequence[str], tokenizer: Any) -> list[str]:
    """The pieces of ``texts`` that are not in the vocabulary, sorted."""
    text = "".join(texts)
    for special in tokenizer.all_special_tokens:
        text = text.replace(special, "")
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return sorted({piece for piece, _ in pieces} - tokenizer.get_vocab().keys())


def _ask(template: str, question: str) -> str:
    return template.replace("{question}", question)


def _chats(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    system: str | None,
    template: str,
    examples: Sequence[tuple[str, str]],
    thinking: bool | None,
) -> list[str]:
    from jinja2 import TemplateError

    turns = [] if system is None else [{"role": "system", "content": system}]
    for question, solution in examples:
        turns.append({"role": "user", "content": _ask(template, question)})
        turns.append({"role": "assistant", "content": solution})
    options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    try:
        return [
            str(
                tokenizer.apply_chat_template(
                    [*turns, {"role": "user", "content": _ask(template, question.text)}],
                    tokenize=False,
                    add_generation_prompt=True,
                    **options,
                )
            )
            for question in questions
        ]
    except TemplateError as error:
        raise UsageError(
            f"the model's chat template refuses the prompt: {error}",
            hint="many templates know no system message: leave [data].system out",
        ) from error


def _template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        return "plain"
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:12]
