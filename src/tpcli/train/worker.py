"""The training process: ``python -m tpcli.train RUN_DIR``, started by accelerate's launcher.

Everything it has to say goes into the run's folder: progress.json ends with "done" or "stopped";
a run that failed leaves failure.json.
"""

import argparse
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from tpcli import errors
from tpcli.errors import TpcliError, UsageError
from tpcli.policy import heap
from tpcli.recipe.load import load_recipe
from tpcli.registry.folder import FAILURE, PROVENANCE, RESOLVED, RUN, read_json, write_json_atomic
from tpcli.train import checkpoint
from tpcli.train.build import build, device_facts, grader_of, settings
from tpcli.train.journal import Journal
from tpcli.train.loop import Loop, Parts


def main() -> None:
    """Train the run in the folder given, from its newest checkpoint if it has one."""
    parser = argparse.ArgumentParser(prog="tpcli.train")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--supervisor", type=int, help="end when this process does")
    parser.add_argument("--new-horizon", action="store_true", help="let the schedule move")
    args = parser.parse_args()
    if args.supervisor:
        _follow(args.supervisor)
    sys.exit(run(args.run_dir, new_horizon=args.new_horizon))


def run(run_dir: Path, *, new_horizon: bool = False) -> int:
    """Build, resume, loop; returns the exit code."""
    try:
        recipe = load_recipe(run_dir / RESOLVED).recipe
        accelerator = Accelerator(
            cpu=recipe.launch.cpu,
            mixed_precision=recipe.launch.mixed_precision,
            # The first to finish its rollouts waits for the last: that may be hours.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=12))],
        )
        if accelerator.num_processes != recipe.launch.processes:
            raise UsageError(
                f"launch.processes is {recipe.launch.processes}, but accelerate made "
                f"{accelerator.num_processes} of them work together",
                hint="unset WORLD_SIZE and PMI_SIZE, which another launcher has left"
                if recipe.launch.cpu
                else "without GPUs set launch.cpu = true as well",
            )
        if accelerator.device.type == "cpu":
            settle_on_cpu()
        journal = Journal(run_dir, steps=recipe.train.steps, writes=accelerator.is_main_process)
        with grader_of(recipe, _folders(run_dir)) as grader:
            parts, data = build(recipe, accelerator, journal, grader)
            if accelerator.is_main_process:
                _remember(run_dir, {"data": data.facts, "compute": device_facts(accelerator)})
            done = _resume(run_dir, recipe.horizon, parts, new_horizon)
            try:
                Loop(run_dir, parts, settings(recipe), journal).run(done)
            finally:
                if parts.sync:
                    parts.sync.close()
        accelerator.end_training()
        return errors.OK
    except TpcliError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        _tell(run_dir, str(error), error.hint, error.exit_code)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        _tell(run_dir, f"{type(error).__name__}: {error}".splitlines()[0], "", errors.BUG)
        return errors.BUG


def settle_on_cpu() -> None:
    """What a process that trains on a CPU sets first.

    The deterministic kernels cost nothing there, and a resumed run must repeat every bit.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    heap.settle()


def _folders(run_dir: Path) -> list[Path]:
    """The folder of the recipe that the run was started with: a user's own verifier may be there.

    A relative path is one of the folder that the run was started in.
    """
    recipe = read_json(run_dir / RUN).get("recipe")
    return [Path(recipe).parent] if recipe else []


def _remember(run_dir: Path, facts: dict[str, Any]) -> None:
    """Add to provenance what only the worker knows; refuse to go on with other questions."""
    known = read_json(run_dir / PROVENANCE)
    before = known.get("data", {}).get("sha256")
    if before not in (None, facts["data"]["sha256"]) and checkpoint.newest(run_dir):
        raise UsageError(
            f"the questions are not those the run was started with (sha256 {before[:12]} then, "
            f"{facts['data']['sha256'][:12]} now)",
            hint="restore the data file or pin [data].revision; other data is another run",
        )
    write_json_atomic(run_dir / PROVENANCE, known | facts)


def _resume(run_dir: Path, horizon: int, parts: Parts, new_horizon: bool) -> int:
    """Load the newest checkpoint; returns the steps done."""
    found = checkpoint.newest(run_dir)
    if found is None:
        return 0
    step, folder = found
    before = checkpoint.position_of(folder).horizon
    if before != horizon and not new_horizon:
        raise UsageError(
            f"the schedule would move: step {step} was reached with a horizon of {before} steps, "
            f"the recipe now has {horizon}",
            hint=f"keep it with [train].horizon = {before}, or name the new one: "
            f"tpcli resume {run_dir.name} --horizon {horizon}",
        )
    position = checkpoint.restore(folder, parts.model, parts.learner.optimizer)
    parts.tempo.restore(position.tempo)
    return step


def _tell(run_dir: Path, message: str, hint: str, exit_code: int) -> None:
    """Leave the reason where the supervisor looks; the first process to fail writes it."""
    path = run_dir / FAILURE
    if not path.exists():
        write_json_atomic(path, {"error": message, "hint": hint, "exit_code": exit_code})


def _follow(pid: int) -> None:
    """End with the supervisor: a worker that nobody watches would hold its GPU unseen."""
    try:
        supervisor = psutil.Process(pid)
        started = supervisor.create_time()
    except psutil.NoSuchProcess:
        os._exit(errors.TERMINATED)

    def watch() -> None:
        while True:
            time.sleep(0.5)
            try:
                alive = supervisor.is_running() and supervisor.create_time() == started
                alive = alive and supervisor.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                alive = False
            if not alive:
                os._exit(errors.TERMINATED)

    threading.Thread(target=watch, daemon=True).start()
