"""Allocations by name, and one after the other."""

import itertools
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tpcli.credit.allocation import (
    IS_RANDOM,
    NEEDS_ENTROPY,
    NEEDS_LOGPROB,
    NEEDS_SCORING,
    allocate,
    entropy_advantage,
    focus_weight,
    forking_weight,
    low_probability,
    random_tokens,
    shuffled,
    suffix_weight,
)
from tpcli.names import AllocationName

NAMES: tuple[AllocationName, ...] = get_args(AllocationName)
LENGTHS = [12, 1, 7, 0]


def inputs(magnitude: float = 0.5, width: int = 12) -> dict[str, Any]:
    """Everything any allocation may ask for, of responses of ``LENGTHS`` tokens."""
    generator = torch.Generator().manual_seed(0)
    entropy_BT, probability_BT = torch.rand(2, len(LENGTHS), 12, generator=generator)
    pad = (0, width - 12)
    return {
        "magnitudes": dict.fromkeys(NAMES, magnitude),
        "mask_BT": torch.arange(width) < torch.tensor(LENGTHS)[:, None],
        "advantage_B": torch.tensor([0.5, -2.0, 1.0, 3.0]),
        "entropy_BT": torch.nn.functional.pad(entropy_BT, pad, value=9.0),
        "logprob_BT": torch.nn.functional.pad(probability_BT, pad, value=1.0).log(),
        "seeds": [11, 12, 13, 14],
    }


