"""A real ``vllm serve`` in processes of its own: responses, weights through a folder, death."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import prompt_of
from tests.vllm_real.serving import Server
from tests.vllm_real.small import EOS, TOLERANCE, gap, log_probs, small_llama, trained

from tpcli.errors import RunFailedError, UsageError
from tpcli.rollout import vllm_server
from tpcli.rollout.vllm_server import VllmServer
from tpcli.rollout.vllm_transfer import PathTransfer
from tpcli.types import Rollout

pytest.importorskip("vllm")

PROMPTS = [prompt_of([5, 9, 3], "p"), prompt_of([7], "q"), prompt_of([2, 4, 8, 11, 30], "r")]
FLAGS = ("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(folder, *FLAGS, "--enable-scale-out", VLLM_SERVER_DEV_MODE="1")
    yield server
    server.stop()


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[VllmServer]:
    """With the weights of ``small_llama(0)``: a test that loads others loads them back."""
    client = connected(server, tmp_path)
    yield client
    client.close()


def connected(server: Server, folder: Path) -> VllmServer:
    transfer = PathTransfer(folder / "weights", head=True)
    return VllmServer(server.url, eos_ids=EOS, transfer=transfer, timeout=60)


def sample(client: VllmServer, **changes: Any) -> list[list[Rollout]]:
    settings: dict[str, Any] = {
        "prompts": PROMPTS,
        "group_size": 6,
        "seed": 3,
        "temperature": 1.2,
        "max_new_tokens": 40,
    }
    return client.sample(**settings | changes)


def tokens(groups: list[list[Rollout]]) -> list[list[list[int]]]:
    return [[rollout.tokens_L.tolist() for rollout in group] for group in groups]


@pytest.mark.parametrize("path", [vllm_server.GENERATE, vllm_server.COMPLETIONS])
def test_both_endpoints_answer_the_same(client: VllmServer, path: str) -> None:
    """Exact tokens, the model's own log-probs, and each response ended by an eos or the limit."""
    assert client._path == vllm_server.GENERATE
    everywhere = tokens(sample(client))
    client._path = path
    model, seen = small_llama(0, tied=True), []
    counts: list[tuple[int, int]] = []
    groups = sample(
        client,
        finished=lambda i, group: seen.append(i),
        progress=lambda *count: counts.append(count),
    )
    worst = 0.0
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for rollout in group:
            every = log_probs(model, prompt.tokens, rollout.tokens_L, 1.2)
            expected_L = every.gather(1, rollout.tokens_L[:, None])[:, 0]
            worst = max(worst, float((rollout.logprobs_L - expected_L).abs().max()))
            assert rollout.finished == (int(rollout.tokens_L[-1]) in EOS)
            assert rollout.finished or len(rollout.tokens_L) == 40
    scores = gap(client, model)
    print(f"{path}: largest gap of a response {worst:.1e}, of a score {scores:.1e}")
    assert worst < TOLERANCE
    assert scores < TOLERANCE
    assert tokens(groups) == everywhere
    assert sorted(seen) == [0, 1, 2]
    assert counts == [(6, 18), (12, 18), (18, 18)]


def test_a_group_is_reported_while_others_generate(client: VllmServer) -> None:
    """The first of two groups is handed on long before the second is done."""
    times = []
    client._connections = 1
    sample(client, max_new_tokens=200, finished=lambda i, group: times.append(time.perf_counter()))
    assert times[-1] - times[0] > 0.1


def test_weights_really_change_through_a_folder(client: VllmServer) -> None:
    old, new = small_llama(0, tied=True), small_llama(1, tied=True)
    responses = tokens(sample(client))
    assert gap(client, old) < TOLERANCE
    before = gap(client, new)
    assert before > 1
    began = time.perf_counter()
    client.load(trained(new), version=7)
    seconds = time.perf_counter() - began
    after = gap(client, new)
    print(f"gap to the new weights {before:.1e}, after a load of {seconds:.2f} s {after:.1e}")
    assert after < TOLERANCE
    assert client.version == 7
    assert client._calls.get("/weight_info") == {"weight_version": "7"}
    assert tokens(sample(client)) != responses
    client.load(trained(old), version=0)
    assert tokens(sample(client)) == responses


@pytest.mark.parametrize(
    "forgotten", [{"/collective_rpc"}, {"/pause?mode=wait", "/reset_prefix_cache"}]
)
def test_a_broken_sync_shows_in_the_scores(
    client: VllmServer, monkeypatch: pytest.MonkeyPatch, forgotten: set[str]
) -> None:
    """Without the weights, or with cached prefixes of the old ones, the scores are not right.

    A pause already forgets the prefixes (0.32.0); that is not promised for every version.
    """
    old, new = small_llama(0, tied=True), small_llama(1, tied=True)
    assert gap(client, old) < TOLERANCE  # fills the prefix cache
    post = client._calls.post

    def without(path: str, body: dict[str, Any] | None = None) -> Any:
        return {"success": True} if path in forgotten else post(path, body)

    with monkeypatch.context() as patch:
        patch.setattr(client._calls, "post", without)
        client.load(trained(new), version=1)
    assert gap(client, new) > 0.1
    client.load(trained(old), version=0)
    assert gap(client, old) < TOLERANCE


