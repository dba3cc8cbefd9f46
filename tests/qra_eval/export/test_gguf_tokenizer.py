"""A tokenizer of SentencePiece's kind, such as Gemma's or Phi-3's: llama.cpp splits texts as transformers does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from qra_eval.export import llama_cpp
from qra_eval.export.gguf_tokenizer import add_tokenizer, piece_scores

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
WORDS = ("▁the", "▁then", "▁there", "▁a", "ing", "▁thing", "er", "▁banana", "▁ba", "nan", "ana", "▁an", "and", "▁and")
TEXTS = ("the thing and then there", "a banana, an ananas and anything", "  two  spaces ", "Zürich 12\n\tπ = 3.14")


@pytest.fixture(scope="module", params=[False, True], ids=["gemma", "phi3"])
def tokenizer(request: Any) -> Any:
    """Pieces by score, merged by every pair that makes them; with or without a space put before a text."""
    letters = sorted({letter for word in WORDS for letter in word})
    whole = {word[:stop] for word in WORDS for stop in range(2, len(word) + 1)} | set(WORDS)
    pieces = sorted(whole, key=lambda piece: (len(piece), piece))
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pieces]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    made = Tokenizer(BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = [normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *spaces] if request.param else spaces)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **names)


def test_the_sooner_a_piece_is_merged_the_higher_is_its_score() -> None:
    assert piece_scores(["a", "ab", "abc"], [["a", "b"], ["ab", "c"], ["a", "bc"]]) == [-3.0, 0.0, -1.0]


@pytest.mark.skipif(not llama_cpp.installed(), reason="llama.cpp is not installed")
def test_llama_cpp_finds_the_same_tokens(tokenizer: Any, tmp_path: Path) -> None:
    import gguf

    file = tmp_path / "tokens.gguf"
    writer = gguf.GGUFWriter(file, "gemma")
    run: Any = SimpleNamespace(
        tokenizer=tokenizer, config=SimpleNamespace(vocab_size=len(tokenizer)), spec=str(tmp_path)
    )
    assert add_tokenizer(writer, run, None) == []
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wanted = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert llama_cpp.tokens(file, TEXTS) == wanted
