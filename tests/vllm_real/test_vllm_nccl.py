"""vLLM's own sender of weights, driven to the end with everything but NCCL: no GPU is needed.

What this cannot show is that tensors arrive.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.rollout.fake_vllm import FakeServer
from tests.vllm_real.small import small_llama, trained

from tpcli.errors import RunFailedError
from tpcli.rollout.vllm_server import VllmServer
from tpcli.rollout.vllm_transfer import NcclTransfer

pytest.importorskip("vllm")

UPDATE = ["/start_weight_update", "/update_weights", "/finish_weight_update"]


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer()
    server.replies["/get_world_size"] = lambda _: {"world_size": 4}
    for path in ("/init_weight_transfer_engine", *UPDATE):
        server.replies[path] = lambda _: {"message": "done"}
    yield server
    server.stop()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, torch.Tensor]]:
    """What vLLM's sender would broadcast, in order."""
    from vllm.distributed.weight_transfer import nccl_engine

    broadcast: list[tuple[str, torch.Tensor]] = []

    def record(self: Any, source: Any, meta: Any) -> None:
        broadcast.extend(self._checked_iter(source, meta))

    sender = nccl_engine.NCCLTrainerWeightTransferEngine
    monkeypatch.setattr(sender, "_broadcast", record)
    monkeypatch.setattr(sender, "_post_send_sync", lambda self: None)
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", lambda info: object())
    return broadcast


def test_every_weight_is_announced_and_sent(
    fake: FakeServer, sent: list[tuple[str, torch.Tensor]]
) -> None:
    client = VllmServer(fake.url, eos_ids=[2], transfer=NcclTransfer("10.0.0.1", 5555), timeout=30)
    named = trained(small_llama(0, tied=False))
    for version in (1, 2):
        sent.clear()
        client.load(named, version=version)
        assert [name for name, _ in sent] == [name for name, _ in named]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(sent, named, strict=True))
    bodies = dict(fake.asked)
    init = bodies["/init_weight_transfer_engine"]["init_info"]
    assert (init["master_address"], init["master_port"]) == ("10.0.0.1", 5555)
    assert (init["world_size"], init["rank_offset"]) == (5, 1)
    update = bodies["/update_weights"]["update_info"]
    assert update["names"] == [name for name, _ in named]
    assert update["shapes"][0] == list(named[0][1].shape)
    assert set(update["dtype_names"]) == {"float32"}
    asked = [path for path, _ in fake.asked]
    assert asked.count("/init_weight_transfer_engine") == 1
    assert [path for path in asked if path in UPDATE] == UPDATE * 2
    assert asked.index("/pause?mode=wait") < asked.index("/start_weight_update")


def test_a_refused_update_ends_the_run(
    fake: FakeServer, sent: list[tuple[str, torch.Tensor]]
) -> None:
    client = VllmServer(fake.url, eos_ids=[2], transfer=NcclTransfer("10.0.0.1", 5555), timeout=30)
    fake.replies["/update_weights"] = lambda _: 500
    with pytest.raises(RunFailedError, match="/update_weights answered 500"):
        client.load(trained(small_llama(0, tied=False)), version=1)
    assert "/resume" not in [path for path, _ in fake.asked]
