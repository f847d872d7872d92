"""A model of random weights that answers in boxes, and files of questions for it.

It writes some of the right answers of the invented sets now and then, so that scores are neither 0
nor 1. One coordinate of its residual stream is nearly constant: by it, the head adds a number of
its own to each token's logit.
"""

import shutil
import string
from pathlib import Path
from typing import Any

import torch
from tests.bench.shapes import SHAPES, save
from tests.registry.folders import FINISHED, make_run
from transformers import AutoModelForCausalLM, LlamaConfig

from tpcli.policy.load import quiet
from tpcli.policy.scratch import character_tokenizer
from tpcli.policy.store import save_model
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import to_toml
from tpcli.registry import folder

RECIPES = Path(__file__).parents[2] / "recipes"
PIECES = [rf"\boxed{{{answer}}}" for answer in ("33", "066", "99", "31", "62", "A", "B", "1/2")]
CONTEXT = 1024
WIDTH = 16
CONSTANT = 3.0


def boxer(
    place: Path,
    *,
    seed: int = 0,
    alphabet: str | None = None,
    ends: float = 2.0,
    head_dim: int = WIDTH // 2,
) -> Path:
    """Save the model in ``place``.

    Args:
        seed: of its weights.
        alphabet: characters that it reads; None is all of ASCII that prints, and the line feed.
        ends: added to the logit of the end of sequence; lower makes longer responses.
        head_dim: of its attention; vLLM's kernels for CPUs want 32 or more.
    """
    known = string.printable[:95] + "\n" if alphabet is None else alphabet
    tokenizer = character_tokenizer(known, PIECES, context=CONTEXT)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    told = torch.full((len(tokenizer),), -2.5)
    told[tokenizer.convert_tokens_to_ids(PIECES)] = 1.0
    told[tokenizer.eos_token_id] = ends
    told[[tokenizer.bos_token_id, tokenizer.pad_token_id]] = -30.0
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = CONSTANT
        model.get_output_embeddings().weight *= 0.5
        model.get_output_embeddings().weight[:, 0] = told / CONSTANT
    with quiet():
        save_model(model, tokenizer, place)
    return place


def question_files(place: Path) -> dict[str, Path]:
    """Rows of aime24, aime25 and gpqa in files, whole sets of the exact shape."""
    endings = {"aime24": "jsonl", "aime25": "parquet", "gpqa-diamond": "csv"}
    return {
        name.partition("-")[0]: save(
            place / f"{name}.{ending}", (c.row for c in SHAPES[name].cases), SHAPES[name].columns
        )
        for name, ending in endings.items()
    }


def options(files: dict[str, Path], *names: str) -> list[str]:
    """The options that ask ``names`` from these files."""
    given = [word for name in names for word in ("--bench-file", f"{name}={files[name]}")]
    return ["--bench", ",".join(names), *given]


def trained(runs: Path, run_id: str, model: Path, *, steps: tuple[int, ...], **more: Any) -> Path:
    """A finished run whose checkpoints all hold ``model``."""
    state = FINISHED | {"status": more.pop("status", "finished")}
    run_dir = make_run(runs, run_id, state=state, **more)
    recipe = load_recipe(RECIPES / "tiny.toml").recipe
    (run_dir / folder.RESOLVED).write_text(to_toml(recipe))
    for step in steps:
        shutil.copytree(model, run_dir / "checkpoints" / f"step-{step:06d}" / "model")
    return run_dir
