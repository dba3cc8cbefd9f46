"""Writes small GGUF files as llama.cpp's converter does, with gguf's own writer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from tiny_families import tiny_config_model
from word_tokenizer import word_tokenizer

WORDS = ["the cat sat on the mat", "a theory of the other", "Question: 12 + 34 = 46"]


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of q and k: the halves of each head interleaved."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def write_gguf(
    path: Path, family: str, *, kind: str = "F32", pre: str = "gpt-2", config: dict | None = None, **fields
) -> torch.nn.Module:
    """A GGUF file of a tiny random model of a family; gives the model. `fields` replace metadata, None removes."""
    model = tiny_config_model(family, initializer_range=0.02, **(config or {}))
    config = model.config
    writer = gguf.GGUFWriter(path, family)
    values = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "embedding_length": config.hidden_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
        "vocab_size": config.vocab_size,
        **fields,
    }
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(f"{family}.{key}", value)
        elif value is not None:
            writer.add_uint32(f"{family}.{key}", value)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{family}.rope.freq_base", config.rope_parameters["rope_theta"])
    _write_tokenizer(writer, pre, config.vocab_size)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family), config.num_hidden_layers
    )
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, suffix = name.rpartition(".")
        array = tensor.float().numpy()
        if family == "llama" and stem.endswith(("q_proj", "k_proj")):
            array = permute(
                array, values["attention.head_count" + ("_kv" if stem.endswith("k_proj") else "")]
            )
        plain = kind == "F32" or array.ndim == 1
        stored = gguf.GGMLQuantizationType.F32 if plain else gguf.GGMLQuantizationType[kind]
        data = array if plain else gguf.quantize(array, stored)
        writer.add_tensor(f"{names.get_name(stem)}.{suffix}", data, raw_dtype=None if plain else stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_tokenizer(writer: gguf.GGUFWriter, pre: str, size: int) -> None:
    import json

    tokenizer = word_tokenizer(WORDS, 300)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    tokens += [f"<|unused{i}|>" for i in range(size - len(tokens))]
    kinds = [3 if token.startswith("<|") else 1 for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)
