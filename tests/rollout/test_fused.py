"""A body in few calls: the model's own numbers, and only where they are."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tests.tiny import EOS, PAD, prompt_of, tiny_llama
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tpcli.rollout.fused import FusedBody, _unpacked, fuses
from tpcli.rollout.slots import Slots
from tpcli.rollout.transformers import TransformersEngine

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": None,
}


def model_of(config: type[Any], **settings: Any) -> Any:
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    model = auto.from_config(config(**SIZES | settings))
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model.train(False)


LIKE_LLAMA = {
    "llama": partial(model_of, LlamaConfig),
    "as many key heads": partial(model_of, LlamaConfig, num_key_value_heads=4),
    "one key head, wide heads": partial(
        model_of, LlamaConfig, num_key_value_heads=1, head_dim=24, attention_bias=True
    ),
    "scaled rope, gelu, biases": partial(
        model_of,
        LlamaConfig,
        hidden_act="gelu",
        mlp_bias=True,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
    ),
    "qwen 2": partial(model_of, Qwen2Config),
}


@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_each_pass_gives_the_models_own_numbers(name: str) -> None:
    model = LIKE_LLAMA[name]()
    assert fuses(model)
    body: Any = model.base_model
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(61, (5, 20), generator=generator)
    found = []
    forward: Any
    for forward in (body, FusedBody(body, _unpacked, lambda rows: -(-rows // 8) * 8)):
        slots = Slots(6, 20, torch.device("cpu"))
        out = []
        for token, first, column in ((drawn[:, :7], 0, 0), (drawn[:3, 7:11], 1, 7)):
            rows, width = token.shape
            position = torch.arange(column, column + width)[None]
            mask = slots.span(first, rows, column, width)
            out.append(forward_of(forward, token, position, mask, slots))
        for i, columns in enumerate(([11, 7, 9, 10, 8], [12, 12, 12], [13, 3])):
            token = drawn[: len(columns), 11 + i, None]
            mask = slots.step(columns)
            out.append(forward_of(forward, token, torch.tensor(columns)[:, None], mask, slots))
        found.append(out)
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def forward_of(
    forward: Any, token: torch.Tensor, position: torch.Tensor, mask: Any, slots: Slots
) -> torch.Tensor:
    out: torch.Tensor = forward(
        input_ids=token,
        position_ids=position,
        attention_mask=mask,
        past_key_values=slots,
        use_cache=True,
    ).last_hidden_state
    return out


def hooked() -> PreTrainedModel:
    model = tiny_llama()
    layer: Any = model.model.layers[1]
    layer.mlp.register_forward_hook(lambda *_: None)
    return model


def adapted() -> PreTrainedModel:
    """As a library of adapters does; what it adds is 0 at the beginning."""

    class Adapted(nn.Linear):
        pass

    model = tiny_llama()
    layer: Any = model.model.layers[1]
    layer.self_attn.q_proj.__class__ = Adapted
    return model


def own_forward() -> PreTrainedModel:
    model = tiny_llama()
    layer: Any = model.model.layers[0]
    layer.mlp.up_proj.forward = partial(nn.Linear.forward, layer.mlp.up_proj)
    return model


def doubled() -> PreTrainedModel:
    """All parts have the right names; one computes something else."""
    model = tiny_llama()
    layer: Any = model.model.layers[1]
    layer.mlp.forward = lambda x: 2 * type(layer.mlp).forward(layer.mlp, x)
    return model


def elsewhere() -> PreTrainedModel:
    model: Any = tiny_llama()
    return model.to("meta")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make",
    [
        hooked,
        adapted,
        own_forward,
        doubled,
        lambda: tiny_llama().bfloat16(),
        elsewhere,
        partial(model_of, Qwen3Config, head_dim=8),  # norms of queries and keys
        partial(model_of, MistralConfig, sliding_window=8),
        partial(model_of, GraniteConfig, residual_multiplier=0.5),
    ],
)
def test_what_computes_something_else_keeps_its_own_body(
    make: Callable[[], PreTrainedModel],
) -> None:
    model = make()
    assert not fuses(model)


@pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="torch without oneDNN",
)
def test_responses_are_the_same_with_it_and_without() -> None:
    prompts = [prompt_of([5, 9, 3, *range(20, 20 + n)], str(n)) for n in (3, 1, 8)]
    found = []
    for fused in (True, False):
        engine = TransformersEngine(tiny_llama(), eos_ids=[EOS], pad_id=PAD, max_rows=7)
        engine._fused = fused
        found.append(
            engine.sample(prompts, group_size=4, seed=0, temperature=1.0, max_new_tokens=12)
        )
    for ours, theirs in zip(*found, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.tokens_L.tolist() == other.tokens_L.tolist()
            torch.testing.assert_close(one.logprobs_L, other.logprobs_L)


def test_the_engine_finds_out_once() -> None:
    engine = TransformersEngine(tiny_llama(), eos_ids=[EOS], pad_id=PAD)
    engine.sample([prompt_of([5, 9])], group_size=1, seed=0, temperature=1.0, max_new_tokens=2)
    assert engine._fused is True
