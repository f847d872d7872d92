"""From a benchmark to its questions: rows loaded, choices shuffled, right answers cleaned."""

from __future__ import annotations

import ast
import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from tpcli.bench.spec import Benchmark, Spec, short
from tpcli.data import files, hub
from tpcli.data.questions import question_id
from tpcli.data.reasoning import read_reasoning
from tpcli.data.rows import Record
from tpcli.errors import OfflineError, TpcliError, UsageError

REASONING = 100
"""Questions of an rg: benchmark that names no number."""
HELD_OUT = 0.1
"""Share of an rg: task's questions that benchmarks take, by hash: the default of [data].held_out,
so that a run with this share or a larger one has trained on none of them."""
TRIES = 40
"""Questions made for each one wanted, at most, before an rg: task counts as exhausted."""
_COLUMN = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: hash of the question as the source has it; the same in every run and version.
        question: the question with its choices, as the source has it.
        text: the same as the benchmark asks it: all that the user says.
        gold: the right answer; the letter of the right choice.
        order: for choices, the place in the source of each one shown; None without choices.
    """

    id: str
    question: str
    text: str
    gold: str
    order: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The questions of a benchmark, and which edition of it they are.

    Attributes:
        revision: the hub commit, the SHA-256 of a file, or the generator and its version.
        sha256: over ids, texts and answers, in order.
        made: questions made to find these (rg: tasks), duplicates included.
    """

    items: tuple[Item, ...]
    revision: str
    sha256: str
    made: int | None = None


def load(bench: Benchmark, *, seed: int) -> Loaded:
    """Every question of ``bench``.

    Args:
        seed: of the order of choices; each item's own depends on this, the benchmark and its id.

    Raises:
        OfflineError: its rows would have to be downloaded, and cannot be.
        UsageError: the rows are not what the benchmark declares.
    """
    spec, made = bench.spec, None
    scheme, _, place = spec.source.partition("://")
    if scheme == "hf":
        records: Iterator[Record] = iter(_hub(bench, place))
        revision = spec.revision or ""
    elif scheme == "file":
        path = _file(bench, place)
        records = files.records(path)
        revision = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    else:
        rows, made = _reasoning(spec, place)
        records, revision = iter(rows), _generator()
    items = _distinct([_item(bench, spec, where, record, seed) for where, record in records])
    _check_count(bench, len(items))
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.id}\0{item.text}\0{item.gold}\0".encode())
    return Loaded(items, revision, digest.hexdigest(), made)


def first(loaded: Loaded, limit: int | None) -> tuple[Item, ...]:
    """All items, or the ``limit`` with the smallest ids: a sample that no order of rows biases."""
    if limit is None or limit >= len(loaded.items):
        return loaded.items
    chosen = {item.id for item in sorted(loaded.items, key=lambda item: item.id)[:limit]}
    return tuple(item for item in loaded.items if item.id in chosen)


# Where rows come from


def _hub(bench: Benchmark, name: str) -> Iterator[Record]:
    spec = bench.spec
    try:
        for split in spec.splits:
            table = hub.hub_split(name, config=spec.config, split=split, revision=spec.revision)
            yield from table.records
    except OfflineError as error:
        raise OfflineError(
            f"{bench.name} cannot be loaded: the hub cannot be reached, and {name} is not in its "
            "cache",
            hint=f"give the rows yourself: --bench-file {short(bench)}=FILE (.jsonl, .json, .csv "
            "or .parquet)",
        ) from error
    except hub.GatedError as error:
        raise hub.GatedError(
            f"{bench.name} is gated: the hub gives {name} only to those whom its owner has let in",
            hint=f"ask at huggingface.co/datasets/{name}, then log in with `hf auth login` or set "
            f"HF_TOKEN; or --bench-file {short(bench)}=FILE",
        ) from error
    except TpcliError as error:
        raise UsageError(
            f"{bench.name}: {error.message}",
            hint="check source, config, revision and splits: tpcli bench show " + bench.name,
        ) from error


def _file(bench: Benchmark, place: str) -> Path:
    path = bench.folder / Path(place).expanduser()
    if not path.is_file():
        raise UsageError(
            f"{bench.name}: there is no file {path}",
            hint="file:// starts from the folder of the benchmark's own file",
        )
    return path


def _reasoning(spec: Spec, task: str) -> tuple[list[Record], int]:
    """Different questions of the held-out side, as many as are wanted, and how many were made."""
    wanted = spec.count or REASONING
    found: dict[str, Record] = {}
    made, size = 0, 4 * wanted
    while len(found) < wanted and made < TRIES * wanted:
        # Item i depends on seed + i alone: the next piece goes on where the last one ended.
        for row in read_reasoning(task, spec.settings, size=size, seed=made):
            made += 1
            key = question_id(row.question)
            if int(key, 16) < HELD_OUT * 2**64 and len(found) < wanted:
                found.setdefault(
                    key, (f"rg:{task}", {"question": row.question, "answer": row.answer})
                )
    if not found:
        raise UsageError(
            f"rg:{task} has no question on the held-out side",
            hint="widen its settings, as in rg:chain_sum?max_terms=4: it has too few questions",
        )
    return [*found.values()], made


def _generator() -> str:
    from importlib.metadata import version

    return f"reasoning-gym {version('reasoning-gym')}"


def _check_count(bench: Benchmark, found: int) -> None:
    wanted = bench.spec.count
    if wanted is None or wanted == found:
        return
    hints = {
        "hf": "another edition is another benchmark: correct count and revision together",
        "file": "give the whole set",
        "rg": "lower count, or widen settings: the task has too few questions",
    }
    raise UsageError(
        f"{bench.name} must have {wanted:,} questions, and {bench.spec.source} has {found:,}",
        hint=hints[bench.spec.source.partition("://")[0]],
    )


