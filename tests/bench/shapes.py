"""Invented questions in the shape of each set that ships: its columns, types, files and row counts.

No text of a benchmark is here. ``SHAPES`` has one entry a benchmark; ``tests.bench.test_sets`` puts
the files on a hub of its own and loads them as a user would.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

TEXT, INT, FLOAT, BOOL = pyarrow.string(), pyarrow.int64(), pyarrow.float64(), pyarrow.bool_()
TEXTS = pyarrow.list_(TEXT)
Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A row, and what has to become of it: written beside it, not computed from it.

    Attributes:
        asked: the question, without choices.
        right: the right answer; with choices, the text of the right one.
        choices: as the source has them.
    """

    row: Record
    asked: str
    right: str
    choices: tuple[str, ...] = ()


Make = Callable[[int], Case]


@dataclass(frozen=True)
class Shape:
    """How one set lies on the hub.

    Attributes:
        columns: of every row, with their types.
        files: the rows of each file, as (from, to, maker); the splits that are asked come first.
        asked: how many of the files these are.
        card: configurations of the set and their splits, as README.md maps them to files.
    """

    repository: str
    columns: dict[str, pyarrow.DataType]
    files: dict[str, tuple[int, int, Make]]
    asked: int = 1
    card: dict[str, dict[str, str]] | None = None
    gated: bool = False

    @property
    def cases(self) -> list[Case]:
        """What the benchmark asks, in order."""
        return [case for name in [*self.files][: self.asked] for case in self.of(name)]

    def of(self, name: str) -> list[Case]:
        """The rows of one file."""
        first, end, make = self.files[name]
        return [make(i) for i in range(first, end)]

    def contents(self) -> dict[str, bytes]:
        """The files of the repository."""
        found = {"README.md": _card(self.card)}
        for name in self.files:
            rows = [case.row for case in self.of(name)]
            found[name] = encode(rows, self.columns, name.rpartition(".")[2])
        return found


def encode(rows: Sequence[Record], columns: dict[str, pyarrow.DataType], ending: str) -> bytes:
    """``rows`` as a file with that ending. In CSV a list is written as Python shows it."""
    if ending == "parquet":
        sink = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), pyarrow.schema(columns)), sink)
        return sink.getvalue()
    if ending == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, [*columns], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    if ending == "json":
        return json.dumps(rows).encode()
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def save(path: Path, rows: Iterable[Record], columns: dict[str, pyarrow.DataType]) -> Path:
    """``rows`` in a file, as its name's ending says."""
    path.write_bytes(encode([*rows], columns, path.suffix[1:]))
    return path


def _card(configs: dict[str, dict[str, str]] | None) -> bytes:
    if configs is None:
        return b"---\nlicense: mit\n---\n# Invented\n"
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    return "\n".join([*lines, "---", "# Invented", ""]).encode()


# One maker a set. Braces, dollars and quotes stand where the real texts have them.


def _sum(i: int) -> str:
    return f"Let $x = \\frac{{{i}}}{{1}}$ and {{answer}} a name. Find $x + {i % 7}$."


def _aime24(i: int) -> Case:
    answer = f"{i * 33 % 1000:03d}"
    row = {"id": 60 + i, "problem": _sum(i), "solution": f"It is {answer}.", "answer": answer}
    return Case(
        {**row, "url": f"https://example.org/{i}", "year": "2024"}, asked=_sum(i), right=answer
    )


def _aime25(i: int) -> Case:
    return Case(
        {"problem": _sum(i), "answer": str(i * 31 % 1000), "id": str(i)},
        asked=_sum(i),
        right=str(i * 31 % 1000),
    )


def _hmmt(i: int) -> Case:
    answer = (str(i), f"\\frac{{{i}}}{{7}}", f"1+\\sqrt{{{i}}}, 1-\\sqrt{{{i}}}")[i % 3]
    row = {"problem_idx": i + 1, "problem": _sum(i), "answer": answer, "problem_type": ["Algebra"]}
    return Case(row, asked=_sum(i), right=answer)


def _minerva(i: int) -> Case:
    answer = (f"{i % 9 + 1}e33", "1e-5", f"\\pi/{i + 2}", f"{i}.50", f"x^{{{i}}}")[i % 5]
    return Case({"question": _sum(i), "answer": answer}, asked=_sum(i), right=answer)


