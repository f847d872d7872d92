"""Every setting of the update is read, and means what it says: against plain forward passes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from tests.tiny import VOCABULARY, random_batch, tiny_llama
from tests.train.parts import (
    KNOBS,
    distance,
    learner,
    loud_batch,
    step_batch,
    step_taken,
    weights,
)
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from tpcli.credit.allocation import random_tokens
from tpcli.names import CorrectionLevel, KlName
from tpcli.train.method import Knobs, Learned
from tpcli.types import TokenBatch

START = KNOBS.magnitudes["trajectory_percentile"]


def log_p(model: LlamaForCausalLM, batch: TokenBatch, b: int) -> Tensor:
    """Full log-probs [L, V] at the places of response b, that response alone."""
    response = batch.tokens_BT[b][batch.mask_BT[b]]
    prompt = list(batch.prompts[b // batch.group_size].tokens)
    ids = torch.cat([torch.tensor(prompt), response])[None]
    logits_LV: Tensor = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return (logits_LV / KNOBS.temperature).log_softmax(-1)


def scored(model: LlamaForCausalLM, batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of response tokens, [B, T], with gradient."""
    logprobs, entropies = [], []
    for b, mask_T in enumerate(batch.mask_BT):
        log_p_LV = log_p(model, batch, b)
        logprobs.append(log_p_LV.gather(1, batch.tokens_BT[b][mask_T][:, None])[:, 0])
        entropies.append(-(log_p_LV.exp() * log_p_LV).sum(-1))
    return pad_sequence(logprobs, batch_first=True), pad_sequence(entropies, batch_first=True)


def suffix(batch: TokenBatch) -> Tensor:
    """Bool [B, T], what trajectory_percentile credits."""
    credited_BT = torch.zeros_like(batch.mask_BT)
    for b, length in enumerate(batch.mask_BT.sum(-1).tolist()):
        credited_BT[b, min(int(length * START), length - 1) : length] = True
    return credited_BT


def gradient(loss: Tensor, model: LlamaForCausalLM) -> Tensor:
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


def updated(
    batch: TokenBatch, knobs: Knobs = KNOBS, *, reference: bool = False, **changes: Any
) -> tuple[Tensor, Learned, LlamaForCausalLM]:
    """The step taken, what was noted on the way, and the model after it."""
    made, model = learner(reference=reference, **changes)
    before = weights(model)
    learned = made.update(batch, knobs)
    return step_taken(before, model), learned, model


def quiet(batch: TokenBatch) -> TokenBatch:
    """No advantage anywhere: what moves the weights is a penalty."""
    return replace(batch, advantage_B=torch.zeros(len(batch.mask_BT)))


KL_BY_HAND: dict[KlName, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": lambda p, q: p - q,
    "k2": lambda p, q: (p - q) ** 2 / 2,
    "k3": lambda p, q: (q - p).exp() - 1 - (q - p),
}


@pytest.mark.parametrize("name", get_args(KlName))
def test_the_kl_penalty_is_descended(name: KlName) -> None:
    """On credited tokens alone, of all responses."""
    batch, plain = quiet(step_batch()), tiny_llama()
    step, learned, _ = updated(
        batch, replace(KNOBS, kl_coef=0.5), reference=True, kl_estimator=name
    )
    ref_BT = scored(tiny_llama(1), batch)[0].detach()
    kl = KL_BY_HAND[name](scored(plain, batch)[0], ref_BT)[suffix(batch)].mean()
    assert distance(step, gradient(0.5 * kl, plain)) < 1e-4
    assert learned.sums["kl_loss"] == pytest.approx(kl.item(), rel=1e-4)
    assert learned.sums["loss"] == pytest.approx(0.5 * kl.item(), rel=1e-4)


def test_the_k2_step_is_that_of_the_whole_kl_and_lowers_it() -> None:
    """Every token of the vocabulary once, weighed by its probability: no sampling is left."""
    every = random_batch([1] * VOCABULARY, [4], group_size=VOCABULARY)
    every = quiet(replace(every, tokens_BT=torch.arange(VOCABULARY)[:, None]))

    def kl(model: LlamaForCausalLM) -> Tensor:
        log_p_V, log_q_V = log_p(model, every, 0)[0], log_p(tiny_llama(1), every, 0)[0].detach()
        return (log_p_V.exp() * (log_p_V - log_q_V)).sum()

    share = 0.01
    step, learned, model = updated(
        every,
        replace(KNOBS, kl_coef=share * VOCABULARY, magnitudes={"low_probability": 1.0}),
        reference=True,
        kl_estimator="k2",
        allocations=("low_probability",),
    )
    plain = tiny_llama()
    before = kl(plain)
    assert distance(step, gradient(share * before, plain)) < 1e-4
    assert kl(model).item() < 0.9 * before.item()
    torch.testing.assert_close(learned.kl_BT, torch.full((VOCABULARY, 1), before.item()))


