"""Tests never touch the user's folders or the network.

The hub's libraries read their environment when they are imported, so the part that concerns them is
set here, before any test module is: their endpoint is a hub on this machine, empty unless a test
publishes something on it.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.hub import FakeHub

_HUB = FakeHub()
_SESSION = Path(tempfile.mkdtemp(prefix="tpcli-tests-"))
_TOOLS = {
    "HF_ENDPOINT": _HUB.url,
    "HF_HOME": str(_SESSION / "huggingface"),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_XET": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MPLBACKEND": "Agg",
    "MPLCONFIGDIR": str(_SESSION / "matplotlib"),
    "NO_PROXY": "127.0.0.1,localhost",
}
_UNSET = (
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MLFLOW_TRACKING_URI",
    "TPCLI_RUNS",
    "NO_COLOR",
    "FORCE_COLOR",
)
os.environ.update(_TOOLS)
for _name in _UNSET:
    os.environ.pop(_name, None)


def pytest_unconfigure() -> None:
    """Clear the session's folder away."""
    shutil.rmtree(_SESSION, ignore_errors=True)


@pytest.fixture(autouse=True)
def user_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders of the user, empty and below ``tmp_path``, for this test alone."""
    home = tmp_path / "user"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("TPCLI_CACHE", str(home / "tpcli"))
    return home


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that HF_ENDPOINT names, empty, with an empty cache on our side."""
    _HUB.reset()
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between its retries
    yield _HUB
    _HUB.reset()
    shutil.rmtree(_SESSION / "huggingface", ignore_errors=True)