def _math500(i: int) -> Case:
    answer = (f"\\frac{{{i}}}{{3}}", "\\text{even}", f"[{i}, 999)", "p - q", f"\\${i}")[i % 5]
    row = {"problem": _sum(i), "solution": f"Thus $\\boxed{{{answer}}}$.", "answer": answer}
    more = {"subject": "Algebra", "level": i % 5 + 1, "unique_id": f"test/algebra/{i}.json"}
    return Case({**row, **more}, asked=_sum(i), right=answer)


def _amc23(i: int) -> Case:
    answer = -1 if i == 17 else 27 * i
    row = {"id": i, "answer": float(answer), "url": f"https://example.org/{i}", "question": _sum(i)}
    return Case(row, asked=_sum(i), right=str(answer))


def _olympiad(i: int) -> Case:
    wrapped, right = (
        (f"${i}$", str(i)),
        (f"{i}", str(i)),
        (f"$\\frac{{1}}{{{i + 1}}}$", f"\\frac{{1}}{{{i + 1}}}"),
        (f"${i}$,$-{i}$", f"${i}$,$-{i}$"),
    )[i % 4]
    row: Record = dict.fromkeys(OLYMPIAD)
    row |= {"id": 1600 + i, "question": _sum(i), "solution": [f"So ${i}$.", "Or 'else'."]}
    row |= {"final_answer": [wrapped], "is_multiple_answer": i % 4 == 3, "language": "English"}
    return Case(row, asked=_sum(i), right=right)


def _gpqa(name: str) -> Make:
    def make(i: int) -> Case:
        asked = f'A "{name}" sample,\nnumber {i}, decays; what is left, in mg?\n\nGive the nearest.'
        choices = (f"{i}, about", f'"{i + 1}" mg', f"{i + 2} mg,\nor less", f"{i + 3}: 'no'\n")
        row = dict(zip(list(GPQA)[1:5], choices, strict=True))
        more = {"Explanation": "It is, so it is.", "Subdomain": "Decay", "Record ID": f"rec{i}"}
        return Case(
            {"Question": asked, **row, **more, "High-level domain": "Physics"},
            asked=asked,
            right=choices[0],
            choices=choices,
        )

    return make


def _mmlu_pro(i: int) -> Case:
    size = 3 + i % 8
    choices = tuple(f"choice {j}, of {i}" for j in range(size))
    right = i * 5 % size
    asked = f"Which of these is right for {i}?"
    row = {"question_id": 70 + i, "question": asked}
    more = {"options": [*choices], "answer": "ABCDEFGHIJ"[right], "answer_index": right}
    text = {"cot_content": "", "category": "law", "src": f"invented-{i}"}
    return Case({**row, **more, **text}, asked, choices[right], choices)


def _musr(kind: str, size: int) -> Make:
    def make(i: int) -> Case:
        story = f'In the {kind}, "X" and Y\'s friend met, {i} times.\n\nThen they left.'
        choices = tuple(f"Y's {j}th of {i}" if j else f'the "{i}" one' for j in range(size))
        row = {
            "narrative": story,
            "question": f"Who, in {kind}, was it?",
            "choices": str([*choices]),
        }
        right = i % size
        more = {"answer_index": right, "answer_choice": choices[right]}
        return Case({**row, **more}, f"{story}\n\n{row['question']}", choices[right], choices)

    return make


def _winogrande(i: int) -> Case:
    choices = (f"Ann{i}", f"Bea{i}")
    sentence = f"{choices[0]} thanked {choices[1]} because _ had helped."
    row = {"sentence": sentence, "option1": choices[0], "option2": choices[1]}
    return Case(
        {**row, "answer": "12"[i % 2]},
        asked=f"Which word fits the blank marked _ in this sentence?\n\n{sentence}",
        right=choices[i % 2],
        choices=choices,
    )


def _gsm8k(i: int) -> Case:
    asked = f"Kim has {i} shelves of 1,000 books and {i} more. How many books has she?"
    worked = f"She has {i}*1000=<<{i}*1000={i * 1000}>>{i * 1000}.\nThat is #1.\n#### {1001 * i:,}"
    return Case({"question": asked, "answer": worked}, asked=asked, right=f"{1001 * i:,}")


def _texts(*names: str) -> dict[str, pyarrow.DataType]:
    return dict.fromkeys(names, TEXT)


