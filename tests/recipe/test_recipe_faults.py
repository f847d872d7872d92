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
> 8: optim.lr: 0 is not a number above 0 or a table

[optim]
lr = "1e-5"
> 8: optim.lr: "1e-5" is not a number above 0 or a table (write it without quotes)

[optim]
lr = inf
> 8: optim.lr: inf is not a finite number

[optim]
lr = true
> 8: optim.lr: true is not a number above 0 or a table (write the table [optim.lr])

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
eps = { a = 1 }
> 8: optim.eps: a table is not a number above 0

[rollout]
top_p = 0
> 8: rollout.top_p: the value (0) must be above 0 and at most 1

[rollout]
dynamic_sampling = true
> 8: rollout.dynamic_sampling: true is not a table or false (write the table
> [rollout.dynamic_sampling])

[rollout.dynamic_sampling]
rounds = 0
> 8: rollout.dynamic_sampling.rounds: 0 is not a whole number above 0

[credit]
k = 0
> 8: credit.k: 0 is not a whole number above 0 or false

[credit]
ddof = 2
> 8: credit.ddof: 2 is not one of 0, 1

[credit.schedule]
stairs = 2.5
> 8: credit.schedule.stairs: 2.5 is not a whole number above 0

[credit.schedule]
rate = 0
> 8: credit.schedule.rate: 0 is not a number above 0

[credit.schedule]
max_change = 1.5
> 8: credit.schedule.max_change: 1.5 is not a number above 0 and of at most 1

[credit.schedule]
smoothing = 1
> 8: credit.schedule.smoothing: 1 is not a number of at least 0 and below 1

[credit.schedule]
reverse = 1
> 8: credit.schedule.reverse: 1 is not true or false

[credit.schedule]
points = [[0, 1], [0.5]]
> 8: credit.schedule.points[1]: [0.5] is not an array of 2: a number from 0 to 1 and a number

[credit.schedule]
points = [[0, 1], [1, "0"]]
> 8: credit.schedule.points[1][1]: "0" is not a number (write it without quotes)

[credit]
allocation = 3
> 8: credit.allocation: 3 is not one of "uniform", "trajectory_percentile", "forking_tokens",
> "entropy_advantage", "low_probability", "random_tokens", "shuffled", "expert_prefix" or an array
> of them

[credit.trajectory_percentile]
focus = [0.5, 1.2]
> 8: credit.trajectory_percentile.focus[1]: 1.2 is not a number from 0 to 1

[credit.trajectory_percentile]
focus = [0.5]
> 8: credit.trajectory_percentile.focus: [0.5] is not one of "late", "early", "middle" or an array
> of 2, each a number from 0 to 1

[reward.overlong]
mask = "yes"
> 8: reward.overlong.mask: "yes" is not true or false

[loss]
tau_positive = 0
> 8: loss.tau_positive: 0 is not a number above 0 or a table

== words

[credit]
allocation = "uniformm"
> 8: credit.allocation: "uniformm" is not one of "uniform", "trajectory_percentile",
> "forking_tokens", "entropy_advantage", "low_probability", "random_tokens", "shuffled",
> "expert_prefix" or an array of them (did you mean "uniform"?)

[credit]
allocation = ["forking_tokens", "shuffle"]
> 8: credit.allocation[1]: "shuffle" is not one of "uniform", "trajectory_percentile",
> "forking_tokens", "entropy_advantage", "low_probability", "random_tokens", "shuffled",
> "expert_prefix" (did you mean "shuffled"?)

[credit.trajectory_percentile]
focus = "Late"
> 8: credit.trajectory_percentile.focus: "Late" is not one of "late", "early", "middle" or an
> array of 2, each a number from 0 to 1 (did you mean "late"?)

[credit]
advantage = "rloo"
> 8: credit.advantage: "rloo" is not one of "group_std", "group_mean", "leave_one_out",
> "batch_std", "pass_at_k", "gpg"

