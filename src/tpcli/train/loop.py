"""The loop: ask, answer, score, credit, learn, count, keep. One pass a step."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tpcli.credit.advantage import ADVANTAGES
from tpcli.names import AdvantageName, VerifierName
from tpcli.registry.folder import STOP
from tpcli.rollout.engine import RolloutEngine
from tpcli.train import checkpoint
from tpcli.train.evaluate import HeldOut, accuracy, grade_all
from tpcli.train.journal import Journal
from tpcli.train.measure import finish, tally
from tpcli.train.order import prompts_of, sampler_seed
from tpcli.train.step import Knobs, Learned, Learner
from tpcli.types import Prompt, Rollout, StepStats, TokenBatch, Verdict


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of; ``build`` makes it."""

    accelerator: Accelerator
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: RolloutEngine
    learner: Learner
    prompts: Sequence[Prompt]
    held_out: HeldOut | None


@dataclass(frozen=True, slots=True)
class Settings:
    """How the loop goes. ``knobs`` and ``progress`` map a step to scheduled values."""

    steps: int
    horizon: int
    seed: int
    prompts_per_step: int
    group_size: int
    max_new_tokens: int
    verifier: VerifierName
    advantage: AdvantageName
    eps: float
    save_every: int
    keep: int
    responses_kept: int
    with_kl: bool
    moving: tuple[str, ...]
    knobs: Callable[[int], Knobs]
    progress: Callable[[int], float]


