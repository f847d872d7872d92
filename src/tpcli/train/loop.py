"""The loop: ask, answer, score, credit, learn, count, keep. One pass a step."""

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tpcli.credit.advantage import advantages
from tpcli.data.decode import opens_thinking, response_text
from tpcli.names import AdvantageName, SignalName
from tpcli.registry.folder import STOP
from tpcli.reward.length import overlong_penalty
from tpcli.reward.verify import Grader
from tpcli.rollout.engine import RolloutEngine
from tpcli.train import checkpoint
from tpcli.train.collect import Asking, Collected, Collector
from tpcli.train.evaluate import HeldOut, accuracy
from tpcli.train.journal import Journal
from tpcli.train.measure import finish, tally
from tpcli.train.method import Knobs, Learned
from tpcli.train.order import response_seed
from tpcli.train.step import Learner
from tpcli.train.sync import Sync
from tpcli.train.team import Team
from tpcli.train.tempo import Tempo
from tpcli.types import Answered, Prompt, Rollout, StepStats, TokenBatch


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of; ``build`` makes it."""

    accelerator: Accelerator
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    grader: Grader
    engine: RolloutEngine
    learner: Learner
    asking: Asking
    tempo: Tempo
    held_out: HeldOut | None
    team: Team
    sync: Sync | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How the loop goes.

    Attributes:
        ahead: the responses of the next step are drawn while this one is learned from.
        k: of advantage pass_at_k.
        mask_overlong: unfinished responses are left out of the loss.
        tokens_every: steps between measurements of every response token.
        buffer: tokens before the limit over which the soft penalty on length rises.
        knobs, progress: from a step, and the shares of what is adaptive, to scheduled values.
    """

    steps: int
    horizon: int
    seed: int
    advantage: AdvantageName
    eps: float
    ddof: int
    ahead: bool
    k: int
    mask_overlong: bool
    buffer: int
    save_every: int
    keep: int
    responses_kept: int
    tokens_every: int
    with_kl: bool
    knobs: Callable[[int, Mapping[str, float]], Knobs]
    progress: Callable[[int, Mapping[str, float]], float]


