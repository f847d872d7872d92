"""A step of random tokens, and its loss and gradient by the plain use of the functions in loss/."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpcli.loss.reduce import Totals, coefficients, count
from tpcli.loss.surrogate import TokenLoss, token_loss
from tpcli.names import DenominatorName, ObjectiveName, ReductionName

REDUCTIONS: list[tuple[ReductionName, DenominatorName, float | None]] = [
    ("token-mean", "selected", None),
    ("token-mean", "all", None),
    ("token-mean", "constant", 40.0),
    ("seq-mean-token-sum", "selected", None),
    ("seq-mean-token-mean", "selected", None),
    ("seq-mean-token-mean", "all", None),
    ("seq-mean-token-mean", "constant", 9.0),
    ("seq-mean-token-sum-norm", "selected", 9.0),
]
"""Every reduction with every denominator that changes it."""


@dataclass(frozen=True)
class Tokens:
    """What an update knows of its tokens; every tensor [B, T], weights 0 outside the mask."""

    logprob: Tensor
    old_logprob: Tensor
    advantage: Tensor
    weight: Tensor
    mask: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> "Tokens":
        return Tokens(*(change(t) for t in vars(self).values()))


def draw(
    lengths: Sequence[int], *, seed: int = 0, spread: float = 0.4, weighted: bool = True
) -> Tokens:
    """Right-padded responses; what stands on padding is as random as the rest, but for weights.

    ``spread``: of the log-ratios, wide enough by default that every bound is met. ``weighted``:
    about a third of the tokens has weight 0 and the others any weight, else all have 1.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask_BT = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    old_BT = -2 * torch.rand(shape, generator=generator)
    weight_BT = torch.rand(shape, generator=generator) + 0.5
    weight_BT = torch.where(torch.rand(shape, generator=generator) < 0.33, 0.0, weight_BT)
    return Tokens(
        logprob=old_BT + spread * torch.randn(shape, generator=generator),
        old_logprob=old_BT,
        advantage=torch.randn((shape[0], 1), generator=generator).expand(shape).clone(),
        weight=torch.where(mask_BT, weight_BT, 0.0) if weighted else mask_BT.float(),
        mask=mask_BT,
    )


def loss_and_gradient(
    tokens: Tokens,
    objective: ObjectiveName,
    *,
    reduction: ReductionName = "token-mean",
    denominator: DenominatorName = "selected",
    constant: float | None = None,
    cuts: Sequence[int] = (),
    extra: Callable[[Tensor, TokenLoss], Tensor] | None = None,
    **settings: Any,
) -> tuple[float, Tensor]:
    """The step's loss and its gradient by log-prob, the responses cut into pieces at ``cuts``.

    ``extra`` makes another loss a token of the log-probs and the objective's.
    """
    logprob_BT = tokens.logprob.detach().clone().requires_grad_()
    edges = [0, *sorted(set(cuts) - {0, len(logprob_BT)}), len(logprob_BT)]
    pieces = [slice(a, b) for a, b in itertools.pairwise(edges)]
    totals = Totals(*sum(count(tokens.weight[p], tokens.mask[p]) for p in pieces).tolist())  # type: ignore[union-attr]
    whole = 0.0
    for piece in pieces:
        part = tokens.map(lambda t, piece=piece: t[piece])  # type: ignore[misc]
        token = token_loss(
            objective,
            logprob_BT[piece],
            part.old_logprob,
            part.advantage,
            part.weight,
            **settings,
        )
        loss_BT = extra(logprob_BT[piece], token) if extra else token.loss_BT
        coefficient_BT = coefficients(
            part.weight,
            part.mask,
            totals,
            reduction=reduction,
            denominator=denominator,
            constant=constant,
        )
        loss = (coefficient_BT * loss_BT).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        whole += loss.item()
    assert logprob_BT.grad is not None
    return whole, logprob_BT.grad
