"""What a benchmark's file may say, how its faults are told, and how benchmarks are found."""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tpcli.bench.items import load
from tpcli.bench.spec import (
    LETTER,
    SETS,
    STEPS,
    Benchmark,
    Spec,
    find,
    members,
    read,
    shipped,
    short,
)
from tpcli.errors import BenchmarkError, UsageError

GOOD = 'title = "Sums"\nsource = "file://rows.jsonl"\nkind = "int"\nanswer = "{answer}"\n'
CHOICE = 'title = "Pick"\nsource = "file://rows.jsonl"\nkind = "choice"\n'
HUB = 'title = "Sums"\nsource = "hf://them/sums"\nkind = "int"\nanswer = "{answer}"\n'
ANSWER = 'answer = "{answer}"\n'
ALL = 'choices = "{all}"\n'
PIN = f'revision = "{"0a" * 20}"\n'


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a project without benchmarks of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def rows(folder: Path, *answers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"question": f"0 + {a}?", "answer": str(a)}) for a in answers]
    (folder / "rows.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        (f"{GOOD}anser_after = '#'", "5: anser_after", "unknown key (did you mean answer_after?)"),
        (f"{GOOD}\nzzz = 1", "6: zzz", "unknown key (keys: title, group, source"),
        (GOOD.replace('"int"', '"exat"'), "3: kind", '"exat" is not one of int, number, math, '),
        (GOOD.replace('"int"', '"exat"'), "3: kind", '(did you mean "exact"?)'),
        (GOOD.replace('"int"', "5"), "3: kind", '"5" is not one of int'),
        (GOOD.replace('"file://', '"'), "2: source", '"rows.jsonl": '),
        (GOOD.replace("file://rows.jsonl", "hf://sums"), "2: source", '"hf://sums": '),
        (GOOD.removeprefix('title = "Sums"\n'), " title", "is required"),
        (GOOD.replace('"Sums"', '""'), "1: title", "at least 1 character"),
        (GOOD.replace('"Sums"', "1"), "1: title", "1: Input should be a valid string"),
        (f"{GOOD}count = 0", "5: count", "0: Input should be greater than 0"),
        (f'{GOOD}count = "30"', "5: count", '"30": Input should be a valid integer'),
        (f"{GOOD}splits = []", "5: splits", "at least 1 item"),
        (f'{GOOD}splits = "test"', "5: splits", "valid list"),
        (f"{GOOD}gated = 1", "5: gated", "valid boolean"),
        (f"{HUB}{PIN}", "", "count is missing: say how many questions"),
        (f"{HUB}count = 3", "", "revision is missing: pin the commit"),
        (f'{HUB}count = 3\nrevision = "main"', "6: revision", '"main": String should match'),
        (f"{HUB}count = 3\n{PIN}".replace('0a"', '0"'), "6: revision", "should match"),
        (f"{CHOICE}{ALL}", "", "choices and right need each other"),
        (f"{GOOD}right = 0", "", "choices and right need each other"),
        (f"{CHOICE}{ALL}right = true", "5: right", "true: "),
        (f"{CHOICE}choices = 3\nright = 0", "4: choices", "3: "),
        (f"{CHOICE}{ALL}right = 0\nright_counts_from = 2", "6: right_counts_from", "2: "),
        (f"{GOOD}{ALL}right = 0", "", "answer is missing: write answer, or choices and right"),
        (GOOD.replace("answer", "system"), "", "answer is missing"),
        (f"{GOOD}{ALL}right = 0".replace(ANSWER, ""), "", 'kind must be "choice" where there are'),
        (f'{GOOD}prompt = "Go."', "", "prompt must contain {question} exactly once"),
        (f'{GOOD}prompt = "{{question}}{{question}}"', "", "exactly once"),
        (f"{GOOD}count = \n", "5:", "not TOML: Invalid value"),
        (f"{GOOD}count = ]\ngated = true\n", "5:", "not TOML: Invalid value, at column 9"),
        (f"{GOOD}title = 'x'\n\n", "5:", "not TOML: Cannot overwrite a value"),
        (f"{GOOD}count = {'9' * 5000}", "", "not TOML: Exceeds the limit"),
        (f"{GOOD}a = {'[' * 5000}", "", "arrays or tables stand too deep"),
    ],
)
def test_faults(text: str, place: str, said: str) -> None:
    """File, line and key, and what is wrong there, in one line."""
    with pytest.raises(BenchmarkError) as caught:
        read(write(Path("bad.toml"), text))
    (line,) = str(caught.value).splitlines()
    head = f"bad.toml:{place}" if place else "bad.toml: "
    assert line.startswith(head)
    assert said in line.removeprefix(head)
    assert caught.value.exit_code == 2


