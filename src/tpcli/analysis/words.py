"""Which words stand early, midway and late in responses. Pure counting.

A word is what stands between two whitespaces, lower case, without the punctuation around it. It
belongs to a stage by the trajectory percentile of its first token, so that the windows are those
of the entropies. Policies that write no whitespace are counted by token.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

STAGES: Mapping[str, tuple[float, float]] = {
    "first": (0.0, 0.1),
    "middle": (0.45, 0.55),
    "last": (0.9, 1.0),
}
"""Windows of trajectory percentile, both ends included: those of ``metrics.stats``."""
EDGES = ".,;:!?\"'()[]*`"
"""Taken off both ends of a word, unless it consists of nothing else."""
SLACK = 4
"""Characters that a token may lie away from the next one, for what could not be decoded alone."""


@dataclass(slots=True)
class Tally:
    """Counts over responses.

    Attributes:
        words, tokens: by stage, how often each occurred there.
        spaced: responses that hold whitespace between their words.
    """

    words: dict[str, Counter[str]] = field(default_factory=lambda: _empty())
    tokens: dict[str, Counter[str]] = field(default_factory=lambda: _empty())
    responses: int = 0
    spaced: int = 0


@dataclass(frozen=True, slots=True)
class Frequencies:
    """The most frequent words of one stage over several arms.

    Attributes:
        words: most frequent first.
        rates: for each arm, a number a word: occurrences per 1,000 words of this stage.
    """

    stage: str
    words: tuple[str, ...]
    rates: tuple[tuple[float, ...], ...]


def tally(responses: Iterable[tuple[Sequence[str], str]]) -> Tally:
    """Count the words of responses by stage.

    Args:
        responses: of each, its tokens, each decoded alone, and the text of all of them. The text
            may begin with what was given, a part of a solution: that is not counted.
    """
    found = Tally()
    for tokens, text in responses:
        starts, seen = _places(tokens, text)
        letters = [(t, tokens[t].strip()) for t in seen]
        words = list(_words(text, starts, len(tokens)))
        if not letters:
            continue
        found.responses += 1
        found.spaced += len(words) > 1
        for units, counts in ((letters, found.tokens), (words, found.words)):
            for stage, window in STAGES.items():
                counts[stage].update(_within(units, len(tokens), window))
    return found


def by_words(tallies: Sequence[Tally]) -> bool:
    """Whether to count words: at least half of all responses hold whitespace; else tokens."""
    return 2 * sum(one.spaced for one in tallies) >= sum(one.responses for one in tallies)


def frequent(tallies: Sequence[Tally], *, top: int) -> list[Frequencies]:
    """For each stage, the ``top`` words by their mean rate over the arms, a tally an arm.

    Each arm weighs the same, however many responses it stored; words that tie stand in order.
    """
    whole = by_words(tallies)
    found = []
    for stage in STAGES:
        counts = [(one.words if whole else one.tokens)[stage] for one in tallies]
        totals = [max(sum(one.values()), 1) for one in counts]
        rate = {
            word: tuple(1000 * one[word] / n for one, n in zip(counts, totals, strict=True))
            for word in set().union(*counts)
        }
        words = sorted(rate, key=lambda word: (-sum(rate[word]), word))[:top]
        rates = tuple(tuple(rate[word][arm] for word in words) for arm in range(len(tallies)))
        found.append(Frequencies(stage, tuple(words), rates))
    return found


def _empty() -> dict[str, Counter[str]]:
    return {stage: Counter() for stage in STAGES}


def _places(tokens: Sequence[str], text: str) -> tuple[list[int], list[int]]:
    """Where each token begins in ``text``, and which tokens are found there at all.

    From the end, because what was given stands before the first token. Special tokens are not in
    the text, and pieces of a letter are not found in it: of such tokens in a row the first begins
    where the token before them ends, the others where the next one begins.
    """
    letters = [token.strip() for token in tokens]
    starts, seen = [0] * len(tokens), []
    end, missed = len(text), 0
    for t in reversed(range(len(tokens))):
        reach = len(tokens[t]) + SLACK
        at = text.rfind(letters[t], max(end - reach - missed, 0), end) if letters[t] else -1
        if at >= 0:
            end, missed = at, 0
            seen.append(t)
        else:
            missed += reach
        starts[t] = end
    begin, known = None, {*seen}
    for t in range(len(tokens)):
        if t in known:
            begin = starts[t] + len(letters[t])
        elif begin is not None:
            starts[t] = begin
            begin = None if letters[t] else begin
    return starts, seen[::-1]


def _words(text: str, starts: Sequence[int], n: int) -> Iterator[tuple[int, str]]:
    """Each word with the token that its first character is in; none that was given."""
    for match in re.finditer(r"\S+", text):
        t = bisect_right(starts, match.start()) - 1
        if 0 <= t < n:
            word = match.group().casefold()
            yield t, word.strip(EDGES) or word


def _within(units: Sequence[tuple[int, str]], n: int, window: tuple[float, float]) -> Iterator[str]:
    """What stands in a window of a response of ``n`` tokens; if nothing, the nearest to its middle.

    As the entropies are taken, so that short responses are not silently left out.
    """
    if not units:
        return
    low, high = window
    inside = [unit for t, unit in units if low <= (t + 0.5) / n <= high]
    if inside:
        yield from inside
    else:
        yield min(units, key=lambda one: abs((one[0] + 0.5) / n - (low + high) / 2))[1]
