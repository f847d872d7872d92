"""Run by test_step under torch.distributed: each process takes half of the batch."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.train.parts import KNOBS, learner, step_batch, step_taken, weights
from tests.train.test_step import REDUCTIONS

accelerator = Accelerator(cpu=True)
assert accelerator.num_processes == 2
steps = []
for changes in REDUCTIONS:
    # A budget that gives the two processes different numbers of micro-batches.
    made, model = learner(accelerator=accelerator, micro_batch_tokens=14, **changes)
    before = weights(model)
    whole, rank = step_batch(), accelerator.process_index
    mine = slice(4 * rank, 4 * rank + 4)
    half = replace(
        whole,
        prompts=whole.prompts[2 * rank : 2 * rank + 2],
        tokens_BT=whole.tokens_BT[mine],
        mask_BT=whole.mask_BT[mine],
        rollout_logprob_BT=whole.rollout_logprob_BT[mine],
        reward_B=whole.reward_B[mine],
        advantage_B=whole.advantage_B[mine],
    )
    made.update(half, KNOBS)
    steps.append(step_taken(before, model))
if accelerator.is_main_process:
    torch.save(steps, Path(sys.argv[1]) / "steps.pt")
accelerator.end_training()
