"""Lean norms and MLPs against the modules' own forward and autograd."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from tests.tiny import tiny_llama
from torch import Tensor, nn
from transformers import GemmaConfig, Qwen3Config
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from tpcli.policy.lean import keep_less, products_added

GatedMLP: Any = Qwen3MLP
GeluMLP: Any = GemmaMLP


def modules() -> list[Any]:
    """A norm and an MLP of two families, weights drawn."""
    model = tiny_llama()
    config = Qwen3Config(hidden_size=12, intermediate_size=20)
    found = [model.model.norm, model.model.layers[0].mlp, Qwen3RMSNorm(12), GatedMLP(config)]
    for seed, module in enumerate(found):
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return found


def width(module: Any) -> int:
    return int(next(module.parameters()).shape[-1])


def gradients(module: Any, x: Tensor, *, autocast: bool = False) -> list[Tensor]:
    """Output, and the gradient of a weighted sum of it by input and parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        out = module(x)
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    found = torch.autograd.grad((out.float() * weight).sum(), [x, *module.parameters()])
    return [out.detach(), *found]


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("half", [False, True])
def test_value_and_gradients_are_the_modules_own(index: int, half: bool) -> None:
    module = modules()[index]
    if half:
        module = module.bfloat16()
    x = torch.randn(2, 5, width(module), generator=torch.Generator().manual_seed(9))
    x = x.to(next(module.parameters()).dtype)
    plain = gradients(module, x)
    keep_less(module)
    assert "forward" in vars(module)
    for own, lean in zip(plain, gradients(module, x), strict=True):
        assert own.dtype == lean.dtype
        gap = (lean.double() - own.double()).norm() / own.double().norm()
        assert gap < (1e-2 if half else 1e-6)


@pytest.mark.parametrize("index", [0, 1])
def test_under_autocast_too(index: int) -> None:
    module = modules()[index]
    x = torch.randn(2, 5, width(module), generator=torch.Generator().manual_seed(9))
    plain = gradients(module, x, autocast=True)
    keep_less(module)
    lean = gradients(module, x, autocast=True)
    for own, ours in zip(plain, lean, strict=True):
        assert own.dtype == ours.dtype
        # A norm computes in float32 there, a product does not.
        gap = (ours.double() - own.double()).norm() / own.double().norm()
        assert gap < (1e-2 if index else 1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_an_mlps_gradients_are_added_to_what_is_there(autocast: bool) -> None:
    """The same sums as when autograd adds them up; it is handed nothing, but under autocast."""
    plain, lean = modules()[1], modules()[1]
    keep_less(lean)
    handed: list[Tensor | None] = []
    lean.up_proj.weight.register_hook(handed.append)
    x = torch.randn(2, 5, width(plain), generator=torch.Generator().manual_seed(9))
    for passes in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            plain(x + passes).sum().backward()
            with products_added():
                out = lean(x + passes)
        out.sum().backward()
    for own, ours in zip(plain.parameters(), lean.parameters(), strict=True):
        tolerance = 2e-2 if autocast else 1e-5
        assert (ours.grad - own.grad).norm() < tolerance * own.grad.norm()
    assert [grad is None for grad in handed] == [not autocast] * 2


def test_a_projection_that_is_frozen_stays_so_where_products_are_added() -> None:
    module = modules()[1]
    keep_less(module)
    module.up_proj.weight.requires_grad_(False)
    with products_added():
        out = module(torch.ones(1, 2, width(module)))
    out.sum().backward()
    assert module.up_proj.weight.grad is None
    assert module.gate_proj.weight.grad.any()


@pytest.mark.parametrize("zero", [False, True])
def test_a_norm_keeps_its_output_where_its_input_can_be_found_from_it(zero: bool) -> None:
    """What follows keeps that anyway. Nothing can be divided by a weight of 0."""
    module = modules()[0]
    if zero:
        module.weight.data[3] = 0
    x = torch.randn(2, 5, width(module), generator=torch.Generator().manual_seed(9))
    plain = gradients(module, x)
    keep_less(module)
    for own, lean in zip(plain, gradients(module, x), strict=True):
        assert (lean - own).norm() < 1e-6 * own.norm()
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = module(x)
    assert (x.data_ptr() in kept) == zero
    assert (out.data_ptr() in kept) != zero


def test_a_frozen_projection_gets_no_gradient() -> None:
    module = modules()[1]
    keep_less(module)
    module.up_proj.weight.requires_grad_(False)
    module(torch.ones(1, 2, width(module))).sum().backward()
    assert module.up_proj.weight.grad is None
    assert module.gate_proj.weight.grad.any()


def test_what_computes_something_else_is_left_alone() -> None:
    """Gemma scales by 1 + w and gates with GELU; a layer norm and a biased MLP are other things."""
    config = GemmaConfig(hidden_size=12, intermediate_size=20)
    biased = GatedMLP(Qwen3Config(hidden_size=12, intermediate_size=20))
    biased.up_proj = nn.Linear(12, 20)
    for module in (GemmaRMSNorm(12), GeluMLP(config), nn.LayerNorm(12), biased):
        keep_less(module)
        assert "forward" not in vars(module)


def test_without_gradient_the_own_forward_runs() -> None:
    module = modules()[1]
    runs: list[int] = []
    module.down_proj.register_forward_hook(lambda *_: runs.append(1))
    keep_less(module)
    runs.clear()
    x = torch.ones(1, 2, width(module))
    module(x)
    assert not runs
    with torch.no_grad():
        module(x)
    assert runs == [1]


def test_a_copy_of_the_model_uses_its_own_weights() -> None:
    """As a reference policy is made."""
    module = modules()[1]
    keep_less(module)
    copy = deepcopy(module)
    copy.down_proj.weight.data.zero_()
    x = torch.ones(1, 2, width(module))
    assert not copy(x).any()
    assert module(x).any()


def test_a_model_keeps_less() -> None:
    def kept(model: Any) -> int:
        sizes: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            found = model(input_ids=torch.arange(2, 22)[None])
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        del found
        return sum(size for at, size in sizes.items() if at not in weights)

    model = tiny_llama()
    before = kept(model.model)
    keep_less(model)
    assert kept(model.model) < 0.7 * before
