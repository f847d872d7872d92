"""The engine against transformers' own forward pass and the definition of sampling."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import EOS, PAD, VOCABULARY, prompt_of, tiny_llama
from transformers import TopKLogitsWarper, TopPLogitsWarper

from tpcli.rollout.engine import RolloutEngine
from tpcli.rollout.transformers import TransformersEngine, inverse_cdf, nucleus
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
    assert all(total == 18 for _, total in seen)


def test_inverse_cdf_draws_each_token_in_proportion() -> None:
    """A fine grid of uniforms visits each token in proportion to its probability."""
    probability_V = torch.tensor([0.1, 0.0, 0.6, 0.3])
    uniform_A = (torch.arange(10_000) + 0.5) / 10_000
    token_A, logprob_A = inverse_cdf(probability_V.log().expand(10_000, -1), uniform_A, 1.0)
    share_V = torch.bincount(token_A, minlength=4) / 10_000
    torch.testing.assert_close(share_V, probability_V, rtol=0, atol=2e-4)
    torch.testing.assert_close(logprob_A, probability_V.log()[token_A])


@given(seed=st.integers(0, 2**20), uniform=st.sampled_from([0.0, 1e-9, 0.5, 1 - 2**-24]))
def test_inverse_cdf_never_draws_the_impossible(seed: int, uniform: float) -> None:
    """Also at the ends of the unit interval, with impossible tokens first and last."""
    generator = torch.Generator().manual_seed(seed)
    logits_AV = torch.randn(4, VOCABULARY, generator=generator) * 5
    logits_AV[:, [0, 1, -2, -1]] = -torch.inf
    token_A, logprob_A = inverse_cdf(logits_AV, torch.full((4,), uniform), 0.7)
    assert torch.isfinite(logprob_A).all()
    assert ((token_A > 1) & (token_A < VOCABULARY - 2)).all()


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
    assert 12 < told[-1][0] <= told[-1][1] == 18  # one that hits the limit is not counted
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_nucleus_by_hand() -> None:
    """.5 + .3 reaches .7: the two stay, renormalised. A nucleus is never empty."""
    log_p_AV = torch.tensor([[0.05, 0.3, 0.5, 0.15]]).log()
    torch.testing.assert_close(
        nucleus(log_p_AV, 0.7).exp(), torch.tensor([[0.0, 0.375, 0.625, 0.0]])
    )
    assert nucleus(log_p_AV, 1e-9).exp().tolist() == [[0.0, 0.0, 1.0, 0.0]]
    equal_AV = torch.full((1, 4), 0.25).log()
    assert nucleus(equal_AV, 0.5).exp().tolist() == [[0.5, 0.5, 0.0, 0.0]]


@given(
    logits=st.lists(st.floats(-8, 8), min_size=2, max_size=12),
    top_p=st.floats(0.05, 0.99),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_nucleus_sampling_stays_inside_and_says_its_own_probability(
    logits: list[float], top_p: float, uniform: float
) -> None:
    """Against the definition: tokens by falling probability until top_p is reached."""
    logits_AV = torch.tensor([logits])
    token_A, logprob_A = inverse_cdf(logits_AV, torch.tensor([uniform]), 1.0, top_p=top_p)
    p_V = logits_AV[0].softmax(-1)
    kept, mass = [], 0.0
    for token in sorted(range(len(logits)), key=lambda v: (-float(p_V[v]), v)):
        kept.append(token)
        mass += float(p_V[token])
        if mass >= top_p + 1e-6:
            break
    assert int(token_A) in kept
    ours = float(logprob_A.exp())
    assert ours >= float(p_V[int(token_A)]) - 1e-6
    assert ours <= float(p_V[int(token_A)]) / (top_p - 1e-5)


@given(
    logits=st.lists(st.integers(-64, 64), min_size=2, max_size=12, unique=True),
    top_p=st.floats(0.05, 1.0),
    top_k=st.integers(1, 14),
)
def test_top_k_then_top_p_as_the_field_has_them(
    logits: list[int], top_p: float, top_k: int
) -> None:
    """Against transformers' own warpers, first k, then p of what is left."""
    logits_AV = torch.tensor([logits]) / 8
    ids = torch.zeros(1, 1, dtype=torch.int64)
    by_k_AV = TopKLogitsWarper(top_k)(ids, logits_AV.clone())
    # A hair more, since theirs leaves a token out when the rest has exactly 1 - p.
    theirs_AV = TopPLogitsWarper(min(top_p + 1e-6, 1.0))(ids, by_k_AV).log_softmax(-1)
    ours_AV = nucleus(logits_AV.log_softmax(-1), top_p, top_k=top_k)
    torch.testing.assert_close(ours_AV.exp(), theirs_AV.exp(), atol=1e-6, rtol=1e-5)


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
