"""What is asked of vLLM and how its answers are read, in this process or over HTTP. No vLLM here.

Responses are asked for by token ids and come back as token ids: nothing is tokenised twice.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from tpcli.errors import RunFailedError, UsageError
from tpcli.rollout.engine import Finished, Progress
from tpcli.rollout.streams import streams
from tpcli.types import Prompt, Rollout

TEMPERATURES = (0.01, 2.0)
"""vLLM silently raises lower ones, and refuses higher ones."""
NO_LOGPROB = -9999.0
"""What a server says for a log-prob that is no number."""
Response = tuple[Sequence[int], Sequence[float], str | None]
"""Tokens, their log-probs, and why it ended."""
Request = tuple[Sequence[int], dict[str, Any]]
"""The tokens to continue, and vLLM's sampling parameters."""


def requests(
    prompts: Sequence[Prompt],
    *,
    group_size: int,
    seed: int,
    temperature: float,
    max_new_tokens: int,
    top_p: float,
    top_k: int,
    eos_ids: Sequence[int],
    max_len: int,
) -> dict[int, Request]:
    """One request a prompt, by its index. vLLM adds g to the seed for response g of a group.

    At temperature 0 a single response is asked for: all of the group are the same (``group``).

    Raises:
        UsageError: a prompt leaves too little room for its response, or vLLM would not use this
            temperature.
    """
    coldest, hottest = TEMPERATURES
    if temperature and not coldest <= temperature <= hottest:
        raise UsageError(
            f"vLLM does not sample at temperature {temperature:g}",
            hint=f"use 0, or {coldest:g} to {hottest:g}",
        )
    longest = max((len(prompt.tokens) for prompt in prompts), default=0)
    if longest + max_new_tokens > max_len:
        raise UsageError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones do not fit vLLM's "
            f"max_model_len of {max_len}",
            hint="allow fewer new tokens, or start vLLM with a larger --max-model-len",
        )
    settings = _plain(temperature) | {
        "n": group_size if temperature > 0 else 1,
        "top_p": top_p,
        "top_k": top_k,
        "max_tokens": max_new_tokens,
        "logprobs": 0,  # the sampled token's alone
        "stop_token_ids": sorted(eos_ids),
    }
    return {
        i: (prompt.tokens, settings | {"seed": stream})
        for i, (prompt, stream) in enumerate(zip(prompts, streams(seed, prompts), strict=True))
    }


def scoring(tokens: Sequence[int], *, first: int, temperature: float) -> dict[int, Request]:
    """One request a token from ``first`` on, by its index: its log-prob after those before it."""
    assert 0 < first < len(tokens)
    return {
        at: (
            tokens[:at],
            _plain(temperature)
            | {
                "n": 1,
                "top_p": 1.0,
                "top_k": 0,
                "max_tokens": 1,
                "logprobs": 1,
                "logprob_token_ids": [tokens[at]],
            },
        )
        for at in range(first, len(tokens))
    }


def _plain(temperature: float) -> dict[str, Any]:
    """No penalty and no end of sequence but ours, whatever the model's generation_config says."""
    return {
        "temperature": temperature,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "ignore_eos": True,
        "detokenize": False,
    }


def group(
    answers: Sequence[Response],
    *,
    group_size: int,
    eos_ids: Sequence[int],
) -> list[Rollout]:
    """The rollouts of one prompt.

    Raises:
        RunFailedError: vLLM gave up a response, or left something out.
    """
    if len(answers) not in (1, group_size):
        raise RunFailedError(
            f"vLLM gave {len(answers)} responses where {group_size} were asked for"
        )
    rollouts = []
    for tokens, logprobs, reason in answers:
        if reason not in ("stop", "length"):
            raise RunFailedError(
                f"vLLM gave up a response: {reason}", hint="vLLM's own log says why"
            )
        if (
            not tokens
            or len(tokens) != len(logprobs)
            or not all(NO_LOGPROB < value < math.inf for value in logprobs)
        ):
            raise RunFailedError(
                f"vLLM answered with {len(tokens)} tokens and log-probs of {list(logprobs)[:4]}..."
            )
        rollouts.append(
            Rollout(
                torch.tensor(list(tokens), dtype=torch.int64),
                torch.tensor(list(logprobs), dtype=torch.float32),
                tokens[-1] in eos_ids,
            )
        )
    return rollouts if len(rollouts) == group_size else rollouts * group_size


def groups(
    answers: Iterable[tuple[int, Sequence[Response]]],
    *,
    prompts: int,
    group_size: int,
    eos_ids: Sequence[int],
    progress: Progress | None,
    finished: Finished | None,
) -> list[list[Rollout]]:
    """Every prompt's rollouts, told of as they come; ``progress`` counts whole groups."""
    found: list[list[Rollout]] = [[] for _ in range(prompts)]
    for done, (i, responses) in enumerate(answers, start=1):
        found[i] = group(responses, group_size=group_size, eos_ids=eos_ids)
        if finished:
            finished(i, found[i])
        if progress:
            progress(done * group_size, prompts * group_size)
    return found


def generate_body(model: str, request: Request) -> dict[str, Any]:
    """A request to ``/inference/v1/generate``."""
    tokens, settings = request
    return {"model": model, "token_ids": list(tokens), "sampling_params": settings}


def completions_body(model: str, request: Request) -> dict[str, Any]:
    """A request to ``/v1/completions``, for a server without the endpoint above."""
    tokens, settings = request
    return {
        "model": model,
        "prompt": list(tokens),
        **{key: value for key, value in settings.items() if key != "detokenize"},
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def choices(
    answer: Mapping[str, Any],
) -> list[Response]:
    """The responses in an answer of either endpoint, in order, as ``group`` takes them."""
    found: list[Response] = []
    for choice in sorted(answer["choices"], key=lambda choice: int(choice["index"])):
        logprobs = choice["logprobs"]
        if "content" in logprobs:
            values = [entry["logprob"] for entry in logprobs["content"]]
        else:
            values = logprobs["token_logprobs"]
        found.append((choice["token_ids"], values, choice["finish_reason"]))
    return found


def scored(answer: Mapping[str, Any], token: int) -> float:
    """The log-prob of ``token`` in an answer of ``/v1/completions`` to a request of ``scoring``."""
    return float(answer["choices"][0]["logprobs"]["top_logprobs"][0][f"token_id:{token}"])


def weight_versions(answer: Mapping[str, Any]) -> set[str]:
    """Labels of the weights that the responses were sampled with; empty where none is told."""
    return {
        span["version"]
        for choice in answer["choices"]
        for span in choice.get("weight_versions") or ()
    }
