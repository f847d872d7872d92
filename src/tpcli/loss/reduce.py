"""How token losses become one number, exactly, however the step is cut into pieces.

A reduction is written as one coefficient a token: loss = sum_bt coefficient_bt * loss_bt. The
coefficients depend on counts of the *whole* optimiser step (all micro-batches, all processes), so
any split of the responses adds up to the same loss and the same gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tpcli.names import DenominatorName, ReductionName


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over the whole optimiser step.

    Attributes:
        selected: response tokens with a weight other than 0.
        tokens: all response tokens.
        credited: responses with a selected token; not those filtered as overlong.
        responses: responses with a token; an empty one never counts.
    """

    selected: float
    tokens: float
    credited: float
    responses: float


def count(weight_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """``Totals`` of one piece, float64 [4]; add up over pieces and processes."""
    selected_BT = mask_BT & (weight_BT != 0)
    counts = (selected_BT, mask_BT, selected_BT.any(-1), mask_BT.any(-1))
    return torch.stack([counted.sum() for counted in counts]).double()


def coefficients(
    weight_BT: Tensor,
    mask_BT: Tensor,
    totals: Totals,
    *,
    reduction: ReductionName = "token-mean",
    denominator: DenominatorName = "selected",
    constant: float | None = None,
) -> Tensor:
    """What each token's loss is multiplied by; the weight is included.

    With w the weights, n the tokens of a response that the denominator counts, N the same over the
    whole step, B the responses that it counts and C ``constant``:

        token-mean               w / N        (N = C when denominator = "constant")
        seq-mean-token-sum       w / B
        seq-mean-token-mean      w / (n B)    (n = C when denominator = "constant")
        seq-mean-token-sum-norm  w / (C B)    (Dr.GRPO: C is the longest response allowed)

    The reduction called constant elsewhere, a sum divided by a fixed number, is token-mean with
    denominator = "constant".

    A response filtered for its length has weight 0 throughout: "selected" leaves its tokens out of
    N and itself out of B (as verl does, which empties its mask), "all" counts them (as TRL counts
    the response). Under a constant denominator B counts it too.

    Args:
        weight_BT: from the allocation, 0 outside the mask.
        mask_BT: bool, True on response tokens.
        totals: of the whole step, this piece included.
        denominator: "selected" counts tokens with w != 0 and responses that have one, "all" counts
            response tokens and responses that are not empty.

    Returns:
        coefficient_BT: float32. All 0 where the step has nothing to count.

    Raises:
        ValueError: ``constant`` is missing where it is needed.

    Ref: https://arxiv.org/abs/2503.14476 (token-mean), https://arxiv.org/abs/2503.20783 (norm)
    """
    needs_constant = denominator == "constant" or reduction == "seq-mean-token-sum-norm"
    if needs_constant and not constant:
        raise ValueError(f"{reduction} with denominator {denominator} needs a constant")
    weight_BT = torch.where(mask_BT, weight_BT, 0.0).double()
    responses = max(totals.credited if denominator == "selected" else totals.responses, 1.0)
    if reduction == "seq-mean-token-sum-norm":
        return (weight_BT / ((constant or 1.0) * responses)).float()
    if reduction == "seq-mean-token-sum":
        return (weight_BT / responses).float()
    if reduction == "token-mean":
        whole = {
            "selected": totals.selected,
            "all": totals.tokens,
            "constant": constant or 1.0,
        }[denominator]
        return (weight_BT / (whole if whole > 0 else 1.0)).float()
    counted_BT = weight_BT != 0 if denominator == "selected" else mask_BT
    length_B1 = counted_BT.sum(-1, keepdim=True).clamp(min=1).double()
    if denominator == "constant":
        length_B1 = torch.full_like(length_B1, constant or 1.0)
    return (weight_BT / (length_B1 * responses)).float()


def gradient_scale(coefficient_BT: Tensor, totals: Totals) -> Tensor:
    """This piece's part of the effective gradient scale; add it up over pieces and processes.

    The scale is the mean coefficient of a credited token relative to plain token-mean over all
    response tokens (1 / tokens): 1 for uniform credit, 50 when a token-mean over 2% of the tokens
    makes each of them count fifty-fold. Shape [], float64.
    """
    return coefficient_BT.double().sum() * (totals.tokens / max(totals.selected, 1.0))
