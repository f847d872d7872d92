"""Tables of text: fitted to a terminal by leaving out the least important column, or as Markdown
and LaTeX with all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

GAP = 2
"""Spaces between two columns."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column; of two, the one with the higher ``rank`` goes first when there is no room."""

    title: str
    cells: list[str]
    rank: int
    right: bool = False

    @property
    def width(self) -> int:
        """Of its widest cell, the title included."""
        return max(len(cell) for cell in (self.title, *self.cells))


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that ``width`` characters have room for; the last one always stays."""
    kept = [*columns]
    while len(kept) > 1 and sum(c.width + GAP for c in kept) - GAP > width:
        least = max(kept, key=lambda column: column.rank)
        kept = [column for column in kept if column is not least]
    return kept


def joined(columns: Sequence[Column], row: int | None) -> str:
    """One row; None is the head."""
    cells = []
    for column in columns:
        text = column.title if row is None else column.cells[row]
        cells.append(text.rjust(column.width) if column.right else text.ljust(column.width))
    return (" " * GAP).join(cells).rstrip()


def markdown(columns: Sequence[Column]) -> str:
    """A table of GitHub's Markdown."""
    rules = ["--:" if column.right else "---" for column in columns]
    rows = [[column.title for column in columns], rules, *_rows(columns)]
    return "\n".join(f"| {' | '.join(map(_piped, row))} |" for row in rows)


def latex(columns: Sequence[Column]) -> str:
    """A tabular of booktabs."""
    kinds = "".join("r" if column.right else "l" for column in columns)
    head = " & ".join(_escaped(column.title) for column in columns)
    body = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in _rows(columns)]
    return "\n".join(
        (
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        )
    )


def _rows(columns: Sequence[Column]) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in columns), strict=True)]


def _piped(cell: str) -> str:
    return cell.replace("|", "\\|")


_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    "→": r"$\to$",
    "·": r"$\cdot$",
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in text)
