"""Gradients by trajectory percentile: against autograd of the plain loss, and hand-made ones."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import random_batch, tiny_llama
from torch import Tensor

from tpcli.analysis import gradients
from tpcli.analysis.gradients import BinGradients, Interference
from tpcli.errors import UsageError
from tpcli.policy.model import Policy
from tpcli.types import TokenBatch

TEMPERATURE = 1.3
LENGTHS, PROMPTS = [7, 1, 12, 4, 9], [3, 5, 2, 4, 3]


def batch() -> TokenBatch:
    return random_batch(LENGTHS, PROMPTS, group_size=1)


def measured(of: TokenBatch, *, bins: int = 4, budget: int = 20, tied: bool = True) -> BinGradients:
    return gradients.bin_gradients(
        Policy(tiny_llama(tied=tied)),
        of,
        bins=bins,
        temperature=TEMPERATURE,
        budget=budget,
    )


def logprobs_of(model: Any, of: TokenBatch, b: int) -> Tensor:
    """Log-probs of one response's tokens, from the plain forward pass of prompt and response."""
    prompt, length = list(of.prompts[b].tokens), int(of.mask_BT[b].sum())
    tokens = of.tokens_BT[b, :length].tolist()
    logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0] / TEMPERATURE
    logprob = torch.log_softmax(logits, -1)
    return torch.stack([logprob[len(prompt) - 1 + t, token] for t, token in enumerate(tokens)])


def plain(of: TokenBatch, bin_of: dict[tuple[int, int], int], q: int, *, tied: bool) -> Tensor:
    """Gradient of -(1/N) sum A log pi over the tokens of bin ``q``, one response at a time."""
    model = tiny_llama(tied=tied)
    total = torch.zeros(())
    for b in range(len(of.mask_BT)):
        for t, logprob in enumerate(logprobs_of(model, of, b)):
            if bin_of[b, t] == q:
                total = total - of.advantage_B[b] * logprob / int(of.mask_BT.sum())
    if not total.requires_grad:
        return torch.zeros(sum(p.numel() for p in model.parameters()))
    grads = torch.autograd.grad(total, list(model.parameters()), materialize_grads=True)
    return torch.cat([grad.flatten() for grad in grads])


@pytest.mark.parametrize("tied", [True, False])
def test_a_bin_has_the_gradient_of_the_plain_loss_on_its_tokens(tied: bool) -> None:
    """Token t of L lies in bin int(4 (t + 1/2) / L): of one token alone, in bin 2."""
    bin_of = {
        (b, t): int(4 * (t + 0.5) / length)
        for b, length in enumerate(LENGTHS)
        for t in range(length)
    }
    found = measured(batch(), tied=tied)
    assert found.tokens_Q == [sum(v == q for v in bin_of.values()) for q in range(4)]
    for q in range(4):
        expected_W = plain(batch(), bin_of, q, tied=tied)
        torch.testing.assert_close(
            found.gradient_HQW[:, q].sum(0), expected_W, rtol=2e-4, atol=2e-6
        )


def test_bins_add_up_to_the_whole_gradient() -> None:
    everything = {(b, t): 0 for b, length in enumerate(LENGTHS) for t in range(length)}
    whole_W = plain(batch(), everything, 0, tied=True)
    for bins in (1, 3, 20):
        sum_W = measured(batch(), bins=bins).gradient_HQW.sum((0, 1))
        torch.testing.assert_close(sum_W, whole_W, rtol=2e-4, atol=2e-6)


def test_every_other_response_belongs_to_the_other_half() -> None:
    """A half is what remains when the other half's advantages are 0."""
    of = batch()
    whole_HQW = measured(of).gradient_HQW
    for half in (0, 1):
        mine_B = torch.tensor([b % 2 == half for b in range(5)])
        alone = measured(replace(of, advantage_B=of.advantage_B * mine_B)).gradient_HQW
        torch.testing.assert_close(alone[half], whole_HQW[half], rtol=0, atol=0)
        assert not alone[1 - half].any()


@settings(max_examples=5, deadline=None)
@given(budget=st.integers(1, 80))
def test_the_cut_into_micro_batches_does_not_matter(budget: int) -> None:
    torch.testing.assert_close(
        measured(batch(), budget=budget).gradient_HQW,
        measured(batch(), budget=1000).gradient_HQW,
        rtol=1e-4,
        atol=1e-6,
    )


def test_twice_the_same_is_bit_for_bit_the_same() -> None:
    assert torch.equal(measured(batch()).gradient_HQW, measured(batch()).gradient_HQW)


def test_the_gap_is_0_for_the_policy_that_sampled() -> None:
    """Shifted by a half on one response of 7 tokens of 33, it is 3.5 / 33."""
    of, model = batch(), tiny_llama()
    with torch.no_grad():
        for b, length in enumerate(LENGTHS):
            of.rollout_logprob_BT[b, :length] = logprobs_of(model, of, b)
    assert measured(of).gap < 1e-5
    of.rollout_logprob_BT[0, :7] -= 0.5
    assert measured(of).gap == pytest.approx(3.5 / 33, abs=1e-5)


def test_progress_counts_responses() -> None:
    seen: list[tuple[int, int]] = []
    gradients.bin_gradients(
        Policy(tiny_llama()),
        batch(),
        bins=2,
        temperature=1.0,
        budget=1,
        report=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n, 5) for n in range(1, 6)]


def by_hand(first: list[list[float]], second: list[list[float]]) -> Interference:
    """Gradients of both halves, a row a bin."""
    gradient_HQW = torch.tensor([first, second])
    return gradients.compare(BinGradients(gradient_HQW, [2] * len(first), 0.25))