# From a row to an item


def _item(bench: Benchmark, spec: Spec, where: str, record: dict[str, Any], seed: int) -> Item:
    question = _filled(spec.question, record, where, bench)
    if spec.choices is None:
        gold = _answer(spec, record, where, bench)
        return Item(question_id(f"{question}\0{gold}"), question, spec.ask(question), gold)
    choices, right = _choices(spec, record, where, bench)
    key = question_id("\0".join((question, *choices)))
    order = [*range(len(choices))]
    digest = hashlib.sha256(f"{bench.name}\0{key}\0{seed}".encode()).digest()
    random.Random(int.from_bytes(digest)).shuffle(order)
    lines = [f"{ascii_uppercase[i]}. {choices[place].strip()}" for i, place in enumerate(order)]
    shown = "\n".join((f"{question}\n", *lines))
    gold = ascii_uppercase[order.index(right)]
    return Item(key, shown, spec.ask(shown), gold, tuple(order))


def _answer(spec: Spec, record: dict[str, Any], where: str, bench: Benchmark) -> str:
    answer = _filled(spec.answer or "{answer}", record, where, bench)
    if spec.answer_after is not None:
        _, mark, answer = answer.rpartition(spec.answer_after)
        if not mark:
            raise UsageError(
                f"{where}: the answer of {bench.name} has no {spec.answer_after}",
                hint=f"its right answer stands after {spec.answer_after}",
            )
    answer = _uncelled(_bare(answer), spec.kind)
    if not answer:
        raise UsageError(f"{where}: the right answer is empty", hint="correct that row")
    return answer


def _uncelled(answer: str, kind: str) -> str:
    """The answer as other files have it, where a CSV holds a list or 27.0: there all is text."""
    if kind == "int" and re.fullmatch(r"-?\d+\.0+", answer):
        return answer.partition(".")[0]
    if kind == "math" and answer.startswith(("['", '["')):
        answers = _literal_list(answer)
        return answer if answers is None else ", ".join(map(_bare, answers))
    return answer


def _bare(answer: str) -> str:
    """Without white space around it, nor the one pair of dollar signs that some sets write."""
    answer = answer.strip()
    if len(answer) > 2 and answer[0] == answer[-1] == "$" and answer.count("$") == 2:
        return answer[1:-1].strip()
    return answer


def _choices(
    spec: Spec, record: dict[str, Any], where: str, bench: Benchmark
) -> tuple[list[str], int]:
    """The choices as the source has them, and the place of the right one."""
    assert spec.choices is not None
    assert spec.right is not None
    if isinstance(spec.choices, list):
        choices = [_filled(template, record, where, bench) for template in spec.choices]
    else:
        choices = _listed(_value(spec.choices.strip("{}"), record, where, bench), where)
    told, right = spec.right, -1
    if isinstance(told, int):
        right = told
    else:
        column = told.strip("{}")
        told = _text(_value(column, record, where, bench), column, where)
        with suppress(ValueError):  # no number is no place
            right = int(told) - spec.right_counts_from
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise UsageError(
            f"{where} has {len(choices)} choice{'s' if len(choices) != 1 else ''}, and "
            f"{bench.name} needs 2 to {len(ascii_uppercase)}",
            hint="correct that row: a list in a CSV reads ['one', 'two']",
        )
    if not 0 <= right < len(choices):
        raise UsageError(
            f"{where}: of {len(choices)} choices, {bench.name} calls {told!r} the right one",
            hint="correct that row, or right and right_counts_from",
        )
    return choices, right


def _listed(value: Any, where: str) -> list[str]:
    """A list, or a Python list written as text."""
    choices = _literal_list(value) if isinstance(value, str) else _texts(value)
    if choices is None:
        raise UsageError(
            f"{where}: the choices are no list of texts", hint="correct that row, or choices"
        )
    return choices


def _literal_list(text: str) -> list[str] | None:
    """The texts of a Python list of texts. It is read as a literal, never run."""
    try:
        return _texts(ast.literal_eval(text.strip()))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _texts(value: Any) -> list[str] | None:
    is_list = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
    return [*value] if is_list else None


def _filled(template: str, record: dict[str, Any], where: str, bench: Benchmark) -> str:
    """The template with the values of the row in place of {column}."""

    def put(match: re.Match[str]) -> str:
        return _text(_value(match[1], record, where, bench), match[1], where)

    return _COLUMN.sub(put, template)


def _value(column: str, record: dict[str, Any], where: str, bench: Benchmark) -> Any:
    if column in record:
        return record[column]
    raise UsageError(
        f'{where} has no column "{column}", which {bench.name} needs',
        hint=f"it has {', '.join(sorted(record))}; see tpcli bench show {bench.name}",
    )


def _text(value: Any, column: str, where: str) -> str:
    """A value as text: 27.0 is 27, and several answers are separated by commas."""
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return ", ".join(_bare(one) for one in value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, float) and math.isfinite(value):
        value = repr(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise UsageError(
            f'{where}: column "{column}" is {value!r:.40}, not text or a number',
            hint="correct that row, or name another column",
        )
    return str(value)


def _distinct(items: Sequence[Item]) -> tuple[Item, ...]:
    """Items with ids of their own: the second of equal questions is ...-2."""
    seen: Counter[str] = Counter()
    found = []
    for item in items:
        seen[item.id] += 1
        again = seen[item.id]
        name = item.id if again == 1 else f"{item.id}-{again}"
        found.append(replace(item, id=name))
    return tuple(found)
