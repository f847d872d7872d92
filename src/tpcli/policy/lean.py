"""Norms and gated MLPs that keep less for the backward pass.

Of a Llama layer's activations, nearly half are intermediate results of element-wise steps, which
are cheap to compute again. These forms keep the output of a norm, which what follows keeps anyway
(on a CPU in float32 or wider, else its input), and the two projections of a gated MLP, and compute
the rest anew: the same numbers, fewer passes over memory, and longer micro-batches in the same
room. Modules are found by the names of their parts and confirmed by trying one of each class.

Letters: D hidden size, I intermediate size, ... any leading dimensions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NEARLY_0 = 1e-18
"""A weight larger than this gives normal float32 numbers for whatever is larger than this too."""


def keep_less(model: nn.Module) -> None:
    """Give the model's RMS norms and SiLU-gated MLPs the lean forms wherever gradient is wanted.

    In place, and only where the lean form gives what the module's own forward gives on an input
    that is tried; without gradient a module does as before.
    """
    tried: dict[type, bool] = {}
    for module in model.modules():
        form = _form(module)
        if form is None or "forward" in vars(module):
            continue
        if type(module) not in tried:
            tried[type(module)] = _same(module, form)
        if tried[type(module)]:
            # A method, so that a deep copy of the model calls that of its own module.
            module.forward = MethodType(form, module)


@contextmanager
def products_added() -> Iterator[None]:
    """Inside, a gated MLP runs so that its weights' gradients are added to ``grad`` past autograd.

    A product that is added where it is wanted needs no tensor of its own, which is as large as the
    weight, and no second pass. For whoever calls ``backward()``, not for ``autograd.grad``.
    """
    token = _adding.set(True)
    try:
        yield
    finally:
        _adding.reset(token)


_adding = ContextVar("adding", default=False)


class _RMSNorm(torch.autograd.Function):
    """y = w x r with r = (mean(x^2) + eps)^-1/2; keeps r, and y or else x.

    With n = x r = y / w and g = w dL/dy: dL/dx = r (g - n mean(g n)), dL/dw = sum n dL/dy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide: Tensor = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        normed: Tensor = (wide * scale).to(x.dtype)
        same = weight_D.dtype == x.dtype
        y = normed.mul_(weight_D) if same else normed * weight_D
        ctx.from_y = same and _divides(weight_D)
        ctx.save_for_backward(y if ctx.from_y else x, weight_D, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        kept, weight_D, scale = ctx.saved_tensors
        grad = grads[0].to(scale.dtype)
        normed = kept / weight_D if ctx.from_y else kept * scale
        product = grad * normed
        grad_weight_D = product.flatten(0, -2).sum(0)
        grad_normed = torch.mul(grad, weight_D, out=product)
        along = (grad_normed * normed).mean(-1, keepdim=True)
        grad_x = grad_normed.addcmul_(normed, along, value=-1).mul_(scale)
        return grad_x.to(kept.dtype), grad_weight_D.to(weight_D.dtype), None


def _divides(weight_D: Tensor) -> bool:
    """Whether what was multiplied by the weight can be found again: no element is 0, or nearly.

    Never in half precision, which would round once more, nor on a GPU, which would be waited for.
    """
    if weight_D.dtype.itemsize < 4 or weight_D.device.type != "cpu":
        return False
    return bool(weight_D.abs().min() > NEARLY_0)


class _GatedMLP(torch.autograd.Function):
    """W_down (silu(W_gate x) * W_up x); keeps x and both projections."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate_ID: Tensor, up_ID: Tensor, down_DI: Tensor, add_to: Sequence[Any]
    ) -> Tensor:
        gate, up = functional.linear(x, gate_ID), functional.linear(x, up_ID)
        ctx.save_for_backward(x, gate_ID, up_ID, down_DI, gate, up)
        ctx.add_to = add_to  # a parameter each, or None
        return functional.linear(functional.silu(gate).mul_(up), down_DI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_ID, up_ID, down_DI, gate, up = ctx.saved_tensors
        x_MD, gate_MI, up_MI, grad_MD = (t.flatten(0, -2) for t in (x, gate, up, grads[0]))
        to_gate, to_up, to_down = ctx.add_to
        _, *wanted, _ = ctx.needs_input_grad
        hidden_MI = functional.silu(gate_MI)
        grad_MI = grad_MD @ down_DI
        grad_up_MI = grad_MI * hidden_MI
        hidden_MI.mul_(up_MI)
        grad_down_DI = _weight_gradient(grad_MD, hidden_MI, to_down) if wanted[2] else None
        del hidden_MI
        grad_gate_MI = grad_MI.mul_(up_MI)
        torch.ops.aten.silu_backward.grad_input(grad_gate_MI, gate_MI, grad_input=grad_gate_MI)
        grad_gate_ID = _weight_gradient(grad_gate_MI, x_MD, to_gate) if wanted[0] else None
        grad_up_ID = _weight_gradient(grad_up_MI, x_MD, to_up) if wanted[1] else None
        grad_x_MD = (grad_gate_MI @ gate_ID).addmm_(grad_up_MI, up_ID)
        return grad_x_MD.view_as(x), grad_gate_ID, grad_up_ID, grad_down_DI, None


def _weight_gradient(
    left_MO: Tensor, right_MI: Tensor, add_to: nn.Parameter | None
) -> Tensor | None:
    """A weight's gradient, [O, I]; None where it has been added to the ``grad`` of ``add_to``."""
    if add_to is None:
        return left_MO.T @ right_MI
    if add_to.grad is None:
        add_to.grad = left_MO.T @ right_MI
    else:
        add_to.grad.addmm_(left_MO.T, right_MI)
    return None


def _norm(self: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        plain: Tensor = type(self).forward(self, x)
        return plain
    normed: Tensor = _RMSNorm.apply(x, self.weight, _eps(self))  # type: ignore[no-untyped-call]
    return normed


def _mlp(self: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        plain: Tensor = type(self).forward(self, x)
        return plain
    weights = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
    inputs: tuple[Tensor, ...] = (x, *weights)
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # as it would cast each of them
        inputs = tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in inputs)
    # Half precision would lose what many micro-batches add.
    add = _adding.get() and all(t.is_leaf and t.dtype.itemsize >= 4 for t in inputs[1:])
    add_to = weights if add else (None, None, None)
    out: Tensor = _GatedMLP.apply(*inputs, add_to)  # type: ignore[no-untyped-call]
    return out


def _form(module: nn.Module) -> Any:
    """The lean form that a module may have, going by its parts."""
    if len(signature(module.forward).parameters) != 1:
        return None
    if isinstance(getattr(module, "weight", None), nn.Parameter) and _eps(module) is not None:
        return _norm
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    if all(type(part) is nn.Linear and part.bias is None for part in parts):
        return _mlp
    return None


def _eps(module: Any) -> float | None:
    found = getattr(module, "variance_epsilon", None)
    return found if isinstance(found, float) else getattr(module, "eps", None)


def _same(module: Any, form: Any) -> bool:
    """Whether both forms give the same for one input; a norm's may be of half precision too."""
    weight = module.weight if form is _norm else module.gate_proj.weight
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1, 3, weight.shape[-1], generator=generator).to(weight.device)
    for dtype in {weight.dtype, torch.bfloat16 if form is _norm else weight.dtype}:
        x = drawn.to(dtype)
        try:
            with torch.no_grad():
                own = module(x)
            with torch.enable_grad():
                lean = form(module, x)
        except (RuntimeError, TypeError):
            return False
        tolerance = 1e-2 if dtype.itemsize < 4 else 1e-4
        if own.dtype != lean.dtype or not torch.allclose(own, lean, rtol=tolerance, atol=1e-6):
            return False
    return True