OLYMPIAD = {
    "id": INT,
    "question": TEXT,
    "solution": TEXTS,
    "final_answer": TEXTS,
    **_texts("context", "modality", "difficulty"),
    "is_multiple_answer": BOOL,
    **_texts("unit", "answer_type", "error", "question_type", "subfield", "subject", "language"),
}
GPQA = _texts(
    "Question",
    "Correct Answer",
    "Incorrect Answer 1",
    "Incorrect Answer 2",
    "Incorrect Answer 3",
    *("Explanation", "Subdomain", "High-level domain", "Record ID"),
)
ONE = "00000-of-00001.parquet"
SHAPES = {
    "aime24": Shape(
        "HuggingFaceH4/aime_2024",
        {"id": INT, **_texts("problem", "solution", "answer", "url", "year")},
        {f"data/train-{ONE}": (0, 30, _aime24)},
    ),
    "aime25": Shape(
        "math-ai/aime25", _texts("problem", "answer", "id"), {"test.jsonl": (0, 30, _aime25)}
    ),
    "hmmt25": Shape(
        "MathArena/hmmt_feb_2025",
        {"problem_idx": INT, **_texts("problem", "answer"), "problem_type": TEXTS},
        {f"data/train-{ONE}": (0, 30, _hmmt)},
    ),
    "minerva": Shape(
        "math-ai/minervamath", _texts("question", "answer"), {"test.jsonl": (0, 272, _minerva)}
    ),
    "math500": Shape(
        "HuggingFaceH4/MATH-500",
        {
            **_texts("problem", "solution", "answer", "subject"),
            "level": INT,
            "unique_id": TEXT,
        },
        {"test.jsonl": (0, 500, _math500)},
    ),
    "amc23": Shape(
        "math-ai/amc23",
        {"id": INT, "answer": FLOAT, "url": TEXT, "question": TEXT},
        {f"test-{ONE}": (0, 40, _amc23)},
    ),
    "olympiad": Shape("math-ai/olympiadbench", OLYMPIAD, {"test.parquet": (0, 674, _olympiad)}),
    "gpqa-diamond": Shape(
        "Idavidrein/gpqa",
        GPQA,
        {
            "gpqa_diamond.csv": (0, 198, _gpqa("diamond")),
            "gpqa_extended.csv": (0, 20, _gpqa("extended")),
            "gpqa_main.csv": (0, 10, _gpqa("main")),
        },
        card={
            f"gpqa_{name}": {"train": f"gpqa_{name}.csv"}
            for name in ("extended", "main", "diamond")
        },
        gated=True,
    ),
    "mmlu-pro": Shape(
        "TIGER-Lab/MMLU-Pro",
        {
            "question_id": INT,
            "question": TEXT,
            "options": TEXTS,
            "answer": TEXT,
            "answer_index": INT,
            **_texts("cot_content", "category", "src"),
        },
        {
            f"data/test-{ONE}": (0, 12_032, _mmlu_pro),
            f"data/validation-{ONE}": (20_000, 20_070, _mmlu_pro),
        },
    ),
    "musr": Shape(
        "TAUR-Lab/MuSR",
        {**_texts("narrative", "question", "choices"), "answer_index": INT, "answer_choice": TEXT},
        {
            "murder_mystery.csv": (0, 250, _musr("manor", 2)),
            "object_placements.csv": (0, 256, _musr("attic", 5)),
            "team_allocation.csv": (0, 250, _musr("team", 3)),
        },
        asked=3,
        card={
            "default": {
                "murder_mysteries": "murder_mystery.csv",
                "object_placements": "object_placements.csv",
                "team_allocation": "team_allocation.csv",
            }
        },
    ),
    "winogrande": Shape(
        "allenai/winogrande",
        _texts("sentence", "option1", "option2", "answer"),
        {
            f"winogrande_xl/validation-{ONE}": (0, 1_267, _winogrande),
            f"winogrande_xl/train-{ONE}": (2_000, 2_050, _winogrande),
            f"winogrande_xs/validation-{ONE}": (0, 20, _winogrande),
        },
        card={
            f"winogrande_{size}": {
                split: f"winogrande_{size}/{split}-*" for split in ("train", "validation")[n:]
            }
            for size, n in (("xs", 1), ("xl", 0))
        },
    ),
    "gsm8k": Shape(
        "openai/gsm8k",
        _texts("question", "answer"),
        {
            f"main/test-{ONE}": (0, 1_319, _gsm8k),
            f"main/train-{ONE}": (2_000, 2_050, _gsm8k),
            f"socratic/test-{ONE}": (3_000, 3_010, _gsm8k),
        },
        card={
            "main": {"train": "main/train-*", "test": "main/test-*"},
            "socratic": {"test": "socratic/test-*"},
        },
    ),
}
