"""Which groups a step ends up with, and how the prompts that replace others are chosen."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.together import together

from tpcli.reward.verify import Grader
from tpcli.rollout.engine import Finished, Progress
from tpcli.train.collect import Asking, Collector
from tpcli.train.journal import Journal
from tpcli.train.team import Team
from tpcli.types import Answered, Prompt, Question, Rollout

LETTERS = "abcdefghijkl"
PROMPTS = [Prompt(Question(name, name, "1"), (i,)) for i, name in enumerate(LETTERS)]
RIGHT, WRONG = 7, 8
ALONE = Team.of(0, 1)


class Scripted:
    """Answers the prompts in ``mixed`` wrong and right by turns, all others wrong."""

    def __init__(self, mixed: str) -> None:
        self.mixed = mixed
        self.calls: list[tuple[int, list[Prompt]]] = []

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
        self.calls.append((seed, list(prompts)))
        return [
            [
                Rollout(
                    torch.tensor([RIGHT if g % 2 and p.question.id in self.mixed else WRONG]),
                    torch.zeros(1),
                    True,
                )
                for g in range(group_size)
            ]
            for p in prompts
        ]


def decode(prompt: Prompt, rollout: Rollout) -> str:
    """What was given, then the answer."""
    given = "".join(map(str, prompt.tokens[len(prompt.tokens) - prompt.prefix :]))
    return f"{given}\\boxed{{{1 if rollout.tokens_L[0] == RIGHT else 0}}}"


def read(prompt: Prompt, group: Sequence[Rollout]) -> list[Answered]:
    return [Answered(decode(prompt, one), prompt.question.answer, one.finished) for one in group]


def collector(folder: Path, engine: Scripted, *, team: Team = ALONE, **changes: Any) -> Collector:
    settings: dict[str, Any] = {
        "prompts": PROMPTS,
        "prompts_per_step": 4,
        "group_size": 2,
        "max_new_tokens": 5,
        "seed": 0,
        "rounds": 0,
        "advantage": "group_std",
        "k": 1,
        "solutions": {},
    }
    return Collector(
        Asking(**(settings | changes)),
        engine,
        read,
        Grader("int"),
        Journal(folder, steps=9, writes=False),
        team,
    )


def ids(prompts: Sequence[Prompt]) -> list[str]:
    return [p.question.id for p in prompts]


def test_without_refills_the_step_is_what_was_drawn(tmp_path: Path) -> None:
    engine = Scripted(LETTERS[::2])
    got = collector(tmp_path, engine).collect(1, temperature=1.0)
    assert len(engine.calls) == 1
    assert got.prompts == engine.calls[0][1]
    assert (got.drawn, got.refilled) == (8, 0)
    assert got.correct == sum(v.status == "correct" for group in got.verdicts for v in group) > 0


def test_groups_without_signal_are_replaced_and_counted(tmp_path: Path) -> None:
    first = ids(collector(tmp_path, Scripted("")).collect(1, temperature=1.0).prompts)
    others = [name for name in LETTERS if name not in first]
    engine = Scripted(first[1] + "".join(others))
    got = collector(tmp_path, engine, rounds=3).collect(1, temperature=1.0)
    assert [len(prompts) for _, prompts in engine.calls] == [4, 3]
    assert ids(got.prompts)[1] == first[1]  # what had signal stays in its place
    assert set(ids(got.prompts)) - {first[1]} <= set(others)
    assert got.refilled == 3
    assert got.drawn == 2 * (4 + 3)
    assert got.correct == 1 + 3
    for prompt, group, verdicts in zip(got.prompts, got.groups, got.verdicts, strict=True):
        assert prompt.question.id in engine.mixed
        assert {v.reward for v in verdicts} == {0.0, 1.0}
        assert len(group) == 2
    seeds = [seed for seed, _ in engine.calls]
    assert len(set(seeds)) == 2


def test_refills_are_bounded_and_never_ask_twice(tmp_path: Path) -> None:
    """Nothing has signal: two rounds, then the step goes on with what it has."""
    engine = Scripted("")
    got = collector(tmp_path, engine, rounds=2).collect(1, temperature=1.0)
    assert [len(prompts) for _, prompts in engine.calls] == [4, 4, 4]
    asked = [name for _, prompts in engine.calls for name in ids(prompts)]
    assert sorted(asked) == sorted(LETTERS)
    assert ids(got.prompts) == ids(engine.calls[0][1])
    assert (got.refilled, got.drawn) == (0, 24)
    more = Scripted("")
    collector(tmp_path, more, rounds=9).collect(1, temperature=1.0)
    assert len(more.calls) == 3  # all twelve are used up


def test_a_step_is_a_function_of_the_seed(tmp_path: Path) -> None:
    def calls(**changes: Any) -> list[tuple[int, list[Prompt]]]:
        engine = Scripted("")
        collector(tmp_path, engine, rounds=2, **changes).collect(5, temperature=1.0)
        return engine.calls

    assert calls() == calls()
    assert calls(seed=1) != calls()


def test_processes_refill_from_different_prompts(tmp_path: Path) -> None:
    """Also over several rounds; and the same question by two processes has other responses."""
    asked, seeds = [], []
    for rank in (0, 1):
        engine = Scripted("")
        collector(tmp_path, engine, team=Team.of(rank, 2), rounds=2).collect(1, temperature=1.0)
        asked.append([ids(prompts) for _, prompts in engine.calls])
        seeds += [seed for seed, _ in engine.calls]
    assert [[len(names) for names in one] for one in asked] == [[2, 2, 2], [2, 2, 2]]
    flat = [name for one in asked for names in one for name in names]
    assert sorted(flat) == sorted(LETTERS)
    assert len(set(seeds)) == 6


def test_signal_is_that_of_the_advantage(tmp_path: Path) -> None:
    """Half right has none under pass@k where any k responses hold a right one."""
    settings: dict[str, Any] = {"advantage": "pass_at_k", "group_size": 4, "rounds": 1}
    for k, calls in ((1, 1), (2, 1), (3, 2)):
        engine = Scripted(LETTERS)
        collector(tmp_path, engine, **(settings | {"k": k})).collect(1, temperature=1.0)
        assert len(engine.calls) == calls, k


def test_an_expert_prefix_is_context_and_part_of_what_is_graded(tmp_path: Path) -> None:
    solutions = {p.question.id: (50, 51, 52, 53) for p in PROMPTS}
    engine = Scripted(LETTERS)
    made = collector(tmp_path, engine, solutions=solutions)
    got = made.collect(1, temperature=1.0, prefix=0.6)
    for prompt in got.prompts:
        assert prompt.tokens[-2:] == (50, 51)  # round(4 * 0.6)
        assert (len(prompt.tokens), prompt.prefix) == (3, 2)
    assert decode(got.prompts[0], got.groups[0][1]) == "5051\\boxed{1}"
    plain = made.collect(1, temperature=1.0, prefix=0.0)
    assert all(prompt.prefix == 0 for prompt in plain.prompts)


class Eager(Scripted):
    """Tells of each group as it ends, the last prompt first, and waits for a verdict on it."""

    def __init__(self, mixed: str, graded: list[str]) -> None:
        super().__init__(mixed)
        self.graded = graded

    def sample(self, prompts: Sequence[Prompt], *args: Any, **kwargs: Any) -> list[list[Rollout]]:
        finished = kwargs.pop("finished")
        groups = super().sample(prompts, *args, **kwargs)
        for place in [*range(len(prompts))][::-1][:3]:
            finished(place, groups[place])
            deadline = time.monotonic() + 60
            while prompts[place].question.id not in self.graded:
                assert time.monotonic() < deadline, "nothing is verified during generation"
                time.sleep(0.001)
        return groups


def test_groups_are_verified_while_others_are_generated(tmp_path: Path) -> None:
    """And each once, in its place, those that the engine did not tell of as well."""
    graded: list[str] = []

    def noting(prompt: Prompt, group: Sequence[Rollout]) -> list[Answered]:
        graded.append(prompt.question.id)
        return read(prompt, group)

    made = collector(tmp_path, Eager("abcdef", graded))
    made._read = noting
    out = made.collect(1, temperature=1.0)
    expected = collector(tmp_path, Scripted("abcdef")).collect(1, temperature=1.0)
    assert sorted(graded) == sorted(prompt.question.id for prompt in out.prompts)
    assert [[v.status for v in g] for g in out.verdicts] == [
        [v.status for v in g] for g in expected.verdicts
    ]
    assert out.correct == expected.correct > 0


@pytest.mark.slow
def test_a_team_draws_together_and_shares(tmp_path: Path) -> None:
    """Both of a team ask the same at every call; together they keep what one process would."""
    together("two_in_a_team.py", tmp_path, processes=4)
    found = [torch.load(tmp_path / f"found-{rank}.pt", weights_only=False) for rank in range(4)]
    for number, (first, second) in enumerate((found[:2], found[2:])):
        engine = Scripted(LETTERS[::3])
        alone = collector(tmp_path, engine, team=Team.of(number, 2), rounds=2)
        got = alone.collect(1, temperature=1.0)
        assert len(engine.calls) > 1
        expected = [(seed, ids(prompts)) for seed, prompts in engine.calls]
        assert first["calls"] == second["calls"] == expected
        assert first["kept"] + second["kept"] == ids(got.prompts)
        rewards = [[verdict.reward for verdict in group] for group in got.verdicts]
        assert first["rewards"] + second["rewards"] == rewards
        assert first["counts"] == (got.drawn, got.correct, got.refilled)
        assert second["counts"] == (0, 0, 0)
        assert first["agreed"] == second["agreed"] == 2 * number
