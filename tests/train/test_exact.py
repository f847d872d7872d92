"""The packed, chunked step against the padded one with full logits, in float64.

Of every allocation and objective, however the step is cut up; and what the biased form leaves out.
"""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from tests.tiny import random_batch, tiny_llama
from tests.train.parts import KNOBS, distance, learner, step_taken, weights
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, LlamaForCausalLM

from tpcli.names import AllocationName, ObjectiveName
from tpcli.policy import chunk, segments
from tpcli.train.method import Learned
from tpcli.types import TokenBatch

EXACT = 1e-5
LENGTHS = [5, 1, 7, 2, 3, 6, 9, 4, 11, 8, 2, 3]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 3 tokens of a chunk, 2 and then 1 are worked on."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(chunk, "BLOCK_BYTES", {"cpu": 4 * 61 * 2})


def batch(shared: int = 0) -> TokenBatch:
    """Three prompts of four responses; one response has no advantage."""
    made = random_batch(LENGTHS, [4, 9, 2], group_size=4, shared=shared)
    advantage_B = made.advantage_B.clone()
    advantage_B[5] = 0
    return replace(made, advantage_B=advantage_B, seeds=range(len(LENGTHS)))


def padded_logprobs(model: LlamaForCausalLM, of: TokenBatch) -> Tensor:
    """[B, T]: every response beside a copy of its prompt, padded, all logits."""
    prompts = [list(of.prompts[b // of.group_size].tokens) for b in range(len(of.mask_BT))]
    lengths = of.mask_BT.sum(-1).tolist()
    whole = [
        torch.tensor(p + of.tokens_BT[b, :n].tolist())
        for b, (p, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    ids_BN = pad_sequence(whole, batch_first=True)
    sizes_B = torch.tensor([len(one) for one in whole])
    attention_mask = (torch.arange(ids_BN.shape[1]) < sizes_B[:, None]).long()
    log_p_BNV = (
        model(input_ids=ids_BN, attention_mask=attention_mask).logits / KNOBS.temperature
    ).log_softmax(-1)
    rows = []
    for b, (prompt, n) in enumerate(zip(prompts, lengths, strict=True)):
        here = log_p_BNV[b, len(prompt) - 1 : len(prompt) - 1 + n]
        rows.append(here.gather(1, of.tokens_BT[b, :n, None])[:, 0])
    return pad_sequence(rows, batch_first=True)


def gradient_of(loss: Tensor, model: LlamaForCausalLM) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def expected(of: TokenBatch, learned: Learned) -> Tensor:
    """At ratio 1 the loss of a token is -coefficient * advantage per unit of log-prob."""
    model = tiny_llama().double()
    push_BT = (learned.coefficient_BT * learned.advantage_BT).double()
    return gradient_of(-(push_BT * padded_logprobs(model, of)).sum(), model)


def taken(of: TokenBatch, **changes: Any) -> tuple[Tensor, Learned]:
    made, model = learner(**changes)
    before = weights(model)
    learned = made.update(of, KNOBS)
    return step_taken(before, model), learned


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("budget", [1, 25, 10_000])
@pytest.mark.parametrize("name", get_args(AllocationName))
def test_every_allocation(name: AllocationName, budget: int, shared: int) -> None:
    of = batch(shared)
    step, learned = taken(of, allocations=(name,), micro_batch_tokens=budget)
    assert step.norm() > 0
    assert distance(step, expected(of, learned)) < EXACT


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_every_objective_formed_in_the_forward_pass(objective: ObjectiveName) -> None:
    changes: dict[str, Any] = {"objective": objective, "dual_clip": None}
    step, learned = taken(batch(), **changes)
    assert distance(step, expected(batch(), learned)) < EXACT


def test_both_ways_to_the_gradient_agree() -> None:
    """A correction of weight 1 keeps the push from being known beforehand, and changes nothing."""
    made, _ = learner()
    logprob_BT = made.update(batch(), KNOBS).logprob_BT
    of = replace(batch(), rollout_logprob_BT=logprob_BT)
    known, first = taken(of)
    recomputed, second = taken(of, correction="truncate")
    assert distance(known, recomputed) < EXACT
    assert first.sums["loss"] == pytest.approx(second.sums["loss"], rel=1e-5)


@pytest.mark.parametrize("budget", [25, 10_000])
def test_many_bundles_are_one(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no padding allowed, segments of unlike size are attended to one by one."""
    whole, _ = taken(batch(12), micro_batch_tokens=budget)
    monkeypatch.setattr(segments, "SMALL", 0)
    monkeypatch.setattr(segments, "SLACK", 1.0)
    single, learned = taken(batch(12), micro_batch_tokens=budget)
    assert distance(single, whole) < EXACT
    assert distance(single, expected(batch(12), learned)) < EXACT


def biased(of: TokenBatch, learned: Learned) -> Tensor:
    """What precedes the predictor of the first learning token is read without gradient."""
    model = tiny_llama().double()
    loss = torch.zeros((), dtype=torch.float64)
    push_BT = (learned.coefficient_BT * learned.advantage_BT).double()
    for b, n in enumerate(of.mask_BT.sum(-1).tolist()):
        if not push_BT[b].any():
            continue
        first = int((learned.coefficient_BT[b] != 0).int().argmax())
        prompt = list(of.prompts[b // of.group_size].tokens)
        ids = torch.tensor([prompt + of.tokens_BT[b, :n].tolist()])
        cut = len(prompt) + first - 1
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(input_ids=ids[:, :cut], past_key_values=cache)
        logits = model(input_ids=ids[:, cut:-1], past_key_values=cache).logits[0]
        log_p = (logits / KNOBS.temperature).log_softmax(-1)
        chosen = log_p.gather(1, of.tokens_BT[b, first:n, None])[:, 0]
        loss = loss - (push_BT[b, first:n] * chosen).sum()
    return gradient_of(loss, model)


@pytest.mark.parametrize("shared", [0, 12])
@pytest.mark.parametrize("budget", [1, 25, 10_000])
@pytest.mark.parametrize("name", ["trajectory_percentile", "uniform"])
def test_a_detached_prefix_is_what_it_says(name: AllocationName, budget: int, shared: int) -> None:
    of = batch(shared)
    changes: dict[str, Any] = {"allocations": (name,), "micro_batch_tokens": budget}
    step, learned = taken(of, detach_prefix=True, **changes)
    assert distance(step, biased(of, learned)) < EXACT
    exact, same = taken(of, **changes)
    assert distance(step, exact) > 1e-2
    # What is measured does not change: the forward pass is the same.
    for field in ("logprob_BT", "entropy_BT", "coefficient_BT"):
        torch.testing.assert_close(getattr(learned, field), getattr(same, field))


def test_a_detached_prefix_recomputes_with_its_own_keys() -> None:
    """Activations recomputed in the backward pass, and a reference that ran over the same lines."""
    changes: dict[str, Any] = {"detach_prefix": True, "reference": True}
    plain, _ = taken(batch(12), **changes)
    made, model = learner(**changes)
    enable: Any = model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    before = weights(model)
    made.update(batch(12), KNOBS)
    assert distance(step_taken(before, model), plain) < EXACT


def stand_in(
    query: Tensor, key: Tensor, value: Tensor, at_q: Tensor, at_k: Tensor, *_: int, **how: Any
) -> Tensor:
    """Flash attention's variable-length form by its documentation: causal, last key aligned."""
    assert how["window_size"] == (-1, 0)
    assert how["enable_gqa"]
    rows = []
    for s in range(len(at_q) - 1):
        q = query[at_q[s] : at_q[s + 1]].transpose(0, 1)
        k, v = (x[at_k[s] : at_k[s + 1]].transpose(0, 1) for x in (key, value))
        shared = len(q) // len(k)
        k, v = (x.repeat_interleave(shared, 0) for x in (k, v))
        seen = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()
        score = (q @ k.transpose(1, 2) * how["scale"]).masked_fill(~seen, -torch.inf)
        rows.append((score.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("shared", [0, 12])
def test_the_variable_length_form_is_handed_the_same_segments(
    shared: int, detach: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel needs a GPU; what it is asked for does not."""
    changes: dict[str, Any] = {"micro_batch_tokens": 40, "detach_prefix": detach}
    padded, _ = taken(batch(shared), **changes)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", stand_in)
    made, model = learner(**changes)
    made.policy._attention = "varlen"
    before = weights(model)
    made.update(batch(shared), KNOBS)
    assert distance(step_taken(before, model), padded) < EXACT
