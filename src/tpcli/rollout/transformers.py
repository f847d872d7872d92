"""Generation with transformers: shared prefill, a preallocated cache, rows that leave when done.

Letters: P prompts, G responses a prompt, A rows still in the batch, V vocabulary.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tpcli.rollout.engine import Progress
from tpcli.types import Prompt, Rollout

LEAVE_BELOW = 0.75
"""Finished rows are dropped once no more than this share of the batch is still running: a copy of
the cache costs about as much as a decoding step."""

SHARE_FROM = 16
"""Tokens that all prompts must begin with for them to be read once: a pass of its own costs."""


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
        self._device = model.device
        self._eos = torch.tensor(sorted(eos_ids), device=self._device)
        self._pad_id = pad_id
        self._max_rows = max_rows

    @torch.no_grad()
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
    ) -> list[list[Rollout]]:
        """See ``RolloutEngine``. Each prompt draws from a stream of its own, whatever the batch."""
        groups: list[list[Rollout]] = [[] for _ in prompts]
        # Prompts of like length decode together: less padding, and often none.
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
        wave = max(1, self._max_rows // group_size)
        part = min(group_size, self._max_rows)  # of a group that is larger than all rows
        streams = _streams(seed, prompts)
        draw = partial(inverse_cdf, temperature=temperature, top_p=top_p, top_k=top_k)
        done, total = 0, len(prompts) * group_size
        for at in range(0, len(order), wave):
            chosen = order[at : at + wave]
            for first in range(0, group_size, part):
                size = min(part, group_size - first)
                decode = _Decode(
                    self._model, [prompts[i].tokens for i in chosen], size, self._pad_id
                )
                uniform_AL = torch.cat(
                    [
                        _uniforms(streams[i], group_size, max_new_tokens)[first : first + size]
                        for i in chosen
                    ]
                ).to(self._device)
                report = partial(_count_on, progress, done, total) if progress else None
                rows = decode.run(uniform_AL, draw, self._eos, report)
                done += len(rows)
                for k, i in enumerate(chosen):
                    groups[i] += rows[k * size : (k + 1) * size]
        return groups


def inverse_cdf(
    logits_AV: Tensor,
    uniform_A: Tensor,
    temperature: float,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row from softmax(logits / temperature) by inverting its CDF.

    Args:
        uniform_A: in [0, 1); not read when ``temperature`` is 0.
        top_p, top_k: the nucleus drawn from; 1 and 0 are the whole distribution, and so is
            temperature 0.

    Returns:
        (token_A, logprob_A). A token of probability 0 is never drawn.
    """
    greedy = temperature == 0
    log_p_AV = torch.log_softmax(logits_AV.float() / (1.0 if greedy else temperature), dim=-1)
    if greedy:
        token_A1 = log_p_AV.argmax(-1, keepdim=True)
    else:
        if top_p < 1 or top_k:
            log_p_AV = nucleus(log_p_AV, top_p, top_k=top_k)
        cdf_AV = log_p_AV.exp().cumsum_(-1)
        total_A = cdf_AV[:, -1]
        # Rounding must not reach the total: the search would then run past the last possible token.
        below_A = torch.nextafter(total_A, torch.zeros_like(total_A))
        point_A1 = torch.minimum(uniform_A * total_A, below_A)[:, None].contiguous()
        token_A1 = torch.searchsorted(cdf_AV, point_A1, right=True)
    return token_A1[:, 0], log_p_AV.gather(1, token_A1)[:, 0]


def nucleus(log_p_AV: Tensor, top_p: float, *, top_k: int = 0) -> Tensor:
    """Log-probs of the nucleus alone: the fewest most likely tokens with ``top_p`` together.

    The token that reaches ``top_p`` is in; of equal tokens the one with the lower id comes first.
    With ``top_k`` the nucleus is that of the k most likely tokens, made to sum to 1 (which of equal
    tokens is the k-th is then open).

    Ref: https://arxiv.org/abs/1904.09751
    """
    if 0 < top_k < log_p_AV.shape[-1]:  # far cheaper than sorting the vocabulary
        sorted_AK, order_AK = log_p_AV.topk(top_k, dim=-1)
    else:
        sorted_AK, order_AK = log_p_AV.sort(dim=-1, descending=True, stable=True)
    p_AK = torch.softmax(sorted_AK, dim=-1)
    outside_AK = p_AK.cumsum(-1) - p_AK >= top_p
    outside_AK[:, 0] = False
    kept_AV = torch.full_like(log_p_AV, -torch.inf).scatter_(
        -1, order_AK, sorted_AK.masked_fill(outside_AK, -torch.inf)
    )
    return kept_AV - kept_AV.logsumexp(-1, keepdim=True)


