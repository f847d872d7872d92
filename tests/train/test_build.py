"""What a recipe says reaches the part that it is for, and a step made of those parts obeys it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tpcli.credit.advantage import advantages
from tpcli.credit.schedule import adapt, smooth, value, window
from tpcli.errors import UsageError
from tpcli.names import AllocationName
from tpcli.recipe.load import load_recipe
from tpcli.recipe.schema import Recipe
from tpcli.rollout.engine import Finished, Progress
from tpcli.train.build import Data, build, grader_of, settings
from tpcli.train.journal import Journal
from tpcli.train.loop import Loop, Parts
from tpcli.train.method import Knobs, Learned, Method
from tpcli.train.schedules import knobs_at
from tpcli.types import Answered, Prompt, Rollout, TokenBatch, Verdict

SMALL = """
[model]
source = "scratch"
[model.scratch]
hidden_size = 16
intermediate_size = 32
layers = 1
heads = 2
context = 96
[data]
source = "running_sum"
size = 60
template = "{question};"
config = { min_terms = 2, max_terms = 3 }
[rollout]
prompts = 2
group_size = 4
max_new_tokens = 8
[train]
steps = 40
[eval]
questions = 0
[track]
mlflow = false
kl = false
"""
MOVING = "{ initial = 0.9, final = 0.3, start = 0.25, end = 0.75 }"
ADAPTIVE = (
    '{ curve = "adaptive", signal = "accuracy", target = 0.5, gain = 0.2, max_change = 0.04, '
    "smoothing = 0.6, start = 0.25, end = 0.75, initial = 0.9, final = 0.3 }"
)


def recipe(folder: Path, *overrides: str) -> Recipe:
    path = folder / "small.toml"
    path.write_text(SMALL)
    return load_recipe(path, overrides=overrides).recipe


def built(folder: Path, *overrides: str) -> tuple[Recipe, Parts, Data, Journal]:
    made, journal = recipe(folder, *overrides), Journal(folder, steps=40, writes=False)
    return made, *build(made, Accelerator(cpu=True), journal, grader_of(made)), journal


KNOB = {
    "rollout.temperature": "temperature",
    "rollout.top_p": "top_p",
    "reward.overlong.penalty": "penalty",
    "credit.entropy_advantage.alpha": "alpha",
    "credit.entropy_advantage.kappa": "kappa",
    "loss.clip_low": "clip_low",
    "loss.clip_high": "clip_high",
    "loss.tau_positive": "tau_positive",
    "loss.tau_negative": "tau_negative",
    "loss.correction.low": "correction_low",
    "loss.correction.high": "correction_high",
    "loss.kl_coef": "kl_coef",
    "loss.entropy_coef": "entropy_coef",
    "optim.lr": "lr",
}
"""Where each scalar arrives, the magnitudes aside."""


def of(knobs: Knobs) -> dict[str, float]:
    """The numbers of a step by name, magnitudes and what is moving aside."""
    others = ("magnitudes", "moving")
    return {k: getattr(knobs, k) for k in Knobs.__dataclass_fields__ if k not in others}


def test_the_table_above_is_whole(tmp_path: Path) -> None:
    small = recipe(tmp_path)
    assert KNOB.keys() == small.scalars().keys() - {"credit.schedule"}
    assert set(KNOB.values()) == of(knobs_at(small, 1, {})).keys()


@pytest.mark.parametrize("key", KNOB)
def test_a_scheduled_scalar_moves_its_knob_and_no_other(tmp_path: Path, key: str) -> None:
    plain, moving = recipe(tmp_path), recipe(tmp_path, f"{key}={MOVING}")
    for step in (1, 10, 15, 29, 30, 40):
        expected = value(step, 40, initial=0.9, final=0.3, start=0.25, end=0.75)
        knobs = knobs_at(moving, step, {})
        assert of(knobs) == of(knobs_at(plain, step, {})) | {KNOB[key]: expected}
        assert list(knobs.moving.values()) == [expected]
    assert value(15, 40, initial=0.9, final=0.3, start=0.25, end=0.75) == pytest.approx(0.75)


@pytest.mark.parametrize("key", KNOB)
def test_an_adaptive_scalar_stands_where_its_share_does(tmp_path: Path, key: str) -> None:
    made = recipe(tmp_path, f"{key}={ADAPTIVE}")
    knobs = knobs_at(made, 20, {key: 0.25, "credit.schedule": 1.0})
    assert of(knobs)[KNOB[key]] == pytest.approx(0.3 + 0.25 * 0.6)


def test_each_allocation_has_its_own_magnitude(tmp_path: Path) -> None:
    """Or follows the schedule; a magnitude of what is not allocated is nobody's."""
    made = recipe(
        tmp_path,
        'credit.allocation=["expert_prefix", "trajectory_percentile", "forking_tokens"]',
        f"credit.expert_prefix.magnitude={MOVING}",
        "credit.forking_tokens.magnitude=0.8",
        "credit.low_probability.magnitude=0.1",
        'credit.schedule={ curve = "cosine", initial = 0.6, end = 0.5 }',
    )
    for step in (1, 15, 40):
        expected: dict[AllocationName, float] = {
            "expert_prefix": value(step, 40, initial=0.9, final=0.3, start=0.25, end=0.75),
            "trajectory_percentile": value(step, 40, curve="cosine", initial=0.6, end=0.5),
            "forking_tokens": 0.8,
        }
        assert knobs_at(made, step, {}).magnitudes == expected


