"""Every benchmark that ships, loaded from a hub and from files, on invented rows of its shape."""

import math
import random
import re
import time
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from tests.bench.shapes import SHAPES, Case, Shape, encode, save
from tests.hub import FakeHub

from tpcli.bench.items import Item, Loaded, load
from tpcli.bench.spec import Benchmark, find, shipped
from tpcli.data.hub import GatedError
from tpcli.errors import OfflineError, UsageError
from tpcli.names import VerifierName

BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
LETTER = (
    "\n\nPlease reason step by step, and put your final answer (only the choice letter) within "
    "\\boxed{}."
)
CHOICES = ["gpqa-diamond", "mmlu-pro", "musr", "winogrande"]
EDITIONS = {
    "aime24": "c264983f3c86d2824b3a80468ebae9dbccbd4038ebd8242aec76741fc570865a",
    "aime25": "8a8e844dea89c96d46200eea6e881b76bc92a9c70d809ace10c57d8adc741dce",
    "hmmt25": "24f24b0d806823763ca913b77da1adf351f659604265b9f3c475bfdca8ec1f9a",
    "minerva": "fdd20f02fc03ca4bafc9d985f27f938df21535700e7b14b3d7a44d6ae832401e",
    "math500": "10b3a50ddabeda6341cbdf080f7002a8ee9d72a50dc516bece5b1da14e1141e3",
    "amc23": "1f40938865789b22623bf3cefe4d6d224596918db80968919bf76101d4cee7af",
    "olympiad": "15bf3c5d9ca495f25c4f7dcf37bd7e60c264b505c45da85126af1987c0e22fc2",
    "gpqa-diamond": "b10e29424d92620b01c840b2a56ca377dada8b06276be7458f1a3a26d328be65",
    "mmlu-pro": "90e5625b85061e24867b7e1317ce78159d5c73e1d1cbbd78a254fcd788fb118f",
    "musr": "7c02a8be36d328000d1a8762809a904061274b18ad7accd5ec4881bff400bff1",
    "winogrande": "868b943ff0c407e63ffc241fa1cdeee970f99e7e5b0147be88ab15c04448011d",
    "gsm8k": "9a34b626c45b8f8a2908eb5a463dfddc34651541e35236bafcda95cf3154c0b0",
}
"""SHA-256 over ids, texts and answers with seed 0: the same from every kind of file, in every
version of ours and of Python. A change here makes old evaluations incomparable."""
every_set = pytest.mark.parametrize("name", SHAPES)
every_choice_set = pytest.mark.parametrize("name", CHOICES)


def bench_of(name: str) -> Benchmark:
    (bench,) = find([name])
    return bench


def publish(hub: FakeHub, name: str) -> Shape:
    shape, commit = SHAPES[name], bench_of(name).spec.revision
    assert commit is not None
    hub.add("datasets", shape.repository, shape.contents(), commit=commit)
    return shape


def from_file(name: str, path: Path, cases: list[Case], *, seed: int = 0) -> Loaded:
    """The benchmark with ``cases`` as its rows, from a file at ``path``."""
    save(path, (case.row for case in cases), SHAPES[name].columns)
    return load(bench_of(name).read_from(path), seed=seed)


def said(case: Case, order: tuple[int, ...] | None) -> str:
    """All that the user says, put together by hand."""
    if order is None:
        return case.asked + BOXED
    lines = [f"{'ABCDEFGHIJ'[i]}. {case.choices[place].strip()}" for i, place in enumerate(order)]
    return "\n".join([f"{case.asked}\n", *lines]) + LETTER


def check(case: Case, item: Item) -> None:
    """The item is what the case says it has to be."""
    assert item.text == said(case, item.order)
    if item.order is None:
        assert not case.choices
        assert item.gold == case.right
    else:
        assert sorted(item.order) == [*range(len(case.choices))]
        assert case.choices[item.order["ABCDEFGHIJ".index(item.gold)]] == case.right