def test_weights_of_somebody_else_are_noticed(client: VllmServer) -> None:
    client.load(trained(small_llama(0, tied=True)), version=3)
    client._calls.post("/update_weight_version", {"new_version": "theirs"})
    with pytest.raises(RunFailedError, match="sampled with weights theirs, not with those of"):
        sample(client)
    client.load(trained(small_llama(0, tied=True)), version=0)
    sample(client)


def test_a_server_that_stays_paused_is_refused(client: VllmServer, tmp_path: Path) -> None:
    client._calls.post("/pause?mode=wait")
    assert client._calls.get("/is_paused") == {"is_paused": True}
    with pytest.raises(UsageError, match="is paused"):
        VllmServer(client._calls.url, eos_ids=EOS, transfer=PathTransfer(tmp_path), timeout=30)
    client._calls.post("/resume")


def test_an_interruption_stops_the_server_too(client: VllmServer) -> None:
    """Ctrl-C while thousands of tokens are under way: nobody waits for them, the server neither."""
    main = threading.main_thread().ident
    assert main is not None
    # Ctrl-C is ignored in what a script starts in the background, tests included.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1.0, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    began = time.perf_counter()
    client._eos = (299,)  # a token that hardly ever comes
    with pytest.raises(KeyboardInterrupt):
        sample(client, group_size=16, max_new_tokens=4000)
    interrupted = time.perf_counter() - began
    sample(client, group_size=1, max_new_tokens=2)
    print(f"interrupted after {interrupted:.1f} s, free {time.perf_counter() - began:.1f} s")
    assert interrupted < 20
    assert time.perf_counter() - began < 40


def in_mid_request(client: VllmServer, kill: Callable[[], None]) -> tuple[RunFailedError, float]:
    """Ask for far more than can be done in a second, kill, and wait for the error."""
    killed: list[float] = []

    def strike() -> None:
        killed.append(time.perf_counter())
        kill()

    timer = threading.Timer(2.0, strike)
    timer.start()
    client._eos = (299,)  # a token that hardly ever comes
    with pytest.raises(RunFailedError) as caught:
        sample(client, group_size=16, max_new_tokens=4000)
    timer.join()
    return caught.value, time.perf_counter() - killed[0]


def test_an_engine_that_is_killed_in_mid_request(server: Server, client: VllmServer) -> None:
    error, seconds = in_mid_request(client, server.kill_engine)
    print(f"engine killed, after {seconds:.2f} s: {error.message} ({error.hint})")
    assert "the vLLM server" in error.message
    assert "tpcli resume" in error.hint
    assert seconds < 60
    with pytest.raises(RunFailedError, match="the vLLM server"):
        sample(client)


def test_a_server_that_is_killed_in_mid_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one was started as for chatting: what it lacks is named, or made up for."""
    server = Server(tmp_path, *FLAGS)
    try:
        with pytest.raises(UsageError, match="takes no weights") as lack:
            connected(server, tmp_path)
        assert f"VLLM_SERVER_DEV_MODE=1 vllm serve {tmp_path}/model" in lack.value.hint
        monkeypatch.setattr(VllmServer, "_require_updates", lambda self, command: None)
        client = connected(server, tmp_path)
        assert client._path == vllm_server.COMPLETIONS
        assert gap(client, small_llama(0, tied=True)) < TOLERANCE
        error, seconds = in_mid_request(client, server.kill)
        print(f"server killed, after {seconds:.2f} s: {error.message} ({error.hint})")
        assert "is gone" in error.message
        assert seconds < 10
        with pytest.raises(RunFailedError, match="is gone"):
            client.load(trained(small_llama(1, tied=True)), version=1)
    finally:
        server.stop()


def test_parameters_are_saved_as_they_are(tmp_path: Path) -> None:
    """No server: the file alone, with the head that an untied server wants."""
    from safetensors.torch import load_file

    sent: list[tuple[str, Any]] = []

    class Calls:
        def post(self, path: str, body: Any) -> None:
            sent.append((path, body))

    model = small_llama(0, tied=True)
    PathTransfer(tmp_path, head=True).send(Calls(), trained(model))  # type: ignore[arg-type]
    written = load_file(tmp_path / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], model.lm_head.weight)
    assert written.keys() == {*dict(model.named_parameters()), "lm_head.weight"}
    assert sent[0][1]["kwargs"] == {"weights_path": str(tmp_path)}
