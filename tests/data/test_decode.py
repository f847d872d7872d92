"""From tokens to text: marks of thinking stay, whatever a tokenizer calls them."""

from typing import Any, Literal

import pytest

from tpcli.data.decode import CLOSE, OPEN, TAIL, opens_thinking, response_text
from tpcli.policy.scratch import character_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789<>/| =+\n"
Marks = Literal["special", "token", "spelled"]
every_kind = pytest.mark.parametrize("marks", ["special", "token", "spelled"])


def tokenizer_of(marks: Marks) -> Any:
    """A tokenizer of letters in which the marks are special, tokens of their own, or spelled out;
    <|end|> is special in all, as <bos>, <eos> and <pad> are."""
    pieces = [OPEN, CLOSE] if marks == "token" else []
    tokenizer = character_tokenizer(LETTERS, pieces, context=64)
    special = ["<|end|>", *([OPEN, CLOSE] if marks == "special" else [])]
    tokenizer.add_tokens(special, special_tokens=True)
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    return tokenizer


@every_kind
def test_the_tokenizers_are_what_they_are_called(marks: Marks) -> None:
    tokenizer = tokenizer_of(marks)
    assert len(tokenizer.encode(CLOSE)) == (8 if marks == "spelled" else 1)
    assert (tokenizer.encode(CLOSE)[0] in tokenizer.all_special_ids) == (marks == "special")
    lost = tokenizer.decode(tokenizer.encode(f"{OPEN}a{CLOSE}b"), skip_special_tokens=True)
    assert lost == ("ab" if marks == "special" else "<think>a</think>b")


@every_kind
@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("<think>1 + 1</think>2<eos>", "<think>1 + 1</think>2"),
        ("1 + 1\n</think>\n\n2<|end|><eos><pad><pad>", "1 + 1\n</think>\n\n2"),
        ("<bos>a<|end|>b<pad>c", "abc"),
        ("<think><think></think>", "<think><think></think>"),
        ("  a  ", "  a  "),
        ("<eos>", ""),
        ("", ""),
    ],
)
def test_marks_stay_and_other_special_tokens_vanish(marks: Marks, said: str, text: str) -> None:
    tokenizer = tokenizer_of(marks)
    assert response_text(tokenizer.encode(said), tokenizer) == text


@every_kind
@pytest.mark.parametrize(
    ("prompt", "opens"),
    [
        ("1 + 1<|end|><think>", True),
        ("1 + 1<|end|><think>\n", True),
        ("1 + 1<|end|><think>\n\n", True),
        ("1 + 1<|end|><think>\n<pad>", True),
        ("1 + 1<|end|><think>\n\n</think>\n\n", False),
        ("1 + 1<|end|>", False),
        ("what is <think> for<|end|>", False),
        ("<think>1", False),
        ("think", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("before", ["", "a long question " * 4])
def test_whether_a_response_begins_inside_the_block(
    marks: Marks, prompt: str, opens: bool, before: str
) -> None:
    tokenizer = tokenizer_of(marks)
    assert opens_thinking(tokenizer.encode(before + prompt), tokenizer) is opens


def test_only_the_end_of_a_long_prompt_is_decoded() -> None:
    tokenizer = tokenizer_of("special")
    near, far = ([*tokenizer.encode(OPEN + "\n" * n)] for n in (TAIL - 1, TAIL))
    assert opens_thinking(near, tokenizer)
    assert not opens_thinking(far, tokenizer)
