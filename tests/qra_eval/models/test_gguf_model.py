"""A GGUF file becomes the model that it was made of, and the one that transformers reads from it."""

from __future__ import annotations

import unicodedata

import gguf
import pytest
import torch
from gguf_files import write_gguf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qra_eval.models.gguf_model import FAMILIES, convert_gguf, gguf_config
from qra_eval.models.gguf_reader import BadGGUF, read_gguf
from qra_eval.models.load import load_model

SCRIPTS = (
    "LATIN", "GREEK", "CYRILLIC", "HEBREW", "ARABIC", "DEVANAGARI", "THAI", "HANGUL", "HIRAGANA", "CJK", "GEORGIAN",
    "ARMENIAN", "ETHIOPIC", "TAMIL", "KHMER", "DIGIT", "EMOJI",
)  # fmt: skip


def texts_of_many_scripts(count: int) -> list[str]:
    """Random words, numbers, marks and white space of one or two scripts each, and the special tokens."""
    import random

    draw = random.Random(0)
    alphabets: dict[str, list[str]] = {script: [] for script in SCRIPTS}
    for code in [*range(0x20, 0x3000), *range(0x3040, 0x3100), *range(0x4E00, 0x4F00), *range(0xAC00, 0xAD00)]:
        name = unicodedata.name(chr(code), "")
        for script in SCRIPTS:
            if script in name:
                alphabets[script].append(chr(code))
    alphabets["EMOJI"] = [chr(code) for code in range(0x1F600, 0x1F640)]
    glue = [
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        ", ",
        ". ",
        "'s ",
        " 1234 ",
        " 3.14",
        "<|im_start|>",
        "<|im_end|>",
        "-",
    ]
    texts = ["", " ", "\n\n\n", "don't I'LL we've", "x" * 300, "def f(x):\n    return x**2 # 42\n"]
    while len(texts) < count:
        some = draw.sample(SCRIPTS, draw.choice((1, 2)))
        words = ["".join(draw.choices(alphabets[draw.choice(some)], k=draw.randint(1, 9))) for _ in range(8)]
        texts.append("".join(word + draw.choice(glue) for word in words))
    return texts


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_becomes_the_model_that_it_was_made_of(tmp_path, own_cache, family):
    model = write_gguf(tmp_path / "tiny.gguf", family)
    loaded = load_model(str(tmp_path / "tiny.gguf"), dtype=torch.float32)
    assert type(loaded.model) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    ids = torch.arange(40).reshape(2, 20)
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, model(input_ids=ids).logits)


# Of Qwen3, transformers 5.24 takes heads for 128 wide whatever the file says.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3"])
def test_a_quantized_file_becomes_what_transformers_makes_of_it(tmp_path, family):
    write_gguf(tmp_path / "tiny.gguf", family, kind="Q4_1")
    (tmp_path / "ours").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "ours", torch.bfloat16)
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.bfloat16)
    for name, tensor in theirs.state_dict().items():
        if name in ours:
            assert ours[name].dtype == torch.bfloat16 and torch.equal(ours[name], tensor), name
    assert len(ours) == len(theirs.state_dict()) - bool(theirs.config.tie_word_embeddings)


def test_a_small_tokenizer_is_that_of_transformers(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "llama")
    (tmp_path / "ours").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "ours", torch.float32)
    ours = AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert_same_tokenizer(ours, theirs, texts_of_many_scripts(40))


