"""``python -m tpcli.reward``: what verification costs on this machine, in kind "math"."""

import time

from tpcli.reward.verify import Grader
from tpcli.types import Answered

_HANGS = "\\binom{3000000}{1500000}"
_INTEGERS, _FRACTIONS, _KILLS = 50_000, 500, 5


def measured() -> dict[str, float]:
    """Throughput through two processes, and how soon one is replaced."""
    integers = [_answered(str(i), str(i % 97)) for i in range(_INTEGERS)]
    fractions = [
        _answered(f"\\frac{{{i}}}{{{i + 1}}}", f"\\frac{{{2 * i}}}{{{2 * i + 2}}}")
        for i in range(1, _FRACTIONS)
    ]
    began = time.perf_counter()
    with Grader("math") as grader:
        grader.grade(fractions[:2])
        costs = {"seconds to the first answer": time.perf_counter() - began}
        costs["integers a second"] = _rate(grader, integers)
        costs["fractions a second"] = _rate(grader, fractions[2:])
    with Grader("math", workers=1, deadline=0.3) as grader:
        grader.grade(fractions[:1])
        waits = [_wait_after_a_kill(grader, fractions[i]) for i in range(1, _KILLS + 1)]
    costs["seconds from a kill to the next answer"] = sum(waits) / len(waits)
    return costs


def _answered(answer: str, gold: str) -> Answered:
    return Answered(f"so \\boxed{{{answer}}}", gold, finished=True)


def _rate(grader: Grader, answers: list[Answered]) -> float:
    began = time.perf_counter()
    grader.grade(answers)
    return len(answers) / (time.perf_counter() - began)


def _wait_after_a_kill(grader: Grader, honest: Answered) -> float:
    (verdict,) = grader.grade([_answered(_HANGS, "\\frac{3}{7}")])
    assert verdict.status == "timeout"
    began = time.perf_counter()
    grader.grade([honest])
    return time.perf_counter() - began


if __name__ == "__main__":
    for name, value in measured().items():
        print(f"{name:<40} {value:>10,.2f}")
