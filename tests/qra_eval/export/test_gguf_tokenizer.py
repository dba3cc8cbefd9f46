"""A tokenizer of SentencePiece's kind, such as Gemma's or Phi-3's: llama.cpp splits texts as transformers does."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gguf
import pytest
from qra_backends.ggml import library
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from qra_eval.export import llama_cpp
from qra_eval.export.gguf import compute_piece_scores, list_tokenizer_issues, write_tokenizer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
WORDS = "▁the ▁then ▁there ▁a ing ▁thing er ▁banana ▁ba nan ana ▁an and ▁and"
TEXTS = ("the thing and then there", "a banana, an ananas", "  two  spaces ", "Zürich 12\n\tπ = 3.14")


@pytest.fixture(scope="module", params=[False, True], ids=["gemma", "phi3"])
def tokenizer(request: Any) -> Any:
    """Pieces by score, merged by every pair that makes them; with or without a space put before a text."""
    words = WORDS.split()
    letters = sorted({letter for word in words for letter in word})
    whole = {word[:stop] for word in words for stop in range(2, len(word) + 1)} | set(words)
    pieces = sorted(whole, key=lambda piece: (len(piece), piece))
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pieces]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    made = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if request.param else spaces)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **names)


def test_the_sooner_a_piece_is_merged_the_higher_is_its_score() -> None:
    scores = compute_piece_scores(["a", "ab", "abc"], [["a", "b"], ["ab", "c"], ["a", "bc"]])
    assert scores == [-3.0, 0.0, -1.0]


def written(tokenizer: Any, file: Path, rows: int) -> Path:
    """The file of a tokenizer, of a model with so many rows in its table."""
    writer = gguf.GGUFWriter(file, "gemma")
    config = SimpleNamespace(vocab_size=rows)
    run: Any = SimpleNamespace(tokenizer=tokenizer, config=config, spec=str(file.parent))
    assert list_tokenizer_issues(run) == [] and write_tokenizer(writer, run, None) == []
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.skipif(library.get_missing_reason() is not None, reason="llama.cpp is not installed")
def test_llama_cpp_finds_the_same_tokens(tokenizer: Any, tmp_path: Path) -> None:
    file = written(tokenizer, tmp_path / "tokens.gguf", len(tokenizer))
    with llama_cpp.load_file(file, vocab_only=True) as (ffi, lib, loaded):
        vocabulary = lib.llama_model_get_vocab(loaded)
        for text in map(str.encode, TEXTS):
            ids = ffi.new("llama_token[]", len(text) + 8)
            count = lib.llama_tokenize(vocabulary, text, len(text), ids, len(ids), False, False)
            assert list(ids[0:count]) == tokenizer(text.decode(), add_special_tokens=False)["input_ids"]


def test_a_token_that_the_table_lacks_is_left_out_and_the_chat_template_is_written(
    tokenizer: Any, tmp_path: Path
) -> None:
    longer, rows = copy.deepcopy(tokenizer), len(tokenizer)
    longer.add_special_tokens({"pad_token": "<image>"})
    longer.chat_template = "{{ messages }}"
    fields = gguf.GGUFReader(written(longer, tmp_path / "tokens.gguf", rows)).fields
    assert len(fields["tokenizer.ggml.tokens"].data) == rows
    assert "tokenizer.ggml.padding_token_id" not in fields
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"


def test_what_llama_cpp_would_split_otherwise_is_refused(tokenizer: Any) -> None:
    other = json.loads(tokenizer.backend_tokenizer.to_str())
    other["model"]["byte_fallback"] = False
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(other)))
    (reason,) = list_tokenizer_issues(cast(Any, SimpleNamespace(tokenizer=bare)))
    assert "neither a byte-level BPE" in reason and "convert_hf_to_gguf.py" in reason
