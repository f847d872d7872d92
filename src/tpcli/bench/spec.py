"""What a benchmark is: one TOML file that says where its questions lie and how they are asked.

The files that ship are in ``sets``; a user's own lie in ``benches/`` of their project, or anywhere.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from tpcli.errors import BenchmarkError, Fault, UsageError
from tpcli.names import OWN_VERIFIER, VerifierName
from tpcli.recipe.positions import dotted, scan

SETS = Path(__file__).parent / "sets"
OWN = Path("benches")
"""Where a project keeps benchmarks of its own."""
STEPS = "Please reason step by step, and put your final answer within \\boxed{}."
LETTER = (
    "Please reason step by step, and put your final answer (only the choice letter) within "
    "\\boxed{}."
)
Word = Annotated[str, Field(min_length=1)]


class Spec(BaseModel):
    """The keys of a benchmark's file. In templates {column} stands for a column of a row."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    title: Word
    """As tables show it."""
    group: str | None = None
    """A name that stands for all benchmarks of the group, as "aime" does for aime24 and aime25."""
    source: Annotated[str, Field(pattern=r"^(hf://[\w.-]+/[\w.-]+|file://.+|rg://\w+)$")]
    """"hf://OWNER/NAME", "file://PATH" (from this file's folder) or "rg://TASK" (reasoning-gym)."""
    config: str | None = None
    """Configuration of a hub set."""
    revision: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None = None
    """Commit of a hub set; required there, so that a score means the same next year."""
    gated: bool = False
    """The owner of the hub set lets people in one by one."""
    splits: Annotated[list[Word], Field(min_length=1)] = ["test"]
    """Splits of a hub set, one after the other."""
    count: PositiveInt | None = None
    """Questions there must be; required for a hub set. For rg://, how many to make."""
    settings: dict[str, Any] = {}
    """Settings of a reasoning-gym task."""
    kind: VerifierName | Annotated[str, Field(pattern=OWN_VERIFIER)]
    """How answers are compared; see docs/verifiers.md."""
    question: str = "{question}"
    """Template of the question."""
    answer: str | None = None
    """Template of the right answer; not for choices."""
    answer_after: str | None = None
    """The right answer is what follows the last of these marks."""
    choices: list[Word] | Word | None = None
    """A template a choice, or one column that holds them all."""
    right: int | str | None = None
    """Which choice is right: its place, or the column that holds it."""
    right_counts_from: Literal[0, 1] = 0
    """What the first place is called in that column."""
    prompt: str | None = None
    """What the user says; {question} stands for question and choices. Default by ``kind``."""
    system: str | None = None
    """System message. None leaves it to the chat template."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.source.startswith("hf://"):
            if self.revision is None:
                raise ValueError("revision is missing: pin the commit of the hub set")
            if self.count is None:
                raise ValueError("count is missing: say how many questions the hub set has")
        if (self.choices is None) != (self.right is None):
            raise ValueError("choices and right need each other")
        if (self.choices is None) == (self.answer is None) and not self.source.startswith("rg://"):
            raise ValueError("answer is missing: write answer, or choices and right")
        if self.choices is not None and self.kind != "choice":
            raise ValueError('kind must be "choice" where there are choices')
        if self.prompt is not None and self.prompt.count("{question}") != 1:
            raise ValueError("prompt must contain {question} exactly once")
        return self

    def ask(self, question: str) -> str:
        """What the user says."""
        told = LETTER if self.choices is not None else STEPS
        template = self.prompt or f"{{question}}\n\n{told}"
        return template.replace("{question}", question)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark by name. ``folder`` is where file:// starts from; ``file`` declares it."""

    name: str
    spec: Spec
    folder: Path
    file: Path | None = None

    def read_from(self, file: Path) -> Benchmark:
        """The same benchmark with its rows in a file of the user's."""
        source = f"file://{file.expanduser().resolve()}"
        spec = self.spec.model_copy(update={"source": source, "gated": False, "revision": None})
        return replace(self, spec=spec)


def shipped() -> list[Benchmark]:
    """The benchmarks that come with tpcli, by name."""
    return [read(path) for path in sorted(SETS.glob("*.toml"))]


def own() -> list[Benchmark]:
    """The benchmarks of this project: ``benches/*.toml``."""
    return [read(path) for path in sorted(OWN.glob("*.toml"))]


