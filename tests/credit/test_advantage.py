"""Group advantages against the reference figures, plain Python, and at their edges."""

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tpcli.credit.advantage import (
    advantages,
    batch_std,
    gpg,
    group_mean,
    group_std,
    leave_one_out,
    pass_at_k,
)
from tpcli.names import AdvantageName

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())
NAMES: tuple[AdvantageName, ...] = get_args(AdvantageName)

groups = st.integers(2, 6).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, 8).map(lambda n: n / 4), min_size=size, max_size=size),
        min_size=1,
        max_size=4,
    )
)
"""Rewards in quarters, so that plain Python and float32 agree on what is equal."""


def flat(rewards: list[list[float]]) -> torch.Tensor:
    return torch.tensor([reward for group in rewards for reward in group])


@pytest.mark.parametrize("case", GOLDEN["advantages"], ids=lambda c: str(c["normalise_by_std"]))
def test_advantages_golden(case: dict[str, Any]) -> None:
    name: AdvantageName = "group_std" if case["normalise_by_std"] else "group_mean"
    got_B = advantages(
        name, torch.tensor(case["rewards"]), group_size=case["group_size"], eps=case["eps"]
    )
    torch.testing.assert_close(got_B, torch.tensor(case["advantages"]))


# Values by hand: one group with one correct of four, and one whose rewards are all alike


@pytest.mark.parametrize(
    ("name", "options", "right", "wrong"),
    [
        # mean 1/4; squares 9/16 + 3/16 = 3/4, over G - 1 = 3: std 1/2
        ("group_std", {"eps": 0.0}, 1.5, -0.5),
        # over G = 4: std sqrt(3) / 4
        ("group_std", {"eps": 0.0, "ddof": 0}, math.sqrt(3), -1 / math.sqrt(3)),
        ("group_std", {"eps": 1.0}, 0.5, -1 / 6),
        ("group_mean", {}, 0.75, -0.25),
        # the right one against 0, a wrong one against 1/3
        ("leave_one_out", {}, 1.0, -1 / 3),
        # all eight rewards: mean 5/8, squares 15/8, over 7
        ("batch_std", {"eps": 0.0}, 0.75 / math.sqrt(15 / 56), -0.25 / math.sqrt(15 / 56)),
        ("batch_std", {"eps": 0.0, "ddof": 0}, 0.75 / math.sqrt(15 / 64), -0.25 * 8 / 15**0.5),
        # k = 2: 3 of 6 pairs fail, std 1/2; 2 of a wrong one's 3 pairs fail
        ("pass_at_k", {"k": 2}, 1.0, -1 / 3),
        # k = 3: 1 of 4 triples fails, std sqrt(3) / 4; of a wrong one's 3 triples 1
        ("pass_at_k", {"k": 3}, 1 / math.sqrt(3), -1 / 3 / math.sqrt(3)),
        # half of the responses are in a group with signal
        ("gpg", {}, 1.5, -0.5),
    ],
)
def test_advantages_by_hand(
    name: AdvantageName, options: dict[str, Any], right: float, wrong: float
) -> None:
    reward_B = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    got_B = advantages(name, reward_B, group_size=4, **options)
    torch.testing.assert_close(got_B, torch.tensor([wrong, right, wrong, wrong] + [0.0] * 4))


# Properties, against plain Python


@given(rewards=groups, ddof=st.sampled_from([0, 1]))
def test_group_std_is_the_plain_definition(rewards: list[list[float]], ddof: int) -> None:
    deviation = statistics.stdev if ddof else statistics.pstdev
    expected = [
        (reward - statistics.mean(group)) / (deviation(group) + 1e-3)
        for group in rewards
        for reward in group
    ]
    got_B = group_std(flat(rewards), group_size=len(rewards[0]), eps=1e-3, ddof=ddof)
    torch.testing.assert_close(got_B, torch.tensor(expected), atol=1e-4, rtol=1e-4)


