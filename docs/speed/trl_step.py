"""TRL's side of the comparison: GRPOTrainer.train() itself, stopped between steps.

Set as a user on a CPU would: beta = 0 (no reference model), no vLLM, float32, one micro-batch a
step, no gradient checkpointing, fused AdamW. A logits processor forces the lengths.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from os.path import commonprefix
from typing import Any

import probe
import torch
from datasets import Dataset
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TrainerCallback
from work import Answer, Setup, Timing, Work, recipe_of

from tpcli.policy.load import load_model
from tpcli.policy.store import silent
from tpcli.train.build import build_data, grader_of, weights
from tpcli.train.schedules import value_at


class NoMoreWorkError(Exception):
    """The only way out of ``train`` between two steps."""


def serve(setup: Setup, ask: Callable[[], Work | None], answer: Callable[[Answer], None]) -> None:
    """Train, one step for each piece of work."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            make_trainer(setup, folder, ask, answer).train()
        except NoMoreWorkError:
            return


def make_trainer(
    setup: Setup, folder: str, ask: Callable[[], Work | None], answer: Callable[[Answer], None]
) -> Any:
    """A GRPOTrainer on the recipe's model and prompts, with clocks around its parts."""
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    recipe = recipe_of(setup)
    model, tokenizer = load_model(
        weights(recipe, silent), dtype=recipe.model.dtype, trust_remote_code=False
    )
    with grader_of(recipe) as grader:
        data = build_data(recipe, tokenizer, grader)
    prompts = [prompt.tokens for prompt in data.train.prompts[: setup.prompts]]
    responses = setup.prompts * setup.group_size
    config = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=responses,
        gradient_accumulation_steps=1,
        num_generations=setup.group_size,
        max_completion_length=setup.longest,
        beta=0.0,
        temperature=1.0,
        learning_rate=value_at(recipe.optim.lr, 1, recipe.horizon, 1.0),
        lr_scheduler_type="constant",
        max_grad_norm=recipe.optim.max_grad_norm,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_steps=1_000_000,
        shuffle_dataset=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    clocks = Clocks(setup, prompts, ask, answer)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=every_other,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": tokenizer.decode([*p])} for p in prompts]),
        processing_class=tokenizer,
        callbacks=[clocks],
    )
    clocks.attach(trainer)
    return trainer


def every_other(completions: list[str], **_: Any) -> list[float | None]:
    """Every other response is right: each group teaches something."""
    return [float(i % 2) for i in range(len(completions))]


class ForcedLengths(LogitsProcessor):
    """No response ends before its length, and each ends there."""

    def __init__(self, lengths_B: Tensor, prompt: int, eos_ids: list[int]) -> None:
        self._lengths_B, self._prompt, self._eos_ids = lengths_B, prompt, eos_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        last_B = input_ids.shape[1] - self._prompt + 1 == self._lengths_B
        scores[:, self._eos_ids] = -torch.inf
        scores[last_B] = -torch.inf
        scores[last_B, self._eos_ids[0]] = 0.0
        # A row that has ended is padded by ``generate``, whatever its scores are.
        return scores