def test_every_shipped_set_has_a_shape() -> None:
    benches = {bench.name: bench.spec for bench in shipped()}
    assert {*benches} == {*SHAPES}
    assert {name for name, spec in benches.items() if spec.kind == "choice"} == {*CHOICES}
    for name, spec in benches.items():
        assert spec.source == f"hf://{SHAPES[name].repository}"
        assert spec.count == len(SHAPES[name].cases)
        assert spec.gated == SHAPES[name].gated
        assert spec.kind in get_args(VerifierName)
        assert spec.revision is not None
        assert re.fullmatch("[0-9a-f]{40}", spec.revision)


@every_set
def test_from_the_hub(hub: FakeHub, name: str) -> None:
    """Each right answer, from the pinned commit alone; then the same again without a network."""
    shape, bench = publish(hub, name), bench_of(name)
    loaded = load(bench, seed=0)
    for case, item in zip(shape.cases, loaded.items, strict=True):
        check(case, item)
    assert len({item.id for item in loaded.items}) == len(loaded.items)
    assert loaded.revision == bench.spec.revision
    asked = [re.findall("/(?:revision|tree|resolve|paths-info)/([^/?]+)", r) for r in hub.requests]
    assert {revision for found in asked for revision in found} == {bench.spec.revision}
    hub.stop()
    again = load(bench, seed=1)
    assert [item.id for item in again.items] == [item.id for item in loaded.items]
    assert (again.sha256 == loaded.sha256) == (name not in CHOICES)  # choices stand elsewhere


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@every_set
def test_from_a_file(tmp_path: Path, name: str, ending: str) -> None:
    cases = SHAPES[name].cases
    loaded = from_file(name, tmp_path / f"rows.{ending}", cases)
    for case, item in zip(cases, loaded.items, strict=True):
        check(case, item)
    assert re.fullmatch("sha256:[0-9a-f]{64}", loaded.revision)
    assert loaded.sha256 == EDITIONS[name]


@every_set
def test_the_count_is_kept(tmp_path: Path, name: str) -> None:
    cases = SHAPES[name].cases
    count = len(cases)
    for rows, found in ((cases[:-1], count - 1), ([*cases, cases[0]], count + 1)):
        with pytest.raises(UsageError) as caught:
            from_file(name, tmp_path / "rows.parquet", rows)
        assert f"{name} must have {count:,} questions" in caught.value.message
        assert caught.value.message.endswith(f" has {found:,}")
        assert caught.value.hint == "give the whole set"


