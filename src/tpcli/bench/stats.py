"""The statistics of benchmark evaluation: intervals, paired tests, corrections. Pure.

Letters: Q questions of a benchmark, n samples a question, c_q of them right, k samples tried,
m values or differences that count. A share is c_q / n, in [0, 1].

The questions are the draws: samples of one question share its difficulty, so n of them are worth
far less than n questions. Every spread here is therefore one over questions, never over the
Q * n samples. No number handed out is nan: what cannot be said is None.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]

RESAMPLES = 9_999
"""Random sign flips; with the observed signs they make a p in steps of 1 / 10,000."""
NOISE = 1e-12
"""Below this share of the values' size, a difference is the rounding of floats."""
BATCH = 2_000_000
"""Signs drawn at once: it bounds memory, and no result depends on it."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over questions, or over benchmarks, with its interval.

    Attributes:
        value: the mean, in [0, 1].
        se: standard error of the mean; None where the data show no spread to take it from.
        low, high: ends of the interval, in [0, 1]; the functions here say of which kind.
    """

    value: float
    se: float | None
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Paired:
    """What two sequences over the same questions, or the same seeds, say about their difference.

    Attributes:
        difference: mean of new - old.
        se: standard error of the mean difference.
        low, high: ends of its t interval.
        p_t: two-sided p of the paired t test. ``se``, ``low``, ``high`` and ``p_t`` are None
            where the differences show no spread: one pair, or all differences equal.
        p_sign_flip: two-sided p of the sign-flip permutation test.
        smallest_p: the smallest ``p_sign_flip`` that so many differing pairs can reach.
    """

    difference: float
    se: float | None
    low: float | None
    high: float | None
    p_t: float | None
    p_sign_flip: float
    smallest_p: float


@dataclass(frozen=True, slots=True)
class Table2x2:
    """How many questions the new run alone solves, lost, both solve, and neither solves."""

    only_new: int
    lost: int
    both: int
    neither: int


def avg_at_n(correct: Sequence[int], n: int, *, level: float = 0.95) -> Estimate:
    """Accuracy: mean over questions of c_q / n.

    ``se = sd(c_q / n, ddof=1) / sqrt(Q)``, and a t interval with Q - 1 degrees of freedom, cut to
    [0, 1]. Where all shares are equal or Q = 1: see ``_over_questions``.

    In simulations with 30 questions and 32 samples, a nominal .95 covers .95 for difficulties
    from Beta(.5, .5), Beta(2, 3) and Beta(.3, .7). Where nearly all is failed, or nearly all is
    solved, it covers too rarely: .92 at a mean of .1, .77 at .03 (Beta(.5, 4.5), Beta(.03, .97)).

    Args:
        correct: c_q, one a question, each in 0..n.
        n: samples a question.
        level: probability that the interval should have, in (0, 1).

    Raises:
        ValueError: no questions, n < 1, or a count that is not a whole number in 0..n.
    """
    return _over_questions(_counts(correct, n) / n, level)


def pass_at_k(correct: Sequence[int], n: int, k: int, *, level: float = 0.95) -> Estimate | None:
    """Probability that at least one of k samples is right, from n >= k samples.

    Mean over questions of ``1 - C(n - c_q, k) / C(n, k)``: of all choices of k among the n
    samples, the share with a right one. It is unbiased; ``1 - (1 - c_q / n)**k`` is not. The
    interval follows the rule of ``avg_at_n``, which is pass@1.

    Returns:
        None for k > n: no unbiased estimate exists.

    Raises:
        ValueError: as ``avg_at_n``, and for k < 1.

    Ref: https://arxiv.org/abs/2107.03374, section 2.1
    """
    count_Q = _counts(correct, n)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if k > n:
        return None
    return _over_questions(stats.hypergeom(n, count_Q, k).sf(0), level)