class Clocks(TrainerCallback):
    """Waits for work before each step, and answers with what the step took."""

    def __init__(
        self,
        setup: Setup,
        prompts: list[tuple[int, ...]],
        ask: Callable[[], Work | None],
        answer: Callable[[Answer], None],
    ) -> None:
        self._setup, self._prompts, self._ask, self._answer = setup, prompts, ask, answer
        self._work = Work([], 0)
        self._seconds: dict[str, float] = {}
        self._probe: dict[str, float] = {}
        self._generation: Timing | None = None
        self._base: float | None = None
        self._began = self._update_began = self._backward_ended = 0.0
        self._tokens, self._gradient = 0, 0.0

    def attach(self, trainer: Any) -> None:
        """Wrap what the trainer calls; it finds its own instance's attributes first."""
        self._eos_ids: list[int] = list(trainer.eos_token_ids)
        trainer._generate_and_score_completions = self._generating(
            trainer._generate_and_score_completions
        )
        trainer._generate_single_turn = self._answering(trainer._generate_single_turn)
        trainer.compute_loss = self._losing(trainer.compute_loss)
        trainer.accelerator.backward = self._going_back(trainer.accelerator.backward)
        trainer.accelerator.clip_grad_norm_ = self._clipping(trainer.accelerator.clip_grad_norm_)
        trainer.model.generate = self._forcing(trainer.model.generate)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for work, then start the clock."""
        work = self._ask()
        if work is None:
            raise NoMoreWorkError
        self._work, self._seconds = work, {}
        self._probe = probe.gemm(small=self._setup.small)
        probe.tidy()
        probe.reset_peak()
        self._base = probe.resident_gib()
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Stop the clock and answer."""
        ended = time.perf_counter()
        self._seconds["optimiser"] = ended - self._backward_ended  # with clipping
        self._seconds["whole"] = ended - self._update_began
        update = Timing(dict(self._seconds), probe.peak_gib(), self._base, gradient=self._gradient)
        answer = Answer(
            tokens=self._tokens,
            prompt_tokens=sum(map(len, self._prompts)),
            shared_tokens=len(commonprefix(self._prompts)),  # noqa: RUF071 (not paths)
            state=4 * 4 * sum(p.numel() for p in model.parameters()),
            probe=probe.better(self._probe, probe.gemm(small=self._setup.small)),
            generation=self._generation if self._work.sample else None,
            updates=[update],
        )
        self._answer(answer)

    def _generating(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Around prompts, sampling, rewards and advantages; afterwards the update begins."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            out = generate(*args, **kwargs)
            self._update_began = time.perf_counter()
            seconds = {"whole": self._update_began - self._began}
            self._generation = Timing(seconds, probe.peak_gib(), self._base)
            probe.reset_peak()
            return out

        return timed

    def _answering(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        """In place of sampling where only the update is measured."""

        def invented(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
            if self._work.sample:
                return answer(prompt_ids, *args, **kwargs)
            free = [i for i in range(3, self._setup.longest + 3) if i not in self._eos_ids]
            lengths = [length for group in self._work.lengths for length in group]
            ids = [[free[i % len(free)] for i in range(n - 1)] for n in lengths]
            return [[*one, self._eos_ids[0]] for one in ids], None

        return invented

    def _forcing(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def forced(*args: Any, **kwargs: Any) -> Any:
            lengths_B = torch.tensor(self._work.lengths).flatten()
            prompt = kwargs["input_ids"].shape[1]
            processor = ForcedLengths(lengths_B, prompt, self._eos_ids)
            return generate(*args, logits_processor=LogitsProcessorList([processor]), **kwargs)

        return forced

    def _losing(self, compute_loss: Callable[..., Any]) -> Callable[..., Any]:
        def timed(model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
            self._check(inputs)
            began = time.perf_counter()
            loss = compute_loss(model, inputs, *args, **kwargs)
            self._seconds["forward"] = time.perf_counter() - began
            return loss

        return timed

    def _check(self, inputs: dict[str, Tensor]) -> None:
        """The prompts and lengths are those that were asked for."""
        found = {
            tuple(ids[mask.bool()].tolist())
            for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)
        }
        assert found == set(self._prompts), "TRL reads other prompts"
        lengths = inputs["completion_mask"].sum(-1)
        wanted = [length for group in self._work.lengths for length in group]
        assert sorted(lengths.tolist()) == sorted(wanted), "TRL did not keep to the lengths"
        self._tokens = int(lengths.sum())

    def _going_back(self, backward: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> None:
            began = time.perf_counter()
            backward(*args, **kwargs)
            self._backward_ended = time.perf_counter()
            self._seconds["backward"] = self._backward_ended - began

        return timed

    def _clipping(self, clip: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **kwargs: Any) -> Any:
            norm = clip(*args, **kwargs)
            self._gradient = float(norm)
            return norm

        return noted
