"""An engine with weights of its own: they arrive, or the run stops; and the order a step ahead."""

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tests.tiny import prompt_of, tiny_llama
from tests.train.test_build import Scripted, built
from torch import Tensor
from transformers import LlamaForCausalLM

from tpcli.errors import RunFailedError
from tpcli.policy.model import Policy
from tpcli.train.build import settings
from tpcli.train.loop import Loop
from tpcli.train.sync import Agreement, Sync, known_text
from tpcli.types import Rollout

TEXT = torch.randint(2, 61, (60,), generator=torch.Generator().manual_seed(0)).tolist()


class Copy:
    """A copy of the small model; ``broken`` keeps what it has whatever it is given."""

    def __init__(self) -> None:
        self.model, self.version, self.broken = tiny_llama(), 0, False
        self.noise, self.asleep = 0.0, 0

    def load(self, named: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        self.version = version
        if not self.broken:
            own = dict(self.model.named_parameters())
            for name, tensor in named:
                own[name].data.copy_(tensor.detach())

    @torch.no_grad()
    def score(self, tokens: Sequence[int], *, first: int, temperature: float) -> Tensor:
        logits: Tensor = self.model(input_ids=torch.tensor([tokens])).logits[0, first - 1 : -1]
        log_p = (logits / temperature).log_softmax(-1)
        index = torch.tensor(tokens[first:])[:, None]
        return log_p.gather(1, index)[:, 0] + self.noise

    def sleep(self) -> None:
        self.asleep += 1

    def close(self) -> None:
        self.version = -1


def synced(tolerance: float = 1e-3) -> tuple[Sync, Copy, LlamaForCausalLM]:
    engine, model = Copy(), tiny_llama()
    made = Sync(
        engine,
        model,
        Policy(model),
        Accelerator(cpu=True),
        text=TEXT,
        tolerance=tolerance,
        shared=False,
    )
    return made, engine, model


def moved(model: LlamaForCausalLM, by: float) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += by * torch.randn(parameter.shape)


def test_weights_arrive_and_the_gap_is_told() -> None:
    sync, engine, model = synced()
    for version, by in ((0, 0.0), (1, 0.05), (2, 1e-5)):
        moved(model, by)
        assert sync.push(version).gap < 1e-5
        assert engine.version == version


def test_stale_weights_stop_the_run() -> None:
    """After a large step by the gap; after a small one, since no bit of the scores has changed."""
    for by, said in ((0.05, "over the tolerance of 0.001"), (1e-3, "has not taken")):
        sync, engine, model = synced(0.001 if by == 0.05 else 1.0)
        sync.push(0)
        engine.broken = True
        moved(model, by)
        with pytest.raises(RunFailedError, match=said) as failed:
            sync.push(1)
        assert "resume" in failed.value.hint


def test_a_gap_that_is_no_number_is_over_every_tolerance() -> None:
    sync, engine, _ = synced(tolerance=1e9)
    engine.noise = math.nan
    with pytest.raises(RunFailedError, match="over the tolerance"):
        sync.push(0)


def test_unchanged_weights_may_score_the_same() -> None:
    sync, _, _ = synced()
    sync.push(0)
    assert sync.push(1) == sync.push(2)


def test_the_known_text_is_longer_than_a_cached_block_where_there_is_room() -> None:
    prompts = [prompt_of([i, i + 1, i + 2]) for i in range(200)]
    assert len(known_text(prompts, None)) == len(known_text(prompts, 4096)) == 192
    assert len(known_text(prompts, 128)) == 127
    assert known_text(prompts, 5) == (0, 1, 2, 1)


class Slow(Scripted):
    """Notes when it draws, and holds a draw back until the update beside it has begun."""

    def __init__(self, events: list[str], learning: threading.Event) -> None:
        super().__init__()
        self.events, self.learning = events, learning

    def sample(self, *args: Any, **kwargs: Any) -> list[list[Rollout]]:
        self.events.append("draw")
        if self.events.count("draw") > 1:
            assert self.learning.wait(60), "nothing is learned while responses are drawn"
        found = super().sample(*args, **kwargs)
        self.events.append("drawn")
        return found


class Noting:
    """In place of a ``Sync``."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def push(self, version: int) -> Agreement:
        self.events.append(f"sync {version}")
        return Agreement(0.25, 0.5)


def test_a_step_ahead_draws_beside_the_update_and_syncs_in_between(tmp_path: Path) -> None:
    """Weights are never exchanged under a draw, and every draw is by those of one update before."""
    made, parts, _, journal = built(tmp_path, "train.steps=3", "eval.questions=0")
    events, learning = list[str](), threading.Event()
    update = parts.learner.update

    def noted(*args: Any, **kwargs: Any) -> Any:
        events.append("learn")
        learning.set()
        return update(*args, **kwargs)

    parts.learner.update = noted  # type: ignore[method-assign]
    sync: Any = Noting(events)
    changed = replace(parts, engine=Slow(events, learning), sync=sync)
    lines: list[dict[str, float]] = []
    journal.metrics = lambda stats: lines.append(stats.scalars)  # type: ignore[method-assign]
    Loop(tmp_path, changed, replace(settings(made), ahead=True), journal).run(0)
    assert events[:3] == ["sync 0", "draw", "drawn"]
    for version, drawn in ((1, 2), (2, 3)):
        at = events.index(f"sync {version}")
        assert events[:at].count("drawn") == drawn == events[:at].count("draw")
        assert events[:at].count("learn") == version
    assert events[-1] == "sync 3"
    assert [line["rollout/staleness"] for line in lines] == [0.0, 1.0, 1.0]
    assert [line["sync/gap"] for line in lines] == [0.25] * 3
    assert all("time/sync" in line for line in lines)
