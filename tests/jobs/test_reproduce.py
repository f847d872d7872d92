"""The first steps once more: identical on one machine, and a change by hand is named exactly."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.jobs.bench import Bench
from tests.registry.folders import FINISHED, lines_of, make_run

from tpcli.errors import UsageError
from tpcli.jobs.reproduce import Difference, causes, compare, prepare
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import diff

K = 2


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Path, Path, str]:
    """A run, its first two steps once more, and what that printed."""
    bench = Bench(tmp_path_factory.mktemp("pair"), cache)
    # Past the middle of the schedule, and into the rise of the rate: both depend on the horizon.
    settings = ("train.keep=3", "optim.warmup_steps=3", 'optim.schedule="linear"')
    bench.type("train", "small.toml", *(w for s in settings for w in ("--set", s)))
    original = bench.run
    told = bench.type("reproduce", original.name, "--steps", str(K))
    (again,) = (run for run in bench.runs() if run != original)
    return original, again, told.stdout


@pytest.fixture
def altered(pair: tuple[Path, Path, str], tmp_path: Path) -> Path:
    """A copy of the original, to be altered by hand."""
    return shutil.copytree(pair[0], tmp_path / "runs" / pair[0].name)


def first(original: Path, again: Path) -> Difference:
    found = compare(original, again, K).difference
    assert found is not None
    return found


def edit(path: Path, number: int, change: Callable[[dict[str, Any]], None]) -> None:
    """Change one line of a file of JSON lines."""
    lines = path.read_text().splitlines()
    told = json.loads(lines[number])
    change(told)
    lines[number] = json.dumps(told)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.mark.slow
def test_the_same_code_on_the_same_machine_is_identical(pair: tuple[Path, Path, str]) -> None:
    original, again, told = pair
    found = compare(original, again, K)
    assert found.difference is None
    # But for our own files, which somebody may be editing while this runs.
    assert [what for what, _, _ in found.causes if not what.startswith("tpcli.")] == []
    assert (found.steps, found.kept, found.there) == (K, (2,), (2, 4, 6))
    # Of every parameter the weight, both moments and the count of steps (a tied head is one).
    state = load_file(original / "checkpoints/step-000002/model/model.safetensors")
    assert found.tensors == 4 * len(state)
    assert found.numbers > 500
    assert f"identical: {K} steps, {found.numbers:,} numbers, {found.tensors} tensors" in told
    run = json.loads((again / "run.json").read_text())
    assert (run["name"], run["tags"], run["steps"], run["horizon"]) == (
        *("small-linear-s0-repro", ["reproduce"]),
        *(K, 6),
    )
    # What was evaluated in addition, at the last of the fewer steps, is not compared.
    lines = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert "eval/sampled" in lines[2]


@pytest.mark.slow
def test_fewer_steps_change_nothing_else(pair: tuple[Path, Path, str]) -> None:
    before, after = (load_recipe(run / "resolved.toml").recipe for run in pair[:2])
    assert [key for key, _, _ in diff(before, after)] == ["train.steps", "train.horizon"]
    assert before.horizon == after.horizon


@pytest.mark.slow
@pytest.mark.parametrize("key", ["ids", "logprob", "old_logprob", "entropy", "weight", "advantage"])
def test_one_number_of_a_response(pair: tuple[Path, Path, str], altered: Path, key: str) -> None:
    """The second response of step 2; four are kept a step."""
    before: list[float] = []

    def change(told: dict[str, Any]) -> None:
        assert told["step"] == 2
        before.append(told[key][3])
        told[key][3] += 1

    edit(altered / "responses.jsonl", 5, change)
    found = first(altered, pair[1])
    assert (found.step, found.tensor, found.place) == (2, f"{key} of response 2", (3,))
    assert found.again == before[0]
    assert (found.apart, found.count, found.largest) == pytest.approx((1, 1, 1))


@pytest.mark.slow
def test_of_several_the_one_that_arises_first_is_named(
    pair: tuple[Path, Path, str], altered: Path
) -> None:
    """A later response whose tokens differ comes before an earlier one's entropy."""
    edit(altered / "metrics.jsonl", 1, lambda told: told.update({"reward/mean": 7.0}))
    edit(altered / "responses.jsonl", 0, lambda told: told["entropy"].__setitem__(0, 7.0))
    edit(altered / "responses.jsonl", 2, lambda told: told["ids"].append(7))
    found = first(altered, pair[1])
    assert (found.step, found.tensor, found.original) == (1, "ids of response 3", 7)
    assert (found.again, found.apart) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "key"), [(0, "eval/greedy"), (1, "optim/grad_norm"), (2, "kl/all"), (2, "schedule/lr")]
)
def test_one_metric(pair: tuple[Path, Path, str], altered: Path, line: int, key: str) -> None:
    told = json.loads((altered / "metrics.jsonl").read_text().splitlines()[line])
    if key not in told:
        key = next(name for name in told if name.endswith("/lr") or name == "optim/lr")
    edit(altered / "metrics.jsonl", line, lambda told: told.update({key: told[key] + 0.25}))
    found = first(altered, pair[1])
    assert (found.step, found.tensor) == (line, f"metric {key}")
    assert found.apart == pytest.approx(0.25)


