"""A Llama-like body for the small passes of decoding on a CPU, in few calls.

Where a pass has some twenty rows, a third of its time goes into what stands between the products:
dozens of small operations a layer, and the modules around them. Here queries, keys and values come
from one product, rows are made up to a round number once a pass, and a norm is one call. Only
transformers' own classes, unchanged, are replaced, and only once a trial has given their numbers.

Letters: A sequences, W new tokens of each, N = A x W tokens, M rows of a product (N or a few more),
S columns seen, D hidden size, Q query heads, K key-value heads, H = Q + 2 K, C width of a head, I
and O what goes into a product and comes out.
"""

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, LlamaModel, Qwen2Model
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2DecoderLayer,
    Qwen2MLP,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)

from tpcli.rollout.slots import Slots, hidden_states

Product = Callable[[Tensor], Tensor]
"""x_MI -> x_MI W^T + b."""

Pack = Callable[[Tensor, Tensor | None], Product]
"""(W_OI, b_O) -> the product with them."""

_PARTS = {
    LlamaModel: {LlamaDecoderLayer, LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding},
    Qwen2Model: {Qwen2DecoderLayer, Qwen2Attention, Qwen2MLP, Qwen2RMSNorm, Qwen2RotaryEmbedding},
}
"""Bodies that compute what is written here, and the classes of what they consist of. Others with
parts of the same names and shapes do something else: scale queries with their position, say."""

_PLAIN = {nn.Embedding, nn.ModuleList, nn.Linear}

_LEAN = "tpcli.policy.lean"
"""Where forwards come from that are the class's own when no gradient is wanted."""

TOLERANCE = 1e-4
"""Of a trial, relative: float32 sums in another order differ by 1e-6, a wrong formula by .1."""


class FusedBody:
    """In the place of a base model's ``forward``, with its layers' matrices as they are now."""

    @torch.no_grad()
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
            attention_mask: bool, A x 1 x W x S or 1 x 1 x W x S, with A rows where W is 1; None
                for plain causal attention, where W is S or 1.
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


def _bias(mask_A11S: Tensor | None, kv_heads: int) -> Tensor:
    """0 or -inf for each column that the one new token of a sequence sees, A K x 1 x S."""
    if mask_A11S is None:
        return torch.zeros(1, 1, 1, dtype=torch.float32)
    bias_A11S = torch.zeros(mask_A11S.shape, dtype=torch.float32)
    return bias_A11S.masked_fill_(~mask_A11S, -torch.inf)[:, 0].repeat_interleave(kv_heads, 0)


def fuses(model: nn.Module) -> bool:
    """Whether the model's body may be replaced now; a trial is made once for each body."""
    body = getattr(model, "base_model", None)
    if body is None or not _unchanged(body):
        return False
    if body not in _same:
        _same[body] = _try(body)
    return _same[body]


_same: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _unchanged(body: Any) -> bool:
    """The body is of known classes, on a CPU in float32, without hooks, adapters or dropout."""
    if type(body) not in _PARTS:
        return False
    inside = [*body.modules()][1:]
    parts = [part for name, part in body.named_modules() if name and not name.endswith(".act_fn")]
    known = _PARTS[type(body)] | _PLAIN
    config = body.config
    return (
        {(weight.device.type, weight.dtype) for weight in body.parameters()}
        == {("cpu", torch.float32)}
        and all(type(part) in known for part in parts)
        and not any(module._forward_hooks or module._forward_pre_hooks for module in inside)
        and "forward" not in vars(body)
        and all(_lean(vars(module)["forward"]) for module in inside if "forward" in vars(module))
        and not getattr(config, "sliding_window", None)
        and not (body.training and config.attention_dropout)
    )


def _lean(forward: object) -> bool:
    return isinstance(forward, MethodType) and forward.__func__.__module__ == _LEAN


@torch.inference_mode()
def _try(body: Any) -> bool:
    """Whether both give the same numbers; where either fails, sampling itself will say why."""
    generator = torch.Generator().manual_seed(0)
    token_23 = torch.randint(len(body.embed_tokens.weight), (2, 3), generator=generator)
    try:
        fused = FusedBody(body, _unpacked, lambda rows: rows + 1)
        plain_4, fused_4 = _tried(body, token_23), _tried(fused, token_23)
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError):
        return False
    return all(
        bool((ours - theirs).norm() <= TOLERANCE * theirs.norm())
        for ours, theirs in zip(fused_4, plain_4, strict=True)
    )


def _tried(forward: Callable[..., Any], token_23: Tensor) -> list[Tensor]:
    """Two sequences: three tokens, one more where rows differ in length, two, one at equal length.

    So all kinds of passes: without a mask and with one, several tokens and one.
    """
    slots = Slots(2, 7, torch.device("cpu"))
    run = partial(hidden_states, forward, slots)
    return [
        run(token_23, torch.arange(3)[None], slots.span(0, 2, 0, 3)),
        run(token_23[:, :1], torch.tensor([[3], [2]]), slots.step([3, 2])),
        run(token_23[:, 1:], torch.arange(4, 6)[None], slots.span(0, 2, 4, 2)),
        run(token_23[:, 2:], torch.tensor([[6]]), slots.step([6, 6])),
    ]


def _unpacked(weight_OI: Tensor, bias_O: Tensor | None) -> Product:
    return lambda x_MI: functional.linear(x_MI, weight_OI, bias_O)
