"""TP-Schedule inside TRL's GRPOTrainer.

    from tpcli.integrations.trl import schedule_credit

    trainer = GRPOTrainer(...)
    schedule_credit(trainer, initial=0.99, end=0.8)
    trainer.train()

TRL knows tokens that a model reads and does not learn from: the results of tools. Context tokens
are handed to it as such, so its own code leaves them out of the loss and out of every denominator.
Rewards and advantages are made before that, of whole responses.

Letters: B responses of a micro-batch, T padded response tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tpcli.credit import schedule
from tpcli.errors import TpcliError, UsageError
from tpcli.names import AllocationName, CurveName, FocusName

if TYPE_CHECKING:
    from torch import Tensor
    from trl.trainer.grpo_trainer import GRPOTrainer

_KEY = "ScheduledCredit"  # where trainer_state.json keeps our horizon
_LONG = 1_000_000  # steps: stands in for a horizon that is not known before the training


def schedule_credit(
    trainer: GRPOTrainer,
    *,
    allocation: AllocationName = "trajectory_percentile",
    focus: FocusName | tuple[float, float] = "late",
    curve: CurveName = "linear",
    initial: float = 0.99,
    final: float = 0.0,
    start: float = 0.0,
    end: float = 0.8,
    reverse: bool = False,
    gamma: float = 2.0,
    rate: float = 5.0,
    stairs: int = 4,
    points: Sequence[tuple[float, float]] = (),
    horizon: int | None = None,
) -> ScheduledCredit:
    """Let only a scheduled stretch of each response learn, from now on.

    At magnitude m = value(t, T) of optimiser step t a token is credited where
    ``tpcli.credit.allocation.focus_weight`` has it: with m = 0 all are, which is the trainer as it
    was. The logs gain ``schedule/magnitude`` and ``credit/share``, the credited share of the
    response tokens.

    Args:
        trainer: a GRPOTrainer or a subclass, before ``train()``.
        allocation: "trajectory_percentile"; the others are refused.
        focus: the stretch credited at m = 1: "late", "early", "middle" or (a, b).
        curve, initial, final, start, end, reverse, gamma, rate, stairs, points: as in
            ``tpcli.credit.schedule.value``, and as in a recipe's [credit.schedule]; not "adaptive".
        horizon: T, in optimiser steps; None means all steps of the training. It is kept in the
            trainer's checkpoints: a training that is resumed with another length is refused, unless
            the horizon is given here.

    Returns:
        A handle whose ``remove()`` gives the trainer its own loss back.

    Raises:
        UsageError: settings that do not make a schedule, or that cannot be had inside TRL.
        TpcliError: TRL is missing, or not one that this works with.

    Ref: https://arxiv.org/abs/2605.25381
    """
    _check_trainer(trainer)
    if allocation != "trajectory_percentile":
        raise UsageError(
            f'allocation "{allocation}" is not available inside TRL',
            hint='write "trajectory_percentile", or train with a tpcli recipe, which has them all',
        )
    if curve not in schedule.CURVES or curve == "adaptive":
        raise UsageError(
            f'curve "{curve}" is not available inside TRL',
            hint="write one of " + ", ".join(c for c in schedule.CURVES if c != "adaptive"),
        )
    reached = [value for _, value in points] if curve == "piecewise" else [initial, final]
    if not all(0 <= value <= 1 for value in reached):
        raise UsageError(
            f"the magnitude would run over {reached}", hint="a magnitude lies in [0, 1]"
        )
    course = partial(
        schedule.value,
        curve=curve,
        initial=initial,
        final=final,
        start=start,
        end=end,
        reverse=reverse,
        gamma=gamma,
        rate=rate,
        stairs=stairs,
        points=points,
    )
    # Refuse here what would be refused at step 1, after the models are loaded and sampled from.
    _magnitude(course, 1, horizon or _LONG)
    return ScheduledCredit(trainer, course, focus=_stretch(focus), horizon=horizon)


class ScheduledCredit:
    """What stands between a trainer and its loss, until it is removed."""

    def __init__(
        self,
        trainer: GRPOTrainer,
        course: Callable[[int, int], float],
        *,
        focus: tuple[float, float],
        horizon: int | None,
    ) -> None:
        self._trainer: Any = trainer
        self._course = course
        self._focus = focus
        self._horizon = horizon
        self._plain: Callable[..., Tensor] = trainer.compute_loss
        vars(trainer)["compute_loss"] = self._loss

    def remove(self) -> None:
        """Give the trainer its own loss back."""
        vars(self._trainer).pop("compute_loss", None)

    def _loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The trainer's own loss, of a micro-batch whose context tokens are marked as such."""
        trainer = self._trainer
        if not trainer.model.training:  # an evaluation is of whole responses
            return self._plain(model, inputs, *args, **kwargs)
        step = trainer.state.global_step + 1
        magnitude = _magnitude(self._course, step, self._settled_horizon())
        selected, tokens = self._count(magnitude).unbind()
        metrics = trainer._metrics["train"]
        metrics["schedule/magnitude"].append(magnitude)
        metrics["credit/share"].append((selected / tokens.clamp(min=1)).item())
        credited_BT = self._credited(inputs, magnitude)
        ours = {"tool_mask": credited_BT, "num_items_in_batch": selected}
        return self._plain(model, {**inputs, **ours}, *args, **kwargs)

    def _count(self, magnitude: float) -> Tensor:
        """[credited, all] response tokens of the generation batch, over all processes.

        TRL's dapo, cispo and vespo divide by the tokens of the whole generation batch, times the
        share of it that an optimiser step covers. The step's magnitude decides how many they are,
        so the number made at generation is counted anew.
        """
        import torch

        counts = []
        for part in self._trainer._buffered_inputs or ():
            credited_BT = self._credited(part, magnitude)
            counts.append(torch.stack([credited_BT.sum(), _loss_mask(part).sum()]))
        total: Tensor = self._trainer.accelerator.reduce(torch.stack(counts).sum(0), "sum")
        return total

    def _credited(self, inputs: dict[str, Any], magnitude: float) -> Tensor:
        """[B, T] in the loss mask's own dtype, 1 on credited tokens."""
        from tpcli.credit.allocation import focus_weight

        mask_BT = _loss_mask(inputs)
        weight_BT = focus_weight(mask_BT.bool(), magnitude=magnitude, focus=self._focus)
        return weight_BT.to(mask_BT.dtype)

    def _settled_horizon(self) -> int:
        """T; the same in every part of a training that was interrupted."""
        state = self._trainer.state
        horizon = self._horizon or state.max_steps
        kept: Any = state.stateful_callbacks
        before = kept.get(_KEY, {}).get("attributes", {}).get("horizon", horizon)
        if before != horizon and self._horizon is None:
            raise UsageError(
                f"this training began with a schedule over {before} steps and now has {horizon}",
                hint=f"give schedule_credit horizon={before} to go on as before, or another to "
                "change it",
            )
        kept[_KEY] = {"args": {}, "attributes": {"horizon": horizon}}
        return horizon


