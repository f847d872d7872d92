"""One row of data on its way to a question, and the checks that every tabular source shares."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from tpcli.errors import UsageError

Record = tuple[str, dict[str, Any]]
"""Where a row stands, for messages, and the row itself by column."""


class Row(NamedTuple):
    """What a source says of one question."""

    question: str
    answer: str
    solution: str | None = None


class Fields(NamedTuple):
    """The columns that hold question, answer and, where there is one, a worked solution.

    ``reward_model.ground_truth`` reads a field of a struct. A question may be a list of chat turns:
    its last user turn is asked, and the recipe says what stands around it.
    """

    question: str
    answer: str
    solution: str | None

    def check(self, columns: Collection[str], where: str) -> None:
        """Refuse a source that lacks one of the columns."""
        for key, name in zip(self._fields, self, strict=True):
            if name is not None and name not in columns and name.split(".")[0] not in columns:
                raise UsageError(
                    f'{where} has no column "{name}"',
                    hint=f"set [data].{key}_field to one of {', '.join(sorted(columns))}",
                )

    def row(self, record: Mapping[str, Any], where: str) -> Row:
        """The row in ``record``; numbers that stand for a whole answer become text."""
        self.check(record.keys(), where)
        question, answer = _asked(_field(record, self.question)), _field(record, self.answer)
        solution = None if self.solution is None else _field(record, self.solution)
        if isinstance(answer, int) and not isinstance(answer, bool):
            answer = str(answer)
        if not isinstance(question, str) or not question.strip():
            raise _not_text(self.question, question, "text", where)
        if not isinstance(answer, str) or not answer.strip():
            raise _not_text(self.answer, answer, "text or a whole number", where)
        if not isinstance(solution, str | None):
            raise _not_text(str(self.solution), solution, "text", where)
        return Row(question, answer, solution)


def _field(record: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or of a field inside one; None where a struct lacks it."""
    if name in record:
        return record[name]
    value: Any = record
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _asked(question: Any) -> Any:
    """The last user turn of a chat; anything else as it is."""
    if not isinstance(question, list):
        return question
    turns = [turn for turn in question if isinstance(turn, Mapping) and turn.get("role") == "user"]
    return turns[-1].get("content") if turns else None


def _not_text(column: str, value: object, wanted: str, where: str) -> UsageError:
    found = "empty" if value == "" or value is None else f"{value!r:.40}"
    return UsageError(
        f'{where}: column "{column}" is {found}, not {wanted}',
        hint="correct that row, or name another column in [data]",
    )


def check_keys(config: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Refuse a setting in [data.config] that ``what`` does not have."""
    for key in config:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            raise UsageError(
                f"[data.config].{key}: {what} has no such setting",
                hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known))}",
            )
