"""Evaluation statistics against hand-made cases, plain enumeration, scipy and simulation."""

import itertools
import math
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import astuple
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from tpcli.bench import stats
from tpcli.bench.stats import (
    Estimate,
    Paired,
    Table2x2,
    avg_at_n,
    holm,
    ks,
    macro,
    maj_at_n,
    paired,
    pass_at_k,
    solved,
)

pytestmark = pytest.mark.filterwarnings("error")  # none of scipy's warnings may leak

COUNTS = st.integers(1, 9).flatmap(
    lambda n: st.tuples(st.lists(st.integers(0, n), min_size=1, max_size=9), st.just(n))
)


def close(value: float | None, expected: float, digits: float = 1e-12) -> bool:
    return value is not None and math.isclose(value, expected, rel_tol=digits, abs_tol=digits)


def standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


# avg@n


def test_avg_by_hand() -> None:
    """Shares 3/8, 4/8, 5/8, 4/8: variance 1/96; t(.975, 3) is 3.182446."""
    estimate = avg_at_n([3, 4, 5, 4], 8)
    assert estimate.value == 0.5
    assert close(estimate.se, math.sqrt(1 / 96 / 4))
    assert close(estimate.low, 0.337597, 1e-6)
    assert close(estimate.high, 0.662403, 1e-6)


def test_avg_is_cut_to_what_a_share_can_be() -> None:
    """Shares 0, 3/8, 1: the t interval of mean 11/24 would reach -.8."""
    estimate = avg_at_n([0, 3, 8], 8)
    assert close(estimate.value, 11 / 24)
    assert (estimate.low, estimate.high) == (0.0, 1.0)


@given(counts=COUNTS, level=st.floats(0.5, 0.999))
def test_avg_is_the_one_sample_t_interval(counts: tuple[list[int], int], level: float) -> None:
    correct, n = counts
    estimate = avg_at_n(correct, n, level=level)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert (estimate.se is None) == (len(set(correct)) == 1)
    if estimate.se is not None:
        shares = [c / n for c in correct]
        low, high = scipy_stats.ttest_1samp(shares, 0).confidence_interval(level)
        assert close(estimate.se, standard_error(shares))
        assert close(estimate.low, max(0, low), 1e-9)
        assert close(estimate.high, min(1, high), 1e-9)


def test_avg_of_a_perfect_benchmark_is_no_certainty() -> None:
    """The exact bound b of 30 solved of 30: b ** 30 is .025."""
    bound = 0.025 ** (1 / 30)
    assert astuple(avg_at_n([8] * 30, 8)) == pytest.approx((1.0, None, bound, 1.0))
    assert astuple(avg_at_n([0] * 30, 8)) == pytest.approx((0.0, None, 0.0, 1 - bound))


def test_avg_of_equal_shares_takes_questions_as_single_trials() -> None:
    """Five questions at 3/8: round(1.875), so 2 trials of 5 succeeded, with .375 as the mean."""
    estimate = avg_at_n([3] * 5, 8)
    low, high = scipy_stats.beta.ppf(0.025, 2, 4), scipy_stats.beta.ppf(0.975, 3, 3)
    assert astuple(estimate) == pytest.approx((0.375, None, low, high))


def test_avg_of_one_question() -> None:
    """One trial: b ** 1 is .025, or .05 where the interval is one of 90%."""
    assert astuple(avg_at_n([8], 8)) == pytest.approx((1.0, None, 0.025, 1.0))
    assert astuple(avg_at_n([3], 8)) == pytest.approx((0.375, None, 0.0, 0.975))
    assert astuple(avg_at_n([0], 8, level=0.9)) == pytest.approx((0.0, None, 0.0, 0.95))


# Coverage: 30 questions, 32 samples; the truth is the mean of the population of difficulties.

REPLICATIONS, QUESTIONS, SAMPLES = 4_000, 30, 32


