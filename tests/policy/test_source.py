"""Where weights come from: folders and hub ids."""

import json
from pathlib import Path

import pytest
import torch
from tests.hub import SHA, FakeHub

from tpcli.errors import OfflineError, UsageError
from tpcli.policy.load import load_model, quiet
from tpcli.policy.scratch import from_scratch
from tpcli.policy.source import resolve
from tpcli.policy.store import cache_dir


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A complete small model."""
    return from_scratch(
        architecture="llama",
        alphabet="01",
        pieces=(),
        hidden_size=8,
        intermediate_size=8,
        layers=1,
        heads=1,
        context=16,
        init_std=0.02,
        seed=0,
        cache=tmp_path / "models",
    )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(source: str, tmp_path: Path) -> UsageError:
    with pytest.raises(UsageError) as caught:
        resolve(source, cache=tmp_path)
    assert caught.value.hint
    return caught.value


def test_cache_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPCLI_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("TPCLI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_dir() == Path("/xdg/tpcli")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "tpcli"


def test_a_folder_is_taken_as_it_is(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve(str(model), cache=tmp_path) == model
    monkeypatch.chdir(model.parent)
    assert resolve(f"./{model.name}", cache=tmp_path).resolve() == model
    assert resolve(model.name, cache=tmp_path).resolve() == model


def test_incomplete_folders_are_refused(model: Path, tmp_path: Path) -> None:
    assert "there is no folder" in refused("./nowhere", tmp_path).message
    for name, message in (
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "has no weights"),
        ("config.json", "has no config.json"),
    ):
        (model / name).unlink()
        assert message in refused(str(model), tmp_path).message


def test_pickled_weights_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    error = refused(str(model), tmp_path)
    assert "only pickled weights (pytorch_model.bin)" in error.message
    assert "save_pretrained" in error.hint


def test_a_missing_shard_is_named(model: Path, tmp_path: Path) -> None:
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    assert "lacks 1 of 2 weight files, model-2.safetensors" in refused(str(model), tmp_path).message


@pytest.mark.parametrize("source", ["a/b/c", "http://x/y", "own er/name"])
def test_what_cannot_be_a_source(source: str, tmp_path: Path) -> None:
    assert "names no model" in refused(source, tmp_path).message


def test_a_hub_model_is_fetched_without_what_could_run(
    model: Path, hub: FakeHub, tmp_path: Path
) -> None:
    extra = {"pytorch_model.bin": b"p", "code.py": b"c", "onnx/model.safetensors": b"o"}
    hub.add("models", "them/small", files_of(model) | extra | {"consolidated.safetensors": b"2"})
    said: list[tuple[str, float, float]] = []
    folder = resolve("them/small", cache=tmp_path, report=lambda *a: said.append(a))
    assert {path.name for path in folder.iterdir()} == set(files_of(model))
    assert not [r for r in hub.requests if "resolve" in r and r.endswith((".bin", ".py"))]
    size = sum(map(len, files_of(model).values()))
    assert said[-1] == ("downloading them/small", size, size)
    load_model(folder, dtype="float32", trust_remote_code=False)
    trusted = resolve("them/small", cache=tmp_path, revision=SHA, trust_remote_code=True)
    assert (trusted / "code.py").read_bytes() == b"c"


def test_a_cached_hub_model_needs_no_network(model: Path, hub: FakeHub, tmp_path: Path) -> None:
    hub.add("models", "them/small", files_of(model))
    folder = resolve("them/small", cache=tmp_path)
    hub.stop()
    assert resolve("them/small", cache=tmp_path) == folder


def test_hub_refusals(model: Path, hub: FakeHub, tmp_path: Path) -> None:
    hub.add("models", "them/pickled", {"config.json": b"{}", "pytorch_model.bin": b"p"})
    hub.add("models", "them/closed", files_of(model), gated=True)
    hub.add("models", "them/open", files_of(model))
    assert "them/pickled has no weights" in refused("them/pickled", tmp_path).message
    closed = refused("them/closed", tmp_path)
    assert "only to those whom its owner has let in" in closed.message
    assert "hf auth login" in closed.hint
    assert "the hub has no model them/none" in refused("them/none", tmp_path).message
    assert "cannot be a hub id" in refused("them/--x", tmp_path).message
    with pytest.raises(UsageError, match="them/open has no revision v9"):
        resolve("them/open", revision="v9", cache=tmp_path)


def test_offline(hub: FakeHub, tmp_path: Path) -> None:
    hub.stop()
    with pytest.raises(OfflineError, match="them/new@main is not whole in its cache") as caught:
        resolve("them/new", revision="main", cache=tmp_path)
    assert "hf download them/new" in caught.value.hint


def test_load_model_is_ready_to_train(model: Path) -> None:
    """padding_idx would drop the gradient of a token that may stand in every prompt."""
    policy, tokenizer = load_model(model, dtype="bfloat16", trust_remote_code=False)
    assert not policy.training
    assert policy.config._attn_implementation == "sdpa"
    assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}
    embedding = policy.get_input_embeddings()
    assert embedding.padding_idx is None
    policy(input_ids=torch.tensor([[tokenizer.pad_token_id, 3]])).logits.sum().backward()
    assert embedding.weight.grad is not None
    assert embedding.weight.grad[tokenizer.pad_token_id].abs().sum() > 0


def test_load_model_never_fills_gaps_with_noise(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"lack model.layers.0.mlp.up_proj.weight"):
        load_model(model, dtype="float32", trust_remote_code=False)


def test_load_model_runs_no_code_of_the_model(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text("raise SystemExit(7)")
    with pytest.raises(UsageError, match="brings Python code of its own") as caught:
        load_model(model, dtype="float32", trust_remote_code=False)
    assert "trust_remote_code = true" in caught.value.hint


def test_load_model_says_what_transformers_said(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "not-a-model"}')
    with pytest.raises(UsageError, match=r"transformers cannot load .*not-a-model"):
        load_model(model, dtype="float32", trust_remote_code=False)


def test_quiet_restores_what_it_changed() -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with quiet():
        assert not logging.is_progress_bar_enabled()
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
