"""Canonical forms: which answers are of a kind, and which are the same."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpcli.reward.forms import (
    MAX_CHARACTERS,
    MAX_DIGITS,
    MAX_EXPONENT,
    MAX_NESTING,
    canonical_choice,
    canonical_exact,
    canonical_int,
    canonical_number,
    within_caps,
)

WRAPPED = [
    (r"\text{25}", "25"),
    (r"\textbf{25}", "25"),
    (r"\mathrm{25}", "25"),
    (r"25^\circ", "25"),
    (r"25^{\circ}", "25"),
    ("(25)", "25"),
    (r"\left(25\right)", "25"),
    (r"1\,234", "1234"),
    (r"1\!234", "1234"),
    (r"1,\!234", "1234"),
    (r"\,25", "25"),
    ("x=25", "25"),
    ("$x = -25$.", "-25"),
    (r"25\text{ cm}", "25"),
    (r"\text{25}.", "25"),
    (r"25^\circ.", "25"),
    ("25..", None),
    ("xy=25", None),
    ("x=y=25", None),
    (r"1\,2", None),
    ("(1,234)", None),
    ("(1)(2)", None),
    ("25 cm", None),
    (r"2\text{5}", None),
    (r"25\text{ or }26", None),
    (r"\text{25 cm}", None),
    (r"\text{ cm}", None),
]


@pytest.mark.parametrize(("answer", "expected"), WRAPPED)
def test_what_wraps_a_number_is_dropped(answer: str, expected: str | None) -> None:
    assert canonical_int(answer) == canonical_number(answer) == expected


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
    began = time.thread_time()
    assert canonical_int(answer) is None
    assert time.thread_time() - began < 0.5


def test_canonical_exact_folds_space_and_keeps_case() -> None:
    assert canonical_exact(" a\n  B\t") == "a B"
    assert canonical_exact(" \n") is None
    assert canonical_exact("x" * 5_000) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("0.5", "1/2"),
        ("1/2", "1/2"),
        (".50", "1/2"),
        (r"\frac{1}{2}", "1/2"),
        (r"\dfrac{2}{4}", "1/2"),
        (r"\tfrac12", "1/2"),
        (r"-\frac{1}{2}", "-1/2"),
        (r"\frac{-1}{2}", "-1/2"),
        (r"\frac{1}{-2}", "-1/2"),
        ("-1/2", "-1/2"),
        ("1 / 2", "1/2"),
        ("1.5/3", "1/2"),
        ("7", "7"),
        ("+7", "7"),
        ("7.", "7"),
        ("007", "7"),
        ("-0", "0"),
        ("\u22127", "-7"),
        ("1,234.5", "2469/2"),
        ("1{,}234", "1234"),
        ("12,34", None),
        ("1.2e-5", "3/250000"),
        ("1.2E5", "120000"),
        (r"1.2 \times 10^{-5}", "3/250000"),
        (r"1.2\cdot10^5", "120000"),
        ("4e33", "4" + "0" * 33),
        (f"1e{MAX_EXPONENT}", "1" + "0" * MAX_EXPONENT),
        (f"1e{MAX_EXPONENT + 1}", None),
        ("1e99999", None),
        (r"1 \times 10^{2", None),
        ("$5", "5"),
        (r"\$5.00", "5"),
        ("-$5", "-5"),
        ("$-5$", "-5"),
        ("$-5", "-5"),
        ("-$-5", None),
        ("€5", "5"),
        ("$5$", "5"),
        (r"50\%", "50"),
        (r"y = \frac{1}{2}\text{ cm}", "1/2"),
        (r"\text{1,234.5}", "2469/2"),
        ("50 %", "50"),
        ("50%%", None),
        ("1/0", None),
        (r"\frac{1}{0}", None),
        ("1/2/3", None),
        ("2^3", None),
        ("x", None),
        ("5 apples", None),
        ("٧", None),
        ("1 2", None),
        ("--5", None),
        ("", None),
        ("$", None),
        ("%", None),
        ("9" * (MAX_DIGITS + 1), None),
    ],
)
def test_canonical_number(answer: str, expected: str | None) -> None:
    assert canonical_number(answer) == expected


@given(value=st.fractions(max_denominator=10**6), plus=st.booleans())
def test_canonical_number_is_exact(value: Fraction, plus: bool) -> None:
    """However a fraction is written, its form is the one that Python prints."""
    above, below = value.numerator, value.denominator
    sign = "-" if above < 0 else "+" if plus else ""
    assert canonical_number(f"{sign}{abs(above)}/{below}") == str(value)
    assert canonical_number(f"{sign}\\frac{{{3 * abs(above)}}}{{{3 * below}}}") == str(value)


@given(value=st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=0))
def test_canonical_number_reads_decimals(value: object) -> None:
    assert canonical_number(f"{value:f}") == str(Fraction(str(value)))


@pytest.mark.parametrize(
    "answer",
    [
        *("B", "b", "(B)", "(b)", "B.", "B)", "B:", "**B**", "$B$", r"\text{B}", r"\textbf{(B)}"),
        *("B) text", "(B) text", "B. text", "**(B)**", r"$\mathrm{B}$", " B ", r"\text{ (B) }"),
        "B) two\nlines",
    ],
)
def test_a_choice_is_its_letter(answer: str) -> None:
    assert canonical_choice(answer) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        *("A dog", "a dog", "AB", "A B", "A, B", "(A", "A)dog", "a) dog", "1", "", "Ä", "Α", "**"),
        *("A" * 5_000, r"\text{A}\text{B}", "$A$ and $B$"),
    ],
)
def test_what_is_no_choice(answer: str) -> None:
    assert canonical_choice(answer) is None


def test_caps() -> None:
    assert within_caps("x" * MAX_CHARACTERS)
    assert not within_caps("x" * (MAX_CHARACTERS + 1))
    assert within_caps("1" * MAX_DIGITS + "," + "1" * MAX_DIGITS)
    assert not within_caps("1" * (MAX_DIGITS + 1))
    for opens, closes in ("{}", "()", "[]"):
        assert within_caps(opens * MAX_NESTING + closes * MAX_NESTING)
        assert not within_caps(opens * (MAX_NESTING + 1))
        assert within_caps((opens + closes) * 1_000)


LONG = [
    *(" " * 4_000 + "x", "1/" + " " * 4_000, "-" + " " * 4_000, "\\frac{" + " " * 4_000),
    *("1" + ",000" * 1_000 + "x", "1e" * 2_000, "." * 4_000, "\\text{" * 600 + "}" * 600),
    *("\\text{ " * 600, "x" + " " * 4_000, "1\\," * 1_300, "^" + " " * 4_000, "^{" * 2_000),
    *("*" * 4_000, "$" * 4_000, "(" * 4_000, "A) " * 1_300, "9" * 4_096),
]


@pytest.mark.parametrize("form", [canonical_int, canonical_number, canonical_choice])
@pytest.mark.parametrize("answer", LONG)
def test_a_form_costs_nothing(form: object, answer: str) -> None:
    assert callable(form)
    began = time.thread_time()
    form(answer)
    assert time.thread_time() - began < 0.05
