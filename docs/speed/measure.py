"""Ours beside TRL, the update's cost by size, and where a step's time goes: make bench

Writes results.json and results.md beside this file; the tables also go to stdout. Parts that are
not measured anew stay as they were.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import probe
import report
import share
from work import Answer, Setup, Work, Worker, overrides, recipe_of, recipe_path

from tpcli.errors import TpcliError, UsageError

HERE = Path(__file__).parent
PARTS = ("side", "curves", "profile")
MAGNITUDES = (0.0, 0.5, 0.8, 0.99)
UPDATES = (*((m, True) for m in MAGNITUDES), *((m, False) for m in MAGNITUDES[1:]))
"""100, 50, 20 and 1% of each response are credited; then again without measuring the rest."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large everything is.

    Attributes:
        shortest, longest: tokens of a response, side by side.
        lengths: of the curve; TRL is measured up to ``trl_length``.
        groups, group_length: of the curve over group sizes.
        steps, tool_steps: of the profile, and of the run that is watched from outside.
    """

    prompts: int = 4
    group_size: int = 8
    shortest: int = 12
    longest: int = 64
    lengths: tuple[int, ...] = (64, 256, 1_024, 4_096)
    trl_length: int = 1_024
    groups: tuple[int, ...] = (2, 4, 8, 16, 32)
    group_length: int = 64
    vocabularies: tuple[int, ...] = (1_000, 8_000, 49_152, 150_000)
    steps: int = 4
    tool_steps: int = 8


SMALL = Sizes(2, 4, 3, 8, (4, 8), 4, (2, 4), 4, (100,), 2, 60)


def main() -> int:
    """Run the parts that are asked for, and write what they found."""
    args = _arguments()
    try:
        if "trl" in _needs(args.parts) and importlib.util.find_spec("trl") is None:
            raise UsageError(
                "the bench compares with TRL, which is not installed",
                hint="pip install 'tpcli[trl]', or leave it out: --parts profile",
            )
        results = run(args.parts, args.rounds, small=args.small)
    except TpcliError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    results = with_earlier(results, args.out / "results.json")
    text = report.render(results)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (args.out / "results.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of the comparison (default 5)")
    parser.add_argument(
        "--parts", type=_parts, default=PARTS, help=f"some of {','.join(PARTS)} (default all)"
    )
    parser.add_argument("--small", action="store_true", help="a tiny random model, for a test")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go")
    return parser.parse_args()


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"choose among {', '.join(PARTS)}")
    return names


def _needs(parts: Sequence[str]) -> set[str]:
    return {"trl"} if {"side", "curves"} & set(parts) else set()


def run(parts: Sequence[str], rounds: int, *, small: bool) -> dict[str, Any]:
    """Measure; returns each part, with where its numbers come from as its "origin"."""
    sizes = SMALL if small else Sizes()
    results: dict[str, Any] = {}
    for part in parts:
        began, origin = time.perf_counter(), _origin()
        results[part] = {
            "side": lambda: side(sizes, rounds, small),
            "curves": lambda: curves(sizes, small),
            "profile": lambda: profile(sizes, small),
        }[part]()
        results[part]["origin"] = {**origin, "seconds": time.perf_counter() - began}
    return results


def _origin() -> dict[str, Any]:
    told = sys.argv[1:]
    if "--out" in told:  # a path of this machine, which changes no number
        at = told.index("--out")
        told = [*told[:at], *told[at + 2 :]]
    return {
        "command": shlex.join(["python", "docs/speed/measure.py", *told]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": probe.machine(),
        "versions": {
            name: version(name)
            for name in ("torch", "transformers", "trl", "tpcli")
            if importlib.util.find_spec(name)
        },
    }


def with_earlier(results: dict[str, Any], path: Path) -> dict[str, Any]:
    """The parts just measured, and those that the file has from before."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    both = {**earlier, **results}
    return {part: both[part] for part in PARTS if "origin" in both.get(part, {})}


def say(what: str) -> None:
    """Progress."""
    print(f"{datetime.now():%H:%M:%S} {what}", file=sys.stderr, flush=True)


def side(sizes: Sizes, rounds: int, small: bool) -> dict[str, Any]:
    """Ours and TRL in turn, a round to warm up and then ``rounds``."""
    setup = Setup(small, sizes.prompts, sizes.group_size, sizes.longest)
    draw = random.Random(0)
    found = []
    with Worker("ours", setup) as ours, Worker("trl_step", setup) as trl:
        for number in range(rounds + 1):
            lengths = [
                [draw.randint(sizes.shortest, sizes.longest) for _ in range(sizes.group_size)]
                for _ in range(sizes.prompts)
            ]
            turns: list[tuple[str, Worker, Work]] = [
                ("ours", ours, Work(lengths, number, updates=UPDATES)),
                ("trl", trl, Work(lengths, number)),
            ]
            # Who begins changes from round to round.
            order = turns[:: 1 if number % 2 else -1]
            answers = {name: worker.ask(work) for name, worker, work in order}
            _check_alike(answers, sum(map(sum, lengths)))
            one = {name: asdict(answer) for name, answer in answers.items()}
            spent = ", ".join(f"{n} {report.seconds(a, 'step'):.1f} s" for n, a in one.items())
            say(f"round {number or 'to warm up'}: {spent}")
            if number:
                found.append({"lengths": lengths, "updates": UPDATES, **one})
    recipe = recipe_of(setup)
    return {
        "model": recipe.model.source,
        "sizes": {
            **asdict(sizes),
            "prompt_length": answers["ours"].prompt_tokens // sizes.prompts,
            "shared": answers["ours"].shared_tokens,
            "micro_batch_tokens": recipe.train.micro_batch_tokens,
        },
        "rounds": found,
    }