def plain(given_inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Plain GRPO: weight 1, the broadcast advantage."""
    mask_BT = given_inputs["mask_BT"]
    return mask_BT.float(), mask_BT * given_inputs["advantage_B"][:, None]


def assert_same(got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


# One allocation


def test_allocate_by_hand() -> None:
    """Half of 3 is 1 token, of 1 none; the advantage is broadcast over the response."""
    weight_BT, advantage_BT = allocate(
        ["trajectory_percentile"],
        magnitudes={"trajectory_percentile": 0.5},
        mask_BT=torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]], dtype=torch.bool),
        advantage_B=torch.tensor([0.5, -2.0]),
    )
    assert weight_BT.tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert advantage_BT.tolist() == [[0.5, 0.5, 0.5, 0.0], [-2.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize("name", NAMES)
def test_at_magnitude_0_every_allocation_is_plain_grpo(name: AllocationName) -> None:
    """``shuffled`` by itself has only equal pairs to shuffle."""
    have = inputs(0.0)
    assert_same(allocate([name], **have), plain(have))


@pytest.mark.parametrize("name", ["uniform", "expert_prefix", "shuffled"])
def test_some_allocations_change_nothing_at_any_magnitude(name: AllocationName) -> None:
    have = inputs(1.0)
    assert_same(allocate([name], **have), plain(have))


@pytest.mark.parametrize(
    "name", sorted({"forking_tokens", "random_tokens", "trajectory_percentile"})
)
def test_at_magnitude_1_a_selection_keeps_one_token(name: AllocationName) -> None:
    weight_BT, _ = allocate([name], **inputs(1.0))
    assert weight_BT.sum(-1).tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("magnitude", [0.3, 1.0])
def test_allocate_is_the_function_of_that_name(magnitude: float) -> None:
    have = inputs(magnitude)
    mask_BT, entropy_BT, logprob_BT = have["mask_BT"], have["entropy_BT"], have["logprob_BT"]
    weight_BT, advantage_BT = plain(have)
    expected: dict[AllocationName, tuple[Tensor, Tensor]] = {
        "trajectory_percentile": (suffix_weight(mask_BT, start=magnitude), advantage_BT),
        "forking_tokens": (
            forking_weight(mask_BT, entropy_BT, magnitude=magnitude),
            advantage_BT,
        ),
        "entropy_advantage": (
            weight_BT,
            entropy_advantage(
                advantage_BT, entropy_BT, mask_BT, magnitude=magnitude, alpha=0.3, kappa=3.0
            ),
        ),
        "low_probability": (
            low_probability(logprob_BT, mask_BT, magnitude=magnitude),
            advantage_BT,
        ),
        "random_tokens": (
            random_tokens(mask_BT, magnitude=magnitude, seeds=have["seeds"]),
            advantage_BT,
        ),
    }
    for name, pair in expected.items():
        assert_same(allocate([name], **have, alpha=0.3, kappa=3.0), pair)
        assert not torch.equal(pair[0], weight_BT) or not torch.equal(pair[1], advantage_BT)


def test_the_focus_moves_the_window() -> None:
    have = inputs(0.5)
    for focus in [(0.0, 0.0), (0.2, 0.4)]:
        weight_BT, _ = allocate(["trajectory_percentile"], **have, focus=focus)
        assert torch.equal(weight_BT, focus_weight(have["mask_BT"], magnitude=0.5, focus=focus))


# Compositions


def test_forking_tokens_of_the_suffix_by_hand() -> None:
    """The last 4 of 8, then the 2 most uncertain of these; not the 9.0 of the prefix."""
    weight_BT, _ = allocate(
        ["trajectory_percentile", "forking_tokens"],
        magnitudes={"trajectory_percentile": 0.5, "forking_tokens": 0.5},
        mask_BT=torch.ones(1, 8, dtype=torch.bool),
        advantage_B=torch.ones(1),
        entropy_BT=torch.tensor([[9.0, 9.0, 9.0, 9.0, 0.1, 0.8, 0.3, 0.9]]),
    )
    assert weight_BT.tolist() == [[0, 0, 0, 0, 0, 1, 0, 1]]


def test_the_suffix_of_forking_tokens_by_hand() -> None:
    """The other way round: the 4 most uncertain of 8, then the later 2 of these."""
    weight_BT, _ = allocate(
        ["forking_tokens", "trajectory_percentile"],
        magnitudes={"trajectory_percentile": 0.5, "forking_tokens": 0.5},
        mask_BT=torch.ones(1, 8, dtype=torch.bool),
        advantage_B=torch.ones(1),
        entropy_BT=torch.tensor([[9.0, 0.2, 9.0, 0.1, 0.1, 0.8, 0.3, 0.9]]),
    )
    assert weight_BT.tolist() == [[0, 0, 0, 0, 0, 1, 0, 1]]


def test_weights_multiply() -> None:
    have = inputs(0.5)
    weight_BT, _ = allocate(["trajectory_percentile", "low_probability"], **have)
    suffix_BT = suffix_weight(have["mask_BT"], start=0.5)
    reweighted_BT = low_probability(have["logprob_BT"], have["mask_BT"], magnitude=0.5)
    assert torch.equal(weight_BT, suffix_BT * reweighted_BT)
    other_BT, _ = allocate(["low_probability", "trajectory_percentile"], **have)
    assert torch.equal(weight_BT, other_BT)


def test_each_allocation_reads_its_own_magnitude() -> None:
    have = inputs() | {
        "magnitudes": {"trajectory_percentile": 0.25, "entropy_advantage": 1.0},
    }
    weight_BT, advantage_BT = allocate(["trajectory_percentile", "entropy_advantage"], **have)
    assert torch.equal(weight_BT, suffix_weight(have["mask_BT"], start=0.25))
    expected_BT = entropy_advantage(
        plain(have)[1], have["entropy_BT"], have["mask_BT"], magnitude=1.0
    )
    assert torch.equal(advantage_BT, expected_BT)


def test_shuffled_moves_what_stands_before_it_over_the_whole_response() -> None:
    have = inputs(0.7)
    before = allocate(["trajectory_percentile", "entropy_advantage"], **have)
    after = allocate(["trajectory_percentile", "entropy_advantage", "shuffled"], **have)
    assert_same(after, shuffled(*before, have["mask_BT"], seeds=have["seeds"]))
    assert after[0].sum(-1).tolist() == before[0].sum(-1).tolist()
    assert after[0][0, :8].any()  # credit where the suffix had none


def test_no_composition_empties_a_response() -> None:
    """Every order of every two and three, at m = 1."""
    have = inputs(1.0)
    for names in [names for n in (2, 3) for names in itertools.permutations(NAMES, n)]:
        weight_BT, advantage_BT = allocate(names, **have)
        assert weight_BT.dtype == advantage_BT.dtype == torch.float32
        assert ((weight_BT > 0).sum(-1) > 0).tolist() == [True, True, True, False], names
        assert not weight_BT[~have["mask_BT"]].any(), names
        assert not advantage_BT[~have["mask_BT"]].any(), names


@given(
    names=st.lists(st.sampled_from(NAMES), max_size=4, unique=True),
    magnitude=st.floats(0, 1),
    wider=st.integers(0, 5),
    order=st.permutations(range(len(LENGTHS))),
    cut=st.integers(0, len(LENGTHS)),
)
def test_allocate_depends_on_neither_padding_nor_order_nor_split(
    names: list[AllocationName], magnitude: float, wider: int, order: list[int], cut: int
) -> None:
    have = inputs(magnitude)
    whole = allocate(names, **have)
    wide = allocate(names, **inputs(magnitude, width=12 + wider))
    assert_same((wide[0][:, :12], wide[1][:, :12]), whole)
    assert not wide[0][:, 12:].any()

    def rows(index: list[int]) -> dict[str, Any]:
        picked = {key: have[key][index] for key in have if key.endswith(("_BT", "_B"))}
        return have | picked | {"seeds": [have["seeds"][i] for i in index]}

    assert_same(allocate(names, **rows(order)), (whole[0][order], whole[1][order]))
    parts = [allocate(names, **rows(part)) for part in (order[:cut], order[cut:]) if part]
    weight_BT, advantage_BT = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    assert_same((weight_BT, advantage_BT), (whole[0][order], whole[1][order]))


def test_no_allocation_at_all_is_plain_grpo() -> None:
    have = inputs()
    assert_same(allocate([], **have), plain(have))


# What is missing


def test_the_sets_say_what_each_allocation_reads() -> None:
    """Taking an input away fails exactly the allocations that are listed as needing it."""
    for key, empty, needing in [
        ("entropy_BT", None, NEEDS_ENTROPY),
        ("logprob_BT", None, NEEDS_LOGPROB),
        ("seeds", (), IS_RANDOM),
    ]:
        refused = set()
        for name in NAMES:
            try:
                allocate([name], **inputs() | {key: empty})
            except ValueError:
                refused.add(name)
        assert refused == needing
    assert NEEDS_SCORING == NEEDS_ENTROPY | NEEDS_LOGPROB


@pytest.mark.parametrize("name", sorted(NEEDS_ENTROPY))
def test_allocate_refuses_to_guess_entropy(name: AllocationName) -> None:
    with pytest.raises(ValueError, match=f"{name} needs the old policy's entropy"):
        allocate([name], **inputs() | {"entropy_BT": None})


def test_allocate_refuses_to_guess_log_probs() -> None:
    with pytest.raises(ValueError, match="low_probability needs the old policy's log-probs"):
        allocate(["low_probability"], **inputs() | {"logprob_BT": None})