def draw(a: float, b: float) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Counts [replication, question], difficulties from Beta(a, b)."""
    rng = np.random.default_rng(0)
    return rng.binomial(SAMPLES, rng.beta(a, b, (REPLICATIONS, QUESTIONS)))


def coverage(a: float, b: float) -> float:
    estimates = [avg_at_n(row, SAMPLES) for row in draw(a, b).tolist()]
    return sum(e.low <= a / (a + b) <= e.high for e in estimates) / REPLICATIONS


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (2, 3), (0.3, 0.7)])
def test_the_interval_covers_as_often_as_it_says(a: float, b: float) -> None:
    """Means .5, .4 and .3; measured .951, .954 and .951 (their own standard error is .003)."""
    assert 0.93 <= coverage(a, b) <= 0.97


@pytest.mark.parametrize(("a", "b", "measured"), [(0.5, 4.5, 0.920), (0.03, 0.97, 0.772)])
def test_where_the_interval_covers_too_rarely(a: float, b: float, measured: float) -> None:
    """Known limits, with their figures: means .10 and .03 at a nominal .95.

    Most draws of 30 questions miss the few that carry the mean, and show too little spread. The
    same goes for means near 1: Beta(.97, .03) was covered .762 of the time. At the border stands
    Beta(.5, 2), mean .2, with .931. More questions mend it, not more samples: 500 questions from
    Beta(.03, .97) with 8 samples each covered .936.
    """
    assert coverage(a, b) == pytest.approx(measured, abs=0.015)


@pytest.mark.parametrize(("a", "b", "measured"), [(0.5, 0.5, 0.370), (2, 3, 0.566)])
def test_pooling_all_samples_covers_far_too_rarely(a: float, b: float, measured: float) -> None:
    """Wilson's interval over the 960 samples, on the draws of the test above.

    It takes samples of one question for independent trials, so it is several times too narrow.
    """
    totals, which = np.unique(draw(a, b).sum(1), return_inverse=True)
    tests = [scipy_stats.binomtest(int(k), QUESTIONS * SAMPLES) for k in totals]
    ends = np.array([test.proportion_ci(0.95, method="wilson") for test in tests])[which]
    covered = np.mean((ends[:, 0] <= a / (a + b)) & (a / (a + b) <= ends[:, 1]))
    assert covered == pytest.approx(measured, abs=0.02)


# pass@k and maj@n


def test_pass_at_k_by_hand() -> None:
    """One right of 4: half of the pairs hold it, and 1 - .75 ** 2 = .4375 would be biased."""
    estimate = pass_at_k([1], 4, 2)
    assert estimate is not None
    assert close(estimate.value, 0.5)


@given(counts=COUNTS, data=st.data())
def test_pass_at_k_is_the_mean_over_all_choices(
    counts: tuple[list[int], int], data: st.DataObject
) -> None:
    correct, n = counts
    k = data.draw(st.integers(1, n))
    estimate = pass_at_k(correct, n, k)
    choices = list(itertools.combinations(range(n), k))
    shares = [sum(min(choice) < c for choice in choices) / len(choices) for c in correct]
    assert estimate is not None
    assert close(estimate.value, sum(shares) / len(shares))
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    if len(set(shares)) > 1:
        assert close(estimate.se, standard_error(shares), 1e-9)


def test_pass_at_1_is_avg_and_pass_at_n_asks_for_any() -> None:
    correct = [0, 3, 8, 5]
    first, last = pass_at_k(correct, 8, 1), pass_at_k(correct, 8, 8)
    assert first is not None
    assert last is not None
    assert astuple(first) == pytest.approx(astuple(avg_at_n(correct, 8)))
    assert last.value == 0.75


def test_pass_at_more_than_there_are_samples_is_none() -> None:
    assert pass_at_k([0, 8], 8, 9) is None


def test_ks() -> None:
    assert [ks(n) for n in (1, 2, 3, 8, 9)] == [
        [1],
        [1, 2],
        [1, 2, 3],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 9],
    ]


@pytest.mark.parametrize(
    ("votes", "right", "score"),
    [
        (["7", "7", "8"], [True, True, False], 1.0),
        (["7", "8", "8"], [True, False, False], 0.0),
        (["7", "8", "8", "7"], [True, False, False, True], 1 / 2),
        (["7", "8", "9"], [False, True, False], 1 / 3),
        ([None, None, "7"], [False, False, True], 1.0),  # no answer never wins
        ([None, None, None], [False, False, False], 0.0),
        ([None, None], [True, True], 0.0),
        (["7", "7", "7", "8"], [True, False, True, False], 2 / 3),  # judged both ways
    ],
)
def test_maj_by_hand(votes: list[str | None], right: list[bool], score: float) -> None:
    assert close(maj_at_n([votes], [right]).value, score)


@given(votes=st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=7))
def test_maj_is_the_mean_over_all_ways_to_break_ties(votes: list[str | None]) -> None:
    """An order of preference among answers breaks ties; a is right."""
    scores = [
        max(order, key=lambda vote: votes.count(vote)) == "a" and "a" in votes
        for order in itertools.permutations("abc")
    ]
    estimate = maj_at_n([votes], [[vote == "a" for vote in votes]])
    assert close(estimate.value, sum(scores) / 6)


def test_maj_has_the_interval_of_avg() -> None:
    votes: list[list[str | None]] = [
        ["1", "1", "2"],
        ["1", "2", "2"],
        [None, "1", None],
        ["2", None, "2"],
    ]
    right = [[vote == "1" for vote in vote_n] for vote_n in votes]
    assert maj_at_n(votes, right) == avg_at_n([1, 0, 1, 0], 1)


# Paired differences


def enumerated(differences: Sequence[int]) -> Fraction:
    """Share of all 2 ** Q ways to choose signs whose sum lies at least as far from 0."""
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return Fraction(sum(s >= abs(sum(differences)) for s in sums), len(sums))


def test_paired_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, se 1 / sqrt(3), t 2 sqrt(3); t(.975, 2) is 4.302653."""
    out = paired([1, 4, 9], [0, 2, 6])
    assert out.difference == 2
    assert close(out.se, 1 / math.sqrt(3))
    assert close(out.low, 2 - 4.302653 / math.sqrt(3), 1e-6)
    assert close(out.high, 2 + 4.302653 / math.sqrt(3), 1e-6)
    assert close(out.p_t, 1 - math.sqrt(12 / 14))  # t has 2 degrees of freedom: closed form
    assert (out.p_sign_flip, out.smallest_p) == (0.25, 0.25)