def ks(n: int) -> list[int]:
    """The k at which to show pass@k: 1, 2, 4, ... below n, then n. ``ks(6) == [1, 2, 4, 6]``.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    return [2**i for i in range((n - 1).bit_length())] + [n]


def maj_at_n(
    votes: Sequence[Sequence[str | None]],
    right: Sequence[Sequence[bool]],
    *,
    level: float = 0.95,
) -> Estimate:
    """Accuracy of the most frequent answer among the n samples of a question.

    Answers that tie for most votes share the question equally: it scores the share of winners that
    are right. None never votes, so it never wins; a question without votes scores 0. Where one
    answer was judged both ways (a verifier that timed out), it is right by the share of its
    samples that were judged right. The interval follows the rule of ``avg_at_n``.

    Args:
        votes: canonical answers [Q][n]; None where a sample gave no answer.
        right: verdicts [Q][n] in the same order.
        level: probability that the interval should have, in (0, 1).

    Raises:
        ValueError: no questions, no samples, lengths that do not match, or questions with
            different numbers of samples.
    """
    _same_length(votes, right)
    for vote_n, right_n in zip(votes, right, strict=True):
        _same_length(vote_n, right_n)
        if len(vote_n) != len(votes[0]):
            raise ValueError(f"{len(votes[0])} samples of one question, {len(vote_n)} of another")
    return _over_questions(np.array(list(map(_majority, votes, right))), level)


def paired(
    new: Sequence[float],
    old: Sequence[float],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired:
    """Compare two runs over the same questions, or two methods over the same seeds, pair by pair.

    The t test takes the mean difference as normal. The sign-flip test asks only that a difference
    and its negative be equally likely if nothing changed: among all ways to flip signs, how many
    give a mean at least as far from 0? A pair without a difference has no sign to flip and is left
    out, which changes no exact p. With m pairs left, all 2^m flips are tried where ``resamples``
    allows, and ``smallest_p = 2 / 2^m``: .0625 for five seeds, 1 for one. Otherwise that many
    random flips are drawn, and ``smallest_p = 2 / (resamples + 1)``.

    Args:
        new, old: one finite value a pair, in the same order.
        level: probability that the t interval should have, in (0, 1). It is not cut to any range.
        resamples: most flips to try.
        seed: of the random flips; the result is a function of the arguments.

    Raises:
        ValueError: no pairs, lengths that do not match, a value that is not finite, resamples < 1.
    """
    _same_length(new, old)
    _check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    new_Q, old_Q = np.array(new, dtype=np.float64), np.array(old, dtype=np.float64)
    if not np.isfinite([new_Q, old_Q]).all():
        raise ValueError("paired values must be finite")
    # .3 - .2 and .4 - .3 differ in the last bit: round, so that equal differences are equal.
    size = float(np.abs([new_Q, old_Q]).max()) or 1.0
    unit_Q = np.round(new_Q / size - old_Q / size, -round(math.log10(NOISE)))
    se = low = high = p_t = None
    if np.ptp(unit_Q) > 0:
        test = stats.ttest_rel(new_Q, old_Q)
        se, p_t = float(stats.sem(new_Q - old_Q)), float(test.pvalue)
        low, high = map(float, test.confidence_interval(level))
    moved_m = unit_Q[unit_Q != 0]
    return Paired(
        difference=float(np.mean(new_Q - old_Q)),
        se=se,
        low=low,
        high=high,
        p_t=p_t,
        p_sign_flip=_sign_flip(moved_m, resamples, seed),
        smallest_p=min(1.0, 2 / min(2 ** len(moved_m), resamples + 1)),
    )


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Adjust p values of one family, so that p <= a errs anywhere in it with probability <= a.

    Step-down: the i-th smallest of m (from 0) becomes ``max over j <= i of (m - j) * p_j``, at
    most 1. It holds whatever the dependence between the tests. ``[.01, .04, .03]`` becomes
    ``[.03, .06, .06]``. None entries stay None and are not counted in m.

    Raises:
        ValueError: an empty sequence, or a p outside [0, 1].

    Ref: Holm (1979), A simple sequentially rejective multiple test procedure,
        Scandinavian Journal of Statistics 6, 65-70
    """
    if not len(p):
        raise ValueError("holm needs at least one p value")
    known = sorted((value, i) for i, value in enumerate(p) if value is not None)
    out: list[float | None] = [None] * len(p)
    adjusted = 0.0
    for rank, (value, i) in enumerate(known):
        if not 0 <= value <= 1:
            raise ValueError(f"a p value lies in [0, 1], got {value}")
        adjusted = min(1.0, max(adjusted, (len(known) - rank) * value))
        out[i] = adjusted
    return out


def solved(new: Sequence[float], old: Sequence[float]) -> Table2x2:
    """Count questions by who solves them: more than half of the samples right. Half is not enough.

    Args:
        new, old: shares c_q / n of the same questions in the same order.

    Raises:
        ValueError: no questions, lengths that do not match, or a value outside [0, 1].
    """
    _same_length(new, old)
    if not all(0 <= share <= 1 for share in (*new, *old)):
        raise ValueError("a share of right samples lies in [0, 1]")
    pairs = Counter((a > 0.5, b > 0.5) for a, b in zip(new, old, strict=True))
    return Table2x2(
        only_new=pairs[True, False],
        lost=pairs[False, True],
        both=pairs[True, True],
        neither=pairs[False, False],
    )


