"""What the model reads."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, cast

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tpcli.data.prompts import PromptSet, build_prompts, encode, sft_tokens, with_prefix
from tpcli.data.questions import question_id
from tpcli.errors import UsageError
from tpcli.types import Prompt, Question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<eos>{% endfor %}"
    "{% if enable_thinking is defined %}<think={{ enable_thinking }}>{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"


def characters(alphabet: str = "0123456789+-=;? ", **options: Any) -> PreTrainedTokenizerBase:
    """One token a character, and <bos> and <eos>."""
    vocabulary = {token: i for i, token in enumerate(["<bos>", "<eos>", *alphabet])}
    backend = Tokenizer(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    special = {"bos_token": "<bos>", "eos_token": "<eos>", **options}
    fast: Any = PreTrainedTokenizerFast
    return cast("PreTrainedTokenizerBase", fast(tokenizer_object=backend, **special))


def chatting(template: str = CHAT) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template; it writes every printable character."""
    tokenizer = characters("".join(map(chr, range(32, 127))))
    tokenizer.chat_template = template
    return tokenizer


def build(tokenizer: PreTrainedTokenizerBase, *texts: str, **options: Any) -> PromptSet:
    defaults: dict[str, Any] = {
        "system": None,
        "template": "{question}",
        "examples": (),
        "thinking": None,
        "max_prompt_tokens": 100,
    }
    questions = [Question(question_id(text), text, "0") for text in texts]
    return build_prompts(questions, tokenizer, **{**defaults, **options})


def texts_of(built: PromptSet, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.decode(list(prompt.tokens))) for prompt in built.prompts]


def test_plain_text_begins_with_bos_and_the_examples() -> None:
    tokenizer = characters()
    built = build(tokenizer, "1+1", "2+2", template="{question}=", examples=[("3+3", "6;")])
    assert texts_of(built, tokenizer) == ["<bos>3+3=6;1+1=", "<bos>3+3=6;2+2="]
    assert built.prompts[0].tokens[0] == tokenizer.bos_token_id
    assert built.template_hash == "plain"


def test_plain_text_without_bos() -> None:
    tokenizer = characters(bos_token=None)
    assert texts_of(build(tokenizer, "1+1"), tokenizer) == ["1+1"]


def test_chat_turns_in_order() -> None:
    tokenizer = chatting()
    built = build(
        tokenizer, "1+1", system="add", template="[{question}]", examples=[("3+3", "{question}")]
    )
    assert texts_of(built, tokenizer) == [
        "<|system|>add<eos><|user|>[3+3]<eos><|assistant|>{question}<eos><|user|>[1+1]<eos>"
        "<|assistant|>"
    ]
    assert list(built.prompts[0].tokens).count(tokenizer.eos_token_id) == 4
    assert built.template_hash == hashlib.sha256(CHAT.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("thinking", "expected"), [(None, ""), (True, "<think=True>"), (False, "<think=False>")]
)
def test_thinking_is_passed_only_when_said(thinking: bool | None, expected: str) -> None:
    tokenizer = chatting()
    built = build(tokenizer, "1", thinking=thinking)
    assert texts_of(built, tokenizer) == [f"<|user|>1<eos>{expected}<|assistant|>"]


def test_a_refusing_chat_template() -> None:
    with pytest.raises(UsageError, match="refuses the prompt: no system"):
        build(chatting(NO_SYSTEM), "1", system="s")


@pytest.mark.parametrize("option", [{"system": "s"}, {"thinking": False}])
def test_what_needs_a_chat_template_is_refused_without_one(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"no chat template, so .data..{next(iter(option))}"):
        build(characters(), "1+1", **option)


def test_long_prompts_are_left_out_and_counted() -> None:
    """<bos> counts: "1+1" is 4 tokens, "11+11" is 6."""
    tokenizer = characters()
    built = build(tokenizer, "1+1", "11+11", "2+2", max_prompt_tokens=4)
    assert texts_of(built, tokenizer) == ["<bos>1+1", "<bos>2+2"]
    assert built.too_long == 1
    assert [prompt.question.text for prompt in built.prompts] == ["1+1", "2+2"]
    with pytest.raises(UsageError, match="all 2 prompts are longer than 3 tokens"):
        build(tokenizer, "1+1", "2+2", max_prompt_tokens=3)


def test_an_unknown_character_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"does not know '\*', 'x'$") as caught:
        build(characters(), "1+1", "2*x", "x*2")
    assert "[model.scratch].alphabet" in caught.value.hint


def test_sft_tokens_end_the_response() -> None:
    tokenizer = characters()
    tokens = sft_tokens("1+1=2", tokenizer)
    assert tokenizer.decode(list(tokens)) == "1+1=2<eos>"
    assert tokens == (*encode(["1+1=2"], tokenizer)[0], tokenizer.eos_token_id)
    with pytest.raises(UsageError, match="no end-of-sequence token"):
        sft_tokens("1", characters(eos_token=None))


@pytest.mark.parametrize(
    ("magnitude", "given"), [(0.0, 0), (0.1, 0), (0.3, 2), (0.5, 2), (0.7, 4), (0.99, 5), (1.0, 5)]
)
def test_with_prefix_gives_the_rounded_share(magnitude: float, given: int) -> None:
    """Of five tokens; Python rounds a half to the even number, and so does the reference."""
    asked = Prompt(Question("q", "q", "0"), (1, 2))
    prompt = with_prefix(asked, (30, 31, 32, 33, 34), magnitude=magnitude)
    assert prompt.tokens == (1, 2, 30, 31, 32, 33, 34)[: 2 + given]
    assert (prompt.prefix, prompt.question) == (given, asked.question)
