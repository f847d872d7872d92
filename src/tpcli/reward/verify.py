"""Verifiers: the text of a whole response in, a verdict out.

What is cheap is decided here: by canonical forms, by equal text, by what is known already. What
runs a parser on model text, or a user's own function, runs in processes that are killed when they
take too long.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

from tpcli.errors import RunFailedError, UsageError
from tpcli.names import OWN_VERIFIER, VerdictStatus, VerifierName
from tpcli.reward import mathematics, own
from tpcli.reward.extract import after_thinking, last_boxed
from tpcli.reward.forms import (
    Form,
    canonical_choice,
    canonical_exact,
    canonical_int,
    canonical_number,
    plain_int,
    within_caps,
)
from tpcli.reward.pool import START_LIMIT, Outcome, Pool
from tpcli.reward.reference import boxed_reference, canonical_reference
from tpcli.types import Answered, Question, Verdict

FORMS: dict[str, Form] = {
    "int": canonical_int,
    "number": canonical_number,
    "choice": canonical_choice,
    "exact": canonical_exact,
    "reference": canonical_reference,
}
"""The kinds that compare canonical forms; "math" compares what they mean."""
KINDS: tuple[str, ...] = get_args(VerifierName)
_REMEMBERED = 50_000
_Known = tuple[VerdictStatus, str | None]
"""A status and a canonical form."""


class Grader:
    """Verifies answers of one kind; a context manager.

    Kinds "math" and a user's own start processes with the first answer that needs them, and
    ``close`` ends them.
    """

    def __init__(
        self,
        kind: str,
        *,
        workers: int = 2,
        deadline: float = 2.0,
        memory_gib: float = 2.0,
        folders: Sequence[Path] = (),
    ) -> None:
        """Nothing is started or imported yet.

        Args:
            kind: one of ``VerifierName``, "MODULE:FUNCTION" or "plugin:NAME".
            workers: processes that verify.
            deadline: seconds a verdict may take.
            memory_gib: what a process may take beyond what it has once loaded.
            folders: where a user's own module is looked for, after the current folder.

        Raises:
            UsageError: there is no such kind.
        """
        if kind not in KINDS and not re.fullmatch(OWN_VERIFIER, kind):
            raise UsageError(
                f'"{kind}" is no verifier',
                hint=f'one of {", ".join(KINDS)}, "MODULE:FUNCTION" or "plugin:NAME"',
            )
        self.kind = kind
        self._own = kind not in KINDS
        paths = [str(folder.resolve()) for folder in (Path(), *folders)]
        self._pool = Pool(
            workers=workers,
            deadline=deadline,
            memory_gib=memory_gib,
            load=own.load if self._own else mathematics.load,
            load_args=(kind, paths) if self._own else (),
        )
        self._importable = False
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    def grade(self, answers: Sequence[Answered]) -> list[Verdict]:
        """A verdict on each answer, in order.

        Raises:
            UsageError: a user's own verifier cannot be imported.
            RunFailedError: the processes cannot be started.
        """
        if self._own:
            return self._by_function(answers)
        return self._by_meaning(answers) if self.kind == "math" else [*map(self._by_form, answers)]

    def check(self, questions: Sequence[Question]) -> None:
        """Refuse data whose right answers are not of this kind.

        No response could be right then; in kind "math" only one that repeats the text. Of a
        user's own verifier it is only seen that it can be imported.

        Raises:
            UsageError: some answers are not of this kind, or the verifier is not there.
        """
        if self._own:
            self._import()
            return
        golds = [question.answer for question in questions]
        if self.kind == "math":
            readable = self._readable(golds)
            bad = [gold for gold in golds if gold not in readable]
        else:
            bad = [gold for gold in golds if FORMS[self.kind](gold) is None]
        if bad:
            raise UsageError(
                f'{len(bad)} of {len(golds)} answers are not of kind "{self.kind}", '
                f'"{bad[0][:60]}" first',
                hint=f"choose another [reward].kind ({', '.join(KINDS)}) or other data",
            )

    def close(self) -> None:
        """End its processes; a later answer starts new ones."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _by_form(self, answer: Answered) -> Verdict:
        began, form = time.perf_counter(), FORMS[self.kind]
        read = _read_reference(answer) if self.kind == "reference" else _read(answer)
        if isinstance(read, Verdict):
            return read
        found = form(read)
        right = found is not None and found == form(answer.gold)
        status: VerdictStatus = "correct" if right else "wrong"
        if self.kind == "reference" and not right and not answer.finished:
            status = "unfinished"
        return _verdict(status, read, found, 1_000 * (time.perf_counter() - began))

    def _by_meaning(self, answers: Sequence[Answered]) -> list[Verdict]:
        """Kind "math": what is not decided at once is asked of the processes, each pair once."""
        began = time.perf_counter()
        read = [_read(answer) for answer in answers]
        pairs = [
            (one, answer.gold)
            for one, answer in zip(read, answers, strict=True)
            if not isinstance(one, Verdict)
        ]
        at_once = {pair: self._at_once(*pair) for pair in dict.fromkeys(pairs)}
        each = 1_000 * (time.perf_counter() - began) / max(len(answers), 1)
        known = {pair: (one, each) for pair, one in at_once.items() if one is not None}
        slow = [pair for pair, one in at_once.items() if one is None]
        for pair, outcome in zip(slow, self._pool.run(mathematics.judge, slow), strict=True):
            known[pair] = self._learn(pair, outcome), outcome.ms
        verdicts = []
        for one, answer in zip(read, answers, strict=True):
            if isinstance(one, Verdict):
                verdicts.append(one)
            else:
                (status, form), ms = known[one, answer.gold]
                verdicts.append(_verdict(status, one, form, ms))
        return verdicts

    def _at_once(self, answer: str, gold: str) -> _Known | None:
        """What needs no parser: too much to read, integers, equal text, or seen before."""
        if not within_caps(answer):
            return "wrong", None
        form, right = plain_int(answer), plain_int(gold)
        if form is not None and right is not None:
            return ("correct" if form == right else "wrong"), form
        text = canonical_exact(answer)
        if text is not None and text == canonical_exact(gold):
            return "correct", _gold_form(gold)
        if text is None or not within_caps(gold):
            return "wrong", None
        known = self._known.get((answer, gold))
        if known is not None:
            self._known.move_to_end((answer, gold))
        return known

    def _learn(self, pair: tuple[str, str], outcome: Outcome) -> _Known:
        """Remember what is certain; what timed out or died is tried again another time."""
        if outcome.status != "done":
            return outcome.status, None
        right, form = outcome.value
        gold = _gold_form(pair[1])
        if right:
            known: _Known = "correct", gold
        else:
            integer = plain_int(pair[0])
            form = integer if integer is not None else form
            # In a vote a wrong answer must not stand for the right one.
            known = "wrong", f"not {form}" if form == gold else form
        self._known[pair] = known
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return known

    def _readable(self, golds: Sequence[str]) -> set[str]:
        """Those that the parser can read, or that need no parser."""
        short = [gold for gold in dict.fromkeys(golds) if within_caps(gold)]
        simple = {gold for gold in short if plain_int(gold) is not None}
        others = [gold for gold in short if gold not in simple and gold.strip()]
        outcomes = self._pool.run(mathematics.parses, [(gold,) for gold in others])
        return simple | {
            gold for gold, one in zip(others, outcomes, strict=True) if one.value is True
        }

    def _by_function(self, answers: Sequence[Answered]) -> list[Verdict]:
        self._import()
        over = [
            answer.finished and after_thinking(answer.text, opened=answer.opened) is not None
            for answer in answers
        ]
        jobs = [
            (self.kind, answer.text, answer.gold)
            for answer, ended in zip(answers, over, strict=True)
            if ended
        ]
        outcomes = iter(self._pool.run(own.score, jobs))
        return [
            _of_function(answer, next(outcomes)) if ended else _verdict("unfinished")
            for answer, ended in zip(answers, over, strict=True)
        ]

    def _import(self) -> None:
        """Look once whether the user's verifier can be imported, in a process."""
        if self._importable:
            return
        told = "the process that imports it dies, or never ends", "import it in Python to see why"
        with suppress(RunFailedError):
            (outcome,) = self._pool.run(own.complaint, [(self.kind,)], deadline=START_LIMIT)
            if outcome.status == "done":
                told = outcome.value
        if told is not None:
            raise UsageError(f'[reward].kind = "{self.kind}": {told[0]}', hint=told[1])
        self._importable = True


