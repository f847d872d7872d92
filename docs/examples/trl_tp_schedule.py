"""TP-Schedule inside TRL's own GRPOTrainer: running sums, a character-level model, half a minute.

    pip install 'tpcli[trl]'
    python docs/examples/trl_tp_schedule.py

A question reads ``7+5-3;`` and a good response ``7+5=12;12-3=9;\\boxed{9}``. A random model learns
the form of it from worked solutions first; then GRPO goes on with the right answer as its reward.
Watch the credited share grow. It is no comparison: so small a model hardly gains in so few steps.
"""

import argparse
import re
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from tpcli.data.running_sum import read_running_sum
from tpcli.integrations.trl import schedule_credit
from tpcli.policy.scratch import character_tokenizer

SUMS = {"min_terms": 2, "max_terms": 3, "max_first": 9}
COMMON: dict[str, Any] = {
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "disable_tqdm": True,
}


def right_answer(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """1 where the last box holds the answer. TRL scores the whole response, at any magnitude."""
    boxes = [re.findall(r"\\boxed\{(\d+)\}", text) for text in completions]
    return [float(box[-1:] == [a]) for box, a in zip(boxes, answer, strict=True)]


def main(folder: Path, *, warmup_steps: int, steps: int) -> list[dict[str, Any]]:
    """Train, and return what the trainer logged."""
    set_seed(0)
    rows = list(read_running_sum(SUMS, size=4_000, seed=0))
    sums = Dataset.from_dict(
        {
            "prompt": [f"{row.question};" for row in rows],
            "completion": [row.solution for row in rows],
            "answer": [row.answer for row in rows],
        }
    )
    tokenizer = character_tokenizer("0123456789+-=;}", ["\\boxed{"], context=64)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )

    SFTTrainer(
        model=model,
        args=SFTConfig(
            str(folder / "warmup"),
            max_steps=warmup_steps,
            per_device_train_batch_size=32,
            learning_rate=5e-3,
            logging_steps=max(1, warmup_steps),
            **COMMON,
        ),
        train_dataset=sums.remove_columns("answer"),
        processing_class=tokenizer,
    ).train()

    trainer = GRPOTrainer(
        model=model,
        reward_funcs=right_answer,
        args=GRPOConfig(
            str(folder / "grpo"),
            max_steps=steps,
            per_device_train_batch_size=128,
            num_generations=8,
            max_completion_length=32,
            learning_rate=2e-4,
            lr_scheduler_type="constant",
            logging_steps=max(1, steps // 10),
            **COMMON,
        ),
        train_dataset=sums.remove_columns("completion"),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # we print fewer numbers, below
    schedule_credit(trainer, initial=0.99, end=0.8)
    trainer.train()
    return [line for line in trainer.state.log_history if "reward" in line]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--warmup-steps", type=int, default=250)
    parser.add_argument("--steps", type=int, default=40)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for line in main(Path(scratch), warmup_steps=asked.warmup_steps, steps=asked.steps):
            print(
                f"step {line['step']:>3}  magnitude {line['schedule/magnitude']:.2f}  "
                f"credited {line['credit/share']:.2f}  right {line['reward']:.2f}"
            )