@every_choice_set
def test_an_order_is_the_items_own(tmp_path: Path, name: str) -> None:
    """Neither neighbours nor the order of rows change it; the seed does."""
    cases = SHAPES[name].cases
    whole = {item.id: item for item in from_file(name, tmp_path / "all.parquet", cases).items}
    some = random.Random(0).sample(cases, len(cases) // 2)
    path = save(tmp_path / "some.parquet", (case.row for case in some), SHAPES[name].columns)
    bench = bench_of(name).read_from(path)
    bench = replace(bench, spec=bench.spec.model_copy(update={"count": None}))
    half = load(bench, seed=0).items
    assert len({item.id for item in half}) == len(some)
    assert all(whole[item.id] == item for item in half)
    pairs = [(whole[item.id].order, item.order) for item in load(bench, seed=1).items]
    chances = [1 / math.factorial(len(order or ())) for order, _ in pairs]
    same = sum(before == after for before, after in pairs)
    spread = math.sqrt(sum(p * (1 - p) for p in chances))
    assert abs(same - sum(chances)) < 5 * spread


@every_choice_set
def test_no_letter_is_favoured(tmp_path: Path, name: str) -> None:
    """Each choice stands at each place, and each letter is right, about equally often."""
    letters: dict[int, Counter[str]] = defaultdict(Counter)
    places: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
    for item in from_file(name, tmp_path / "rows.parquet", SHAPES[name].cases).items:
        assert item.order is not None
        letters[len(item.order)][item.gold] += 1
        places[len(item.order)].update(enumerate(item.order))
    for size in letters:
        count = letters[size].total()
        bound = 5 * math.sqrt(count / size * (1 - 1 / size))
        assert len(letters[size]) == size
        assert len(places[size]) == size * size
        for found in (*letters[size].values(), *places[size].values()):
            assert abs(found - count / size) < bound


@every_set
def test_offline(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """One line, at once; the client's waits between retries count as well."""
    hub.stop()
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    before = time.monotonic()
    with pytest.raises(OfflineError) as caught:
        load(bench_of(name), seed=0)
    assert time.monotonic() - before + sum(waits) < 10
    message, called = str(caught.value), "gpqa" if name == "gpqa-diamond" else name
    assert message.startswith(f"{name} cannot be loaded: the hub cannot be reached")
    assert SHAPES[name].repository in message
    assert "\n" not in message
    assert f"--bench-file {called}=FILE" in caught.value.hint


def test_offline_another_edition_does_not_pass_for_the_pinned_one(hub: FakeHub) -> None:
    """Nor where it was loaded later than the pinned one."""
    bench, shape = bench_of("gsm8k"), SHAPES["gsm8k"]
    later = replace(bench, spec=bench.spec.model_copy(update={"revision": "b" * 40}))
    files = shape.contents()
    files["main/test-00000-of-00001.parquet"] = encode(
        [case.row for case in shape.cases[::-1]], shape.columns, "parquet"
    )
    hub.add("datasets", shape.repository, files, commit="b" * 40)
    edition = load(later, seed=0)
    hub.stop()
    with pytest.raises(OfflineError, match="gsm8k cannot be loaded"):
        load(bench, seed=0)
    hub.start()
    publish(hub, "gsm8k")
    pinned = load(bench, seed=0)
    hub.stop()
    assert load(later, seed=0) == edition
    assert load(bench, seed=0) == pinned != edition


def test_gated(hub: FakeHub, tmp_path: Path) -> None:
    """Access is asked of the owner; with it, or with rows of one's own, the set loads."""
    shape = publish(hub, "gpqa-diamond")
    hub.gated.add(shape.repository)
    with pytest.raises(GatedError) as caught:
        load(bench_of("gpqa-diamond"), seed=0)
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("gpqa-diamond is gated")
    assert "\n" not in str(caught.value)
    for way in ("huggingface.co/datasets/Idavidrein/gpqa", "hf auth login", "HF_TOKEN"):
        assert way in caught.value.hint
    assert "--bench-file gpqa=FILE" in caught.value.hint
    local = from_file("gpqa-diamond", tmp_path / "rows.csv", shape.cases)
    hub.gated.clear()
    assert load(bench_of("gpqa-diamond"), seed=0).items == local.items


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": "c" * 40}, "Revision 'c{40}' doesn't exist"),
        ({"config": "hard"}, "cannot be loaded: .*hard"),
        ({"splits": ["test", "exam"]}, "cannot be loaded: .*exam"),
        ({"source": "hf://openai/gsm9k"}, "'openai/gsm9k' doesn't exist"),
        ({"question": "{query}"}, 'row 1 of test has no column "query", which gsm8k needs'),
        ({"answer_after": "@@"}, "row 1 of test: the answer of gsm8k has no @@"),
    ],
)
def test_what_the_hub_lacks_is_named(hub: FakeHub, change: dict[str, object], message: str) -> None:
    publish(hub, "gsm8k")
    bench = bench_of("gsm8k")
    bench = replace(bench, spec=bench.spec.model_copy(update=change))
    with pytest.raises(UsageError, match=message) as caught:
        load(bench, seed=0)
    assert "\n" not in str(caught.value)


def test_one_row_fewer_on_the_hub(hub: FakeHub) -> None:
    shape, commit = SHAPES["aime25"], bench_of("aime25").spec.revision
    assert commit is not None
    rows = [case.row for case in shape.cases[:-1]]
    files = {"test.jsonl": encode(rows, shape.columns, "jsonl")}
    hub.add("datasets", shape.repository, files, commit=commit)
    with pytest.raises(UsageError) as caught:
        load(bench_of("aime25"), seed=0)
    assert str(caught.value) == ("aime25 must have 30 questions, and hf://math-ai/aime25 has 29")
    assert "count and revision" in caught.value.hint
