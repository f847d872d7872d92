"""Words by stage of the trajectory, counted by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tpcli.analysis import words
from tpcli.analysis.words import Tally, frequent, tally
from tpcli.metrics import stats


def counts(one: Tally, stage: str) -> dict[str, int]:
    return dict(one.words[stage])


def test_a_word_stands_where_its_first_token_does() -> None:
    """Ten tokens stand at .05, .15, ..., .95: "first" is the first, "last" is the tenth.

    From 45% to 55% are tokens 4 and 5, both ends included; token 5 begins no word.
    """
    tokens = ["So", " we", " a", "dd", " mid", "dle", " one", " more", " is", " END."]
    found = tally([(tokens, "".join(tokens))])
    assert counts(found, "first") == {"so": 1}
    assert counts(found, "middle") == {"middle": 1}
    assert counts(found, "last") == {"end": 1}
    assert (found.responses, found.spaced) == (1, 1)


def test_the_windows_are_those_of_the_entropies() -> None:
    assert dict(words.STAGES) == stats.STAGES


@given(st.integers(1, 60))
def test_tokens_of_a_stage_are_those_that_the_entropies_count(length: int) -> None:
    """Each token is one letter of its own: the same tokens are in each window, short or long."""
    letters = [chr(0x4E00 + i) for i in range(length)]
    found = tally([(letters, "".join(letters))])
    place_BT = torch.arange(length, dtype=torch.float64)[None]
    sums, numbers = stats.by_stage(place_BT, torch.ones(1, length, dtype=torch.bool)).tolist()
    for i, stage in enumerate(words.STAGES, start=1):
        inside = found.tokens[stage]
        assert sum(inside.values()) == numbers[i]
        assert sum(letters.index(letter) for letter in inside.elements()) == sums[i]


def test_a_given_solution_and_special_tokens_are_not_counted() -> None:
    """The text begins with what was given and has no end token; "x" of the given part is no match.

    The two tokens of the policy stand at 1/6 and 3/6 of three: first is the nearest to 5%.
    """
    found = tally([(["x", " 7", "<|im_end|>"], "given x and x 7")])
    assert counts(found, "first") == {"x": 1}
    assert counts(found, "middle") == {"7": 1}
    assert counts(found, "last") == {"7": 1}


def test_tokens_that_lose_their_blank_when_decoded_alone() -> None:
    """Words begin at 1/8, 3/8 and 7/8; of these 3/8 is the nearest to the middle."""
    found = tally([(["The", "ans", "wer", "4"], "The answer 4")])
    assert counts(found, "first") == {"the": 1}
    assert counts(found, "middle") == {"answer": 1}
    assert counts(found, "last") == {"4": 1}


def test_pieces_of_a_letter_cost_only_themselves() -> None:
    """Two tokens of one letter decode to nothing readable; the words around them are placed."""
    tokens = ["aa", " ", "\ufffd", "\ufffd", " bb"]
    found = tally([(tokens, "aa € bb")])
    assert counts(found, "first") == {"aa": 1}
    assert counts(found, "middle") == {"€": 1}
    assert counts(found, "last") == {"bb": 1}


def test_punctuation_around_a_word_is_not_it() -> None:
    """Case and edges go; what consists of nothing else stays, as formulas do. One token: 50%."""
    text = "**Wait**, ... (Wait) $x$ wait"
    found = tally([([text], text)])
    assert counts(found, "middle") == {"wait": 3, "...": 1, "$x$": 1}


def test_without_whitespace_tokens_are_counted() -> None:
    """The end token is none of them."""
    policy = tally([(["1", "+", "1", "=", "2", "<eos>"], "1+1=2")])
    assert not words.by_words([policy])
    rates = {
        one.stage: dict(zip(one.words, one.rates[0], strict=True))
        for one in frequent([policy], top=5)
    }
    assert rates == {"first": {"1": 1000}, "middle": {"1": 1000}, "last": {"2": 1000}}


def test_half_of_the_responses_decide() -> None:
    spaced, bare = (["a", " b"], "a b"), (["a", "b"], "ab")
    assert words.by_words([tally([spaced, bare])])
    assert not words.by_words([tally([spaced, bare]), tally([bare])])


def test_rates_are_per_thousand_and_arms_weigh_the_same() -> None:
    """Arm one says "a" in 3 of 4 stages' words, arm two, with one response, says "b" alone."""
    one = tally([(["a", " z"], "a z")] * 3 + [(["b", " z"], "b z")])
    two = tally([(["b", " z"], "b z")])
    first = frequent([one, two], top=2)[0]
    assert first.words == ("b", "a")
    assert first.rates == ((250.0, 750.0), (1000.0, 0.0))
    assert frequent([one, two], top=1)[0].words == ("b",)


def test_nothing_was_said() -> None:
    found = tally([([], ""), (["<eos>"], "")])
    assert found.responses == 0
    assert [one.words for one in frequent([found], top=3)] == [(), (), ()]


def test_a_long_stretch_of_pieces_is_bridged() -> None:
    """Seven letters of two pieces each; the word before them, far from the next, is placed."""
    tokens = ["aa", " ", *["\ufffd"] * 14, " bb"]
    found = tally([(tokens, "aa €€€€€€€ bb")])
    assert counts(found, "first") == {"aa": 1}
    assert counts(found, "last") == {"bb": 1}
