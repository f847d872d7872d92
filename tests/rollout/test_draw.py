"""One uniform number draws one token: against the definitions and transformers' own warpers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny import VOCABULARY
from transformers import TopKLogitsWarper, TopPLogitsWarper

from tpcli.rollout.draw import inverse_cdf, nucleus


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


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_logprobs_are_exact_over_a_large_vocabulary(temperature: float, top_p: float) -> None:
    """Their normaliser is the last of 50,000 running sums; float64 says how far it is off."""
    logits_AV = 3 * torch.randn(6, 50_000, generator=torch.Generator().manual_seed(0)) + 40
    before_AV = logits_AV.clone()
    uniform_A = torch.linspace(0, 0.99, 6)
    token_A, logprob_A = inverse_cdf(logits_AV, uniform_A, temperature, top_p=top_p)
    log_p_AV = (logits_AV.double() / (temperature or 1.0)).log_softmax(-1)
    if top_p < 1 and temperature:
        log_p_AV = nucleus(log_p_AV, top_p)
    expected_A = log_p_AV.gather(1, token_A[:, None])[:, 0]
    torch.testing.assert_close(logprob_A.double(), expected_A, rtol=0, atol=2e-5)
    assert torch.equal(logits_AV, before_AV)
