"""Run by test_trl_integration under torch.distributed: one step, each process with its own."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.integrations.grpo_parts import make_trainer

from tpcli.integrations.trl import schedule_credit

folder = Path(sys.argv[1])
trainer, recorder = make_trainer(folder, max_steps=1, loss_type="dapo")
assert trainer.accelerator.num_processes == 2
schedule_credit(trainer, curve="constant", initial=0.8)
trainer.train()
torch.save(
    {"parts": recorder.parts[0], "gradient": recorder.gradients[0]},
    folder / f"{trainer.accelerator.process_index}.pt",
)
