"""Kind "math": the verdicts that a mathematician would give, and where ours are others."""

from collections.abc import Iterator

import pytest

from tpcli.errors import UsageError
from tpcli.reward.mathematics import tidied
from tpcli.reward.verify import Grader
from tpcli.types import Answered, Question, Verdict

EQUAL = r"""
1/2 | 0.5 | \dfrac{1}{2} | \frac12 | \frac{2}{4} | .5 | \frac{1}{2}. | $\frac{1}{2}$ | \(1/2\)
-\frac{1}{2} | \frac{-1}{2} | \frac{1}{-2} | -0.5
5 | 5. | 5.0 | x = 5 | x=5 | \$5 | 5\text{ cm} | 5 \text{ cm}^2 | 5 cm | \text{5} | \mathbf{5}
x = 5 | 5 | 5 = x
1,234 | 1234 | 1{,}234 | 1\,234 | 1 234 | 1234.0 | \$1,234
90^\circ | 90 | 90^{\circ}
50\% | 0.5 | 50
4e33 | 4 \times 10^{33} | 4\cdot10^{33} | 40 \times 10^{32} | 4.0E+33 | 4e+33
1.2E-5 | 1.2 \times 10^{-5} | 0.000012
1\frac{1}{2} | \frac{3}{2} | 1.5
\sqrt{8} | 2\sqrt{2} | 2\sqrt2 | \frac{4}{\sqrt{2}}
\sqrt{2}+\sqrt{3} | \sqrt{5+2\sqrt{6}}
\sqrt[3]{8} | 2
2^{10} | 1024
3! | 6
\binom{5}{2} | 10
\log_2 8 | 3
\ln 4 | 2\ln 2
\frac{\pi}{2} | \pi/2 | 0.5\pi
x^2+2x+1 | (x+1)^2 | 1+2x+x^2 | x^2+2x+1.
\frac{x+1}{x^2-1} | \frac{1}{x-1}
\sin^2 x + \cos^2 x | 1
y=2x+3 | 2x+3 | y=3+2x | 2x - y + 3 = 0
2x+3 | y=2x+3
\{1,2,3\} | \{3,2,1\} | 1,2,3 | 3, 2, 1
\pm 3 | 3, -3 | \{-3, 3\} | x = \pm 3
1 \text{ and } 2 | 2, 1 | \{1, 2\}
x=1 \text{ or } x=2 | \{1,2\}
(1,2) | (1, 2) | \left(1,2\right) | (1.0, 2)
\left(\frac{1}{2},3\right) | (0.5,3)
x=1,y=2 | y=2,x=1
[1,2) | \left[1,2\right)
(-\infty, 2] | x \le 2 | 2 \ge x
x \le 2 | (-\infty, 2]
1<x<2 | (1,2)
(-\infty,1)\cup(2,\infty) | (2,\infty)\cup(-\infty,1)
x\ne 3 | (-\infty,3)\cup(3,\infty)
\emptyset | \varnothing | \{\}
\mathbb{R} | (-\infty,\infty)
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{bmatrix}1&2\\3&4\end{bmatrix}
2+3i | 3i+2
2:3 | \frac{2}{3}
101_2 | 101_{2}
\infty | +\infty
\text{Yes} | Yes | \text{yes}
\text{(B)} | B
\sum_{k=1}^{10} k | 55
"""
"""A line holds a right answer and others that equal it."""

UNEQUAL = r"""
\frac{1}{3} | 0.333 | \frac{1}{4} | -\frac{1}{3} | 3 | \frac{1}{3}x
5 | -5 | 5x | 5, 6 | 7 \text{ or } 5 | \{5, 6\} | x > 5 | five
x = 5 | y = 5 | x = 6
2=2 | 1=1 | 1=2
4e33 | 5e33 | 4e32 | 4 \times 33
4e-33 | 5e-33 | 4.1 \times 10^{-33}
0.0000001 | 0.0000002 | 0
\frac{1}{81} | 0.012346
2\pi | 6.28 | 2 | \pi
x^2-1 | x^2+1 | (x-1)^2 | x
2x | 2y | x
\{1,2\} | \{1,3\} | \{1,2,3\} | 1
(1,2) | (2,1) | [1,2] | (1,2,3)
[1,2) | (1,2] | [1,3)
x > 3 | x \ge 3 | x < 3
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \begin{pmatrix}1&2\\3&5\end{pmatrix}
2+3i | 2-3i
2:3 | 3:2
\infty | -\infty
10^{100} | 10^{100}+1
101_2 | 101_3 | 110_2
\text{even} | \text{odd}
A | B | \text{B}
\text{June 20} | \text{June 21}
\frac{1}{0} | \frac{2}{0} | 5
"""
"""A line holds a right answer and others that do not equal it."""

TOO_KIND = r"""
\frac{1}{3} | 0.333333
2\pi | 6.283185307
5\text{ cm} | 5\text{ m}
(1,2) | \{1,2\}
3,4,5 | (3,4,5)
100,200 | 100200
a | A
\text{yes} | \text{Yes}
"""
"""Held to be equal, though a mathematician would say otherwise; in docs/verifiers.md."""