def _magnitude(course: Callable[[int, int], float], step: int, horizon: int) -> float:
    try:
        return course(step, horizon)
    except ValueError as error:
        raise UsageError(str(error), hint="correct what schedule_credit was given") from error


def _loss_mask(inputs: dict[str, Any]) -> Tensor:
    """[B, T], 1 on the tokens that TRL would learn from: written by the model, not by a tool."""
    mask_BT: Tensor = inputs["completion_mask"]
    return mask_BT * inputs["tool_mask"] if "tool_mask" in inputs else mask_BT


def _stretch(focus: FocusName | tuple[float, float]) -> tuple[float, float]:
    from tpcli.credit.allocation import FOCI

    if isinstance(focus, str):
        if focus not in FOCI:
            raise UsageError(
                f'focus "{focus}" is unknown', hint=f"write one of {', '.join(FOCI)}, or (a, b)"
            )
        return FOCI[focus]
    a, b = focus
    if not 0 <= a <= b <= 1:
        raise UsageError(f"focus ({a:g}, {b:g}) is not a stretch", hint="it is 0 <= a <= b <= 1")
    return a, b


def _check_trainer(trainer: object) -> None:
    """Refuse what would silently train on every token."""
    install = "pip install 'tpcli[trl]'"
    try:
        from trl.trainer.grpo_trainer import GRPOTrainer
    except ImportError as error:
        raise TpcliError(f"TRL cannot be imported: {error}", hint=install) from error
    if not isinstance(trainer, GRPOTrainer):
        raise UsageError(
            f"{type(trainer).__name__} is not a GRPOTrainer", hint="give schedule_credit TRL's own"
        )
    if "compute_loss" in vars(trainer):
        raise UsageError(
            "this trainer's compute_loss has been replaced already",
            hint="call schedule_credit once, or remove() what it returned before",
        )
    # The one way in: a release that does not read it would train on every token and say nothing.
    source = inspect.getsource(GRPOTrainer._compute_loss)
    if '"tool_mask"' not in source or not hasattr(trainer, "_buffered_inputs"):
        raise TpcliError("this release of TRL has no mask for context tokens", hint=install)
