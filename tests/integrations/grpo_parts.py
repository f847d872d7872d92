"""A GRPOTrainer around a small random model, what it did at each step, and the plain form of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from tpcli.credit.allocation import focus_weight
from tpcli.loss.reduce import Totals, coefficients, count
from tpcli.loss.surrogate import token_loss
from tpcli.names import ObjectiveName, ReductionName
from tpcli.policy.scratch import character_tokenizer

LONGEST = 12
REDUCTIONS: dict[str, ReductionName] = {
    "dapo": "token-mean",
    "bnpo": "token-mean",
    "grpo": "seq-mean-token-mean",
    "dr_grpo": "seq-mean-token-sum-norm",
}
Part = dict[str, Any]


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
            initializer_range=0.2,
        )
    )


def count_of_ones(completions: list[str], **_: Any) -> list[float | None]:
    return [float(text.count("1")) for text in completions]


@dataclass
class Recorder(TrainerCallback):
    """The micro-batches, weights and gradient of every optimiser step."""

    trainer: Any = None
    parts: list[list[Part]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        model, buffered = self.trainer.model, self.trainer._buffered_inputs
        width = args.gradient_accumulation_steps
        first = state.global_step * width % len(buffered)
        self.parts.append([dict(part) for part in buffered[first : first + width]])
        self.weights.append({k: v.clone() for k, v in model.state_dict().items()})
        self.gradients.append(gradient_of(model))


def make_trainer(folder: Path, **settings: Any) -> tuple[GRPOTrainer, Recorder]:
    """3 steps of 2 micro-batches of 4 responses, unless told otherwise."""
    chosen: dict[str, Any] = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": LONGEST,
        "learning_rate": 0.5,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "beta": 0.0,
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    recorder = Recorder()
    trainer = GRPOTrainer(
        model=small_model(),
        reward_funcs=count_of_ones,
        args=GRPOConfig(output_dir=str(folder), **{**chosen, **settings}),
        train_dataset=Dataset.from_dict({"prompt": [str(i % 9) for i in range(64)]}),
        processing_class=character_tokenizer("123456789", [], context=64),
        callbacks=[recorder],
    )
    recorder.trainer = trainer
    return trainer, recorder


def gradient_of(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None])


def plain_step(
    weights: dict[str, Tensor],
    parts: Sequence[Part],
    *,
    magnitude: float,
    loss_type: str,
    objective: ObjectiveName = "ppo_clip",
    focus: tuple[float, float] = (1.0, 1.0),
    selected: float | None = None,
) -> tuple[float, Tensor]:
    """Loss and gradient of one optimiser step, by tpcli's own functions.

    ``selected`` is the divisor of dapo, where it is not the number of the credited tokens.
    """
    model = small_model()
    model.load_state_dict(weights)
    masks = [part["completion_mask"].bool() for part in parts]
    credit = [focus_weight(mask_BT, magnitude=magnitude, focus=focus) for mask_BT in masks]
    counts = [count(weight_BT, mask_BT) for weight_BT, mask_BT in zip(credit, masks, strict=True)]
    whole = Totals(*torch.stack(counts).sum(0).tolist())
    if selected is not None:
        whole = replace(whole, selected=selected)
    total = torch.zeros(())
    for part, mask_BT, weight_BT, mine in zip(parts, masks, credit, counts, strict=True):
        # bnpo is a token mean within each micro-batch, and the mean of those.
        share = 1 / len(parts) if loss_type == "bnpo" else 1.0
        totals = Totals(*mine.tolist()) if loss_type == "bnpo" else whole
        logprob_BT = score(model, part)
        old_BT = part.get("old_per_token_logps", logprob_BT.detach())
        loss_BT = token_loss(
            objective,
            logprob_BT,
            torch.where(weight_BT != 0, old_BT, logprob_BT.detach()),
            part["advantages"][:, None].expand_as(logprob_BT),
            weight_BT,
            clip_low=0.2,
            clip_high=0.2,
            dual_clip=None,  # TRL has none
        ).loss_BT
        coefficient_BT = coefficients(
            weight_BT, mask_BT, totals, reduction=REDUCTIONS[loss_type], constant=LONGEST
        )
        total = total + share * (coefficient_BT * loss_BT).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return total.item(), gradient_of(model)


def score(model: LlamaForCausalLM, part: Part) -> Tensor:
    """Log-probs of the completion's tokens, [B, T]."""
    tokens_BS = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
    mask_BS = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
    width = part["completion_ids"].shape[1]
    logits = model(input_ids=tokens_BS, attention_mask=mask_BS).logits[:, -width - 1 : -1]
    logprob_BTV = logits.float().log_softmax(-1)
    logprob_BT: Tensor = logprob_BTV.gather(-1, part["completion_ids"][..., None]).squeeze(-1)
    return logprob_BT
