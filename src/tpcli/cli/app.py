"""The ``tpcli`` command: every subcommand, and what the user sees when one fails.

The modules registered here load nothing heavy; each imports its job inside the command.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tpcli import __version__
from tpcli.cli import (
    ablate,
    analyse,
    bench,
    board,
    compare,
    db,
    doctor,
    evaluate,
    lineage,
    logs,
    recipe,
    replay,
    runs,
    schedule,
    stop,
    train,
)
from tpcli.errors import BUG, INTERRUPTED, OK, RecipeError, TpcliError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # drawing boxes would double the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tpcli {__version__}")
        raise typer.Exit


@app.callback()
def tpcli(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train language models with verifiable rewards, and schedule which tokens learn when."""


app.command("train")(train.train)
app.command("resume")(train.resume)
app.command("rerun")(lineage.rerun)
app.command("fork")(lineage.fork)
app.command("reproduce")(lineage.reproduce)
app.add_typer(runs.app, name="runs")
app.command("logs")(logs.logs)
app.command("stop")(stop.stop)
app.command("ablate")(ablate.ablate)
app.command("eval")(evaluate.evaluate)
app.add_typer(bench.app, name="bench")
app.command("board")(board.board)
app.command("compare")(compare.compare)
app.command("analyse")(analyse.analyse)
app.command("replay")(replay.replay)
app.add_typer(recipe.app, name="recipe")
app.add_typer(schedule.app, name="schedule")
app.add_typer(db.app, name="db")
app.command("doctor")(doctor.doctor)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the ``tpcli`` script."""
    args = list(sys.argv[1:] if argv is None else argv)
    sys.exit(_run(args))


def _run(args: list[str]) -> int:
    """Carry out one command; what fails is told, and becomes an exit code."""
    as_json = "--json" in args
    try:
        code = typer.main.get_command(app).main(args, prog_name="tpcli", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except TpcliError as error:
        _tell(error.kind, error.message, error.hint, as_json, error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:
        # Typer's own refusals; the module of their class differs between its versions.
        if hasattr(error, "format_message"):
            return _refuse(error, as_json)
        traceback.print_exc()
        _tell(
            "bug",
            f"this is a bug in tpcli: {type(error).__name__}: {error}",
            "report it with the lines above and the command",
            as_json,
        )
        return BUG


def _refuse(error: Any, as_json: bool) -> int:
    """A command, option or argument that does not exist or does not fit."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = error.ctx.command_path if getattr(error, "ctx", None) else "tpcli"
        _tell("usage", error.format_message(), f"see {command} --help", as_json)
    return int(error.exit_code)


def _tell(
    kind: str, message: str, hint: str, as_json: bool, error: TpcliError | None = None
) -> None:
    """An error as JSON on stdout, or as lines on stderr."""
    faults = error.faults if isinstance(error, RecipeError) else ()
    if as_json:
        told: dict[str, Any] = {"kind": kind, "message": message, "hint": hint}
        if faults:
            told["faults"] = [dataclasses.asdict(fault) for fault in faults]
        typer.echo(json.dumps({"error": told}, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    for fault in faults:
        where = fault.source if fault.line is None else f"{fault.source}:{fault.line}"
        key = (fault.key, "bold"), (": " if fault.key else "")
        console.print(Text.assemble((f"{where}: ", "cyan"), *key, fault.message), soft_wrap=True)
        if fault.hint:
            console.print(Text(f"    {fault.hint}", "dim"), soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    if hint:
        console.print(Text.assemble(("hint: ", "bold"), hint), soft_wrap=True)
