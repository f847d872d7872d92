"""Where a run comes from: code, packages, machine, data and seeds. No secret is written down."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tpcli

DIFF_LIMIT = 1_000_000
"""Characters of a working tree's diff that are kept."""
UNTRACKED_LIMIT = 200
"""Names of untracked files that are kept."""
VARIABLES = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
SECRET_WORD = r"(?:[\w.-]*[_.-])?(?:token|password|passwd|secret|api[_-]?key)(?:[_.-][\w.-]*)?"
SECRET_FLAG = re.compile(rf"--?{SECRET_WORD}", re.IGNORECASE)
SECRET_SETTING = re.compile(rf"(?<![\w.-])({SECRET_WORD}\s*=\s*).+", re.IGNORECASE)
SECRET_TEXT = (
    re.compile(r"\b(?:hf|sk|ghp|gho|github_pat|glpat|xox[bp])[-_][\w-]{6,}"),
    re.compile(r"(?<=://)[^/\s@]+(?=@)"),
)
HIDDEN = "***"


def provenance(
    argv: Sequence[str],
    recipe_path: Path,
    seeds: Mapping[str, int],
    data_hashes: Mapping[str, str],
) -> dict[str, Any]:
    """Everything that is worth knowing of a run and that its recipe does not say; JSON throughout.

    Args:
        argv: the command as typed; secrets are taken out here.
        recipe_path: git is asked about the repository around it.
    """
    return {
        "argv": without_secrets(argv),
        "recipe": str(recipe_path),
        "seeds": dict(seeds),
        "data": dict(data_hashes),
        "git": git_state(recipe_path.resolve().parent),
        "tpcli": _own_code(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
        "environment": _environment(),
    }


@functools.cache
def code_identity() -> str:
    """What "the same code" means: tpcli's version and a digest of its Python files."""
    root = Path(tpcli.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return f"{tpcli.__version__}-{digest.hexdigest()[:12]}"


def git_label(folder: Path) -> str:
    """The short commit of the repository around ``folder``, with +dirty; "" where there is none."""
    state = git_state(folder)
    return "" if state is None else state["commit"][:7] + ("+dirty" if state["dirty"] else "")


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and uncommitted changes of the repository around ``folder``; None without one.

    "dirty" means changes to tracked files, which are kept as a diff; other files only by name.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff") or ""
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard", "--full-name", ":/")
    return {
        "commit": commit.strip(),
        "dirty": bool(diff),
        "diff": redact(diff[:DIFF_LIMIT]),
        "diff_sha256": hashlib.sha256(diff.encode()).hexdigest(),
        "note": _cut_note(len(diff)),
        "untracked": (untracked or "").splitlines()[:UNTRACKED_LIMIT],
    }


def _cut_note(length: int) -> str:
    if length <= DIFF_LIMIT:
        return ""
    return f"the diff has {length} characters; only the first {DIFF_LIMIT} are kept"


def without_secrets(argv: Sequence[str]) -> list[str]:
    """The arguments with the values of secret flags, tokens and passwords hidden."""
    kept: list[str] = []
    hide_next = False
    for argument in argv:
        flag = argument.partition("=")[0]
        if hide_next:
            kept.append(HIDDEN)
        elif SECRET_FLAG.fullmatch(flag) and "=" in argument:
            kept.append(f"{flag}={HIDDEN}")
        else:
            kept.append(redact(SECRET_SETTING.sub(rf"\1{HIDDEN}", argument)))
        hide_next = not hide_next and SECRET_FLAG.fullmatch(argument) is not None
    return kept


def redact(text: str) -> str:
    """Hide access tokens, and the user and password of an URL, wherever they stand."""
    for pattern in SECRET_TEXT:
        text = pattern.sub(HIDDEN, text)
    return text


def package_versions() -> dict[str, str | None]:
    """The installed version of each of our dependencies, extras included; None: not installed."""
    versions: dict[str, str | None] = {}
    for name in requirements():
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def requirements() -> dict[str, tuple[str, str]]:
    """Our dependencies as installed: name to (lower bound, extra); "" where there is none."""
    found: dict[str, tuple[str, str]] = {}
    for text in metadata.requires("tpcli") or []:
        requirement, _, marker = text.partition(";")
        match = re.match(r"\s*([\w.-]+)", requirement)
        if match:
            bound = re.search(r">=\s*([\w.]+)", requirement)
            extra = re.search(r"extra\s*==\s*['\"]([\w-]+)", marker)
            found[match[1]] = (bound[1] if bound else "", extra[1] if extra else "")
    return found


def machine() -> dict[str, Any]:
    """The computer: processor, cores, memory in bytes, GPUs."""
    import psutil

    return {
        "host": socket.gethostname(),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=False),
        "threads": psutil.cpu_count(),
        "memory": psutil.virtual_memory().total,
        "gpus": gpus(),
    }


def gpus() -> list[str]:
    """Each GPU as nvidia-smi describes it: name, memory, driver."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return (_output(query) or "").splitlines()


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.processor()


def _own_code() -> dict[str, Any]:
    """tpcli itself; its repository too where it is an editable checkout."""
    root = Path(tpcli.__file__).parent
    installed = "site-packages" in root.parts or "dist-packages" in root.parts
    state = None if installed else git_state(root)
    return {
        "version": tpcli.__version__,
        "code": code_identity(),
        "git": state and {key: state[key] for key in ("commit", "dirty", "diff_sha256")},
    }


def _environment() -> dict[str, str]:
    chosen = sorted(key for key in os.environ if key.startswith("TPCLI_") or key in VARIABLES)
    values = without_secrets([f"{key}={os.environ[key]}" for key in chosen])
    return {key: value.partition("=")[2] for key, value in zip(chosen, values, strict=True)}


def _git(folder: Path, *arguments: str) -> str | None:
    return _output(["git", "-C", str(folder), *arguments])


def _output(command: Sequence[str]) -> str | None:
    """What a command prints; None where it is missing, fails or takes more than 10 seconds."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