def _check_alike(answers: dict[str, Answer], tokens: int) -> None:
    """Both sides had the same work, and both learned something from it."""
    for name, answer in answers.items():
        assert answer.tokens == tokens, f"{name} has {answer.tokens} tokens, not {tokens}"
        assert all(update.gradient > 0 for update in answer.updates), f"{name} learned nothing"
    assert answers["ours"].prompt_tokens == answers["trl"].prompt_tokens


def curves(sizes: Sizes, small: bool) -> dict[str, Any]:
    """The update alone, by length, group size, credited share and vocabulary."""
    found: dict[str, Any] = {"group_length": sizes.group_length}
    with Worker("ours", Setup(small, sizes.prompts, sizes.group_size, sizes.longest)) as ours:
        _update(ours, [sizes.group_length] * 2)  # warms up, and makes the optimiser's state
        found["length"] = [
            _point(f"{n:,}", _update(ours, [n] * 2), "length") for n in sizes.lengths
        ]
        found["group"] = [
            _point(str(n), _update(ours, [sizes.group_length] * n), "group") for n in sizes.groups
        ]
        lengths = [[sizes.longest] * sizes.group_size] * sizes.prompts
        answer = ours.ask(Work(lengths, 0, sample=False, updates=UPDATES))
        found["share"] = [
            _point(report.credited(*update), answer, "share", place)
            for place, update in enumerate(UPDATES)
        ]
    with Worker("trl_step", Setup(small, 1, 2, max(sizes.trl_length, sizes.longest))) as trl:
        _update(trl, [sizes.group_length] * 2)
        for n, point in zip(sizes.lengths, found["length"], strict=True):
            if n <= sizes.trl_length:
                point["trl"] = _point(f"{n:,}", _update(trl, [n] * 2), "length, TRL")
    found["vocabulary"] = []
    for size in sizes.vocabularies:
        with Worker("ours", Setup(small, 1, 2, sizes.longest, vocabulary=size)) as ours:
            _update(ours, [sizes.group_length] * 8)
            answer = _update(ours, [sizes.group_length] * 8)
            found["vocabulary"].append(_point(f"{size:,}", answer, "vocabulary"))
    return found


def _update(worker: Worker, lengths: list[int]) -> Answer:
    answer: Answer = worker.ask(Work([lengths], 0, sample=False))
    assert answer.tokens == sum(lengths)
    return answer


def _point(at: str, answer: Answer, curve: str, place: int = 0) -> dict[str, Any]:
    """One row of a curve's table."""
    update = answer.updates[place]
    spent, best = update.seconds["whole"], max(answer.probe.values())
    above = None
    if update.peak is not None and update.base is not None:
        # Before an update weights and moments are there; the gradients are made in it.
        above = update.peak - update.base - answer.state / 4 / 2**30
    say(f"{curve} {at}: {spent:.2f} s")
    return {
        "at": at,
        "tokens": answer.tokens,
        "seconds": spent,
        "peak": update.peak,
        "above": above,
        "reached": update.flops / spent / 1e9 / best if update.flops else None,
        "probe": answer.probe,
    }


def profile(sizes: Sizes, small: bool) -> dict[str, Any]:
    """The loop with clocks in it, and the tool around it."""
    setup = Setup(
        small,
        sizes.prompts,
        sizes.group_size,
        sizes.longest,
        own_questions=True,
        extra=("track.kl=true", "train.horizon=100"),
    )
    with Worker("phases", setup) as worker:
        say("profile of the loop")
        loop = worker.ask(sizes.steps)
    say("the tool around it: tpcli train")
    steps = (f"train.steps={sizes.tool_steps}", "eval.questions=0")
    run = replace(setup, extra=(*setup.extra, *steps))
    tool = share.measure(recipe_path(run), overrides(run))
    what = (
        f"{recipe_of(run).model.source}, {sizes.prompts} x {sizes.group_size} responses of at most "
        f"{sizes.longest} tokens to the recipe's own questions, with a reference model"
    )
    return {"what": what, "loop": loop, "tool": tool}


if __name__ == "__main__":
    sys.exit(main())
