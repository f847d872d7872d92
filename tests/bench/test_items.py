"""From rows to items: ids, orders, samples, rg: questions, and rows that are not what they seem."""

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.bench.shapes import SHAPES, encode

from tpcli.bench import items as module
from tpcli.bench.items import HELD_OUT, REASONING, TRIES, Item, Loaded, first, load
from tpcli.bench.spec import STEPS, Benchmark, Spec, find
from tpcli.data.questions import load_questions, question_id, split
from tpcli.data.reasoning import read_reasoning
from tpcli.errors import UsageError
from tpcli.recipe.sections import DataSection

SUMS = {"kind": "int", "answer": "{answer}"}
PICK = {"kind": "choice", "choices": "{all}", "right": "{place}"}
NO_TEXT = [
    *(None, True, False, float("nan"), float("inf")),
    *({}, {"a": 1}, [], [1], [["a"]], ["a", None], "", " \n", "\ud800"),
]
EASY = "rg:chain_sum?min_terms=2&max_terms=3&min_digits=1&max_digits=2"


def bench(folder: Path, rows: list[Any] | str, /, **spec: Any) -> Benchmark:
    """A benchmark of the user's over ``rows``."""
    text = rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows)
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    told = {"title": "Mine", "source": "file://rows.jsonl", **spec}
    return Benchmark("mine", Spec.model_validate(told), folder)


def pick(i: int, size: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "question": f"Which, {i}?",
        "all": [f"{i}/{j}" for j in range(size)],
        "place": 0,
        **more,
    }


def refusal(folder: Path, row: Any, /, **spec: Any) -> str:
    """Message and hint for the second of two rows, the first of which is good."""
    good = pick(0) if spec["kind"] == "choice" else {"question": "1 + 1?", "answer": "2"}
    with pytest.raises(UsageError) as caught:
        load(bench(folder, [good, row], **spec), seed=0)
    assert "\n" not in str(caught.value)
    assert "rows.jsonl:2" in str(caught.value)
    return f"{caught.value} ({caught.value.hint})"


def test_an_item_golden(tmp_path: Path) -> None:
    """Worked out with sha256sum. The id says question and answer, or question and choices."""
    (item,) = load(bench(tmp_path, [{"question": "1 + 1?", "answer": "2"}], **SUMS), seed=5).items
    assert item == Item(
        hashlib.sha256(b"1 + 1?\x002").hexdigest()[:16], "1 + 1?", f"1 + 1?\n\n{STEPS}", "2"
    )
    (item,) = load(bench(tmp_path, [pick(3)], **PICK), seed=5).items
    assert item.id == hashlib.sha256(b"Which, 3?\x003/0\x003/1\x003/2\x003/3").hexdigest()[:16]
    drawn = int(hashlib.sha256(f"mine\0{item.id}\0005".encode()).hexdigest(), 16)
    order = [0, 1, 2, 3]
    random.Random(drawn).shuffle(order)
    assert item.order == tuple(order) == (2, 1, 3, 0)
    assert item.question == "Which, 3?\n\nA. 3/2\nB. 3/1\nC. 3/3\nD. 3/0"
    assert item.gold == "D"


def test_editions(tmp_path: Path) -> None:
    """The revision of a file is its own hash; the other sees ids, texts and answers."""
    mine = bench(tmp_path, [pick(i) for i in range(9)], **PICK)
    loaded = load(mine, seed=0)
    raw = (tmp_path / "rows.jsonl").read_bytes()
    assert loaded.revision == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert load(mine, seed=0) == loaded
    other = replace(mine, spec=mine.spec.model_copy(update={"prompt": "{question}"}))
    assert len({loaded.sha256, load(mine, seed=1).sha256, load(other, seed=0).sha256}) == 3
    (tmp_path / "rows.jsonl").write_bytes(raw + b"\n")
    assert load(mine, seed=0).sha256 == loaded.sha256
    assert load(mine, seed=0).revision != loaded.revision


