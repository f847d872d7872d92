"""Linear layers on a CPU whose weights are laid out once for many small products.

Decoding multiplies a few rows with every weight, over and over. torch gives float32 products to
MKL, which takes each weight as it stands; oneDNN, which torch carries as well, multiplies several
times faster from a layout of its own, and laying out costs about as much as a few steps.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpcli.rollout.fused import FusedBody, fuses


@contextmanager
def prepacked(model: nn.Module) -> Iterator[None]:
    """Inside, the model's linear layers multiply from copies of their weights as they are now.

    The copies take as much memory as the weights do. Layers of other types than float32, with a
    forward of their own or not on a CPU stay as they are, and so does everything under autocast or
    where torch came without oneDNN's operators. No gradient flows through a copy. A body that
    ``fuses`` is replaced as a whole.
    """
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    if _available():
        inside: set[nn.Module] = set()
        if fuses(model):
            body: Any = model.base_model
            forwards[body] = FusedBody(body, _packed, _rounded)
            inside = {*body.modules()}
        for layer in model.modules():
            if layer not in inside and _fits(layer):
                forwards[layer] = _packed(layer.weight, layer.bias)
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


def _available() -> bool:
    """The operators are those that Inductor writes into a model whose weights are frozen."""
    operators: Any = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(operators, "_reorder_linear_weight")
        and hasattr(operators, "_linear_pointwise")
        and not torch.is_autocast_enabled("cpu")
    )


def _fits(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and "forward" not in vars(layer)
    )


def _packed(weight_OI: Tensor, bias_O: Tensor | None) -> Callable[[Tensor], Tensor]:
    operators: Any = torch.ops.mkldnn
    packed = operators._reorder_linear_weight(weight_OI.detach())
    return partial(_product, operators._linear_pointwise.default, packed, bias_O)


def _product(operator: Any, packed: Tensor, bias_O: Tensor | None, x: Tensor) -> Tensor:
    x_MI = x.flatten(0, -2)
    rows = len(x_MI)
    if more := _rounded(rows) - rows:
        x_MI = functional.pad(x_MI, (0, 0, 0, more))
    out_MO: Tensor = operator(x_MI, packed, bias_O, "none", [], "")
    return out_MO[:rows].view(*x.shape[:-1], out_MO.shape[-1])


def _rounded(rows: int) -> int:
    """A few more, so that there are few sizes: oneDNN compiles and keeps a kernel for each.

    For 1 to 128 rows that came to 360 MiB.
    """
    if rows <= 8:
        return rows
    step = max(4, 1 << ((rows - 1).bit_length() - 3))
    return -(-rows // step) * step
