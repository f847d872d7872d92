"""A prepared folder appears whole, and is made once."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_llama

from tpcli.errors import TpcliError
from tpcli.policy.load import load_model
from tpcli.policy.scratch import character_tokenizer
from tpcli.policy.store import once, save_model


def test_two_at_once_build_one(tmp_path: Path) -> None:
    """The second waits, says so, and finds the folder whole."""
    target, waiting = tmp_path / "deep" / "model", threading.Event()
    built: list[str] = []

    def slow(folder: Path) -> None:
        (folder / "a").write_text("a")
        assert waiting.wait(60)
        (folder / "b").write_text("b")
        built.append("first")

    def report(what: str, done: float, total: float) -> None:
        assert "waiting for another process" in what
        waiting.set()

    first = threading.Thread(target=once, args=(target, slow))
    first.start()
    while not target.with_name(".model.partial").exists():
        pass
    assert not target.exists()
    once(target, lambda _: built.append("second"), report=report)
    first.join()
    assert built == ["first"]
    assert sorted(path.name for path in target.iterdir()) == ["a", "b"]


def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        once(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    once(tmp_path / "model", lambda folder: (folder / "b").touch())
    assert (tmp_path / "model" / "b").exists()


def test_what_a_killed_process_left_is_not_used(tmp_path: Path) -> None:
    partial = tmp_path / ".model.partial"
    partial.mkdir()
    (partial / "half").touch()
    once(tmp_path / "model", lambda folder: (folder / "whole").touch())
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(TpcliError, match=r"cannot write .*: No space left") as caught:
        once(tmp_path / "model", full)
    assert "TPCLI_CACHE" in caught.value.hint


def test_other_failures_pass_through(tmp_path: Path) -> None:
    def unreachable(folder: Path) -> None:
        raise ConnectionError("not about the disk")

    with pytest.raises(ConnectionError, match="not about the disk"):
        once(tmp_path / "model", unreachable)


def test_a_model_is_written_by_whichever_process_builds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by rank 1 of a distributed run, on which save_pretrained alone writes no weights."""
    from transformers.distributed import mixin

    monkeypatch.setattr(mixin, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setattr(mixin, "_get_torch_distributed_rank", lambda: 1)
    model: Any = tiny_llama()
    model.save_pretrained(tmp_path / "theirs")
    assert not [*(tmp_path / "theirs").glob("*.safetensors")]
    tokenizer = character_tokenizer("0123456789", ["\\boxed{", "}"], context=64)
    save_model(model, tokenizer, tmp_path / "ours")
    again, _ = load_model(tmp_path / "ours", dtype="float32", trust_remote_code=False)
    for name, kept in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], kept)