@pytest.mark.parametrize("key", ["credit.schedule", "loss.entropy_coef"])
def test_an_adaptive_rule_is_handed_through(tmp_path: Path, key: str) -> None:
    """Signal, target, gain, bound, smoothing and window (in steps), by the path they trace."""
    _, parts, _, _ = built(tmp_path, f"{key}={ADAPTIVE}")
    first, last = window(40, start=0.25, end=0.75)
    assert (first, last) == (10, 30)
    share, average = 1.0, None
    for step in range(1, 41):
        measured = (0.45, 0.54, 0.6, 0.7)[step % 4]
        parts.tempo.after(step, {"accuracy": measured, "entropy": 99.0})
        average = smooth(average, measured, decay=0.6)
        if first <= step < last:
            share = adapt(share, average, target=0.5, gain=0.2, max_change=0.04)
        assert parts.tempo.shares == {key: share}
    assert 0.1 < share < 0.9


def test_a_scalar_that_is_not_adaptive_has_no_share(tmp_path: Path) -> None:
    _, parts, _, _ = built(tmp_path, f"loss.clip_high={MOVING}")
    assert parts.tempo.shares == {}


def test_settings_are_the_recipes(tmp_path: Path) -> None:
    """None of them at its default."""
    made = settings(
        recipe(
            tmp_path,
            "reward.overlong.mask=true",
            'credit.advantage="pass_at_k"',
            "credit.k=3",
            "credit.ddof=0",
            "credit.eps=0.25",
            "train.seed=5",
            "train.horizon=50",
            "train.save_every=7",
            "train.keep=4",
            "track.responses=3",
            "track.kl=true",
        )
    )
    expected = {
        "steps": 40,
        "horizon": 50,
        "seed": 5,
        "advantage": "pass_at_k",
        "eps": 0.25,
        "ddof": 0,
        "k": 3,
        "mask_overlong": True,
        "buffer": 0,
        "save_every": 7,
        "keep": 4,
        "responses_kept": 3,
        "with_kl": True,
    }
    assert {name: getattr(made, name) for name in expected} == expected
    assert settings(recipe(tmp_path, "reward.overlong.buffer=3")).buffer == 3
    plain = settings(recipe(tmp_path))
    assert (plain.mask_overlong, plain.with_kl, plain.ddof, plain.k) == (False, False, 1, 1)
    # A KL in the loss needs the reference as much as a KL that is only measured.
    assert settings(recipe(tmp_path, "loss.kl_coef=0.1")).with_kl


def test_the_method_is_the_recipes(tmp_path: Path) -> None:
    _, parts, _, _ = built(
        tmp_path,
        'credit.allocation=["trajectory_percentile", "shuffled"]',
        "credit.trajectory_percentile.focus=[0.2, 0.6]",
        "loss.dual_clip=2.5",
        'loss.correction={ kind = "mask", level = "geometric" }',
        'loss.reduction="seq-mean-token-sum-norm"',
        'loss.denominator="all"',
        'loss.kl_estimator="k1"',
        "train.updates=2",
        "train.micro_batch_tokens=77",
        "optim.max_grad_norm=0.3",
    )
    assert parts.learner.method == Method(
        allocations=("trajectory_percentile", "shuffled"),
        focus=(0.2, 0.6),
        objective="ppo_clip",
        dual_clip=2.5,
        correction="mask",
        correction_level="geometric",
        reduction="seq-mean-token-sum-norm",
        denominator="all",
        constant=8.0,
        kl_estimator="k1",
        updates=2,
        max_grad_norm=0.3,
        micro_batch_tokens=77,
    )
    assert parts.learner.reference is None


