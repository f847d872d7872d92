"""The shipped list of attacks: nothing hangs, dies, runs code, or is taken for right."""

import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from tpcli.reward.hostile import CANARY, HOSTILE, response_of
from tpcli.reward.verify import KINDS, Grader
from tpcli.types import Answered

DEADLINE, WORKERS = 1.0, 4
GOLD = r"\frac{3}{7}"
HONEST = [Answered(r"\boxed{\frac{6}{14}}", GOLD, True), Answered(r"\boxed{3}", "4", True)]
ATTACKS = [Answered(response_of(answer), GOLD, True) for answer in HOSTILE.values()]
ENDS = {"wrong", "timeout", "crash", "no_answer", "unfinished"}


def test_the_list_is_long_and_varied() -> None:
    assert len(HOSTILE) >= 40
    assert len(set(HOSTILE.values())) == len(HOSTILE)
    assert sum(CANARY in answer for answer in HOSTILE.values()) >= 10


def test_mathematics_survives_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, as in a step, then honest answers; most never reach a process."""
    monkeypatch.chdir(tmp_path)
    with Grader("math", deadline=DEADLINE, workers=WORKERS) as grader:
        grader.grade(HONEST)
        began = time.perf_counter()
        given = dict(zip(HOSTILE, grader.grade(ATTACKS), strict=True))
        seconds = time.perf_counter() - began
        assert [v.status for v in grader.grade(HONEST)] == ["correct", "wrong"]
        # It is known already what is wrong with most; what hung is tried again, alone.
        first = next(name for name, v in given.items() if v.status == "timeout")
        known = [name for name, v in given.items() if v.status == "wrong"]
        assert len(known) > len(HOSTILE) / 3
        ask = Mock(wraps=grader._pool.run)
        monkeypatch.setattr(grader._pool, "run", ask)
        grader.grade([ATTACKS[[*HOSTILE].index(name)] for name in (first, *known, first)])
        assert [len(call.args[1]) for call in ask.call_args_list] == [1]
        assert [v.status for v in grader.grade(HONEST)] == ["correct", "wrong"]
    assert {v.status for v in given.values()} <= ENDS
    assert max(v.ms for v in given.values()) <= 1_000 * (DEADLINE + 4)
    hung = sum(v.status == "timeout" for v in given.values())
    assert 5 <= hung < len(HOSTILE) / 2
    assert seconds < (hung / WORKERS + 1) * (DEADLINE + 1) + 20
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "math"])
def test_cheap_kinds_take_no_notice(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    gold = {"int": "3", "number": "3/7", "choice": "B"}.get(kind, GOLD)
    with Grader(kind) as grader:
        for name, answer in HOSTILE.items():
            began = time.thread_time()
            (verdict,) = grader.grade([Answered(response_of(answer), gold, True)])
            assert time.thread_time() - began < 0.5, name
            assert verdict.status in ENDS - {"timeout", "crash"}, name
    assert [*tmp_path.iterdir()] == []
