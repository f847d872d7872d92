"""Questions from a file: JSON lines or Parquet."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpcli.data.rows import Fields, Row
from tpcli.errors import UsageError


def read_jsonl(path: Path, *, fields: Fields) -> Iterator[Row]:
    """One row a line; blank lines are skipped."""
    try:
        lines = _existing(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 (byte {error.start})", hint="save the file as UTF-8"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{where} is not JSON: {error.msg} at column {error.colno}",
                hint="a .jsonl file holds one JSON object a line",
            ) from error
        if not isinstance(record, dict):
            raise UsageError(
                f"{where} is not a JSON object",
                hint='each line reads {"question": ..., "answer": ...}',
            )
        yield fields.row(record, where)


def read_parquet(path: Path, *, fields: Fields) -> Iterator[Row]:
    """One row a row."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(_existing(path))
        fields.check(file.schema_arrow.names, str(path))
        table = file.read(columns=[_column(n, file) for n in fields if n is not None])
    except pyarrow.ArrowInvalid as error:
        raise UsageError(
            f"{path} is not a Parquet file: {str(error).splitlines()[0]}",
            hint="write it again, or give a .jsonl file",
        ) from error
    for number, record in enumerate(table.to_pylist(), start=1):
        yield fields.row(record, f"{path}, row {number}")


def _column(name: str, file: Any) -> str:
    """The column to read for a field: a dotted name may lie inside one."""
    return name if name in file.schema_arrow.names else name.split(".")[0]


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(
            f"there is no file {path}",
            hint="[data].source is read from the folder of the recipe that names it",
        )
    return path
