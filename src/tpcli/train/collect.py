"""Asking the questions of a step: sample, grade, ask others where there is nothing to learn."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from threading import Lock
from typing import Self

import torch

from tpcli.credit.advantage import advantages
from tpcli.data.prompts import with_prefix
from tpcli.names import AdvantageName
from tpcli.reward.verify import Grader
from tpcli.rollout.engine import RolloutEngine
from tpcli.train.evaluate import Read, grade_all
from tpcli.train.journal import Journal
from tpcli.train.order import further_prompts, prompts_of, sampler_seed
from tpcli.train.team import Team
from tpcli.types import Prompt, Rollout, Verdict


@dataclass(frozen=True, slots=True)
class Asking:
    """What stays fixed over a run.

    Attributes:
        prompts_per_step: over all processes.
        rounds: refills a step at most, for groups whose advantages would all be 0.
        advantage, k: which advantages those are.
        solutions: response tokens of worked solutions by question id, for expert prefixes.
    """

    prompts: Sequence[Prompt]
    prompts_per_step: int
    group_size: int
    max_new_tokens: int
    seed: int
    rounds: int
    advantage: AdvantageName
    k: int
    solutions: Mapping[str, Sequence[int]]


@dataclass(slots=True)
class Collected:
    """This process's groups of a step, and what it took to get them.

    Attributes:
        drawn: responses drawn, those that were replaced included.
        correct: how many of them were right.
        refilled: groups that were replaced by others.
    """

    prompts: list[Prompt]
    groups: list[list[Rollout]]
    verdicts: list[list[Verdict]]
    drawn: int = 0
    correct: int = 0
    refilled: int = 0


class Collector:
    """Draws the responses of one team and keeps those of this process."""

    def __init__(
        self,
        asking: Asking,
        engine: RolloutEngine,
        read: Read,
        grader: Grader,
        journal: Journal,
        team: Team,
    ) -> None:
        self._ask, self._engine, self._read, self._grader = asking, engine, read, grader
        self._journal, self._team = journal, team

    def collect(
        self, step: int, *, temperature: float, top_p: float = 1.0, prefix: float = 0.0
    ) -> Collected:
        """The step's prompts of this process, answered and graded.

        With refills, a group that teaches nothing is replaced by the next of further prompts whose
        group does; what is still without signal after the last round stays. Each team has further
        prompts of its own, so none is asked twice in a step.

        Args:
            prefix: share of each worked solution that is given after the prompt.
        """
        ask = self._ask
        every = prompts_of(step, ask.prompts, count=ask.prompts_per_step, seed=ask.seed)
        team = self._team
        share = len(every) // team.teams
        ours = every[team.number * share : (team.number + 1) * share]
        draw = partial(self._draw, step, temperature=temperature, top_p=top_p, prefix=prefix)
        out = draw(ours, round_=0)
        asked = {prompt.question.id for prompt in every}
        further = further_prompts(step, ask.prompts, asked=asked, seed=ask.seed)
        others = islice(further, team.number, None, team.teams)
        for round_ in range(1, ask.rounds + 1):
            dull = [i for i, verdicts in enumerate(out.verdicts) if not self._teaches(verdicts)]
            instead = [*islice(others, len(dull))]
            if not instead:
                break
            self._refill(out, dull, draw(instead, round_=round_))
        return self._share(out)

    def _share(self, out: Collected) -> Collected:
        """Of the team's groups those of this process; what was counted counts once."""
        team = self._team
        return Collected(
            team.mine(out.prompts),
            team.mine(out.groups),
            team.mine(out.verdicts),
            drawn=out.drawn if team.leads else 0,
            correct=out.correct if team.leads else 0,
            refilled=out.refilled if team.leads else 0,
        )

    def _draw(
        self,
        step: int,
        prompts: list[Prompt],
        *,
        temperature: float,
        top_p: float,
        prefix: float,
        round_: int,
    ) -> Collected:
        ask = self._ask
        if prefix:
            prompts = [
                with_prefix(prompt, ask.solutions[prompt.question.id], magnitude=prefix)
                for prompt in prompts
            ]
        with _Grading(prompts, self._read, self._grader) as grading:
            with self._journal.phase("rollout", step) as report:
                groups = self._engine.sample(
                    prompts,
                    group_size=ask.group_size,
                    # Plus the team: a question asked by two must not get the same responses.
                    seed=sampler_seed(ask.seed, step, round_) + self._team.number,
                    temperature=temperature,
                    top_p=top_p,
                    max_new_tokens=ask.max_new_tokens,
                    progress=report,
                    finished=grading.add if self._team.leads else None,
                )
            with self._journal.phase("reward", step):
                verdicts = self._team.agreed(grading.of(groups) if self._team.leads else None)
        flat = [verdict for group in verdicts for verdict in group]
        correct = sum(verdict.status == "correct" for verdict in flat)
        return Collected(prompts, groups, verdicts, drawn=len(flat), correct=correct)

    def _refill(self, out: Collected, dull: Sequence[int], fresh: Collected) -> None:
        out.drawn += fresh.drawn
        out.correct += fresh.correct
        usable = [j for j, verdicts in enumerate(fresh.verdicts) if self._teaches(verdicts)]
        for i, j in zip(dull, usable, strict=False):
            out.prompts[i], out.groups[i] = fresh.prompts[j], fresh.groups[j]
            out.verdicts[i] = fresh.verdicts[j]
            out.refilled += 1

    def _teaches(self, verdicts: Sequence[Verdict]) -> bool:
        """Whether any response of the group would have an advantage other than 0."""
        reward_G = torch.tensor([verdict.reward for verdict in verdicts])
        advantage_G = advantages(
            self._ask.advantage, reward_G, group_size=len(verdicts), k=self._ask.k
        )
        return bool((advantage_G != 0).any())


class _Grading:
    """Verifies groups in a thread of its own while others are still being generated."""

    def __init__(self, prompts: Sequence[Prompt], read: Read, grader: Grader) -> None:
        self._prompts, self._read, self._grader = prompts, read, grader
        self._waiting: dict[int, list[Rollout]] = {}
        self._verdicts: dict[int, list[Verdict]] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(1)
        self._jobs: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, place: int, group: list[Rollout]) -> None:
        """Verify the group of prompt ``place`` as soon as the verifier is free."""
        with self._lock:
            self._waiting[place] = group
        self._jobs.append(self._pool.submit(self._grade))

    def of(self, groups: Sequence[list[Rollout]]) -> list[list[Verdict]]:
        """The verdicts on all groups, whether they were added before or not."""
        for job in self._jobs:
            job.result()
        left = {i: g for i, g in enumerate(groups) if i not in self._verdicts}
        self._waiting |= left
        self._grade()
        return [self._verdicts[i] for i in range(len(groups))]

    def _grade(self) -> None:
        """All that wait, in one call: its processes then work side by side."""
        with self._lock:
            taken, self._waiting = self._waiting, {}
        if not taken:
            return
        prompts = [self._prompts[i] for i in taken]
        flat = iter(grade_all([*taken.values()], prompts, self._read, self._grader))
        self._verdicts |= {i: [*islice(flat, len(group))] for i, group in taken.items()}
