"""Packed rows, the chunked head and the exact KL against the plain, padded, full-logits form."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import random_batch, tiny_llama
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaForCausalLM

from tpcli.errors import UsageError
from tpcli.policy import attention, chunk, score, segments
from tpcli.policy.model import Policy
from tpcli.policy.pack import pack, plan_rows
from tpcli.policy.score import Reference, logprob_and_entropy, measure, push_logprobs
from tpcli.types import TokenBatch

TEMPERATURE = 1.3


def plain_scores(model: LlamaForCausalLM, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """One response at a time, full logits: the definition."""
    logprob_BT = torch.zeros(batch.mask_BT.shape, dtype=model.dtype)
    entropy_BT = torch.zeros(batch.mask_BT.shape, dtype=model.dtype)
    for b, length in enumerate(batch.mask_BT.sum(-1).tolist()):
        prompt = list(batch.prompts[b // batch.group_size].tokens)
        response = batch.tokens_BT[b, :length]
        ids = torch.cat([torch.tensor(prompt), response])[None]
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        log_p = logits.log_softmax(-1)
        logprob_BT[b, :length] = log_p.gather(1, response[:, None])[:, 0]
        entropy_BT[b, :length] = -(log_p.exp() * log_p).sum(-1)
    return logprob_BT, entropy_BT


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("share", "shared"), [(True, 0), (True, 9), (False, 9)])
@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_packed_gradient_equals_plain_gradient(
    tied: bool, share: bool, shared: int, budget: int
) -> None:
    """Same log-probs, entropies and parameter gradients in float64, whatever the micro-batches."""
    model = tiny_llama(tied=tied).double()
    policy = Policy(model, head_chunk=3)
    batch = random_batch([5, 1, 7, 2, 3, 6], [4, 9, 2], group_size=2, shared=shared)
    generator = torch.Generator().manual_seed(1)
    push_BT = torch.randn(batch.mask_BT.shape, generator=generator).double()
    chosen_BT = batch.mask_BT & (torch.rand(batch.mask_BT.shape, generator=generator) > 0.3)

    logprob_BT, entropy_BT = plain_scores(model, batch)
    ((logprob_BT + 0.3 * entropy_BT) * push_BT * chosen_BT).sum().backward()  # type: ignore[no-untyped-call]
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    seen = torch.zeros_like(batch.mask_BT)
    for rows in plan_rows(batch, range(6), budget=budget, share=share):
        packed = pack(rows, batch)
        here = packed.responses_b
        got = policy(packed, chosen_BT[here], TEMPERATURE, measured_bT=packed.mask_bT)
        ((got.logprob_bT + 0.3 * got.entropy_bT) * push_BT[here]).sum().backward()
        scores = got.scores
        torch.testing.assert_close(scores.logprob_bT, logprob_BT[here].detach())
        torch.testing.assert_close(scores.entropy_bT, entropy_BT[here].detach())
        assert not seen[here].any()
        seen[here] = True
    assert seen.all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        # RMSNorm computes in float32 inside transformers: that bounds the agreement.
        gap = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert gap < 1e-6, name


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=6, max_size=6),
    budget=st.integers(1, 60),
    responses=st.lists(st.booleans(), min_size=6, max_size=6),
    shared=st.sampled_from([0, 9]),
)
def test_rows_hold_every_response_once_within_budget(
    lengths: list[int], budget: int, responses: list[bool], shared: int
) -> None:
    batch = random_batch(lengths, [3, 5], group_size=3, shared=shared)
    wanted = [i for i, yes in enumerate(responses) if yes]
    batches = plan_rows(batch, wanted, budget=budget)
    found = sorted(
        i for rows in batches for row in rows for _, every in row.branches for i in every
    )
    assert found == wanted
    for rows in batches:
        size = sum(row.tokens for row in rows)
        assert size <= budget or (len(rows) == 1 and len(rows[0].branches) == 1)


def test_worked_examples_stand_once_in_a_row() -> None:
    """Two prompts of 9 + 3 and 9 + 5 tokens, three responses of 4 each: 9 + 3 + 5 + 6 * 3."""
    batch = random_batch([4] * 6, [3, 5], group_size=3, shared=9)
    ((row,),) = plan_rows(batch, range(6), budget=100)
    assert (row.shared, row.tokens) == (9, 35)
    apart = random_batch([4] * 6, [3, 5], group_size=3)
    assert [r.tokens for rows in plan_rows(apart, range(6), budget=100) for r in rows] == [14, 12]


def blocks_of(rows: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk's logits are worked on so many rows at a time."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(chunk, "BLOCK_BYTES", {"cpu": 4 * vocabulary * rows})


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_chunked_head_against_autograd(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and both gradients, with entropy in the loss, chunks that do not divide K."""
    blocks_of(rows, 11, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    hidden_KD = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weight_VD = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    target_K = torch.randint(11, (7,), generator=generator)
    log_p = (hidden_KD @ weight_VD.T / 0.7).log_softmax(-1)
    plain = log_p.gather(1, target_K[:, None])[:, 0] - 2 * (log_p.exp() * log_p).sum(-1)
    expected = torch.autograd.grad(plain.square().sum(), [hidden_KD, weight_VD])
    for size in (1, 3, 5, 100):
        logprob_K, entropy_K = logprob_and_entropy(
            hidden_KD, weight_VD, target_K, temperature=0.7, chunk=size
        )
        got = torch.autograd.grad(
            (logprob_K + 2 * entropy_K).square().sum(), [hidden_KD, weight_VD]
        )
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_kl_is_the_sum_over_the_vocabulary(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks_of(rows, 11, monkeypatch)
    generator = torch.Generator().manual_seed(0)
    h, w, g, u = (torch.randn(n, 5, generator=generator) for n in (7, 11, 7, 11))
    target_K = torch.randint(11, (7,), generator=generator)
    p, q = (h @ w.T).softmax(-1), (g @ u.T).softmax(-1)
    logprob_K, entropy_K, kl_K, ref_K = measure(h, w, target_K, chunk=5, reference=Reference(g, u))
    torch.testing.assert_close(kl_K, (p * (p / q).log()).sum(-1))
    torch.testing.assert_close(entropy_K, -(p * p.log()).sum(-1))
    torch.testing.assert_close(logprob_K, p[range(7), target_K].log())
    torch.testing.assert_close(ref_K, q[range(7), target_K].log())
    same = measure(h, w, target_K, reference=Reference(h, w))[2]
    assert same.abs().max() < 1e-6


def test_a_head_with_soft_caps_is_refused() -> None:
    model = tiny_llama()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(UsageError, match="final_logit_softcapping"):
        Policy(model)


def test_gradient_checkpointing_recomputes_and_changes_nothing() -> None:
    """Each layer runs twice when learning, once when scoring, and the gradient is the same."""
    batch = random_batch([5, 3], [4], group_size=2)
    ((row,),) = plan_rows(batch, range(2), budget=100)
    packed = pack([row], batch)
    gradients, calls = [], []
    for recompute in (False, True):
        model = tiny_llama()
        if recompute:
            enable: Any = model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        policy, runs = Policy(model), [0]
        model.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, runs=runs: runs.__setitem__(0, runs[0] + 1)
        )
        policy(packed, packed.mask_bT).logprob_bT.sum().backward()
        calls.append(runs[0])
        with torch.no_grad():
            policy.hidden(packed)
        calls.append(runs[0])
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
        assert not model.training
    assert calls == [1, 2, 2, 3]
    torch.testing.assert_close(*gradients)


def test_sums_over_the_vocabulary_stay_in_single_precision_under_autocast() -> None:
    """Products in bfloat16, softmax and sums not: entropy and KL are not rounded to eight bits."""
    generator = torch.Generator().manual_seed(0)
    h, w, g, u = (torch.randn(n, 64, generator=generator) for n in (50, 700, 50, 700))
    target_K = torch.randint(700, (50,), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, entropy_K, kl_K, _ = measure(h, w, target_K, reference=Reference(g, u))
    half, other = ((x.bfloat16() @ y.bfloat16().T).float() for x, y in ((h, w), (g, u)))
    p, log_p, log_q = half.softmax(-1), half.log_softmax(-1), other.log_softmax(-1)
    torch.testing.assert_close(entropy_K, -(p * log_p).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kl_K, (p * (log_p - log_q)).sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("known", [True, False], ids=["pushed", "recomputed"])
@pytest.mark.parametrize("half", [True, False], ids=["autocast", "float32"])
def test_a_heads_gradient_is_added_to_what_is_there(known: bool, half: bool) -> None:
    """The same sum as when autograd adds it up; autograd gives the rest of a tied weight's."""
    found = []
    for into in (False, True):
        generator = torch.Generator().manual_seed(0)
        weight_VD = torch.randn(11, 5, generator=generator, requires_grad=True)
        weight_VD.grad = torch.ones(11, 5)
        target_K = torch.randint(11, (7,), generator=generator)
        push_k = torch.randn(7, generator=generator)
        for _ in range(2):
            hidden_KD = weight_VD[target_K] * 2
            more: Any = {"chunk": 3, "grad_into_VD": weight_VD.grad if into else None}
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                if known:
                    total, *_ = push_logprobs(hidden_KD, weight_VD, target_K, push_k, **more)
                else:
                    logprob_K, _ = logprob_and_entropy(hidden_KD, weight_VD, target_K, **more)
                    total = (logprob_K * push_k).sum()
            total.backward()  # type: ignore[no-untyped-call]
        found.append(weight_VD.grad)
    torch.testing.assert_close(*found)
    assert not torch.equal(found[0], torch.ones(11, 5))


@pytest.mark.skipif(not chunk._onednn(), reason="torch without oneDNN's operator")
def test_few_numbers_of_rows_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps a compiled kernel for each. The product is the same."""
    product, rows = torch.ops.mkldnn._linear_pointwise, set()

    def spy(left_xD: Tensor, *args: Any) -> Tensor:
        rows.add(len(left_xD))
        found: Tensor = product(left_xD, *args)
        return found

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spy)
    weight_VD = torch.randn(50, 24)
    for count in range(1, 70):
        left_cD = torch.randn(count, 24)
        torch.testing.assert_close(chunk._head_product(left_cD, weight_VD), left_cD @ weight_VD.T)
    assert rows == {32, 64, 96}


@pytest.mark.parametrize("size", [32, 10_000])
@pytest.mark.parametrize("referred", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["pushed", "recomputed"])
def test_a_chunks_logits_exist_once(
    known: bool, referred: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those of the reference, and two tensors of a block; however many chunks there are."""
    tokens, vocabulary = 96, 5_000
    blocks_of(4, vocabulary, monkeypatch)
    weight_VD = torch.randn(vocabulary, 8)
    hidden_KD = torch.randn(tokens, 8, requires_grad=True)
    target_K = torch.arange(tokens)
    reference = Reference(torch.randn(tokens, 8), torch.randn(vocabulary, 8)) if referred else None
    more: Any = {"chunk": size, "grad_into_VD": torch.zeros_like(weight_VD)}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        if known:
            push_K = torch.ones(tokens)
            total, *_ = push_logprobs(
                hidden_KD, weight_VD, target_K, push_K, reference=reference, **more
            )
        else:
            logprob_K, entropy_K = logprob_and_entropy(hidden_KD, weight_VD, target_K, **more)
            total = (logprob_K + entropy_K).sum()
            measure(hidden_KD, weight_VD, target_K, chunk=size, reference=reference)
        total.backward()  # type: ignore[no-untyped-call]
    results: Any = seen.profiler
    held = most = 0
    for event in results.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    size = min(size, tokens)
    wanted = (2 if referred else 1) + 2 * 4 / size
    assert wanted - 0.2 < most / (size * vocabulary * 4) < wanted + 0.1


@pytest.mark.parametrize(
    ("vocabulary", "device", "tokens"),
    [
        (1_000, "cpu", 1_024),
        (49_152, "cpu", 128),
        (150_000, "cpu", 32),
        (1_000_000, "cpu", 32),
        (151_936, "cuda", 416),
    ],
)
def test_the_larger_the_vocabulary_the_fewer_tokens_at_once(
    vocabulary: int, device: str, tokens: int
) -> None:
    assert chunk.chunk_for(vocabulary, device) == tokens


@pytest.mark.parametrize(("said", "tokens"), [(None, 64), (3, 3)])
def test_how_many_tokens_at_once_can_be_said(
    said: int | None, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk, "CHUNK_BYTES", {"cpu": 4 * 61 * 64})
    sizes = []

    def spans(total: int, size: int) -> list[slice]:
        sizes.append(size)
        return chunk.spans(total, size)

    monkeypatch.setattr(score, "spans", spans)
    policy, batch = Policy(tiny_llama(), head_chunk=said), random_batch([5, 3], [4], group_size=2)
    packed = pack(plan_rows(batch, range(2), budget=100)[0], batch)
    ones_bT = torch.ones(packed.mask_bT.shape)
    for push_bT in (None, ones_bT):
        policy(packed, packed.mask_bT, push_bT=push_bT, measured_bT=packed.mask_bT)
    assert set(sizes) == {tokens}
    assert len(sizes) == 3  # learned from, measured, and both at once


def test_a_gradient_that_was_added_already_cannot_be_scaled() -> None:
    weight_VD, hidden_KD = torch.randn(11, 5), torch.randn(7, 5, requires_grad=True)
    sum_VD = torch.zeros(11, 5)
    total, *_ = push_logprobs(
        hidden_KD, weight_VD, torch.arange(7), torch.ones(7), grad_into_VD=sum_VD
    )
    with pytest.raises(ValueError, match="scale push_k"):
        (total * 2).backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("known", [True, False], ids=["pushed", "recomputed"])
def test_no_second_gradient_of_the_vocabularys_size(tied: bool, known: bool) -> None:
    """Autograd is handed nothing for the head, and rows for the embedding."""
    model: Any = tiny_llama(tied=tied)
    handed = gradients_handed_over(model, known=known, passes=2)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert len(handed["embedding"]) == 2
    assert all(grad.is_sparse for grad in handed["embedding"])
    if not tied:
        assert handed["head"] == [None, None]
    for weight in (embedding.weight, head.weight):
        assert weight.grad.layout == torch.strided
        assert weight.grad.count_nonzero() > 0
    assert not embedding.sparse


def test_half_precision_weights_are_left_to_autograd() -> None:
    """They would lose what many chunks add."""
    model: Any = tiny_llama().to(torch.bfloat16)  # type: ignore[arg-type]
    (grad,) = gradients_handed_over(model, known=True, passes=1)["embedding"]
    assert not grad.is_sparse
    assert torch.equal(grad, model.get_input_embeddings().weight.grad)


def gradients_handed_over(model: Any, *, known: bool, passes: int) -> dict[str, list[Any]]:
    """What autograd is given for embedding and head, pass by pass."""
    policy, batch = Policy(model), random_batch([5, 3], [4], group_size=2)
    ((row,),) = plan_rows(batch, range(2), budget=100)
    packed = pack([row], batch)
    handed: dict[str, list[Any]] = {"embedding": [], "head": []}
    model.get_input_embeddings().weight.register_hook(handed["embedding"].append)
    if not model.config.tie_word_embeddings:
        model.get_output_embeddings().weight.register_hook(handed["head"].append)
    push_bT = torch.ones_like(packed.mask_bT).float() if known else None
    for _ in range(passes):
        found = policy(packed, packed.mask_bT, push_bT=push_bT)
        total = found.surrogate if known else found.logprob_bT.sum()
        total.backward()
    return handed


def test_an_error_in_the_body_leaves_the_embedding_as_it_was() -> None:
    model: Any = tiny_llama()
    policy, batch = Policy(model), random_batch([5, 3], [4], group_size=2)
    ((row,),) = plan_rows(batch, range(2), budget=100)
    packed = pack([row], batch)

    def fail(*_: Any) -> None:
        assert model.get_input_embeddings().sparse
        raise MemoryError

    model.base_model.norm.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        policy(packed, packed.mask_bT)
    assert not model.get_input_embeddings().sparse


def test_a_frozen_tied_head_gets_no_gradient() -> None:
    model: Any = tiny_llama(tied=True)
    policy, batch = Policy(model), random_batch([5, 3], [4], group_size=2)
    policy.head_VD.requires_grad_(False)
    ((row,),) = plan_rows(batch, range(2), budget=100)
    packed = pack([row], batch)
    found = policy(packed, packed.mask_bT, push_bT=torch.ones_like(packed.mask_bT).float())
    found.surrogate.backward()
    assert policy.head_VD.grad is None
    assert model.base_model.norm.weight.grad.count_nonzero() > 0


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("small", "slack", "bundles"), [(0, 1.0, 7), (150, 1.0, 4), (segments.SMALL, 1.3, 1)]
)
def test_all_forms_of_attention_give_the_same(
    kv_heads: int,
    small: int,
    slack: float,
    bundles: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A CPU's, and that of elsewhere with and without computing it again in the backward pass.

    Query heads are folded nowhere, in some bundles of a line, and in all.
    """
    monkeypatch.setattr(segments, "SMALL", small)
    monkeypatch.setattr(segments, "SLACK", slack)
    batch = random_batch([5, 3, 9, 0, 7, 2], [4, 6], group_size=3)
    gradients, calls = [], []
    for cpu, cheap in ((True, 0), (False, 0), (False, 10**6)):
        monkeypatch.setattr(attention, "_has_cpu_kernels", lambda *_, cpu=cpu: cpu)
        monkeypatch.setattr(attention, "CHEAP", cheap)
        name = "_flash" if cpu else "_attend_anywhere"
        runs: list[int] = []
        kernel = getattr(attention, name)
        model = tiny_llama(kv_heads=kv_heads).double()
        policy = Policy(model)
        packed = pack(plan_rows(batch, range(6), budget=100)[0], batch)
        with monkeypatch.context() as patch:
            patch.setattr(
                attention,
                name,
                lambda *a, runs=runs, f=kernel, **k: runs.append(1) or f(*a, **k),
            )
            policy(packed, packed.mask_bT).logprob_bT.sum().backward()
        calls.append(len(runs))
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    own, plain, again = calls
    assert again == 2 * plain > 0
    assert own == plain * bundles == plain * len(packed.lines[0].layout._bundles)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[1], gradients[2], rtol=0, atol=0)


@pytest.mark.parametrize("cpu", [True, False])
def test_padding_without_context_changes_nothing(
    cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments of unequal length in one plain causal call, against one call each."""
    monkeypatch.setattr(attention, "_has_cpu_kernels", lambda *_: cpu)
    generator = torch.Generator().manual_seed(0)
    lines = [torch.randn(9, h, 8, generator=generator).double() for h in (4, 2, 2)]
    found = []
    for lengths in ([5, 1, 3], [5], [1], [3]):
        parts = torch.tensor([0, *lengths]).cumsum(0).tolist()
        at = {5: 0, 1: 5, 3: 6}[lengths[0]]
        layout = attention.Layout(
            [segments.Segment(start, n) for start, n in zip(parts, lengths, strict=False)]
        )
        assert len(layout._bundles) == 1
        assert layout._bundles[0].bias_S1qk is None
        here = [x[at : at + sum(lengths)].clone().requires_grad_() for x in lines]
        out = layout.padded(here[0], here[1], here[2], 0.5)
        found.append((out, *torch.autograd.grad(out.square().sum(), here)))
    for together, apart in zip(found[0], zip(*found[1:], strict=True), strict=True):
        torch.testing.assert_close(together, torch.cat(apart), rtol=1e-12, atol=1e-12)


def test_no_padded_query_sees_nothing() -> None:
    """Its softmax would be undefined, and so would every gradient be."""
    line = [segments.Segment(0, 4), segments.Segment(4, 1, ((0, 4),)), segments.Segment(5, 3)]
    (bundle,) = segments.bundles_of([*line, segments.Segment(8, 6, ((0, 2), (5, 3)))], 0)
    assert bundle.padding_Sq.any()
    assert bundle.bias_S1qk is not None
    assert bool((bundle.bias_S1qk == 0).any(-1).all())


def test_values_narrower_than_queries_are_attended_to_elsewhere() -> None:
    wide, narrow = torch.randn(5, 2, 8), torch.randn(5, 2, 4)
    assert attention._has_cpu_kernels(wide, wide)
    assert not attention._has_cpu_kernels(wide, narrow)
    layout = attention.Layout([segments.Segment(0, 5)])
    found = layout.padded(wide, wide, narrow, 0.5)
    scores_HMM = torch.einsum("mhe,nhe->hmn", wide, wide) * 0.5
    scores_HMM += torch.full((5, 5), -torch.inf).triu(1)
    expected = torch.einsum("hmn,nhe->mhe", scores_HMM.softmax(-1), narrow)
    torch.testing.assert_close(found, expected)


def attended(
    lies: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    """Attention over a prompt and a response, and the gradients of queries, keys and values."""
    layout = attention.Layout([segments.Segment(0, 3), segments.Segment(3, 2, ((0, 3),))])
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        lies(torch.randn(5, heads, 8, generator=generator).to(dtype)).requires_grad_()
        for heads in (4, 2, 2)
    )
    out = layout.padded(query, key, value, 0.5)
    return out, *torch.autograd.grad(out.square().sum(), (query, key, value))


def as_it_is(x: Tensor) -> Tensor:
    return x


def head_by_head(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def test_the_gradient_does_not_ask_how_keys_lie_in_memory() -> None:
    """Some models hand them over head by head."""
    torch.testing.assert_close(attended(as_it_is), attended(head_by_head))


def test_attention_in_half_precision_is_near() -> None:
    half = attended(as_it_is, torch.bfloat16)
    assert {x.dtype for x in half} == {torch.bfloat16}
    torch.testing.assert_close(
        tuple(x.float() for x in half), attended(as_it_is), rtol=0.1, atol=0.05
    )
