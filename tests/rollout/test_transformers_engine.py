"""The engine against transformers' own forward pass and the definition of sampling."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.tiny import EOS, PAD, prompt_of, tiny_llama
from torch import Tensor
from transformers import PreTrainedModel

from tpcli.rollout.engine import RolloutEngine
from tpcli.rollout.streams import streams
from tpcli.rollout.transformers import TransformersEngine, _uniforms
from tpcli.types import Prompt, Rollout

PROMPTS = [prompt_of([5, 9, 3], "p"), prompt_of([7], "q"), prompt_of([2, 4, 8, 11, 30], "r")]


HEAD = list(range(2, 22))
SHARING = [prompt_of([*HEAD, 5, 9, 3], "a"), prompt_of([*HEAD, 7], "b")]


def engine_of(max_rows: int = 256) -> TransformersEngine:
    return TransformersEngine(tiny_llama(), eos_ids=[EOS], pad_id=PAD, max_rows=max_rows)


def sample(
    engine: RolloutEngine, prompts: list[Prompt] = PROMPTS, **changes: float
) -> list[list[Rollout]]:
    settings = {"group_size": 6, "seed": 3, "temperature": 1.2, "max_new_tokens": 40} | changes
    return engine.sample(prompts, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompts", [PROMPTS, SHARING, SHARING[:1], [SHARING[0]] * 2])
def test_logprobs_are_those_of_the_plain_forward_pass(prompts: list[Prompt]) -> None:
    """Ragged prompts, a shared beginning, rows that left the batch: the model's own log-probs."""
    groups = sample(engine_of(), prompts)
    model = tiny_llama()
    lengths = set()
    for prompt, group in zip(prompts, groups, strict=True):
        for rollout in group:
            ids = torch.cat([torch.tensor(prompt.tokens), rollout.tokens_L])[None]
            logits = model(input_ids=ids).logits[0, len(prompt.tokens) - 1 : -1] / 1.2
            expected_L = logits.log_softmax(-1).gather(1, rollout.tokens_L[:, None])[:, 0]
            torch.testing.assert_close(rollout.logprobs_L, expected_L, rtol=1e-4, atol=1e-5)
            assert rollout.finished == (int(rollout.tokens_L[-1]) == EOS)
            assert EOS not in rollout.tokens_L[:-1]
            lengths.add(len(rollout.tokens_L))
    assert len(lengths) > 3
    assert max(lengths) <= 40


def test_same_seed_same_responses_in_any_batch() -> None:
    """The stream of a prompt does not depend on what it is decoded with."""
    together = sample(engine_of())
    waves = sample(engine_of(max_rows=6))
    for a, b in zip(together, waves, strict=True):
        assert [r.tokens_L.tolist() for r in a] == [r.tokens_L.tolist() for r in b]
    backwards = sample(engine_of(), PROMPTS[::-1])[::-1]
    assert [r.tokens_L.tolist() for r in backwards[0]] == [r.tokens_L.tolist() for r in together[0]]
    other = sample(engine_of(), seed=4)
    assert other[0][0].tokens_L.tolist() != together[0][0].tokens_L.tolist()


def test_responses_of_a_group_differ() -> None:
    """Also where one question is asked twice in a call."""
    groups = sample(engine_of(), [PROMPTS[0], PROMPTS[0]])
    assert len({tuple(r.tokens_L.tolist()) for group in groups for r in group}) == 12


def test_greedy_is_generate() -> None:
    model: Any = tiny_llama()
    for prompt, group in zip(
        PROMPTS, sample(engine_of(), temperature=0, group_size=1), strict=True
    ):
        expected = model.generate(
            torch.tensor([prompt.tokens]),
            do_sample=False,
            max_new_tokens=40,
            eos_token_id=EOS,
            pad_token_id=PAD,
            use_cache=False,
        )
        assert group[0].tokens_L.tolist() == expected[0, len(prompt.tokens) :].tolist()


def test_progress_reaches_the_total() -> None:
    seen: list[tuple[int, int]] = []
    engine_of(max_rows=6).sample(
        PROMPTS,
        group_size=6,
        seed=0,
        temperature=1.0,
        max_new_tokens=8,
        progress=lambda done, total: seen.append((done, total)),
    )
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert counts[-1] == 18
    assert all(total == 18 for _, total in seen)


