"""What the gradient loses when nothing flows through the prefix: python docs/speed/prefix.py

One batch of SmolLM2's own responses, every response credited from a percentile on; the gradient of
the exact update against that of [train].detach_prefix. Responses are sampled, not of forced length.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from statistics import median

import torch
from ours import parts_of
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from work import Setup, recipe_of

from tpcli.credit.advantage import advantages
from tpcli.train.loop import Parts
from tpcli.train.schedules import knobs_at
from tpcli.types import TokenBatch

SHARES = (1.0, 0.5, 0.2, 0.01)
PROMPTS, GROUP, TOKENS = 4, 8, 64


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    recipe = recipe_of(Setup(small=False, prompts=PROMPTS, group_size=GROUP, longest=TOKENS))
    parts = parts_of(recipe)
    knobs = knobs_at(recipe, 1, parts.tempo.shares)
    found: dict[float, list[tuple[float, float, float]]] = {share: [] for share in SHARES}
    for seed in range(seeds):
        batch = sampled(parts, seed)
        for share in SHARES:
            moved = replace(knobs, magnitudes={"trajectory_percentile": 1 - share})
            exact_W, slow = gradient(parts, batch, moved, detach=False)
            biased_W, fast = gradient(parts, batch, moved, detach=True)
            product = float(exact_W.double() @ biased_W.double())
            norms = float(exact_W.double().norm()), float(biased_W.double().norm())
            found[share].append((product / norms[0] / norms[1], norms[1] / norms[0], fast / slow))
    print("| credited | cosine with the exact gradient | norm over the exact norm | time |")
    print("| --- | --- | --- | --- |")
    for share, rows in found.items():
        cosine, norm, seconds = ([row[i] for row in rows] for i in range(3))
        print(
            f"| {share:.0%} | {min(cosine):.3f} to {max(cosine):.3f} "
            f"| {median(norm):.2f} | {median(seconds):.2f} |"
        )


def sampled(parts: Parts, seed: int) -> TokenBatch:
    """Responses to the first prompts; every other one counts as right."""
    prompts = parts.asking.prompts[seed * PROMPTS : (seed + 1) * PROMPTS]
    groups = parts.engine.sample(
        prompts, group_size=GROUP, seed=seed, temperature=1.0, max_new_tokens=TOKENS
    )
    rollouts = [rollout for group in groups for rollout in group]
    reward_B = torch.arange(len(rollouts)).remainder(2).float()
    lengths_B1 = torch.tensor([[len(rollout.tokens_L)] for rollout in rollouts])
    return TokenBatch(
        prompts=prompts,
        tokens_BT=pad_sequence([r.tokens_L for r in rollouts], batch_first=True),
        mask_BT=torch.arange(int(lengths_B1.max())) < lengths_B1,
        rollout_logprob_BT=pad_sequence([r.logprobs_L for r in rollouts], batch_first=True),
        reward_B=reward_B,
        advantage_B=advantages("group_std", reward_B, group_size=GROUP),
        group_size=GROUP,
        seeds=range(len(rollouts)),
    )


def gradient(
    parts: Parts, batch: TokenBatch, knobs: object, *, detach: bool
) -> tuple[Tensor, float]:
    """All parameters' gradients in one line, and the seconds of the update; no step is taken."""
    learner, taken = parts.learner, []
    learner.method = replace(learner.method, detach_prefix=detach, max_grad_norm=1e9)
    step = learner.optimizer.step

    def keep() -> None:
        taken.append(torch.cat([p.grad.flatten() for p in parts.model.parameters()]))

    learner.optimizer.step = keep
    began = time.perf_counter()
    learner.update(batch, knobs, measure_all=False)
    spent = time.perf_counter() - began
    learner.optimizer.step = step
    return taken[0], spent


if __name__ == "__main__":
    main()
