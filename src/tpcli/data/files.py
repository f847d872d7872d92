"""Rows from a file: JSON lines, JSON, CSV or Parquet. ``records`` has them as they stand."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpcli.data.rows import Fields, Record, Row
from tpcli.errors import UsageError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def records(path: Path) -> Iterator[Record]:
    """Every row of ``path`` with the place it stands at; the name's ending says how to read it."""
    match path.suffix:
        case ".jsonl":
            yield from _jsonl(path)
        case ".json":
            yield from _json(path)
        case ".csv":
            yield from _csv(path)
        case ".parquet":
            yield from _parquet(path, None)
        case _:
            raise UsageError(
                f"{path} is none of {', '.join(SUFFIXES)}", hint="save it as one of these"
            )


def read_jsonl(path: Path, *, fields: Fields) -> Iterator[Row]:
    """One row a line; blank lines are skipped."""
    for where, record in _jsonl(path):
        yield fields.row(record, where)


def read_parquet(path: Path, *, fields: Fields) -> Iterator[Row]:
    """One row a row."""
    for where, record in _parquet(path, fields):
        yield fields.row(record, where)


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        yield (
            where,
            _object(_parsed(line, where, "a .jsonl file holds one JSON object a line"), where),
        )


def _json(path: Path) -> Iterator[Record]:
    rows = _parsed(_text(path), str(path), "a .json file holds one array of objects")
    if not isinstance(rows, list):
        raise UsageError(
            f"{path} is not a JSON array", hint="write an array of objects, or a .jsonl file"
        )
    for number, record in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield where, _object(record, where)


def _csv(path: Path) -> Iterator[Record]:
    rows = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        for number, record in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            if None in record or None in record.values():
                raise UsageError(
                    f"{where} has another number of fields than the head line",
                    hint="fields that hold commas or line feeds stand in double quotes",
                )
            yield where, record
    except csv.Error as error:
        raise UsageError(
            f"{path} is not CSV: {error}, near line {rows.reader.line_num}",
            hint="save it again as CSV",
        ) from error


def _parquet(path: Path, fields: Fields | None) -> Iterator[Record]:
    """The columns that ``fields`` name, or all."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(_existing(path))
        columns = None
        if fields is not None:
            fields.check(file.schema_arrow.names, str(path))
            columns = [_column(n, file) for n in fields if n is not None]
        table = file.read(columns=columns)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UsageError(
            f"{path} is not a Parquet file: {str(error).splitlines()[0]}",
            hint="write it again, or give a .jsonl file",
        ) from error
    for number, record in enumerate(table.to_pylist(), start=1):
        yield f"{path}, row {number}", record


def _column(name: str, file: Any) -> str:
    """The column to read for a field: a dotted name may lie inside one."""
    return name if name in file.schema_arrow.names else name.split(".")[0]


def _parsed(text: str, where: str, hint: str) -> Any:
    try:
        value = json.loads(text)
        if re.search(r"\\u[dD]", text):  # half of a surrogate pair is no text
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UsageError(
            f"{where} is not JSON: {error.msg} at {line}column {error.colno}", hint=hint
        ) from error
    except (ValueError, RecursionError) as error:  # or a number of thousands of digits, or too deep
        raise UsageError(f"{where} cannot be read: {error}", hint=hint) from error


def _object(record: Any, where: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise UsageError(
            f"{where} is not a JSON object",
            hint='each row reads {"question": ..., "answer": ...}',
        )
    return record


def _text(path: Path) -> str:
    try:
        with _existing(path).open(encoding="utf-8-sig", newline="") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 (byte {error.start})", hint="save the file as UTF-8"
        ) from error


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(
            f"there is no file {path}",
            hint="[data].source is read from the folder of the recipe that names it",
        )
    return path
