"""The doctor finds what is broken, and names what mends it."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.registry.folders import FINISHED, lines_of, make_run

from tpcli.jobs import doctor, provenance
from tpcli.registry import folder
from tpcli.registry.store import Registry


def test_a_sound_machine_has_nothing_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "hub", lambda: doctor.Check("hub", "optional", ""))
    monkeypatch.setattr(
        provenance, "requirements", lambda: {"torch": ("2.6", ""), "vllm": ("1", "v")}
    )
    checks = doctor.examine(tmp_path / "runs", tmp_path / "cache")
    assert [check.name for check in checks if check.state == "broken"] == []
    assert not (tmp_path / "runs").exists(), "looking creates nothing"
    assert not (tmp_path / "cache").exists()
    assert all(check.mend for check in checks if check.state == "warning")


def test_missing_and_old_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.10 is newer than 2.6 although it sorts before it; a local suffix does not count."""
    asked = {
        "a": ("2.6", ""),
        "b": ("2.6", ""),
        "c": ("1.0", ""),
        "d": ("1", "vllm"),
    }
    have = {"a": "2.10.0+cpu", "b": "2.5.9", "c": None, "d": None}
    monkeypatch.setattr(provenance, "requirements", lambda: asked)
    monkeypatch.setattr(provenance, "package_versions", lambda: have)
    check = doctor.dependencies()
    assert check.state == "broken"
    assert check.detail == "b 2.5.9 is older than 2.6, c is missing"
    assert check.mend == "pip install 'b>=2.6' 'c>=1.0'"


def test_requirements_are_those_of_the_project() -> None:
    asked = provenance.requirements()
    assert asked["typer"] == ("0.16", "")
    assert asked["vllm"][1] == "vllm"
    assert asked["pytest"][1] == "dev"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = doctor.writable("runs folder", tmp_path / "file" / "runs", "TPCLI_RUNS")
    assert check.state == "broken"
    assert "TPCLI_RUNS" in check.mend
    assert doctor.writable("x", tmp_path / "a" / "b", "X").state == "ok"


def test_the_registry(tmp_path: Path) -> None:
    assert doctor.registry(tmp_path).detail == "no runs"
    registry = Registry(tmp_path)
    registry.index(make_run(tmp_path, "aaaaaaa"))
    assert doctor.registry(tmp_path) == doctor.Check("registry", "ok", "1 run")
    (tmp_path / "aaaaaaa").rename(tmp_path / "bbbbbbb")
    check = doctor.registry(tmp_path)
    assert (check.state, check.mend) == ("warning", "tpcli db rebuild")
    assert check.detail == "aaaaaaa has no folder and 1 more"
    (tmp_path / "registry.db").write_bytes(b"no database at all" * 99)
    check = doctor.registry(tmp_path)
    assert check.state == "broken"
    assert "tpcli db rebuild" in check.mend


def test_mlflow(tmp_path: Path) -> None:
    assert doctor.mlflow(tmp_path).state == "ok"
    run_dir = make_run(tmp_path, "aaaaaaa", lines=lines_of(3), state=FINISHED)
    make_run(tmp_path, "broken")
    (tmp_path / "broken" / folder.METRICS).write_text("x\n")
    assert doctor.mlflow(tmp_path).mend == "tpcli db sync-mlflow"
    folder.write_json_atomic(run_dir / folder.MLFLOW, {"run_id": "m", "logged_step": 3})
    assert doctor.mlflow(tmp_path).state == "ok"
    (tmp_path / "mlflow.db").mkdir()
    assert "cannot be written" in doctor.mlflow(tmp_path).detail


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Refusing) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_any_answer_is_an_answer(server: str) -> None:
    assert doctor.answers(server, 5.0)


def test_a_closed_port_and_nonsense_do_not_answer() -> None:
    assert not doctor.answers("http://127.0.0.1:9", 5.0)
    assert not doctor.answers("nonsense", 5.0)


def test_a_silent_server_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert not doctor.answers(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
        assert time.monotonic() - began < 10
