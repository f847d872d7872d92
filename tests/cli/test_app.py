"""The command as a whole: what it loads, and what a user sees when something fails."""

import json
import os
import subprocess
import sys

import pytest
import typer

from tpcli import __version__, errors
from tpcli.cli import app as cli
from tpcli.errors import Fault, NotFoundError, OfflineError, RecipeError, RunFailedError, TpcliError

HEAVY = {
    "accelerate",
    "datasets",
    "gguf",
    "matplotlib",
    "mlflow",
    "reasoning_gym",
    "torch",
    "transformers",
    "vllm",
}
SLOW = {"httpx", "huggingface_hub", "numpy", "pandas", "pyarrow", "pydantic", "sqlalchemy"}

HELP = """
import sys
from tpcli.cli.app import main
try:
    main(["--help"])
except SystemExit:
    print(*sys.modules, file=sys.stderr)
"""
PRINTERS = "import typer, typer.rich_utils, rich.console, rich.table"
LIGHT = """
import importlib, pkgutil, sys
for name in ("tpcli.recipe", "tpcli.registry", "tpcli.cli"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
import tpcli.credit.schedule
print(*sys.modules, file=sys.stderr)
"""


def loaded_by(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_help_loads_nothing_slow() -> None:
    modules = loaded_by(HELP)
    assert "typer" in modules
    assert not modules & (HEAVY | SLOW)


def test_light_packages_load_nothing_heavy() -> None:
    modules = loaded_by(LIGHT)
    assert {"pydantic", "sqlalchemy", "rich"} <= modules  # the walk went everywhere
    assert not modules & HEAVY


def test_help_takes_less_than_300_ms() -> None:
    """Processor time, the best of three: what else the machine does does not count.

    On a machine where typer and rich alone take so long, at most a quarter more than they do.
    """
    spent = [(seconds_of(HELP), seconds_of(PRINTERS)) for _ in range(3)]
    ours, theirs = (min(each) for each in zip(*spent, strict=True))
    assert ours < max(0.3, 1.25 * theirs)


def seconds_of(code: str) -> float:
    quiet = subprocess.DEVNULL
    child = subprocess.Popen([sys.executable, "-c", code], stdout=quiet, stderr=quiet)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_utime + usage.ru_stime


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(args))
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_every_command_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == errors.OK
    listed = capsys.readouterr().out.partition("Commands:")[2].splitlines()
    commands = {line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "}
    assert commands == {
        *("train", "resume", "stop", "rerun", "fork", "reproduce", "ablate", "compare", "board"),
        *("runs", "logs", "recipe", "schedule", "eval", "bench", "analyse", "replay", "db"),
        "doctor",
    }


@pytest.mark.parametrize(
    "command",
    [
        *("train", "resume", "runs", "runs show", "logs", "recipe show", "schedule plot"),
        *("analyse", "replay", "db status", "doctor"),
    ],
)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command.split(), "-h") == errors.OK
    assert f"Usage: tpcli {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == errors.OK
    assert capsys.readouterr().out == f"tpcli {__version__}\n"


def test_nothing_typed_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == errors.USAGE
    assert "Commands:" in capsys.readouterr().err


FAILURES: dict[str, BaseException] = {
    "usage": errors.UsageError("no", hint="do"),
    "not_found": NotFoundError("no", hint="do"),
    "run_failed": RunFailedError("no", hint="do"),
    "offline": OfflineError("no", hint="do"),
    "error": TpcliError("no", hint="do"),
    "bare": TpcliError("no"),
    "recipe": RecipeError(
        [Fault("a.toml", 3, "x.y", "is [wrong]", "mend it"), Fault("b", None, "", "gone")]
    ),
    "bug": ZeroDivisionError("oh"),
    "interrupt": KeyboardInterrupt(),
    "abort": typer.Abort(),
    "exit": typer.Exit(143),
}


@pytest.fixture
def _failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An app whose only command fails in the way that is named."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def fail(name: str, as_json: bool = typer.Option(False, "--json")) -> None:
        raise FAILURES[name]

    monkeypatch.setattr(cli, "app", app)


@pytest.mark.usefixtures("_failing")
class TestFailures:
    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("usage", 2),
            ("not_found", 3),
            ("run_failed", 4),
            ("offline", 4),
            ("error", 4),
            ("recipe", 2),
            ("bug", 1),
            ("interrupt", 130),
            ("abort", 130),
            ("exit", 143),
        ],
    )
    def test_exit_codes(self, name: str, code: int) -> None:
        assert run(name) == code

    def test_message_and_hint(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("not_found")
        assert capsys.readouterr() == ("", "error: no\nhint: do\n")
        run("bare")
        assert capsys.readouterr() == ("", "error: no\n")

    def test_faults_stand_in_the_first_column(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("recipe")
        assert capsys.readouterr() == (
            "",
            "a.toml:3: x.y: is [wrong]\n    mend it\nb: gone\nerror: 2 errors in the recipe\n",
        )

    def test_a_bug_keeps_its_traceback(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("bug")
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback (most recent call last)" in err
        assert "error: this is a bug in tpcli: ZeroDivisionError: oh\n" in err

    @pytest.mark.parametrize("name", ["usage", "not_found", "run_failed", "offline", "error"])
    def test_json(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        run(name, "--json")
        out, err = capsys.readouterr()
        assert json.loads(out) == {"error": {"kind": name, "message": "no", "hint": "do"}}
        assert err == ""

    def test_json_of_a_recipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("recipe", "--json")
        told = json.loads(capsys.readouterr().out)["error"]
        assert (told["kind"], told["message"]) == ("recipe", "2 errors in the recipe")
        assert told["faults"][0] == {
            "source": "a.toml",
            "line": 3,
            "key": "x.y",
            "message": "is [wrong]",
            "hint": "mend it",
        }

    def test_json_of_a_bug(self, capsys: pytest.CaptureFixture[str]) -> None:
        run("bug", "--json")
        out, err = capsys.readouterr()
        assert json.loads(out)["error"]["kind"] == "bug"
        assert "ZeroDivisionError" in err

    def test_json_of_what_typer_refuses(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("usage", "--nope", "--json") == errors.USAGE
        told = json.loads(capsys.readouterr().out)["error"]
        assert told["kind"] == "usage"
        assert "--nope" in told["message"]

    def test_no_escapes_without_a_terminal(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run("usage")
        assert "\x1b" not in capsys.readouterr().err
        monkeypatch.setenv("FORCE_COLOR", "1")
        run("usage")
        assert "\x1b[1;31merror" in capsys.readouterr().err
        monkeypatch.setenv("NO_COLOR", "1")
        run("usage")
        assert "31merror" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said", "see"),
    [
        (["trian"], "Did you mean 'train'?", "tpcli --help"),
        (["recipe", "show"], "Missing argument", "tpcli recipe show --help"),
        (["recipe", "show", "a.toml", "--seed", "x"], "--seed", "tpcli recipe show --help"),
        (["runs", "show", "--nope"], "--nope", "tpcli runs show --help"),
    ],
)
def test_what_typer_refuses(
    args: list[str], said: str, see: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*args) == errors.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert said in err
    assert err.endswith(f"hint: see {see}\n")
