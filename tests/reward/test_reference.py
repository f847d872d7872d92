"""The paper's string rule. What is expected here was obtained by running the authors' own code."""

import time

import pytest

from tpcli.reward.reference import boxed_reference, canonical_reference
from tpcli.reward.verify import Grader
from tpcli.types import Answered

# Whole response, right answer, their score.
SCORES = [
    ("\\boxed{7}", "7", 1),
    ("so \\boxed{7}.", "7", 1),
    ("\\boxed{8}", "7", 0),
    ("7", "7", 0),
    ("\\boxed{1} then \\boxed{7}", "7", 1),
    ("\\boxed{7} then \\boxed{1}", "7", 0),
    ("\\boxed{7} then \\boxed{1", "7", 0),
    ("\\boxed{7", "7", 0),
    ("<think>\\boxed{7}</think> so 8", "7", 1),
    ("<think>\\boxed{7}", "7", 1),
    ("$\\boxed 7$", "7", 1),
    ("\\boxed 7 apples$ and", "7 apples", 1),
    ("\\boxed{7} \\boxed 8$", "8", 1),
    ("\\boxed 7$ \\boxed{8}", "7", 1),
    ("\\fbox{7}", "7", 0),
    ("\\boxed{\\{1,2\\}}", "\\{1,2\\}", 1),
    ("\\boxed{a\\}}", "a\\", 1),
    ("\\boxed  {7}", "7", 0),
    ("\\\\boxed{7}", "7", 1),
    ("\\boxed{}", "", 1),
    ("\\boxed{\\boxed{7}}", "7", 1),
    ("\\boxed{1,234}", "1234", 0),
    ("\\boxed{0.5}", "\\frac{1}{2}", 1),
    ("\\boxed{.5}", "\\frac{1}{2}", 1),
    ("\\boxed{0.50}", "\\frac{1}{2}", 0),
    ("\\boxed{0.25}", "\\frac{1}{4}", 0),
    ("\\boxed{1/2}", "\\frac{1}{2}", 1),
    ("\\boxed{-1/2}", "\\frac{-1}{2}", 1),
    ("\\boxed{-1/2}", "-\\frac{1}{2}", 0),
    ("\\boxed{+1/2}", "\\frac{1}{2}", 0),
    ("\\boxed{01/2}", "\\frac{1}{2}", 0),
    ("\\boxed{1 / 2}", "\\frac{1}{2}", 1),
    ("\\boxed{a/b}", "\\frac{a}{b}", 0),
    ("\\boxed{1/2/3}", "1/2/3", 1),
    ("\\boxed{\\dfrac{1}{2}}", "\\frac{1}{2}", 1),
    ("\\boxed{\\tfrac12}", "\\frac{1}{2}", 1),
    ("\\boxed{\\frac1{72}}", "\\frac{1}{72}", 1),
    ("\\boxed{\\frac{72}1}", "\\frac{72}{1}", 0),
    ("\\boxed{\\frac1}", "\\frac1", 1),
    ("\\boxed{x\\frac}", "x\\frac", 1),
    ("\\boxed{\\sqrt3}", "\\sqrt{3}", 1),
    ("\\boxed{\\sqrt 3}", "\\sqrt{3}", 0),
    ("\\boxed{2\\sqrt}", "2\\sqrt", 1),
    ("\\boxed{\\sqrt[3]{8}}", "\\sqrt[3]{8}", 1),
    ("\\boxed{5\\text{ cm}}", "5", 1),
    ("\\boxed{5 \\text{cm}}", "5", 1),
    ("\\boxed{\\text{Yes}}", "Yes", 0),
    ("\\boxed{\\text{Yes}}", "\\text{No}", 1),
    ("\\boxed{5\\text{ cm}\\text{!}}", "5", 0),
    ("\\boxed{5\\text{ a}\\text{b}}", "5\\text{ a}\\text{b}", 1),
    ("\\boxed{90^\\circ}", "90", 1),
    ("\\boxed{90^{\\circ}}", "90", 1),
    ("\\boxed{50\\%}", "50", 1),
    ("\\boxed{50%}", "50", 0),
    ("\\boxed{\\$5}", "5", 1),
    ("\\boxed{$5$}", "5", 0),
    ("\\boxed{x=5}", "5", 1),
    ("\\boxed{xy = 5}", "5", 0),
    ("\\boxed{x = 5}", "x=5", 1),
    ("\\boxed{a=b=c}", "c", 0),
    ("\\boxed{5 cm}", "5cm", 1),
    ("\\boxed{\\left(1,2\\right)}", "(1,2)", 1),
    ("\\boxed{(1, 2)}", "(1,2)", 1),
    ("\\boxed{[1,2]}", "(1,2)", 0),
    ("\\boxed{1\\!000}", "1000", 1),
    ("\\boxed{1\\,000}", "1000", 0),
    ("\\boxed{7.}", "7", 0),
    ("\\boxed{7.0}", "7", 0),
    ("\\boxed{x^2+1}", "1+x^2", 0),
    ("\\boxed{\\leftarrow}", "arrow", 1),
    ("\\boxed{7\n}", "7", 1),
    ("\\boxed{-0/1}", "\\frac{0}{1}", 0),
    ("\\boxed{٣/1}", "\\frac{3}{1}", 0),
    ("\\boxed{2 .5}", "20.5", 1),
    ("\\boxed{yes}", "Yes", 0),
    ("\\boxed{\\\\frac{1}{2}}", "\\frac{1}{2}", 1),
]


@pytest.mark.parametrize(("response", "gold", "score"), SCORES)
def test_a_verdict_is_theirs(response: str, gold: str, score: float) -> None:
    with Grader("reference") as grader:
        (verdict,) = grader.grade([Answered(response, gold, finished=True)])
    assert verdict.reward == score


@pytest.mark.parametrize("finished", [True, False])
def test_thinking_and_what_was_cut_off_count(finished: bool) -> None:
    answers = [
        Answered(r"<think>\boxed{7}", "7", finished),
        Answered(r"\boxed{8}", "7", finished),
        Answered("8", "7", finished),
    ]
    with Grader("reference") as grader:
        verdicts = grader.grade(answers)
    assert [v.reward for v in verdicts] == [1, 0, 0]
    wrong = ["wrong", "no_answer"] if finished else ["unfinished", "unfinished"]
    assert [v.status for v in verdicts] == ["correct", *wrong]


@pytest.mark.parametrize("piece", ["\\boxed{", "{", "}", "\\frac", "\\sqrt", "\\text{", "1/", " ."])
def test_time_is_linear(piece: str) -> None:
    began = time.thread_time()
    boxed_reference("\\boxed{" + piece * 100_000)
    canonical_reference((piece * 5_000)[:4_096])
    assert time.thread_time() - began < 1