def test_templates_take_values_as_they_are(tmp_path: Path) -> None:
    """What looks like a column inside a value is text."""
    row = {"a": "{b} and {question}", "b": "\\1 \\g<0> {a}", "n": 3, "f": 27.0, "l": ["$1$", " 2"]}
    mine = bench(tmp_path, [row], kind="math", question="{a}|{b}|{n}|{f}", answer="{l}")
    (item,) = load(mine, seed=0).items
    assert item.question == "{b} and {question}|\\1 \\g<0> {a}|3|27"
    assert item.text == f"{item.question}\n\n{STEPS}"
    assert item.gold == "1, 2"


@pytest.mark.parametrize(
    ("kind", "answer", "gold"),
    [
        ("math", " $x$ ", "x"),
        ("math", "$1$, $2$", "$1$, $2$"),
        ("math", "$$1$$", "$$1$$"),
        ("math", "$", "$"),
        ("math", "\\$5", "\\$5"),
        ("math", "[1, 2)", "[1, 2)"),
        ("math", "['$1$', '2']", "1, 2"),
        ("math", '["a"', '["a"'),
        ("exact", "['$1$', '2']", "['$1$', '2']"),
        ("exact", "27.0", "27.0"),
        ("number", "27.0", "27.0"),
        ("int", "27.0", "27"),
        ("int", "-1.00", "-1"),
        ("int", "027", "027"),
        ("int", 27.0, "27"),
        ("int", 10**30, "1" + "0" * 30),
    ],
)
def test_right_answers(tmp_path: Path, kind: str, answer: Any, gold: str) -> None:
    row = {"question": "?", "answer": answer}
    (item,) = load(bench(tmp_path, [row], kind=kind, answer="{answer}"), seed=0).items
    assert item.gold == gold


def test_what_follows_the_last_mark_is_the_answer(tmp_path: Path) -> None:
    row = {"question": "?", "answer": "a #### b #### 1,234 \n"}
    mine = bench(tmp_path, [row], kind="number", answer="{answer}", answer_after="####")
    assert load(mine, seed=0).items[0].gold == "1,234"


def test_white_space_around_a_choice_gives_nothing_away(tmp_path: Path) -> None:
    """Nor does it change which question it is."""
    (item,) = load(bench(tmp_path, [pick(1, all=[" one\n", "two"])], **PICK), seed=0).items
    assert sorted(item.question.splitlines()[2:], key=lambda line: line[3:]) in (
        ["A. one", "B. two"],
        ["B. one", "A. two"],
    )
    assert item.id == hashlib.sha256(b"Which, 1?\0 one\n\0two").hexdigest()[:16]


@pytest.mark.parametrize(
    ("right", "place"), [(2, None), ("place", 2), ("{place}", 2), ("place", "2"), ("place", 2.0)]
)
def test_where_the_right_choice_is_told(tmp_path: Path, right: int | str, place: Any) -> None:
    mine = bench(tmp_path, [pick(i, place=place) for i in range(9)], **{**PICK, "right": right})
    for item in load(mine, seed=0).items:
        assert item.order is not None
        assert item.order["ABCD".index(item.gold)] == 2


def test_equal_questions_have_ids_of_their_own(tmp_path: Path) -> None:
    rows = [pick(0), pick(1), pick(0), pick(0)]
    ids = [item.id for item in load(bench(tmp_path, rows, **PICK), seed=0).items]
    assert ids == [ids[0], ids[1], f"{ids[0]}-2", f"{ids[0]}-3"]
    assert ids[0] != ids[1]


@pytest.mark.parametrize(
    ("value", "gold"), [(0.5, "0.5"), (27.0, "27"), (-3, "-3"), (1e-5, "1e-05")]
)
def test_numbers_are_answers(tmp_path: Path, value: float, gold: str) -> None:
    (item,) = load(bench(tmp_path, [{"question": "?", "answer": value}], **SUMS), seed=0).items
    assert item.gold == gold


