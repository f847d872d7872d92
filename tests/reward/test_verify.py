"""Verdicts: what counts as right, and what it costs to find out."""

import time
from typing import get_args

import psutil
import pytest

from tpcli.errors import UsageError
from tpcli.names import VerdictStatus, VerifierName
from tpcli.reward.__main__ import measured
from tpcli.reward.verify import FORMS, KINDS, Grader
from tpcli.types import Answered, Question, Verdict


def one(text: str, gold: str = "12", *, kind: str = "int", **facts: bool) -> Verdict:
    with Grader(kind) as grader:
        (verdict,) = grader.grade([Answered(text, gold, **({"finished": True} | facts))])
    return verdict


def boxed(answers: dict[str, str]) -> list[Answered]:
    return [Answered(f"\\boxed{{{answer}}}", gold, True) for answer, gold in answers.items()]


def test_every_name_has_a_verifier() -> None:
    assert set(get_args(VerifierName)) == set(KINDS) == FORMS.keys() | {"math"}


@pytest.mark.parametrize("kind", ["int", "number", "math", "exact"])
@pytest.mark.parametrize(
    ("response", "finished", "status"),
    [
        (r"5+7 is \boxed{12}", True, "correct"),
        (r"\boxed{13}", True, "wrong"),
        (r"\boxed{12} or rather \boxed{13}", True, "wrong"),
        (r"\boxed{}", True, "no_answer"),
        (r"\boxed{12} is \boxed{ }", True, "no_answer"),
        ("I am sure it is 12", True, "no_answer"),
        (r"\boxed{12", True, "no_answer"),
        (r"<think>\boxed{12}</think> done", True, "no_answer"),
        (r"<think>\boxed{13}</think> \boxed{12}", True, "correct"),
        (r"<think>\boxed{12}", True, "unfinished"),
        (r"\boxed{12}", False, "unfinished"),
    ],
)
def test_the_rule(kind: str, response: str, finished: bool, status: VerdictStatus) -> None:
    verdict = one(response, kind=kind, finished=finished)
    assert (verdict.status, verdict.reward) == (status, float(status == "correct"))


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (r"\boxed{12}", "unfinished"),
        (r"hm</think> \boxed{12}", "correct"),
        (r"\boxed{12}</think> 13", "no_answer"),
        (r"hm</think> <think> \boxed{12}", "unfinished"),
    ],
)
def test_thinking_that_the_prompt_began(response: str, status: VerdictStatus) -> None:
    for kind in ("int", "math"):
        assert one(response, kind=kind, opened=True).status == status


@pytest.mark.parametrize(
    ("kind", "response", "gold", "status"),
    [
        ("int", r"\boxed{+12.0}", "12", "correct"),
        ("int", r"\boxed{twelve}", "12", "wrong"),
        ("int", r"\boxed{24/2}", "12", "wrong"),
        ("number", r"\boxed{24/2}", "12", "correct"),
        ("number", r"\boxed{\$12.00}", "12", "correct"),
        ("number", r"\boxed{12.01}", "12", "wrong"),
        ("choice", r"\boxed{\text{(b)}}", "B", "correct"),
        ("choice", r"\boxed{A}", "B", "wrong"),
        ("exact", "\\boxed{1 2\n3 4}", "1 2 3 4", "correct"),
        ("exact", r"\boxed{yes}", "Yes", "wrong"),
        ("exact", r"\boxed{12.0}", "12", "wrong"),
        ("math", r"\boxed{x=12}", "12", "correct"),
    ],
)
def test_kinds(kind: str, response: str, gold: str, status: VerdictStatus) -> None:
    assert one(response, gold, kind=kind).status == status


def test_a_verdict_says_what_it_read() -> None:
    verdict = one(r"\boxed{ 0012 }")
    assert (verdict.extracted, verdict.canonical) == (" 0012 ", "12")
    assert verdict.ms > 0


def test_verdicts_come_in_order_and_each_pair_is_asked_once() -> None:
    answers = boxed({"x+1": "1+x", "7": "7", "9": "7", "x+2": "1+x"})
    mixed = [*answers, Answered("nothing", "7", True), Answered("cut", "7", False)] * 3
    with Grader("math") as grader:
        given = grader.grade(mixed)
        statuses = ["correct", "correct", "wrong", "wrong", "no_answer", "unfinished"] * 3
        assert [v.status for v in given] == statuses
        assert given[0] == given[6] == given[12]
        began = time.thread_time()
        assert [v.status for v in grader.grade(mixed * 100)] == statuses * 100
        assert time.thread_time() - began < 1


def test_what_hangs_is_asked_once_a_step_and_again_in_the_next() -> None:
    hangs = boxed({r"\binom{3000000}{1500000}": r"\frac{3}{7}"})
    with Grader("math", deadline=1) as grader:
        grader.grade(boxed({"1/2": "0.5"}))
        for _ in range(2):
            began = time.perf_counter()
            given = grader.grade(hangs * 8)
            assert 1 < time.perf_counter() - began < 4  # two at once, eight would take that long
            assert [(v.status, v.reward, v.canonical) for v in given] == [("timeout", 0, None)] * 8


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpcli.reward.verify._REMEMBERED", 3)
    with Grader("math") as grader:
        grader.grade(boxed({f"x+{i}": "x" for i in range(5)}))
        assert [answer for answer, _ in grader._known] == ["x+2", "x+3", "x+4"]
        grader.grade(boxed({"x+2": "x"}))
        assert [answer for answer, _ in grader._known] == ["x+3", "x+4", "x+2"]


@pytest.mark.parametrize("answer", ["1" * 257, "x" * 4_097, "{" * 65 + "}" * 65, "(" * 65])
def test_over_the_caps_is_wrong_without_a_process(answer: str) -> None:
    before = len(psutil.Process().children(recursive=True))
    with Grader("math", deadline=0.01) as grader:
        (verdict,) = grader.grade(boxed({answer: "7"}))
        assert (verdict.status, verdict.canonical) == ("wrong", None)
        assert len(psutil.Process().children(recursive=True)) <= before


def test_cheap_kinds_and_cheap_answers_start_no_process() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    for kind in KINDS:
        with Grader(kind) as grader:
            grader.grade(boxed({"7": "7", "8": "7", "007": "7", "": "7"}))
            grader.check([Question("q", "q", "7")] if kind != "choice" else [])
            after = {child.pid for child in psutil.Process().children(recursive=True)}
            assert after <= before


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("int", ["12", "-3"], ["1/2", "x"]),
        ("number", ["12", "1/2", "4e33"], ["x", "1/0"]),
        ("choice", ["B", "(C)"], ["Bob", "7"]),
        ("exact", ["a", "7"], [" ", "x" * 5_000]),
    ],
)
def test_answers_that_no_response_could_match_are_refused(
    kind: str, good: list[str], bad: list[str]
) -> None:
    with Grader(kind) as grader:
        grader.check([Question(g, g, g) for g in good])
        for wrong in bad:
            with pytest.raises(UsageError, match=f"1 of {len(good) + 1} answers are not of kind"):
                grader.check([Question(g, g, g) for g in [*good, wrong]])


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match='"maht" is no verifier'):
        Grader("maht")


def test_throughput() -> None:
    """Floors that a slow machine keeps; what was measured is in docs/verifiers.md."""
    costs = measured()
    assert costs["integers a second"] > 1_000
    assert costs["fractions a second"] > 20
    assert costs["seconds from a kill to the next answer"] < 2