def test_orthogonal_and_opposed_gradients() -> None:
    """Bins (3, 0), (0, 4) and (-6, 0), each the same in both halves: doubled over all."""
    bins = [[3.0, 0.0], [0.0, 4.0], [-6.0, 0.0]]
    found = by_hand(bins, bins)
    assert found.norm == [6.0, 8.0, 12.0]
    assert found.whole == 10.0  # (6 - 12, 8)
    expected = [[1.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 1.0]]
    assert found.cosine == expected
    assert found.halves == expected
    assert (found.tokens, found.gap, found.bins) == ([2, 2, 2], 0.25, 3)


def test_halves_that_disagree_are_not_reliable() -> None:
    """Bin 0 is (1, 0) and then (0, 1): 45 degrees from bin 1, of which half a is (0, 1) too.

    Over all responses the bins are (1, 1) and (0, 3). Between halves: bin 0 with itself 0; with
    bin 1, the first half's is at 90 degrees and the second half's at 0, on average 1/2. Bin 1 is
    (0, 1) and (0, 2), so it agrees with itself.
    """
    found = by_hand([[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 2.0]])
    assert found.halves == [[0.0, 0.5], [0.5, 1.0]]
    assert found.cosine[0][1] == pytest.approx(math.sqrt(0.5))
    assert found.norm == pytest.approx([math.sqrt(2), 3.0])


def test_halves_that_cancel_leave_nothing_to_compare() -> None:
    found = by_hand([[1.0, 0.0], [1.0, 0.0]], [[-1.0, 0.0], [1.0, 0.0]])
    assert found.norm == [0.0, 2.0]
    assert found.cosine == [[None, None], [None, 1.0]]
    assert found.halves == [[-1.0, 0.0], [0.0, 1.0]]


def test_one_response_has_no_second_half() -> None:
    found = gradients.compare(measured(random_batch([8], [3], group_size=1), bins=2))
    assert found.halves == [[None, None], [None, None]]
    assert found.cosine[0][0] == pytest.approx(1.0)
    assert found.cosine[0][1] is not None


def test_a_bin_without_tokens_has_no_direction() -> None:
    """Two tokens stand at percentiles 1/4 and 3/4: bins 1 and 3 of 5."""
    found = gradients.compare(measured(random_batch([2], [3], group_size=1), bins=5))
    assert found.tokens == [0, 1, 0, 1, 0]
    assert [norm > 0 for norm in found.norm] == [False, True, False, True, False]
    assert found.cosine[0] == [None] * 5
    assert found.cosine[1][1] == pytest.approx(1.0)


def test_inner_products_keep_what_float32_would_lose() -> None:
    """An odd number above 2^24 is no float32; the sum is made of two pieces."""
    row_W = torch.ones(gradients.WEIGHTS_AT_ONCE + 2)
    row_W[0] = 4096.0
    product_KK = gradients.gram(torch.stack([row_W, 2 * row_W]))
    whole = 2.0**24 + gradients.WEIGHTS_AT_ONCE + 1
    assert product_KK.tolist() == [[whole, 2 * whole], [2 * whole, 4 * whole]]


def test_what_does_not_fit_is_refused_with_what_does() -> None:
    """A million weights: 21 gradients of 4 MB for ten bins, 13 for six."""
    assert gradients.bytes_needed(1_000_000, 10) == 84_000_000
    gradients.check_memory(1_000_000, 10, 84_000_000)
    with pytest.raises(UsageError) as caught:
        gradients.check_memory(1_000_000, 10, 55_999_999)
    assert caught.value.hint == "compare fewer: --bins 6"
    with pytest.raises(UsageError) as caught:
        gradients.check_memory(1_000_000_000, 10, 2**30)
    assert "even two bins take 18.6 GiB" in caught.value.hint


def test_stored_responses_become_a_batch() -> None:
    stored = [
        {"ids": [4, 5, 6], "prompt_ids": [9, 8], "logprob": [-1.0, -2.0, -3.0], "reward": 1.0},
        {"ids": [7], "prompt_ids": [3], "logprob": [-0.5], "reward": 0.0},
    ]
    more = [{"group_advantage": 1.5}, {"group_advantage": -0.5}]
    text = {"question": "q", "answer": "a"}
    of = gradients.to_batch([one | two | text for one, two in zip(stored, more, strict=True)])
    assert [prompt.tokens for prompt in of.prompts] == [(9, 8), (3,)]
    assert of.tokens_BT.tolist() == [[4, 5, 6], [7, 0, 0]]
    assert of.mask_BT.tolist() == [[True, True, True], [True, False, False]]
    assert of.rollout_logprob_BT.tolist() == [[-1.0, -2.0, -3.0], [-0.5, 0.0, 0.0]]
    assert of.advantage_B.tolist() == [1.5, -0.5]
    assert of.group_size == 1


def test_the_figure_shows_norms_and_both_matrices() -> None:
    bins = [[3.0, 0.0], [0.0, 4.0], [-6.0, 0.0]]
    figure = gradients.draw(by_hand(bins, [[0.0, 0.0], *bins[1:]]), "a run")
    bars, cosine, halves = figure.axes[:3]
    heights = [bar.get_window_extent().height for bar in bars.patches]
    assert [height / heights[0] for height in heights] == pytest.approx([1.0, 8 / 3, 4.0])
    (image,) = cosine.images
    assert image.get_clim() == (-1.0, 1.0)
    np.testing.assert_array_equal(np.asarray(image.get_array())[0], [1.0, 0.0, -1.0])
    texts = [text.get_text() for text in halves.texts]
    assert texts == ["–", "–", "–", "–", "1.00", "0.00", "–", "0.00", "1.00"]
