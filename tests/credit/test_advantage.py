"""Group advantages against the reference figures and at their edges."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tpcli.credit.advantage import ADVANTAGES, group_mean, group_std
from tpcli.names import AdvantageName

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["advantages"], ids=lambda c: str(c["normalise_by_std"]))
def test_advantages_golden(case: dict[str, Any]) -> None:
    advantage = group_std if case["normalise_by_std"] else group_mean
    got_B = advantage(torch.tensor(case["rewards"]), group_size=case["group_size"], eps=case["eps"])
    torch.testing.assert_close(got_B, torch.tensor(case["advantages"]))


@pytest.mark.parametrize("advantage", [group_std, group_mean])
def test_equal_rewards_give_exactly_zero(advantage: Any) -> None:
    assert advantage(torch.full((8,), 0.7), group_size=4).abs().max() < 1e-6
    assert (advantage(torch.ones(8), group_size=4) == 0).all()


@pytest.mark.parametrize("advantage", [group_std, group_mean])
def test_a_group_of_one_has_no_advantage(advantage: Any) -> None:
    assert advantage(torch.tensor([1.0, 0.0]), group_size=1).tolist() == [0.0, 0.0]


def test_rewards_must_fill_their_groups() -> None:
    with pytest.raises(ValueError, match="5 rewards do not make groups of 4"):
        group_std(torch.ones(5), group_size=4)


def test_every_advantage_name_has_a_function() -> None:
    assert set(ADVANTAGES) == set(get_args(AdvantageName))
