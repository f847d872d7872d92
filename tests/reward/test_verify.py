"""Verdicts: what counts as right."""

import time
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpcli.errors import UsageError
from tpcli.names import VerdictStatus, VerifierName
from tpcli.reward.verify import (
    MAX_DIGITS,
    VERIFIERS,
    canonical_exact,
    canonical_int,
    check_answers,
    grade,
)
from tpcli.types import Question


def test_every_name_has_a_verifier() -> None:
    assert set(VERIFIERS) == set(get_args(VerifierName))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("7", "7"),
        ("+7", "7"),
        ("007", "7"),
        ("7.0", "7"),
        ("7.000", "7"),
        ("$7$", "7"),
        (r"\$7", "7"),
        (" $ 7 $ ", "7"),
        ("-7", "-7"),
        ("- 7", "-7"),
        ("\u22127", "-7"),
        ("-0", "0"),
        ("000", "0"),
        ("1,234", "1234"),
        ("1{,}234,567", "1234567"),
        ("12,34", None),
        ("1,2", None),
        ("0,123", None),
        (",123", None),
        ("7.5", None),
        ("7e2", None),
        ("7 apples", None),
        ("--7", None),
        ("1 2", None),
        ("٧", None),
        ("", None),
        ("-", None),
        ("9" * MAX_DIGITS, "9" * MAX_DIGITS),
        ("9" * (MAX_DIGITS + 1), None),
    ],
)
def test_canonical_int(answer: str, expected: str | None) -> None:
    assert canonical_int(answer) == expected


@given(value=st.integers(-(10**30), 10**30), zeros=st.integers(0, 3), plus=st.booleans())
def test_canonical_int_is_python_int(value: int, zeros: int, plus: bool) -> None:
    """Each spelling of a number has the form that Python prints."""
    sign = "-" if value < 0 else "+" if plus else ""
    assert canonical_int(f"{sign}{'0' * zeros}{abs(value)}") == str(value)
    assert canonical_int(f"{value:,}.0") == str(value)


@pytest.mark.parametrize("answer", ["9" * 10**6, "0" * 4_000 + "x", "1" + ",000" * 1_000 + ","])
def test_canonical_int_costs_nothing(answer: str) -> None:
    began = time.perf_counter()
    assert canonical_int(answer) is None
    assert time.perf_counter() - began < 0.1


def test_canonical_exact_folds_space_and_keeps_case() -> None:
    assert canonical_exact(" a\n  B\t") == "a B"
    assert canonical_exact(" \n") is None
    assert canonical_exact("x" * 5_000) is None


@pytest.mark.parametrize(
    ("response", "finished", "status"),
    [
        (r"5+7 is \boxed{12}", True, "correct"),
        (r"\boxed{+12.0}", True, "correct"),
        (r"\boxed{13}", True, "wrong"),
        (r"\boxed{12} or rather \boxed{13}", True, "wrong"),
        (r"\boxed{twelve}", True, "wrong"),
        (r"\boxed{}", True, "wrong"),
        ("I am sure it is 12", True, "no_answer"),
        (r"\boxed{12", True, "no_answer"),
        (r"<think>\boxed{12}</think> done", True, "no_answer"),
        (r"<think>\boxed{13}</think> \boxed{12}", True, "correct"),
        (r"<think>\boxed{12}", True, "unfinished"),
        (r"\boxed{12}", False, "unfinished"),
    ],
)
def test_grade(response: str, finished: bool, status: VerdictStatus) -> None:
    verdict = grade(response, "12", kind="int", finished=finished)
    assert (verdict.status, verdict.reward) == (status, float(status == "correct"))


def test_grade_says_what_it_read() -> None:
    verdict = grade(r"\boxed{ 0012 }", "12", kind="int", finished=True)
    assert (verdict.extracted, verdict.canonical) == (" 0012 ", "12")
    assert verdict.ms > 0


def test_exact_compares_text() -> None:
    assert grade(r"\boxed{1 2" + "\n3 4}", "1 2 3 4", kind="exact", finished=True).reward == 1
    assert grade(r"\boxed{yes}", "Yes", kind="exact", finished=True).reward == 0
    assert grade(r"\boxed{12.0}", "12", kind="exact", finished=True).reward == 0


def test_answers_that_no_response_could_match_are_refused() -> None:
    questions = [Question("a", "a", "12"), Question("b", "b", "1/2"), Question("c", "c", "x")]
    check_answers(questions[:1], kind="int")
    check_answers(questions, kind="exact")
    with pytest.raises(UsageError, match=r'2 of 3 answers are not of kind "int", "1/2" first'):
        check_answers(questions, kind="int")