class Loop:
    """A run between two checkpoints."""

    def __init__(self, run_dir: Path, parts: Parts, settings: Settings, journal: Journal) -> None:
        self._run_dir, self._parts, self._set, self._journal = run_dir, parts, settings, journal
        self._rank = parts.accelerator.process_index
        self._ranks = parts.accelerator.num_processes
        self._since = time.perf_counter()

    def run(self, done: int) -> None:
        """Train from step ``done`` to the end, or to the step after which it is asked to stop.

        The metrics of a step are on the disk before its checkpoint is: what a resumed run cuts
        back is never more than what it does again.
        """
        self._journal.cut_back(done if done else -1)  # without a checkpoint, step 0 is redone
        self._since = time.perf_counter()
        if done == 0 and self._parts.held_out:
            self._journal.metrics(StepStats(0, self._evaluate(0)))
            self._journal.take_seconds()
            self._since = time.perf_counter()
        for step in range(done + 1, self._set.steps + 1):
            self._step(step)
            stop = step < self._set.steps and self._stop_requested()
            if stop or step == self._set.steps or step % self._set.save_every == 0:
                with self._journal.phase("checkpoint", step):
                    self._save(step)
            if stop:
                self._journal.enter("stopped", step)
                return
        self._journal.enter("done", self._set.steps)

    def _step(self, step: int) -> None:
        knobs = self._set.knobs(step)
        with self._journal.phase("rollout", step) as report:
            prompts, groups = self._ask(step, knobs, report)
        with self._journal.phase("reward", step):
            verdicts = grade_all(groups, prompts, self._decode, self._set.verifier)
            rollouts = [rollout for group in groups for rollout in group]
            batch = self._collate(prompts, rollouts, verdicts)
        with self._journal.phase("update", step):
            learned = self._parts.learner.update(batch, knobs)
        total = tally(batch, rollouts, verdicts, learned).over(self._parts.accelerator)
        stats = finish(
            step,
            total,
            knobs,
            progress=self._set.progress(step),
            updates=self._parts.learner.method.updates,
            grad_norm=learned.grad_norm,
            with_kl=self._set.with_kl,
            moving=self._set.moving,
        )
        self._journal.responses(self._samples(step, batch, rollouts, verdicts, learned))
        held_out = self._parts.held_out
        if held_out and (step % held_out.every == 0 or step == self._set.steps):
            stats.scalars.update(self._evaluate(step))
        stats.scalars.update(self._costs(float(total.sums["credit"][1])))
        self._journal.metrics(stats)

    def _ask(
        self, step: int, knobs: Knobs, report: Callable[[float, float], None]
    ) -> tuple[list[Prompt], list[list[Rollout]]]:
        """This process's prompts of the step, and their responses."""
        every = prompts_of(
            step, self._parts.prompts, count=self._set.prompts_per_step, seed=self._set.seed
        )
        share = len(every) // self._ranks
        mine = every[self._rank * share : (self._rank + 1) * share]
        with self._parts.accelerator.autocast():
            groups = self._parts.engine.sample(
                mine,
                group_size=self._set.group_size,
                # Plus the rank: a question asked by two processes must not get the same responses.
                seed=sampler_seed(self._set.seed, step) + self._rank,
                temperature=knobs.temperature,
                max_new_tokens=self._set.max_new_tokens,
                progress=report,
            )
        return mine, groups

    def _collate(
        self,
        prompts: Sequence[Prompt],
        rollouts: Sequence[Rollout],
        verdicts: Sequence[Verdict],
    ) -> TokenBatch:
        tokens_BT = pad_sequence([r.tokens_L for r in rollouts], batch_first=True)
        lengths_B = torch.tensor([len(r.tokens_L) for r in rollouts])
        reward_B = torch.tensor([v.reward for v in verdicts])
        return TokenBatch(
            prompts=prompts,
            tokens_BT=tokens_BT,
            mask_BT=torch.arange(tokens_BT.shape[1]) < lengths_B[:, None],
            rollout_logprob_BT=pad_sequence([r.logprobs_L for r in rollouts], batch_first=True),
            reward_B=reward_B,
            advantage_B=ADVANTAGES[self._set.advantage](
                reward_B, group_size=self._set.group_size, eps=self._set.eps
            ),
            group_size=self._set.group_size,
        )

    def _evaluate(self, step: int) -> dict[str, float]:
        held_out = self._parts.held_out
        assert held_out is not None
        accelerator = self._parts.accelerator
        with self._journal.phase("eval", step) as report, accelerator.autocast():
            return accuracy(
                held_out,
                self._parts.engine,
                self._decode,
                self._set.verifier,
                accelerator,
                temperature=self._set.knobs(max(step, 1)).temperature,
                progress=report,
            )

    def _decode(self, rollout: Rollout) -> str:
        text = self._parts.tokenizer.decode(rollout.tokens_L, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _samples(
        self,
        step: int,
        batch: TokenBatch,
        rollouts: Sequence[Rollout],
        verdicts: Sequence[Verdict],
        learned: Learned,
    ) -> list[dict[str, Any]]:
        """The first response of each of the first few prompts, token by token."""
        every = range(0, len(rollouts), batch.group_size)
        return [
            {
                "step": step,
                "question": batch.prompts[b // batch.group_size].question.text,
                "answer": batch.prompts[b // batch.group_size].question.answer,
                "response": self._decode(rollouts[b]),
                "reward": verdicts[b].reward,
                "status": verdicts[b].status,
                "extracted": verdicts[b].extracted,
                "tokens": [
                    self._parts.tokenizer.decode([t]) for t in rollouts[b].tokens_L.tolist()
                ],
                "logprob": _rounded(rollouts[b].logprobs_L),
                "entropy": _rounded(learned.entropy_BT[b][batch.mask_BT[b]]),
                "weight": _rounded(learned.weight_BT[b][batch.mask_BT[b]]),
                "advantage": _rounded(learned.advantage_BT[b][batch.mask_BT[b]]),
            }
            for b in list(every)[: self._set.responses_kept]
        ]

    def _costs(self, tokens: float) -> dict[str, float]:
        """Seconds by phase since the last line, tokens a second, memory.

        The checkpoint that follows a step is counted in the next line.
        """
        spent = self._journal.take_seconds()
        now = time.perf_counter()
        whole, self._since = now - self._since, now
        named = {
            k: spent.get(k, 0.0) for k in ("rollout", "reward", "update", "eval", "checkpoint")
        }
        work = named["rollout"] + named["reward"] + named["update"]
        costs = {
            **{f"time/{name}": seconds for name, seconds in named.items()},
            "time/other": max(whole - sum(named.values()), 0.0),
            "time/step": whole,
            "speed/tokens_per_s": tokens / max(work, 1e-9),
            "memory/peak_gb": peak_gib(),
        }
        if torch.cuda.is_available():
            costs["memory/gpu_gb"] = torch.cuda.max_memory_allocated() / 2**30
        return costs

    def _save(self, step: int) -> None:
        accelerator = self._parts.accelerator
        if accelerator.is_main_process:
            checkpoint.save(
                self._run_dir,
                checkpoint.Position(
                    step=step,
                    horizon=self._set.horizon,
                    prompts_seen=step * self._set.prompts_per_step,
                    seed=self._set.seed,
                ),
                self._parts.model,
                self._parts.tokenizer,
                self._parts.learner.optimizer,
                keep=self._set.keep,
            )
        accelerator.wait_for_everyone()

    def _stop_requested(self) -> bool:
        """All processes agree: the main one looks for the file."""
        accelerator = self._parts.accelerator
        wanted = accelerator.is_main_process and (self._run_dir / STOP).exists()
        vote = torch.tensor([float(wanted)], device=accelerator.device)
        return bool(accelerator.reduce(vote, "sum").item() > 0)


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _rounded(values: Tensor) -> list[float]:
    return [round(float(v), 5) for v in values]