@pytest.mark.parametrize(
    ("word", "focus"), [("late", (1.0, 1.0)), ("early", (0.0, 0.0)), ("middle", (0.5, 0.5))]
)
def test_a_focus_by_name_is_a_stretch(
    tmp_path: Path, word: str, focus: tuple[float, float]
) -> None:
    changes = [f'credit.trajectory_percentile.focus="{word}"', "loss.kl_coef=0.1"]
    _, parts, _, _ = built(tmp_path, *changes, 'loss.objective="gspo"', "loss.dual_clip=false")
    method = parts.learner.method
    assert (method.focus, method.objective, method.dual_clip) == (focus, "gspo", None)
    assert parts.learner.reference is not None


def test_an_expert_prefix_never_ends_the_response(tmp_path: Path) -> None:
    """The solution's tokens, all of them, without the end of sequence that a warm-up teaches."""
    _, parts, data, _ = built(tmp_path, 'credit.allocation="expert_prefix"')
    prompts, end = data.train.prompts, parts.tokenizer.eos_token_id
    assert parts.asking.solutions.keys() == {p.question.id for p in prompts}
    for prompt in prompts:
        given = parts.asking.solutions[prompt.question.id]
        assert end not in given
        assert parts.tokenizer.decode(list(given)) == prompt.question.solution
    assert built(tmp_path)[1].asking.solutions == {}