def test_five_seeds_cannot_reach_a_twentieth() -> None:
    """All five better: 2 of 32 ways are as extreme. A sixth seed could reach .03125."""
    five = paired([31.9, 33.1, 32.5, 34.0, 32.7], [30.2, 31.5, 31.8, 31.0, 31.1])
    assert five.p_sign_flip == five.smallest_p == 0.0625
    assert five.p_t is not None
    assert five.p_t < 0.05
    assert paired(range(1, 7), [0] * 6).smallest_p == 0.03125


def test_a_pair_without_a_difference_has_no_sign_to_flip() -> None:
    out = paired([0.5, 0.75, 1.0, 0.25], [0.25, 0.25, 0.25, 0.25])
    assert (out.p_sign_flip, out.smallest_p) == (0.25, 0.25)
    assert close(out.difference, 0.375)  # in the mean it counts


@example(counts=[(1, 0), (2, 0), (0, 3)], n=10)  # .1 + .2 - .3 is not 0 in floats
@example(counts=[(3, 2), (4, 3), (2, 3)], n=10)
@given(
    counts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=9),
    n=st.sampled_from([3, 7, 8, 10, 12, 30]),
)
def test_paired_is_scipy_and_enumeration(counts: list[tuple[int, int]], n: int) -> None:
    new, old = [a / n for a, _ in counts], [b / n for _, b in counts]
    differences = [a - b for a, b in counts]
    out = paired(new, old)
    assert close(out.p_sign_flip, float(enumerated(differences)))
    assert out.smallest_p == min(1, 2 / 2 ** sum(d != 0 for d in differences))
    assert out.p_sign_flip >= out.smallest_p
    assert close(out.difference, sum(differences) / n / len(differences))
    ends = (out.se, out.low, out.high, out.p_t)
    if len(set(differences)) == 1:
        assert ends == (None, None, None, None)
    else:
        test = scipy_stats.ttest_rel(new, old)
        low, high = test.confidence_interval(0.95)
        se = standard_error(differences) / n
        assert ends == pytest.approx((se, low, high, test.pvalue), rel=1e-9)


@given(
    values=st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=8)
)
def test_paired_turns_round_with_its_arguments(values: list[tuple[float, float]]) -> None:
    grid = [(round(a, 3), round(b, 3)) for a, b in values]
    new, old = [a for a, _ in grid], [b for _, b in grid]
    out, turned = paired(new, old), paired(old, new)
    assert out.difference == -turned.difference
    assert (out.se, out.p_t, out.p_sign_flip) == (turned.se, turned.p_t, turned.p_sign_flip)
    assert not any(math.isnan(x) for x in astuple(out) if x is not None)
    if out.low is not None:
        assert turned.high == pytest.approx(-out.low)


