"""Ask a benchmark's questions, store what comes as it comes, grade it, and sum it up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from tpcli.bench import stats
from tpcli.bench.folder import EvaluationFolder, Generation, Place
from tpcli.bench.items import Item
from tpcli.data.decode import opens_thinking, response_text
from tpcli.data.prompts import PromptSet, build_prompts
from tpcli.names import VerdictStatus
from tpcli.reward.verify import Grader
from tpcli.rollout.engine import RolloutEngine
from tpcli.types import Answered, Prompt, Question, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLOCK = 8
"""Samples of a question drawn together. Block b has a seed of its own, so that samples 8 to 15 are
the same whether they were asked for at once or later."""
STRIDE = 1_000_003
"""Between the seeds of two blocks: far from what users write as seeds."""

Progress = Callable[[int, int, int], None]
"""Called with (responses there are, responses asked for, tokens generated so far)."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How questions are put to the model.

    Attributes:
        system: system message; None leaves it to the chat template.
        template: what the user says, {question} standing for the question alone; None asks as the
            benchmark does.
        examples: (question, solution) pairs that come first.
        thinking: passed to the chat template as enable_thinking, unless None.
    """

    system: str | None = None
    template: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    thinking: bool | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How responses are drawn. ``temperature`` 0 is greedy: one sample says it all."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    max_tokens: int = 38_912
    seed: int = 0


def prompts_of(
    items: Sequence[Item],
    tokenizer: PreTrainedTokenizerBase,
    asking: Asking,
    *,
    max_prompt_tokens: int,
) -> PromptSet:
    """The prompts of ``items``; ``too_long`` counts those that do not fit."""
    own = asking.template
    return build_prompts(
        [Question(i.id, i.text if own is None else i.question, i.gold) for i in items],
        tokenizer,
        system=asking.system,
        template=own or "{question}",
        examples=asking.examples,
        thinking=asking.thinking,
        max_prompt_tokens=max_prompt_tokens,
    )


def missing(folder: EvaluationFolder, items: Sequence[Item], n: int) -> list[Place]:
    """The samples that are not stored yet."""
    have = folder.generations()
    return [(item.id, j) for item in items for j in range(n) if (item.id, j) not in have]


def generate(
    folder: EvaluationFolder,
    prompts: Sequence[Prompt],
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    sampling: Sampling,
    *,
    n: int,
    rows: int,
    progress: Progress,
) -> None:
    """Draw the samples that are missing; each batch is on the disk before the next begins.

    Args:
        n: samples a question.
        rows: responses decoded at once, about; at least one block.
    """
    have = {*folder.generations()}
    asked, tokens = len(prompts) * n, 0
    before = sum((p.question.id, j) in have for p in prompts for j in range(n))
    progress(before, asked, 0)
    for first, size, batch in _batches(prompts, n, rows):
        wanted = [
            p for p in batch if any((p.question.id, first + j) not in have for j in range(size))
        ]
        if not wanted:
            continue
        groups = engine.sample(
            wanted,
            group_size=size,
            seed=sampling.seed + STRIDE * (first // BLOCK),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_new_tokens=sampling.max_tokens,
            progress=partial(_count_on, progress, before, asked, tokens),
        )
        found = [
            Generation(
                item=prompt.question.id,
                sample=first + j,
                text=response_text(rollout.tokens_L.tolist(), tokenizer),
                tokens=len(rollout.tokens_L),
                finished=rollout.finished,
                opened=opens_thinking(prompt.tokens, tokenizer),
            )
            for prompt, group in zip(wanted, groups, strict=True)
            for j, rollout in enumerate(group)
            if (prompt.question.id, first + j) not in have
        ]
        folder.add(found)
        before += len(found)
        tokens += sum(one.tokens for one in found)
        progress(before, asked, tokens)


def _count_on(
    progress: Progress, before: int, asked: int, tokens: int, done: int, _of: int
) -> None:
    progress(before + done, asked, tokens)


def _batches(
    prompts: Sequence[Prompt], n: int, rows: int
) -> Iterator[tuple[int, int, Sequence[Prompt]]]:
    """(first sample, samples a prompt, prompts) of each call of the engine.

    The division depends on the whole list alone, never on what is stored: a run that was
    interrupted draws what is left in the very batches it would have been drawn in.
    """
    by_length = sorted(prompts, key=lambda prompt: len(prompt.tokens))
    for first in range(0, n, BLOCK):
        size = min(BLOCK, n - first)
        step = max(1, rows // size)
        for at in range(0, len(by_length), step):
            yield first, size, by_length[at : at + step]


def grade(
    folder: EvaluationFolder,
    items: Sequence[Item],
    grader: Grader,
    *,
    n: int,
    kind: str,
    again: bool = False,
) -> dict[Place, Verdict]:
    """A verdict on every stored sample of ``items``, whole responses always.

    Args:
        kind: the name that verdicts are stored under: the verifier's, with its version.
        again: also those that have a verdict already.
    """
    # A response that could not be judged for want of time or memory gets another chance.
    have = {
        place: verdict
        for place, verdict in folder.verdicts(kind).items()
        if not again and verdict.status not in ("timeout", "crash")
    }
    stored = folder.generations()
    gold = {item.id: item.gold for item in items}
    wanted = [(item.id, j) for item in items for j in range(n)]
    todo = [place for place in wanted if place not in have]
    answers = [
        Answered(
            text=stored[place].text,
            gold=gold[place[0]],
            finished=stored[place].finished,
            opened=stored[place].opened,
        )
        for place in todo
    ]
    fresh = dict(zip(todo, grader.grade(answers), strict=True))
    if fresh:
        folder.add_verdicts(kind, fresh)
    return {place: fresh[place] if place in fresh else have[place] for place in wanted}


@dataclass(frozen=True, slots=True)
class Summary:
    """What an evaluation found.

    Attributes:
        correct: c_q of every question, in the items' order.
        passed: pass@k by k.
        reward: mean reward; other than ``avg`` only where a verifier gives parts of a point.
        shares: of all samples, by status of the verdict.
        truncated: share of samples that reached the token limit.
        tokens: mean length of a response.
    """

    n: int
    correct: dict[str, int]
    avg: stats.Estimate
    passed: dict[int, stats.Estimate]
    maj: stats.Estimate
    reward: float
    shares: dict[str, float]
    truncated: float
    tokens: float

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def summarise(
    items: Sequence[Item],
    generations: Mapping[Place, Generation],
    verdicts: Mapping[Place, Verdict],
    *,
    n: int,
) -> Summary:
    """Count, and say how sure the counts are."""
    places = [(item.id, j) for item in items for j in range(n)]
    right = {place: verdicts[place].status == "correct" for place in places}
    correct = {item.id: sum(right[item.id, j] for j in range(n)) for item in items}
    counts = [*correct.values()]
    statuses = Counter(verdicts[place].status for place in places)
    found = {k: stats.pass_at_k(counts, n, k) for k in stats.ks(n)}
    drawn = [generations[place] for place in places]
    return Summary(
        n=n,
        correct=correct,
        avg=stats.avg_at_n(counts, n),
        passed={k: estimate for k, estimate in found.items() if estimate is not None},
        maj=stats.maj_at_n(
            [[_vote(verdicts[item.id, j]) for j in range(n)] for item in items],
            [[right[item.id, j] for j in range(n)] for item in items],
        ),
        reward=sum(verdicts[place].reward for place in places) / len(places),
        shares={status: statuses[status] / len(places) for status in get_args(VerdictStatus)},
        truncated=sum(not one.finished for one in drawn) / len(drawn),
        tokens=sum(one.tokens for one in drawn) / len(drawn),
    )


def _vote(verdict: Verdict) -> str | None:
    """The answer as majority voting counts it; what could not be read votes as it was written."""
    return verdict.canonical if verdict.canonical is not None else verdict.extracted
