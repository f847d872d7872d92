"""A body in few calls: the model's own numbers, and only where they are."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from tests.tiny import EOS, PAD, prompt_of, tiny_llama
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GraniteConfig,
    LlamaConfig,
    Ministral3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from tpcli.policy.lean import keep_less
from tpcli.rollout import fused as fused_module
from tpcli.rollout import prepacked as prepacked_module
from tpcli.rollout.fused import FusedBody, _unpacked, fuses
from tpcli.rollout.prepacked import prepacked
from tpcli.rollout.slots import Slots, hidden_states
from tpcli.rollout.transformers import TransformersEngine

oneDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
    reason="torch without oneDNN",
)

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
    "rope that grows with length": partial(
        model_of, LlamaConfig, rope_scaling={"rope_type": "dynamic", "factor": 4.0}
    ),
    "qwen 2": partial(model_of, Qwen2Config),
}


@pytest.mark.parametrize("name", LIKE_LLAMA)
@torch.inference_mode()
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
            out.append(hidden_states(forward, slots, token, position, mask))
        for i, columns in enumerate(([11, 7, 9, 10, 8], [12, 12, 12], [13, 3])):
            token = drawn[: len(columns), 11 + i, None]
            mask = slots.step(columns)
            position = torch.tensor(columns)[:, None]
            out.append(hidden_states(forward, slots, token, position, mask))
        found.append(out)
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def layer_of(model: PreTrainedModel, number: int = 1) -> Any:
    body: Any = model.base_model
    return body.layers[number]


def hook(model: PreTrainedModel) -> None:
    layer_of(model).mlp.register_forward_hook(lambda *_: None)


def accelerate_hook(model: PreTrainedModel) -> None:
    keep_less(model)
    add_hook_to_module(layer_of(model).mlp, ModelHook())


def adapt(model: PreTrainedModel) -> None:
    """As a library of adapters does; what it adds is 0 at the beginning."""

    class Adapted(nn.Linear):
        pass

    layer_of(model).self_attn.q_proj.__class__ = Adapted


def steer(model: PreTrainedModel) -> None:
    class Steered(LlamaMLP):
        pass

    layer_of(model).mlp.__class__ = Steered


def replace(model: PreTrainedModel) -> None:
    layer_of(model).mlp = nn.Identity()


def own_forward(model: PreTrainedModel) -> None:
    layer = layer_of(model)
    layer.forward = partial(type(layer).forward, layer)


def own_body(model: PreTrainedModel) -> None:
    body: Any = model.base_model
    body.forward = Mock(wraps=body.forward)


def drop(model: PreTrainedModel) -> None:
    model.config.attention_dropout = 0.5
    model.train()


CHANGES: list[Callable[[PreTrainedModel], object]] = [
    hook,
    accelerate_hook,
    adapt,
    steer,
    replace,
    own_forward,
    own_body,
    drop,
    lambda model: model.bfloat16(),
    lambda model: nn.Module.to(model, torch.device("meta")),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_body_that_is_changed_keeps_its_own_forward(
    change: Callable[[PreTrainedModel], object],
) -> None:
    """Also where the change comes after the trial."""
    model = tiny_llama()
    assert fuses(model)
    change(model)
    assert not fuses(model)
    before = vars(model.base_model).get("forward")
    with prepacked(model):
        assert vars(model.base_model).get("forward") is before
    assert vars(model.base_model).get("forward") is before


@pytest.mark.parametrize(
    "make",
    [
        partial(model_of, Qwen3Config, head_dim=8),  # norms of queries and keys
        partial(model_of, Qwen2Config, use_sliding_window=True, max_window_layers=1),
        partial(model_of, GraniteConfig, residual_multiplier=0.5),
        partial(model_of, Ministral3Config),  # its queries grow with the logarithm of the position
        partial(nn.Linear, 4, 4),
    ],
)
def test_other_models_are_left_alone(make: Callable[[], nn.Module]) -> None:
    assert not fuses(make())


def test_lean_forms_do_not_matter() -> None:
    model = tiny_llama()
    keep_less(model)
    assert "forward" in vars(layer_of(model).mlp)
    assert fuses(model)


@pytest.mark.parametrize(
    "norm", [Mock(side_effect=AttributeError), Mock(return_value=lambda x: 1.001 * x)]
)
def test_a_trial_that_fails_or_differs_is_a_no(norm: Mock, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another version of transformers might make it."""
    monkeypatch.setattr(fused_module, "_norm", norm)
    assert not fuses(tiny_llama())


def test_a_body_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Mock(return_value=True)
    monkeypatch.setattr(fused_module, "_try", trial)
    model, other = tiny_llama(), tiny_llama()
    assert fuses(model)
    assert fuses(model)
    assert fuses(other)
    assert [call.args[0] for call in trial.call_args_list] == [model.model, other.model]


@oneDNN
@pytest.mark.parametrize("shared", [0, 18])
def test_responses_are_the_same_with_it_and_without(
    shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts of one token and of several, all that begin alike, rows that leave and enter."""
    head = range(20, 20 + shared)
    prompts = [prompt_of([*head, *range(5, 5 + n)], str(n)) for n in (3, 1, 8)]
    found = []
    for fused in (True, False):
        model = tiny_llama()
        if not fused:
            monkeypatch.setattr(prepacked_module, "fuses", lambda _: False)
        engine = TransformersEngine(model, eos_ids=[EOS], pad_id=PAD, max_rows=7)
        replaced: list[bool] = []

        def look(*_: int, model: Any = model, replaced: list[bool] = replaced) -> None:
            replaced.append("forward" in vars(model.base_model))

        found.append(
            engine.sample(
                prompts, group_size=4, seed=0, temperature=1.0, max_new_tokens=12, progress=look
            )
        )
        assert {*replaced} == {fused}
        assert "forward" not in vars(model.base_model)
    for ours, theirs in zip(*found, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.tokens_L.tolist() == other.tokens_L.tolist()
            torch.testing.assert_close(one.logprobs_L, other.logprobs_L, rtol=1e-4, atol=1e-5)


@oneDNN
def test_packing_that_fails_half_way_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    assert fuses(model)
    monkeypatch.setattr(prepacked_module, "_packed", Mock(side_effect=[None] * 6 + [MemoryError]))
    with pytest.raises(MemoryError), prepacked(model):
        pass
    assert not any("forward" in vars(module) for module in model.modules())