[loss.correction]
kind = "truncated"
> 8: loss.correction.kind: "truncated" is not one of "none", "truncate", "mask" (did you mean
> "truncate"?)

[optim]
schedule = "Cosine"
> 8: optim.schedule: "Cosine" is not one of "constant", "linear", "cosine" (did you mean
> "cosine"?)

[reward]
kind = "maht"
> 8: reward.kind: "maht" is not one of "int", "number", "math", "choice", "exact", "reference",
> "MODULE:FUNCTION" or "plugin:NAME" (did you mean "math"?)

[reward]
kind = "Exact"
> 8: reward.kind: "Exact" is not one of "int", "number", "math", "choice", "exact", "reference",
> "MODULE:FUNCTION" or "plugin:NAME" (did you mean "exact"?)

[reward]
kind = "rules.py:f"
workers = 0
> 9: reward.workers: 0 is not a whole number above 0

[reward]
kind = "my rules:f"
> 8: reward.kind: "my rules:f" is not one of "int", "number", "math", "choice", "exact",
> "reference", "MODULE:FUNCTION" or "plugin:NAME"

[reward]
kind = 3
> 8: reward.kind: 3 is not one of "int", "number", "math", "choice", "exact", "reference",
> "MODULE:FUNCTION" or "plugin:NAME"

[reward]
kind = ["int"]
> 8: reward.kind: ["int"] is not one of "int", "number", "math", "choice", "exact", "reference",
> "MODULE:FUNCTION" or "plugin:NAME"

[reward]
deadline = 0
> 8: reward.deadline: 0 is not a number above 0

[rollout]
engine = "sglang"
> 8: rollout.engine: "sglang" is not one of "transformers", "vllm", "vllm-server"

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
> "gamma", "exponential", "stairs", "piecewise", "adaptive" (did you mean "linear"?)

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

[credit]
magnitude = 0.5
> 8: credit.magnitude: unknown key (magnitude belongs to [credit.trajectory_percentile] or
> [credit.forking_tokens] or [credit.entropy_advantage])

[credit]
focus = 'early'
> 8: credit.focus: unknown key (focus belongs to [credit.trajectory_percentile])

[reward]
foo = 1
> 8: reward.foo: unknown key ([reward] takes kind, workers, deadline,
> memory_gib, overlong)

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
> 8: loss.kl_coef.initial: -1 must be 0 or above

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

[launch]
processes = 4
[rollout]
engine = "vllm"
vllm.tensor_parallel = 3
> 8: launch.processes: 4 must be a multiple of rollout.vllm.tensor_parallel (3)

[rollout]
engine = "vllm-server"
[rollout.vllm]
url = "http://host:8000"
tensor_parallel = 2
> 11: rollout.vllm.tensor_parallel: is for engine = "vllm" (a server takes its own, as vllm
> serve --tensor-parallel-size)

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

[rollout.temperature]
curve = "constant"
> 7: rollout.temperature: a schedule needs initial here (the defaults are those of a magnitude)

== schedules

[credit.schedule]
curve = "piecewise"
> 8: credit.schedule.points: this curve needs them (write [progress, value] pairs, as in
> [[0.0, 0.99], [0.5, 0.2], [1.0, 0.0]])

[credit.schedule]
curve = "piecewise"
points = [[0, 1], [0.5, 0.3], [0.5, 0.2], [1, 0]]
> 9: credit.schedule.points: progress must rise from 0 to 1 (write [progress, value] pairs, as in
> [[0.0, 0.99], [0.5, 0.2], [1.0, 0.0]])

[credit.schedule]
curve = "piecewise"
points = [[0, 1], [0.9, 0]]
> 9: credit.schedule.points: progress must rise from 0 to 1 (write [progress, value] pairs, as in
> [[0.0, 0.99], [0.5, 0.2], [1.0, 0.0]])

[credit.schedule]
curve = "piecewise"
points = [[0, 1], [1, -0.1]]
> 9: credit.schedule.points: -0.1 must lie in [0, 1]

