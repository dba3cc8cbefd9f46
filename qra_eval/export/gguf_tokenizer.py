"""The tokenizer of a GGUF file: byte-level BPE, or the pieces of SentencePiece, which llama.cpp merges by score."""

from __future__ import annotations

import json
import re
from typing import Any

from qra_eval.export.tuned import TunedRun
from qra_eval.models.from_gguf import read_header
from qra_eval.models.load import find_path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\u2581"
"""What a space is in pieces."""
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def add_tokenizer(writer: Any, run: TunedRun, splits: str | None) -> list[str]:
    """Write the tokenizer, one without `list_tokenizer_issues`, and give notes.

    `splits` is llama.cpp's name of the pre-tokenizer of a byte-level BPE; None: that of the GGUF file of the model.
    """
    model = _get_tokenizer_model(run)
    tokenizer = run.tokenizer
    # A token may have been added that the model has no row for, and ids may have gaps.
    count = min(max(tokenizer.get_vocab().values()) + 1, run.config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(list(range(count)))
    added = tokenizer.added_tokens_decoder
    kinds = [UNUSED if token is None else NORMAL for token in tokens]
    for index, token in added.items():
        if index < count:
            kinds[index] = CONTROL if token.special else USER_DEFINED
    missing = range(count, run.config.vocab_size)
    tokens = [f"[UNUSED{i}]" if token is None else token for i, token in enumerate(tokens)]
    tokens += [f"[PAD{i}]" for i in missing]
    kinds += [UNUSED] * len(missing)
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    pieces = bool(model.get("byte_fallback"))
    notes = []
    if pieces:
        for i, token in enumerate(tokens):
            if BYTE_PIECE.fullmatch(token):
                kinds[i] = BYTE
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id < count:
            kinds[tokenizer.unk_token_id] = UNKNOWN
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(compute_piece_scores(tokens, merges))
        first = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens[0]
        writer.add_add_space_prefix(first.startswith(SPACE))
    else:
        if splits is None and (run.spec == "smollm2" or run.spec.lower().endswith(".gguf")):
            file = find_path(run.spec)
            splits = None if file is None else read_header(file).get_value("tokenizer.ggml.pre")
        if splits is None:
            notes.append(
                "the pre-tokenizer is not known, so `default` was written. Give llama.cpp's name for it "
                "(--option pre=...), since numbers and spaces may otherwise be split differently than in tuning"
            )
        writer.add_tokenizer_pre(splits or "default")
        writer.add_tokenizer_model("gpt2")
        # llama.cpp wants some: of two special tokens, which are taken out of a text before anything is merged.
        special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
        writer.add_token_merges([" ".join(pair) for pair in merges] or [" ".join((special or tokens)[:2])])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for kind in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{kind}_token_id")
        if index is not None and index < count:
            getattr(writer, f"add_{kind}_token_id")(index)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    if chats := tokenizer.chat_template:
        several = isinstance(chats, dict)
        writer.add_chat_template([{"name": n, "template": t} for n, t in chats.items()] if several else chats)
    return notes


def compute_piece_scores(tokens: list[str], merges: list[list[str]]) -> list[float]:
    """llama.cpp merges the two neighbours whose piece has the highest score: the sooner merged, the higher.

    A piece that no merge makes, such as a single character or a byte, has the lowest.
    """
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def list_tokenizer_issues(run: TunedRun) -> list[str]:
    """Why the tokenizer cannot be written: it is no BPE of bytes, nor of characters with bytes to fall back on."""
    model = _get_tokenizer_model(run)
    backend = getattr(run.tokenizer, "backend_tokenizer", None)
    of_bytes = backend is not None and '"ByteLevel"' in backend.to_str()
    if model.get("type") == "BPE" and (model.get("byte_fallback") or of_bytes):
        return []
    return [
        "the tokenizer is neither a byte-level BPE nor a SentencePiece tokenizer with byte fallback. Export as merged, "
        "and convert that with llama.cpp's convert_hf_to_gguf.py"
    ]


def _get_tokenizer_model(run: TunedRun) -> dict[str, Any]:
    backend = getattr(run.tokenizer, "backend_tokenizer", None)
    return {} if backend is None else json.loads(backend.to_str())["model"]
