"""``tpcli eval``: a run or a model on benchmarks, with intervals, and against another."""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpcli.names import DtypeName, EngineName

if TYPE_CHECKING:
    from tpcli.jobs.evaluate import Evaluated
    from tpcli.jobs.examine import Request
    from tpcli.jobs.subject import Subject

PLAIN_INTERVAL = 60.0
"""Seconds between two lines of progress where there is no terminal."""


class Format(enum.StrEnum):
    """How the result is written."""

    table = "table"
    md = "md"
    tex = "tex"
    json = "json"


class Engine(enum.StrEnum):
    """What runs in this process."""

    transformers = "transformers"
    vllm = "vllm"


class Prompting(enum.StrEnum):
    """Whose prompt is used."""

    bench = "bench"
    recipe = "recipe"


def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN|MODEL|RECIPE]",
            help="A run, a hub id or folder, or a recipe. [the newest finished run]",
            show_default=False,
        ),
    ] = None,
    bench: Annotated[
        list[str] | None,
        typer.Option(help="Benchmarks, with commas: aime,gpqa; rg:TASK; a .toml file."),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Samples a question.")] = 8,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions a benchmark, chosen by hash. [all]")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="A run's checkpoint; 0: before training. [newest]")
    ] = None,
    vs: Annotated[
        str | None, typer.Option(metavar="RUN", help="Compare with this one, paired by question.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples and of choices' order.")] = 0,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 is greedy. [.6]")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.01, max=1.0, help="[.95]")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="0 keeps all. [20]")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest response. [the run's own, else 38912]")
    ] = None,
    thinking: Annotated[
        bool | None,
        typer.Option("--thinking/--no-thinking", help="The chat template's. [the recipe's]"),
    ] = None,
    prompt: Annotated[
        Prompting, typer.Option(help="recipe: its system message, template and examples.")
    ] = Prompting.bench,
    bench_file: Annotated[
        list[str] | None,
        typer.Option(metavar="BENCH=FILE", help="Rows of a benchmark from a file; repeatable."),
    ] = None,
    verifier: Annotated[
        str | None, typer.Option(help="In place of the benchmark's: math, reference, ...")
    ] = None,
    regrade: Annotated[
        bool, typer.Option("--regrade", help="Grade what is stored again; generate nothing.")
    ] = False,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Responses decoded at once. [by free memory]")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32 or bfloat16. [bfloat16 on a GPU]")
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="What generates; vllm needs the extra of this name.")
    ] = Engine.transformers,
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="GPUs that share the weights, with --engine vllm.")
    ] = 1,
    server: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A running vllm serve, which is given the weights."),
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to write it.")] = Format.table,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Evaluate a policy on benchmarks: avg@n, pass@k, maj@n, with 95% intervals over questions.

    Responses are stored in the run's folder, batch by batch: a repeated command answers from them,
    an interrupted one goes on. Benchmarks: tpcli bench ls.
    """
    from tpcli.cli.results import show
    from tpcli.jobs.evaluate import mirror, run
    from tpcli.jobs.examine import Request

    request = Request(
        benches=_benches(bench),
        target=target,
        files=_files(bench_file or []),
        n=n,
        limit=limit,
        step=step,
        vs=vs,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        max_tokens=max_tokens,
        thinking=thinking,
        own_prompt=prompt is Prompting.recipe,
        rows=rows,
        dtype=_dtype(dtype),
        engine=_engine(engine, server, tensor_parallel),
        server=server,
        tensor_parallel=tensor_parallel,
        verifier=verifier,
        regrade=regrade,
    )
    found = _run(request, run)
    failed = [error for error in map(mirror, _subjects(found)) if error]
    show(found, "json" if as_json else form)
    for error in failed:
        typer.echo(f"warning: MLflow is behind: {error}; later: tpcli db sync-mlflow", err=True)


def _engine(engine: Engine, server: str | None, tensor_parallel: int) -> EngineName:
    from tpcli.errors import UsageError

    if server is not None and (engine is Engine.vllm or tensor_parallel > 1):
        raise UsageError(
            "--server has an engine of its own",
            hint="leave --engine and --tensor-parallel out: vllm serve takes its own",
        )
    if tensor_parallel > 1 and engine is Engine.transformers:
        raise UsageError(
            "--tensor-parallel is vLLM's",
            hint=f"--engine vllm --tensor-parallel {tensor_parallel}",
        )
    return "vllm-server" if server is not None else engine.value


def _benches(options: Sequence[str] | None) -> tuple[str, ...]:
    from tpcli.errors import UsageError

    names = [name.strip() for option in options or () for name in option.split(",")]
    names = [name for name in names if name]
    if not names:
        raise UsageError("--bench says on what", hint="--bench aime,gpqa; tpcli bench ls has more")
    return tuple(names)


def _files(options: Sequence[str]) -> dict[str, Path]:
    from tpcli.errors import UsageError

    found = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not (equals and name and path):
            raise UsageError(f"--bench-file {option} names no file", hint="--bench-file gpqa=FILE")
        found[name] = Path(path).expanduser()
    return found


def _dtype(name: str | None) -> DtypeName | None:
    from typing import cast, get_args

    from tpcli.errors import UsageError

    if name is not None and name not in get_args(DtypeName):
        raise UsageError(
            f"--dtype {name} is not one of {', '.join(get_args(DtypeName))}",
            hint="--dtype float32",
        )
    return cast("DtypeName | None", name)


def _run(request: Request, run: Any) -> Evaluated:
    """Evaluate with progress on stderr; after Ctrl-C say what is kept."""
    from tpcli.errors import INTERRUPTED

    with _Screen() as screen:
        try:
            found: Evaluated = run(request, screen)
        except KeyboardInterrupt:
            screen.close()
            typer.echo("stopped; the same command goes on with what is missing", err=True)
            raise typer.Exit(INTERRUPTED) from None
    return found


class _Screen:
    """Progress on stderr: a bar on a terminal, else a line a minute and one a benchmark."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, speed="", visible=False)
        self._what, self._began, self._before = "", 0.0, 0
        self._told, self._line = time.monotonic(), ""

    def __enter__(self) -> _Screen:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back."""
        self._say()
        self._bar.stop()

    def fetching(self, what: str, done: float, total: float) -> None:
        """Weights or rows on their way."""
        self._say()
        self._bar.update(
            self._task, description=what, completed=done, total=total or None, visible=True
        )

    def generating(self, bench: str, done: int, asked: int, tokens: int) -> None:
        """Responses of a benchmark, their speed, and when they will be there."""
        now = time.monotonic()
        if bench != self._what:
            self._what, self._began, self._before = bench, now, done
            if done and done < asked:
                self._console.print(f"{bench}: {done} of {asked} responses were stored already")
        line = self._speed(now - self._began, done - self._before, asked - done, tokens)
        self._bar.update(
            self._task, description=bench, completed=done, total=asked, speed=line, visible=True
        )
        share = f"{done}/{asked} responses {100 * done / asked:.0f}%"
        self._line = " · ".join(part for part in (bench, share, line) if part)
        if now - self._told >= PLAIN_INTERVAL:
            self._say()

    def _say(self) -> None:
        """The last line of progress, once, where no bar shows it."""
        if self._line and self._bar.disable:
            self._told = time.monotonic()
            self._console.print(self._line)
        self._line = ""

    def _speed(self, seconds: float, fresh: int, left: int, tokens: int) -> str:
        from tpcli.cli.glyphs import duration, number

        if not fresh or seconds <= 0:
            return ""
        speed = f"{number(tokens / seconds)} tokens/s" if tokens else ""
        eta = f"eta {duration(seconds * left / fresh)}" if left else ""
        return " · ".join(part for part in (speed, eta) if part)


def _subjects(found: Evaluated) -> list[Subject]:
    return [found.subject] + ([found.other] if found.other else [])
