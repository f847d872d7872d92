"""Running sums: every line of every solution is true."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpcli.data.running_sum import read_running_sum
from tpcli.errors import UsageError
from tpcli.recipe.sections import ScratchSection


@given(
    seed=st.integers(0, 2**32),
    terms=st.tuples(st.integers(2, 5), st.integers(0, 3)),
    max_operand=st.integers(1, 99),
    max_first=st.integers(1, 99),
)
def test_every_step_is_true(
    seed: int, terms: tuple[int, int], max_operand: int, max_first: int
) -> None:
    low, high = terms[0], sum(terms)
    config = {"min_terms": low, "max_terms": high}
    config |= {"max_operand": max_operand, "max_first": max_first}
    for row in read_running_sum(config, size=5, seed=seed):
        numbers = [int(number) for number in re.findall(r"[+-]?\d+", row.question)]
        assert low <= len(numbers) <= high
        assert 1 <= numbers[0] <= max_first
        assert all(1 <= abs(number) <= max_operand for number in numbers[1:])
        assert row.answer == str(sum(numbers))
        *steps, last = (row.solution or "").split(";")
        assert last == f"\\boxed{{{row.answer}}}"
        totals = [sum(numbers[: i + 1]) for i in range(len(numbers))]
        assert min(totals) >= 0
        expected = [f"{totals[i]}{numbers[i + 1]:+d}={totals[i + 1]}" for i in range(len(steps))]
        assert steps == expected
        assert len(steps) == len(numbers) - 1


def test_the_scratch_alphabet_writes_them() -> None:
    scratch = ScratchSection()
    for row in read_running_sum({}, size=200, seed=0):
        text = f"{row.question}{row.solution}"
        for piece in scratch.pieces:
            text = text.replace(piece, "")
        assert set(text) <= set(scratch.alphabet)


def test_a_larger_size_only_adds() -> None:
    assert list(read_running_sum({}, size=50, seed=1))[:20] == list(
        read_running_sum({}, size=20, seed=1)
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"terms": 3}, "running_sum has no such setting"),
        ({"min_terms": 1}, "min_terms is 1"),
        ({"max_operand": 0}, "max_operand is 0"),
        ({"max_first": "9"}, "max_first is '9'"),
        ({"max_first": True}, "max_first is True"),
        ({"min_terms": 5, "max_terms": 4}, r"max_terms \(4\) is below min_terms \(5\)"),
    ],
)
def test_mistakes_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(read_running_sum(config, size=1, seed=0))
