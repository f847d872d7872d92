"""What an optimiser phase is told, and what it tells.

Letters: B responses of this process, T padded response tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from tpcli.names import (
    AllocationName,
    CorrectionLevel,
    CorrectionName,
    DenominatorName,
    KlName,
    ObjectiveName,
    ReductionName,
)
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
    detach_prefix: bool = False


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
    the objective held. Log-prob, entropy and KL are those of ``measured_BT`` and 0 elsewhere.
    ``sums`` holds numbers to be added up over processes; ``whole`` says that every response token
    was measured; ``grad_norm`` is
    already global.
    """

    weight_BT: Tensor
    advantage_BT: Tensor
    logprob_BT: Tensor
    entropy_BT: Tensor
    kl_BT: Tensor
    ref_logprob_BT: Tensor
    measured_BT: Tensor
    coefficient_BT: Tensor
    clipped_BT: Tensor
    sums: dict[str, float]
    whole: bool = True
    grad_norm: float = 0.0

    @classmethod
    def blank(cls, batch: TokenBatch) -> Self:
        """Nothing seen yet."""

        def zeros() -> Tensor:
            return torch.zeros(batch.mask_BT.shape)

        return cls(
            weight_BT=zeros(),
            advantage_BT=zeros(),
            logprob_BT=zeros(),
            entropy_BT=zeros(),
            kl_BT=zeros(),
            ref_logprob_BT=zeros(),
            measured_BT=zeros().bool(),
            coefficient_BT=zeros(),
            clipped_BT=zeros().bool(),
            sums={},
        )

    def add(self, name: str, value: Tensor) -> None:
        """Add to a sum."""
        self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
