"""A GGUF file becomes the model that it was made of, once; a broken one is refused in one line, without memory."""

from __future__ import annotations

import struct

import gguf
import pytest
import torch
from gguf_files import write_gguf

from qra_eval.models import from_gguf
from qra_eval.models.from_gguf import convert_gguf
from qra_eval.models.load import load_model
from qra_search import BadInput


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, "llama", kind="Q8_0")
    return path.read_bytes()


# Of Qwen3, transformers 5.24 takes heads for 128 wide whatever the file says, as those of all that were published are.
@pytest.mark.parametrize(("family", "more"), [("llama", {}), ("qwen2", {}), ("qwen3", {"head_dim": 128})])
def test_a_file_becomes_the_model_that_it_was_made_of(tmp_path, own_cache, family, more):
    model = write_gguf(tmp_path / "tiny.gguf", family, config=more)
    loaded = load_model(str(tmp_path / "tiny.gguf"), dtype=torch.float32)
    assert type(loaded.model) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    ids = torch.arange(40).reshape(2, 20)
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert getattr(loaded.model.config, "quantization_config", None) is None


def test_weights_are_those_that_gguf_dequantizes(tmp_path, own_cache):
    write_gguf(tmp_path / "tiny.gguf", "qwen2", kind="Q4_1")
    state = load_model(str(tmp_path / "tiny.gguf"), dtype=torch.bfloat16).model.state_dict()
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for name, tensor in state.items():
        stem, _, suffix = name.rpartition(".")
        stored = tensors[f"{names.get_name(stem)}.{suffix}"]
        assert torch.equal(
            tensor, torch.tensor(gguf.dequantize(stored.data, stored.tensor_type)).bfloat16()
        ), name


def test_a_converted_file_is_read_from_the_cache_the_second_time(tmp_path, own_cache, monkeypatch, capsys):
    write_gguf(tmp_path / "tiny.gguf", "llama")
    first = load_model(str(tmp_path / "tiny.gguf"))
    monkeypatch.setattr(from_gguf, "_read_model", lambda *_: pytest.fail("converted twice"))
    second = load_model(str(tmp_path / "tiny.gguf"))
    assert second.fingerprint == first.fingerprint
    assert "de-quantizing" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"block_count": 3}, "tensors are missing"),
        ({"feed_forward_length": 64}, "6 tensors are missing or have another shape, such as .*mlp"),
        ({"vocab_size": 64}, "another shape, such as .*embed"),
    ],
)
def test_metadata_that_the_tensors_contradict_are_refused(tmp_path, own_cache, fields, why):
    write_gguf(tmp_path / "tiny.gguf", "llama", **fields)
    with pytest.raises(BadInput, match=why) as caught:
        convert_gguf(tmp_path / "tiny.gguf", torch.float32)
    assert "\n" not in str(caught.value) and list(own_cache.glob("models/gguf-*")) == []


def test_an_unknown_architecture_is_refused_in_one_line(tmp_path, own_cache):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "clip")
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    with pytest.raises(BadInput, match="clip") as caught:
        convert_gguf(tmp_path / "x.gguf", torch.float32)
    assert "\n" not in str(caught.value)


def test_rotary_scaling_that_is_left_out_is_said(tmp_path, own_cache):
    write_gguf(tmp_path / "tiny.gguf", "llama", **{"rope.scaling.type": "yarn"})
    with pytest.warns(UserWarning, match="ignores the rotary scaling"):
        convert_gguf(tmp_path / "tiny.gguf", torch.float32)


@pytest.mark.parametrize("length", [0, 20, 1000, -100])
def test_a_file_that_is_cut_off_is_refused(content, tmp_path, own_cache, length):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[:length])
    with pytest.raises(BadInput, match="is damaged"):
        convert_gguf(cut, torch.float32)


def test_an_array_of_damaged_length_is_refused_where_gguf_would_loop_for_ever(tmp_path, own_cache):
    array = struct.pack("<Q1sIIQ", 1, b"k", 9, 4, 2**60)  # a key, and as many 32-bit numbers
    (tmp_path / "broken.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + array)
    with pytest.raises(BadInput, match="the file ends before the value at byte"):
        convert_gguf(tmp_path / "broken.gguf", torch.float32)


SMOLLM2 = "ab41ae2f971da3e2"
"""Fingerprint of its weights in bfloat16, made by a reader of our own that stood here before this one."""


@pytest.mark.slow
def test_smollm2_has_the_weights_and_the_tokenizer_that_another_reader_gave(smollm2_file, own_cache):
    loaded = load_model("smollm2", dtype=torch.bfloat16)
    assert loaded.fingerprint == SMOLLM2
    tokenizer = loaded.tokenizer
    assert tokenizer.decode(tokenizer("Größe, 日本語\n🙂 x")["input_ids"]) == "Größe, 日本語\n🙂 x"
    assert tokenizer.eos_token == "<|im_end|>" and "<|im_start|>" in tokenizer.chat_template
