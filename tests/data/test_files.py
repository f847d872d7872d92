"""Questions from files: what is read, and where a bad row is."""

import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tpcli.data.files import read_jsonl, read_parquet
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