@given(rewards=groups)
def test_leave_one_out_is_the_plain_definition(rewards: list[list[float]]) -> None:
    expected = [
        reward - statistics.mean(group[:i] + group[i + 1 :])
        for group in rewards
        for i, reward in enumerate(group)
    ]
    got_B = leave_one_out(flat(rewards), group_size=len(rewards[0]))
    torch.testing.assert_close(got_B, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@given(rewards=groups, ddof=st.sampled_from([0, 1]))
def test_batch_std_is_the_plain_definition(rewards: list[list[float]], ddof: int) -> None:
    deviation = (statistics.stdev if ddof else statistics.pstdev)(flat(rewards).tolist())
    expected = [
        (reward - statistics.mean(group)) / (deviation + 1e-3)
        for group in rewards
        for reward in group
    ]
    got_B = batch_std(flat(rewards), group_size=len(rewards[0]), eps=1e-3, ddof=ddof)
    torch.testing.assert_close(got_B, torch.tensor(expected), atol=1e-4, rtol=1e-4)


@given(rewards=groups)
def test_gpg_is_group_mean_averaged_over_groups_with_signal(rewards: list[list[float]]) -> None:
    """The mean over all B of what gpg gives is the mean over informative responses alone."""
    size = len(rewards[0])
    informative = [group for group in rewards if len(set(group)) > 1]
    got_B = gpg(flat(rewards), group_size=size)
    if not informative:
        assert (got_B == 0).all()
        return
    expected = group_mean(flat(informative), group_size=size).abs().mean()
    torch.testing.assert_close(got_B.abs().mean(), expected)
    scale = len(rewards) / len(informative)
    torch.testing.assert_close(got_B, scale * group_mean(flat(rewards), group_size=size))


def pass_at_k_by_enumeration(rewards: list[int], k: int) -> list[float]:
    """Mean over the subsets that hold a response of (subset's best - mean) / std of all subsets."""
    subsets = list(itertools.combinations(range(len(rewards)), k))
    best = {subset: max(rewards[i] for i in subset) for subset in subsets}
    mean, std = statistics.mean(best.values()), statistics.pstdev(best.values())
    if std == 0:
        return [0.0] * len(rewards)
    return [
        statistics.mean((best[subset] - mean) / std for subset in subsets if i in subset)
        for i in range(len(rewards))
    ]


@given(rewards=st.lists(st.integers(0, 1), min_size=1, max_size=8), data=st.data())
def test_pass_at_k_is_the_enumeration_of_all_subsets(
    rewards: list[int], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(rewards)))
    got_B = pass_at_k(torch.tensor(rewards), group_size=len(rewards), k=k)
    torch.testing.assert_close(got_B, torch.tensor(pass_at_k_by_enumeration(rewards, k)))


def test_pass_at_k_treats_each_group_by_itself() -> None:
    rewards = [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1], [0, 1, 0, 1]]
    expected = [pass_at_k_by_enumeration(group, 2) for group in rewards]
    got_B = pass_at_k(torch.tensor(rewards).flatten(), group_size=4, k=2)
    torch.testing.assert_close(got_B.view(4, 4), torch.tensor(expected))


@given(rewards=st.lists(st.integers(0, 1), min_size=2, max_size=16))
def test_pass_at_1_is_group_std_with_the_population_deviation(rewards: list[int]) -> None:
    reward_B = torch.tensor(rewards)
    expected_B = group_std(reward_B, group_size=len(rewards), eps=0.0, ddof=0)
    got_B = pass_at_k(reward_B, group_size=len(rewards), k=1)
    torch.testing.assert_close(got_B, expected_B)


@pytest.mark.parametrize("name", NAMES)
@given(
    wins=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=5),
    data=st.data(),
)
def test_the_order_of_groups_and_of_responses_changes_nothing(
    name: AdvantageName, wins: list[list[bool]], data: st.DataObject
) -> None:
    reward_PG = torch.tensor(wins).float()
    rows = data.draw(st.permutations(range(len(wins))))
    columns = data.draw(st.permutations(range(4)))
    plain_B = advantages(name, reward_PG.flatten(), group_size=4, k=2)
    moved_B = advantages(name, reward_PG[rows][:, columns].flatten(), group_size=4, k=2)
    torch.testing.assert_close(moved_B, plain_B.view(-1, 4)[rows][:, columns].flatten())


# Edges


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("eps", [1e-6, 0.0])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.7])
def test_equal_rewards_give_exactly_zero(name: AdvantageName, eps: float, reward: float) -> None:
    """Also where the mean of equal floats is a bit off, and where no eps keeps 0 / 0 away."""
    reward = round(reward) if name == "pass_at_k" else reward
    got_B = advantages(name, torch.full((21,), reward), group_size=7, eps=eps)
    assert got_B.tolist() == [0.0] * 21


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_equal_rewards_has_no_advantage_beside_one_with_signal(
    name: AdvantageName,
) -> None:
    reward_B = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    got_B = advantages(name, reward_B, group_size=3)
    assert (got_B[:3] != 0).all()
    assert got_B[3:].tolist() == [0.0] * 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rewards", [[1.0], [1.0, 0.0]])
def test_a_group_of_one_has_no_advantage(name: AdvantageName, rewards: list[float]) -> None:
    got_B = advantages(name, torch.tensor(rewards), group_size=1)
    assert got_B.tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize("name", NAMES)
def test_advantages_are_float32_of_whole_number_rewards(name: AdvantageName) -> None:
    got_B = advantages(name, torch.tensor([0, 1, 1, 0]), group_size=2)
    assert got_B.dtype == torch.float32
    assert got_B.shape == (4,)


@pytest.mark.parametrize("name", NAMES)
def test_rewards_must_fill_their_groups(name: AdvantageName) -> None:
    with pytest.raises(ValueError, match="5 rewards do not make groups of 4"):
        advantages(name, torch.ones(5), group_size=4)


def test_pass_at_k_has_no_signal_where_every_subset_succeeds() -> None:
    """Two of four wrong, k = 3: every triple holds a correct one."""
    assert pass_at_k(torch.tensor([1, 0, 1, 0]), group_size=4, k=3).tolist() == [0.0] * 4


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_within_the_group(k: int) -> None:
    with pytest.raises(ValueError, match="between 1 and the group's 4"):
        pass_at_k(torch.ones(4), group_size=4, k=k)


def test_pass_at_k_refuses_rewards_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="0 or 1"):
        pass_at_k(torch.tensor([0.0, 0.5]), group_size=2, k=1)
