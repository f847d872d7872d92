"""Verifiers: the text of a whole response in, a verdict out.

A verifier brings an answer into canonical form, and two answers are equal when their forms are.
Forms are compared as text and their length is bounded, so no response can make it slow. A verifier
that runs a parser on model text belongs behind ``grade`` too, in a process that can be killed.
"""

import re
import time
from collections.abc import Sequence
from typing import Protocol

from tpcli.errors import UsageError
from tpcli.names import VerdictStatus, VerifierName
from tpcli.reward.extract import after_thinking, last_boxed
from tpcli.types import Question, Verdict

MAX_CHARACTERS = 4_096
MAX_DIGITS = 256
_INTEGER = re.compile(
    r"(?P<sign>[+-]?)\s*(?P<digits>[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.0*)?"
)


class Verifier(Protocol):
    """Brings answers into a form in which equal answers are equal text."""

    def __call__(self, answer: str) -> str | None:
        """The canonical form; None when ``answer`` is nothing of this kind."""
        ...


def canonical_int(answer: str) -> str | None:
    """An integer without plus sign, leading zeros, thousands commas or fraction zeros.

    ``+7``, ``007``, ``$7$`` and ``7.0`` are "7"; ``1,234`` and ``1{,}234`` are "1234"; ``1,2``,
    ``7.5`` and ``7 apples`` are no integers.
    """
    if len(answer) > MAX_CHARACTERS:
        return None
    plain = answer.replace("\\$", "$").replace("{,}", ",").replace("\u2212", "-")
    match = _INTEGER.fullmatch(plain.strip().strip("$").strip())
    if match is None:
        return None
    digits = match["digits"].replace(",", "").lstrip("0") or "0"
    if len(digits) > MAX_DIGITS:
        return None
    return f"-{digits}" if match["sign"] == "-" and digits != "0" else digits


def canonical_exact(answer: str) -> str | None:
    """The text with each run of white space folded to one space; case is kept."""
    if len(answer) > MAX_CHARACTERS:
        return None
    return " ".join(answer.split()) or None


VERIFIERS: dict[VerifierName, Verifier] = {"int": canonical_int, "exact": canonical_exact}


def grade(response: str, answer: str, *, kind: VerifierName, finished: bool) -> Verdict:
    """The verdict on one whole response (never on a suffix of it).

    Args:
        response: all that the model wrote, thinking included.
        answer: the right answer, one that ``check_answers`` accepts.
        kind: how answers are compared.
        finished: the model ended the response itself; one that was cut off is wrong.
    """
    began = time.perf_counter()

    def verdict(
        status: VerdictStatus, extracted: str | None = None, form: str | None = None
    ) -> Verdict:
        reward = 1.0 if status == "correct" else 0.0
        return Verdict(reward, status, extracted, form, 1_000 * (time.perf_counter() - began))

    said = after_thinking(response)
    if said is None or not finished:
        return verdict("unfinished")
    extracted = last_boxed(said)
    if extracted is None:
        return verdict("no_answer")
    form = VERIFIERS[kind](extracted)
    right = form is not None and form == VERIFIERS[kind](answer)
    return verdict("correct" if right else "wrong", extracted, form)


def check_answers(questions: Sequence[Question], *, kind: VerifierName) -> None:
    """Refuse data whose right answers the verifier could never accept."""
    bad = [question for question in questions if VERIFIERS[kind](question.answer) is None]
    if bad:
        raise UsageError(
            f'{len(bad)} of {len(questions)} answers are not of kind "{kind}", '
            f'"{bad[0].answer[:60]}" first',
            hint=f"choose another [reward].kind ({', '.join(VERIFIERS)}) or other data",
        )
