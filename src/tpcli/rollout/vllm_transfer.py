"""How the trainer's weights reach a vLLM server: through a folder, or from GPU to GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tpcli.errors import RunFailedError
from tpcli.rollout.vllm_http import Calls
from tpcli.rollout.vllm_version import check_vllm
from tpcli.rollout.vllm_weights import with_head

AGAIN = "restart the vLLM server; `tpcli resume` goes on from the last checkpoint"
Named = Iterable[tuple[str, Tensor]]


class Transfer(Protocol):
    """Brings weights to a paused server."""

    @property
    def flags(self) -> str:
        """What ``vllm serve`` must be started with for it."""
        ...

    def send(self, calls: Calls, named: Named) -> None:
        """Returns when every worker of the server has all of them."""
        ...


class PathTransfer:
    """The trainer saves a file into a folder that the server sees under the same path."""

    flags = ""

    def __init__(self, folder: Path, *, head: bool = False) -> None:
        """Nothing is written yet.

        Args:
            head: save the output matrix of tied weights too; for a server that was started on an
                untied copy, as it must be on a CPU (``vllm_weights``).
        """
        self._folder, self._head = folder.absolute(), head

    def send(self, calls: Calls, named: Named) -> None:
        """See ``Transfer``. The folder holds the latest weights only."""
        from safetensors.torch import save_file

        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / "model.safetensors.part"
        whole = with_head(named) if self._head else named
        # A file cannot hold two names of the same memory, nor a view.
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in whole}, part)
        part.replace(self._folder / "model.safetensors")
        calls.post(
            "/collective_rpc",
            {"method": "reload_weights", "kwargs": {"weights_path": str(self._folder)}},
        )


class NcclTransfer:
    """NCCL broadcast from this process's GPU to those of the server, by vLLM's own sender.

    Written after vLLM 0.32.0's ``distributed/weight_transfer`` and never run: it needs two GPUs and
    vLLM in the trainer's environment too.
    """

    flags = """ --weight-transfer-config '{"backend": "nccl"}'"""

    def __init__(self, host: str, port: int) -> None:
        """Nothing is connected before the first ``send``.

        Args:
            host, port: a free port of this machine, as the server reaches it.
        """
        check_vllm()
        self._place = (host, port)
        self._source = _Source()
        self._sender: Any = None

    def send(self, calls: Calls, named: Named) -> None:
        """See ``Transfer``. Broadcasts that the server does not join are given up in time."""
        self._source.pairs = [(name, tensor.detach()) for name, tensor in named]
        try:
            if self._sender is None:
                within(calls.timeout, "the NCCL connection", partial(self._connect, calls))
            within(calls.timeout, "the NCCL weight transfer", self._sender.send_weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise RunFailedError(
                f"the NCCL weight transfer failed: {reason}", hint=AGAIN
            ) from error
        finally:
            self._source.pairs = []

    def _connect(self, calls: Calls) -> None:
        from vllm.distributed.weight_transfer.nccl_engine import (
            NCCLTrainerInitInfo,
            NCCLTrainerWeightTransferEngine,
        )

        host, port = self._place
        info = NCCLTrainerInitInfo(
            rank=0,
            master_address=host,
            master_port=port,
            world_size=1 + calls.get("/get_world_size")["world_size"],
        )
        self._sender = NCCLTrainerWeightTransferEngine.trainer_init(
            info, client=_Client(calls), source=self._source
        )


class _Source:
    """vLLM's WeightSource: what is sent is described first, then iterated."""

    def __init__(self) -> None:
        self.pairs: list[tuple[str, Tensor]] = []

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.pairs]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.pairs)


class _Client:
    """vLLM's VLLMWeightSyncClient: the server's side of a transfer."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._calls.post("/init_weight_transfer_engine", {"init_info": init_info})

    def shutdown_weight_transfer_engine(self) -> None:
        self._calls.post("/shutdown_weight_transfer_engine")

    def start_weight_update(self) -> None:
        self._calls.post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._calls.post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._calls.post("/finish_weight_update", {"weight_version": weight_version})


def within(seconds: float, what: str, call: Callable[[], None]) -> None:
    """Run a call that may never return.

    Raises:
        RunFailedError: it did not in time. Its thread is left behind and dies with the process.
    """
    failures: list[BaseException] = []
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def run() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # a thread begins with the first one
            call()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise RunFailedError(
            f"{what} did not end within {seconds:g} s",
            hint=AGAIN,
        )
    if failures:
        raise failures[0]
