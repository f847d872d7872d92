"""Which part of a response is its answer."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpcli.reward.extract import after_thinking, last_boxed

balanced = st.recursive(
    st.text(st.characters(blacklist_characters="{}\\"), max_size=5),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "{" + "".join(parts) + "}"),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"\boxed{1} then \boxed{{2}", "1"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{a\}", None),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{never closed \boxed{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\\boxed{7}", "7"),
        (r"} \boxed{7} {", "7"),
        (r"\boxed{}", ""),
        ("\\boxed{two\nlines}", "two\nlines"),
        (r"the answer is 42", None),
        (r"boxed{42}", None),
        (r"\boxed42", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@given(before=st.text(), content=balanced, after=st.text(st.characters(blacklist_characters="}\\")))
def test_a_balanced_box_comes_back_whole(before: str, content: str, after: str) -> None:
    """Whatever stands before it, and whatever unboxed text follows."""
    assert last_boxed(f"{before} \\boxed{{{content}}}{after}") == content


@given(content=balanced, rest=balanced)
def test_an_incomplete_box_changes_nothing(content: str, rest: str) -> None:
    assert last_boxed(f"\\boxed{{{content}}} \\boxed{{{rest}") == content


@pytest.mark.parametrize("hostile", ["\\boxed{", "{", "\\", "\\boxed", "}", "\\boxed "])
def test_time_is_linear(hostile: str) -> None:
    began = time.thread_time()
    assert last_boxed(hostile * 200_000) is None
    assert time.thread_time() - began < 5


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>hm</think> yes", " yes"),
        ("opened in the prompt</think> yes", " yes"),
        ("<think>a</think> b <think>c</think> d", " d"),
        ("<think>hm", None),
        ("<think>a</think> b <think>c", None),
        ("no thinking", "no thinking"),
    ],
)
def test_after_thinking(response: str, expected: str | None) -> None:
    assert after_thinking(response) == expected
