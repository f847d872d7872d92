"""Run by test_collect under torch.distributed: four processes, two teams of two."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.train.test_collect import LETTERS, Scripted, collector, ids

from tpcli.train.team import Team

accelerator = Accelerator(cpu=True)
rank = accelerator.process_index
team = Team.of(rank, accelerator.num_processes, size=2)
engine = Scripted(LETTERS[::3])
made = collector(Path(sys.argv[1]), engine, team=team, rounds=2)
got = made.collect(1, temperature=1.0)
found = {
    "calls": [(seed, ids(prompts)) for seed, prompts in engine.calls],
    "kept": ids(got.prompts),
    "rewards": [[verdict.reward for verdict in group] for group in got.verdicts],
    "counts": (got.drawn, got.correct, got.refilled),
    "agreed": team.agreed(rank if team.leads else None),
}
torch.save(found, Path(sys.argv[1]) / f"found-{rank}.pt")
accelerator.end_training()
