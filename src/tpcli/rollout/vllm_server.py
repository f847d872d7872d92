"""Client of a separate ``vllm serve``: responses over HTTP, weights by a ``Transfer``.

Read against vLLM 0.32.0. Responses come from ``/inference/v1/generate`` where the server offers it
(it says which weights each token was sampled with), else from ``/v1/completions``.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from typing import Any

import torch
from torch import Tensor

from tpcli.errors import RunFailedError, UsageError
from tpcli.rollout import vllm_requests
from tpcli.rollout.engine import Finished, Progress
from tpcli.rollout.vllm_http import Calls, RefusedError
from tpcli.rollout.vllm_transfer import Transfer
from tpcli.types import Prompt, Rollout

RESTART = "restart it, see its log; `tpcli resume` goes on from the last checkpoint"
GENERATE, COMPLETIONS = "/inference/v1/generate", "/v1/completions"


def serve_command(model: str, transfer: Transfer) -> str:
    """How the server must be started."""
    return (
        f"VLLM_SERVER_DEV_MODE=1 vllm serve {model} --logprobs-mode processed_logprobs "
        f"--generation-config vllm --enable-scale-out{transfer.flags}"
    )


Answers = Generator[tuple[int, Any], None, None]
"""Which request, and what came of it."""


class VllmServer:
    """Samples on a server that holds a copy of the weights, which ``load`` replaces."""

    def __init__(
        self,
        url: str,
        *,
        eos_ids: Sequence[int],
        transfer: Transfer,
        timeout: float = 600.0,
        connections: int = 64,
    ) -> None:
        """Find out what the server offers.

        Args:
            url: "http://host:8000".
            eos_ids: tokens that end a response.
            transfer: how ``load`` brings weights to it.
            timeout: seconds that one request may take, its time in the server's queue included.
            connections: groups that are asked for at a time.

        Raises:
            UsageError: the server was started without something that is needed.
            RunFailedError: there is no server.
        """
        self._calls = Calls(url, timeout)
        self._eos = tuple(eos_ids)
        self._transfer = transfer
        self._connections = connections
        self._drawing: set[Calls] = set()  # in any thread
        self._version, self._loaded = 0, False
        try:
            model = self._ask(self._calls.get, "/v1/models")["data"][0]
        except RunFailedError as error:
            raise RunFailedError(
                error.message, hint=f"start it: {serve_command('MODEL', transfer)}"
            ) from error
        self._model, self._max_len = str(model["id"]), int(model["max_model_len"])
        command = serve_command(str(model.get("root") or self._model), transfer)
        self._require_updates(command)
        self._path = self._require_logprobs(command)

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        seed: int,
        temperature: float,
        max_new_tokens: int,
        top_p: float = 1.0,
        top_k: int = 0,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Rollout]]:
        """See ``RolloutEngine``. ``progress`` counts whole groups.

        Raises:
            UsageError: prompt and response do not fit the server's ``--max-model-len``, or the
                temperature vLLM.
            RunFailedError: the server failed, or answered with weights that were not ``load``ed.
        """
        asked = vllm_requests.requests(
            prompts,
            group_size=group_size,
            seed=seed,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            top_p=top_p,
            top_k=top_k,
            eos_ids=self._eos,
            max_len=self._max_len,
        )
        with closing(self._answers(asked, self._path)) as answers:
            return vllm_requests.groups(
                ((i, vllm_requests.choices(answer)) for i, answer in answers),
                prompts=len(prompts),
                group_size=group_size,
                eos_ids=self._eos,
                progress=progress,
                finished=finished,
            )

    @property
    def version(self) -> int:
        """See ``OwnWeights``."""
        return self._version

    @torch.no_grad()
    def load(self, named: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """See ``OwnWeights``. Waits until the responses under way, whoever asked, are done.

        A server whose update is cut off stays paused: its weights are neither the old nor the new.
        """
        self._ask(self._calls.post, "/pause?mode=wait")
        with _refusals():
            self._transfer.send(self._calls, named)
        if not self._ask(self._calls.post, "/reset_prefix_cache")["success"]:
            raise RunFailedError("the vLLM server did not reset its prefix cache", hint=RESTART)
        self._ask(self._calls.post, "/reset_encoder_cache")
        self._ask(self._calls.post, "/update_weight_version", {"new_version": str(version)})
        self._version, self._loaded = version, True
        self._ask(self._calls.post, "/resume")

    def score(self, tokens: Sequence[int], *, first: int, temperature: float) -> Tensor:
        """See ``OwnWeights``. The other endpoint would not name a token that was not sampled."""
        asked = vllm_requests.scoring(tokens, first=first, temperature=temperature)
        with closing(self._answers(asked, COMPLETIONS)) as answers:
            found = {at: vllm_requests.scored(answer, tokens[at]) for at, answer in answers}
        return torch.tensor([found[at] for at in asked], dtype=torch.float32)

    def sleep(self) -> None:
        """See ``OwnWeights``: its devices are its own."""

    def close(self) -> None:
        """See ``OwnWeights``. The server itself goes on."""
        self._calls.cut()
        for calls in tuple(self._drawing):
            calls.cut()

    def _answers(self, asked: Mapping[int, vllm_requests.Request], path: str) -> Answers:
        """Each answer as it arrives; what is left is broken off when closed early."""
        build = vllm_requests.generate_body if path == GENERATE else vllm_requests.completions_body
        oldest = self._version
        calls = Calls(self._calls.url, self._calls.timeout)
        self._drawing.add(calls)
        pool = ThreadPoolExecutor(max(1, min(self._connections, len(asked))))
        try:
            pending = {
                pool.submit(self._ask, calls.post, path, build(self._model, request)): key
                for key, request in asked.items()
            }
            for future in as_completed(pending):
                answer = future.result()
                self._check_versions(answer, oldest)
                yield pending[future], answer
        finally:
            calls.cut()
            self._drawing.discard(calls)
            pool.shutdown(cancel_futures=True)

    def _check_versions(self, answer: Any, oldest: int) -> None:
        """Weights may be loaded while responses are asked for; any others are not ours."""
        strange = vllm_requests.weight_versions(answer) - {str(oldest), str(self._version)}
        if self._loaded and strange:
            raise RunFailedError(
                f"the vLLM server sampled with weights {sorted(strange)[0]}, "
                f"not with those of step {self._version}",
                hint="no other run may load weights into the same server",
            )

    def _require_updates(self, command: str) -> None:
        try:
            paused = self._calls.get("/is_paused")["is_paused"]
        except RefusedError as error:
            raise UsageError(
                f"the vLLM server at {self._calls.url} takes no weights: {error}", hint=command
            ) from error
        if paused:
            raise UsageError(
                f"the vLLM server at {self._calls.url} is paused: an update of its weights was "
                "cut off, or another run is loading some",
                hint=f"restart it: {command}",
            )

    def _require_logprobs(self, command: str) -> str:
        """Which endpoint to use. With one token to draw from, its true log-prob is 0."""
        settings = {"n": 1, "temperature": 1.0, "top_k": 1, "max_tokens": 1, "logprobs": 0}
        request = ([self._eos[0]], settings | {"ignore_eos": True, "detokenize": False})
        path = GENERATE
        try:
            answer = self._calls.post(path, vllm_requests.generate_body(self._model, request))
        except RefusedError:
            path = COMPLETIONS
            body = vllm_requests.completions_body(self._model, request)
            answer = self._ask(self._calls.post, path, body)
        if abs(vllm_requests.choices(answer)[0][1][0]) > 1e-6:
            raise UsageError(
                f"the vLLM server at {self._calls.url} gives log-probs of another distribution "
                "than it samples from",
                hint=f"start it with --logprobs-mode processed_logprobs: {command}",
            )
        return path

    def _ask(self, call: Any, path: str, *body: Any) -> Any:
        with _refusals():
            return call(path, *body)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except RefusedError as error:
        raise RunFailedError(f"the vLLM server failed: {error}", hint=RESTART) from error
