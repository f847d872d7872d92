"""One optimiser phase: credit, loss, backward, step. Exact for any cut into micro-batches.

Letters: B responses of this process, T padded response tokens, b responses of a micro-batch.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from torch import Tensor

from tpcli.credit.allocation import NEEDS_SCORING, allocate
from tpcli.errors import RunFailedError
from tpcli.loss.correction import correct
from tpcli.loss.kl import ESTIMATORS
from tpcli.loss.reduce import Totals, coefficients, count, gradient_scale
from tpcli.loss.surrogate import token_loss
from tpcli.names import (
    AllocationName,
    CorrectionLevel,
    CorrectionName,
    DenominatorName,
    KlName,
    ObjectiveName,
    ReductionName,
)
from tpcli.optim.adamw import set_lr
from tpcli.policy.model import Policy
from tpcli.policy.pack import Packed, Row, pack, plan_rows
from tpcli.types import TokenBatch


@dataclass(frozen=True, slots=True)
class Method:
    """What stays fixed over a run."""

    allocations: tuple[AllocationName, ...]
    focus: tuple[float, float]
    objective: ObjectiveName
    dual_clip: float | None
    correction: CorrectionName
    correction_level: CorrectionLevel
    reduction: ReductionName
    denominator: DenominatorName
    constant: float | None
    kl_estimator: KlName
    updates: int
    max_grad_norm: float
    micro_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Knobs:
    """What a schedule may move: the values of one step.

    ``moving`` repeats, by name, those that the recipe schedules beside the magnitude.
    """

    temperature: float
    top_p: float
    penalty: float
    magnitudes: Mapping[AllocationName, float]
    alpha: float
    kappa: float
    clip_low: float
    clip_high: float
    tau_positive: float
    tau_negative: float
    correction_low: float
    correction_high: float
    kl_coef: float
    entropy_coef: float
    lr: float
    moving: Mapping[str, float] = field(default_factory=dict)

    @property
    def magnitude(self) -> float:
        """Of the first allocation; 0, plain GRPO, where none has one."""
        return next(iter(self.magnitudes.values()), 0.0)


@dataclass(slots=True, eq=False)
class Learned:
    """What a phase saw and did; every tensor is this process's share, [B, T] on the CPU.

    ``coefficient_BT`` is what each token's loss was multiplied by, ``clipped_BT`` where a bound of
    the objective held. ``sums`` holds numbers to be added up over processes; ``grad_norm`` is
    already global.
    """

    weight_BT: Tensor
    advantage_BT: Tensor
    logprob_BT: Tensor
    entropy_BT: Tensor
    kl_BT: Tensor
    ref_logprob_BT: Tensor
    coefficient_BT: Tensor
    clipped_BT: Tensor
    sums: dict[str, float]
    grad_norm: float = 0.0


class Learner:
    """Policy, reference and optimiser, and how a batch changes them."""

    def __init__(
        self,
        accelerator: Accelerator,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        reference: Policy | None,
        method: Method,
        *,
        pad_id: int,
    ) -> None:
        self._accelerator = accelerator
        self._wrapped, self.optimizer = accelerator.prepare(policy, optimizer)
        self.policy = policy
        self.reference = reference
        self.method = method
        self._pad_id = pad_id

    def update(self, batch: TokenBatch, knobs: Knobs) -> Learned:
        """Learn from one rollout phase: ``method.updates`` optimiser steps.

        With one update the policy that learns is the one that sampled: its log-probs, taken in the
        learning pass itself, are the old ones. With more, or when an allocation reads entropy or
        log-probs, a scoring pass comes first.
        """
        book = _blank(batch)
        responses = range(len(batch.mask_BT))
        method = self.method
        ahead = method.updates > 1 or not NEEDS_SCORING.isdisjoint(method.allocations)
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
            self._optimise(batch, responses[at : at + share], knobs, book, scored=ahead)
            for at in range(0, len(responses), share)
        ]
        book.grad_norm = sum(norms) / len(norms)
        return book

    def _optimise(
        self, batch: TokenBatch, part: Sequence[int], knobs: Knobs, book: Learned, *, scored: bool
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
        _add(book.sums, "gradient_scale", gradient_scale(coefficient_BT[here], totals))
        # A response whose every push is zero has no gradient; it is scored, never learned from.
        pushed_B = (coefficient_BT * book.advantage_BT != 0).any(-1)
        if knobs.kl_coef or knobs.entropy_coef:
            pushed_B = (coefficient_BT != 0).any(-1)
        learn = self._plan(batch, [i for i in part if pushed_B[i]])
        if not scored:
            self._score(batch, [i for i in part if not pushed_B[i]], knobs, book)
        rounds = max(1, self._maximum(len(learn)))
        spare = self._plan(batch, part[:1])[0]
        for i in range(rounds):
            # Every process takes part in every backward pass: one that has run out of rows
            # repeats a row with a loss of zero.
            idle = i >= len(learn)
            rows = spare if idle else learn[i]
            last = i == rounds - 1
            with nullcontext() if last else self._accelerator.no_sync(self._wrapped):
                loss = self._loss(rows, batch, knobs, book, coefficient_BT, scored or idle, idle)
                # Data-parallel averaging divides by the processes; the coefficients are global.
                self._accelerator.backward(loss * self._accelerator.num_processes)
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
        self,
        rows: Sequence[Row],
        batch: TokenBatch,
        knobs: Knobs,
        book: Learned,
        coefficient_BT: Tensor,
        scored: bool,
        idle: bool,
    ) -> Tensor:
        """This micro-batch's part of the loss: its tokens' losses times their coefficients."""
        packed = pack(rows, batch, pad_id=self._pad_id).to(self._accelerator.device)
        responses_b = packed.responses_b.cpu()
        coefficient_bT = coefficient_BT[responses_b].to(packed.mask_bT.device)
        chosen_bT = packed.mask_bT if idle else coefficient_bT != 0
        scores: tuple[Tensor, Tensor, Tensor] = self._wrapped(packed, chosen_bT, knobs.temperature)
        hidden_MD, logprob_bT, entropy_bT = scores
        if idle:
            return 0.0 * logprob_bT.sum()
        if not scored:
            self._record(packed, hidden_MD, knobs, book)
        device = logprob_bT.device
        # With one update the policy that learns is the one that sampled: the ratio is 1 to the bit.
        old_bT = logprob_bT.detach()
        if self.method.updates > 1:
            old_bT = book.logprob_BT[responses_b].to(device)
        token = token_loss(
            self.method.objective,
            logprob_bT,
            torch.where(chosen_bT, old_bT, 0.0),
            book.advantage_BT[responses_b].to(device),
            book.weight_BT[responses_b].to(device),
            clip_low=knobs.clip_low,
            clip_high=knobs.clip_high,
            dual_clip=self.method.dual_clip,
            tau_positive=knobs.tau_positive,
            tau_negative=knobs.tau_negative,
        )
        loss_bT = token.loss_BT
        if self.method.correction != "none":
            loss_bT = loss_bT * self._correction(batch, responses_b, chosen_bT, knobs, book)
        if knobs.kl_coef:
            ref_bT = torch.where(chosen_bT, book.ref_logprob_BT[responses_b].to(device), 0.0)
            kl_bT = ESTIMATORS[self.method.kl_estimator](logprob_bT, ref_bT)
            loss_bT = loss_bT + knobs.kl_coef * kl_bT
            _add(book.sums, "kl_loss", (coefficient_bT * kl_bT).sum())
        if knobs.entropy_coef:
            loss_bT = loss_bT - knobs.entropy_coef * entropy_bT
            _add(book.sums, "entropy_bonus", (coefficient_bT * entropy_bT).sum())
        loss = (coefficient_bT * loss_bT).sum()
        _add(book.sums, "loss", loss)
        _add(book.sums, "learning_tokens", chosen_bT.sum())
        for name, clipped_bT in (
            ("clip_low", token.low_BT),
            ("clip_high", token.high_BT),
            ("clip_dual", token.dual_BT),
        ):
            _add(book.sums, name, (clipped_bT & chosen_bT).sum())
        clipped_bT = (token.low_BT | token.high_BT | token.dual_BT) & chosen_bT
        book.clipped_BT[responses_b] = clipped_bT.cpu()
        _add(book.sums, "ppo_kl", -torch.where(chosen_bT, token.log_ratio_BT, 0.0).sum())
        return loss

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
        _add(book.sums, "correction", (found.weight_BT * chosen_bT).sum())
        _add(book.sums, "corrected", (found.touched_BT & chosen_bT).sum())
        return found.weight_BT.to(self._accelerator.device)

    @torch.no_grad()
    def _score(
        self, batch: TokenBatch, responses: Sequence[int], knobs: Knobs, book: Learned
    ) -> None:
        """Score responses without learning from them."""
        for rows in self._plan(batch, responses):
            packed = pack(rows, batch, pad_id=self._pad_id).to(self._accelerator.device)
            with self._accelerator.autocast():
                hidden_MD = self.policy.hidden(packed)
            self._record(packed, hidden_MD, knobs, book)

    @torch.no_grad()
    def _record(self, packed: Packed, hidden_MD: Tensor, knobs: Knobs, book: Learned) -> None:
        with self._accelerator.autocast():
            scores = self.policy.score(
                packed, hidden_MD, temperature=knobs.temperature, reference=self.reference
            )
        here = packed.responses_b.cpu()
        book.logprob_BT[here] = scores.logprob_bT.float().cpu()
        book.entropy_BT[here] = scores.entropy_bT.float().cpu()
        book.kl_BT[here] = scores.kl_bT.float().cpu()
        book.ref_logprob_BT[here] = scores.ref_logprob_bT.float().cpu()

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


def _blank(batch: TokenBatch) -> Learned:
    def zeros() -> Tensor:
        return torch.zeros(batch.mask_BT.shape)

    return Learned(
        weight_BT=zeros(),
        advantage_BT=zeros(),
        logprob_BT=zeros(),
        entropy_BT=zeros(),
        kl_BT=zeros(),
        ref_logprob_BT=zeros(),
        coefficient_BT=zeros(),
        clipped_BT=zeros().bool(),
        sums={},
    )


def _add(sums: dict[str, float], name: str, value: Tensor) -> None:
    sums[name] = sums.get(name, 0.0) + float(value.detach())
