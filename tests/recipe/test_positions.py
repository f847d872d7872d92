"""The line of every key: a table of hand-counted cases, then generated documents."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpcli.recipe.positions import KeyPath, dotted, scan

CASES: list[tuple[str, str, dict[KeyPath, int]]] = [
    ("nothing", "", {}),
    ("only a comment", "# [a]\n# b = 1\n", {}),
    ("top level", "a = 1\n\n  b = 2", {("a",): 1, ("b",): 3}),
    ("a table", "[t]\na = 1\n", {("t",): 1, ("t", "a"): 2}),
    ("spaces in a header", "\n[ t . u ]\na=1\n", {("t",): 2, ("t", "u"): 2, ("t", "u", "a"): 3}),
    (
        "a table's own header wins over a longer one before it",
        "[t.u]\nx = 1\n[t]\ny = 2\n",
        {("t", "u"): 1, ("t", "u", "x"): 2, ("t",): 3, ("t", "y"): 4},
    ),
    ("dotted keys", "a.b = 1\na . c = 2\n", {("a",): 1, ("a", "b"): 1, ("a", "c"): 2}),
    (
        "quoted keys",
        "\"a.b\" = 1\n'c d' = 2\n\"e\\\"f\" = 3\n\"\\u00e9\\U0001F600\" = 4\n\"\" = 5\n",
        {("a.b",): 1, ("c d",): 2, ('e"f',): 3, ("é😀",): 4, ("",): 5},
    ),
    ("digits and dashes", "3.1-4 = 0\n", {("3",): 1, ("3", "1-4"): 1}),
    (
        "arrays of tables",
        "[[t]]\na = 1\n[[t]]\na = 2\n[t.u]\nb = 3\n[[t.v]]\nc = 4\n",
        {
            ("t",): 1,
            ("t", 0): 1,
            ("t", 0, "a"): 2,
            ("t", 1): 3,
            ("t", 1, "a"): 4,
            ("t", 1, "u"): 5,
            ("t", 1, "u", "b"): 6,
            ("t", 1, "v"): 7,
            ("t", 1, "v", 0): 7,
            ("t", 1, "v", 0, "c"): 8,
        },
    ),
    (
        "an inline table",
        "a = { b = 1, c.d = \"}\", 'e' = [2] } # }\nf = 3\n",
        {
            ("a",): 1,
            ("a", "b"): 1,
            ("a", "c"): 1,
            ("a", "c", "d"): 1,
            ("a", "e"): 1,
            ("a", "e", 0): 1,
            ("f",): 2,
        },
    ),
    (
        "an array over lines, with comments that look like keys",
        "a = [ # b = 1 ]\n  1,\n  # c = 2\n  { d = 3 },\n]\ne = 4\n",
        {("a",): 1, ("a", 0): 2, ("a", 1): 4, ("a", 1, "d"): 4, ("e",): 6},
    ),
    ("an empty array and table", "a = []\nb = {}\nc = [\n]\nd = 1\n", {
        ("a",): 1, ("b",): 2, ("c",): 3, ("d",): 5,
    }),
    (
        "multi-line strings that hold keys, headers and quotes",
        'a = """\n[t]\nb = 1\\"""\n""c\n"""""\nd = \'\'\'\ne = "2"\'\'\n\'\'\'\nf = 3\n',
        {("a",): 1, ("d",): 6, ("f",): 9},
    ),
    ("strings that end in a backslash", "a = '\\'\nb = \"\\\\\"\nc = 1\n", {
        ("a",): 1, ("b",): 2, ("c",): 3,
    }),
    ("a hash in a string", 'a = "#" # "\nb = 1\n', {("a",): 1, ("b",): 2}),
    ("dates and numbers", "a = 1979-05-27 07:32:00 # x\nb = 1e-5\nc = -inf\n", {
        ("a",): 1, ("b",): 2, ("c",): 3,
    }),
    ("line ends of Windows", 'a = 1\r\n[t]\r\nb = """\r\n"""\r\nc = 2\r\n', {
        ("a",): 1, ("t",): 2, ("t", "b"): 3, ("t", "c"): 5,
    }),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_lines(text: str, expected: dict[KeyPath, int]) -> None:
    tomllib.loads(text)  # the case itself is TOML
    assert scan(text) == expected


KEYS = st.text("ab.\"'\\ #=[]{}é\t-1", max_size=4)
SCALARS = st.sampled_from(
    ["1", "-2.5e3", "true", "nan", "1979-05-27 07:32:00Z", '"]} # ="', "'[x] = \"'"]
) | st.sampled_from(['"""\n[t]\nk = 1\n\\""" """', "'''\n]]\n#'''", '"\\\\"', '""""a"""""'])
NOISE = st.sampled_from(["", " ", "\t", "\n", "\n# k = [ \" ' }\n", "#\n\n"])


def _quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t") + '"'


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[KeyPath, int]]:
    """A TOML text, and where its keys stand by construction."""
    text, lines = "", dict[KeyPath, int]()

    def here() -> int:
        return text.count("\n") + 1

    def value(path: KeyPath, depth: int) -> None:
        nonlocal text
        kind = draw(st.integers(0, 3 if depth else 0))
        if kind <= 1:
            text += draw(SCALARS)
        elif kind == 2:
            text += "["
            for index in range(draw(st.integers(0, 3))):
                text += draw(NOISE)
                lines[*path, index] = here()
                value((*path, index), depth - 1)
                text += draw(NOISE) + "," + draw(NOISE)
            text += "]"
        else:
            text += "{"
            for index, key in enumerate(draw(st.lists(KEYS, max_size=3, unique=True))):
                text += ", " if index else " "
                pair((*path, key), depth - 1)
            text += " }"

    def pair(path: KeyPath, depth: int) -> None:
        nonlocal text
        lines[path] = here()
        text += f"{_quoted(str(path[-1]))} = "
        value(path, depth)

    for name in draw(st.lists(KEYS, max_size=3, unique=True)):
        text += draw(NOISE.filter(lambda noise: noise == "" or noise.endswith("\n")))
        repeats = draw(st.integers(0, 2))  # 0: a plain table
        for element in range(max(1, repeats)):
            table: KeyPath = (name, element) if repeats else (name,)
            lines.setdefault((name,), here())
            lines.setdefault(table, here())
            text += f"[[{_quoted(name)}]]\n" if repeats else f"[ {_quoted(name)} ] # c\n"
            for key in draw(st.lists(KEYS, max_size=3, unique=True)):
                pair((*table, key), 2)
                text += draw(st.sampled_from(["\n", " # ]\n", "\n\n"]))
    return text, lines


@given(documents())
def test_generated_documents(document: tuple[str, dict[KeyPath, int]]) -> None:
    text, lines = document
    assert scan(text) == lines
    assert scan(text.replace("\n", "\r\n")) == lines
    assert set(lines) == set(_paths(tomllib.loads(text)))


def _paths(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [p for key, inner in items for p in ((*path, key), *_paths(inner, (*path, key)))]


@given(st.text("a=[]{}\"'\\#.,\n 1"))
def test_the_scan_ends_on_any_text(text: str) -> None:
    scan(text)


def test_dotted() -> None:
    assert dotted(("data", "examples", 0, "question")) == "data.examples[0].question"
    assert dotted(("a.b", "c d", "e-f")) == '"a.b"."c d".e-f'
