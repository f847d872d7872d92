"""A Llama-like body for the small passes of decoding on a CPU, in few calls.

Where a pass has some twenty rows, a third of its time goes into what stands between the products:
dozens of small operations a layer, and the modules around them. Here queries, keys and values come
from one product, rows are made up to a round number once a pass, and a norm is one call. A body is
known by the names of its parts and confirmed by trying it.

Letters: A sequences, W new tokens of each, N = A x W tokens, M rows of a product (N or a few more),
S columns seen, D hidden size, Q query heads, K key-value heads, C width of a head.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from tpcli.rollout.slots import Slots

Product = Callable[[Tensor], Tensor]
"""x_MI -> x_MI W^T + b."""

Pack = Callable[[Tensor, Tensor | None], Product]
"""(W_OI, b_O) -> the product with them."""

_BODY = {"embed_tokens", "layers", "norm", "rotary_emb"}
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_MLP = {"gate_proj", "up_proj", "down_proj", "act_fn"}
"""All parts that there may be: what has another one computes something else."""


class FusedBody:
    """In the place of a base model's ``forward``, for the weights as they are now."""

    def __init__(self, body: Any, pack: Pack, rounded: Callable[[int], int]) -> None:
        """
        Args:
            body: one that ``fuses``.
            rounded: rows that there are -> rows that are multiplied, not fewer.
        """
        self._body, self._rounded = body, rounded
        self._layers = [_Layer(layer, pack) for layer in body.layers]
        attention = body.layers[0].self_attn
        self._scale, self._C = attention.scaling, attention.head_dim
        self._Q = attention.q_proj.out_features // self._C
        self._K = attention.k_proj.out_features // self._C

    def __call__(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None,
        past_key_values: Cache,
        use_cache: bool = True,
    ) -> BaseModelOutputWithPast:
        """One pass over the new tokens.

        Args:
            input_ids: int64, A x W.
            position_ids: int64, A x W or 1 x W.
            attention_mask: bool, A x 1 x W x S or 1 x 1 x W x S; None where all columns before a
                token, and no other, are seen.
        """
        A, W = input_ids.shape
        N = A * W
        x_MD = self._body.embed_tokens(input_ids).flatten(0, 1)
        x_MD = functional.pad(x_MD, (0, 0, 0, self._rounded(N) - N))
        cos_N1C, sin_N1C = self._rotation(x_MD, position_ids.expand(A, W))
        attend = (
            partial(self._one, bias=_bias(attention_mask, self._K))
            if W == 1
            else partial(self._several, mask=attention_mask)
        )
        heads_MQC = x_MD.new_zeros(len(x_MD), self._Q, self._C)
        for i, layer in enumerate(self._layers):
            qkv_NHC = layer.qkv(layer.norm(x_MD))[:N].view(N, -1, self._C)
            qk_NHC, v_NKC = qkv_NHC[:, : -self._K], qkv_NHC[:, -self._K :]
            turned_NHC = qk_NHC.roll(self._C // 2, dims=-1)
            qk_NHC = torch.addcmul(qk_NHC * cos_N1C, turned_NHC, sin_N1C)
            q_NQC, k_NKC = qk_NHC[:, : self._Q], qk_NHC[:, self._Q :]
            k_AKWC, v_AKWC = (
                new.view(A, W, self._K, self._C).transpose(1, 2) for new in (k_NKC, v_NKC)
            )
            keys_AKSC, values_AKSC = past_key_values.update(k_AKWC, v_AKWC, i)
            heads_MQC[:N] = attend(q_NQC, keys_AKSC, values_AKSC)
            x_MD += layer.out(heads_MQC.flatten(1))
            normed_MD = layer.mlp_norm(x_MD)
            x_MD += layer.down(layer.activation(layer.gate(normed_MD)) * layer.up(normed_MD))
        hidden = _norm(self._body.norm)(x_MD[:N]).view(A, W, -1)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)

    def _rotation(self, x: Tensor, position_AW: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, N x 1 x C: x cos + (x, halves exchanged) sin is x rotated."""
        cos_AWC, sin_AWC = self._body.rotary_emb(x, position_AW)
        first, second = sin_AWC.chunk(2, dim=-1)
        sin_AWC = torch.cat([-first, second], dim=-1)
        return cos_AWC.flatten(0, 1)[:, None], sin_AWC.flatten(0, 1)[:, None]

    def _one(self, q_AQC: Tensor, keys: Tensor, values: Tensor, *, bias: Tensor) -> Tensor:
        """One token a sequence, whose heads that share a key-value head go together."""
        q = q_AQC.reshape(-1, self._Q // self._K, self._C)
        scores = torch.baddbmm(bias, q, keys.flatten(0, 1).mT, alpha=self._scale)
        return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view_as(q_AQC)

    def _several(
        self, q_NQC: Tensor, keys: Tensor, values: Tensor, *, mask: Tensor | None
    ) -> Tensor:
        q_AQWC = q_NQC.view(len(keys), -1, self._Q, self._C).transpose(1, 2)
        heads_AQWC = functional.scaled_dot_product_attention(
            q_AQWC,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scale,
            enable_gqa=self._K < self._Q,
        )
        return heads_AQWC.transpose(1, 2).flatten(0, 1)


class _Layer:
    """What a layer does to each token alone."""

    def __init__(self, layer: Any, pack: Pack) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        into = [attention.q_proj, attention.k_proj, attention.v_proj]
        biases = [linear.bias for linear in into if linear.bias is not None]
        self.norm = _norm(layer.input_layernorm)
        self.mlp_norm = _norm(layer.post_attention_layernorm)
        self.qkv = pack(
            torch.cat([linear.weight for linear in into]), torch.cat(biases) if biases else None
        )
        self.out, self.gate, self.up, self.down = (
            pack(linear.weight, linear.bias)
            for linear in (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        )
        self.activation = mlp.act_fn


def _norm(norm: Any) -> Callable[[Tensor], Tensor]:
    weight_D, eps = norm.weight, norm.variance_epsilon
    return lambda x: functional.rms_norm(x, weight_D.shape, weight_D, eps)


def _bias(mask_A11S: Tensor | None, heads: int) -> Tensor:
    """0 or -inf for each column that the one new token of a sequence sees, A K x 1 x S."""
    if mask_A11S is None:
        return torch.zeros(1, 1, 1)
    bias_A1S = torch.zeros(mask_A11S.shape).masked_fill_(~mask_A11S, -torch.inf)[:, 0]
    return bias_A1S.repeat_interleave(heads, 0)


@torch.inference_mode()
def fuses(model: PreTrainedModel) -> bool:
    """Whether the body may be replaced: on a CPU, in float32, and the numbers are the same."""
    body: Any = model.base_model
    if not _known(body):
        return False
    generator = torch.Generator().manual_seed(0)
    token_23 = torch.randint(len(body.embed_tokens.weight), (2, 3), generator=generator)
    try:
        plain, fused = (
            _tried(forward, token_23)
            for forward in (body, FusedBody(body, _unpacked, lambda rows: rows + 1))
        )
    except (RuntimeError, TypeError, AttributeError):
        return False
    return all(
        bool((ours - theirs).norm() <= 1e-4 * theirs.norm())
        for ours, theirs in zip(fused, plain, strict=True)
    )


def _known(body: Any) -> bool:
    """What a trial cannot show: parts that do nothing yet, hooks, windows longer than the trial."""
    layers: list[Any] = [*body.layers] if _consists(body, _BODY) else []
    if not layers or not all(_consists(layer, _LAYER) for layer in layers):
        return False
    groups = [(layer.self_attn, _ATTENTION) for layer in layers]
    groups += [(layer.mlp, _MLP) for layer in layers]
    if not all(_consists(module, names) for module, names in groups):
        return False
    linears = [
        module.get_submodule(name) for module, names in groups for name in names - {"act_fn"}
    ]
    inside = [*body.modules()][1:]
    config = body.config
    kinds = {(parameter.device.type, parameter.dtype) for parameter in body.parameters()}
    return (
        kinds == {("cpu", torch.float32)}
        and all(type(linear) is nn.Linear for linear in linears)
        and not any("forward" in vars(module) for module in (body, *linears))
        and not any(module._forward_hooks or module._forward_pre_hooks for module in inside)
        and not getattr(config, "sliding_window", None)
        and {*(getattr(config, "layer_types", None) or ())} <= {"full_attention"}
    )


def _consists(module: nn.Module, names: set[str]) -> bool:
    return {name for name, _ in module.named_children()} == names


def _tried(forward: Callable[..., Any], token_23: Tensor) -> list[Tensor]:
    """Two sequences: three tokens, one more where rows differ in length, two, one at equal length.

    So all kinds of passes: without a mask and with one, several tokens and one.
    """
    slots = Slots(2, 7, torch.device("cpu"))

    def run(token: Tensor, position: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = forward(
            input_ids=token,
            position_ids=position,
            attention_mask=mask,
            past_key_values=slots,
            use_cache=True,
        ).last_hidden_state
        return out

    return [
        run(token_23, torch.arange(3)[None], slots.span(0, 2, 0, 3)),
        run(token_23[:, :1], torch.tensor([[3], [2]]), slots.step([3, 2])),
        run(token_23[:, 1:], torch.arange(4, 6)[None], slots.span(0, 2, 4, 2)),
        run(token_23[:, 2:], torch.tensor([[6]]), slots.step([6, 6])),
    ]


def _unpacked(weight_OI: Tensor, bias_O: Tensor | None) -> Product:
    return lambda x_MI: functional.linear(x_MI, weight_OI, bias_O)