[credit.schedule]
curve = "adaptive"
> 8: credit.schedule.curve: curve = "adaptive" needs target, the entropy that training should hold

[credit.schedule]
curve = "adaptive"
target = 1
signal = "accuracy"
> 9: credit.schedule.target: 1 must be below 1, as accuracy is a share

[credit.schedule]
curve = "adaptive"
target = 0.3
reverse = true
> 10: credit.schedule.reverse: turns a course, and adaptive has none (exchange initial and final)

[credit.schedule]
curve = "gamma"
final = 0.1
> 8: credit.schedule.curve: curve = "gamma" is (initial * (1 - p)) ** gamma: it needs initial in
> [0, 1] and final = 0

[credit]
schedule = 1.5
> 8: credit.schedule: the value (1.5) must lie in [0, 1]

[credit.forking_tokens.magnitude]
curve = "exponential"
initial = 2
> 9: credit.forking_tokens.magnitude.initial: 2 must lie in [0, 1]

[credit.low_probability.magnitude]
start = 0.8
> 8: credit.low_probability.magnitude.end: 0.8 must be greater than start (0.8) (to keep the value
> fixed, write curve = "constant")

== allocations

[credit]
allocation = []
> 8: credit.allocation: is empty (plain GRPO is "uniform")

[credit]
allocation = ["forking_tokens", "trajectory_percentile", "forking_tokens"]
> 8: credit.allocation: forking_tokens is here for the second time

[credit]
allocation = ["trajectory_percentile", "uniform"]
> 8: credit.allocation: "uniform" credits every token alike, so it combines with nothing

[credit]
allocation = "shuffled"
> 8: credit.allocation: "shuffled" deals the credit of those before it to other tokens (write it
> last, as in ["forking_tokens", "shuffled"])

[credit]
allocation = ["shuffled", "forking_tokens"]
> 8: credit.allocation: "shuffled" deals the credit of those before it to other tokens (write it
> last, as in ["forking_tokens", "shuffled"])

[credit]
allocation = ["expert_prefix", "shuffled"]
> 8: credit.allocation: "shuffled" deals the credit of those before it to other tokens (write it
> last, as in ["forking_tokens", "shuffled"])

[credit]
allocation = ["random_tokens", "shuffled"]
> 8: credit.allocation: "random_tokens" is random already (leave out "shuffled")

[credit.trajectory_percentile]
focus = [0.5, 0.25]
> 8: credit.trajectory_percentile.focus: [0.5, 0.25] must not end before it begins

== the method

[credit]
advantage = "pass_at_k"
> 8: credit.advantage: advantage = "pass_at_k" needs k, the responses drawn together

[credit]
k = 2
> 8: credit.k: belongs to advantage = "pass_at_k" (leave it out or write k = false)

[credit]
advantage = "pass_at_k"
k = 9
> 9: credit.k: 9 must be below rollout.group_size (8), or no response differs

[credit]
advantage = "pass_at_k"
k = 2
[reward.overlong]
buffer = 4
> 11: reward.overlong.buffer: makes rewards between right and wrong, which credit.advantage =
> "pass_at_k" cannot count (write buffer = 0)

[reward.overlong]
buffer = 1024
> 8: reward.overlong.buffer: 1024 must be below rollout.max_new_tokens (1024)

[loss.correction]
low = 2
> 8: loss.correction.low: 2 must be below high (2)

[loss]
objective = "cispo"
> 8: loss.dual_clip: belongs to objective = "ppo_clip" (write dual_clip = false)
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


def test_a_prefix_of_a_solution_needs_solutions(tmp_path: Path) -> None:
    text = HEAD.replace("running_sum", "rg:chain_sum") + '[credit]\nallocation = "expert_prefix"\n'
    (fault,) = faults(tmp_path, text)
    assert (fault.line, fault.key) == (8, "credit.allocation")
    assert fault.message == '"expert_prefix" needs worked solutions'
    assert fault.hint == (
        'take data.source = "running_sum", or a file or hub set with data.solution_field'
    )


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