def test_paired_without_spread_says_what_it_can() -> None:
    """One pair, no difference at all, and equal differences but for the last bit of a float."""
    nothing = (None, None, None, None)
    assert paired([0.75], [0.5]) == Paired(0.25, *nothing, 1.0, 1.0)
    assert paired([0.5, 0.25], [0.5, 0.25]) == Paired(0.0, *nothing, 1.0, 1.0)
    noisy = paired([0.3, 0.4], [0.2, 0.3])
    assert astuple(noisy) == pytest.approx((0.1, *nothing, 0.5, 0.5))
    assert paired([0.0], [0.0]).difference == 0


def test_paired_with_another_level() -> None:
    narrow, wide = paired([1, 4, 9], [0, 2, 6], level=0.5), paired([1, 4, 9], [0, 2, 6], level=0.99)
    assert close(narrow.high, 2 + 0.816497 / math.sqrt(3), 1e-6)  # t(.75, 2)
    assert close(wide.high, 2 + 9.924843 / math.sqrt(3), 1e-6)  # t(.995, 2)


def test_random_flips_where_there_are_too_many() -> None:
    """16 pairs have 65,536 flips; 9,999 of them estimate the exact p, the seed decides which."""
    differences = [3, -1, 4, 1, -5, 9, 2, 6, -5, 3, 5, -8, 9, 7, -9, 3]
    out = paired(differences, [0] * 16)
    exact = paired(differences, [0] * 16, resamples=2**16)
    assert close(exact.p_sign_flip, float(enumerated(differences)))
    assert exact.smallest_p == 2 / 2**16
    assert out.p_sign_flip == pytest.approx(exact.p_sign_flip, abs=0.02)
    assert out.p_sign_flip != exact.p_sign_flip
    assert out.smallest_p == 2 / 10_000
    assert out == paired(differences, [0] * 16)
    assert out.p_sign_flip != paired(differences, [0] * 16, seed=1).p_sign_flip


def test_random_flips_never_say_less_than_they_can() -> None:
    """No flip of 30 differences of one sign reaches their mean: p is 2 of 100, not 0."""
    out = paired(range(1, 31), [0] * 30, resamples=99)
    assert out.p_sign_flip == out.smallest_p == 0.02


def test_the_batch_bounds_memory_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """All flips of 40 pairs at once are 9,999 * 40 * 2 indices of 8 bytes: 6.4 MB."""
    differences = np.random.default_rng(0).normal(size=40).tolist()
    whole = paired(differences, [0.0] * 40)
    monkeypatch.setattr(stats, "BATCH", 4_000)
    tracemalloc.start()
    try:
        assert paired(differences, [0.0] * 40) == whole
        assert tracemalloc.get_traced_memory()[1] < 2e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("exponent", [-60, 60])
def test_paired_does_not_depend_on_the_unit(exponent: int) -> None:
    """A power of two scales floats exactly."""
    new, old, unit = [1.0, 4.0, 9.0, 2.0], [0.0, 2.0, 6.0, 3.0], 2.0**exponent
    out, scaled = paired(new, old), paired([x * unit for x in new], [x * unit for x in old])
    assert scaled.difference == out.difference * unit
    assert close(scaled.p_t, out.p_t or 0)
    assert (scaled.p_sign_flip, scaled.smallest_p) == (out.p_sign_flip, out.smallest_p)


def test_paired_sees_small_differences_of_large_values() -> None:
    assert paired([1 + 2**-33, 1 + 2**-32], [1.0, 1.0]).p_sign_flip == 0.5


# Holm, the 2 x 2 table, the macro mean

P_VALUES = st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=8)


