"""The client of a vLLM server against one that is made up, and dies in every way."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.rollout.fake_vllm import COMPLETED, GENERATED, FakeServer
from tests.tiny import prompt_of, tiny_llama

from tpcli.errors import RunFailedError, UsageError
from tpcli.rollout.vllm_http import Calls
from tpcli.rollout.vllm_server import COMPLETIONS, GENERATE, VllmServer
from tpcli.rollout.vllm_transfer import NcclTransfer, PathTransfer, within

EOS = [2]


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
            assert release.wait(60)
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
    fake.replies[GENERATE] = lambda _: time.sleep(30)
    began = time.monotonic()
    with pytest.raises(
        RunFailedError, match=r"did not answer /inference/v1/generate within 0\.5 s"
    ):
        sample(client)
    assert time.monotonic() - began < 15


def test_a_failure_does_not_wait_for_the_other_requests(fake: FakeServer, tmp_path: Path) -> None:
    """One prompt fails while another would take half a minute: the error comes at once."""
    client = client_of(fake, tmp_path)

    def reply(body: dict[str, Any]) -> Any:
        if body["token_ids"] == [5]:
            return 500
        time.sleep(30)
        return 500

    fake.replies[GENERATE] = reply
    began = time.monotonic()
    with pytest.raises(RunFailedError, match="answered 500"):
        sample(client)
    assert time.monotonic() - began < 15


def test_closing_ends_what_another_thread_draws(fake: FakeServer, tmp_path: Path) -> None:
    """So that a run that failed does not wait for the responses of the next step."""
    asked, release = threading.Event(), threading.Event()

    def reply(body: dict[str, Any]) -> Any:
        asked.set()
        release.wait(120)
        return {}

    client = client_of(fake, tmp_path)
    fake.replies[GENERATE] = reply
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(sample, client)
        assert asked.wait(60)
        client.close()
        with pytest.raises(RunFailedError):
            drawing.result(timeout=60)
        release.set()


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