@pytest.mark.parametrize("max_rows", [1, 4, 6])
def test_a_group_larger_than_the_rows_is_drawn_in_parts(max_rows: int) -> None:
    """The same responses, never more rows at once than allowed, and all of them counted."""
    engine, told = engine_of(max_rows), list[tuple[int, int]]()
    widest = 0
    model = engine._model
    forward = model.base_model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal widest
        widest = max(widest, len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    model.base_model.forward = watched
    parts = engine.sample(
        PROMPTS,
        group_size=6,
        seed=3,
        temperature=1.2,
        max_new_tokens=40,
        progress=lambda done, total: told.append((done, total)),
    )
    whole = sample(engine_of())
    for a, b in zip(parts, whole, strict=True):
        assert [r.tokens_L.tolist() for r in a] == [r.tokens_L.tolist() for r in b]
    assert widest == max_rows
    assert told[-1] == (18, 18)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_top_k_reaches_the_engine() -> None:
    """The most likely token alone is the greedy one."""
    narrow, greedy = sample(engine_of(), top_k=1), sample(engine_of(), temperature=0.0)
    wide = sample(engine_of(), top_k=5)

    def tokens(groups: list[list[Rollout]]) -> list[list[int]]:
        return [r.tokens_L.tolist() for group in groups for r in group]

    assert tokens(narrow) == tokens(greedy)
    assert tokens(wide) != tokens(greedy)


def test_top_p_reaches_the_engine() -> None:
    """With a tiny nucleus every response is the greedy one, of probability 1."""
    narrow = sample(engine_of(), top_p=1e-6)
    greedy = sample(engine_of(), temperature=0.0)
    for a, b in zip(narrow, greedy, strict=True):
        for one, other in zip(a, b, strict=True):
            assert one.tokens_L.tolist() == other.tokens_L.tolist()
            assert one.logprobs_L.abs().max() < 1e-6


class Forced(TransformersEngine):
    """Responses of given lengths, whatever the model writes."""

    def __init__(self, model: PreTrainedModel, lengths: list[list[int]], max_rows: int) -> None:
        super().__init__(model, eos_ids=[], pad_id=PAD, max_rows=max_rows)
        self.lengths = lengths

    def _limits(self, prompts: Sequence[Prompt], group_size: int, max_new_tokens: int) -> Tensor:
        return torch.tensor(self.lengths)


def plain(
    model: PreTrainedModel, prompt: Prompt, uniforms: list[float], length: int
) -> tuple[list[int], list[float]]:
    """One response alone, all of it recomputed for every token, drawn by summing up by hand."""
    ids, logprobs = list(prompt.tokens), list[float]()
    for uniform in uniforms[:length]:
        log_p_V = model(input_ids=torch.tensor([ids])).logits[0, -1].div(1.2).log_softmax(-1)
        token, below = 0, float(log_p_V[0].exp())
        while below <= uniform:
            token += 1
            below += float(log_p_V[token].exp())
        ids.append(token)
        logprobs.append(float(log_p_V[token]))
    return ids[len(prompt.tokens) :], logprobs


MANY = [prompt_of(list(range(3, 3 + n)), str(n)) for n in (4, 1, 9, 2, 6, 5, 3)]
MANY_SHARING = [prompt_of([*HEAD, *prompt.tokens], prompt.question.id) for prompt in MANY]


@torch.no_grad()
@pytest.mark.parametrize("prompts", [MANY, MANY_SHARING, MANY[:1]])
@pytest.mark.parametrize("max_rows", [2, 7, 8, 64])
def test_every_response_is_that_of_a_plain_loop(prompts: list[Prompt], max_rows: int) -> None:
    """In float64: prompts that wait and enter later, slots used again, groups in parts."""
    model = tiny_llama().double()
    generator = torch.Generator().manual_seed(max_rows)
    lengths = torch.randint(1, 12, (len(prompts), 3), generator=generator).tolist()
    engine = Forced(model, lengths, max_rows)
    groups = engine.sample(prompts, group_size=3, seed=5, temperature=1.2, max_new_tokens=11)
    for i, stream in enumerate(streams(5, prompts)):
        uniforms = _uniforms(stream, 3, 11).tolist()
        for rollout, uniform_L, length in zip(groups[i], uniforms, lengths[i], strict=True):
            tokens, logprobs = plain(model, prompts[i], uniform_L, length)
            assert rollout.tokens_L.tolist() == tokens
            torch.testing.assert_close(rollout.logprobs_L, torch.tensor(logprobs))
            assert not rollout.finished


def watch(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Rows and columns of each forward pass from now on."""
    passes: list[tuple[int, int]] = []
    forward = model.base_model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        passes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    model.base_model.forward = watched
    return passes


def test_waiting_prompts_enter_while_others_run() -> None:
    """By hand: 6 prompts for 4 slots; the next enters once a quarter of the slots is free."""
    model = tiny_llama()
    passes = watch(model)
    prompts = [prompt_of([5, 6 + i], str(i)) for i in range(6)]
    engine = Forced(model, [[2], [5], [5], [5], [3], [1]], max_rows=4)
    engine.sample(prompts, group_size=1, seed=0, temperature=1.0, max_new_tokens=5)
    assert passes == [
        (4, 2),  # four prompts are read and their first tokens drawn
        (4, 1),  # the first response ends
        (1, 2),  # the fifth prompt enters
        (4, 1),
        (4, 1),  # it ends
        (1, 2),  # the sixth enters and ends
        (3, 1),
    ]


def test_each_prompt_and_the_shared_beginning_are_read_once() -> None:
    model = tiny_llama()
    passes = watch(model)
    lengths = [[3, 1, 2]] * len(MANY)
    Forced(model, lengths, max_rows=7).sample(
        MANY_SHARING, group_size=3, seed=0, temperature=1.0, max_new_tokens=3
    )
    read = [rows for rows, columns in passes if columns > 1]
    assert passes[0] == (1, len(HEAD))
    assert sum(read) == 1 + len(MANY)


def test_finished_hears_of_each_group_once_and_complete() -> None:
    """In the order in which groups end, long before the last; split groups only when whole."""
    heard: list[tuple[int, list[Rollout]]] = []
    at: list[int] = []
    lengths = [[9, 2], [1, 1], [3, 8], [4, 4]]
    for max_rows, expected in ((64, [1, 3, 2, 0]), (1, [1, 3, 0, 2])):
        heard.clear()
        at.clear()
        groups = Forced(tiny_llama(), lengths, max_rows).sample(
            [MANY[i] for i in (0, 1, 2, 3)],
            group_size=2,
            seed=0,
            temperature=1.0,
            max_new_tokens=9,
            progress=lambda done, total: at.append(done),
            finished=lambda i, group: heard.append((i, group)),
        )
        assert [i for i, _ in heard] == expected
        for i, group in heard:
            assert all(a is b for a, b in zip(group, groups[i], strict=True))
            assert [len(rollout.tokens_L) for rollout in group] == lengths[i]


def test_what_comes_back_can_be_trained_on() -> None:
    """Ordinary tensors, and the gradients of the model are as before."""
    model = tiny_llama()
    engine = TransformersEngine(model, eos_ids=[EOS], pad_id=PAD)
    inside: list[bool] = []
    rollout = engine.sample(
        PROMPTS[:1],
        group_size=1,
        seed=0,
        temperature=1.0,
        max_new_tokens=4,
        finished=lambda i, group: inside.append(
            torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        ),
    )[0][0]
    assert inside == [True]
    assert not rollout.tokens_L.is_inference()
    assert not rollout.logprobs_L.is_inference()
    weight = torch.ones(1, requires_grad=True)
    logits = model(input_ids=rollout.tokens_L[None]).logits
    (weight * rollout.logprobs_L.sum() + logits.sum()).backward()
    assert weight.grad is not None
    assert all(p.grad is not None for p in model.parameters())


def test_no_prompts_no_groups() -> None:
    assert sample(engine_of(), []) == []
