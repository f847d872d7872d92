"""Questions: where they are loaded from, and on which side of the split they fall."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpcli.data.files import read_jsonl, read_parquet
from tpcli.data.hub import read_hub
from tpcli.data.reasoning import read_reasoning
from tpcli.data.rows import Fields
from tpcli.data.running_sum import read_running_sum
from tpcli.errors import UsageError
from tpcli.types import Question


@dataclass(frozen=True, slots=True)
class Split:
    """The unique questions on either side, in the order they came.

    ``generated`` counts the questions before duplicates were dropped.
    """

    train: tuple[Question, ...]
    held_out: tuple[Question, ...]
    generated: int

    @property
    def summary(self) -> str:
        """One line for the log."""
        unique = len(self.train) + len(self.held_out)
        return (
            f"{self.generated:,} questions, {unique:,} unique: "
            f"{len(self.train):,} to train on, {len(self.held_out):,} held out"
        )


def load_questions(
    source: str,
    *,
    config: Mapping[str, Any],
    revision: str | None,
    size: int,
    seed: int,
    question_field: str,
    answer_field: str,
    solution_field: str | None,
    base: Path | None = None,
) -> list[Question]:
    """Every question of ``source``, duplicates included.

    Args:
        source: "rg:TASK", "running_sum", a .jsonl or .parquet file, or "hf:OWNER/NAME".
        config: settings of a procedural source; "name" and "split" of a hub set.
        revision: of a hub set.
        size: questions to generate (procedural sources).
        seed: of a procedural source.
        question_field: column of the question (files and hub sets).
        answer_field: column of the answer.
        solution_field: column of a worked solution, where there is one.
        base: folder that a relative file name starts from; None is the current one.
    """
    fields = Fields(question_field, answer_field, solution_field)
    if source.startswith("rg:"):
        rows = read_reasoning(source.removeprefix("rg:"), config, size=size, seed=seed)
    elif source == "running_sum":
        rows = read_running_sum(config, size=size, seed=seed)
    elif source.startswith("hf:"):
        rows = read_hub(source.removeprefix("hf:"), config, revision=revision, fields=fields)
    elif source.endswith((".jsonl", ".parquet")):
        _refuse_config(source, config)
        path = (base or Path()) / Path(source).expanduser()
        read = read_jsonl if source.endswith(".jsonl") else read_parquet
        rows = read(path, fields=fields)
    else:
        raise UsageError(
            f'"{source}" names no data',
            hint='write "rg:TASK", "running_sum", a .jsonl or .parquet file, or "hf:OWNER/NAME"',
        )
    return [
        Question(question_id(row.question), row.question, row.answer, row.solution) for row in rows
    ]


def question_id(text: str) -> str:
    """16 hexadecimal digits of the text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def split(questions: Sequence[Question], held_out: float) -> Split:
    """Unique questions (the first of equals is kept), a share ``held_out`` of them set apart.

    The hash of a question alone decides its side, so it is the same in any data set, size or seed,
    and a larger share only adds to the held-out side.
    """
    unique: dict[str, Question] = {}
    for question in questions:
        unique.setdefault(question.id, question)
    sides: tuple[list[Question], list[Question]] = [], []
    for question in unique.values():
        sides[int(question.id, 16) < held_out * 2**64].append(question)
    train, apart = sides
    if not train or not apart:
        raise UsageError(
            f"no question is left {'to train on' if not train else 'to hold out'}: "
            f"{len(unique)} unique questions, held_out = {held_out:g}",
            hint="use more questions ([data].size or a wider [data.config]), "
            "or change [data].held_out",
        )
    return Split(tuple(train), tuple(apart), len(questions))


def data_hash(questions: Sequence[Question]) -> str:
    """SHA-256 over ids, answers and solutions in order: what provenance says of the data."""
    digest = hashlib.sha256()
    for question in questions:
        parts = (question.id, question.answer, question.solution or "")
        digest.update("".join(f"{part}\0" for part in parts).encode())
    return digest.hexdigest()


def _refuse_config(source: str, config: Mapping[str, Any]) -> None:
    if config:
        raise UsageError(
            f"[data.config].{next(iter(config))} has no meaning for the file {source}",
            hint="leave [data.config] out",
        )
