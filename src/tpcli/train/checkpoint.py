"""What a run needs to go on as if it had never stopped, written whole or not at all.

``checkpoints/step-000025/`` holds ``model/`` (a folder transformers loads), ``optimizer.pt`` and
``state.json`` (step, horizon, sampler position, random state).
"""

import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tpcli.errors import UsageError
from tpcli.registry.folder import CHECKPOINTS, read_json, write_json_atomic

_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands.

    Attributes:
        step: steps done.
        horizon: steps the schedules stretch over.
        prompts_seen: how far the sampler has come in its order of the prompts.
        seed: of that order and of the sampler's numbers.
        tempo: how far the adaptive schedules have come.
    """

    step: int
    horizon: int
    prompts_seen: int
    seed: int
    tempo: dict[str, Any] = field(default_factory=dict)


def save(
    run_dir: Path,
    position: Position,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer: torch.optim.Optimizer,
    *,
    keep: int,
) -> Path:
    """Write a checkpoint aside, flush it to the disk, rename it, then drop the oldest."""
    folder = run_dir / CHECKPOINTS / f"step-{position.step:06d}"
    if folder.is_dir():
        return folder
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    model.save_pretrained(aside / "model")
    tokenizer.save_pretrained(aside / "model")
    torch.save(
        {"optimizer": optimizer.state_dict(), "torch_rng": torch.get_rng_state()},
        aside / "optimizer.pt",
    )
    write_json_atomic(
        aside / "state.json",
        {
            "step": position.step,
            "horizon": position.horizon,
            "prompts_seen": position.prompts_seen,
            "seed": position.seed,
            "tempo": position.tempo,
        },
    )
    for path in sorted(aside.rglob("*")):
        _flush(path)
    aside.rename(folder)
    _flush(folder.parent)
    for _, old in found(run_dir)[:-keep]:
        shutil.rmtree(old)
    return folder


def found(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every complete checkpoint, oldest first."""
    folder = run_dir / CHECKPOINTS
    names = [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []
    matches = [(_NAME.fullmatch(p.name), p) for p in names]
    return sorted((int(m.group(1)), p) for m, p in matches if m)


def newest(run_dir: Path) -> tuple[int, Path] | None:
    """The checkpoint to resume from, if there is one."""
    every = found(run_dir)
    return every[-1] if every else None


def position_of(folder: Path) -> Position:
    """Where the run stood when this checkpoint was written."""
    state: dict[str, Any] = read_json(folder / "state.json")
    return Position(
        step=state["step"],
        horizon=state["horizon"],
        prompts_seen=state["prompts_seen"],
        seed=state["seed"],
        tempo=state.get("tempo", {}),
    )


def restore(folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> Position:
    """Load weights, optimiser and random state in place.

    Raises:
        UsageError: the checkpoint holds another model.
    """
    state: dict[str, Tensor] = {}
    for shard in sorted((folder / "model").glob("*.safetensors")):
        state |= load_file(shard)
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise _misfit(folder, str(error).splitlines()[-1].strip()) from error
    # A tied head is stored once, under one of its names.
    tensors = model.state_dict()
    loaded = {tensors[name].data_ptr() for name in state if name in tensors}
    absent = [n for n in result.missing_keys if tensors[n].data_ptr() not in loaded]
    if absent or result.unexpected_keys:
        raise _misfit(folder, f"it differs in {[*absent, *result.unexpected_keys][0]}")
    kept = torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True)
    optimizer.load_state_dict(kept["optimizer"])
    torch.set_rng_state(kept["torch_rng"])
    return position_of(folder)


def _misfit(folder: Path, why: str) -> UsageError:
    return UsageError(
        f"the checkpoint {folder.name} does not fit this model: {why}",
        hint="resume with the recipe the run was started with",
    )


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