def find(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks that are named, in order, each once.

    Args:
        names: a benchmark, a group, "rg:TASK", "rg:TASK?setting=value&..." or a .toml file.

    Raises:
        UsageError: there is none of that name; the hint has the nearest.
        BenchmarkError: a file is faulty.
    """
    found: dict[str, Benchmark] = {}
    for name in names:
        for one in _find(name):
            found.setdefault(one.name, one)
    return [*found.values()]


def short(bench: Benchmark) -> str:
    """The shortest name: the group's, where the benchmark is alone in it."""
    group = bench.spec.group
    alone = [one.name for one in _every().values() if one.spec.group == group] == [bench.name]
    return group if group and alone else bench.name


def members(name: str) -> list[str]:
    """The benchmarks of a group by name; of a benchmark, itself."""
    return [one.name for one in _find(name)]


def _find(name: str) -> list[Benchmark]:
    if name.startswith("rg:"):
        return [_reasoning(name)]
    if name.endswith(".toml"):
        return [read(Path(name))]
    every = _every()
    if name in every:
        return [every[name]]
    group = [one for one in every.values() if one.spec.group == name]
    if group:
        return group
    groups = {one.spec.group for one in every.values() if one.spec.group}
    near = get_close_matches(name, [*every, *groups], n=3, cutoff=0.5)
    raise UsageError(
        f"there is no benchmark {name or '(empty)'}",
        hint=f"did you mean {' or '.join(near)}?" if near else "tpcli bench ls lists them",
    )


def _every() -> dict[str, Benchmark]:
    """Shipped and own benchmarks; an own one takes the place of a shipped one of its name."""
    return {one.name: one for one in (*shipped(), *own())}


def _reasoning(name: str) -> Benchmark:
    """ "rg:TASK?setting=value": the answer compared as text."""
    task, _, query = name.removeprefix("rg:").partition("?")
    if not re.fullmatch(r"\w+", task):
        raise UsageError(f"{name} names no task", hint="write rg:TASK, as in rg:chain_sum")
    settings = {key: _literal(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    spec = Spec(
        title=task.replace("_", " "), source=f"rg://{task}", kind="exact", settings=settings
    )
    return Benchmark(name, spec, Path())


def _literal(value: str) -> Any:
    """A TOML value, or else text."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except ValueError:
        return value


def read(path: Path) -> Benchmark:
    """The benchmark that a file declares.

    Raises:
        BenchmarkError: every fault of the file with its line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}", hint="tpcli bench ls lists names") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", hint="save it as UTF-8") from None
    except RecursionError:
        raise BenchmarkError.one(str(path), "arrays or tables stand too deep") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        raise BenchmarkError([_broken(path, text, str(error))]) from None
    try:
        spec = Spec.model_validate(data)
    except ValidationError as error:
        raise BenchmarkError(_faults(error, text, path)) from None
    return Benchmark(path.stem, spec, path.parent, path)


def _broken(path: Path, text: str, message: str) -> Fault:
    """tomllib's message, with the line taken out of it."""
    line = None
    if at := re.search(r" \(at line (\d+), (column \d+)\)", message):
        line, message = int(at[1]), f"{message[: at.start()]}, at {at[2]}"
    elif message.endswith(" (at end of document)"):
        line = len(text.rstrip().splitlines()) or 1
    return Fault(str(path), line, "", f"not TOML: {message}")


def _faults(error: ValidationError, text: str, path: Path) -> list[Fault]:
    lines = scan(text)
    found: dict[str, Fault] = {}
    for one in error.errors(include_url=False):
        key = str(one["loc"][0]) if one["loc"] else ""
        message, hint = one["msg"].removeprefix("Value error, "), ""
        if one["type"] == "extra_forbidden":
            near = get_close_matches(key, Spec.model_fields, n=1)
            message = "unknown key"
            hint = f"did you mean {near[0]}?" if near else f"keys: {', '.join(Spec.model_fields)}"
        elif one["type"] == "missing":
            message = "is required"
        elif key == "kind":
            words = get_args(VerifierName)
            near = get_close_matches(str(one["input"]), words, n=1)
            message = f'"{one["input"]}" is not one of {", ".join(words)} or MODULE:FUNCTION'
            hint = f'did you mean "{near[0]}"?' if near else ""
        elif key:
            message = f"{json.dumps(one['input'], ensure_ascii=False, default=str)}: {message}"
        place = (key,) if key else ()
        found.setdefault(key, Fault(str(path), lines.get(place), dotted(place), message, hint))
    return [*found.values()]
