"""How TRL's losses add up over micro-batches, optimiser windows and processes, and how ours do."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.loss.trl_stand_in import LONGEST, NewTrainer, same, trl_loss, uniform
from tests.loss.whole import Tokens, loss_and_gradient
from torch import Tensor

from tpcli.names import DenominatorName, ReductionName

pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated")


def windowed(
    trainer: Any, tokens: Tokens, cuts: Sequence[int], *, items: float | None = None
) -> tuple[float, Tensor]:
    """TRL over an optimiser step: the micro-batches' losses and gradients added up."""
    pieces = [slice(a, b) for a, b in itertools.pairwise([0, *cuts, len(tokens.mask)])]
    items = items or float(tokens.mask.sum())
    parts = [
        trl_loss(trainer, tokens.map(lambda t, piece=piece: t[piece]), items=items)  # type: ignore[misc]
        for piece in pieces
    ]
    return sum(loss for loss, _ in parts), torch.cat([grad_BT for _, grad_BT in parts])


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_equal_micro_batches_add_up_to_our_step(new_trainer: NewTrainer, loss_type: str) -> None:
    """Two micro-batches of two responses each, of 10 and 8 tokens."""
    tokens = uniform()
    reduction: ReductionName = {
        "grpo": "seq-mean-token-mean",
        "dapo": "token-mean",
        "dr_grpo": "seq-mean-token-sum-norm",
    }[loss_type]  # type: ignore[assignment]
    trainer = new_trainer(loss_type=loss_type, window=2)
    ours = loss_and_gradient(tokens, "ppo_clip", reduction=reduction, constant=LONGEST)
    same(ours, windowed(trainer, tokens, [2]))


def test_bnpo_is_the_mean_of_the_micro_batches_token_means(new_trainer: NewTrainer) -> None:
    """So a token of a micro-batch of 10 among 18 in two weighs 18 / (2 * 10) of our token-mean."""
    tokens = uniform()
    _, theirs_BT = windowed(new_trainer(loss_type="bnpo", window=2), tokens, [2])
    _, ours_BT = loss_and_gradient(tokens, "ppo_clip")
    factor_B1 = torch.tensor([18 / 20, 18 / 20, 18 / 16, 18 / 16])[:, None]
    torch.testing.assert_close(theirs_BT, ours_BT * factor_B1)
    assert ours_BT.any()


def test_grpo_weighs_micro_batches_alike_whatever_they_hold(new_trainer: NewTrainer) -> None:
    """Micro-batches of 1 and 3 responses: theirs weigh 1 / 2 and 1 / 6 each, ours 1 / 4."""
    tokens = uniform()
    _, theirs_BT = windowed(new_trainer(loss_type="grpo", window=2), tokens, [1])
    _, ours_BT = loss_and_gradient(tokens, "ppo_clip", reduction="seq-mean-token-mean")
    factor_B1 = torch.tensor([2.0, 2 / 3, 2 / 3, 2 / 3])[:, None]
    torch.testing.assert_close(theirs_BT, ours_BT * factor_B1)


def test_dapo_is_token_mean_only_if_a_window_is_a_generation_batch(
    new_trainer: NewTrainer,
) -> None:
    """Two optimiser windows a generation batch, of 14 and 4 tokens: TRL divides each by half of
    all 18, so its loss is the window's token-mean times 14 / 9 and 4 / 9."""
    tokens = uniform((9, 5, 1, 3))
    trainer = new_trainer(loss_type="dapo", window=2, steps_per_generation=4)
    for window, held in ((slice(0, 2), 14), (slice(2, 4), 4)):
        part = tokens.map(lambda t, window=window: t[window])  # type: ignore[misc]
        loss, theirs_BT = windowed(trainer, part, [1], items=18.0)
        ours, ours_BT = loss_and_gradient(part, "ppo_clip")
        assert loss == pytest.approx(ours * held / 9, rel=1e-5)
        torch.testing.assert_close(theirs_BT, ours_BT * held / 9)
        fixed = loss_and_gradient(part, "ppo_clip", denominator="constant", constant=9.0)
        same(fixed, (loss, theirs_BT))


def test_dapo_over_processes_is_our_token_mean(new_trainer: NewTrainer) -> None:
    """Data-parallel training averages the gradients of 2 processes of 10 and 8 tokens."""
    tokens = uniform()
    loss, theirs_BT = windowed(new_trainer(loss_type="dapo", processes=2), tokens, [2])
    same(loss_and_gradient(tokens, "ppo_clip"), (loss / 2, theirs_BT / 2))


def test_filtering_overlong_responses_is_a_weight_of_zero(new_trainer: NewTrainer) -> None:
    """mask_truncated_completions empties the mask of an unfinished response: dapo forgets it, as we
    do; grpo still divides by the number of responses, as we do under denominator = "all"."""
    tokens = uniform()
    weight_BT, mask_BT = tokens.weight.clone(), tokens.mask.clone()
    weight_BT[0], mask_BT[0] = 0.0, False
    filtered = Tokens(tokens.logprob, tokens.old_logprob, tokens.advantage, weight_BT, tokens.mask)
    theirs = Tokens(tokens.logprob, tokens.old_logprob, tokens.advantage, weight_BT, mask_BT)
    how: list[tuple[str, ReductionName, DenominatorName]] = [
        ("dapo", "token-mean", "selected"),
        ("grpo", "seq-mean-token-mean", "all"),
    ]
    for loss_type, reduction, denominator in how:
        ours = loss_and_gradient(filtered, "ppo_clip", reduction=reduction, denominator=denominator)
        same(ours, trl_loss(new_trainer(loss_type=loss_type), theirs))
    share = len(tokens.mask) / (len(tokens.mask) - 1)
    credited = loss_and_gradient(filtered, "ppo_clip", reduction="seq-mean-token-mean")
    same(credited, (share * ours[0], share * ours[1]))