def _read(answer: Answered) -> str | Verdict:
    """What stands in the last complete box after thinking; the verdict where there is none."""
    said = after_thinking(answer.text, opened=answer.opened)
    if said is None or not answer.finished:
        return _verdict("unfinished")
    boxed = last_boxed(said)
    return boxed if boxed is not None and boxed.strip() else _verdict("no_answer")


def _read_reference(answer: Answered) -> str | Verdict:
    """As the reference does: thinking counts, and so does what was cut off."""
    boxed = boxed_reference(answer.text)
    if boxed is None:
        return _verdict("no_answer" if answer.finished else "unfinished")
    return boxed


def _of_function(answer: Answered, outcome: Outcome) -> Verdict:
    said = after_thinking(answer.text, opened=answer.opened)
    boxed = last_boxed(said or "")
    form = None if boxed is None else canonical_exact(boxed)
    if outcome.status != "done":
        return Verdict(0.0, outcome.status, boxed, form, outcome.ms)
    reward = float(outcome.value)
    return Verdict(reward, "correct" if reward == 1 else "wrong", boxed, form, outcome.ms)


def _gold_form(gold: str) -> str | None:
    """The one form of all answers that equal ``gold``."""
    integer = plain_int(gold)
    return integer if integer is not None else canonical_exact(gold)


def _verdict(
    status: VerdictStatus, extracted: str | None = None, form: str | None = None, ms: float = 0.0
) -> Verdict:
    return Verdict(1.0 if status == "correct" else 0.0, status, extracted, form, ms)
