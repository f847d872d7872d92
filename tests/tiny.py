"""A small random model and batches of made-up responses, for tests of every stage that runs one."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tpcli.types import Prompt, Question, TokenBatch

VOCABULARY = 61
PAD = 0
EOS = 1


def tiny_llama(seed: int = 0, *, tied: bool = True, kv_heads: int = 2) -> LlamaForCausalLM:
    """Two layers, grouped-query attention, sharp enough that tokens differ in probability."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=None,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("sdpa")
    model.train(False)
    return model


def prompt_of(tokens: list[int], name: str = "q") -> Prompt:
    return Prompt(Question(name, name, "0"), tuple(tokens))


def random_batch(
    lengths: list[int], prompts: list[int], *, group_size: int, seed: int = 0, shared: int = 0
) -> TokenBatch:
    """Responses of the given lengths to prompts of the given lengths, with random rewards.

    All prompts begin with the same ``shared`` tokens, on top of their lengths.
    """
    generator = torch.Generator().manual_seed(seed)
    assert len(lengths) == len(prompts) * group_size
    width = max(lengths)
    mask_BT = torch.arange(width) < torch.tensor(lengths)[:, None]
    head = torch.randint(2, VOCABULARY, (shared,), generator=generator).tolist()
    tokens_BT = torch.randint(2, VOCABULARY, (len(lengths), width), generator=generator)
    return TokenBatch(
        prompts=[
            prompt_of(
                head + torch.randint(2, VOCABULARY, (n,), generator=generator).tolist(), str(i)
            )
            for i, n in enumerate(prompts)
        ],
        tokens_BT=torch.where(mask_BT, tokens_BT, PAD),
        mask_BT=mask_BT,
        rollout_logprob_BT=torch.where(
            mask_BT, -2 + torch.rand(mask_BT.shape, generator=generator), 0.0
        ),
        reward_B=(torch.rand(len(lengths), generator=generator) > 0.5).float(),
        advantage_B=torch.randn(len(lengths), generator=generator),
        group_size=group_size,
    )