def test_all_faults_at_once() -> None:
    text = f"# mine\n{GOOD}countt = 3\ngroup = 7\n".replace('"int"', '"itn"')
    with pytest.raises(BenchmarkError) as caught:
        read(write(Path("bad.toml"), text))
    assert {(f.line, f.key) for f in caught.value.faults} == {
        (4, "kind"),
        (6, "countt"),
        (7, "group"),
    }
    assert str(caught.value).count("\n") == 2


def test_files_that_cannot_be_read() -> None:
    with pytest.raises(UsageError, match=r"there is no file none\.toml"):
        find(["none.toml"])
    Path("folder.toml").mkdir()
    with pytest.raises(UsageError, match=r"folder\.toml cannot be read"):
        find(["folder.toml"])
    Path("latin.toml").write_bytes(b'title = "\xe9"')
    with pytest.raises(UsageError, match=r"latin\.toml cannot be read.*utf-8") as caught:
        find(["latin.toml"])
    assert caught.value.hint == "save it as UTF-8"


def test_a_byte_order_mark_is_no_fault() -> None:
    assert read(write(Path("sums.toml"), f"\ufeff{GOOD}")).spec.title == "Sums"


def test_defaults_and_what_the_user_says() -> None:
    spec = read(write(Path("sums.toml"), GOOD)).spec
    assert (spec.splits, spec.question, spec.gated, spec.count) == (
        ["test"],
        "{question}",
        False,
        None,
    )
    assert spec.ask("1 + {question}?") == f"1 + {{question}}?\n\n{STEPS}"
    pick = read(write(Path("pick.toml"), f'{CHOICE}choices = ["{{a}}", "{{b}}"]\nright = 1')).spec
    assert pick.ask("Which?\n\nA. x") == f"Which?\n\nA. x\n\n{LETTER}"
    own = read(write(Path("own.toml"), f'{GOOD}prompt = "Q: {{question}}\\nA:"')).spec
    assert own.ask("1 + {question}?") == "Q: 1 + {question}?\nA:"


# Names


def test_groups() -> None:
    assert [bench.name for bench in find(["aime"])] == ["aime24", "aime25"]
    assert [bench.name for bench in find(["gpqa"])] == ["gpqa-diamond"]
    assert [bench.name for bench in find(["aime25", "gsm8k", "aime"])] == [
        "aime25",
        "gsm8k",
        "aime24",
    ]
    assert members("aime") == ["aime24", "aime25"]
    assert members("gsm8k") == ["gsm8k"]


def test_short_names() -> None:
    assert {bench.name: short(bench) for bench in shipped() if short(bench) != bench.name} == {
        "gpqa-diamond": "gpqa"
    }
    alone = read(write(Path("sums.toml"), f'{GOOD}group = "nobody"\n'))
    assert short(alone) == "sums"  # --bench nobody would not find it


def test_shipped_are_the_files_there_are() -> None:
    names = [bench.name for bench in shipped()]
    assert names == sorted(path.stem for path in SETS.glob("*.toml"))
    assert len({bench.spec.title for bench in shipped()}) == len(names) == 12


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("aime2", "did you mean aime25 or aime24 or aime?"),
        ("gpqa_diamond", "did you mean gpqa-diamond"),
        ("gsm8", "did you mean gsm8k"),
        ("mysums", "did you mean my-sums"),
        ("qqqqqqqq", "tpcli bench ls lists them"),
        ("", "tpcli bench ls lists them"),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    write(Path("benches/my-sums.toml"), GOOD)
    with pytest.raises(
        UsageError, match=f"there is no benchmark {name or 'empty'}".replace("empty", r"\(empty\)")
    ) as caught:
        find([name])
    assert caught.value.hint.startswith(hint)


