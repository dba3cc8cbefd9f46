"""What tensors of a model are called in a GGUF file, and the order of q and k rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qra_eval.models.gguf_families import family_of

EXPERT = re.compile(r"\bexperts\.\d+\.")
"""The number of an expert in a linear's name: llama.cpp has those of a layer in one tensor."""


def tensor_namer(config: Any) -> Callable[[str], str]:
    """From a name in transformers (`model.layers.0.self_attn.q_proj`, with or without `.weight`) to the one in GGUF.

    Raises:
        ValueError: llama.cpp has no such tensor.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = family_of(config).architecture
    kind = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(kind, config.num_hidden_layers)

    def name_of(name: str) -> str:
        found = names.get_name(EXPERT.sub("experts.", name), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ValueError(f"llama.cpp has no tensor for {name} of {config.model_type}")
        return found

    return name_of


def row_order(config: Any, name: str, rows: int) -> Tensor | None:
    """Order in which llama.cpp keeps the rows of q and k for its rotary embedding; None if it is as it was.

    A head's rows are the first halves of its pairs and then the second halves; llama.cpp wants pair after pair.
    """
    parts = name.split(".")
    if not family_of(config).permuted or not {"q_proj", "k_proj"} & set(parts):
        return None
    heads = config.num_attention_heads if "q_proj" in parts else config.num_key_value_heads
    return torch.arange(rows).view(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(-1)
