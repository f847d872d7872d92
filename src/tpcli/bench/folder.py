"""The folder of one evaluation: what was asked, what came, what it was worth. Everything is here.

``settings.json`` says what was evaluated and how; its digest is part of the folder's name, so the
same settings find the same folder. Samples and questions may be added later: the settings leave out
how many of either.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from tpcli.bench.items import Item
from tpcli.errors import UsageError
from tpcli.registry.folder import read_json, write_json_atomic
from tpcli.types import Verdict

SETTINGS = "settings.json"
ITEMS = "items.jsonl"
GENERATIONS = "generations.jsonl"
VERDICTS = "verdicts.jsonl"

Place = tuple[str, int]
"""An item's id and the number of the sample, from 0."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One response as it is stored.

    Attributes:
        tokens: how many there are, the end of sequence included.
        finished: the model ended it itself.
        opened: its prompt ended inside an open <think>.
    """

    item: str
    sample: int
    text: str
    tokens: int
    finished: bool
    opened: bool


class EvaluationFolder:
    """One evaluation below ``base``: of one policy, on one benchmark, sampled in one way."""

    def __init__(self, base: Path, bench: str, settings: Mapping[str, Any]) -> None:
        text = json.dumps(settings, sort_keys=True, ensure_ascii=False)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:10]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", bench).strip("-")
        self.path = base / f"{name[:60]}-{self.key}"
        self.settings = dict(settings)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder: two at once would generate everything twice."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UsageError(
                f"another process is at this evaluation ({self.path})",
                hint="wait for it: the same command then answers from what it stored",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def begin(self, items: Sequence[Item]) -> None:
        """Write what is asked, once."""
        if not (self.path / SETTINGS).exists():
            _write_lines(self.path / ITEMS, [asdict(item) for item in items])
            write_json_atomic(self.path / SETTINGS, self.settings)

    def generations(self) -> dict[Place, Generation]:
        """The stored responses; a last line that a crash cut off is none."""
        lines = _read_lines(self.path / GENERATIONS)
        return {(line["item"], line["sample"]): Generation(**line) for line in lines}

    def add(self, generations: Sequence[Generation]) -> None:
        """Append responses, on the disk before this returns."""
        _append_lines(self.path / GENERATIONS, [asdict(one) for one in generations])

    def verdicts(self, kind: str) -> dict[Place, Verdict]:
        """The stored verdicts by a verifier of this name."""
        found = {}
        for line in _read_lines(self.path / VERDICTS):
            place = line.pop("item"), line.pop("sample")
            if line.pop("kind") == kind:
                found[place] = Verdict(**line)
        return found

    def add_verdicts(self, kind: str, verdicts: Mapping[Place, Verdict]) -> None:
        """Append verdicts; a later one of the same place and kind counts."""
        lines = [
            {"item": item, "sample": sample, "kind": kind, **asdict(verdict)}
            for (item, sample), verdict in verdicts.items()
        ]
        _append_lines(self.path / VERDICTS, lines)

    def result(self, name: str) -> dict[str, Any] | None:
        """A stored result; None where there is none."""
        try:
            return read_json(self.path / name)
        except FileNotFoundError:
            return None

    def write_result(self, name: str, result: Mapping[str, Any]) -> None:
        """Store a result."""
        write_json_atomic(self.path / name, dict(result))


def result_name(n: int, limit: int | None, kind: str) -> str:
    """The file of the result over so many samples and questions."""
    some = "" if limit is None else f"-limit{limit}"
    return f"result-n{n}{some}-{re.sub(r'[^A-Za-z0-9._-]+', '-', kind)}.json"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in data.split(b"\n")[:-1]:
        # What a power cut damaged counts as missing: it is drawn, or graded, again.
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    aside = path.with_suffix(".partial")
    aside.unlink(missing_ok=True)
    _append_lines(aside, lines)
    aside.replace(path)


def _append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    with path.open("a+b") as file:
        _drop_torn_line(file)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _drop_torn_line(file: BinaryIO) -> None:
    """What a crash cut off would run into the first new line."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
