"""``tpcli board``: runs and models on benchmarks, mathematics and the rest, with their averages."""

from __future__ import annotations

import csv
import enum
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from tpcli.cli.columns import Column
    from tpcli.jobs.board import Board, Cell

NONE = "–"
LETTERS = "ᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ"
"""Marks of what was measured otherwise; their plain letters are in ``PLAIN``."""
PLAIN = dict(zip(LETTERS, "abcdefghijklmnoprstuvwxyz", strict=True))
BEST, END = "\ue000", "\ue001"
"""Around the best cell of a column until the table is written; in no font and in no name."""
AVERAGES = ("mathematics", "others")


class Format(enum.StrEnum):
    """How the board is written."""

    table = "table"
    md = "md"
    csv = "csv"
    tex = "tex"
    json = "json"


def board(
    bench: Annotated[
        list[str] | None,
        typer.Option(help="Benchmarks and groups, with commas: aime,gpqa. [all evaluated]"),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD", help="Only these: an id, a name (with or without seed), a tag; commas."
        ),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.table,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Rank runs and models by their results on benchmarks: avg@n in %, mean ± sd over seeds.

    Models come first. Results that were sampled or graded otherwise than most are marked, and no
    best of a column.
    """
    from tpcli.jobs import board as job

    found = job.board(_words(bench), _words(run))
    if as_json or form is Format.json:
        typer.echo(json.dumps(record(found), ensure_ascii=False, indent=2))
    elif not found.rows:
        names = ",".join(_words(bench)) or "aime,gpqa"
        typer.echo(f"nothing was evaluated on the whole of a benchmark: tpcli eval --bench {names}")
    elif form is Format.csv:
        typer.echo(as_csv(found), nl=False)
    elif form is Format.table:
        _show(found)
    else:
        typer.echo(written(found, form))


def _words(options: Sequence[str] | None) -> list[str]:
    words = [word.strip() for option in options or () for word in option.split(",")]
    return [word for word in words if word]


# What the cells say


@dataclass(frozen=True, slots=True)
class _Head:
    """A column of numbers: a benchmark, or one of ``AVERAGES``."""

    key: str
    title: str


def _heads(found: Board) -> list[_Head]:
    """Each kind of benchmarks, then its average where there is more than one."""
    heads = []
    for key in AVERAGES:
        benches = found.of(mathematics=key == "mathematics")
        for one in benches:
            n = "" if _common_n(found) or not one.common else f"@{one.common.n}"
            heads.append(_Head(one.bench, f"{one.short}{'*' * one.general}{n}"))
        if len(benches) > 1:
            heads.append(_Head(key, "avg"))
    return heads


def _common_n(found: Board) -> int | None:
    """Samples a question, where all benchmarks have the same."""
    counts = {one.common.n for one in found.headings if one.common}
    return counts.pop() if len(counts) == 1 else None


def columns_of(found: Board) -> tuple[list[Column], list[str]]:
    """The table, its best cells between ``BEST`` and ``END``, and the footnotes."""
    from tpcli.cli.columns import Column
    from tpcli.jobs.board import cell_of

    marks = dict[tuple[str, ...], str]()
    columns = [Column("policy", [row.label for row in found.rows], 0)]
    if any(len(row.runs) > 1 for row in found.rows):
        seeds = [str(len(row.runs)) if row.runs else NONE for row in found.rows]
        columns.append(Column("seeds", seeds, 1, right=True))
    if any(row.runs for row in found.rows):
        columns.append(Column("step", [_steps(row.steps) for row in found.rows], 99, right=True))
    for place, head in enumerate(_heads(found), start=2):
        best = found.best(head.key)
        cells = []
        for row in found.rows:
            cell = cell_of(row, head.key)
            text = _cell(cell, len(row.runs), marks)
            is_best = cell is not None and not cell.differs and _tenths(cell) == _tenths(best)
            cells.append(f"{BEST}{text}{END}" if is_best else text)
        columns.append(Column(head.title, cells, 1 if head.key in AVERAGES else place, right=True))
    notes = [f"{mark} {'; '.join(differs)}" for differs, mark in marks.items()]
    return columns, [*notes, *_notes(found)]


def _tenths(value: Cell | float | None) -> str:
    """What is printed: equal ones are equally good."""
    if value is None:
        return NONE
    return f"{100 * (value if isinstance(value, float) else value.mean):.1f}"


def _cell(cell: Cell | None, runs: int, marks: dict[tuple[str, ...], str]) -> str:
    if cell is None:
        return NONE
    text = _tenths(cell)
    if cell.sd is not None:
        text += f" ± {100 * cell.sd:.1f}"
    if runs > 1 and cell.seeds < runs:
        text += f" ({cell.seeds})"
    if cell.differs:
        text += marks.setdefault(cell.differs, _mark(len(marks)))
    return text


def _mark(place: int) -> str:
    more, letter = divmod(place, len(LETTERS))
    return LETTERS[letter] * (more + 1)


def _steps(steps: Sequence[int]) -> str:
    return "–".join(str(step) for step in sorted({*steps[:1], *steps[-1:]})) or NONE


def _notes(found: Board) -> list[str]:
    notes = [note for row in found.rows for note in row.notes]
    if any(one.general for one in found.headings):
        notes.append("* outside mathematics")
    if any(0 < cell.seeds < len(row.runs) for row in found.rows for cell in row.cells.values()):
        notes.append("in brackets: seeds, where not all of the row have the benchmark")
    nobody = [one.bench for one in found.headings if one.common is None]
    if nobody:
        notes.append(f"nobody was evaluated on {', '.join(nobody)}")
    return notes


def _caption(found: Board) -> str:
    n = _common_n(found)
    spread = any(cell.sd is not None for row in found.rows for cell in row.cells.values())
    return f"avg@{n or 'n'} in %" + (", mean ± standard deviation over seeds" if spread else "")


# How it is written


def _show(found: Board) -> None:
    from rich.console import Console
    from rich.text import Text

    from tpcli.cli.columns import Column, fitting

    console = Console(highlight=False)
    columns, notes = columns_of(found)
    bare = [Column(c.title, [_bare(cell) for cell in c.cells], c.rank, c.right) for c in columns]
    kept = fitting(bare, console.width)
    places = [place for place, one in enumerate(bare) if any(one is column for column in kept)]
    console.print(Text(_caption(found), "dim"))
    console.print(_line(kept, None, [False] * len(kept)), soft_wrap=True)
    for row in range(len(found.rows)):
        best = [BEST in columns[place].cells[row] for place in places]
        console.print(_line(kept, row, best), soft_wrap=True)
    left = [column.title for column in bare if not any(column is one for one in kept)]
    if left:
        notes.append(f"no room for {', '.join(left)}: --format md has all")
    for note in notes:
        typer.secho(note, err=True, dim=True)


def _line(columns: Sequence[Column], row: int | None, best: Sequence[bool]) -> Text:
    from rich.text import Text

    from tpcli.cli.columns import GAP

    line = Text()
    for column, bold in zip(columns, best, strict=True):
        cell = column.title if row is None else column.cells[row]
        padded = cell.rjust(column.width) if column.right else cell.ljust(column.width)
        line.append(padded, "dim" if row is None else "bold" if bold else "")
        line.append(" " * GAP)
    line.rstrip()
    return line


def _bare(cell: str) -> str:
    return cell.replace(BEST, "").replace(END, "")


def written(found: Board, form: Format) -> str:
    """Markdown or LaTeX, with the caption and the footnotes."""
    from tpcli.cli import columns as tables

    columns, notes = columns_of(found)
    if form is Format.md:
        text = tables.markdown(columns).replace(BEST, "**").replace(END, "**")
        return "\n\n".join([_caption(found), text, *notes])
    text = tables.latex(columns).replace(BEST, r"\textbf{").replace(END, "}")
    below = [re.sub(r"([&%$#_{}])", r"\\\1", note) for note in notes]
    lines = [f"% {_caption(found)}", text, *(rf"\\ \footnotesize {note}" for note in below)]
    return "".join(f"$^{{{PLAIN[char]}}}$" if char in PLAIN else char for char in "\n".join(lines))


def as_csv(found: Board) -> str:
    """A line a row; accuracies and deviations in %, empty where there is none."""
    from tpcli.jobs.board import cell_of

    heads = _heads(found)
    names = [f"avg {head.key}" if head.key in AVERAGES else head.key for head in heads]
    parts = [f"{name}{part}" for name in names for part in ("", " sd", " seeds", " differs")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["policy", "runs", "seeds", "steps", *parts])
    for row in found.rows:
        cells = [part for head in heads for part in _parts(cell_of(row, head.key))]
        ids, seeds, steps = (" ".join(map(str, x)) for x in (row.runs, row.seeds, row.steps))
        writer.writerow([row.label, ids, seeds, steps, *cells])
    return out.getvalue()


def _parts(cell: Cell | None) -> list[Any]:
    if cell is None:
        return [""] * 4
    spread = "" if cell.sd is None else f"{100 * cell.sd:.4f}"
    return [f"{100 * cell.mean:.4f}", spread, cell.seeds, "; ".join(cell.differs)]


def record(found: Board) -> dict[str, Any]:
    """The board as JSON; accuracies in [0, 1]."""
    benches = [
        {
            "bench": one.bench,
            "mathematics": one.mathematics,
            "general": one.general,
            "measured": one.common.facts() if one.common else None,
        }
        for one in found.headings
    ]
    return {"benches": benches, "rows": [asdict(row) for row in found.rows]}
