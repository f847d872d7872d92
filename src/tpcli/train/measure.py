"""The numbers of one step, from this process's share to one line of metrics.

Everything that adds up is kept as a sum until all processes have added theirs; ``largest`` holds
what is a maximum instead.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import get_args

import torch
from accelerate import Accelerator
from torch import Tensor

from tpcli.loss.correction import mismatch
from tpcli.metrics.stats import STAGES, by_percentile, by_stage, groups_without_signal, mean_of
from tpcli.names import VerdictStatus
from tpcli.train.collect import Collected
from tpcli.train.method import Knobs, Learned
from tpcli.types import StepStats, TokenBatch


@dataclass(slots=True)
class Tally:
    """Sums and maxima of one process, by name; values are vectors."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    largest: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, *values: float | Tensor) -> None:
        """Numbers that add up over processes."""
        self.sums[name] = torch.tensor([float(v) for v in values], dtype=torch.float64)

    def most(self, name: str, value: float | Tensor) -> None:
        """A number of which the largest counts."""
        self.largest[name] = torch.tensor([float(value)], dtype=torch.float64)

    def over(self, accelerator: Accelerator) -> "Tally":
        """The tally of all processes; every process gets it."""
        if accelerator.num_processes == 1:
            return self
        every = [*self.sums.values(), *self.largest.values()]
        flat = torch.cat([v.flatten() for v in every]).to(accelerator.device)
        ranks = accelerator.gather(flat[None]).cpu()
        split = torch.split(ranks, [v.numel() for v in every], dim=1)
        merged = Tally()
        for (name, value), part in zip(self.sums.items(), split, strict=False):
            merged.sums[name] = part.sum(0).view_as(value)
        for name, part in zip(self.largest, split[len(self.sums) :], strict=True):
            merged.largest[name] = part.max(0).values
        return merged


def tally(
    batch: TokenBatch,
    collected: Collected,
    learned: Learned,
) -> Tally:
    """Count one process's share of a step."""
    out, mask_BT = Tally(), batch.mask_BT
    rollouts = [rollout for group in collected.groups for rollout in group]
    verdicts = [verdict for group in collected.verdicts for verdict in group]
    out.add("drawn", collected.drawn, collected.correct, collected.refilled)
    if batch.learns_B is not None:
        out.add("masked", (~batch.learns_B).sum())
    rewards, lengths = batch.reward_B.double(), mask_BT.sum(-1).double()
    responses = len(rewards)
    out.add("reward", rewards.sum(), rewards.square().sum(), responses)
    quiet = groups_without_signal(batch.advantage_B, group_size=batch.group_size)
    out.add("quiet", quiet.sum(), len(quiet))
    counts = Counter(v.status for v in verdicts)
    out.add("verdict", *(counts[s] for s in get_args(VerdictStatus)))
    out.add("length", lengths.sum(), sum(not r.finished for r in rollouts))
    out.most("length", lengths.max())
    if learned.whole:
        _tokens(out, batch, learned)
    credited_BT = (learned.weight_BT != 0) & mask_BT
    out.add("credit", credited_BT.sum(), mask_BT.sum())
    out.sums["credit/percentile"] = by_percentile(credited_BT.double(), mask_BT)
    out.sums["clip/percentile"] = by_percentile(learned.clipped_BT.double(), mask_BT)
    push_BT = (learned.coefficient_BT * learned.advantage_BT).abs()
    out.sums["mass/percentile"] = by_percentile(push_BT, mask_BT)
    out.add("loss", *(learned.sums.get(k, 0.0) for k in _LOSS_SUMS))
    # Every process computed its own part of the scale against global totals: parts add up.
    out.add("scale", learned.sums.get("gradient_scale", 0.0))
    return out


def _tokens(out: Tally, batch: TokenBatch, learned: Learned) -> None:
    """What only a step that measures every response token can say."""
    mask_BT = batch.mask_BT
    gap_BT = (batch.rollout_logprob_BT - learned.logprob_BT).abs().double() * mask_BT
    out.add("gap", gap_BT.sum())
    out.most("gap", gap_BT.max())
    apart = mismatch(learned.logprob_BT, batch.rollout_logprob_BT, mask_BT)
    out.add("mismatch", apart["k3"], apart["weight"], apart["weight_2"])
    for name, value_BT in (("entropy", learned.entropy_BT), ("kl", learned.kl_BT)):
        out.sums[f"{name}/stage"] = by_stage(value_BT, mask_BT)
        out.sums[f"{name}/percentile"] = by_percentile(value_BT, mask_BT)


_LOSS_SUMS = (
    "loss",
    "kl_loss",
    "entropy_bonus",
    "clip_low",
    "clip_high",
    "clip_dual",
    "ppo_kl",
    "learning_tokens",
    "correction",
    "corrected",
)


