"""Run by test_step under torch.distributed: each process takes half of the batch."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.train.parts import KNOBS, learner, loud_batch, step_batch, step_taken, weights
from tests.train.test_step import HEADS, ONE_EACH, REDUCTIONS, UNLIKE, head_step
from torch import Tensor

from tpcli.credit.advantage import advantages
from tpcli.policy.pack import plan_rows
from tpcli.train.loop import mine_of_all
from tpcli.types import TokenBatch

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
rank = accelerator.process_index
mine = slice(4 * rank, 4 * rank + 4)


def half_of(whole: TokenBatch) -> TokenBatch:
    return replace(
        whole,
        prompts=whole.prompts[2 * rank : 2 * rank + 2],
        tokens_BT=whole.tokens_BT[mine],
        mask_BT=whole.mask_BT[mine],
        rollout_logprob_BT=whole.rollout_logprob_BT[mine],
        reward_B=whole.reward_B[mine],
        advantage_B=whole.advantage_B[mine],
        seeds=whole.seeds[mine],
    )


def steps_of(whole: TokenBatch, budget: int) -> list[Tensor]:
    steps = []
    for changes in REDUCTIONS:
        made, model = learner(accelerator=accelerator, micro_batch_tokens=budget, **changes)
        before = weights(model)
        made.update(half_of(whole), KNOBS)
        steps.append(step_taken(before, model))
    return steps


assert len(plan_rows(half_of(loud_batch()), range(4), budget=ONE_EACH)) == 4
reward_B = loud_batch().reward_B
scaled_B = mine_of_all(
    reward_B[mine], accelerator, lambda r: advantages("batch_std", r, group_size=2)
)
found = {
    # A budget that gives the two processes different numbers of micro-batches.
    "unlike": steps_of(step_batch(), UNLIKE),
    "four_each": steps_of(loud_batch(), ONE_EACH),
    "heads": [
        head_step(half_of(step_batch()), *head, UNLIKE, accelerator=accelerator) for head in HEADS
    ],
    "advantages": accelerator.gather(scaled_B),
}
if accelerator.is_main_process:
    torch.save(found, Path(sys.argv[1]) / "found.pt")
accelerator.end_training()
