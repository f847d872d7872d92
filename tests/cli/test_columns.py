"""Tables of text: what is dropped where there is no room, and what Markdown and LaTeX need."""

from __future__ import annotations

import pytest

from tpcli.cli.columns import Column, fitting, joined, latex, markdown

TABLE = [
    Column("bench", ["aime24", "gpqa"], 0),
    Column("avg@8", [".5", "1"], 1, right=True),
    Column("tokens", ["1234", "–"], 8, right=True),
    Column("maj@8", ["", "0"], 6, right=True),
]


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (28, ["bench", "avg@8", "tokens", "maj@8"]),  # 6 + 5 + 6 + 5, and three gaps of 2
        (27, ["bench", "avg@8", "maj@8"]),
        (20, ["bench", "avg@8", "maj@8"]),
        (19, ["bench", "avg@8"]),
        (12, ["bench"]),
        (1, ["bench"]),
    ],
)
def test_the_highest_rank_goes_first_and_one_column_stays(width: int, titles: list[str]) -> None:
    assert [column.title for column in fitting(TABLE, width)] == titles


def test_rows_line_up() -> None:
    assert joined(TABLE, None) == "bench   avg@8  tokens  maj@8"
    assert joined(TABLE, 0) == "aime24     .5    1234"
    assert joined(TABLE, 1) == "gpqa        1       –      0"


def test_markdown() -> None:
    table = [Column("a|b", ["x|y"], 0), Column("n", ["1"], 1, right=True)]
    assert markdown(table) == "| a\\|b | n |\n| --- | --: |\n| x\\|y | 1 |"


def test_latex() -> None:
    table = [
        Column("bench", ["rg:a_b?x=1&y", "50%"], 0),
        Column("Δ", ["−.5", "~^\\{#$}"], 1, right=True),
    ]
    assert latex(table).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"bench & $\Delta$ \\",
        r"\midrule",
        r"rg:a\_b?x=1\&y & $-$.5 \\",
        r"50\% & \textasciitilde{}\textasciicircum{}\textbackslash{}\{\#\$\} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
