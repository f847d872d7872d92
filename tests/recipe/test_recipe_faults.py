"""Every kind of fault: file, line, key, what is wrong, what is allowed, the nearest spelling."""

from pathlib import Path

import pytest

from tpcli.errors import Fault, RecipeError
from tpcli.recipe.load import load_recipe

HEAD = '[model]\nsource = "Qwen/Qwen3-4B"\n[data]\nsource = "running_sum"\n[train]\nsteps = 10\n'
"""Six lines: what is under test starts on line 7."""


def faults(folder: Path, text: str, *overrides: str) -> tuple[Fault, ...]:
    file = folder / "a.toml"
    file.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides=overrides)
    assert all(fault.source in (str(file), "--set") for fault in caught.value.faults)
    return caught.value.faults


CASES = r"""
== values

[optim]
lr = 0
> 8: optim.lr: 0 is not a number above 0

[optim]
lr = "1e-5"
> 8: optim.lr: "1e-5" is not a number above 0 (write it without quotes)

[optim]
lr = inf
> 8: optim.lr: inf is not a finite number

[optim]
lr = true
> 8: optim.lr: true is not a number above 0

[data.config]
[rollout]
prompts = 8.0
> 9: rollout.prompts: 8.0 is not a whole number above 0

[rollout]
group_size = 1
> 8: rollout.group_size: 1 is not a whole number of at least 2

[eval]
questions = -1
> 8: eval.questions: -1 is not a whole number of at least 0

[launch]
main_port = 70000
> 8: launch.main_port: 70000 is not a whole number from 0 to 65535

[launch]
cpu = 1
> 8: launch.cpu: 1 is not true or false

[track]
experiment = 1979-05-27
> 8: track.experiment: 1979-05-27 is not text

[track]
mlflow = true
> 8: track.mlflow: true is not text or false

[loss]
dual_clip = 1
> 8: loss.dual_clip: 1 is not a number above 1 or false

[optim]
betas = [0.9]
> 8: optim.betas: [0.9] is not an array of 2, each a number of at least 0 and below 1

[optim]
betas = [0.9, 0.9, 0.9]
> 8: optim.betas: [0.9, 0.9, 0.9] is not an array of 2, each a number of at least 0 and below 1

[optim]
betas = [
  0.9,
  2,
]
> 10: optim.betas[1]: 2 is not a number of at least 0 and below 1

[model.scratch]
pieces = 'ab'
> 8: model.scratch.pieces: "ab" is not an array of text

[data.examples]
a = 1
> 7: data.examples: a table is not an array of tables

[optim]
lr = { a = 1 }
> 8: optim.lr: a table is not a number above 0

== words

[credit]
allocation = "uniformm"
> 8: credit.allocation: "uniformm" is not one of "uniform", "trajectory_percentile",
> "forking_tokens", "entropy_advantage" (did you mean "uniform"?)

[optim]
schedule = "Cosine"
> 8: optim.schedule: "Cosine" is not one of "constant", "linear", "cosine" (did you mean
> "cosine"?)

[rollout]
engine = "vllm"
> 8: rollout.engine: "vllm" is not "transformers"

== a number or a table

[rollout]
temperature = "hot"
> 8: rollout.temperature: "hot" is not a number or a table

[loss]
clip_low = [1]
> 8: loss.clip_low: [1] is not a number or a table

[loss.clip_high]
curve = "lin"
> 8: loss.clip_high.curve: "lin" is not one of "constant", "linear", "cosine", "sigmoid",
> "gamma" (did you mean "linear"?)

[loss]
clip_high = { initial = nan }
> 8: loss.clip_high.initial: nan is not a finite number

== unknown keys

[optim]
weight_decy = 0
> 8: optim.weight_decy: unknown key (did you mean weight_decay?)

[eval]
lr = 1
> 8: eval.lr: unknown key (lr belongs to [warmup] or [optim])

[credit]
curve = 'linear'
> 8: credit.curve: unknown key (curve belongs to [credit.schedule])

[schedule]
end = 1
> 7: schedule: unknown table (schedule belongs to [credit])

[optm]
lr = 1
> 7: optm: unknown table (did you mean optim?)

[reward]
foo = 1
> 8: reward.foo: unknown key ([reward] takes kind)

[[data.examples]]
question = ''
solution = ''
answer = ''
> 10: data.examples[0].answer: unknown key ([data.examples[0]] takes question, solution)

[warmup]
steps = 3
'a b' = 1
> 9: warmup."a b": unknown key ([warmup] takes steps, batch_size, lr, weight_decay, seed)

== what is missing

[warmup]
lr = 1
> 7: warmup.steps: is required: a whole number above 0

[[data.examples]]
question = ''
[[data.examples]]
solution=''
question=''
> 7: data.examples[0].solution: is required: text

== combinations

[credit.schedule]
start = 0.9
> 8: credit.schedule.end: 0.8 must be greater than start (0.9) (to keep the value fixed, write
> curve = "constant")

[credit.schedule]
start = 0.5
end = 0.2
> 9: credit.schedule.end: 0.2 must be greater than start (0.5) (to keep the value fixed, write
> curve = "constant")

[loss.kl_coef]
initial = -1
> 8: loss.kl_coef.initial: -1 must lie in [0, inf]

[launch]
processes = 3
machines = 2
> 8: launch.processes: 3 must be a multiple of machines (2)

[rollout]
prompts = 4
[launch]
processes = 3
> 8: rollout.prompts: 4 must be a multiple of launch.processes (3)

[launch]
processes = 3
> 8: rollout.prompts: 256 must be a multiple of launch.processes (3)

[loss]
objective = "gspo"
> 8: loss.dual_clip: belongs to objective = "ppo_clip" (write dual_clip = false)

[loss]
objective = "gspo"
dual_clip = 2
> 9: loss.dual_clip: belongs to objective = "ppo_clip" (write dual_clip = false)

[loss]
denominator = "constant"
> 8: loss.denominator: denominator = "constant" needs constant, the number to divide by

[rollout.temperature]
initial = 1
> 7: rollout.temperature: a schedule needs final here (the defaults are those of a magnitude)

[rollout.temperature]
initial = 1
final = 0
> 9: rollout.temperature.final: 0 must be above 0

[loss.entropy_coef]
end = 0.05
> 7: loss.entropy_coef: the window from 0 to 0.05 of 10 steps holds no whole step (widen it or
> train longer)
"""
"""What follows the head, and after "> " the only fault of it; "==" begins a chapter."""


