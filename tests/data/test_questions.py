"""Identity, duplicates and the split."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpcli.data.questions import data_hash, load_questions, question_id, split
from tpcli.errors import UsageError
from tpcli.types import Question


def questions_of(texts: list[str], answer: str = "1") -> list[Question]:
    return [Question(question_id(text), text, answer) for text in texts]


def load(source: str, config: dict[str, Any] | None = None, **options: Any) -> list[Question]:
    defaults: dict[str, Any] = {
        "revision": None,
        "size": 20,
        "seed": 0,
        "question_field": "question",
        "answer_field": "answer",
        "solution_field": None,
    }
    return load_questions(source, config=config or {}, **{**defaults, **options})


MANY = [f"question {i}" for i in range(2_000)]


def test_question_id_is_sha256() -> None:
    assert question_id("abc") == "ba7816bf8f01cfea"


def test_split_keeps_the_first_of_equal_questions_in_order() -> None:
    repeated = questions_of(MANY, "first") + questions_of(MANY[::-1], "second")
    parts = split(repeated, 0.5)
    assert parts.generated == 4_000
    assert Counter(q.answer for q in (*parts.train, *parts.held_out)) == {"first": 2_000}
    for side in (parts.train, parts.held_out):
        numbers = [int(q.text.split()[1]) for q in side]
        assert numbers == sorted(numbers)


def test_split_shares_and_summary() -> None:
    """A tenth of 2,000 is 200; five standard deviations of that count are 67."""
    parts = split(questions_of(MANY), 0.1)
    assert abs(len(parts.held_out) - 200) < 67
    held = len(parts.held_out)
    assert parts.summary == (
        f"2,000 questions, 2,000 unique: {2_000 - held:,} to train on, {held} held out"
    )


@given(
    few=st.lists(st.sampled_from(MANY[:200]), min_size=60, unique=True),
    share=st.floats(0.3, 0.7),
)
def test_no_question_moves_when_others_join_it(few: list[str], share: float) -> None:
    small, large = split(questions_of(few), share), split(questions_of(MANY[::-1]), share)
    assert set(small.held_out) <= set(large.held_out)
    assert set(small.train) <= set(large.train)


def test_a_larger_share_only_adds() -> None:
    small, large = split(questions_of(MANY), 0.1), split(questions_of(MANY), 0.2)
    assert set(small.held_out) < set(large.held_out)


@pytest.mark.parametrize(("share", "left"), [(1e-9, "to hold out"), (1 - 1e-9, "to train on")])
def test_an_empty_side_is_an_error(share: float, left: str) -> None:
    with pytest.raises(UsageError, match=f"no question is left {left}: 5 unique") as caught:
        split(questions_of(MANY[:5]), share)
    assert "[data].held_out" in caught.value.hint


def test_data_hash_sees_questions_answers_and_order() -> None:
    base = questions_of(["a", "b"])
    others = [base[::-1], base[:1], questions_of(["a", "c"]), questions_of(["a", "b"], "2"), []]
    assert data_hash(base) == data_hash(list(base))
    assert len({data_hash(each) for each in [base, *others]}) == 6


def test_unknown_source() -> None:
    with pytest.raises(UsageError, match='"nonsense" names no data'):
        load("nonsense")


def test_a_relative_file_starts_from_base(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    assert load("q.jsonl", base=tmp_path)[0].answer == "2"
    assert load(str(tmp_path / "q.jsonl"), base=Path("/elsewhere"))[0].answer == "2"


def test_a_file_has_no_settings() -> None:
    with pytest.raises(UsageError, match=r"\[data.config\].split has no meaning"):
        load("q.jsonl", {"split": "train"})


def test_procedural_sources_depend_on_their_seed_alone() -> None:
    assert load("running_sum", seed=3) == load("running_sum", seed=3)
    assert load("running_sum", seed=3) != load("running_sum", seed=4)
    assert load("rg:chain_sum", seed=3) == load("rg:chain_sum", seed=3)
