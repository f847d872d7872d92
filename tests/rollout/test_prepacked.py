"""Prepacked linear layers give what torch gives, and leave no trace."""

from typing import Any

import pytest
import torch
from tests.tiny import EOS, PAD, prompt_of, tiny_llama
from torch import nn

from tpcli.rollout import prepacked as prepacked_module
from tpcli.rollout.prepacked import _rounded, prepacked
from tpcli.rollout.transformers import TransformersEngine

oneDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="torch without oneDNN",
)


def replaced(model: nn.Module) -> int:
    return sum("forward" in vars(module) for module in model.modules())


@oneDNN
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 9, 40, 133])
def test_the_product_is_the_same(bias: bool, rows: int) -> None:
    layer = nn.Linear(24, 50, bias=bias)
    x = torch.randn(2, rows, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plain = layer(x)
        with prepacked(layer):
            assert replaced(layer) == 1
            torch.testing.assert_close(layer(x), plain)
    assert replaced(layer) == 0


def test_few_sizes_are_multiplied() -> None:
    """At most a quarter more rows, or three."""
    sizes = {_rounded(rows) for rows in range(1, 513)}
    assert len(sizes) == 30
    assert all(0 <= _rounded(rows) - rows <= max(3, rows / 4) for rows in range(1, 513))


@oneDNN
def test_packing_that_fails_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    packed = prepacked_module._packed
    made: list[torch.Tensor] = []

    def failing(weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
        if made:
            raise MemoryError
        made.append(weight)
        return packed(weight, bias)

    monkeypatch.setattr(prepacked_module, "_packed", failing)
    with pytest.raises(MemoryError), prepacked(layers):
        pass
    assert made
    assert replaced(layers) == 0


@oneDNN
def test_weights_are_those_at_the_beginning_of_each_block() -> None:
    layer, x = nn.Linear(24, 50), torch.ones(1, 24)
    with torch.inference_mode(), prepacked(layer):
        before = layer(x)
    layer.weight.data.mul_(3)
    with torch.inference_mode(), prepacked(layer):
        torch.testing.assert_close(layer(x) - layer.bias, 3 * (before - layer.bias))


@oneDNN
def test_what_does_not_fit_is_left_alone() -> None:
    class Other(nn.Linear):
        pass

    own = nn.Linear(4, 4)
    own.forward = lambda input: input  # type: ignore[method-assign]
    others = [Other(4, 4), nn.Linear(4, 4).bfloat16(), nn.Linear(4, 4).double(), own]
    before = own.forward
    with prepacked(nn.ModuleList(others)):
        assert replaced(nn.ModuleList(others[:3])) == 0
        assert own.forward is before
    assert own.forward is before
    with torch.autocast("cpu", dtype=torch.bfloat16), prepacked(layer := nn.Linear(4, 4)):
        assert replaced(layer) == 0


@oneDNN
def test_the_engine_multiplies_so_and_leaves_no_trace_when_it_fails() -> None:
    model = tiny_llama()
    engine = TransformersEngine(model, eos_ids=[EOS], pad_id=PAD)
    seen = []

    def interrupt(*_: int) -> None:
        seen.append(replaced(model))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.sample(
            [prompt_of([5, 9, 3], "p")],
            group_size=2,
            seed=0,
            temperature=1.0,
            max_new_tokens=4,
            progress=interrupt,
        )
    assert seen == [2], "the body and the head"
    assert replaced(model) == 0
