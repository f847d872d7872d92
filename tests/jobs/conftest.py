"""Whole runs share their warm-up: one cache a session of tests."""

from pathlib import Path

import pytest
from tests.jobs.bench import Bench


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(tmp_path: Path, cache: Path) -> Bench:
    """A fresh folder; what earlier runs warmed up is in the cache."""
    return Bench(tmp_path, cache)