class Loop:
    """A run between two checkpoints."""

    def __init__(self, run_dir: Path, parts: Parts, settings: Settings, journal: Journal) -> None:
        self._run_dir, self._parts, self._set, self._journal = run_dir, parts, settings, journal
        self._rank = parts.accelerator.process_index
        self._since = time.perf_counter()
        # One that draws ahead works beside the update, whose phase is the one to be shown.
        shown = Journal(run_dir, steps=settings.steps, writes=False) if settings.ahead else journal
        self._collector = Collector(
            parts.asking,
            parts.engine,
            self._read,
            parts.grader,
            shown,
            parts.team,
        )
        self._next: Future[Collected] | None = None
        self._beside = ThreadPoolExecutor(1)

    def run(self, done: int) -> None:
        """Train from step ``done`` to the end, or to the step after which it is asked to stop.

        The metrics of a step are on the disk before its checkpoint is: what a resumed run cuts
        back is never more than what it does again.
        """
        try:
            self._run(done)
        finally:
            # What is being drawn ahead is of no use to anybody.
            self._beside.shutdown(wait=False, cancel_futures=True)

    def _run(self, done: int) -> None:
        self._journal.cut_back(done if done else -1)  # without a checkpoint, step 0 is redone
        if self._parts.sync:  # the engine began with the weights of step 0, as they are stored
            with self._journal.phase("sync", done):
                self._parts.sync.push(done)
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
        tempo = self._parts.tempo
        knobs = self._set.knobs(step, tempo.shares)
        collected, staleness = self._collected(step, knobs)
        batch = self._collate(step, collected, knobs.penalty)
        if self._parts.sync and not self._set.ahead:
            self._parts.sync.sleep()
        with self._journal.phase("update", step):
            learned = self._parts.learner.update(batch, knobs, measure_all=self._whole(step))
        total = tally(batch, collected, learned).over(self._parts.accelerator)
        stats = finish(
            step,
            total,
            knobs,
            progress=self._set.progress(step, tempo.shares),
            updates=self._parts.learner.method.updates,
            grad_norm=learned.grad_norm,
            with_kl=self._set.with_kl,
            with_correction=self._parts.learner.method.correction != "none",
            with_refills=self._parts.asking.rounds > 0,
        )
        tempo.after(step, _signals(stats))
        if self._set.ahead:
            stats.scalars["rollout/staleness"] = float(staleness)
        stats.scalars.update(self._sync(step))
        self._journal.responses(self._samples(step, batch, collected, learned))
        held_out = self._parts.held_out
        if held_out and (step % held_out.every == 0 or step == self._set.steps):
            stats.scalars.update(self._evaluate(step))
        stats.scalars.update(self._costs(float(total.sums["credit"][1])))
        self._journal.metrics(stats)

    def _collected(self, step: int, knobs: Knobs) -> tuple[Collected, int]:
        """The step's responses, and how many updates older than the policy their sampler is.

        With ``ahead`` those of the next step are begun at once: before this step's update.
        """
        if not self._set.ahead:
            return self._collect(step, knobs), 0
        pending, self._next = self._next, None
        with self._journal.phase("rollout", step):
            if pending is None:
                collected, staleness = self._collect(step, knobs), 0
            else:
                collected, staleness = pending.result(), 1
        if step < self._set.steps:
            later = self._set.knobs(step + 1, self._parts.tempo.shares)
            self._next = self._beside.submit(self._collect, step + 1, later)
        return collected, staleness

    def _collect(self, step: int, knobs: Knobs) -> Collected:
        with self._parts.accelerator.autocast():
            return self._collector.collect(
                step,
                temperature=knobs.temperature,
                top_p=knobs.top_p,
                prefix=knobs.magnitudes.get("expert_prefix", 0.0),
            )

    def _sync(self, step: int) -> dict[str, float]:
        """Hand the new weights to an engine that keeps its own, once it has stopped drawing."""
        if self._parts.sync is None:
            return {}
        if self._next is not None:
            with self._journal.phase("rollout", step):
                wait([self._next])
        with self._journal.phase("sync", step):
            found = self._parts.sync.push(step)
        return {"sync/gap": found.gap, "sync/gap_max": found.largest}

    def _whole(self, step: int) -> bool:
        """Whether every response token is measured in this step."""
        return step in (1, self._set.steps) or step % self._set.tokens_every == 0

    def _collate(self, step: int, collected: Collected, penalty: float) -> TokenBatch:
        rollouts = [rollout for group in collected.groups for rollout in group]
        verdicts = [verdict for group in collected.verdicts for verdict in group]
        tokens_BT = pad_sequence([r.tokens_L for r in rollouts], batch_first=True)
        lengths = [len(r.tokens_L) for r in rollouts]
        asking, settings = self._parts.asking, self._set
        reward_B = torch.tensor(
            [
                verdict.reward
                - overlong_penalty(
                    length,
                    limit=asking.max_new_tokens,
                    buffer=settings.buffer,
                    penalty=penalty,
                )
                for verdict, length in zip(verdicts, lengths, strict=True)
            ]
        )
        first = self._rank * len(rollouts)
        finished_B = torch.tensor([r.finished for r in rollouts])
        return TokenBatch(
            prompts=collected.prompts,
            tokens_BT=tokens_BT,
            mask_BT=torch.arange(tokens_BT.shape[1]) < torch.tensor(lengths)[:, None],
            rollout_logprob_BT=pad_sequence([r.logprobs_L for r in rollouts], batch_first=True),
            reward_B=reward_B,
            advantage_B=mine_of_all(
                reward_B,
                self._parts.accelerator,
                lambda every_B: advantages(
                    settings.advantage,
                    every_B,
                    group_size=asking.group_size,
                    eps=settings.eps,
                    ddof=settings.ddof,
                    k=settings.k,
                ),
            ),
            group_size=asking.group_size,
            learns_B=finished_B if settings.mask_overlong else None,
            seeds=[response_seed(settings.seed, step, first + b) for b in range(len(rollouts))],
        )

    def _evaluate(self, step: int) -> dict[str, float]:
        held_out = self._parts.held_out
        assert held_out is not None
        accelerator = self._parts.accelerator
        knobs = self._set.knobs(max(step, 1), self._parts.tempo.shares)
        with self._journal.phase("eval", step) as report, accelerator.autocast():
            return accuracy(
                held_out,
                self._parts.engine,
                self._read,
                self._parts.grader,
                accelerator,
                self._parts.team,
                temperature=knobs.temperature,
                top_p=knobs.top_p,
                progress=report,
            )

    def _read(self, prompt: Prompt, group: Sequence[Rollout]) -> list[Answered]:
        asked = prompt.tokens[: len(prompt.tokens) - prompt.prefix]
        opened = opens_thinking(asked, self._parts.tokenizer)
        return [
            Answered(
                self._decode(prompt, rollout), prompt.question.answer, rollout.finished, opened
            )
            for rollout in group
        ]

    def _decode(self, prompt: Prompt, rollout: Rollout) -> str:
        """The whole response, a given solution prefix included."""
        given = prompt.tokens[len(prompt.tokens) - prompt.prefix :]
        return response_text([*given, *rollout.tokens_L.tolist()], self._parts.tokenizer)

    def _samples(
        self, step: int, batch: TokenBatch, collected: Collected, learned: Learned
    ) -> list[dict[str, Any]]:
        """The first response of each of the first few prompts, token by token."""
        return [
            self._sample(step, batch, collected, learned, place)
            for place in range(min(self._set.responses_kept, len(collected.groups)))
        ]

    def _sample(
        self, step: int, batch: TokenBatch, collected: Collected, learned: Learned, place: int
    ) -> dict[str, Any]:
        prompt, rollout = collected.prompts[place], collected.groups[place][0]
        verdict, b = collected.verdicts[place][0], place * batch.group_size
        ids = rollout.tokens_L.tolist()
        tokens = {"weight": learned.weight_BT, "advantage": learned.advantage_BT}
        if learned.whole:
            tokens |= {"old_logprob": learned.logprob_BT, "entropy": learned.entropy_BT}
        return {
            "step": step,
            "question": prompt.question.text,
            "answer": prompt.question.answer,
            "response": self._decode(prompt, rollout),
            "reward": verdict.reward,
            "status": verdict.status,
            "extracted": verdict.extracted,
            "group_advantage": float(batch.advantage_B[b]),
            "learns": batch.learns_B is None or bool(batch.learns_B[b]),
            "seed": batch.seeds[b],
            "prefix": prompt.prefix,
            "prompt_ids": list(prompt.tokens),
            "ids": ids,
            "tokens": [self._parts.tokenizer.decode([t]) for t in ids],
            "logprob": _rounded(rollout.logprobs_L),
            **{name: _rounded(value_BT[b, : len(ids)]) for name, value_BT in tokens.items()},
        }

    def _costs(self, tokens: float) -> dict[str, float]:
        """Seconds by phase since the last line, tokens a second, memory.

        The checkpoint that follows a step is counted in the next line.
        """
        spent = self._journal.take_seconds()
        now = time.perf_counter()
        whole, self._since = now - self._since, now
        phases = ["rollout", "reward", "update", "eval", "checkpoint"]
        if self._parts.sync:
            phases.append("sync")
        named = {k: spent.get(k, 0.0) for k in phases}
        work = sum(named[k] for k in phases if k not in ("eval", "checkpoint"))
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
                    prompts_seen=step * self._parts.asking.prompts_per_step,
                    seed=self._set.seed,
                    tempo=self._parts.tempo.state(),
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


def mine_of_all(
    value_B: Tensor, accelerator: Accelerator, function: Callable[[Tensor], Tensor]
) -> Tensor:
    """This process's part of a function of the values of all processes, on the CPU."""
    if accelerator.num_processes == 1:
        return function(value_B)
    every_B = accelerator.gather(value_B.to(accelerator.device)).cpu()
    first = accelerator.process_index * len(value_B)
    return function(every_B)[first : first + len(value_B)]


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _rounded(values: Tensor) -> list[float]:
    """Nine significant digits: a float32 read back from them is the same one."""
    return [float(f"{v:.9g}") for v in values.tolist()]


def _signals(stats: StepStats) -> dict[SignalName, float]:
    """What adaptive schedules follow; accuracy is of all responses drawn, replaced ones too."""
    accuracy = stats.scalars.get("sampling/accuracy", stats.scalars["verdict/correct"])
    found: dict[SignalName, float] = {"accuracy": accuracy}
    if "entropy/all" in stats.scalars:
        found["entropy"] = stats.scalars["entropy/all"]
    return found