def macro(estimates: Sequence[Estimate], *, level: float = 0.95) -> Estimate:
    """Mean over m benchmarks of equal weight, whatever their sizes; they count as independent.

    ``se = sqrt(sum of se^2) / m``, and a normal interval, cut to [0, 1]. An estimate without se
    (all questions equal) lends half the width of its interval over z instead: that is wide, so
    the mean claims no more than it knows, and one benchmark solved throughout does not silence
    the others.

    Args:
        estimates: one a benchmark, each with an interval of the same ``level``.
        level: probability that the interval should have, in (0, 1).

    Raises:
        ValueError: no estimates.
    """
    _check_level(level)
    if not len(estimates):
        raise ValueError("macro needs at least one estimate")
    z = float(stats.norm.ppf((1 + level) / 2))
    ses = [(e.high - e.low) / (2 * z) if e.se is None else e.se for e in estimates]
    value = float(np.mean([e.value for e in estimates]))
    se = math.hypot(*ses) / len(ses)
    return Estimate(value, se, max(0.0, value - z * se), min(1.0, value + z * se))


def _over_questions(value_Q: Floats, level: float) -> Estimate:
    """The mean of values in [0, 1] with its t interval over questions, cut to [0, 1].

    Values that are all equal, or a single one, show no spread: a t interval would be a point and
    claim certainty, for instance that a benchmark of three solved questions is solved for good.
    There ``se`` is None, and the interval is Clopper and Pearson's for ``round(mean * Q)``
    successes in Q single trials. Among values in [0, 1] with a given mean, single trials have the
    largest variance, so this is as wide as the questions could call for. It is exact for shares
    of 0 and 1, and conservative for equal shares between them.
    """
    _check_level(level)
    value = float(value_Q.mean())
    if np.ptp(value_Q) <= NOISE:  # so is a single one
        trials = stats.binomtest(round(value * value_Q.size), value_Q.size)
        low, high = trials.proportion_ci(level, method="exact")
        return Estimate(value, None, float(low), float(high))
    se = float(stats.sem(value_Q))
    half = float(stats.t.ppf((1 + level) / 2, value_Q.size - 1)) * se
    return Estimate(value, se, max(0.0, value - half), min(1.0, value + half))


def _majority(vote_n: Sequence[str | None], right_n: Sequence[bool]) -> float:
    """Share of the winning answers of one question that are right; 0 without votes."""
    tally = Counter(vote for vote in vote_n if vote is not None)
    most = max(tally.values(), default=0)
    winners = {answer for answer, count in tally.items() if count == most}
    # Each winner has equally many samples: the mean over samples is the mean over winners.
    verdicts = [bool(ok) for vote, ok in zip(vote_n, right_n, strict=True) if vote in winners]
    return sum(verdicts) / len(verdicts) if verdicts else 0.0


def _sign_flip(moved_m: Floats, resamples: int, seed: int) -> float:
    """Two-sided p of the sign-flip test over differences other than 0."""
    if moved_m.size < 2:  # either sign is as far from 0, and scipy refuses to ask
        return 1.0
    test = stats.permutation_test(
        (moved_m / np.abs(moved_m).max(),),
        # Sums that are equal on paper differ in their last bits: scipy's tolerance is relative to
        # the observed sum, which is no help near 0.
        lambda unit, axis: np.round(unit.sum(axis=axis), 9),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH // moved_m.size),
        random_state=np.random.default_rng(seed),  # named rng from scipy 1.15 on; both work
    )
    return float(test.pvalue)


def _counts(correct: Sequence[int], n: int) -> Floats:
    """The counts as floats; ValueError unless there are some, whole numbers in 0..n."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    count_Q = np.array(correct, dtype=np.float64)
    if not count_Q.size:
        raise ValueError("no questions")
    wrong_Q = ~((count_Q >= 0) & (count_Q <= n) & (count_Q % 1 == 0))
    if wrong_Q.any():
        raise ValueError(
            f"a count of right samples is a whole number in 0..{n}, got {count_Q[wrong_Q][0]:g}"
        )
    return count_Q


def _same_length(a: Sequence[object], b: Sequence[object]) -> None:
    if len(a) != len(b):
        raise ValueError(f"lengths do not match: {len(a)} and {len(b)}")
    if not len(a):
        raise ValueError("nothing to compute from")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
