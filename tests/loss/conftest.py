"""TRL, imported once and only for the tests that compare with it."""

import importlib
from collections.abc import Iterator
from functools import partial

import pytest
from accelerate import PartialState
from tests.loss import trl_stand_in
from tests.loss.trl_stand_in import NewTrainer


@pytest.fixture(scope="module")
def new_trainer() -> Iterator[NewTrainer]:
    """Makes stand-ins for TRL's trainer."""
    untouched = not PartialState._shared_state
    trl = importlib.import_module("trl")
    _ = trl.GRPOTrainer, trl.GRPOConfig  # slow: trl imports what is asked for
    yield partial(trl_stand_in.new_trainer, trl)
    if untouched:  # TRL's settings have chosen the CPU for whatever this process trains next
        PartialState._reset_state()
