"""The first steps of a run once more, and the first number that comes out otherwise.

Compared in the order in which the numbers arise: the stored responses of a step, the metrics of
its line, and where both runs have a checkpoint of the step, the model and its optimiser.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.errors import UsageError
from tpcli.jobs.lineage import plan_from
from tpcli.jobs.runs import find
from tpcli.jobs.train import Plan, parent_of
from tpcli.registry import folder

if TYPE_CHECKING:
    from torch import Tensor

    from tpcli.registry.run import Run

TAG = "reproduce"
STEPS = 5
RESPONSE = (
    *("prompt_ids", "ids", "logprob", "old_logprob", "entropy", "weight", "advantage"),
    *("reward", "group_advantage", "learns"),
)
"""What is stored of a response, in the order in which it arises."""
CLOCKS = ("time", "speed/", "memory/")
"""Beginnings of the metrics that no two runs have in common."""
ORIGIN = (
    *("tpcli", "packages", "python", "compute", "machine", "platform", "environment", "git"),
    "data",
)
"""Tables of provenance that may explain a difference, the likeliest first."""
UNTOLD = ("git.diff", "git.note", "machine.memory", "environment.TPCLI_RUNS")
"""Facts of provenance that say nothing more than others do, or decide nothing."""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What is to be trained, and what it will be compared with."""

    plan: Plan
    original: Run
    steps: int


@dataclass(frozen=True, slots=True)
class Difference:
    """The first number that differs.

    Attributes:
        tensor: what it belongs to, such as "entropy of response 1" or "metric kl/all".
        place: which of its numbers, counted from 0; () of a single number.
        original, again: None where that side has no such number.
        apart: how far; None where one cannot say. Of a whole tensor, ``largest`` is the largest
            distance and ``count`` of ``size`` numbers differ.
    """

    step: int
    tensor: str
    place: tuple[int, ...]
    original: Any
    again: Any
    apart: float | None
    count: int
    size: int
    largest: float | None


@dataclass(slots=True)
class Verdict:
    """How far two runs are the same.

    Attributes:
        steps, numbers, tensors: compared and equal, before the difference where there is one;
            ``numbers`` counts those of responses and metrics.
        kept: steps of which both have a checkpoint.
        there: steps of which the original has one.
        causes: what differs in where the runs come from: (what, original, again).
    """

    steps: int = 0
    numbers: int = 0
    tensors: int = 0
    kept: tuple[int, ...] = ()
    there: tuple[int, ...] = ()
    difference: Difference | None = None
    causes: list[tuple[str, Any, Any]] = field(default_factory=list)


def prepare(key: str, *, steps: int | None = None, argv: Sequence[str] = ()) -> Reproduction:
    """The run's recipe cut to its first steps; the schedules keep their horizon.

    Args:
        steps: how many; None is five, or as many as the run has done where that is fewer.

    Raises:
        NotFoundError: no such run.
        UsageError: it has not come so far, or it does not begin with its own first step.
    """
    run = find(key)
    parent = parent_of(run.folder)
    if parent is not None:
        raise UsageError(
            f"run {run.id} is a fork of {parent.run}: its first {parent.step} steps are that run's",
            hint=f"reproduce the parent: tpcli reproduce {parent.run}",
        )
    lines = folder.read_metrics(run.folder)
    done = int(lines[-1]["step"]) if lines else 0
    if done == 0:
        raise UsageError(
            f"run {run.id} has not done a step yet", hint=f"it is {run.status}: tpcli logs {run.id}"
        )
    wanted = steps or min(STEPS, done)
    if wanted > done:
        raise UsageError(f"run {run.id} has done {done} steps", hint=f"--steps {done} compares all")
    overrides = [f"train.steps={wanted}", f"train.horizon={run.horizon}"]
    name = f"{run.name[:94]}-repro"
    note = f"the first {wanted} steps of {run.id}"
    planned = plan_from(run, overrides=overrides, name=name, tags=[TAG], note=note, argv=argv)
    return Reproduction(planned, run, wanted)


def compare(original: Path, again: Path, steps: int) -> Verdict:
    """Compare two run folders up to step ``steps``, and stop at the first difference."""
    there, ours = _kept(original), _kept(again)
    kept = tuple(step for step in there if step in ours and step <= steps)
    verdict = Verdict(kept=kept, there=tuple(there))
    responses = [_responses(run_dir, steps) for run_dir in (original, again)]
    metrics = [{line["step"]: line for line in folder.read_metrics(d)} for d in (original, again)]
    for step in [0] * (0 in metrics[0]) + [*range(1, steps + 1)]:
        left, right = (side.get(step, []) for side in responses)
        verdict.difference = _numbers(step, _in_responses(left, right), verdict)
        if verdict.difference is None:
            line, other = (side.get(step, {}) for side in metrics)
            verdict.difference = _numbers(step, _in_metrics(line, other), verdict)
        if verdict.difference is None and step in verdict.kept:
            names = [d / folder.CHECKPOINTS / f"step-{step:06d}" for d in (original, again)]
            verdict.difference = _tensors(step, _in_checkpoints(*names), verdict)
        if verdict.difference is not None:
            break
        verdict.steps += step > 0
    verdict.causes = causes(original, again)
    return verdict


def causes(original: Path, again: Path) -> list[tuple[str, Any, Any]]:
    """What differs in where two runs come from: (what, original, again)."""
    left, right = (_origin(folder.read_json(d / folder.PROVENANCE)) for d in (original, again))
    keys = [*left, *(key for key in right if key not in left)]
    pairs = [(key, left.get(key), right.get(key)) for key in keys]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _origin(facts: Mapping[str, Any]) -> dict[str, Any]:
    found = dict[str, Any]()
    for part in ORIGIN:
        found |= _flat(facts.get(part), part)
    return {key: value for key, value in found.items() if key not in UNTOLD}