def test_a_projects_own(project: Path) -> None:
    """file:// starts from the folder of the benchmark's file, not from the current one."""
    write(Path("benches/sums.toml"), f'{GOOD}group = "aime"\n')
    rows(Path("benches"), 3, 4)
    rows(project, 5)
    assert [item.gold for item in load(find(["sums"])[0], seed=0).items] == ["3", "4"]
    assert members("aime") == ["aime24", "aime25", "sums"]
    assert [bench.name for bench in find(["sums", "gsm8k"])] == ["sums", "gsm8k"]


def test_an_own_one_takes_the_place_of_a_shipped_one() -> None:
    write(Path("benches/gsm8k.toml"), GOOD)
    assert find(["gsm8k"])[0].file == Path("benches/gsm8k.toml")


def test_a_path(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(project / "far" / "sums.toml", GOOD)
    rows(project / "far", 7)
    (bench,) = find([str(path)])
    assert (bench.name, bench.file) == ("sums", path)
    (project / "near").mkdir()
    monkeypatch.chdir(project / "near")
    assert [item.gold for item in load(find(["../far/sums.toml"])[0], seed=0).items] == ["7"]
    (project / "far" / "rows.jsonl").unlink()
    with pytest.raises(UsageError, match=r"sums: there is no file .*rows\.jsonl") as caught:
        load(bench, seed=0)
    assert "folder of the benchmark's own file" in caught.value.hint


def test_a_file_named_in_full(project: Path) -> None:
    rows(project / "data", 8)
    text = GOOD.replace("rows.jsonl", str(project / "data" / "rows.jsonl"))
    assert len(load(read(write(Path("far/sums.toml"), text)), seed=0).items) == 1


# rg: names


@pytest.mark.parametrize(
    ("query", "settings"),
    [
        ("", {}),
        ("?a=3&b=0.5&c=true", {"a": 3, "b": 0.5, "c": True}),
        ("?word=easy&list=[1,2]&texts=['x']", {"word": "easy", "list": [1, 2], "texts": ["x"]}),
        ("?quoted='3'&empty=&sign=-4", {"quoted": "3", "empty": "", "sign": -4}),
    ],
)
def test_settings_of_a_task_are_typed(query: str, settings: dict[str, Any]) -> None:
    (bench,) = find([f"rg:chain_sum{query}"])
    assert bench.name == f"rg:chain_sum{query}"
    assert bench.spec.source == "rg://chain_sum"
    assert bench.spec.kind == "exact"
    assert bench.spec.settings == settings
    assert {k: type(v) for k, v in bench.spec.settings.items()} == {
        k: type(v) for k, v in settings.items()
    }


@pytest.mark.parametrize("name", ["rg:", "rg:?a=1", "rg:a/b", "rg:chain sum"])
def test_no_task(name: str) -> None:
    with pytest.raises(UsageError, match="names no task") as caught:
        find([name])
    assert "rg:chain_sum" in caught.value.hint


# The declaration as a value


def test_read_from_changes_only_where_rows_lie(project: Path) -> None:
    (bench,) = find(["gpqa"])
    local = bench.read_from(Path("mine.csv"))
    changed = {"source": f"file://{project / 'mine.csv'}", "gated": False, "revision": None}
    assert local == replace(bench, spec=bench.spec.model_copy(update=changed))
    assert bench.spec.gated


def test_every_key_is_in_a_file_that_is_read_back() -> None:
    """A spec written as TOML values is the spec again."""
    for bench in shipped():
        assert bench.file is not None
        assert Spec.model_validate(tomllib.loads(bench.file.read_text())) == bench.spec
        assert isinstance(bench, Benchmark)
