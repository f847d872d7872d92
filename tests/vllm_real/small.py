"""A model that vLLM's CPU kernels take (heads of 32 numbers), and its log-probs by transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tpcli.rollout.engine import OwnWeights
from tpcli.rollout.vllm import VllmEngine

VOCABULARY = 300
EOS = [2, 7]
MAX_LEN = 4096
LONG = torch.randint(3, VOCABULARY, (300,), generator=torch.Generator().manual_seed(0)).tolist()
"""More than two blocks of vLLM's prefix cache, which has 128 tokens a block on a CPU."""
FIRST = 280
TOLERANCE = 1e-4


def small_llama(seed: int, *, tied: bool) -> LlamaForCausalLM:
    """Two layers, sharp enough that a wrong weight shows in every log-prob."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_LEN,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    model.train(False)
    return model


def started(folder: Path, *, tied: bool) -> VllmEngine:
    """An engine with the weights of ``small_llama(0)``."""
    small_llama(0, tied=tied).save_pretrained(folder)
    return VllmEngine(
        folder,
        eos_ids=EOS,
        max_len=MAX_LEN,
        max_rows=12,
        dtype="float32",
        seed=0,
        cache_gb=0.2,
        eager=True,
    )


@torch.no_grad()
def log_probs(
    model: LlamaForCausalLM, prompt: Sequence[int], response: Tensor, temperature: float
) -> Tensor:
    """Log-probs of every possible token at each place of ``response``, in float64."""
    ids = torch.tensor([[*prompt, *response.tolist()]])
    logits: Tensor = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
    return (logits / temperature).log_softmax(-1)


def gap(engine: OwnWeights, model: LlamaForCausalLM, temperature: float = 1.2) -> float:
    """Largest difference between the engine's scores and the model's."""
    response = torch.tensor(LONG[FIRST:])
    expected = log_probs(model, LONG[:FIRST], response, temperature).gather(1, response[:, None])
    scores = engine.score(LONG, first=FIRST, temperature=temperature)
    assert scores.shape == (len(LONG) - FIRST,)
    return float((scores - expected[:, 0]).abs().max())


def trained(model: LlamaForCausalLM) -> list[tuple[str, Tensor]]:
    """What a trainer sends: its parameters by name, a tied head left out."""
    named = list(model.named_parameters())
    assert ("lm_head.weight" in dict(named)) is not model.config.tie_word_embeddings
    return [(name, parameter) for name, parameter in named]