def test_holm_by_hand() -> None:
    """Of four: 4 * .005, 3 * .01, 2 * .03, and the last is raised to its forerunner's .06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


def test_holm_does_not_count_what_is_unknown() -> None:
    assert holm([0.02, None, 0.03]) == [0.04, None, 0.04]
    assert holm([None, None]) == [None, None]


@given(p=P_VALUES)
def test_holm_lies_between_no_correction_and_bonferroni(p: list[float | None]) -> None:
    """It rejects no more than the p as they are, keeps their order, and never exceeds m * p."""
    adjusted = holm(p)
    assert [a is None for a in adjusted] == [value is None for value in p]
    pairs = [(v, a) for v, a in zip(p, adjusted, strict=True) if v is not None and a is not None]
    assert all(value <= a <= 1 for value, a in pairs)
    assert [a for _, a in sorted(pairs)] == sorted(a for _, a in pairs)
    if pairs:
        smallest, first = min(pairs)
        assert first == min(1, len(pairs) * smallest)
    bonferroni = [min(1, len(pairs) * value) for value, _ in pairs]
    assert all(a <= most for (_, a), most in zip(pairs, bonferroni, strict=True))


@given(p=P_VALUES, data=st.data())
def test_holm_does_not_see_the_order(p: list[float | None], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(p))))
    adjusted = holm(p)
    assert holm([p[i] for i in order]) == [adjusted[i] for i in order]


def test_solved_is_more_than_half() -> None:
    """Half of the samples is not solved; each cell has its own count."""
    new = [0.625, 1.0, 0.5, 0.0, 1.0, 0.75, 0.5, 0.5, 0.0, 0.0]
    old = [0.5, 0.0, 0.625, 1.0, 1.0, 0.75, 0.5, 0.0, 0.5, 0.875]
    assert solved(new, old) == Table2x2(only_new=2, lost=3, both=2, neither=3)


def test_macro_by_hand() -> None:
    """Standard errors .03 and .04 give .05 / 2; z is 1.959964."""
    out = macro([Estimate(0.2, 0.03, 0.14, 0.26), Estimate(0.6, 0.04, 0.52, 0.68)])
    half = 1.959964 * 0.025
    assert astuple(out) == pytest.approx((0.4, 0.025, 0.4 - half, 0.4 + half), rel=1e-6)


def test_macro_with_a_benchmark_solved_throughout() -> None:
    """Its share of the error is taken from its exact interval, not 0 and not nan."""
    perfect, other = avg_at_n([8] * 30, 8), Estimate(0.5, 0.0, 0.5, 0.5)
    out = macro([perfect, other])
    assert out.value == 0.75
    assert close(out.se, (1 - 0.025 ** (1 / 30)) / 2 / 1.959964 / 2, 1e-6)
    assert macro([perfect]).high == 1.0
    assert macro([avg_at_n([0] * 3, 8)]).low == 0.0


# Refusals

REFUSED: list[Callable[[], object]] = [
    lambda: avg_at_n([], 8),
    lambda: avg_at_n([0], 0),
    lambda: avg_at_n([9], 8),
    lambda: avg_at_n([-1], 8),
    lambda: avg_at_n(np.array([0.375]).tolist(), 8),  # a share, not a count
    lambda: avg_at_n([1, 2], 8, level=95),
    lambda: pass_at_k([], 8, 1),
    lambda: pass_at_k([9], 8, 9),
    lambda: pass_at_k([1], 8, 0),
    lambda: ks(0),
    lambda: maj_at_n([], []),
    lambda: maj_at_n([["1"]], [[True], [True]]),
    lambda: maj_at_n([["1", "2"]], [[True]]),
    lambda: maj_at_n([[]], [[]]),
    lambda: maj_at_n([["1"], ["1", "2"]], [[True], [True, False]]),
    lambda: paired([], []),
    lambda: paired([1.0], [1.0, 2.0]),
    lambda: paired([1.0, math.nan], [1.0, 2.0]),
    lambda: paired([1.0, 2.0], [1.0, math.inf]),
    lambda: paired([1.0, 2.0], [1.0, 3.0], resamples=0),
    lambda: paired([1.0], [2.0], level=1.0),
    lambda: holm([]),
    lambda: holm([0.5, 1.5]),
    lambda: holm([math.nan]),
    lambda: solved([], []),
    lambda: solved([0.5], [0.5, 0.5]),
    lambda: solved([3.0], [0.5]),
    lambda: macro([]),
    lambda: macro([Estimate(0.5, 0.1, 0.3, 0.7)], level=0.0),
]


@pytest.mark.parametrize("call", REFUSED)
def test_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        call()
