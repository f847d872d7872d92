"""vLLM in the trainer's own process: one engine a process, or one for a group of processes.

Read against vLLM 0.32.0. Weights are replaced by the worker's ``reload_weights``, which takes them
as they stand in a checkpoint (fused, padded and sharded weights are vLLM's own business).
"""

import gc
import os
import random
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcli.errors import RunFailedError
from tpcli.rollout import vllm_requests
from tpcli.rollout.engine import Finished, Progress
from tpcli.rollout.vllm_version import check_vllm
from tpcli.rollout.vllm_weights import is_tied, saved, with_head
from tpcli.types import Prompt, Rollout

SETTINGS = {
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # results stand on the standard output
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Environment variables of vLLM that the user's own take precedence over."""
CONTINUE = "vLLM's own words are above or in the run's log; `tpcli resume` goes on with a run"

Answers = Generator[tuple[int, Any], None, None]
"""Which request, and what came of it."""


class VllmEngine:
    """Samples with vLLM from a copy of the weights, which ``load`` replaces.

    A process has one at a time: vLLM keeps its process groups in the process, not in the engine.
    Under a launcher (torchrun, accelerate) every process makes one, in the same order;
    ``tensor_parallel`` consecutive processes share one copy, and must then call every method at the
    same time with the same arguments.
    """

    def __init__(
        self,
        folder: Path,
        *,
        eos_ids: Sequence[int],
        max_len: int,
        max_rows: int,
        dtype: str,
        seed: int,
        tensor_parallel: int = 1,
        memory: float = 0.4,
        cache_gb: float | None = None,
        eager: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """Load ``folder``.

        Args:
            folder: config.json and weights; no tokeniser is needed.
            eos_ids: tokens that end a response.
            max_len: tokens of a prompt and its response together, at most.
            max_rows: responses that are generated at a time.
            dtype: as torch spells it: "bfloat16", "float32".
            seed: of draws without a seed of their own, of which ``sample`` makes none.
            memory: share of the device's memory for weights, keys and values.
            cache_gb: gigabytes for keys and values instead; on a CPU, where ``memory`` is a share
                of all main memory, usually the better choice.
            trust_remote_code: run Python code that ships with the model.
            eager: do without compilation and CUDA graphs: starts faster, runs slower.

        Raises:
            UsageError: vLLM is missing or of another version.
            RunFailedError: vLLM does not start.
        """
        check_vllm()
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over in memory
        self._eos = tuple(eos_ids)
        self._max_len = max_len
        self._version = 0
        self._failure: RunFailedError | None = None
        self._asleep = False
        with self._guard("cannot start"), _random_state_kept():
            from vllm import LLM
            from vllm.platforms import current_platform

            self._can_sleep = bool(current_platform.is_cuda_alike())
            self._untied = bool(current_platform.is_cpu()) and is_tied(
                folder, trust_remote_code=trust_remote_code
            )
            apart = {"hf_overrides": {"tie_word_embeddings": False}, "load_format": "dummy"}
            # Without a launcher vLLM starts the other processes of a tensor-parallel group itself.
            several = int(os.environ.get("WORLD_SIZE", "1")) > 1
            self._llm: Any = LLM(
                model=str(folder),
                trust_remote_code=trust_remote_code,
                skip_tokenizer_init=True,
                generation_config="vllm",
                dtype=dtype,
                seed=seed,
                max_model_len=max_len,
                max_num_seqs=max_rows,
                tensor_parallel_size=tensor_parallel,
                distributed_executor_backend="external_launcher" if several else None,
                gpu_memory_utilization=memory,
                kv_cache_memory_bytes=None if cache_gb is None else int(cache_gb * 1e9),
                enforce_eager=eager,
                enable_prefix_caching=True,
                enable_sleep_mode=self._can_sleep,
                logprobs_mode="processed_logprobs",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **(apart if self._untied else {}),
            )
            if self._untied:
                self._reload(saved(folder))

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
            UsageError: prompt and response do not fit ``max_len``, or the temperature vLLM.
            RunFailedError: the engine failed, now or before.
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
        with closing(self._answers(asked)) as answers:
            return vllm_requests.groups(
                ((i, [_response(output) for output in outputs]) for i, outputs in answers),
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
        """See ``OwnWeights``. A sleeping engine is woken first."""
        self.wake()
        with self._guard("did not take the new weights"):
            self._reload(named)
            if not self._llm.reset_prefix_cache():
                raise RuntimeError("the prefix cache is in use and cannot be reset")
            self._llm.llm_engine.reset_encoder_cache()
            self._llm.update_weight_version(str(version))
        self._version = version

    def score(self, tokens: Sequence[int], *, first: int, temperature: float) -> Tensor:
        """See ``OwnWeights``."""
        asked = vllm_requests.scoring(tokens, first=first, temperature=temperature)
        found = {}
        with closing(self._answers(asked)) as answers:
            for at, outputs in answers:
                found[at] = outputs[0].logprobs[0][tokens[at]].logprob
        return torch.tensor([found[at] for at in asked], dtype=torch.float32)

    def sleep(self) -> None:
        """Give the device's memory to the trainer until ``wake`` or ``load``.

        The weights go to main memory, cached keys and values are dropped. On a CPU nothing happens.
        """
        if self._can_sleep and not self._asleep:
            with self._guard("cannot free its memory"):
                self._llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """Take the memory back."""
        if self._asleep:
            with self._guard("cannot take its memory back"):
                self._llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """See ``OwnWeights``."""
        self._failure = RunFailedError("vLLM was closed")
        self._llm = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _answers(self, asked: Mapping[int, vllm_requests.Request]) -> Answers:
        """The outputs of each request as it is done; what is left is given up when closed early."""
        self.wake()
        waiting = {str(key) for key in asked}
        try:
            with self._guard("refused a request"):
                self._submit(asked)
            while waiting:
                with self._guard("failed while generating"):
                    if not self._llm.llm_engine.has_unfinished_requests():
                        raise RuntimeError(f"{len(waiting)} requests got lost")
                    outputs = self._llm.llm_engine.step()
                for output in outputs:
                    if output.finished:
                        waiting.remove(output.request_id)
                        yield int(output.request_id), output.outputs
        finally:
            if waiting and self._failure is None:
                self._llm.llm_engine.abort_request(list(waiting))

    def _reload(self, named: Iterable[tuple[str, Tensor]]) -> None:
        weights: Iterable[tuple[str, Tensor]] = ((name, tensor.detach()) for name, tensor in named)
        if self._untied:
            weights = with_head(weights)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    def _submit(self, asked: Mapping[int, vllm_requests.Request]) -> None:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        for key, (tokens, settings) in asked.items():
            self._llm.llm_engine.add_request(
                str(key),
                TokensPrompt(prompt_token_ids=list(tokens)),
                SamplingParams(**settings, output_kind=RequestOutputKind.FINAL_ONLY),
            )

    @contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        """Whatever vLLM raises ends the run in one line: its engine is not usable afterwards."""
        if self._failure is not None:
            raise self._failure
        try:
            yield
        except Exception as error:  # vLLM lets every library's errors through
            lines = str(error).strip().splitlines() or [""]
            self._failure = RunFailedError(
                f"vLLM {what}: {type(error).__name__}: {lines[0]}", hint=CONTINUE
            )
            raise self._failure from error


def _response(output: Any) -> vllm_requests.Response:
    tokens = list(output.token_ids)
    logprobs = [step[token].logprob for step, token in zip(output.logprobs, tokens, strict=True)]
    return tokens, logprobs, output.finish_reason


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """vLLM seeds the whole process when it starts; the trainer's own random state comes back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)