def cases() -> list[tuple[str, str]]:
    blocks = [block for block in CASES.strip().split("\n\n") if not block.startswith("==")]
    split = [block.partition("\n> ") for block in blocks]
    return [(text, expected.replace("\n> ", " ")) for text, _, expected in split]


@pytest.mark.parametrize(("text", "expected"), cases())
def test_one_fault(text: str, expected: str, tmp_path: Path) -> None:
    found = faults(tmp_path, f"{HEAD}{text}\n")
    assert str(RecipeError(found)) == f"{tmp_path / 'a.toml'}:{expected}"


def test_a_missing_table_is_blamed_on_the_file(tmp_path: Path) -> None:
    found = faults(tmp_path, "[model]\nsource = 'x'\n[train]\n")
    assert [(f.line, f.key, f.message, f.hint) for f in found] == [
        (None, "data", "the table is missing", "write [data] with source"),
        (3, "train.steps", "is required: a whole number above 0", ""),
    ]


def test_a_number_where_a_table_belongs(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, "optim = 3\n" + HEAD)
    assert (fault.line, fault.key, fault.message) == (1, "optim", "3 is not a table")


def test_all_faults_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "[train]\nstep = 1\n[model]\nsource = 3\n[optim]\nlr = -1\nbetas = 0.9\n"
    found = faults(tmp_path, text, "eval.evry=3")
    assert [(f.line, f.key) for f in found] == [
        (None, "data"),
        (1, "train.steps"),
        (2, "train.step"),
        (4, "model.source"),
        (6, "optim.lr"),
        (7, "optim.betas"),
        (None, "eval.evry"),
    ]


def test_long_values_are_cut(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, f"{HEAD}[optim]\nlr = '{'a' * 500}'\n")
    assert len(fault.message) < 100


def test_a_parent_and_its_child_are_blamed_each_for_their_own(tmp_path: Path) -> None:
    parent = tmp_path / "base.toml"
    parent.write_text(HEAD + "keep = 0\n[credit.schedule]\nstart = 0.5\n")
    child = tmp_path / "a.toml"
    child.write_text('extends = "base.toml"\n[eval]\nevery = 0\n[credit.schedule]\nend = 0.4\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(child)
    assert [(Path(f.source).name, f.line, f.key) for f in caught.value.faults] == [
        ("a.toml", 3, "eval.every"),
        ("a.toml", 5, "credit.schedule.end"),
        ("base.toml", 7, "train.keep"),
    ]
