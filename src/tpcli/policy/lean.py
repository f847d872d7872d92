"""Norms and gated MLPs that keep less for the backward pass.

Of a Llama layer's activations, more than a third are intermediate results of element-wise steps,
which are cheap to compute again. These forms keep the input of a norm and the two projections of a
gated MLP, and compute the rest anew: the same numbers, fewer passes over memory, and longer
micro-batches in the same room. Modules are found by the names of their parts and confirmed by
trying one of each class.

Letters: D hidden size, I intermediate size, ... any leading dimensions.
"""

from inspect import signature
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class _RMSNorm(torch.autograd.Function):
    """y = w x r with r = (mean(x^2) + eps)^-1/2; keeps x and r.

    With n = x r and g = w dL/dy: dL/dx = r (g - n mean(g n)), dL/dw = sum n dL/dy.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        wide: Tensor = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, scale)
        normed: Tensor = (wide * scale).to(x.dtype)
        same = weight_D.dtype == x.dtype
        return normed.mul_(weight_D) if same else normed * weight_D

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_D, scale = ctx.saved_tensors
        grad = grads[0].to(scale.dtype)
        normed = x * scale
        product = grad * normed
        grad_weight_D = product.flatten(0, -2).sum(0)
        grad_normed = torch.mul(grad, weight_D, out=product)
        along = (grad_normed * normed).mean(-1, keepdim=True)
        grad_x = grad_normed.addcmul_(normed, along, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight_D.to(weight_D.dtype), None


class _GatedMLP(torch.autograd.Function):
    """W_down (silu(W_gate x) * W_up x); keeps x and both projections."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate_ID: Tensor, up_ID: Tensor, down_DI: Tensor) -> Tensor:
        gate, up = functional.linear(x, gate_ID), functional.linear(x, up_ID)
        ctx.save_for_backward(x, gate_ID, up_ID, down_DI, gate, up)
        return functional.linear(functional.silu(gate).mul_(up), down_DI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gate_ID, up_ID, down_DI, gate, up = ctx.saved_tensors
        x_MD, gate_MI, up_MI, grad_MD = (t.flatten(0, -2) for t in (x, gate, up, grads[0]))
        _, *wanted = ctx.needs_input_grad
        hidden_MI = functional.silu(gate_MI)
        grad_MI = grad_MD @ down_DI
        grad_up_MI = grad_MI * hidden_MI
        grad_gate_MI = torch.ops.aten.silu_backward(grad_MI.mul_(up_MI), gate_MI)
        hidden_MI.mul_(up_MI)
        grad_x_MD = torch.addmm(grad_gate_MI @ gate_ID, grad_up_MI, up_ID)
        return (
            grad_x_MD.view_as(x),
            grad_gate_MI.T @ x_MD if wanted[0] else None,
            grad_up_MI.T @ x_MD if wanted[1] else None,
            grad_MD.T @ hidden_MI if wanted[2] else None,
        )


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
    inputs: tuple[Tensor, ...] = (
        x,
        self.gate_proj.weight,
        self.up_proj.weight,
        self.down_proj.weight,
    )
    kind = x.device.type
    if torch.is_autocast_enabled(kind):  # as it would cast each of them
        inputs = tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in inputs)
    out: Tensor = _GatedMLP.apply(*inputs)  # type: ignore[no-untyped-call]
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
