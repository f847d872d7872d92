"""The learning rate by hand, and which parameters decay."""

import pytest
import torch

from tpcli.optim.adamw import adamw, lr_at, set_lr


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 0.75, 0.5, 0.0]),
        ("cosine", [0.5, 1.0, 0.8535533905932737, 0.5, 0.0]),
    ],
)
def test_lr_by_hand(schedule: str, expected: list[float]) -> None:
    """Two steps up, eight down: steps 1, 2, 4, 6 and 10."""
    got = [
        lr_at(step, 10, peak=1.0, warmup_steps=2, schedule=schedule)  # type: ignore[arg-type]
        for step in (1, 2, 4, 6, 10)
    ]
    assert got == pytest.approx(expected)


def test_only_matrices_decay() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = adamw([matrix, vector, frozen], lr=0.1, weight_decay=0.5)
    set_lr(optimizer, 0.2)
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.2 * 0.5))
    assert torch.equal(vector.detach(), torch.ones(2))