def _streams(seed: int, prompts: Sequence[Prompt]) -> list[int]:
    """A seed a prompt: of the question, and of how often it was asked before in this call.

    So a prompt draws the same numbers in any order and batch.
    """
    asked: Counter[str] = Counter()
    streams = []
    for prompt in prompts:
        name = f"{seed}\0{prompt.question.id}\0{asked[prompt.question.id]}"
        streams.append(int.from_bytes(sha256(name.encode()).digest()[:7]))
        asked[prompt.question.id] += 1
    return streams


def _uniforms(stream: int, rows: int, length: int) -> Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(stream))


def _count_on(progress: Progress, before: int, total: int, finished: int) -> None:
    progress(before + finished, total)


class _Decode:
    """One wave of prompts, from prefill to the last response."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[tuple[int, ...]],
        group_size: int,
        pad_id: int,
    ) -> None:
        self._model, self._group_size = model, group_size
        width = max(len(p) for p in prompts)
        shared = len(commonprefix([p[:-1] for p in prompts]))  # noqa: RUF071 (not paths)
        self._shared = shared if len(prompts) > 1 and shared >= SHARE_FROM else 0
        # What is shared stands left, the rest right: the last column predicts.
        self._input_PW = torch.full((len(prompts), width), pad_id, device=model.device)
        self._real_PW = torch.zeros(len(prompts), width, dtype=torch.bool, device=model.device)
        for row, tokens in enumerate(prompts):
            rest = width - (len(tokens) - self._shared)
            for here, part in (
                (slice(0, self._shared), tokens[: self._shared]),
                (slice(rest, width), tokens[self._shared :]),
            ):
                self._input_PW[row, here] = torch.tensor(part, dtype=torch.int64)
                self._real_PW[row, here] = True

    def run(
        self,
        uniform_AL: Tensor,
        draw: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        eos: Tensor,
        progress: Callable[[int], None] | None,
    ) -> list[Rollout]:
        """Decode until every response has ended or ``uniform_AL`` is used up, one column a step."""
        rows, length = uniform_AL.shape
        device = uniform_AL.device
        tokens_AL = torch.zeros(rows, length, dtype=torch.int64, device=device)
        logprobs_AL = torch.zeros(rows, length, device=device)
        lengths_A = torch.zeros(rows, dtype=torch.int64, device=device)
        ended_A = torch.zeros(rows, dtype=torch.bool, device=device)
        alive = torch.arange(rows, device=device)  # which response each row of the batch is
        cache, logits_AV, real_AW, position_A = self._prefill(length)
        for t in range(length):
            token_a, logprob_a = draw(logits_AV, uniform_AL[alive, t])
            running = alive[~ended_A[alive]]
            keep_a = ~ended_A[alive]
            tokens_AL[running, t] = token_a[keep_a]
            logprobs_AL[running, t] = logprob_a[keep_a]
            lengths_A[running] = t + 1
            ended_A[running] = torch.isin(token_a[keep_a], eos)
            running_count = int((~ended_A).sum())
            if progress:
                progress(rows - running_count)
            if running_count == 0 or t + 1 == length:
                break
            if running_count <= LEAVE_BELOW * len(alive):
                stay_a = (~ended_A[alive]).nonzero()[:, 0]
                cache.batch_select_indices(stay_a)
                alive, token_a = alive[stay_a], token_a[stay_a]
                real_AW, position_A = real_AW[stay_a], position_A[stay_a]
            real_AW = torch.nn.functional.pad(real_AW, (0, 1), value=True)
            logits_AV = self._step(token_a, position_A, real_AW, cache)
            position_A = position_A + 1
        tokens_AL, logprobs_AL = tokens_AL.cpu(), logprobs_AL.cpu()
        return [
            Rollout(tokens_AL[a, :n].clone(), logprobs_AL[a, :n].clone(), bool(end))
            for a, (n, end) in enumerate(zip(lengths_A.tolist(), ended_A.tolist(), strict=True))
        ]

    def _prefill(self, room: int) -> tuple[Cache, Tensor, Tensor, Tensor]:
        """Run what all prompts begin with once, each prompt's rest once, then copy the cache.

        Every response of a group starts from its own copy of the prompt's keys and values.
        """
        layers = [_Layer(room) for _ in range(_layers(self._model))]
        cache = Cache(layers=list(layers))
        real_PW, shared = self._real_PW, self._shared
        position_PW = (real_PW.cumsum(-1) - 1).clamp(min=0)
        if shared:
            self._forward(self._input_PW[:1, :shared], position_PW[:1, :shared], None, cache)
            for layer in layers:
                layer.broadcast(len(real_PW))
        logits_PV = self._forward(
            self._input_PW[:, shared:], position_PW[:, shared:], self._prefill_mask(), cache
        )
        cache.batch_repeat_interleave(self._group_size)
        return (
            cache,
            logits_PV.repeat_interleave(self._group_size, dim=0),
            real_PW.repeat_interleave(self._group_size, dim=0),
            real_PW.sum(-1).repeat_interleave(self._group_size),
        )

    def _prefill_mask(self) -> Tensor | None:
        """Who looks at whom while the prompts are read; None for plain causal attention."""
        real_PW, shared = self._real_PW, self._shared
        if not shared and bool(real_PW.all()):
            return None
        width = real_PW.shape[1]
        causal_WW = torch.ones(width, width, dtype=torch.bool, device=real_PW.device).tril()
        # A padding position looks at itself: a softmax over nothing is undefined.
        self_WW = torch.eye(width, dtype=torch.bool, device=real_PW.device)
        return ((causal_WW & real_PW[:, None, :]) | self_WW)[:, None, shared:]

    def _step(self, token_A: Tensor, position_A: Tensor, real_AW: Tensor, cache: Cache) -> Tensor:
        mask = None if bool(real_AW.all()) else real_AW[:, None, None, :]
        return self._forward(token_A[:, None], position_A[:, None], mask, cache)

    def _forward(
        self, input_AN: Tensor, position_AN: Tensor, mask: Tensor | None, cache: Cache
    ) -> Tensor:
        """Append to the cache; logits at the last position only."""
        out = self._model.base_model(
            input_ids=input_AN,
            position_ids=position_AN,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
        )
        head: nn.Module = self._model.get_output_embeddings()  # type: ignore[no-untyped-call]
        logits_AV: Tensor = head(out.last_hidden_state[:, -1])
        return logits_AV


def _layers(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, written in place into room that is taken once."""

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._store: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append; returns views of everything so far."""
        if self._store is None:  # the prefill, before the rows multiply
            return super().update(key_states, value_states)
        seen = self.get_seq_length()
        upto = seen + key_states.shape[-2]
        for store, new in zip(self._store, (key_states, value_states), strict=True):
            store[:, :, seen:upto] = new
        self.keys, self.values = (store[:, :, :upto] for store in self._store)
        return self.keys, self.values

    def broadcast(self, rows: int) -> None:
        """Give the one row there is to every prompt."""
        self.keys = self._filled(self.keys).expand(rows, -1, -1, -1)
        self.values = self._filled(self.values).expand(rows, -1, -1, -1)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Copy every prompt's prefix to its responses and take the room they will need."""
        self._store = (self._grown(self.keys, repeats), self._grown(self.values, repeats))
        seen = self.get_seq_length()
        self.keys, self.values = (store[:, :, :seen] for store in self._store)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only these rows."""
        assert self._store is not None
        seen = self.get_seq_length()
        self._store = (self._store[0][indices], self._store[1][indices])
        self.keys, self.values = (store[:, :, :seen] for store in self._store)

    def _grown(self, kept: Tensor | None, repeats: int) -> Tensor:
        prefix = self._filled(kept)
        rows, heads, seen, width = prefix.shape
        store = prefix.new_zeros(rows * repeats, heads, seen + self._room, width)
        store[:, :, :seen] = prefix.repeat_interleave(repeats, dim=0)
        return store

    def _filled(self, kept: Tensor | None) -> Tensor:
        assert kept is not None
        return kept