TOO_STRICT = r"""
-1 | e^{i\pi} | i^2
2i | (1+i)^2
\frac{\pi}{4} | 45^\circ
\frac12 | \cos 60^\circ
101_2 | 5
\frac13 | 0.\overline{3}
42 | \text{The answer is } 42
"""
"""Held to be different, though a mathematician would say otherwise; in docs/verifiers.md."""


def pairs(table: str) -> list[tuple[str, str]]:
    rows = [line.split(" | ") for line in table.strip().split("\n")]
    return [(gold, answer) for gold, *answers in rows for answer in answers]


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader("math", deadline=10.0) as made:
        yield made


def verdicts(grader: Grader, asked: list[tuple[str, str]]) -> list[Verdict]:
    return grader.grade([Answered(f"\\boxed{{{answer}}}", gold, True) for gold, answer in asked])


@pytest.mark.parametrize(
    ("table", "status"),
    [(EQUAL, "correct"), (UNEQUAL, "wrong"), (TOO_KIND, "correct"), (TOO_STRICT, "wrong")],
)
def test_pairs(grader: Grader, table: str, status: str) -> None:
    asked = pairs(table)
    given = verdicts(grader, asked)
    assert [(p, v.status) for p, v in zip(asked, given, strict=True) if v.status != status] == []


@pytest.mark.parametrize(
    "answer",
    [
        r"\frac{1} is not $5$ , ok",
        r"\begin{cases} no $5$",
        "^ ^ $5$ ^",
        r"^^ answer: \[5\] ^^",
        r"\frac{1} final answer is $5$. I hope",
    ],
)
def test_a_piece_of_an_answer_is_no_answer(grader: Grader, answer: str) -> None:
    """The whole does not parse; what stands in dollars within it would be right."""
    (verdict,) = verdicts(grader, [("5", answer)])
    assert (verdict.status, verdict.canonical) == ("wrong", None)


def test_each_answer_equals_itself(grader: Grader) -> None:
    golds = {gold for gold, _ in pairs(EQUAL + UNEQUAL)}
    assert {v.status for v in verdicts(grader, [(g, f" {g} ") for g in golds])} == {"correct"}


def test_right_answers_have_one_form(grader: Grader) -> None:
    """That of the gold, whichever way they were found right; so a vote adds them up."""
    written = [r"\frac{1}{2}", "0.5", r"\frac{2}{4}", r" \frac{1}{2}"]
    forms = {v.canonical for v in verdicts(grader, [(r"\frac{1}{2}", w) for w in written])}
    assert forms == {r"\frac{1}{2}"}
    assert [v.canonical for v in verdicts(grader, [("7", "007"), ("7", "x=7")])] == ["7", "7"]


def test_wrong_answers_have_the_form_of_what_they_are(grader: Grader) -> None:
    """The same for the same mathematics, none for what does not parse, and never the gold's."""
    asked = [(r"\frac{1}{2}", one) for one in ("x + 1", "1+x", "1,000", "x^2", r"\frac{1}")]
    sum_, turned, integer, square, broken = verdicts(grader, asked)
    assert sum_.canonical == turned.canonical == "x + 1"
    assert (integer.canonical, square.canonical) == ("1000", "x**2")
    assert (broken.status, broken.canonical) == ("wrong", None)


def test_a_wrong_answer_never_has_the_form_of_the_gold(grader: Grader) -> None:
    """The gold is text that is also what another answer prints as."""
    (verdict,) = verdicts(grader, [("zoo", r"\frac{1}{0}")])
    assert (verdict.status, verdict.canonical) == ("wrong", "not zoo")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4e33", r"4 \times 10^{33}"),
        ("1.2E-5", r"1.2 \times 10^{-5}"),
        ("x + 4e33.", r"x + 4 \times 10^{33}"),
        ("2e", "2e"),
        ("e2", "e2"),
        ("2ex", "2ex"),
        ("x2e5", "x2e5"),
        ("2e5x", "2e5x"),
        ("2e^5", "2e^5"),
        ("5.", "5"),
        ("1, 2, ...", "1, 2, ..."),
        (r"1\,000\,000", "1000000"),
        ("1 000.5", "1000.5"),
        ("1 2", "1 2"),
        ("1 0000", "1 0000"),
    ],
)
def test_tidied(text: str, expected: str) -> None:
    assert tidied(text) == expected


def test_answers_that_cannot_be_read_are_refused(grader: Grader) -> None:
    """Golds that do not parse, or that are over the caps: only their own text could be right."""
    good = [r"\frac{1}{2}", "7", r"\text{Yes}", "4e33", r"\{1,2\}", "7"]
    grader.check([Question(g, g, g) for g in good])
    for bad in (r"\begin{cases} 1 & x>0", "1" * 300, "{" * 70 + "}" * 70, " "):
        with pytest.raises(UsageError, match='1 of 7 answers are not of kind "math"'):
            grader.check([Question(g, g, g) for g in [*good, bad]])