def test_the_entropy_bonus_is_ascended_and_raises_the_entropy() -> None:
    batch, plain = quiet(step_batch()), tiny_llama()
    step, learned, model = updated(batch, replace(KNOBS, entropy_coef=0.5))
    entropy = scored(plain, batch)[1][suffix(batch)].mean()
    assert distance(step, gradient(-0.5 * entropy, plain)) < 1e-4
    assert learned.sums["entropy_bonus"] == pytest.approx(entropy.item(), rel=1e-4)
    assert learned.sums["loss"] == pytest.approx(-0.5 * entropy.item(), rel=1e-4)
    assert scored(model, batch)[1][suffix(batch)].mean().item() > entropy.item() + 0.01


CORRECTION_BY_HAND: dict[CorrectionLevel, Callable[[Tensor], Tensor]] = {
    "token": lambda log_ratio_L: log_ratio_L.exp(),
    "sequence": lambda log_ratio_L: log_ratio_L.sum().exp().expand_as(log_ratio_L),
    "geometric": lambda log_ratio_L: log_ratio_L.mean().exp().expand_as(log_ratio_L),
}


def sampled_elsewhere(batch: TokenBatch) -> TokenBatch:
    """The sampler's log-probs are the policy's, up to 0.4 more or less."""
    old_BT = scored(tiny_llama(), batch)[0].detach()
    noise_BT = 0.8 * torch.rand(old_BT.shape, generator=torch.Generator().manual_seed(0)) - 0.4
    return replace(batch, rollout_logprob_BT=torch.where(batch.mask_BT, old_BT + noise_BT, 0.0))


@pytest.mark.parametrize("level", get_args(CorrectionLevel))
def test_a_correction_is_of_the_whole_response_where_only_its_suffix_learns(
    level: CorrectionLevel,
) -> None:
    batch, plain = sampled_elsewhere(loud_batch()), tiny_llama()
    logprob_BT = scored(plain, batch)[0]
    log_ratio_BT = logprob_BT.detach() - batch.rollout_logprob_BT
    weight_BT = pad_sequence(
        [
            CORRECTION_BY_HAND[level](log_ratio_T[mask_T])
            for log_ratio_T, mask_T in zip(log_ratio_BT, batch.mask_BT, strict=True)
        ],
        batch_first=True,
    )
    step, learned, _ = updated(
        batch,
        replace(KNOBS, correction_high=100.0),
        correction="truncate",
        correction_level=level,
    )
    credited_BT = suffix(batch)
    loss_BT = -batch.advantage_B[:, None] * weight_BT * logprob_BT
    assert distance(step, gradient(loss_BT[credited_BT].mean(), plain)) < 1e-4
    expected = float(weight_BT[credited_BT].sum())
    assert learned.sums["correction"] == pytest.approx(expected, rel=1e-5)  # float32
    assert learned.sums["corrected"] == 0


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("mask", 0.9, 1.2), ("mask", 0.0, 1.1), ("truncate", 0.0, 0.95)]
)
def test_both_bounds_of_a_correction_are_read(kind: str, low: float, high: float) -> None:
    batch = sampled_elsewhere(loud_batch())
    _, learned, _ = updated(
        batch, replace(KNOBS, correction_low=low, correction_high=high), correction=kind
    )
    ratio_BT = (scored(tiny_llama(), batch)[0].detach() - batch.rollout_logprob_BT).exp()
    ratios = ratio_BT[suffix(batch)].tolist()
    outside = [w for w in ratios if not low <= w <= high]
    kept = sum(w for w in ratios if low <= w <= high)
    assert 0 < len(outside) < len(ratios)
    assert learned.sums["corrected"] == len(outside)
    expected = kept + (len(outside) * high if kind == "truncate" else 0.0)
    assert learned.sums["correction"] == pytest.approx(expected, rel=1e-4)


