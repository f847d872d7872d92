"""Asking the questions of a step: sample, grade, ask others where there is nothing to learn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpcli.data.prompts import with_prefix
from tpcli.names import VerifierName
from tpcli.rollout.engine import RolloutEngine
from tpcli.train.evaluate import Decode, grade_all
from tpcli.train.journal import Journal
from tpcli.train.order import further_prompts, prompts_of, sampler_seed
from tpcli.types import Prompt, Rollout, Verdict


@dataclass(frozen=True, slots=True)
class Asking:
    """What stays fixed over a run.

    Attributes:
        prompts_per_step: over all processes.
        rounds: refills a step at most, for groups whose responses are all right or all wrong.
        solutions: response tokens of worked solutions by question id, for expert prefixes.
    """

    prompts: Sequence[Prompt]
    prompts_per_step: int
    group_size: int
    max_new_tokens: int
    top_p: float
    verifier: VerifierName
    seed: int
    rounds: int
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
    """Draws the responses of one process."""

    def __init__(
        self,
        asking: Asking,
        engine: RolloutEngine,
        decode: Decode,
        journal: Journal,
        *,
        rank: int,
        ranks: int,
    ) -> None:
        self._ask, self._engine, self._decode = asking, engine, decode
        self._journal, self._rank, self._ranks = journal, rank, ranks

    def collect(self, step: int, *, temperature: float, prefix: float = 0.0) -> Collected:
        """The step's prompts of this process, answered and graded.

        With refills, a group whose verdicts are all alike is replaced by the next of further
        prompts whose verdicts are not; what is still without signal after the last round stays.

        Args:
            prefix: share of each worked solution that is given after the prompt.
        """
        ask = self._ask
        every = prompts_of(step, ask.prompts, count=ask.prompts_per_step, seed=ask.seed)
        share = len(every) // self._ranks
        mine = every[self._rank * share : (self._rank + 1) * share]
        out = self._draw(step, mine, temperature, prefix, 0)
        asked = {prompt.question.id for prompt in every}
        for round_ in range(1, ask.rounds + 1):
            dull = [i for i, verdicts in enumerate(out.verdicts) if not _signal(verdicts)]
            others = [
                *further_prompts(step, round_, ask.prompts, asked=asked, seed=ask.seed),
            ][self._rank :: self._ranks][: len(dull)]
            if not dull or not others:
                break
            asked |= {prompt.question.id for prompt in others}
            self._refill(out, dull, self._draw(step, others, temperature, prefix, round_))
        return out

    def _draw(
        self, step: int, prompts: list[Prompt], temperature: float, prefix: float, round_: int
    ) -> Collected:
        ask = self._ask
        if prefix:
            prompts = [
                with_prefix(prompt, ask.solutions[prompt.question.id], magnitude=prefix)
                for prompt in prompts
            ]
        with self._journal.phase("rollout", step) as report:
            groups = self._engine.sample(
                prompts,
                group_size=ask.group_size,
                # Plus the rank: a question asked by two processes must not get the same responses.
                seed=sampler_seed(ask.seed, step, round_) + self._rank,
                temperature=temperature,
                top_p=ask.top_p,
                max_new_tokens=ask.max_new_tokens,
                progress=report,
            )
        with self._journal.phase("reward", step):
            flat = grade_all(groups, prompts, self._decode, ask.verifier)
        size = ask.group_size
        verdicts = [flat[at : at + size] for at in range(0, len(flat), size)]
        correct = sum(verdict.status == "correct" for verdict in flat)
        return Collected(prompts, groups, verdicts, drawn=len(flat), correct=correct)

    def _refill(self, out: Collected, dull: Sequence[int], fresh: Collected) -> None:
        out.drawn += fresh.drawn
        out.correct += fresh.correct
        usable = [j for j, verdicts in enumerate(fresh.verdicts) if _signal(verdicts)]
        for i, j in zip(dull, usable, strict=False):
            out.prompts[i], out.groups[i] = fresh.prompts[j], fresh.groups[j]
            out.verdicts[i] = fresh.verdicts[j]
            out.refilled += 1


def _signal(verdicts: Sequence[Verdict]) -> bool:
    return len({verdict.reward for verdict in verdicts}) > 1
