"""What a GGUF file of a model family needs: its architecture's keys, tensor names, and the order of q and k rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qra_eval.export.tuned import TunedRun
from qra_eval.models.engine import rope
from qra_eval.models.from_gguf import read_header
from qra_eval.models.load import gguf_source

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' model type to llama.cpp's architecture."""

ROPES = ("default", "llama3")
"""Kinds of rotary embedding that are written; llama3's frequencies go into a tensor."""

PERMUTED = ("llama",)
"""Architectures whose q and k rows llama.cpp reorders for its rotary embedding."""

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def architecture_reasons(run: TunedRun) -> list[str]:
    """Why this model cannot be written as GGUF here."""
    config, reasons = run.config, []
    if config.model_type not in ARCHITECTURES:
        reasons.append(
            f"{config.model_type} is none of the families that are written as GGUF ({', '.join(ARCHITECTURES)}): "
            "export as merged, and convert that with llama.cpp's convert_hf_to_gguf.py"
        )
    kind = rope(config).get("rope_type", "default")
    if kind not in ROPES:
        reasons.append(
            f"the rotary embedding is scaled ({kind}), which is not written here: export as merged, and convert "
            "that with llama.cpp's convert_hf_to_gguf.py"
        )
    return reasons


def tensor_namer(config: Any) -> Callable[[str], str]:
    """From a name in transformers (`model.layers.0.self_attn.q_proj`, with or without `.weight`) to the one in GGUF.

    Raises:
        ValueError: llama.cpp has no such tensor.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == ARCHITECTURES[config.model_type])
    names = get_tensor_name_map(kind, config.num_hidden_layers)

    def name_of(name: str) -> str:
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"llama.cpp has no tensor for {name} of {config.model_type}")
        return found

    return name_of


def row_order(config: Any, name: str, rows: int) -> Tensor | None:
    """Order in which llama.cpp keeps the rows of q and k for its rotary embedding; None if it is as it was.

    A head's rows are the first halves of its pairs and then the second halves; llama.cpp wants pair after pair.
    """
    parts = name.split(".")
    if ARCHITECTURES[config.model_type] not in PERMUTED or not {"q_proj", "k_proj"} & set(parts):
        return None
    heads = config.num_attention_heads if "q_proj" in parts else config.num_key_value_heads
    return torch.arange(rows).view(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)


def add_hyperparameters(writer: Any, config: Any) -> None:
    """The keys that describe the architecture."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope(config)["rope_theta"]))
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)


def rope_factors(config: Any) -> Tensor | None:
    """What llama.cpp divides the rotary frequencies by, float32 (head / 2,); None if they are not scaled.

    Llama 3.1 slows down the frequencies whose waves are longer than the context that it was trained on first.
    """
    found = rope(config)
    if found.get("rope_type", "default") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    size = 2 * len(scaled)
    plain = 1.0 / found["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32) / size)
    return plain / scaled


def add_tokenizer(writer: Any, run: TunedRun, splits: str | None) -> list[str]:
    """Write a byte-level BPE tokenizer, and give notes; nothing is written for any other kind.

    Args:
        splits: llama.cpp's name of the pre-tokenizer; None: that of the GGUF file that the model came from.
    """
    model = _tokenizer_model(run)
    if not has_tokenizer(run):
        return [
            "the tokenizer is no byte-level BPE, and was not written: llama.cpp needs a file with a tokenizer, "
            "so convert an export as merged with its convert_hf_to_gguf.py instead"
        ]
    notes = []
    if splits is None:
        splits = _source_splits(run)
    if splits is None:
        splits = "default"
        notes.append(
            "the pre-tokenizer is given as `default`, as it is not known here: give llama.cpp's name for it "
            "(pre=...), or numbers and spaces may be split otherwise than they were in tuning"
        )
    tokenizer = run.tokenizer
    count = len(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(list(range(count)))
    added = tokenizer.added_tokens_decoder
    kinds = [
        (CONTROL if added[i].special else USER_DEFINED) if i in added else (UNUSED if token is None else NORMAL)
        for i, token in enumerate(tokens)
    ]
    missing = range(count, run.config.vocab_size)
    tokens = [f"[UNUSED{i}]" if token is None else token for i, token in enumerate(tokens)]
    tokens, kinds = tokens + [f"[PAD{i}]" for i in missing], kinds + [UNUSED] * len(missing)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    # llama.cpp wants some: of two special tokens, which are taken out of a text before anything is merged.
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    writer.add_token_merges(merges or [" ".join((special or tokens)[:2])])
    for kind, add in (
        ("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id), ("pad", writer.add_pad_token_id),
    ):  # fmt: skip
        index = getattr(tokenizer, f"{kind}_token_id")
        if index is not None:
            add(index)
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    return notes


def has_tokenizer(run: TunedRun) -> bool:
    """Whether the tokenizer is of the kind that is written, byte-level BPE."""
    model = _tokenizer_model(run)
    return model.get("type") == "BPE" and not model.get("byte_fallback")


def _tokenizer_model(run: TunedRun) -> dict[str, Any]:
    backend = getattr(run.tokenizer, "backend_tokenizer", None)
    return {} if backend is None else json.loads(backend.to_str())["model"]


def _source_splits(run: TunedRun) -> str | None:
    file = gguf_source(run.spec)
    return None if file is None else read_header(file).value("tokenizer.ggml.pre")