@dataclass
class Scripted:
    """Answers every prompt with one, two, ... tokens, the longest group member without an end."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        seed: int,
        temperature: float,
        max_new_tokens: int,
        top_p: float = 1.0,
        top_k: int = 0,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Rollout]]:
        self.calls.append(
            {
                "questions": len(prompts),
                "group_size": group_size,
                "temperature": temperature,
                "top_p": top_p,
                "max_new_tokens": max_new_tokens,
                "prefix": [prompt.prefix for prompt in prompts],
            }
        )
        lengths = [max_new_tokens * (g + 1) // group_size for g in range(group_size)]
        return [
            [Rollout(torch.full((n,), 5), torch.zeros(n), n < max_new_tokens) for n in lengths]
            for _ in prompts
        ]


def steps_of(
    folder: Path, *overrides: str
) -> tuple[Recipe, list[dict[str, Any]], list[tuple[TokenBatch, Knobs]]]:
    """What the engine was asked and what the learner was given, in a whole run."""
    made, parts, _, journal = built(folder, *overrides)
    engine, given = Scripted(), list[tuple[TokenBatch, Knobs]]()
    update = parts.learner.update

    def spy(batch: TokenBatch, knobs: Knobs, *, measure_all: bool = True) -> Learned:
        given.append((batch, knobs))
        return update(batch, knobs, measure_all=measure_all)

    parts.learner.update = spy  # type: ignore[method-assign]
    Loop(folder, replace(parts, engine=engine), settings(made), journal).run(0)
    return made, engine.calls, given


def test_the_engine_is_asked_as_the_recipe_says(tmp_path: Path) -> None:
    """Temperature, nucleus and prefix of the step, in training; the first two in evaluation."""
    _, calls, given = steps_of(
        tmp_path,
        "train.steps=3",
        "rollout.temperature={ initial = 1.4, final = 0.8, end = 1.0 }",
        "rollout.top_p={ initial = 0.9, final = 0.6, end = 1.0 }",
        'credit.allocation="expert_prefix"',
        "credit.schedule={ initial = 0.9, end = 1.0 }",
        "rollout.dynamic_sampling={ rounds = 1 }",
        "eval={ questions = 3, samples = 2, every = 3, max_new_tokens = 12 }",
    )
    shape = ("questions", "group_size", "max_new_tokens")
    nucleus = [0.8, 0.7, 0.6]
    asked = [call for call in calls if call["max_new_tokens"] == 8]
    assert [tuple(call[name] for name in shape) for call in asked] == [(2, 4, 8)] * 6
    # No group has signal, so each step asks twice.
    for i, call in enumerate(asked):
        assert call["temperature"] == pytest.approx([1.2, 1.0, 0.8][i // 2])
        assert call["top_p"] == pytest.approx(nucleus[i // 2])
        assert all((n > 0) == (i < 4) for n in call["prefix"])
    evaluated = [call for call in calls if call["max_new_tokens"] == 12]
    assert [tuple(call[name] for name in shape) for call in evaluated] == [
        (3, 2, 12),
        (3, 1, 12),
    ] * 2
    assert [call["temperature"] for call in evaluated] == pytest.approx([1.2, 0, 0.8, 0])
    assert [call["top_p"] for call in evaluated[::2]] == pytest.approx([0.8, 0.6])
    assert all(set(call["prefix"]) == {0} for call in evaluated)
    assert [knobs.top_p for _, knobs in given] == pytest.approx(nucleus)


def test_the_learner_is_given_what_the_recipe_says(tmp_path: Path) -> None:
    """Responses of 2, 4, 6 and 8 tokens, all wrong: only their length tells them apart."""
    _, _, given = steps_of(
        tmp_path,
        "train.steps=2",
        "reward.overlong={ mask = true, buffer = 5 }",
        "reward.overlong.penalty={ initial = 0.5, final = 0.1, end = 1.0 }",
        "credit.ddof=0",
        "credit.eps=0.25",
    )
    for (batch, _), penalty in zip(given, (0.3, 0.1), strict=True):
        one = [0.0, -penalty / 5, -3 * penalty / 5, -penalty]
        # Of a buffer of 5 in 8 the first costs nothing: 2 tokens 0, 4 one fifth, 6 three.
        torch.testing.assert_close(batch.reward_B, torch.tensor(one * 2))
        expected_B = advantages("group_std", batch.reward_B, group_size=4, eps=0.25, ddof=0)
        torch.testing.assert_close(batch.advantage_B, expected_B)
        assert batch.learns_B is not None
        assert batch.learns_B.tolist() == [True, True, True, False] * 2
        assert len(set(batch.seeds)) == 8
    _, _, plain = steps_of(tmp_path, "train.steps=2")
    assert plain[0][0].learns_B is None
    assert plain[0][0].reward_B.tolist() == [0.0] * 8


def test_refills_look_for_the_signal_of_the_recipes_advantage(tmp_path: Path) -> None:
    _, parts, _, _ = built(
        tmp_path,
        "rollout.dynamic_sampling={ rounds = 2 }",
        'credit.advantage="pass_at_k"',
        "credit.k=3",
        "train.seed=9",
        'reward.kind="exact"',
    )
    ask = parts.asking
    assert (ask.rounds, ask.advantage, ask.k) == (2, "pass_at_k", 3)
    assert (ask.prompts_per_step, ask.group_size, ask.max_new_tokens) == (2, 4, 8)
    assert ask.seed == 9
    assert built(tmp_path)[1].asking.rounds == 0


def test_the_verifier_is_the_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kind, and how many processes it may start, for how long and how large."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(
        "tpcli.train.build.Grader", lambda kind, **options: given.update(options, kind=kind)
    )
    made = recipe(
        tmp_path,
        'reward={ kind = "math", workers = 3, deadline = 0.5, memory_gib = 1.5 }',
    )
    grader_of(made, [tmp_path])
    assert given == {
        "kind": "math",
        "workers": 3,
        "deadline": 0.5,
        "memory_gib": 1.5,
        "folders": [tmp_path],
    }


def test_answers_that_the_verifier_could_not_accept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='answers are not of kind "choice"'):
        built(tmp_path, 'reward.kind="choice"')
    with pytest.raises(UsageError, match='there is no module "no_such"'):
        built(tmp_path, 'reward.kind="no_such:verifier"')


@dataclass
class Listening:
    """Takes down what it is given to verify, and finds all of it wrong."""

    given: list[Answered] = field(default_factory=list)

    def grade(self, answers: Sequence[Answered]) -> list[Verdict]:
        self.given += answers
        return [Verdict(0.0, "wrong") for _ in answers]


@pytest.mark.parametrize("opened", [False, True])
def test_the_verifier_is_told_that_the_prompt_opened_a_thought(
    tmp_path: Path, opened: bool
) -> None:
    """In training and evaluation alike, and with a prefix given after the mark."""
    made, parts, _, journal = built(
        tmp_path,
        'model.scratch.pieces=["<think>", "</think>", "\\\\boxed{", "}"]',
        f'data.template="{{question}};{"<think>" if opened else ""}"',
        'credit.allocation="expert_prefix"',
        "credit.schedule=0.5",
        "train.steps=1",
        "eval={ questions = 2, samples = 1 }",
    )
    listening = Listening()
    stand_in = replace(parts, engine=Scripted(), grader=listening)  # type: ignore[arg-type]
    Loop(tmp_path, stand_in, settings(made), journal).run(0)
    assert len(listening.given) == 2 * 2 + 2 * 4 + 2 * 2
    assert {one.opened for one in listening.given} == {opened}
    assert {one.finished for one in listening.given} == {False, True}
    for one in listening.given:
        assert "<think>" not in one.text
        assert one.gold.lstrip("-").isdigit()
    longest = max(len(one.text) for one in listening.given)
    assert longest > 8  # the responses have 8 tokens at most: the prefix is part of the text