def test_other_families_go_through_transformers_own_loader(tmp_path, own_cache, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", "qwen2")
    fast = load_model(str(tmp_path / "tiny.gguf"), dtype=torch.float32)
    monkeypatch.setattr("qra_eval.models.gguf_model.FAMILIES", ())
    monkeypatch.setenv("QRA_CACHE", str(tmp_path / "other"))
    slow = load_model(str(tmp_path / "tiny.gguf"), dtype=torch.float32)
    assert slow.fingerprint == fast.fingerprint
    assert getattr(slow.model.config, "quantization_config", None) is None
    assert fast.tokenizer("the theory 12")["input_ids"] == slow.tokenizer("the theory 12")["input_ids"]


def test_a_converted_file_is_read_from_the_cache_the_second_time(tmp_path, own_cache, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", "llama")
    first = load_model(str(tmp_path / "tiny.gguf"))
    monkeypatch.setattr("qra_eval.models.gguf_model.convert_gguf", lambda *_: pytest.fail("converted twice"))
    second = load_model(str(tmp_path / "tiny.gguf"))
    assert second.fingerprint == first.fingerprint
    assert [p.name for p in (own_cache / "models").iterdir() if p.name.startswith(".")] == []


def test_a_conversion_that_fails_leaves_nothing_in_the_cache(tmp_path, own_cache):
    write_gguf(tmp_path / "tiny.gguf", "llama", block_count=3)
    with pytest.raises(BadGGUF):
        load_model(str(tmp_path / "tiny.gguf"))
    assert list((own_cache / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"block_count": None}, "llama.block_count is None"),
        ({"block_count": "many"}, "llama.block_count is 'many'"),
        ({"block_count": 2**31 - 1}, "2147483647 blocks in"),
        ({"block_count": 3}, "tensor 'blk.2.* is missing"),
        ({"block_count": 1}, "tensor 'blk.1.* has no place"),
        ({"embedding_length": 2**30}, r"token_embd.weight has shape \(320, 64\), its metadata say \(320, 1073741824\)"),
        ({"vocab_size": 2**31 - 1}, "token_embd.weight has shape"),
        ({"attention.head_count": 0}, "attention.head_count is 0"),
        ({"attention.head_count": 3}, "attn_q.weight has shape"),
        ({"attention.head_count_kv": 4}, "attn_k.weight has shape"),
        ({"feed_forward_length": 2**30}, "ffn_gate.weight has shape"),
    ],
)
def test_metadata_that_the_tensors_contradict_are_refused_before_anything_is_built(tmp_path, fields, why):
    path = tmp_path / "tiny.gguf"
    if "attention.head_count" in fields or "attention.head_count_kv" in fields:
        write_gguf(path, "llama")
        file = read_gguf(path)
        file.metadata.update({f"llama.{key}": value for key, value in fields.items()})
        with pytest.raises(BadGGUF, match=why):
            gguf_config(file, "llama")
        return
    write_gguf(path, "llama", **fields)
    with pytest.raises(BadGGUF, match=why) as caught:
        convert_gguf(path, tmp_path, torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("tokens", [f"t{i}" for i in range(999)], "999 tokens, but an embedding of 320 rows"),
        ("tokens", [1, 2, 3], "no tokenizer can be made"),
        ("merges", ["no such pair"], "no tokenizer can be made"),
        ("merges", [5], "no tokenizer can be made"),
    ],
)
def test_a_tokenizer_that_fits_nothing_is_refused_in_one_line(tmp_path, monkeypatch, key, value, why):
    write_gguf(tmp_path / "tiny.gguf", "llama")
    file = read_gguf(tmp_path / "tiny.gguf")
    file.metadata[f"tokenizer.ggml.{key}"] = value
    if key == "tokens":
        file.metadata["tokenizer.ggml.token_type"] = [1] * len(value)
    monkeypatch.setattr("qra_eval.models.gguf_model.read_gguf", lambda _: file)
    with pytest.raises(BadGGUF, match=why) as caught:
        convert_gguf(file.path, tmp_path, torch.float32)
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_is_refused_in_one_line(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "clip")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(BadGGUF, match="clip") as caught:
        convert_gguf(tmp_path / "x.gguf", tmp_path, torch.float32)
    assert "\n" not in str(caught.value)


def test_rotary_scaling_that_is_left_out_is_said(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", "llama", **{"rope.scaling.type": "yarn"})
    with pytest.warns(UserWarning, match="rotary scaling is left out"):
        convert_gguf(tmp_path / "tiny.gguf", tmp_path, torch.float32)


@pytest.mark.slow
def test_smollm2_is_bit_for_bit_what_transformers_reads(smollm2_file, own_cache):
    ours = load_model("smollm2", dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2_file.parent, gguf_file=smollm2_file.name, dtype=torch.bfloat16
    )
    mine = ours.model.state_dict()
    assert mine.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)
    assert_same_tokenizer(ours.tokenizer, tokenizer, texts_of_many_scripts(200))


def assert_same_tokenizer(ours, theirs, texts):
    for text in texts:
        ids = theirs(text)["input_ids"]
        assert ours(text)["input_ids"] == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True), text
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert set(ours.all_special_tokens) == set(theirs.all_special_tokens)
