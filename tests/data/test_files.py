"""Questions from files: what is read, and where a bad row is."""

import csv
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tpcli.data.files import SUFFIXES, read_jsonl, read_parquet, records
from tpcli.data.rows import Fields, Row
from tpcli.errors import UsageError

FIELDS = Fields("question", "answer", None)
GOOD = '{"question": "1+1", "answer": "2"}'


def jsonl(folder: Path, *lines: str) -> Path:
    path = folder / "q.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_jsonl_rows(tmp_path: Path) -> None:
    path = jsonl(tmp_path, "\ufeff" + GOOD, "", '{"question": "é\u2028?", "answer": -3, "more": 1}')
    assert list(read_jsonl(path, fields=FIELDS)) == [Row("1+1", "2"), Row("é\u2028?", "-3")]


def test_jsonl_columns_by_name(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path, '{"q": "1+1", "a": "2", "s": "1+1=2"}', '{"q": "x", "a": "2", "s": null}'
    )
    rows = list(read_jsonl(path, fields=Fields("q", "a", "s")))
    assert rows == [Row("1+1", "2", "1+1=2"), Row("x", "2", None)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"q.jsonl:2 is not JSON: .* at column 2"),
        ("[1, 2]", r"q.jsonl:2 is not a JSON object"),
        ('{"question": "x"}', r'q.jsonl:2 has no column "answer"'),
        ('{"question": 5, "answer": "2"}', r'q.jsonl:2: column "question" is 5, not text'),
        ('{"question": " ", "answer": "2"}', r'q.jsonl:2: column "question" is .*, not text'),
        ('{"question": "x", "answer": ""}', r'q.jsonl:2: column "answer" is empty'),
        ('{"question": "x", "answer": null}', r'q.jsonl:2: column "answer" is empty'),
        ('{"question": "x", "answer": 0.5}', r'q.jsonl:2: column "answer" is 0.5'),
        ('{"question": "x", "answer": true}', r'q.jsonl:2: column "answer" is True'),
        ('{"question": "x", "answer": ["2"]}', r'q.jsonl:2: column "answer" is \[\'2\'\]'),
    ],
)
def test_jsonl_faults_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(read_jsonl(jsonl(tmp_path, GOOD, line), fields=FIELDS))


def test_a_missing_column_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        list(read_jsonl(jsonl(tmp_path, GOOD), fields=Fields("question", "gold", None)))
    assert caught.value.hint == "set [data].answer_field to one of answer, question"


def test_solution_column_must_be_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path, '{"question": "x", "answer": "2", "s": 5}')
    with pytest.raises(UsageError, match='column "s" is 5, not text'):
        list(read_jsonl(path, fields=Fields("question", "answer", "s")))


def test_jsonl_must_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(UsageError, match="not UTF-8 \\(byte 14\\)"):
        list(read_jsonl(path, fields=FIELDS))


@pytest.mark.parametrize("read", [read_jsonl, read_parquet])
def test_missing_file(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(UsageError, match="there is no file"):
        list(read(tmp_path / "none", fields=FIELDS))


def test_parquet_rows(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    table = pyarrow.table({"question": ["1+1", "2+2"], "answer": [2, 4], "more": [None, b"x"]})
    parquet.write_table(table, path)
    assert list(read_parquet(path, fields=FIELDS)) == [Row("1+1", "2"), Row("2+2", "4")]


def test_parquet_faults(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    parquet.write_table(pyarrow.table({"question": ["1+1", "2+2"], "answer": ["2", None]}), path)
    with pytest.raises(UsageError, match=r'q\.parquet, row 2: column "answer" is empty'):
        list(read_parquet(path, fields=FIELDS))
    with pytest.raises(UsageError, match=r'q\.parquet has no column "gold"'):
        list(read_parquet(path, fields=Fields("question", "gold", None)))
    path.write_bytes(b"not parquet at all")
    with pytest.raises(UsageError, match="is not a Parquet file"):
        list(read_parquet(path, fields=FIELDS))


def test_chat_turns_and_struct_fields(tmp_path: Path) -> None:
    """The layout of published RLVR sets: turns in one column, the answer inside another."""
    record = {
        "prompt": [
            {"role": "system", "content": "Think."},
            {"role": "user", "content": "2 + 2?"},
        ],
        "reward_model": {"ground_truth": "4", "style": "rule"},
    }
    fields = Fields("prompt", "reward_model.ground_truth", None)
    lines = tmp_path / "data.jsonl"
    lines.write_text(json.dumps(record) + "\n")
    assert list(read_jsonl(lines, fields=fields)) == [Row("2 + 2?", "4")]
    table = tmp_path / "data.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([record]), table)
    assert list(read_parquet(table, fields=fields)) == [Row("2 + 2?", "4")]


def test_a_struct_without_the_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"question": "2 + 2?", "reward_model": {}}\n')
    with pytest.raises(UsageError, match='ground_truth" is empty'):
        list(read_jsonl(path, fields=Fields("question", "reward_model.ground_truth", None)))


# Rows as they stand

ROWS = [
    {"question": 'a, "b"\nc', "answer": "1"},
    {"question": "é\u2028 \x0b \x0c \x85 and \x1c end no line", "answer": "2"},
    {"question": "  '' ", "answer": "3"},
]


def saved(path: Path) -> Path:
    """``ROWS`` as the libraries that write such files write them."""
    match path.suffix:
        case ".jsonl":
            path.write_text("".join(f"{json.dumps(r, ensure_ascii=False)}\n" for r in ROWS))
        case ".json":
            path.write_text(json.dumps(ROWS, indent=1))
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, ["question", "answer"])
                writer.writeheader()
                writer.writerows(ROWS)
        case _:
            parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_records_are_the_same_in_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"rows{suffix}")
    found = [*records(path)]
    assert [record for _, record in found] == ROWS
    place = f"{path}:{{}}" if suffix == ".jsonl" else f"{path}, row {{}}"
    assert [where for where, _ in found] == [place.format(number) for number in (1, 2, 3)]


