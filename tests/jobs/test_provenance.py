"""Provenance names the code and the machine, and no secret."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import tpcli
from tpcli.jobs import provenance as p


@pytest.mark.parametrize(
    ("argv", "kept"),
    [
        (["train", "a.toml", "--seed", "3"], ["train", "a.toml", "--seed", "3"]),
        (["--token", "abc", "x"], ["--token", "***", "x"]),
        (["--hf-token", "abc"], ["--hf-token", "***"]),
        (["--api-key=abc", "x"], ["--api-key=***", "x"]),
        (["--password", "--token", "x"], ["--password", "***", "x"]),
        (["--set", "track.api_key=abc"], ["--set", "track.api_key=***"]),
        (["hf_abcdefghijk"], ["***"]),
        (["--set", 'x="sk-abcdefghij"'], ["--set", 'x="***"']),
        (
            ["--set", 'track.mlflow="https://me:pw@host/x"'],
            ["--set", 'track.mlflow="https://***@host/x"'],
        ),
        (["--set", "rollout.max_new_tokens=9"], ["--set", "rollout.max_new_tokens=9"]),
        (["--tokenizer", "abc"], ["--tokenizer", "abc"]),
        (["https://host/a@b"], ["https://host/a@b"]),
    ],
)
def test_arguments_without_secrets(argv: list[str], kept: list[str]) -> None:
    assert p.without_secrets(argv) == kept


def _commit(folder: Path, *names: str) -> None:
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    if not (folder / ".git").exists():
        subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", *names], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "x"], check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / "recipes").mkdir(parents=True)
    (folder / "recipes" / "a.toml").write_text("x = 1\n")
    (folder / "code.py").write_text("a = 1\n")
    _commit(folder, ".")
    return folder


class TestGit:
    def test_a_clean_tree(self, repository: Path) -> None:
        state = p.git_state(repository / "recipes")
        assert state is not None
        assert len(state["commit"]) == 40
        assert (state["dirty"], state["diff"], state["note"]) == (False, "", "")
        assert p.git_label(repository) == state["commit"][:7]

    def test_changes_anywhere_in_the_repository_count(self, repository: Path) -> None:
        (repository / "code.py").write_text("a = 2\n")
        (repository / "new.py").write_text("")
        state = p.git_state(repository / "recipes")
        assert state is not None
        assert state["dirty"]
        assert "+a = 2" in state["diff"]
        assert state["untracked"] == ["new.py"]
        assert p.git_label(repository).endswith("+dirty")

    def test_a_huge_diff_is_cut_and_says_so(
        self, repository: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(p, "DIFF_LIMIT", 50)
        (repository / "code.py").write_text("b = 2\n" * 100)
        state = p.git_state(repository)
        assert state is not None
        assert len(state["diff"]) == 50
        assert "only the first 50" in state["note"]

    def test_a_token_in_the_diff_is_hidden(self, repository: Path) -> None:
        (repository / "code.py").write_text('key = "hf_abcdefghijklm"\n')
        state = p.git_state(repository)
        assert state is not None
        assert "hf_abc" not in state["diff"]

    def test_no_repository(self, tmp_path: Path) -> None:
        assert p.git_state(tmp_path) is None
        assert p.git_label(tmp_path) == ""

    def test_no_git(self, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        assert p.git_state(repository) is None
        assert p.gpus() == []


def test_everything_is_json_and_named_variables_only(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPCLI_CACHE", "/c")
    monkeypatch.setenv("TPCLI_TOKEN", "abc")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abc")
    found = p.provenance(
        ["tpcli", "--token", "abc"],
        repository / "recipes" / "a.toml",
        {"train": 3},
        {"train": "ff"},
    )
    assert "abc" not in json.dumps(found, allow_nan=False)
    assert found["environment"] == {
        "TPCLI_CACHE": "/c",
        "TPCLI_TOKEN": "***",
        "OMP_NUM_THREADS": "2",
    }
    assert found["seeds"] == {"train": 3}
    assert found["packages"]["sqlalchemy"].startswith("2.")
    assert "vllm" in found["packages"]
    assert found["machine"]["memory"] > 2**28


def test_the_code_identity_follows_every_python_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content, names and nested files count; anything that is not Python does not."""
    package = tmp_path / "tpcli"
    shutil.copytree(
        Path(tpcli.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    monkeypatch.setattr(tpcli, "__file__", str(package / "__init__.py"))
    seen = []

    def identity() -> str:
        p.code_identity.cache_clear()
        return p.code_identity()

    seen.append(identity())
    (package / "notes.txt").write_text("x")
    assert identity() == seen[0]
    (package / "registry" / "extra.py").write_text("")
    seen.append(identity())
    (package / "registry" / "extra.py").write_text("a")
    seen.append(identity())
    (package / "registry" / "extra.py").rename(package / "registry" / "extrb.py")
    seen.append(identity())
    assert len(set(seen)) == 4
    assert all(text.startswith(f"{tpcli.__version__}-") for text in seen)
    p.code_identity.cache_clear()