@pytest.mark.parametrize("column", ["question", "answer"])
@pytest.mark.parametrize("value", NO_TEXT)
def test_cells_that_are_no_text(tmp_path: Path, column: str, value: Any) -> None:
    row = {"question": "2 + 2?", "answer": "4", column: value}
    said = refusal(tmp_path, row, **SUMS)
    assert f'column "{column}" is' in said or "cannot be read" in said


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (pick(1, place=4), "of 4 choices, mine calls '4' the right one"),
        (pick(1, place=-1), "of 4 choices, mine calls '-1' the right one"),
        (pick(1, place="B"), "of 4 choices, mine calls 'B' the right one"),
        (pick(1, place=None), 'column "place" is None'),
        (pick(1, place=True), 'column "place" is True'),
        (pick(1, place=[0]), 'column "place" is [0]'),
        (pick(1, size=1), "has 1 choice, and mine needs 2 to 26"),
        (pick(1, size=0), "has 0 choices, and mine needs 2 to 26"),
        (pick(1, size=27), "has 27 choices, and mine needs 2 to 26"),
        (pick(1, all="['a' 'b' 'c']"), "has 1 choice, and mine needs 2 to 26"),  # as NumPy prints
        (pick(1, all=None), "the choices are no list of texts"),
        (pick(1, all=["a", None]), "the choices are no list of texts"),
        (pick(1, all=["a", ["b"]]), "the choices are no list of texts"),
        (pick(1, all=[1, 2]), "the choices are no list of texts"),
        (pick(1, all={"a": "b"}), "the choices are no list of texts"),
        (pick(1, all="a, b"), "the choices are no list of texts"),
        (pick(1, all="{[]: 1}"), "the choices are no list of texts"),
        (pick(1, all="{'a', 'b'}"), "the choices are no list of texts"),
        (pick(1, all="(" * 500), "the choices are no list of texts"),
        (pick(1, all="-" * 50_000 + "1"), "the choices are no list of texts"),
        (pick(1, all="['a', 'b'\0]"), "the choices are no list of texts"),
        ({"question": "?", "place": 0}, 'has no column "all", which mine needs (it has place, qu'),
        ({"question": "?", "all": ["a", "b"]}, 'has no column "place", which mine needs'),
        (["?"], "is not a JSON object"),
    ],
)
def test_hostile_rows_of_choices(tmp_path: Path, row: Any, said: str) -> None:
    assert said in refusal(tmp_path, row, **PICK)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "?", "answer": "4"}, "the answer of mine has no ####"),
        ({"question": "?", "answer": "so ####  "}, "the right answer is empty (correct that row)"),
        ({"question": "?"}, 'has no column "answer", which mine needs'),
    ],
)
def test_marks_that_are_missing(tmp_path: Path, row: Any, said: str) -> None:
    good = {"question": "?", "answer": "#### 2"}
    mine = bench(tmp_path, [good, row], **SUMS, answer_after="####")
    with pytest.raises(UsageError) as caught:
        load(mine, seed=0)
    assert said in f"{caught.value} ({caught.value.hint})"
    assert "rows.jsonl:2" in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "[open('ran', 'w').write('x'), 'b']",
        "[__import__('pathlib').Path('ran').touch(), 'b']",
        "(lambda: open('ran', 'w'))()",
        "['a', 'b'] + [str(open('ran', 'w'))]",
        "[f\"{open('ran', 'w')}\", 'b']",
        "import os; os.mknod('ran')",
    ],
)
def test_choices_are_read_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = SHAPES["musr"]
    rows = [case.row for case in shape.cases]
    rows[4] = {**rows[4], "choices": code}
    path = tmp_path / "rows.csv"
    path.write_bytes(encode(rows, shape.columns, "csv"))
    with pytest.raises(UsageError, match=r"rows\.csv, row 5: the choices are no list of texts"):
        load(find(["musr"])[0].read_from(path), seed=0)
    assert not Path("ran").exists()


# A sample


