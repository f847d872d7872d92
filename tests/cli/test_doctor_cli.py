"""`tpcli doctor` in words, in JSON and as an exit code."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from tpcli.cli.doctor import doctor
from tpcli.errors import RUN_FAILED
from tpcli.jobs import doctor as jobs

app = typer.Typer()
app.command()(doctor)

CHECKS = [
    jobs.Check("python", "ok", "3.11.7", "not shown"),
    jobs.Check("hub", "optional", "does not answer", "set HF_ENDPOINT"),
    jobs.Check("packages", "broken", "torch is missing", "pip install 'torch>=2.6'"),
]


@pytest.mark.parametrize("broken", [True, False])
def test_exit_code(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    checks = CHECKS if broken else CHECKS[:2]
    monkeypatch.setattr(jobs, "examine", lambda runs, cache: checks)
    for arguments in ([], ["--json"]):
        assert CliRunner().invoke(app, arguments).exit_code == (RUN_FAILED if broken else 0)


def test_every_fault_comes_with_what_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "examine", lambda runs, cache: CHECKS)
    lines = [line.split() for line in CliRunner().invoke(app, []).stdout.splitlines()]
    assert lines == [
        ["✓", "python", "3.11.7"],
        ["·", "hub", "does", "not", "answer"],
        ["→", "set", "HF_ENDPOINT"],
        ["✗", "packages", "torch", "is", "missing"],
        ["→", "pip", "install", "'torch>=2.6'"],
    ]


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "examine", lambda runs, cache: CHECKS)
    shown = json.loads(CliRunner().invoke(app, ["--json"]).stdout)
    assert shown["ok"] is False
    assert shown["checks"][2] == {
        "name": "packages",
        "state": "broken",
        "detail": "torch is missing",
        "mend": "pip install 'torch>=2.6'",
    }
