"""One optimiser phase: credit, loss, backward, step. Exact for any cut into micro-batches.

Letters: B responses of this process, T padded response tokens, b responses of a micro-batch.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tpcli.credit.allocation import NEEDS_SCORING, allocate
from tpcli.errors import RunFailedError
from tpcli.loss.correction import correct
from tpcli.loss.kl import ESTIMATORS
from tpcli.loss.reduce import Totals, coefficients, count, gradient_scale
from tpcli.loss.surrogate import TokenLoss, token_loss
from tpcli.optim.adamw import set_lr
from tpcli.policy.model import Pass, Policy, Scores
from tpcli.policy.pack import Packed, Row, pack, plan_rows
from tpcli.train.method import Knobs, Learned, Method
from tpcli.types import TokenBatch


@dataclass(frozen=True, slots=True, eq=False)
class _Task:
    """How a micro-batch is to be run; ``idle`` repeats a row with a loss of zero."""

    coefficient_BT: Tensor
    scored: bool
    measure_all: bool
    idle: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Micro:
    """A micro-batch's share of what the loss is made of."""

    coefficient_bT: Tensor
    advantage_bT: Tensor
    weight_bT: Tensor


class Learner:
    """Policy, reference and optimiser, and how a batch changes them."""

    def __init__(
        self,
        accelerator: Accelerator,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        reference: Policy | None,
        method: Method,
    ) -> None:
        self._accelerator = accelerator
        self._wrapped, self.optimizer = accelerator.prepare(policy, optimizer)
        self.policy = policy
        self.reference = reference
        self.method = method

    def update(self, batch: TokenBatch, knobs: Knobs, *, measure_all: bool = True) -> Learned:
        """Learn from one rollout phase: ``method.updates`` optimiser steps.

        With one update the policy that learns is the one that sampled: its log-probs, taken in the
        learning pass itself, are the old ones. With more, or when an allocation reads entropy or
        log-probs, a scoring pass comes first.

        Args:
            measure_all: measure every response token; else only where the step needs it.
        """
        book = Learned.blank(batch)
        responses = range(len(batch.mask_BT))
        method = self.method
        ahead = method.updates > 1 or not NEEDS_SCORING.isdisjoint(method.allocations)
        book.whole = measure_all or ahead
        if ahead:
            self._score(batch, responses, knobs, book)
        book.weight_BT, book.advantage_BT = allocate(
            method.allocations,
            magnitudes=knobs.magnitudes,
            mask_BT=batch.mask_BT,
            advantage_B=batch.advantage_B,
            entropy_BT=book.entropy_BT if ahead else None,
            logprob_BT=book.logprob_BT if ahead else None,
            focus=method.focus,
            alpha=knobs.alpha,
            kappa=knobs.kappa,
            seeds=batch.seeds,
        )
        if batch.learns_B is not None:
            book.weight_BT = book.weight_BT * batch.learns_B[:, None]
        set_lr(self.optimizer, knobs.lr)
        share = len(responses) // method.updates
        norms = [
            self._optimise(
                batch,
                responses[at : at + share],
                knobs,
                book,
                scored=ahead,
                measure_all=measure_all and not ahead,
            )
            for at in range(0, len(responses), share)
        ]
        book.grad_norm = sum(norms) / len(norms)
        return book

    def _optimise(
        self,
        batch: TokenBatch,
        part: Sequence[int],
        knobs: Knobs,
        book: Learned,
        *,
        scored: bool,
        measure_all: bool,
    ) -> float:
        """One optimiser step over ``part``; returns the gradient norm before clipping."""
        here = slice(part[0], part[-1] + 1)
        weight_BT, mask_BT = book.weight_BT[here], batch.mask_BT[here]
        totals = self._totals(weight_BT, mask_BT)
        coefficient_BT = torch.zeros_like(book.weight_BT)
        book.coefficient_BT[here] = coefficient_BT[here] = coefficients(
            weight_BT,
            mask_BT,
            totals,
            reduction=self.method.reduction,
            denominator=self.method.denominator,
            constant=self.method.constant,
        )
        book.add("gradient_scale", gradient_scale(coefficient_BT[here], totals))
        # A response whose every push is zero has no gradient; it is measured, never learned from.
        pushed_B = (coefficient_BT * book.advantage_BT != 0).any(-1)
        if knobs.kl_coef or knobs.entropy_coef:
            pushed_B = (coefficient_BT != 0).any(-1)
        learn = self._plan(batch, [i for i in part if pushed_B[i]])
        if measure_all:
            self._score(batch, [i for i in part if not pushed_B[i]], knobs, book)
        task = _Task(coefficient_BT, scored=scored, measure_all=measure_all)
        rounds = max(1, self._maximum(len(learn)))
        spare = self._plan(batch, part[:1])[0]
        for i in range(rounds):
            # Every process takes part in every backward pass: one that has run out of rows
            # repeats a row with a loss of zero.
            idle = i >= len(learn)
            rows = spare if idle else learn[i]
            last = i == rounds - 1
            with nullcontext() if last else self._accelerator.no_sync(self._wrapped):
                self._accelerator.backward(
                    self._loss(rows, batch, knobs, book, replace(task, idle=idle))
                )
        norm = self._accelerator.clip_grad_norm_(
            self._wrapped.parameters(), self.method.max_grad_norm
        )
        norm_value = float(norm) if norm is not None else 0.0
        if not math.isfinite(norm_value):
            raise RunFailedError(
                "the gradient is not finite, so the weights were left as they were",
                hint="resume from the last checkpoint with a lower [optim].lr or in float32",
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm_value

    def _loss(
        self, rows: Sequence[Row], batch: TokenBatch, knobs: Knobs, book: Learned, task: _Task
    ) -> Tensor:
        """What has the gradient of this micro-batch's loss, times the number of processes.

        Data-parallel averaging divides by the processes; the coefficients are global.
        """
        processes = self._accelerator.num_processes
        coefficient_BT = task.coefficient_BT
        learns_from = None
        if self.method.detach_prefix and not task.idle:
            learns_from = (coefficient_BT != 0).int().argmax(-1).tolist()
        packed = pack(rows, batch, learns_from=learns_from).to(self._accelerator.device)
        responses_b = packed.responses_b.cpu()
        micro = _Micro(
            coefficient_bT=coefficient_BT[responses_b].to(packed.mask_bT.device),
            advantage_bT=book.advantage_BT[responses_b].to(packed.mask_bT.device),
            weight_bT=book.weight_BT[responses_b].to(packed.mask_bT.device),
        )
        chosen_bT = packed.mask_bT if task.idle else micro.coefficient_bT != 0
        if task.idle:
            found = self._run(packed, chosen_bT, knobs.temperature)
            return 0.0 * found.logprob_bT.sum()
        measured_bT = None
        if not task.scored:
            measured_bT = packed.mask_bT if task.measure_all else chosen_bT
            if self.method.correction_level != "token" and self.method.correction != "none":
                measured_bT = packed.mask_bT  # a sequence's ratio is of the whole response
        push_bT = processes * self._push(micro, knobs) if self._push_is_known(knobs) else None
        found = self._run(
            packed,
            chosen_bT,
            knobs.temperature,
            push_bT=push_bT,
            measured_bT=measured_bT,
            reference=self.reference,
        )
        if found.scores is not None and measured_bT is not None:
            self._record(responses_b, found.scores, measured_bT, book)
        # With one update the policy that learns is the one that sampled: the ratio is 1 to the bit.
        old_bT = found.logprob_bT.detach()
        if self.method.updates > 1:
            old_bT = book.logprob_BT[responses_b].to(old_bT.device)
        token = self._token_loss(
            found.logprob_bT, torch.where(chosen_bT, old_bT, 0.0), micro, knobs
        )
        loss = self._sum(token, found, batch, responses_b, chosen_bT, micro, knobs, book)
        self._note(token, loss, responses_b, chosen_bT, book)
        return processes * loss if found.surrogate is None else found.surrogate

    def _run(self, packed: Packed, *args: Any, **kwargs: Any) -> Pass:
        found: Pass = self._wrapped(packed, *args, **kwargs)
        return found

    def _push_is_known(self, knobs: Knobs) -> bool:
        """On policy the ratio is 1; what else shapes the gradient depends on the log-probs."""
        method = self.method
        extra = knobs.kl_coef or knobs.entropy_coef or method.correction != "none"
        return method.updates == 1 and not extra

    def _push(self, micro: _Micro, knobs: Knobs) -> Tensor:
        """d loss / d logprob of each token at ratio 1, which no log-prob changes."""
        at_one_bT = torch.zeros_like(micro.coefficient_bT, requires_grad=True)
        with torch.enable_grad():
            token = self._token_loss(at_one_bT, torch.zeros_like(at_one_bT), micro, knobs)
            loss = (micro.coefficient_bT * token.loss_BT).sum()
        (push_bT,) = torch.autograd.grad(loss, at_one_bT)
        return push_bT

    def _token_loss(
        self, logprob_bT: Tensor, old_bT: Tensor, micro: _Micro, knobs: Knobs
    ) -> TokenLoss:
        return token_loss(
            self.method.objective,
            logprob_bT,
            old_bT,
            micro.advantage_bT,
            micro.weight_bT,
            clip_low=knobs.clip_low,
            clip_high=knobs.clip_high,
            dual_clip=self.method.dual_clip,
            tau_positive=knobs.tau_positive,
            tau_negative=knobs.tau_negative,
        )

    def _sum(
        self,
        token: TokenLoss,
        found: Pass,
        batch: TokenBatch,
        responses_b: Tensor,
        chosen_bT: Tensor,
        micro: _Micro,
        knobs: Knobs,
        book: Learned,
    ) -> Tensor:
        """Policy loss, corrected, with its penalties: one number."""
        loss_bT, coefficient_bT = token.loss_BT, micro.coefficient_bT
        if self.method.correction != "none":
            loss_bT = loss_bT * self._correction(batch, responses_b, chosen_bT, knobs, book)
        if knobs.kl_coef:
            ref_bT = book.ref_logprob_BT[responses_b].to(loss_bT.device)
            ref_bT = torch.where(chosen_bT, ref_bT, 0.0)
            kl_bT = ESTIMATORS[self.method.kl_estimator](found.logprob_bT, ref_bT)
            loss_bT = loss_bT + knobs.kl_coef * kl_bT
            book.add("kl_loss", (coefficient_bT * kl_bT).sum())
        if knobs.entropy_coef:
            loss_bT = loss_bT - knobs.entropy_coef * found.entropy_bT
            book.add("entropy_bonus", (coefficient_bT * found.entropy_bT).sum())
        return (coefficient_bT * loss_bT).sum()

    def _note(
        self,
        token: TokenLoss,
        loss: Tensor,
        responses_b: Tensor,
        chosen_bT: Tensor,
        book: Learned,
    ) -> None:
        """What the metrics want to know of a micro-batch."""
        book.add("loss", loss)
        book.add("learning_tokens", chosen_bT.sum())
        for name, clipped_bT in (
            ("clip_low", token.low_BT),
            ("clip_high", token.high_BT),
            ("clip_dual", token.dual_BT),
        ):
            book.add(name, (clipped_bT & chosen_bT).sum())
        clipped_bT = (token.low_BT | token.high_BT | token.dual_BT) & chosen_bT
        book.clipped_BT[responses_b] = clipped_bT.cpu()
        book.add("ppo_kl", -torch.where(chosen_bT, token.log_ratio_BT, 0.0).sum())

    def _correction(
        self,
        batch: TokenBatch,
        responses_b: Tensor,
        chosen_bT: Tensor,
        knobs: Knobs,
        book: Learned,
    ) -> Tensor:
        """What the policy loss of each token is multiplied by for having been sampled elsewhere."""
        found = correct(
            book.logprob_BT[responses_b],
            batch.rollout_logprob_BT[responses_b],
            batch.mask_BT[responses_b],
            kind=self.method.correction,
            level=self.method.correction_level,
            low=knobs.correction_low,
            high=knobs.correction_high,
        )
        chosen_bT = chosen_bT.cpu()
        book.add("correction", (found.weight_BT * chosen_bT).sum())
        book.add("corrected", (found.touched_BT & chosen_bT).sum())
        return found.weight_BT.to(self._accelerator.device)

    @torch.no_grad()
    def _score(
        self, batch: TokenBatch, responses: Sequence[int], knobs: Knobs, book: Learned
    ) -> None:
        """Measure responses without learning from them."""
        for rows in self._plan(batch, responses):
            packed = pack(rows, batch).to(self._accelerator.device)
            with self._accelerator.autocast():
                scores = self.policy.score(
                    packed,
                    packed.mask_bT,
                    temperature=knobs.temperature,
                    reference=self.reference,
                )
            self._record(packed.responses_b.cpu(), scores, packed.mask_bT, book)

    @torch.no_grad()
    def _record(
        self, responses_b: Tensor, scores: Scores, measured_bT: Tensor, book: Learned
    ) -> None:
        book.logprob_BT[responses_b] = scores.logprob_bT.float().cpu()
        book.entropy_BT[responses_b] = scores.entropy_bT.float().cpu()
        book.kl_BT[responses_b] = scores.kl_bT.float().cpu()
        book.ref_logprob_BT[responses_b] = scores.ref_logprob_bT.float().cpu()
        book.measured_BT[responses_b] = measured_bT.cpu()

    def _plan(self, batch: TokenBatch, responses: Sequence[int]) -> list[list[Row]]:
        return plan_rows(batch, responses, budget=self.method.micro_batch_tokens)

    def _totals(self, weight_BT: Tensor, mask_BT: Tensor) -> Totals:
        counted = count(weight_BT, mask_BT)
        if self._accelerator.num_processes > 1:
            counted = self._accelerator.reduce(counted.to(self._accelerator.device), "sum")
        return Totals(*counted.tolist())

    def _maximum(self, value: int) -> int:
        mine = torch.tensor([value], device=self._accelerator.device)
        return int(self._accelerator.gather(mine).max())