def _flat(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, one in value.items() for k, v in _flat(one, f"{key}.{name}").items()}


def _kept(run_dir: Path) -> list[int]:
    """Steps of the complete checkpoints, in order."""
    found = (run_dir / folder.CHECKPOINTS).glob("step-*")
    names = [path.name.removeprefix("step-") for path in found if path.is_dir()]
    return sorted(int(name) for name in names if name.isdigit())


def _responses(run_dir: Path, steps: int) -> dict[int, list[dict[str, Any]]]:
    """The stored responses of the first steps; the file may hold many more."""
    found = dict[int, list[dict[str, Any]]]()
    path = run_dir / folder.RESPONSES
    if not path.exists():
        return found
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            told = json.loads(line)
            if told["step"] > steps:
                break
            found.setdefault(told["step"], []).append(told)
    return found


# What is compared: names, and the values of both sides

Pair = tuple[str, Any, Any]


def _in_responses(
    left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]
) -> Iterator[Pair]:
    """Field by field, because all responses are drawn before the first is graded."""
    for key in RESPONSE:
        nothing: Mapping[str, Any] = {}
        pairs = zip_longest(left, right, fillvalue=nothing)
        for place, (a, b) in enumerate(pairs, start=1):
            yield f"{key} of response {place}", a.get(key), b.get(key)


def _in_metrics(line: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Pair]:
    """What the original recorded; the shortened run evaluates at its end in addition."""
    for key, value in line.items():
        if key != "step" and not key.startswith(CLOCKS):
            yield f"metric {key}", value, other.get(key)


def _in_checkpoints(left: Path, right: Path) -> Iterator[Pair]:
    """The model's tensors by name, then the optimiser's by name of the parameter."""
    import torch
    from safetensors import safe_open

    with ExitStack() as stack:
        sides = list[dict[str, Any]]()
        for checkpoint in (left, right):
            shards = sorted((checkpoint / "model").glob("*.safetensors"))
            files = [stack.enter_context(safe_open(shard, "pt")) for shard in shards]
            sides.append({name: file for file in files for name in [*file.keys()]})
        for name in dict.fromkeys([*sides[0], *sides[1]]):
            ours, theirs = (s[name].get_tensor(name) if name in s else None for s in sides)
            yield f"model {name}", ours, theirs
    states = [
        torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True, mmap=True)
        for checkpoint in (left, right)
    ]
    first, second = (kept["optimizer"]["state"] for kept in states)
    parameters = parameter_names(left / "model", len(first))
    for place in dict.fromkeys([*first, *second]):
        one, other = first.get(place, {}), second.get(place, {})
        for key in dict.fromkeys([*one, *other]):
            whose = parameters.get(place, f"parameter {place}")
            yield f"optimizer {key} of {whose}", one.get(key), other.get(key)


def parameter_names(model: Path, count: int) -> dict[int, str]:
    """Names by the optimiser's numbers: matrices in the model's order, then vectors.

    Empty where the model cannot be laid out from its files alone, or has another number of them.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        with torch.device("meta"):
            make: Any = AutoModelForCausalLM.from_config
            laid_out = make(config, trust_remote_code=False)
    except (OSError, ValueError):
        return {}
    named = [*laid_out.named_parameters()]
    names = [n for n, p in named if p.ndim >= 2] + [n for n, p in named if p.ndim < 2]
    return dict(enumerate(names)) if len(names) == count else {}


# How it is compared


def _numbers(step: int, pairs: Iterable[Pair], verdict: Verdict) -> Difference | None:
    """The first pair that differs; those before it are counted."""
    for name, left, right in pairs:
        ours, theirs = [*_leaves(left)], [*_leaves(right)]
        if ours == theirs:
            verdict.numbers += sum(value is not None for _, value in ours)
            continue
        both = [*zip_longest(ours, theirs, fillvalue=((), None))]
        wrong = [(a, b) for a, b in both if a != b]
        (place, a), (other_place, b) = wrong[0]
        apart = [d for (_, x), (_, y) in wrong if (d := _distance(x, y)) is not None]
        return Difference(
            step=step,
            tensor=name,
            place=place or other_place,
            original=a,
            again=b,
            apart=_distance(a, b),
            count=len(wrong),
            size=len(both),
            largest=max(apart, default=None),
        )
    return None


def _leaves(value: Any) -> Iterator[tuple[tuple[int, ...], Any]]:
    if isinstance(value, list):
        for place, one in enumerate(value):
            yield (place,), one
    else:
        yield (), value


def _distance(a: Any, b: Any) -> float | None:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
    return abs(a - b) if numbers else None


def _tensors(step: int, pairs: Iterable[Pair], verdict: Verdict) -> Difference | None:
    """The first tensor that differs; those before it are counted."""
    for name, left, right in pairs:
        if left is None or right is None or left.shape != right.shape:
            a, b = (None if side is None else f"shape {[*side.shape]}" for side in (left, right))
            return Difference(step, name, (), a, b, None, 1, 1, None)
        found = _in_tensor(step, name, left, right)
        if found is not None:
            return found
        verdict.tensors += 1
    return None


def _in_tensor(step: int, name: str, left: Tensor, right: Tensor) -> Difference | None:
    import torch

    same = (left == right) | (torch.isnan(left) & torch.isnan(right))
    if bool(same.all()):
        return None
    place = tuple((~same).nonzero()[0].tolist())
    a, b = float(left[place]), float(right[place])
    largest = float((left.double() - right.double()).abs().max())
    return Difference(
        step=step,
        tensor=name,
        place=place,
        original=a,
        again=b,
        apart=abs(a - b),
        count=int((~same).sum()),
        size=left.numel(),
        largest=largest,
    )
