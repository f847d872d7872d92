"""Our side of the comparison: the engine, learner and optimiser that ``tpcli train`` builds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os.path import commonprefix
from pathlib import Path
from typing import Any

import probe
import torch
from accelerate import Accelerator
from flops import Pass, Shape, causal_pairs, update_flops
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedModel
from work import Answer, Setup, Timing, Work, recipe_of

from tpcli.credit.advantage import advantages
from tpcli.optim.adamw import adamw
from tpcli.policy.load import pad_id
from tpcli.policy.model import Policy
from tpcli.recipe.schema import Recipe
from tpcli.rollout.transformers import TransformersEngine
from tpcli.train.build import build, grader_of
from tpcli.train.journal import Journal
from tpcli.train.loop import Parts
from tpcli.train.method import Learned
from tpcli.train.schedules import knobs_at
from tpcli.train.step import Learner
from tpcli.train.worker import settle_on_cpu
from tpcli.types import Prompt, Rollout, TokenBatch


def serve(setup: Setup, ask: Callable[[], Work | None], answer: Callable[[Answer], None]) -> None:
    """Do steps until there is no more work."""
    bench = Bench(setup)
    while (work := ask()) is not None:
        answer(bench.step(work))


class ForcedEngine(TransformersEngine):
    """Responses of lengths that are given; no token ends one."""

    lengths_PG: Tensor

    def _limits(self, prompts: Sequence[Prompt], group_size: int, max_new_tokens: int) -> Tensor:
        return self.lengths_PG


def parts_of(recipe: Recipe) -> Parts:
    """What ``tpcli train`` makes of a recipe on a CPU; nothing is written."""
    settle_on_cpu()
    with tempfile.TemporaryDirectory() as folder, grader_of(recipe) as grader:
        journal = Journal(Path(folder), steps=1, writes=False)
        return build(recipe, Accelerator(cpu=True), journal, grader)[0]


class Bench:
    """A model, its engine and its learner, with clocks around them."""

    def __init__(self, setup: Setup) -> None:
        self._small = setup.small
        recipe = recipe_of(setup)
        parts = parts_of(recipe)
        self._recipe, self._tempo = recipe, parts.tempo
        self._prompts = parts.asking.prompts[: setup.prompts]
        self._accelerator, self._learner = parts.accelerator, parts.learner
        self._model = parts.model
        if setup.vocabulary is not None:
            parts.accelerator.free_memory()  # which keeps what it has prepared
            self._model = random_model(parts.model, setup.vocabulary)
            policy = Policy(self._model, head_chunk=recipe.train.head_chunk)
            optimizer = adamw(policy.parameters(), lr=1e-5)
            self._learner = Learner(
                parts.accelerator, policy, optimizer, None, parts.learner.method
            )
        self._engine = ForcedEngine(
            self._model,
            eos_ids=[],
            pad_id=pad_id(parts.tokenizer),
            max_rows=recipe.rollout.max_rows,
        )
        self._shape = Shape.of(self._model)
        self._passes: list[Pass] = []
        self._model.base_model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._backward: list[tuple[float, float]] = []
        self._clock_backward()

    def step(self, work: Work) -> Answer:
        """Sample, then learn; the probe runs before and after."""
        before = probe.gemm(small=self._small)
        generation = None
        if work.sample:
            groups, generation = self._generate(work)
        else:
            groups = self._invent(work)
        batch = self._batch(groups, work.seed)
        updates = [self._update(batch, *update) for update in work.updates]
        parameters = sum(p.numel() for p in self._model.parameters())
        return Answer(
            tokens=int(batch.mask_BT.sum()),
            prompt_tokens=sum(len(prompt.tokens) for prompt in batch.prompts),
            shared_tokens=len(commonprefix([p.tokens for p in batch.prompts])),  # noqa: RUF071 (not paths)
            state=4 * 4 * parameters,  # float32 weights, gradients and two moments
            probe=probe.better(before, probe.gemm(small=self._small)),
            generation=generation,
            updates=updates,
        )

    def _generate(self, work: Work) -> tuple[list[list[Rollout]], Timing]:
        self._engine.lengths_PG = torch.tensor(work.lengths)
        with _watched() as seen:
            groups = self._engine.sample(
                self._prompts,
                group_size=len(work.lengths[0]),
                seed=work.seed,
                temperature=1.0,
                max_new_tokens=max(map(max, work.lengths)),
            )
        drawn = [[len(rollout.tokens_L) for rollout in group] for group in groups]
        assert drawn == work.lengths, "the engine did not keep to the lengths"
        return groups, Timing(**seen)

    def _invent(self, work: Work) -> list[list[Rollout]]:
        generator = torch.Generator().manual_seed(work.seed)

        def rollout(length: int) -> Rollout:
            ids_L = torch.randint(3, self._shape.vocabulary, (length,), generator=generator)
            return Rollout(ids_L, torch.full((length,), -1.0), finished=False)

        return [[rollout(length) for length in group] for group in work.lengths]

    def _batch(self, groups: Sequence[Sequence[Rollout]], seed: int) -> TokenBatch:
        """Every other response is right: each group teaches something."""
        rollouts = [rollout for group in groups for rollout in group]
        size = len(groups[0])
        reward_B = torch.arange(len(rollouts)).remainder(2).float()
        prompts = self._prompts[: len(groups)]
        if self._shape.vocabulary <= max(max(prompt.tokens) for prompt in prompts):
            folded = [tuple(t % self._shape.vocabulary for t in p.tokens) for p in prompts]
            prompts = [replace(p, tokens=t) for p, t in zip(prompts, folded, strict=True)]
        lengths_B1 = torch.tensor([[len(rollout.tokens_L)] for rollout in rollouts])
        return TokenBatch(
            prompts=prompts,
            tokens_BT=pad_sequence([r.tokens_L for r in rollouts], batch_first=True),
            mask_BT=torch.arange(int(lengths_B1.max())) < lengths_B1,
            rollout_logprob_BT=pad_sequence([r.logprobs_L for r in rollouts], batch_first=True),
            reward_B=reward_B,
            advantage_B=advantages("group_std", reward_B, group_size=size),
            group_size=size,
            seeds=range(seed, seed + len(rollouts)),
        )

    def _update(self, batch: TokenBatch, magnitude: float, measure_all: bool) -> Timing:
        knobs = knobs_at(self._recipe, 1, self._tempo.shares)
        knobs = replace(knobs, magnitudes={"trajectory_percentile": magnitude})
        self._passes, self._backward = [], []
        with _watched() as seen:
            learned = self._learner.update(batch, knobs, measure_all=measure_all)
            ended = time.perf_counter()
        seconds = seen["seconds"]
        seconds["backward"] = sum(end - start for start, end in self._backward)
        seconds["optimiser"] = ended - self._backward[-1][1]  # with clipping
        seconds["forward"] = seconds["whole"] - seconds["backward"] - seconds["optimiser"]
        return Timing(
            **seen,
            flops=update_flops(self._shape, self._passes, **_head_tokens(learned)),
            gradient=learned.grad_norm,
        )

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        layout = kwargs.get("layout")
        if layout is not None:
            pairs = (causal_pairs(s.length, s.keys - s.length) for s in layout.segments)
            tokens = kwargs["input_ids"].numel()
            self._passes.append(Pass(tokens, sum(pairs), torch.is_grad_enabled()))

    def _clock_backward(self) -> None:
        accelerator: Any = self._accelerator
        backward = accelerator.backward

        def timed(*args: Any, **kwargs: Any) -> None:
            began = time.perf_counter()
            backward(*args, **kwargs)
            self._backward.append((began, time.perf_counter()))

        accelerator.backward = timed


def random_model(like: PreTrainedModel, vocabulary: int) -> PreTrainedModel:
    """Random weights, the same body, another vocabulary."""
    config = type(like.config)(**{**like.config.to_dict(), "vocab_size": vocabulary})
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    auto: Any = AutoModelForCausalLM
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
    model.train(False)
    return model


def _head_tokens(learned: Learned) -> dict[str, int]:
    """Tokens whose logits were computed, and those of them that were learned from."""
    pushed_BT = learned.coefficient_BT * learned.advantage_BT != 0
    return {
        "scored": int((learned.measured_BT | pushed_BT).sum()),
        "learned": int(pushed_BT.sum()),
    }


@contextmanager
def _watched() -> Iterator[dict[str, Any]]:
    """Clock and memory around what is done inside."""
    probe.tidy()
    probe.reset_peak()
    seen: dict[str, Any] = {"seconds": {}, "base": probe.resident_gib(), "peak": None}
    began = time.perf_counter()
    yield seen
    seen["seconds"]["whole"] = time.perf_counter() - began
    seen["peak"] = probe.peak_gib()