def finish(
    step: int,
    total: Tally,
    knobs: Knobs,
    *,
    progress: float,
    updates: int,
    grad_norm: float,
    with_kl: bool,
    with_correction: bool = False,
    with_refills: bool = False,
) -> StepStats:
    """Means, shares and spreads from the tally of all processes."""
    sums = {name: value.tolist() for name, value in total.sums.items()}
    scalars = {
        **_rewards(sums),
        "length/max": float(total.largest["length"]),
        "length/tokens": sums["credit"][1],
        "schedule/progress": progress,
        "schedule/magnitude": knobs.magnitude,
        **{f"schedule/{name}": value for name, value in knobs.moving.items()},
        "credit/tokens": sums["credit"][0],
        "credit/share": sums["credit"][0] / max(sums["credit"][1], 1.0),
        "credit/gradient_scale": sums["scale"][0] / updates,
        **_losses(sums, updates, with_correction),
        "optim/grad_norm": grad_norm,
        "optim/lr": knobs.lr,
    }
    if "gap" in sums:
        scalars["gap/mean"] = sums["gap"][0] / max(sums["credit"][1], 1.0)
        scalars["gap/max"] = float(total.largest["gap"])
        scalars |= _mismatch(sums)
    if with_refills:
        drawn, correct, refilled = sums["drawn"]
        scalars["sampling/accuracy"] = correct / drawn
        scalars["sampling/responses"] = drawn
        scalars["sampling/refilled_groups"] = refilled
    for name in _measured(total, with_kl):
        stages = mean_of(total.sums[f"{name}/stage"])
        for stage, value in zip(("all", *STAGES), stages, strict=True):
            if value is not None:
                scalars[f"{name}/{stage}"] = value
    return StepStats(step, scalars, _percentiles(total, with_kl))


def _rewards(sums: dict[str, list[float]]) -> dict[str, float]:
    """Rewards, verdicts and lengths."""
    rewards, squares, responses = sums["reward"]
    mean = rewards / responses
    variance = max(squares / responses - mean * mean, 0.0) * responses / max(responses - 1, 1)
    found = {
        "reward/mean": mean,
        "reward/std": variance**0.5,
        "reward/groups_without_signal": sums["quiet"][0] / sums["quiet"][1],
        **{
            f"verdict/{status}": count / responses
            for status, count in zip(get_args(VerdictStatus), sums["verdict"], strict=True)
        },
        "length/mean": sums["length"][0] / responses,
        "length/truncated": sums["length"][1] / responses,
    }
    if "masked" in sums:
        found["length/masked"] = sums["masked"][0] / responses
    return found


def _mismatch(sums: dict[str, list[float]]) -> dict[str, float]:
    """KL(sampler || trainer) in nats a token, and the effective share of the sample."""
    k3, weight, squares = sums["mismatch"]
    tokens = max(sums["credit"][1], 1.0)
    return {"gap/kl": k3 / tokens, "gap/effective_share": weight**2 / max(tokens * squares, 1e-300)}


def _losses(sums: dict[str, list[float]], updates: int, with_correction: bool) -> dict[str, float]:
    loss = dict(zip(_LOSS_SUMS, sums["loss"], strict=True))
    # Clipping can only touch tokens that learn; shares are of all credited tokens.
    credited, learning = max(sums["credit"][0], 1.0), max(loss["learning_tokens"], 1.0)
    found = {
        "loss/total": loss["loss"] / updates,
        **{f"loss/{k}": loss[k] / credited for k in ("clip_low", "clip_high", "clip_dual")},
        "loss/ppo_kl": loss["ppo_kl"] / learning,
        "loss/kl": loss["kl_loss"] / updates,
        "loss/entropy_bonus": loss["entropy_bonus"] / updates,
    }
    if with_correction and loss["learning_tokens"]:
        found["correction/weight"] = loss["correction"] / learning
        found["correction/share"] = loss["corrected"] / learning
    return found


def _measured(total: Tally, with_kl: bool) -> list[str]:
    """What was measured of every response token."""
    return [
        name for name in ("entropy", *(["kl"] if with_kl else [])) if f"{name}/stage" in total.sums
    ]


def _percentiles(total: Tally, with_kl: bool) -> dict[str, list[float | None]]:
    """Means by trajectory percentile; of the mass, each bin's share of the whole."""
    names = ["credit", "clip", *_measured(total, with_kl)]
    found = {f"{name}/percentile": mean_of(total.sums[f"{name}/percentile"]) for name in names}
    mass_Q = total.sums["mass/percentile"][0]
    found["mass/percentile"] = (mass_Q / mass_Q.sum().clamp(min=1e-300)).tolist()
    return found