@pytest.mark.slow
def test_one_number_of_a_percentile(pair: tuple[Path, Path, str], altered: Path) -> None:
    edit(
        altered / "metrics.jsonl",
        1,
        lambda told: told["entropy/percentile"].__setitem__(4, 3.0),
    )
    found = first(altered, pair[1])
    assert (found.step, found.tensor, found.place) == (1, "metric entropy/percentile", (4,))


@pytest.mark.slow
def test_clocks_and_memory_are_left_out(pair: tuple[Path, Path, str], altered: Path) -> None:
    more = {"time": 1.0, "time/step": 9.0, "speed/tokens_per_s": 1.0, "memory/peak_gb": 1.0}
    edit(altered / "metrics.jsonl", 1, lambda told: told.update(more))
    assert compare(altered, pair[1], K).difference is None


@pytest.mark.slow
def test_one_weight(pair: tuple[Path, Path, str], altered: Path) -> None:
    path = altered / "checkpoints/step-000002/model/model.safetensors"
    state = load_file(path)
    name = sorted(state)[3]
    before = float(state[name].view(-1)[2])
    state[name].view(-1)[2] += 0.5
    save_file(state, path, metadata={"format": "pt"})
    found = first(altered, pair[1])
    assert (found.step, found.tensor) == (2, f"model {name}")
    assert (found.again, found.apart) == pytest.approx((before, 0.5))
    assert (found.count, found.size) == (1, state[name].numel())


@pytest.mark.slow
def test_one_moment_of_the_optimiser(pair: tuple[Path, Path, str], altered: Path) -> None:
    path = altered / "checkpoints/step-000002/optimizer.pt"
    kept = torch.load(path, weights_only=True)
    state = kept["optimizer"]["state"]
    state[1]["exp_avg_sq"].view(-1)[0] += 1.0
    torch.save(kept, path)
    found = first(altered, pair[1])
    # The second matrix in the model's order: after the embedding the first layer's queries.
    assert found.tensor == "optimizer exp_avg_sq of model.layers.0.self_attn.q_proj.weight"
    assert (found.step, found.place, found.count) == (2, (0, 0), 1)


@pytest.mark.slow
def test_a_difference_is_told_with_what_else_differs(
    pair: tuple[Path, Path, str], altered: Path, cache: Path, tmp_path: Path
) -> None:
    """As typed: exit code 6, step, tensor, values, and the package that another version had."""
    edit(altered / "responses.jsonl", 4, lambda told: told["logprob"].__setitem__(1, -99.0))
    facts = json.loads((altered / "provenance.json").read_text())
    facts["packages"]["torch"], facts["compute"]["threads"] = "1.0", 64
    (altered / "provenance.json").write_text(json.dumps(facts))
    bench = Bench(tmp_path, cache)
    told = bench.type("reproduce", altered.name, "--steps", str(K), code=6).stdout
    assert "differs at step 2: logprob of response 1, number 1 (counted from 0)" in told
    assert "original  -99\n" in told
    assert re.search(rf"packages\.torch +1\.0 → {torch.__version__.partition('+')[0]}", told)
    assert re.search(r"compute\.threads +64 → 1\n", told)
    assert "TPCLI_RUNS" not in told


def test_what_can_be_reproduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path))
    make_run(tmp_path, "none", state=FINISHED)
    make_run(tmp_path, "three", state=FINISHED, lines=lines_of(3))
    fork = {"parent": {"run": "three", "step": 2}}
    make_run(tmp_path, "forked", state=FINISHED, lines=lines_of(3), **fork)
    with pytest.raises(UsageError, match="none has not done a step yet"):
        prepare("none")
    with pytest.raises(UsageError, match="three has done 3 steps") as refused:
        prepare("three", steps=4)
    assert refused.value.hint == "--steps 3 compares all"
    with pytest.raises(UsageError, match="fork of three") as refused:
        prepare("forked")
    assert refused.value.hint == "reproduce the parent: tpcli reproduce three"


def test_causes_are_facts_that_differ(tmp_path: Path) -> None:
    """The likeliest first; a diff's text says no more than its digest."""
    sides = (tmp_path / "a", tmp_path / "b")
    for side, version in zip(sides, ("1", "2"), strict=True):
        side.mkdir()
        facts = {
            "git": {"commit": version, "diff": version, "dirty": True},
            "tpcli": {"code": version},
            "machine": {"memory": version, "host": "same"},
            "argv": [version],
        }
        (side / "provenance.json").write_text(json.dumps(facts))
    assert causes(*sides) == [("tpcli.code", "1", "2"), ("git.commit", "1", "2")]
