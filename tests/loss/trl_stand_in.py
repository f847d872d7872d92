"""A GRPOTrainer that was never initialised, so that TRL's own code can be given tensors.

TRL's methods do the work: only the model's forward pass, generation and the reward functions are
replaced. One process on the CPU, no model, no network.
"""

from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
import torch
from tests.loss.whole import Tokens, draw
from torch import Tensor

LONGEST = 12
"""max_completion_length, the constant of dr_grpo; longer than any response of these tests."""


class NewTrainer(Protocol):
    """The fixture ``new_trainer``: ``new_trainer`` below, TRL already given."""

    def __call__(self, *, processes: int = 1, window: int = 1, **settings: Any) -> Any: ...


def new_trainer(trl: Any, *, processes: int = 1, window: int = 1, **settings: Any) -> Any:
    """TRL's default settings, but a plain KL, our clip_high, and those given.

    ``processes`` and ``window`` (micro-batches of an optimiser step) only tell TRL what to divide
    by; the tests add up what the others would have done.
    """
    settings = {"use_bias_correction_kl": False, "epsilon_high": 0.28} | settings
    args = trl.GRPOConfig(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_completion_length=LONGEST,
        gradient_accumulation_steps=window,
        per_device_train_batch_size=8,
        **settings,
    )
    trainer = object.__new__(trl.GRPOTrainer)
    vars(trainer).update(vars(args))  # TRL keeps them under the same names, but for:
    trainer.args = args
    trainer.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    trainer.accelerator = SimpleNamespace(
        num_processes=processes,
        process_index=0,
        device=torch.device("cpu"),
        gather=lambda t: t,
        reduce=lambda t, reduction: t,
        pad_across_processes=lambda t, dim, pad_index: t,
    )
    trainer.epsilon_low, trainer.epsilon_high = args.epsilon, args.epsilon_high
    trainer.current_gradient_accumulation_steps = window
    trainer.aux_loss_enabled = trainer._entropy_bonus_enabled = False
    trainer._metrics = {"train": defaultdict(list)}
    return trainer


def trl_loss(
    trainer: Any, tokens: Tokens, *, items: float | None = None, **inputs: Tensor
) -> tuple[float, Tensor]:
    """Loss and gradient by log-prob of one micro-batch, from TRL's ``_compute_loss``.

    ``items``: response tokens of the whole generation batch; those of ``tokens`` unless given.
    """
    logprob_BT = tokens.logprob.detach().clone().requires_grad_()
    entropy_BT = inputs.pop("entropy", torch.zeros_like(logprob_BT))
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprob_BT, entropy_BT, None)
    ids_BT = torch.zeros_like(tokens.mask, dtype=torch.long)
    loss = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": ids_BT[:, :1],
            "prompt_mask": torch.ones_like(ids_BT[:, :1]),
            "completion_ids": ids_BT,
            "completion_mask": tokens.mask.long(),
            "advantages": tokens.advantage[:, 0],
            "old_per_token_logps": tokens.old_logprob,
            "num_items_in_batch": torch.tensor(items or float(tokens.mask.sum())),
        }
        | inputs,
    )
    loss.backward()
    assert logprob_BT.grad is not None
    return loss.item(), logprob_BT.grad


def same(ours: tuple[float, Tensor], theirs: tuple[float, Tensor]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5, abs=1e-7)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-7)


def uniform(lengths: Sequence[int] = (9, 1, 5, 3), *, seed: int = 0, spread: float = 0.4) -> Tokens:
    """TRL has no token weights: every response token counts."""
    return draw(lengths, seed=seed, spread=spread, weighted=False)


def scored(
    trainer: Any, tokens: Tokens, rollout_BT: Tensor, rewards: Sequence[float], groups: int
) -> dict[str, Any]:
    """What TRL's ``_generate_and_score_completions`` makes of these responses and rewards."""
    rows = len(tokens.mask)
    lengths = tokens.mask.sum(-1).tolist()
    ids = [[1] * n for n in lengths]
    logps = [row[:n].tolist() for row, n in zip(rollout_BT, lengths, strict=True)]
    trainer._generate = lambda prompts: (
        [[1]] * rows, ids, None, [""] * rows, logps, {}, None, [None] * rows
    )  # fmt: skip
    trainer._calculate_rewards = lambda *_: torch.tensor(rewards)[:, None]
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (tokens.old_logprob, None, None)
    trainer._tokenizer = SimpleNamespace(pad_token_id=0)
    trainer.environment_factories = trainer.environments = trainer.tools = None
    trainer.num_generations = rows // groups
    trainer.reward_weights = torch.ones(1)
    trainer.reward_funcs, trainer.reward_func_names = [None], ["reward"]
    trainer._logs = defaultdict(list) | {"rewards": defaultdict(list), "extra": {}}
    trainer._pending_extra_logs, trainer._pending_metrics = {}, {}
    trainer.log_multimodal = False
    result: dict[str, Any] = trainer._generate_and_score_completions([{"prompt": "?"}] * rows)
    return result
