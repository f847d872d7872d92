"""vLLM in this process, for real, against transformers' forward pass."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from tests.tiny import prompt_of
from tests.vllm_real.small import (
    EOS,
    MAX_LEN,
    TOLERANCE,
    gap,
    log_probs,
    small_llama,
    started,
    trained,
)

from tpcli.errors import UsageError
from tpcli.rollout.draw import nucleus
from tpcli.rollout.vllm import VllmEngine
from tpcli.types import Rollout

pytest.importorskip("vllm")

Weights = Iterable[tuple[str, torch.Tensor]]
PROMPTS = [prompt_of([5, 9, 3], "p"), prompt_of([7], "q"), prompt_of([2, 4, 8, 11, 30], "r")]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def tied(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def engine(tied: bool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmEngine]:
    """With the weights of ``small_llama(0)``: a test that loads others loads them back."""
    engine = started(tmp_path_factory.mktemp("model"), tied=tied)
    yield engine
    engine.close()


def sample(engine: VllmEngine, **changes: Any) -> list[list[Rollout]]:
    settings: dict[str, Any] = {
        "prompts": PROMPTS,
        "group_size": 6,
        "seed": 3,
        "temperature": 1.2,
        "max_new_tokens": 40,
    }
    return engine.sample(**settings | changes)


def tokens(groups: list[list[Rollout]]) -> list[list[list[int]]]:
    return [[rollout.tokens_L.tolist() for rollout in group] for group in groups]


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.8, 0), (1.0, 5), (0.8, 5)])
def test_logprobs_are_those_sampled_from(
    engine: VllmEngine, tied: bool, top_p: float, top_k: int
) -> None:
    """The engine's log-probs are transformers' at the temperature, cut to the nucleus."""
    model = small_llama(0, tied=tied)
    worst, lengths = 0.0, set()
    for prompt, group in zip(PROMPTS, sample(engine, top_p=top_p, top_k=top_k), strict=True):
        assert len(group) == 6
        for rollout in group:
            every = log_probs(model, prompt.tokens, rollout.tokens_L, 1.2)
            if top_p < 1 or top_k:
                every = nucleus(every, top_p, top_k=top_k)
            expected_L = every.gather(1, rollout.tokens_L[:, None])[:, 0]
            worst = max(worst, float((rollout.logprobs_L - expected_L).abs().max()))
            assert rollout.finished == (int(rollout.tokens_L[-1]) in EOS)
            assert not set(EOS) & set(rollout.tokens_L[:-1].tolist())
            assert rollout.finished or len(rollout.tokens_L) == 40
            lengths.add(len(rollout.tokens_L))
    print(f"largest gap at top_p {top_p}, top_k {top_k}: {worst:.1e}")
    assert worst < TOLERANCE
    assert len(lengths) > 1


def test_greedy_is_the_most_likely_token_and_its_logprob(engine: VllmEngine, tied: bool) -> None:
    groups = sample(engine, temperature=0.0, top_p=0.5, group_size=2)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        every = log_probs(small_llama(0, tied=tied), prompt.tokens, group[0].tokens_L, 1.0)
        best = every.max(-1)
        assert torch.equal(group[0].tokens_L, best.indices)
        torch.testing.assert_close(group[0].logprobs_L, best.values.float(), atol=1e-4, rtol=0)
        assert torch.equal(group[0].tokens_L, group[1].tokens_L)


def test_same_seed_same_responses_in_any_order(engine: VllmEngine) -> None:
    once = tokens(sample(engine))
    assert tokens(sample(engine)) == once
    assert tokens(sample(engine, prompts=PROMPTS[::-1]))[::-1] == once
    assert tokens(sample(engine, seed=4)) != once
    assert len({str(response) for response in once[0]}) == 6


def test_a_group_is_reported_while_others_generate(engine: VllmEngine) -> None:
    """Two groups have room at a time: the first is handed on before the last has begun."""
    seen: dict[int, list[Rollout]] = {}
    left, counts = [], []

    def finished(i: int, group: list[Rollout]) -> None:
        seen[i] = group
        left.append(engine._llm.llm_engine.get_num_unfinished_requests())

    groups = sample(engine, finished=finished, progress=lambda *count: counts.append(count))
    assert [seen[i] for i in range(3)] == groups
    assert left[0] > 0
    assert left[-1] == 0
    assert counts == [(6, 18), (12, 18), (18, 18)]


def test_an_interruption_leaves_nothing_behind(engine: VllmEngine) -> None:
    """Who raises in ``finished`` (or presses Ctrl-C) gives up the rest, and can sample again."""

    def interrupt(i: int, group: list[Rollout]) -> None:
        raise KeyboardInterrupt

    once = tokens(sample(engine))
    with pytest.raises(KeyboardInterrupt):
        sample(engine, finished=interrupt)
    assert engine._llm.llm_engine.get_num_unfinished_requests() == 0
    assert tokens(sample(engine)) == once


def test_what_does_not_fit_is_refused_before_it_is_asked(engine: VllmEngine) -> None:
    with pytest.raises(UsageError, match=f"max_model_len of {MAX_LEN}"):
        sample(engine, max_new_tokens=MAX_LEN)


def test_weights_really_change(engine: VllmEngine, tied: bool) -> None:
    """After a load the engine scores as the new model does, and keeps its own copy."""
    old, new = small_llama(0, tied=tied), small_llama(1, tied=tied)
    before = gap(engine, old)
    assert before < TOLERANCE
    assert gap(engine, new) > 1
    responses = tokens(sample(engine))
    engine.load(trained(new), version=5)
    assert engine.version == 5
    after = gap(engine, new)
    print(f"gap before {before:.1e}, after the load {after:.1e} (tied: {tied})")
    assert after < TOLERANCE
    assert tokens(sample(engine)) != responses
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.mul_(1.5)
    assert gap(engine, small_llama(1, tied=tied)) < TOLERANCE
    engine.load(trained(old), version=0)
    assert tokens(sample(engine)) == responses


def without_head(reload: Callable[[Weights], None]) -> Callable[[Weights], None]:
    """As it goes wrong in vLLM itself when tied weights are reloaded on a CPU."""

    def wrapped(named: Weights) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tpcli.rollout.vllm.with_head", iter)
            reload([(name, tensor) for name, tensor in named if name != "lm_head.weight"])

    return wrapped


@pytest.mark.parametrize("forgotten", ["the weights", "the head", "the prefix cache"])
def test_a_broken_sync_shows_in_the_scores(
    engine: VllmEngine, tied: bool, monkeypatch: pytest.MonkeyPatch, forgotten: str
) -> None:
    """What the trainer's check must notice: each part of a load matters."""
    new = small_llama(1, tied=tied)
    assert gap(engine, small_llama(0, tied=tied)) < TOLERANCE  # fills the prefix cache
    with monkeypatch.context() as patch:
        if forgotten == "the weights":
            patch.setattr(engine, "_reload", lambda named: None)
        elif forgotten == "the head":
            patch.setattr(engine, "_reload", without_head(engine._reload))
        else:
            patch.setattr(engine._llm, "reset_prefix_cache", lambda: True)
        engine.load(trained(new), version=1)
    assert gap(engine, new) > 0.1
    engine.load(trained(new), version=1)
    assert gap(engine, new) < TOLERANCE
    engine.load(trained(small_llama(0, tied=tied)), version=0)