def test_each_bound_of_the_ratio_holds_on_its_own_side() -> None:
    """The second half learns from a policy that the first has moved; its ratios, by hand."""
    batch, knobs = loud_batch(), replace(KNOBS, lr=2.0, clip_low=0.05, clip_high=0.4)
    half = replace(
        batch,
        prompts=batch.prompts[:2],
        tokens_BT=batch.tokens_BT[:4],
        mask_BT=batch.mask_BT[:4],
        rollout_logprob_BT=batch.rollout_logprob_BT[:4],
        reward_B=batch.reward_B[:4],
        advantage_B=batch.advantage_B[:4],
        seeds=batch.seeds[:4],
    )
    _, _, moved = updated(half, knobs)
    log_ratio_BT = (scored(moved, batch)[0] - scored(tiny_llama(), batch)[0]).detach()[4:]
    r, a = log_ratio_BT.exp()[suffix(batch)[4:]], batch.advantage_B[4:, None]
    a = a.expand_as(log_ratio_BT)[suffix(batch)[4:]]
    expected = {
        "clip_low": int(((a < 0) & (r < 0.95)).sum()),
        "clip_high": int(((a > 0) & (r > 1.4)).sum()),
        "clip_dual": int(((a < 0) & (r > 1.5)).sum()),
    }
    _, learned, _ = updated(batch, knobs, updates=2, dual_clip=1.5)
    assert {name: learned.sums[name] for name in expected} == expected
    assert min(expected.values()) > 0
    assert len(set(expected.values())) > 1


def test_the_gates_of_sapo_have_a_steepness_a_sign() -> None:
    """At ratio 1 a token's loss is -2 A / tau."""
    batch = loud_batch()
    knobs = replace(KNOBS, tau_positive=0.5, tau_negative=4.0)
    _, learned, _ = updated(batch, knobs, objective="sapo", dual_clip=None)
    tokens = suffix(batch).sum(-1).tolist()
    losses = [
        n * -2 * a / (0.5 if a > 0 else 4.0)
        for n, a in zip(tokens, batch.advantage_B.tolist(), strict=True)
    ]
    assert min(batch.advantage_B) < 0 < max(batch.advantage_B)
    assert learned.sums["loss"] == pytest.approx(sum(losses) / sum(tokens), rel=1e-4)


@pytest.mark.parametrize(("alpha", "kappa"), [(0.01, 2.0), (0.4, 50.0), (0.1, 10.0)])
def test_the_constants_of_the_entropy_advantage_are_read(alpha: float, kappa: float) -> None:
    """A + m * min(alpha * H, |A| / kappa)."""
    batch = loud_batch()
    knobs = replace(KNOBS, alpha=alpha, kappa=kappa, magnitudes={"entropy_advantage": 0.7})
    _, learned, _ = updated(batch, knobs, allocations=("entropy_advantage",))
    entropy_BT = scored(tiny_llama(), batch)[1].detach()
    a_B1 = batch.advantage_B[:, None]
    expected_BT = a_B1 + 0.7 * torch.minimum(alpha * entropy_BT, a_B1.abs() / kappa)
    mask_BT = batch.mask_BT
    torch.testing.assert_close(
        learned.advantage_BT[mask_BT], expected_BT[mask_BT], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("focus", "places"),
    [((0.0, 0.0), [0, 1, 2]), ((1.0, 1.0), [2, 3, 4]), ((0.5, 0.5), [1, 2, 3])],
)
def test_the_focus_says_which_stretch_learns(focus: tuple[float, float], places: list[int]) -> None:
    """Of five tokens two are context at .4: before, behind, or one on either side."""
    _, learned, _ = updated(step_batch(), focus=focus)
    assert learned.weight_BT[0].nonzero().flatten().tolist() == places


def test_what_is_drawn_depends_on_each_response_and_its_seed() -> None:
    """And has the area of the focus, not of another."""
    batch = replace(loud_batch(), seeds=[11, 12, 13, 14, 15, 16, 17, 18])
    for focus in ((1.0, 1.0), (0.5, 0.5)):
        _, learned, _ = updated(batch, allocations=("random_tokens",), focus=focus)
        expected_BT = random_tokens(batch.mask_BT, magnitude=0.4, seeds=batch.seeds, focus=focus)
        assert torch.equal(learned.weight_BT, expected_BT)
        alike_BT = random_tokens(batch.mask_BT, magnitude=0.4, seeds=[0] * 8, focus=focus)
        assert not torch.equal(learned.weight_BT, alike_BT)


@pytest.mark.parametrize("updates", [1, 2])
def test_the_gradient_scale_is_all_tokens_over_the_credited(updates: int) -> None:
    """Under token-mean; of two updates each adds its own."""
    batch = step_batch()
    _, learned, _ = updated(batch, updates=updates)
    share = 8 // updates
    scales = [
        int(batch.mask_BT[at : at + share].sum()) / int(suffix(batch)[at : at + share].sum())
        for at in range(0, 8, share)
    ]
    assert learned.sums["gradient_scale"] == pytest.approx(sum(scales))