def test_records_keep_types_and_columns(tmp_path: Path) -> None:
    row = {"a": 1, "b": 2.5, "c": None, "d": ["x"], "e": {"f": True}}
    (tmp_path / "q.json").write_text(json.dumps([row]))
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "q.parquet")
    for name in ("q.json", "q.parquet"):
        assert [record for _, record in records(tmp_path / name)] == [row]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_csv_line_ends(tmp_path: Path, ending: str) -> None:
    text = ending.join(["\ufeffquestion,answer", '"x\ny",1', "", "z,", ""])
    (tmp_path / "q.csv").write_bytes(text.encode())
    found = [record for _, record in records(tmp_path / "q.csv")]
    assert found == [{"question": "x\ny", "answer": "1"}, {"question": "z", "answer": ""}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.csv", "a,b\n1,2\n3\n", r"q\.csv, row 2 has another number of fields"),
        ("q.csv", "a,b\n1,2\n3,4,5\n", r"q\.csv, row 2 has another number of fields"),
        ("q.csv", 'a,b\n1,"2\n', r"q\.csv is not CSV: .* near line 2"),
        ("q.csv", f"a,b\n1,{'x' * 200_000}\n", r"q\.csv is not CSV: field larger"),
        ("q.json", '{"a": 1}', r"q\.json is not a JSON array"),
        ("q.json", '[{"a": 1}, 2]', r"q\.json, row 2 is not a JSON object"),
        ("q.json", '[{"a": 1},\n {]', r"q\.json is not JSON: .* at line 2, column 3"),
        ("q.json", "[" * 100_000, r"q\.json cannot be read: maximum recursion depth"),
        ("q.jsonl", '{"a": 1}\n{"a": 9' + "9" * 5_000 + "}", r"q\.jsonl:2 cannot be read: Exceeds"),
        ("q.jsonl", '{"a": 1}\n{"a": "\\ud83d"}', r"q\.jsonl:2 cannot be read: .*surrogates"),
        ("q.jsonl", '{"a": 1}\n{"a": "\\uD83D"}', r"q\.jsonl:2 cannot be read: .*surrogates"),
        ("q.txt", "a", r"q\.txt is none of \.jsonl, \.json, \.csv, \.parquet"),
        ("q", "a", r"q is none of \.jsonl"),
    ],
)
def test_files_that_hold_no_rows(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        list(records(tmp_path / name))
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_a_whole_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"a": "\\ud83d\\ude00", "b": "\\\\ud800"}')
    assert [r for _, r in records(tmp_path / "q.jsonl")] == [{"a": "\U0001f600", "b": "\\ud800"}]


def test_damaged_parquet(tmp_path: Path) -> None:
    """Cut short, and with a page overwritten."""
    table = pyarrow.table({"a": ["some text"] * 100})
    path = tmp_path / "q.parquet"
    parquet.write_table(table, path)
    whole = path.read_bytes()
    for bad in (whole[:-20], whole[:10] + b"\xff" * 40 + whole[50:], b""):
        path.write_bytes(bad)
        with pytest.raises(UsageError, match="is not a Parquet file") as caught:
            list(records(path))
        assert "\n" not in str(caught.value)
