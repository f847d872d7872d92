"""What answers a benchmark: transformers, vLLM in this process, or a vLLM server."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.names import DtypeName

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tpcli.jobs.examine import Observer, Request
    from tpcli.jobs.subject import Subject
    from tpcli.rollout.engine import RolloutEngine
    from tpcli.rollout.vllm import VllmEngine
    from tpcli.rollout.vllm_server import VllmServer

VLLM_ROWS = 256
"""Responses asked for at a time: vLLM queues what does not fit into its cache."""


class Engines:
    """The engines of one subject; its weights are loaded when the first one is asked for."""

    def __init__(
        self,
        subject: Subject,
        request: Request,
        tokenizer: PreTrainedTokenizerBase,
        observer: Observer,
    ) -> None:
        self._subject, self._request = subject, request
        self._tokenizer, self._observer = tokenizer, observer
        self.dtype = request.dtype or _best_dtype()
        self._model: PreTrainedModel | None = None
        self._vllm: tuple[VllmEngine | VllmServer, int] | None = None

    def of(self, longest: int) -> tuple[RolloutEngine, int]:
        """An engine for prompt and response of ``longest`` tokens, and how many at once."""
        if self._request.engine == "transformers":
            model = self._loaded()
            rows = self._request.rows or rows_of(model, longest)
            return self._transformers(model, rows), rows
        rows = self._request.rows or VLLM_ROWS
        return self._vllm_of(longest, rows), rows

    def release(self) -> None:
        """Give the model's memory back."""
        import torch

        self._model = None
        if self._vllm is not None:
            self._vllm[0].close()
            self._vllm = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _transformers(self, model: PreTrainedModel, rows: int) -> RolloutEngine:
        from tpcli.policy.load import eos_ids, pad_id
        from tpcli.rollout.transformers import TransformersEngine

        return TransformersEngine(
            model,
            eos_ids=eos_ids(model, self._tokenizer),
            pad_id=pad_id(self._tokenizer),
            max_rows=rows,
        )

    def _vllm_of(self, longest: int, rows: int) -> VllmEngine | VllmServer:
        """One for all benchmarks, made anew for longer responses than it has room for."""
        import torch

        from tpcli.policy.load import eos_ids_in
        from tpcli.rollout.vllm import VllmEngine
        from tpcli.rollout.vllm_server import VllmServer
        from tpcli.rollout.vllm_transfer import PathTransfer
        from tpcli.rollout.vllm_weights import saved

        if self._vllm is not None and self._vllm[1] >= longest:
            return self._vllm[0]
        self.release()
        weights, request = self._subject.weights, self._request
        ends = eos_ids_in(weights, self._tokenizer)
        self._observer.fetching("starting vLLM", 0, 0)
        made: VllmEngine | VllmServer
        if request.engine == "vllm":
            made = VllmEngine(
                weights,
                eos_ids=ends,
                max_len=longest,
                max_rows=rows,
                dtype=self.dtype,
                seed=request.seed,
                tensor_parallel=request.tensor_parallel,
                memory=0.9,
                # On a CPU a share of all memory is too much, and compiling costs more than it
                # saves.
                cache_gb=None if torch.cuda.is_available() else 2.0,
                eager=not torch.cuda.is_available(),
                trust_remote_code=self._subject.trust_remote_code,
            )
        else:
            # The server may have been started on any weights of this shape.
            with tempfile.TemporaryDirectory(prefix="tpcli-weights-") as folder:
                transfer = PathTransfer(Path(folder), head=True)
                made = VllmServer(request.server or "", eos_ids=ends, transfer=transfer)
                made.load(saved(weights), version=1)
        self._vllm = made, longest
        return made

    def _loaded(self) -> PreTrainedModel:
        if self._model is None:
            import torch

            from tpcli.policy.load import load_model

            self._observer.fetching("loading the model", 0, 0)
            model: Any
            model, _ = load_model(
                self._subject.weights,
                dtype=self.dtype,
                trust_remote_code=self._subject.trust_remote_code,
            )
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            self._model = model
        return self._model


def rows_of(model: PreTrainedModel, longest: int) -> int:
    """A power of two of responses, 64 at most, whose keys and values fill half of free memory."""
    import psutil
    import torch

    from tpcli.policy.load import cache_bytes

    free: int = psutil.virtual_memory().available
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    room = int(free / 2 / (cache_bytes(model) * longest))
    return min(64, 1 << max(room.bit_length() - 1, 0))


def _best_dtype() -> DtypeName:
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"
