"""Generation with transformers: prompts read once a group, responses that come and leave alone.

There are ``max_rows`` slots. A response that ends leaves at once, the last row takes its place, and
waiting prompts enter as soon as enough slots are free: the batch stays full while work waits.

Letters: P prompts, G responses a prompt, A rows of a forward pass, W columns of it, V vocabulary.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from os.path import commonprefix

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tpcli.rollout.draw import inverse_cdf
from tpcli.rollout.engine import Finished, Progress
from tpcli.rollout.prepacked import prepacked
from tpcli.rollout.slots import Slots, hidden_states
from tpcli.rollout.streams import streams
from tpcli.types import Prompt, Rollout

ENTER_FROM = 0.25
"""Waiting prompts enter once this share of the slots is free: not one at a time, since every pass
reads all the weights."""

SHARE_FROM = 16
"""Tokens that all prompts must begin with for them to be read once: a pass of its own costs."""

Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits_AV, uniform_A) -> (token_A, logprob_A)."""

Part = list["_Response"]
"""Responses to one prompt that enter together."""


class TransformersEngine:
    """Samples from a model in this process; it always sees the trainer's current weights."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_ids: Sequence[int],
        pad_id: int,
        max_rows: int = 256,
    ) -> None:
        self._model = model
        self._eos = frozenset(eos_ids)
        self._pad_id = pad_id
        self._max_rows = max_rows

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
        """See ``RolloutEngine``. Each prompt draws from a stream of its own, whatever the batch."""
        limit_PG = self._limits(prompts, group_size, max_new_tokens).tolist()
        groups = [
            [_Response(i, g, len(prompts[i].tokens), limit) for g, limit in enumerate(limit_G)]
            for i, limit_G in enumerate(limit_PG)
        ]
        seeds = streams(seed, prompts)
        draw = partial(inverse_cdf, temperature=temperature, top_p=top_p, top_k=top_k)
        waiting = self._queue(groups)
        batch = _Batch(self._model, prompts, groups, max_rows=self._max_rows, pad_id=self._pad_id)
        answers: list[list[Rollout]] = [[] for _ in prompts]
        missing, total = [group_size] * len(prompts), len(prompts) * group_size
        with prepacked(self._model):
            while any(missing):
                if parts := self._entering(waiting, running=len(batch.rows)):
                    for part in parts:
                        uniform_GL = _uniforms(seeds[part[0].prompt], group_size, max_new_tokens)
                        for response in part:
                            response.uniforms = uniform_GL[response.number].tolist()
                    batch.enter(parts, draw)
                else:
                    batch.step(draw)
                for response in batch.leave(self._eos):
                    i = response.prompt
                    missing[i] -= 1
                    if missing[i] == 0:
                        answers[i] = [r.rollout(self._eos) for r in groups[i]]
                        if finished:
                            finished(i, answers[i])
                if progress:
                    progress(total - sum(missing), total)
        return answers

    def _limits(self, prompts: Sequence[Prompt], group_size: int, max_new_tokens: int) -> Tensor:
        """Most tokens of each response: int64, P x G, from 1 to ``max_new_tokens``.

        A subclass may set them one by one, for example to force lengths in a benchmark.
        """
        return torch.full((len(prompts), group_size), max_new_tokens)

    def _queue(self, groups: Sequence[Part]) -> deque[Part]:
        """What waits: groups, in parts where they exceed all slots; prompts of like length meet."""
        size = self._max_rows
        return deque(
            group[first : first + size]
            for group in sorted(groups, key=lambda group: group[0].start)
            for first in range(0, len(group), size)
        )

    def _entering(self, waiting: deque[Part], *, running: int) -> list[Part]:
        """Take from the queue what enters now, given how many rows are running."""
        free = self._max_rows - running
        if running and free < ENTER_FROM * self._max_rows:
            return []
        parts = []
        while waiting and len(waiting[0]) <= free:
            parts.append(waiting.popleft())
            free -= len(parts[-1])
        return parts


def _uniforms(stream: int, rows: int, length: int) -> Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(stream))


@dataclass(slots=True)
class _Response:
    """One response while it is written.

    Attributes:
        prompt, number: which prompt it answers, and which of the group it is.
        start: length of the prompt.
        limit: tokens at which it ends in any case.
        uniforms: one a token, known once it has entered.
    """

    prompt: int
    number: int
    start: int
    limit: int
    uniforms: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @property
    def column(self) -> int:
        """Of the cache, where its last token belongs: the model has not read it yet."""
        return self.start + len(self.tokens) - 1

    def ended(self, eos: frozenset[int]) -> bool:
        return self.tokens[-1] in eos or len(self.tokens) >= self.limit

    def rollout(self, eos: frozenset[int]) -> Rollout:
        return Rollout(
            torch.tensor(self.tokens), torch.tensor(self.logprobs), self.tokens[-1] in eos
        )


class _Batch:
    """The responses that run: ``rows[a]`` has row a of the cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prompt],
        groups: Sequence[Part],
        *,
        max_rows: int,
        pad_id: int,
    ) -> None:
        self.rows: list[_Response] = []
        self._model, self._pad_id = model, pad_id
        self._prompts = [prompt.tokens for prompt in prompts]
        every = [response for group in groups for response in group]
        shared = len(commonprefix([p[:-1] for p in self._prompts]))  # noqa: RUF071 (not paths)
        self._shared = shared if len(prompts) > 1 and shared >= SHARE_FROM else 0
        self._head_row = min(max_rows, len(every))  # one row more, for what all begin with
        self._slots = Slots(
            self._head_row + bool(self._shared),
            max((response.start + response.limit for response in every), default=0),
            model.device,
        )
        self._head_read = False

    @torch.inference_mode()
    def enter(self, parts: Sequence[Part], draw: Draw) -> None:
        """Read the prompt of each part once, right-padded, and draw the first tokens."""
        if self._shared and not self._head_read:
            self._read([self._prompts[0][: self._shared]], self._head_row, 0)
            self._head_read = True
        first, shared = len(self.rows), self._shared
        prompts = [self._prompts[part[0].prompt] for part in parts]
        reading = range(first, first + len(parts))
        self._slots.copy([self._head_row] * len(parts), reading, shared)
        logits_PV = self._read([tokens[shared:] for tokens in prompts], first, shared)
        part_A = [k for k, part in enumerate(parts) for _ in part]
        new = range(first, first + len(part_A))
        self._slots.copy([reading[k] for k in part_A], new, max(map(len, prompts)))
        self.rows += [response for part in parts for response in part]
        self._write(self.rows[first:], logits_PV[torch.tensor(part_A)], draw)

    @torch.inference_mode()
    def step(self, draw: Draw) -> None:
        """Let the model read the last token of every row, and draw the next."""
        columns = [response.column for response in self.rows]
        mask = self._slots.step(columns)
        token_A1 = self._tensor([[response.tokens[-1]] for response in self.rows])
        hidden_A1D = self._hidden(token_A1, self._tensor(columns)[:, None], mask)
        self._write(self.rows, self._logits(hidden_A1D[:, 0]), draw)

    @torch.inference_mode()
    def leave(self, eos: frozenset[int]) -> list[_Response]:
        """Drop the rows that have ended; the last ones take their places."""
        ended = [response.ended(eos) for response in self.rows]
        left = [response for response, end in zip(self.rows, ended, strict=True) if end]
        stay = len(self.rows) - len(left)
        holes = [a for a in range(stay) if ended[a]]
        last = [a for a in range(stay, len(ended)) if not ended[a]]
        self._slots.copy(last, holes, max((self.rows[a].column for a in last), default=0))
        for hole, a in zip(holes, last, strict=True):
            self.rows[hole] = self.rows[a]
        del self.rows[stay:]
        return left

    def _read(self, prompts: Sequence[tuple[int, ...]], first: int, column: int) -> Tensor:
        """Fill one row a prompt from ``column`` on; logits at the last token of each, P x V."""
        lengths = [len(tokens) for tokens in prompts]
        width = max(lengths)
        input_PW = self._tensor([[*p, *[self._pad_id] * (width - len(p))] for p in prompts])
        mask = self._slots.span(first, len(prompts), column, width)
        position_1W = torch.arange(column, column + width, device=input_PW.device)[None]
        hidden_PWD = self._hidden(input_PW, position_1W, mask)
        last_P = self._tensor(lengths) - 1
        return self._logits(hidden_PWD[torch.arange(len(prompts)), last_P])

    def _write(self, rows: Sequence[_Response], logits_AV: Tensor, draw: Draw) -> None:
        """Draw one token a row."""
        uniform_A = self._tensor([r.uniforms[len(r.tokens)] for r in rows])
        token_A, logprob_A = draw(logits_AV, uniform_A)
        for r, token, logprob in zip(rows, token_A.tolist(), logprob_A.tolist(), strict=True):
            r.tokens.append(token)
            r.logprobs.append(logprob)

    def _hidden(self, input_AW: Tensor, position_AW: Tensor, mask: Tensor | None) -> Tensor:
        return hidden_states(self._model.base_model, self._slots, input_AW, position_AW, mask)

    def _logits(self, hidden_AD: Tensor) -> Tensor:
        head: nn.Module = self._model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logits_AV: Tensor = head(hidden_AD)
        return logits_AV

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self._model.device)
