"""A newcomer's folder and the command line in it, for tests of whole runs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = f"""
extends = "{RECIPES / "tiny.toml"}"
[data]
config = {{ min_terms = 2, max_terms = 2, max_first = 20, max_operand = 9 }}
held_out = 0.2
[warmup]
steps = 150
batch_size = 32
[rollout]
prompts = 4
group_size = 4
max_new_tokens = 40
temperature = 1.0
[credit.schedule]
end = 0.8
[optim]
lr = 5e-5
warmup_steps = 0
[train]
steps = 6
save_every = 2
[eval]
questions = 8
samples = 2
every = 3
"""
NOT_REPEATABLE = ("time", "speed/", "memory/")


class Bench:
    """A newcomer's folder with one recipe, and the command line in it."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.environment = os.environ | {
            "TPCLI_CACHE": str(cache),
            "TPCLI_RUNS": str(folder / "runs"),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }
        (folder / "small.toml").write_text(SMALL)

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tpcli", *args],
            cwd=self.folder,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def type(self, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        process = self.start(*args)
        out, err = process.communicate(timeout=240)
        log = "".join(p.read_text() for p in self.folder.glob("runs/*/log.txt"))
        assert process.returncode == code, f"{out}\n{err}\n{log[-3000:]}"
        return subprocess.CompletedProcess(args, code, out, err)

    @property
    def run(self) -> Path:
        (found,) = self.folder.glob("runs/*/run.json")
        return found.parent

    def until_step(self, step: int) -> None:
        """Wait for the metrics of ``step``."""
        limit = time.monotonic() + 180
        while time.monotonic() < limit:
            if any(line["step"] >= step for path in self.runs() for line in metrics(path)):
                return
            time.sleep(0.02)
        raise AssertionError(f"step {step} never came")

    def runs(self) -> list[Path]:
        return [p.parent for p in self.folder.glob("runs/*/run.json")]


def metrics(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    whole = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in whole]


def repeatable(run: Path) -> list[dict[str, Any]]:
    """Everything but clocks and memory."""
    return [
        {k: v for k, v in line.items() if not k.startswith(NOT_REPEATABLE)} for line in metrics(run)
    ]