def test_a_sample_is_nested_and_blind_to_order(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": str(i)} for i in range(40)]
    loaded = load(bench(tmp_path, [*rows, rows[0]], **SUMS), seed=0)
    shuffled = load(bench(tmp_path, random.Random(1).sample([*rows, rows[0]], 41), **SUMS), seed=3)
    before: set[Item] = set()
    for limit in range(1, 41):
        some = first(loaded, limit)
        assert len(some) == limit
        assert before < {*some} == {*first(shuffled, limit)}
        assert [*some] == [item for item in loaded.items if item in some]
        before = {*some}
    assert {item.id for item in first(loaded, 3)} == {*sorted(i.id for i in loaded.items)[:3]}


@pytest.mark.parametrize("limit", [None, 2, 3])
def test_a_sample_of_all(limit: int | None) -> None:
    loaded = Loaded((Item("b", "?", "?", "1"), Item("a", "?", "?", "2")), "", "")
    assert first(loaded, limit) == loaded.items


# reasoning-gym


def asked(item: Item) -> str:
    """The bare question of an rg: item."""
    assert item.text.endswith(f"\n\n{STEPS}")
    return item.text.removesuffix(f"\n\n{STEPS}")


def test_rg_questions(tmp_path: Path) -> None:
    loaded = load(find([EASY])[0], seed=0)
    assert len({item.id for item in loaded.items}) == len(loaded.items) == REASONING == 100
    for item in loaded.items:
        sum_of = asked(item).rpartition(": ")[2].removesuffix(" =")
        signs = sum_of.replace("- ", "-").replace("+ ", "").split()
        assert int(item.gold) == sum(map(int, signs))
        assert int(question_id(asked(item)), 16) < 0.1 * 2**64
        assert item.order is None
    assert loaded.revision.startswith("reasoning-gym 0.")
    assert load(find([EASY])[0], seed=9) == loaded  # the seed is that of choices


@pytest.mark.parametrize("held_out", [0.1, 0.25])
def test_no_rg_question_is_trained_on(held_out: float) -> None:
    """Not even by a run that trains on the same task with the same settings."""
    (mine,) = find([EASY])
    theirs = load_questions(
        "rg:chain_sum",
        config=mine.spec.settings,
        revision=None,
        size=8_000,
        seed=0,
        question_field="question",
        answer_field="answer",
        solution_field=None,
    )
    ours = {question_id(asked(item)) for item in load(mine, seed=0).items}
    parts = split(theirs, held_out)
    assert not ours & {question.id for question in parts.train}
    assert len(ours & {question.id for question in parts.held_out}) > 50  # the same questions
    assert DataSection.model_fields["held_out"].default == HELD_OUT == 0.1


def test_rg_counts_what_it_made() -> None:
    """1 + 1 to 9 - 9 are few questions: those of the held-out side all come, and no more."""
    settings = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    query = "&".join(f"{key}={value}" for key, value in settings.items())
    (bench_,) = find([f"rg:chain_sum?{query}"])
    loaded = load(bench_, seed=0)
    made = [row.question for row in read_reasoning("chain_sum", settings, size=4_000, seed=0)]
    apart = {text for text in made if int(question_id(text), 16) < 0.1 * 2**64}
    assert {asked(item) for item in loaded.items} == apart
    assert 0 < len(apart) < 40
    assert loaded.made == TRIES * REASONING == 4_000
    counted = replace(bench_, spec=bench_.spec.model_copy(update={"count": 101}))
    with pytest.raises(UsageError, match=f"must have 101 questions, and .* has {len(apart)}$") as c:
        load(counted, seed=0)
    assert "widen settings" in c.value.hint
    few = replace(bench_, spec=bench_.spec.model_copy(update={"count": 3}))
    assert {item.id for item in load(few, seed=0).items} < {item.id for item in loaded.items}


def test_rg_without_a_question_on_the_held_out_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_OUT", 1e-12)
    monkeypatch.setattr(module, "REASONING", 2)
    with pytest.raises(UsageError, match="no question on the held-out side") as caught:
        load(find([EASY])[0], seed=0)
    assert "widen" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("rg:countdown", "rg:countdown has answers that no comparison of text can score", "choose"),
        ("rg:n_queens", "rg:n_queens has answers that no comparison of text can score", "choose"),
        ("rg:chain_sums", "reasoning-gym has no task chain_sums", "did you mean chain_sum"),
        ("rg:chain_sum?min_term=2", "min_term: rg:chain_sum has no such", "did you mean min_terms"),
        ("rg:chain_sum?min_terms=x", "rg:chain_sum refuses", "its settings are"),
    ],
)
def test_rg_mistakes(name: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(find([name])[0], seed=0)
    assert message in str(caught.value)
    assert caught.value.hint.startswith(hint)
